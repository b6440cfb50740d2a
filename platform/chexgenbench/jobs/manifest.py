"""What a generation's folder says of its images: lines of JSON, appended by one or many processes.

``manifest.jsonl`` has a line for each image that is there, ``calls.jsonl`` one for each batch that
was cut into several calls, ``processes.jsonl`` one for each machine, device and set of packages
that images were made with. Each worker process appends to parts of its own (``manifest-2.jsonl``),
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

from chexgenbench import provenance
from chexgenbench.errors import ChexGenBenchError
from chexgenbench.files import atomic_path, digest
from chexgenbench.types import Request

MANIFEST = "manifest.jsonl"
CALLS = "calls.jsonl"
PROCESSES = "processes.jsonl"
IMAGES = "images"

IDENTITY = "generation.json"
"""What a generation is of; written before its images."""

SUMMARY = "summary.json"
"""What they took; written when all are there."""

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
        memory: bytes that its model took until then; see `provenance.MemoryMeter`.
        process: id of the `Process` that made it.
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
    process: str


@dataclass(frozen=True)
class Cut:
    """How many requests each call of a batch has; a batch without such a line is one call.

    Of several lines for a batch the one with the most calls holds: who cuts a batch has read the
    cut before, and splits calls of it that have made nothing.
    """

    batch: int
    calls: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Process:
    """What images were made with, as the process that made them found it.

    Attributes:
        id: hashed from the rest, so that processes that were alike share a line.
        versions: `provenance.versions`; a worker in an environment of its own has its own.
        hardware: `provenance.hardware`.
    """

    id: str
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]


def this_process(device: str) -> Process:
    """What the images of this process are made with; its model runs on that device."""
    versions, hardware = provenance.versions(), provenance.hardware(device)
    name = digest({"versions": versions, "hardware": hardware})[:16]
    return Process(id=name, versions=versions, hardware=hardware)


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
            try:
                file = path.open("rb")
            except FileNotFoundError:  # another command has just made one file of all parts
                continue
            with file:
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
                            hint="`chexgenbench repair` makes again what it does not name any "
                            "more.",
                        ) from error
                    self._read[path] = (offset, number)
                    yield value


class Appender:
    """A file to which one process appends lines; they are safe on the disk after `sync`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def add(self, value: ManifestRow | Cut | Process) -> None:
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


def manifest_row(values: Mapping[str, Any]) -> ManifestRow:
    """The row of a line; `TypeError` or `KeyError` where it is none."""
    return ManifestRow(**{**values, "flags": tuple(values["flags"])})


def manifest_tail(folder: Path) -> Tail[ManifestRow]:
    return Tail(folder, MANIFEST, manifest_row)


def calls_tail(folder: Path) -> Tail[Cut]:
    return Tail(folder, CALLS, lambda values: Cut(values["batch"], tuple(values["calls"])))


def read_manifest(folder: Path) -> dict[str, ManifestRow]:
    """The rows of images that were made, by request id; a line cut by a kill is left out."""
    return {row.id: row for row in manifest_tail(folder).new()}


def read_calls(folder: Path) -> dict[int, tuple[int, ...]]:
    """Batch to the requests of its calls, of the batches that were cut."""
    calls: dict[int, tuple[int, ...]] = {}
    keep_finest(calls, calls_tail(folder).new())
    return calls


def keep_finest(calls: dict[int, tuple[int, ...]], cuts: Iterable[Cut]) -> None:
    """Puts the cuts into `calls` (batch to the requests of its calls), the finest of each batch.

    Workers' parts are read by their number, which is not the order in which they were written.
    """
    for cut in cuts:
        if len(cut.calls) > len(calls.get(cut.batch, ())):
            calls[cut.batch] = cut.calls


def read_processes(folder: Path) -> dict[str, Process]:
    """Those that made images, by id."""
    tail = Tail(folder, PROCESSES, lambda values: Process(**values))
    return {process.id: process for process in tail.new()}


def gather(folder: Path) -> None:
    """Makes one file of all parts; the caller holds the folder and no worker is alive.

    Rows of images that are gone or empty are left out, and so is a line cut by a kill, so that
    appending starts a new one.
    """
    rows = {key: row for key, row in read_manifest(folder).items() if is_whole(folder / row.path)}
    rewrite(folder, MANIFEST, rows.values())
    rewrite(folder, CALLS, (Cut(*each) for each in read_calls(folder).items()))
    rewrite(folder, PROCESSES, read_processes(folder).values())


def rewrite(folder: Path, name: str, values: Iterable[ManifestRow | Cut | Process]) -> None:
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


def _line(value: ManifestRow | Cut | Process) -> bytes:
    return json.dumps(asdict(value), sort_keys=True).encode() + b"\n"
