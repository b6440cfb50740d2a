"""Make the images of a list of requests in one folder; killed and called again, continue."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from chexgenbench.errors import ChexGenBenchError, is_disk_fault
from chexgenbench.files import atomic_path, remove_leftovers, sha256_bytes
from chexgenbench.images import to_image
from chexgenbench.types import Model, Request

MANIFEST = "manifest.jsonl"
IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One image that is there.

    Attributes:
        path: relative to the generation's folder.
        seconds: its share of the time that its batch took.
        batch: position of its batch in the list of requests.
        flags: among ``black``, ``constant`` and ``nan``.
    """

    id: str
    prompt_id: str
    repeat: int
    seed: int
    path: str
    sha256: str
    width: int
    height: int
    seconds: float
    batch: int
    flags: tuple[str, ...]


def image_name(request: Request) -> str:
    """``SyntheticImg_<prompt id>.png``, as published; later repeats carry their number."""
    return f"SyntheticImg_{request.id}.png"


def read_manifest(folder: Path) -> dict[str, ManifestRow]:
    """The rows of images that were made, by request id; a line cut by a kill is left out."""
    rows: dict[str, ManifestRow] = {}
    path = folder / MANIFEST
    if not path.exists():
        return rows
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                values = json.loads(line)
                values["flags"] = tuple(values["flags"])
                row = ManifestRow(**values)
            except (ValueError, TypeError, KeyError) as error:
                raise ChexGenBenchError(
                    f"{path}, line {number} is damaged.",
                    hint=f"Remove {path}: the images are then made again.",
                ) from error
            rows[row.id] = row
    return rows


def generate(
    load: Callable[[], Model],
    requests: Sequence[Request],
    folder: Path,
    *,
    batch_size: int,
    advance: Callable[[int], None],
    wait: Callable[[str], None] = lambda _text: None,
) -> dict[str, ManifestRow]:
    """Makes the images that are not there yet and returns the whole manifest, in request order.

    Batches are cut by the request list and never by what is left, because a pipeline's kernels
    differ in the last bit with the batch: an interrupted batch is made again as a whole, and of its
    images only the missing ones are kept.

    Args:
        load: makes the model; called only when an image is missing.
        folder: the generation's folder; another process at work in it is waited for.
        batch_size: requests a call.
        advance: told the number of images done, those found there included.
        wait: told a line when another process holds the folder.

    Raises:
        ChexGenBenchError: the model raised, or returned something other than one valid image a
            request; images of earlier batches stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    if lock.is_locked or not _try(lock):
        wait(f"another process makes these images; waiting for it ({folder.name})")
        lock.acquire()
    try:
        rows = {
            key: row for key, row in read_manifest(folder).items() if _is_whole(folder / row.path)
        }
        _drop_cut_line(folder / MANIFEST)
        remove_leftovers(folder / IMAGES, ".png")
        model: Model | None = None
        with (folder / MANIFEST).open("ab") as manifest:
            for number, start in enumerate(range(0, len(requests), batch_size)):
                batch = requests[start : start + batch_size]
                if not all(request.id in rows for request in batch):
                    model = model or load()
                    _make_batch(model, batch, number, folder, rows, manifest)
                advance(len(batch))
        return {request.id: rows[request.id] for request in requests}
    finally:
        lock.release()


def _make_batch(
    model: Model,
    batch: Sequence[Request],
    number: int,
    folder: Path,
    rows: dict[str, ManifestRow],
    manifest: io.BufferedWriter,
) -> None:
    name = type(model).__name__
    start = time.perf_counter()
    try:
        images = list(model.generate(batch))
    except ChexGenBenchError:
        raise
    except Exception as error:
        if is_disk_fault(error):
            raise
        raise ChexGenBenchError(
            f"{name} failed on requests {batch[0].id} to {batch[-1].id}: "
            f"{type(error).__name__}: {error}"
        ) from error
    seconds = (time.perf_counter() - start) / len(batch)
    if len(images) != len(batch):
        raise ChexGenBenchError(f"{name} returned {len(images)} images for {len(batch)} requests.")
    for request, image in zip(batch, images, strict=True):
        if request.id in rows:
            continue
        try:
            picture, flags = to_image(image)
        except ValueError as error:
            raise ChexGenBenchError(f"{name}, request {request.id}: {error}") from error
        buffer = io.BytesIO()
        # Level 1 writes four times faster than the default for files about a tenth larger.
        picture.save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
        path = f"{IMAGES}/{image_name(request)}"
        with atomic_path(folder / path) as temporary:
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
            seconds=round(seconds, 6),
            batch=number,
            flags=tuple(flags),
        )
        manifest.write(json.dumps(asdict(row), sort_keys=True).encode() + b"\n")
        rows[request.id] = row
    manifest.flush()
    os.fsync(manifest.fileno())


def _try(lock: FileLock) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _is_whole(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _drop_cut_line(path: Path) -> None:
    """Removes what a killed process left of its last line, so that appending starts a new one."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
