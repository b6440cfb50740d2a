"""What a generation's folder says of its images: lines of JSON, appended by one or many processes.

``manifest.jsonl`` has a line for each image that is there, ``calls.jsonl`` one for each batch that
was cut into several calls. Each worker process appends to parts of its own (``manifest-2.jsonl``),
so that no line is torn by two writers; `gather` makes one file of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from chexgenbench.errors import ChexGenBenchError
from chexgenbench.files import atomic_path
from chexgenbench.types import Request

MANIFEST = "manifest.jsonl"
CALLS = "calls.jsonl"
IMAGES = "images"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One image that is there.

    Attributes:
        path: relative to the generation's folder.
        seconds: its share of the time that its call took.
        batch: position of its batch in the list of requests.
        flags: of the platform (``nan``, ``black``, ``constant``, ``duplicate``) and of the model.
        call: requests in the call that made it; fewer than the batch where memory was short.
        thumbnail: 16 x 16 grey levels in Base64; see `images.thumbnail`.
        worker: 0 for the process that planned the generation, else the number of the worker.
        device: what its model ran on.
        memory: the most bytes that the device (CPU: the process) had in use until then.
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
    call: int
    thumbnail: str
    worker: int
    device: str
    memory: int


@dataclass(frozen=True)
class Cut:
    """How many requests each call of a batch has; a batch without such a line is one call."""

    batch: int
    calls: tuple[int, ...]


def image_name(request: Request) -> str:
    """``SyntheticImg_<prompt id>.png``, as published; later repeats carry their number."""
    return f"SyntheticImg_{request.id}.png"


class Tail(Generic[T]):
    """The whole lines of a file and its parts, each read once, as they come."""

    def __init__(self, folder: Path, name: str, parse: Callable[[Mapping[str, Any]], T]) -> None:
        self._folder, self._name, self._parse = folder, name, parse
        self._read: dict[Path, tuple[int, int]] = {}

    def new(self) -> Iterator[T]:
        """The lines that were not there at the last call; a line cut by a kill is left out.

        Raises:
            ChexGenBenchError: a whole line that is not of the kind expected.
        """
        for path in parts(self._folder, self._name):
            offset, number = self._read.get(path, (0, 0))
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    offset, number = offset + len(line), number + 1
                    try:
                        value = self._parse(json.loads(line))
                    except (ValueError, TypeError, KeyError) as error:
                        raise ChexGenBenchError(
                            f"{path}, line {number} is damaged.",
                            hint=f"Remove {path}: the images are then made again.",
                        ) from error
                    self._read[path] = (offset, number)
                    yield value


class Appender:
    """A file to which one process appends lines; they are safe on the disk after `sync`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def add(self, value: ManifestRow | Cut) -> None:
        self._file.write(_line(value))

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Appender:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._file.close()


def part_name(name: str, worker: int) -> str:
    """The file of a worker; worker 0 has the file itself.

    >>> part_name("manifest.jsonl", 0), part_name("manifest.jsonl", 2)
    ('manifest.jsonl', 'manifest-2.jsonl')
    """
    return name if worker == 0 else name.replace(".", f"-{worker}.", 1)


def parts(folder: Path, name: str) -> list[Path]:
    """The file of that name and the workers' parts of it, as far as they are there."""
    stem, _, suffix = name.partition(".")
    paths = [folder / name, *sorted(folder.glob(f"{stem}-*.{suffix}"))]
    return [path for path in paths if path.is_file()]


def manifest_tail(folder: Path) -> Tail[ManifestRow]:
    return Tail(
        folder, MANIFEST, lambda values: ManifestRow(**{**values, "flags": tuple(values["flags"])})
    )


def calls_tail(folder: Path) -> Tail[Cut]:
    return Tail(folder, CALLS, lambda values: Cut(values["batch"], tuple(values["calls"])))


def read_manifest(folder: Path) -> dict[str, ManifestRow]:
    """The rows of images that were made, by request id; a line cut by a kill is left out."""
    return {row.id: row for row in manifest_tail(folder).new()}


def read_calls(folder: Path) -> dict[int, tuple[int, ...]]:
    """Batch to the requests of its calls, of the batches that were cut."""
    return {cut.batch: cut.calls for cut in calls_tail(folder).new()}


def gather(folder: Path) -> None:
    """Makes one file of all parts; the caller holds the folder and no worker is alive.

    Rows of images that are gone or empty are left out, and so is a line cut by a kill, so that
    appending starts a new one.
    """
    rows = {key: row for key, row in read_manifest(folder).items() if is_whole(folder / row.path)}
    rewrite(folder, MANIFEST, rows.values())
    cuts = {cut.batch: cut for cut in calls_tail(folder).new()}
    rewrite(folder, CALLS, cuts.values())


def rewrite(folder: Path, name: str, values: Iterable[ManifestRow | Cut]) -> None:
    """Puts these lines in the place of a file and its parts, unless they stand there already."""
    lines = b"".join(map(_line, values))
    whole = folder / name
    old = parts(folder, name)
    if old != [whole] or whole.read_bytes() != lines:
        with atomic_path(whole) as temporary:
            temporary.write_bytes(lines)
    for path in old:
        if path != whole:
            path.unlink()


def is_whole(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _line(value: ManifestRow | Cut) -> bytes:
    return json.dumps(asdict(value), sort_keys=True).encode() + b"\n"
