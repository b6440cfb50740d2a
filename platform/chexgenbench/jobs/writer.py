"""Images to files by a thread, while the model makes the next ones."""

from __future__ import annotations

import base64
import io
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from chexgenbench.errors import ChexGenBenchError
from chexgenbench.files import atomic_path, sha256_bytes
from chexgenbench.images import thumbnail, to_image
from chexgenbench.jobs.manifest import IMAGES, Appender, ManifestRow, image_name
from chexgenbench.types import Image, Request

_WAITING = 2
"""Calls whose images may wait to be written: memory stays bounded."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one call of a model returned, and what was measured."""

    model: str
    requests: Sequence[Request]
    images: Sequence[tuple[Image, tuple[str, ...]]]
    batch: int
    seconds: float
    worker: int
    device: str
    memory: int
    process: str


class Writer:
    """Encodes, hashes and writes the images of calls, in order, and notes them in the manifest.

    A fault in a call (the disk is full, an array is no image) is raised by a later `put`, or at the
    end of the ``with`` block; images before it stay.

    Args:
        folder: the generation's folder.
        manifest: takes a line for each image; it is safe on the disk at the end of each call.
        rows: gets a row for each image that was written; images in it are not written again.
        advance: told the number of a call's requests once they are written.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Appender,
        rows: MutableMapping[str, ManifestRow],
        advance: Callable[[int], None],
    ) -> None:
        self._folder, self._manifest, self._rows = folder, manifest, rows
        self._advance = advance
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")

    def put(self, call: Call) -> None:
        """Hands a call over; waits while too many are not written yet."""
        self.wait(_WAITING - 1)
        self._waiting.append((self._thread.submit(self._write, call), len(call.requests)))

    def wait(self, left: int = 0) -> None:
        """Waits until at most `left` calls are not written."""
        while len(self._waiting) > left or (self._waiting and self._waiting[0][0].done()):
            future, count = self._waiting.popleft()
            future.result()
            self._advance(count)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            # What a failing model made before is kept; its own error is the one to raise.
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, call: Call) -> None:
        for request, (image, own_flags) in zip(call.requests, call.images, strict=True):
            if request.id in self._rows:
                continue
            try:
                picture, flags = to_image(image)
            except ValueError as error:
                raise ChexGenBenchError(f"{call.model}, request {request.id}: {error}") from error
            buffer = io.BytesIO()
            # Level 1 writes four times faster than the default for files about a tenth larger.
            picture.save(buffer, "PNG", compress_level=1)
            data = buffer.getvalue()
            path = f"{IMAGES}/{image_name(request)}"
            with atomic_path(self._folder / path) as temporary:
                temporary.write_bytes(data)
            row = ManifestRow(
                id=request.id,
                prompt_id=request.prompt_id,
                repeat=request.repeat,
                seed=request.seed,
                path=path,
                sha256=sha256_bytes(data),
                width=picture.width,
                height=picture.height,
                seconds=round(call.seconds / len(call.requests), 6),
                batch=call.batch,
                flags=tuple(dict.fromkeys((*flags, *own_flags))),
                call=len(call.requests),
                thumbnail=base64.b64encode(thumbnail(picture).tobytes()).decode(),
                worker=call.worker,
                device=call.device,
                memory=call.memory,
                process=call.process,
            )
            self._manifest.add(row)
            self._rows[request.id] = row
        self._manifest.sync()
