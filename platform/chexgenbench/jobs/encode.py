"""Decode and encode images: each image once, in batches of one fixed shape, reading ahead."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from chexgenbench.errors import ChexGenBenchError
from chexgenbench.images import BadImage, read_image
from chexgenbench.provenance import threads
from chexgenbench.types import Encoder, EncoderSpec

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

Outputs = Mapping[str, "NDArray[np.float32]"]
T = TypeVar("T")

_ROWS_IN_PART = 1024
_SECONDS_IN_PART = 20.0

_MOST_DECODERS = 4
"""Threads that decode at most; each holds an image of full size, and so does who waits for one."""


@dataclass(frozen=True)
class ImageItem:
    """An image to encode: the key of its content, its file, and the encoders that lack it."""

    key: str
    path: Path
    encoders: frozenset[str]


@dataclass
class _Pending:
    keys: list[str] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)


@dataclass
class _Part:
    keys: list[str] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)


class Gatherer:
    """Gathers batches to parts of a sensible size; a part holds whole batches only, so that after
    a kill the remaining items fall into the same batches as they would have.

    Args:
        write: takes the keys and outputs of each part.
    """

    def __init__(self, write: Callable[[Sequence[str], Outputs], None]) -> None:
        self._write = write
        self._part = _Part()

    def add(self, keys: Sequence[str], outputs: Outputs) -> None:
        """Takes a batch."""
        self._part.keys.extend(keys)
        self._part.outputs.append(outputs)
        old = time.monotonic() - self._part.since > _SECONDS_IN_PART
        if old or len(self._part.keys) >= _ROWS_IN_PART:
            self.flush()

    def flush(self) -> None:
        """Writes what was gathered."""
        part, self._part = self._part, _Part()
        if part.keys:
            names = part.outputs[0].keys()
            merged = {name: np.concatenate([item[name] for item in part.outputs]) for name in names}
            self._write(part.keys, merged)


def encode_images(
    items: Sequence[ImageItem],
    encoders: Mapping[str, tuple[EncoderSpec, Encoder]],
    *,
    batch_size: int,
    device: str,
    sink: Callable[[str, Sequence[str], Outputs], None],
    bad: Callable[[ImageItem, BadImage], None],
    advance: Callable[[int], None],
) -> None:
    """Encodes each item by the encoders that lack it; one decoding serves them all.

    Batches are cut in the order of `items` and padded to `batch_size` by repeating the last image:
    every call has the same shape, so that a row does not depend on how many others there were.

    Args:
        device: what the encoders work on.
        sink: given encoder name, keys and outputs of each batch, in order.
        bad: given each image that cannot be decoded; it is not encoded.
        advance: told the number of images decoded.
    """
    pending = {name: _Pending() for name in encoders}

    def decode(item: ImageItem) -> dict[str, torch.Tensor] | BadImage:
        try:
            image = read_image(item.path, content=item.key)
        except BadImage as error:
            return error
        return {name: encoders[name][1].preprocess(image) for name in sorted(item.encoders)}

    def flush(name: str) -> None:
        batch = pending[name]
        if batch.keys:
            spec, encoder = encoders[name]
            sink(name, batch.keys, _encode(spec, encoder, batch.tensors, batch_size))
            pending[name] = _Pending()

    for item, decoded in _ahead(decode, items, 2 * batch_size, _decoders(device)):
        if isinstance(decoded, BadImage):
            bad(item, decoded)
        else:
            for name, tensor in decoded.items():
                pending[name].keys.append(item.key)
                pending[name].tensors.append(tensor)
                if len(pending[name].keys) == batch_size:
                    flush(name)
        advance(1)
    for name in encoders:
        flush(name)


def encode_texts(
    texts: Sequence[tuple[str, str]],
    spec: EncoderSpec,
    encoder: Encoder,
    *,
    batch_size: int,
    sink: Callable[[Sequence[str], Outputs], None],
    advance: Callable[[int], None] = lambda _count: None,
) -> None:
    """Encodes (key, text) pairs, padded to a fixed batch as images are."""
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        padded = [text for _, text in batch] + [batch[-1][1]] * (batch_size - len(batch))
        features = np.asarray(encoder.encode_text(padded), dtype=np.float32)[: len(batch)]
        width = spec.outputs["features"]
        if features.shape != (len(batch), width) or not np.isfinite(features).all():
            raise ChexGenBenchError(
                f"Encoder {spec.name!r} returned text features of shape {features.shape} "
                f"where finite [{len(batch)}, {width}] is declared."
            )
        sink([key for key, _ in batch], {"features": features})
        advance(len(batch))


def _encode(
    spec: EncoderSpec, encoder: Encoder, tensors: Sequence[torch.Tensor], batch_size: int
) -> Outputs:
    import torch

    n = len(tensors)
    batch = torch.stack([*tensors, *[tensors[-1]] * (batch_size - n)])
    with torch.inference_mode():
        outputs = encoder.encode(batch)
    checked: dict[str, NDArray[np.float32]] = {}
    for name, width in spec.outputs.items():
        if name not in outputs:
            raise ChexGenBenchError(f"Encoder {spec.name!r} returned no {name!r}.")
        values = np.asarray(outputs[name], dtype=np.float32)
        if values.shape != (batch_size, width):
            raise ChexGenBenchError(
                f"Encoder {spec.name!r} returned {name!r} of shape {values.shape} "
                f"where [{batch_size}, {width}] is declared."
            )
        values = values[:n]
        if not np.isfinite(values).all():
            raise ChexGenBenchError(f"Encoder {spec.name!r} returned NaN or infinity in {name!r}.")
        checked[name] = values
    return checked


def _decoders(device: str) -> int:
    """Threads that decode ahead: on the cores that the encoders leave.

    Pillow releases the interpreter lock. A thread more than there are cores slows an encoder on the
    CPU by more than it decodes; but many cores that all compute need more than one to feed them.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    busy = threads() if device.startswith("cpu") else 1
    return min(_MOST_DECODERS, max(1, cores - busy, cores // 4))


def _ahead(
    function: Callable[[ImageItem], T], items: Sequence[ImageItem], depth: int, workers: int
) -> Iterator[tuple[ImageItem, T]]:
    """`map` by threads, in order, less than `depth` + `workers` ahead: memory stays bounded.

    Who asks for a result that is not there yet works on those that no thread has begun.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[ImageItem, Future[T]]] = deque()

        def first() -> tuple[ImageItem, T]:
            for at in range(len(waiting)):
                item, future = waiting[at]
                if waiting[0][1].done():
                    break
                if future.cancel():  # no thread has begun it
                    waiting[at] = item, _now(function, item)
            item, future = waiting.popleft()
            return item, future.result()

        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) >= depth + workers:
                    yield first()
            while waiting:
                yield first()
        finally:
            for _, future in waiting:
                future.cancel()


def _now(function: Callable[[ImageItem], T], item: ImageItem) -> Future[T]:
    """The result, or the fault, of a call in this thread."""
    future: Future[T] = Future()
    try:
        future.set_result(function(item))
    except Exception as error:
        future.set_exception(error)
    return future
