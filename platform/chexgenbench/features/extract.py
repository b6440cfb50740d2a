"""Plan and run the encoders over what they have not seen yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chexgenbench.errors import ChexGenBenchError, is_disk_fault
from chexgenbench.features.store import FeatureStore
from chexgenbench.files import digest, sha256_bytes
from chexgenbench.images import BadImage
from chexgenbench.jobs.encode import ImageItem, Outputs, encode_images, encode_texts
from chexgenbench.registry import Plugin
from chexgenbench.types import Context, Encoder, EncoderSpec, Parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS_IN_PART = 1024
_SECONDS_IN_PART = 20.0


@dataclass(frozen=True)
class EncoderPlan:
    """An encoder chosen for a run: its identity names its folder in the feature store."""

    plugin: Plugin[EncoderSpec]
    parameters: Parameters
    context: Context
    identity: Mapping[str, Any]
    images: FeatureStore
    texts: FeatureStore

    @property
    def name(self) -> str:
        return self.plugin.name

    @property
    def id(self) -> str:
        return digest(self.identity)[:16]

    def load(self) -> Encoder:
        encoder = self.plugin.create(self.parameters, self.context)
        assert isinstance(encoder, Encoder)  # Plugin.load has checked the class
        return encoder


def plan_encoder(
    plugin: Plugin[EncoderSpec],
    parameters: Parameters,
    context: Context,
    *,
    root: Path,
    weights: Mapping[str, str],
) -> EncoderPlan:
    """Names the encoder's features; reads what is stored of them.

    Args:
        root: the folder that holds the features of all encoders.
        weights: SHA-256 of each weight file.
    """
    identity = {
        "encoder": plugin.identity(),
        "parameters": parameters.identity(),
        "weights": dict(weights),
        "preprocessing": plugin.spec.preprocessing,
        "outputs": dict(plugin.spec.outputs),
        "device": context.device.partition(":")[0],
        "dtype": context.dtype,
    }
    folder = root / f"{plugin.name}-{digest(identity)[:16]}"
    outputs = plugin.spec.outputs
    plan = EncoderPlan(
        plugin,
        parameters,
        context,
        identity,
        images=FeatureStore(folder / "images", outputs),
        texts=FeatureStore(folder / "texts", {"features": outputs.get("features", 0)}),
    )
    plan.images.refresh()
    plan.texts.refresh()
    return plan


def text_key(text: str) -> str:
    """The key of a text: the hash of its UTF-8 bytes."""
    return sha256_bytes(text.encode("utf-8"))


@dataclass
class Extraction:
    """What `extract` did: images encoded now, seconds, and the images that are no images."""

    encoded: int = 0
    seconds: float = 0.0
    bad: dict[str, BadImage] = field(default_factory=dict)


@dataclass
class _Part:
    keys: list[str] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)


class _Writer:
    """Gathers batches to parts of a sensible size; a part holds whole batches only, so that after
    a kill the remaining images fall into the same batches as they would have."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._part = _Part()

    def add(self, keys: Sequence[str], outputs: Outputs) -> None:
        self._part.keys.extend(keys)
        self._part.outputs.append(outputs)
        old = time.monotonic() - self._part.since > _SECONDS_IN_PART
        if old or len(self._part.keys) >= _ROWS_IN_PART:
            self.flush()

    def flush(self) -> None:
        part, self._part = self._part, _Part()
        if part.keys:
            names = part.outputs[0].keys()
            merged = {name: np.concatenate([item[name] for item in part.outputs]) for name in names}
            self._store.write(part.keys, merged)


def extract(
    images: Sequence[tuple[str, Path]],
    texts: Sequence[str],
    encoders: Sequence[EncoderPlan],
    *,
    batch_size: int,
    text_encoders: frozenset[str] = frozenset(),
    stage: Callable[[int], Any],
) -> Extraction:
    """Encodes the images and texts that an encoder has not stored yet.

    Args:
        images: (content hash, file), in canonical order; equal hashes are encoded once.
        texts: the prompts to encode by the encoders named in `text_encoders`.
        stage: given the number of images to do, a context manager that yields ``advance``.

    Returns:
        What was done; an image that cannot be decoded stands in ``bad`` by its hash.
    """
    start = time.perf_counter()
    done = Extraction()
    items: dict[str, ImageItem] = {}
    for key, path in images:
        lacking = frozenset(plan.name for plan in encoders if key not in plan.images)
        if lacking and key not in items:
            items[key] = ImageItem(key, path, lacking)
    lacking_texts = {
        plan.name: [
            (key, text)
            for key, text in {text_key(text): text for text in texts}.items()
            if key not in plan.texts
        ]
        for plan in encoders
        if plan.name in text_encoders
    }
    needed = {name for item in items.values() for name in item.encoders}
    needed |= {name for name, lacking in lacking_texts.items() if lacking}
    if not needed:
        return done

    loaded = {
        plan.name: (plan.plugin.spec, plan.load()) for plan in encoders if plan.name in needed
    }
    writers = {plan.name: _Writer(plan.images) for plan in encoders}

    def bad(item: ImageItem, error: BadImage) -> None:
        done.bad[item.key] = error

    try:
        with stage(len(items)) as advance:
            encode_images(
                list(items.values()),
                loaded,
                batch_size=batch_size,
                sink=lambda name, keys, outputs: writers[name].add(keys, outputs),
                bad=bad,
                advance=advance,
            )
        for plan in encoders:
            if lacking_texts.get(plan.name):
                spec, encoder = loaded[plan.name]
                todo, writer = lacking_texts[plan.name], _Writer(plan.texts)
                encode_texts(todo, spec, encoder, batch_size=batch_size, sink=writer.add)
                writer.flush()
    except ChexGenBenchError:
        raise
    except Exception as error:
        if is_disk_fault(error):
            raise
        names = ", ".join(sorted(loaded))
        raise ChexGenBenchError(
            f"Encoding failed ({names}): {type(error).__name__}: {error}"
        ) from error
    finally:
        for writer in writers.values():
            writer.flush()
    done.encoded = len(items) - len(done.bad)
    done.seconds = time.perf_counter() - start
    return done


def read_texts(plan: EncoderPlan, texts: Sequence[str]) -> NDArray[np.float32]:
    """Text features float32 [n, d] of `texts`, which `extract` has encoded."""
    return plan.texts.read([text_key(text) for text in texts])["features"]
