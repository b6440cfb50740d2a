"""Make the images of a list of requests in one folder; killed and called again, continue."""

from __future__ import annotations

import base64
import ctypes
import errno
import gc
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from filelock import Timeout

from chexgenbench.errors import PLUGIN_FAULTS, ChexGenBenchError, is_disk_fault
from chexgenbench.files import file_lock, remove_leftovers
from chexgenbench.images import THUMBNAIL, duplicates
from chexgenbench.jobs.manifest import (
    CALLS,
    IMAGES,
    MANIFEST,
    PROCESSES,
    Appender,
    Cut,
    ManifestRow,
    calls_tail,
    gather,
    is_whole,
    keep_finest,
    manifest_tail,
    part_name,
    read_calls,
    read_manifest,
    read_processes,
    rewrite,
    this_process,
)
from chexgenbench.jobs.waiting import AGAIN
from chexgenbench.jobs.writer import Call, Writer
from chexgenbench.provenance import MemoryMeter
from chexgenbench.types import Image, Made, Model, Request

if sys.platform != "win32":  # one process makes a generation's images there
    from chexgenbench.jobs.claims import Claims, are_alive, wait_for_workers

_LOOK_AGAIN = 0.1
"""Seconds between two looks at what the other workers have made."""

_FLAG = re.compile(r"[a-z0-9_]{1,40}")

_NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")


def generate(
    load: Callable[[], Model],
    requests: Sequence[Request],
    folder: Path,
    *,
    batch_size: int,
    advance: Callable[[int], None],
    device: str = "cpu",
) -> dict[str, ManifestRow]:
    """Makes the images that are not there yet, in this process; the caller holds the folder.

    Args:
        load: makes the model; called only when an image is missing.
        folder: the generation's folder; see `hold`.
        batch_size: requests a call.
        advance: told the number of images done, those found there included.
        device: what the model runs on.

    Returns:
        The whole manifest, in request order.

    Raises:
        ChexGenBenchError: the model raised, or returned something other than one valid image a
            request; images of earlier calls stay.
    """
    work(load, requests, folder, batch_size=batch_size, advance=advance, device=device)
    return finish(requests, folder)


@contextmanager
def hold(folder: Path, say: Callable[[str], None] = lambda _text: None) -> Iterator[None]:
    """The folder for this command alone, and in order, whatever was killed in it before.

    Args:
        say: told a line while another command, or a worker that it left, is waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = file_lock(folder / ".lock")
    patience = 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            say(f"another process makes these images; waiting for it ({folder.name})")
            patience = AGAIN
    try:
        if sys.platform != "win32":
            wait_for_workers(folder, say)
        gather(folder)
        remove_leftovers(folder, "")
        remove_leftovers(folder / IMAGES, ".png")
        yield
    finally:
        lock.release()


@contextmanager
def hold_if_quiet(folder: Path) -> Iterator[bool]:
    """The folder for this command alone, as `hold`, if nobody is at work in it; nothing in it is
    put in order. Yields whether that is so."""
    lock = file_lock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield sys.platform == "win32" or not are_alive(folder)
    finally:
        lock.release()


def work(
    load: Callable[[], Model],
    requests: Sequence[Request],
    folder: Path,
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda _count: None,
    device: str = "cpu",
    worker: int = 0,
) -> None:
    """Makes missing images until none is missing, alone or as one of several workers.

    Batches are cut by the request list and never by what is left, because a pipeline's kernels
    differ in the last bit with the batch: an interrupted call is made again as a whole, and of its
    images only the missing ones are kept.

    Args:
        worker: 0 is alone in the folder. Others share it: each batch is made by the worker that
            claims it first, and by another one if that one dies.

    The other arguments and the errors are those of `generate`.
    """
    with ExitStack() as stack:
        claims = stack.enter_context(Claims(folder)) if worker else None
        rows: dict[str, ManifestRow] = {}
        manifest, calls = manifest_tail(folder), calls_tail(folder)
        cuts: dict[int, tuple[int, ...]] = {}

        def look() -> None:
            rows.update((row.id, row) for row in manifest.new())
            keep_finest(cuts, calls.new())

        look()
        notes = stack.enter_context(Appender(folder / part_name(CALLS, worker)))
        lines = stack.enter_context(Appender(folder / part_name(MANIFEST, worker)))
        writer = stack.enter_context(Writer(folder, lines, rows, advance))
        maker: _Maker | None = None

        def settled(number: int) -> bool:
            """Whether the batch is made or waits to be written; False while another makes it."""
            nonlocal maker
            batch = requests[number * batch_size : (number + 1) * batch_size]
            if not _missing(batch, rows):
                advance(len(batch))
                return True
            if claims is not None:
                if not claims.take(number):
                    return False
                look()  # its former holder may have made it just now
                if not _missing(batch, rows):
                    advance(len(batch))
                    return True
            maker = maker or _Maker(
                load, batch_size, folder, writer, notes, advance, worker, device
            )
            maker.make(number, batch, cuts.get(number), rows)
            return True

        waiting = list(range(-(-len(requests) // batch_size)))
        while waiting:
            waiting = [number for number in waiting if not settled(number)]
            if waiting:
                writer.wait()
                time.sleep(_LOOK_AGAIN)
                look()


def finish(requests: Sequence[Request], folder: Path) -> dict[str, ManifestRow]:
    """Flags images that repeat each other and leaves one manifest, in request order.

    The caller holds the folder, and every image is there.
    """
    rows = read_manifest(folder)
    whole = [rows[request.id] for request in requests]
    small = np.frombuffer(b"".join(base64.b64decode(row.thumbnail) for row in whole), np.uint8)
    repeated = duplicates(
        small.reshape(len(whole), THUMBNAIL, THUMBNAIL), [row.prompt_id for row in whole]
    )
    flagged = {
        row.id: replace(
            row,
            flags=(
                *(flag for flag in row.flags if flag != "duplicate"),
                *(("duplicate",) if same else ()),
            ),
        )
        for row, same in zip(whole, repeated, strict=True)
    }
    rewrite(folder, MANIFEST, flagged.values())
    rewrite(folder, CALLS, (Cut(*each) for each in read_calls(folder).items()))
    made_by = {row.process for row in whole}
    processes = read_processes(folder)
    rewrite(folder, PROCESSES, (processes[name] for name in processes if name in made_by))
    remove_leftovers(folder / IMAGES, ".png")
    return flagged


def finished(requests: Sequence[Request], folder: Path) -> dict[str, ManifestRow] | None:
    """The whole manifest, in request order; None where an image is missing."""
    rows = read_manifest(folder)
    if not all(
        request.id in rows and is_whole(folder / rows[request.id].path) for request in requests
    ):
        return None
    return {request.id: rows[request.id] for request in requests}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help.

    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    True
    """
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in _NO_MEMORY)


def call_model(
    model: Model, requests: Sequence[Request]
) -> list[tuple[Image, tuple[str, ...]]] | None:
    """One call of a model: images, each with the flags the model gave it; None: out of memory.

    Raises:
        ChexGenBenchError: the model raised, or returned another number of images.
    """
    name = type(model).__name__
    try:
        made = [_own(name, image) for image in model.generate(requests)]
    except ChexGenBenchError:
        raise
    except PLUGIN_FAULTS as error:
        if is_disk_fault(error):
            raise
        if not is_out_of_memory(error):
            raise ChexGenBenchError(
                f"{name} failed on requests {requests[0].id} to {requests[-1].id}: "
                f"{type(error).__name__}: {error}"
            ) from error
    else:
        if len(made) != len(requests):
            raise ChexGenBenchError(
                f"{name} returned {len(made)} images for {len(requests)} requests."
            )
        return made
    # Outside the handler: the error's traceback held the tensors.
    free_memory()
    return None


def free_memory() -> None:
    """Gives back what nothing refers to any more, on the GPU as well."""
    gc.collect()
    with suppress(AttributeError, TypeError):  # the C library of Linux distributions alone has it
        ctypes.CDLL(None).malloc_trim(0)
    if "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()


class _Maker:
    """A loaded model at work on batches, with smaller calls once memory was short."""

    def __init__(
        self,
        load: Callable[[], Model],
        batch_size: int,
        folder: Path,
        writer: Writer,
        notes: Appender,
        advance: Callable[[int], None],
        worker: int,
        device: str,
    ) -> None:
        self._writer, self._notes, self._advance = writer, notes, advance
        self._worker, self._device = worker, device
        self._largest = batch_size
        free_memory()
        self._memory = MemoryMeter(device)
        self._model = load()
        process = this_process(device)
        with Appender(folder / part_name(PROCESSES, worker)) as processes:
            processes.add(process)
            processes.sync()
        self._process = process.id

    def make(
        self,
        number: int,
        batch: Sequence[Request],
        cut: Sequence[int] | None,
        rows: dict[str, ManifestRow],
    ) -> None:
        """Makes the calls of a batch that lack an image.

        Args:
            cut: how the batch was cut before: calls are formed again as they were, so that an image
                that is made again is the same.
        """
        begun = any(request.id in rows for request in batch)
        # Images that are there without a cut were made in one call.
        calls = list(cut or ([len(batch)] if begun else _pieces(len(batch), self._largest)))
        if cut is None and len(calls) > 1:
            self._note(number, calls)
        start = at = 0
        while at < len(calls):
            requests = batch[start : start + calls[at]]
            if not _missing(requests, rows):
                self._advance(len(requests))
            elif not self._call(number, requests):
                self._largest = min(self._largest, -(-len(requests) // 2))
                calls[at:] = self._finer(calls[at:], batch[start:], rows)
                self._note(number, calls)
                continue
            start, at = start + calls[at], at + 1

    def _finer(
        self, calls: Sequence[int], requests: Sequence[Request], rows: dict[str, ManifestRow]
    ) -> list[int]:
        """The first call cut to what fits now, and the others that have made no image yet."""
        finer = _pieces(calls[0], self._largest)
        start = calls[0]
        for count in calls[1:]:
            begun = any(request.id in rows for request in requests[start : start + count])
            finer += [count] if begun else _pieces(count, self._largest)
            start += count
        return finer

    def _call(self, number: int, requests: Sequence[Request]) -> bool:
        begun = time.perf_counter()
        made = call_model(self._model, requests)
        seconds = time.perf_counter() - begun
        if made is None:
            if len(requests) == 1:
                raise ChexGenBenchError(
                    f"{type(self._model).__name__} runs out of memory on {self._device} with one "
                    f"image a call (request {requests[0].id}).",
                    hint="Make smaller images (--set size=...), use half precision (--dtype), or "
                    "keep a part of the model in main memory (--set offload=model) where the "
                    "model has such parameters.",
                )
            return False
        self._writer.put(
            Call(
                model=type(self._model).__name__,
                requests=requests,
                images=made,
                batch=number,
                seconds=seconds,
                worker=self._worker,
                device=self._device,
                memory=self._memory.taken(),
                process=self._process,
            )
        )
        return True

    def _note(self, number: int, calls: Sequence[int]) -> None:
        """On the disk before the first image of such a call is."""
        self._notes.add(Cut(number, tuple(calls)))
        self._notes.sync()


def _missing(batch: Sequence[Request], rows: dict[str, ManifestRow]) -> bool:
    return any(request.id not in rows for request in batch)


def _pieces(count: int, size: int) -> list[int]:
    return [min(size, count - start) for start in range(0, count, size)]


def _own(model: str, made: Image | Made) -> tuple[Image, tuple[str, ...]]:
    """A copy, which the model cannot change while it waits to be written, and the model's flags."""
    image, flags = (made.image, made.flags) if isinstance(made, Made) else (made, ())
    named = isinstance(flags, tuple | list) and all(isinstance(flag, str) for flag in flags)
    if not named or not all(map(_FLAG.fullmatch, flags)):
        raise ChexGenBenchError(
            f"{model} returned the flags {flags!r}: a tuple of names is expected, each of at most "
            "40 small letters, digits and underscores, such as ('truncated',)."
        )
    return (image.copy() if hasattr(image, "copy") else np.array(image)), tuple(flags)
