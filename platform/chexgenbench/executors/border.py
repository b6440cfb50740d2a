"""What workers return, checked as if they were hostile, before any of it is the platform's.

A worker may run code that nobody here has read, in a container or on another machine. Nothing that
it wrote is believed but what it alone can know (its flags, how long a call took): which images are
there, their size and their content are found out here, from bytes read once. No symbolic link is
followed and no file is opened by a name that the worker chose.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chexgenbench.errors import ChexGenBenchError, UserError, harmless, is_disk_fault
from chexgenbench.files import atomic_path, digest, sha256_bytes
from chexgenbench.images import BadImage, read_png, thumbnail, to_image
from chexgenbench.jobs.job import error_path
from chexgenbench.jobs.manifest import (
    CALLS,
    IMAGES,
    MANIFEST,
    PROCESSES,
    Appender,
    Cut,
    ManifestRow,
    Process,
    image_name,
)
from chexgenbench.types import Request

T = TypeVar("T", bound=BaseModel)

LINE_BYTES = 16_384
"""A line of a manifest is far shorter."""

LARGEST_MADE = 4096 * 4096
"""Pixels of an image that a model makes; the largest of the published models makes 1024 x 1024."""

SLACK_BYTES = 256_000_000
"""What a job directory may hold beside its images: a plugin's temporary files."""

SLACK_FILES = 10_000

_DEEPEST = 64
"""Folders in folders in a job directory."""

_NOTE_BYTES = 65_536
_NOTE_TEXT = 8_192
_TOGETHER = 8
"""Images that are checked, and then written, at a time: each is held in memory meanwhile."""

_AT_A_TIME = 1_000_000
"""Bytes of a manifest that are read at a time, above `LINE_BYTES`."""

_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of opening a file that say something of this process, and nothing of the worker."""


class Refused(ChexGenBenchError):
    """What a worker returned is not what it was asked for."""


class _Line(BaseModel):
    """A manifest line as a worker may write it; see `ManifestRow`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(max_length=1024)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
    flags: Annotated[list[Annotated[str, Field(pattern="^[a-z0-9_]{1,40}$")]], Field(max_length=16)]
    call: Annotated[int, Field(ge=1, le=1_000_000)]
    device: Annotated[str, Field(pattern="^[a-z]{1,16}(:[0-9]{1,4})?$")]
    memory: Annotated[int, Field(ge=0, le=2**60)]
    process: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    # Known here, and not believed.
    prompt_id: Any = None
    repeat: Any = None
    seed: Any = None
    path: Any = None
    batch: Any = None
    thumbnail: Any = None
    worker: Any = None


_Word = Annotated[str, Field(pattern=r"^[^\p{C}]{0,200}$")]
_Count = Annotated[int, Field(ge=-(2**53), le=2**53)]
_Size = Annotated[float, Field(allow_inf_nan=False)]


class _Made(BaseModel):
    """A line of ``processes.jsonl`` as a worker may write it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    versions: Annotated[dict[_Word, _Word], Field(max_length=100)]
    hardware: Annotated[dict[_Word, _Word | _Count | _Size | None], Field(max_length=100)]


class _Note(BaseModel):
    """An error as a worker may note it; see `jobs.job.write_error`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    user: bool
    message: str
    hint: str | None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of a generation: whole batches, in order.

    Attributes:
        batches: their positions in the generation's list of requests.
        requests: theirs.
        batch_size: of the generation; the last batch may have fewer.
    """

    batches: Sequence[int]
    requests: Sequence[Request]
    batch_size: int

    def batch_of(self, position: int) -> int:
        """The generation's batch of the shard's request at that position."""
        return self.batches[position // self.batch_size]


class Intake:
    """Takes in the images of one shard, as its worker makes them.

    Args:
        folder: the job directory.
        shard: what was asked.
        generation: the folder that checked images go to; the caller holds it.
        known: ids of images that are there, which are not taken again.
        worker: the number that stands in the manifest for this shard's worker.
    """

    def __init__(
        self, folder: Path, shard: Shard, generation: Path, known: set[str], worker: int
    ) -> None:
        self._folder, self._shard, self._generation = folder, shard, generation
        self._known, self._worker = known, worker
        self._asked = {request.id: i for i, request in enumerate(shard.requests)}
        self._left = self._asked.keys() - known
        self._offset = {MANIFEST: 0, CALLS: 0, PROCESSES: 0}
        self._returned: set[str] = set()
        self._processes: set[str] = set()
        self._cuts: dict[int, int] = {}
        self.rows: list[ManifestRow] = []

    def take(self) -> None:
        """Takes what is there since the last call; `rows` then has all that was taken.

        Raises:
            Refused: the worker wrote something else than it was asked for. Images before it
                are taken.
        """
        with _present(self._folder) as top:
            while self._take_some(top):
                pass

    def _take_some(self, top: int) -> bool:
        """Takes what the next part of the manifest names; False where it says nothing new."""
        # Read first: what a line builds on was on the disk before it.
        lines = self._lines(top, MANIFEST)
        self._take_notes(top, PROCESSES, self._process_of)
        self._take_notes(top, CALLS, self._cut_of)
        if not lines:
            return False
        try:
            images = _open(IMAGES, os.O_RDONLY | os.O_DIRECTORY, top)
        except FileNotFoundError as error:
            raise Refused(f"The worker's folder {IMAGES} is missing.") from error
        try:
            with Appender(self._generation / MANIFEST) as manifest:
                try:
                    for start in range(0, len(lines), _TOGETHER):
                        self._take_images(lines[start : start + _TOGETHER], images, manifest)
                finally:
                    manifest.sync()
        finally:
            os.close(images)
        return True

    def _take_notes(
        self, top: int, name: str, parse: Callable[[Any], Process | Cut | None]
    ) -> None:
        """Takes the new lines of a file whose lines are copied as they are."""
        while lines := self._lines(top, name):
            with ExitStack() as stack:
                notes: Appender | None = None
                for line in lines:
                    note = parse(_json(line, name))
                    if note is not None:
                        notes = notes or stack.enter_context(Appender(self._generation / name))
                        notes.add(note)
                        notes.sync()
                    self._offset[name] += len(line) + 1

    def complete(self) -> bool:
        """Whether every image of the shard is there."""
        return not self._left

    def _lines(self, top: int, name: str) -> list[bytes]:
        """The next whole lines of a file, without their ends."""
        try:
            file = _open(name, os.O_RDONLY, top)
        except FileNotFoundError:
            return []
        most = LINE_BYTES * (2 * len(self._shard.requests) + 64)
        with os.fdopen(file, "rb") as stream:
            if os.fstat(file).st_size > most:
                raise Refused(f"The worker's {name} has more than {most} bytes.")
            stream.seek(self._offset[name])
            data = stream.read(_AT_A_TIME + LINE_BYTES)
        *lines, rest = data.split(b"\n")
        if any(len(line) > LINE_BYTES for line in lines) or (
            len(rest) > LINE_BYTES and not (lines and len(data) > _AT_A_TIME)
        ):
            raise Refused(f"The worker's {name} has a line of more than {LINE_BYTES} bytes.")
        return lines

    def _take_images(self, lines: Sequence[bytes], images: int, manifest: Appender) -> None:
        """Checks and takes a few images at a time: what is waited for most is the disk."""
        fault: Refused | None = None
        returned: list[_Line] = []
        for line in lines:
            try:
                said = self._said(line)
                if any(said.id == other.id for other in returned):
                    raise _twice(said)
            except Refused as error:
                fault = error
                break
            returned.append(said)
        # Those that are there already are of a batch that was begun before.
        new = [said for said in returned if said.id not in self._known]
        good: dict[str, tuple[ManifestRow, bytes]] = {}
        for found in _pool().map(lambda said: self._checked(said, images), new):
            if isinstance(found, Refused):
                fault = found
                break
            good[found[0].id] = found
        # None of an image after one that is refused is kept.
        list(_pool().map(lambda found: self._write(*found), good.values()))
        for line, said in zip(lines, returned, strict=False):
            if said.id in good:
                row, _ = good[said.id]
                manifest.add(row)
                self.rows.append(row)
                self._known.add(row.id)
                self._left.discard(row.id)
            elif said.id not in self._known:
                break
            self._returned.add(said.id)
            self._offset[MANIFEST] += len(line) + 1
        if fault is not None:
            raise fault

    def _said(self, line: bytes) -> _Line:
        said = _parse(_Line, _json(line, MANIFEST), MANIFEST)
        if said.id not in self._asked:
            raise Refused(f"The worker returned an image that was not asked for: {said.id[:80]!r}.")
        if said.id in self._returned:
            raise _twice(said)
        if said.process not in self._processes:
            raise Refused(f"The worker's {MANIFEST} names a process that {PROCESSES} lacks.")
        return said

    def _checked(self, said: _Line, images: int) -> tuple[ManifestRow, bytes] | Refused:
        """An image's row and file, or why it is refused."""
        try:
            return self._check(said, images)
        except Refused as error:
            return error

    def _check(self, said: _Line, images: int) -> tuple[ManifestRow, bytes]:
        position = self._asked[said.id]
        request = self._shard.requests[position]
        name = image_name(request)
        try:
            most = request.size**2 if request.size else LARGEST_MADE
            data = _content(name, images, _png_bytes(most))
        except FileNotFoundError as error:
            raise Refused(
                f"The worker's image {name} is missing, although its manifest names it."
            ) from error
        if sha256_bytes(data) != said.sha256:
            raise Refused(f"The worker's image {name} is not what its manifest says (SHA-256).")
        try:
            picture = read_png(data, name, LARGEST_MADE)
            _, flags = to_image(picture)
        except (BadImage, ValueError) as error:
            raise Refused(f"The worker's image cannot be taken: {error}") from error
        if picture.size != (said.width, said.height):
            raise Refused(
                f"The worker's image {name} has {picture.width} x {picture.height} pixels and not "
                f"{said.width} x {said.height}, as its manifest says."
            )
        if request.size is not None and picture.size != (request.size, request.size):
            raise Refused(
                f"The worker's image {name} has {picture.width} x {picture.height} pixels where "
                f"{request.size} x {request.size} were asked for."
            )
        row = ManifestRow(
            id=request.id,
            prompt_id=request.prompt_id,
            repeat=request.repeat,
            seed=request.seed,
            path=f"{IMAGES}/{name}",
            sha256=said.sha256,
            width=picture.width,
            height=picture.height,
            seconds=said.seconds,
            batch=self._shard.batch_of(position),
            flags=tuple(dict.fromkeys((*flags, *said.flags))),
            call=min(said.call, self._shard.batch_size),
            thumbnail=base64.b64encode(thumbnail(picture).tobytes()).decode(),
            worker=self._worker,
            device=said.device,
            memory=said.memory,
            process=said.process,
        )
        return row, data

    def _write(self, row: ManifestRow, data: bytes) -> None:
        with atomic_path(self._generation / row.path) as temporary:
            temporary.write_bytes(data)

    def _cut_of(self, line: Any) -> Cut | None:
        """How a batch was cut, in the generation's numbers; None where that is known.

        A call that is made again is formed as it was before, so that its images are the same.
        """
        batch, calls = (line.get("batch"), line.get("calls")) if isinstance(line, dict) else (0, 0)
        if (
            type(batch) is not int  # True is an int as well
            or not 0 <= batch < len(self._shard.batches)
            or not isinstance(calls, list)
            or len(calls) > self._shard.batch_size
            or not all(type(call) is int and call > 0 for call in calls)
        ):
            raise Refused(f"The worker's {CALLS} has a line that cannot be.")
        start = batch * self._shard.batch_size
        n = min(self._shard.batch_size, len(self._shard.requests) - start)
        if sum(calls) != n:
            raise Refused(f"The worker's {CALLS} cuts a batch of {n} into {sum(calls)}.")
        if len(calls) <= self._cuts.get(batch, 0):
            return None
        self._cuts[batch] = len(calls)
        return Cut(self._shard.batches[batch], tuple(calls))

    def _process_of(self, line: Any) -> Process | None:
        made = _parse(_Made, line, PROCESSES)
        if made.id != digest({"versions": made.versions, "hardware": made.hardware})[:16]:
            raise Refused(f"The worker's {PROCESSES} has an id that is not its content's.")
        if made.id in self._processes:
            return None
        if len(self._processes) >= 100:
            raise Refused(f"The worker's {PROCESSES} has more than 100 processes.")
        self._processes.add(made.id)
        return Process(id=made.id, versions=made.versions, hardware=made.hardware)


def read_plain(folder: Path, name: str, most: int) -> bytes:
    """The content of a plain file in a folder that a worker can write to.

    Raises:
        FileNotFoundError: it is not there.
        Refused: it is something else, or has more than `most` bytes.
    """
    with _opened(folder) as top:
        return _content(name, top, most)


def noted(folder: Path) -> ChexGenBenchError | None:
    """The error that a worker noted, its text made harmless; None where it noted none.

    Raises:
        Refused: the note is something else.
    """
    name = error_path(Path(), 0).name
    with _present(folder) as top:
        try:
            data = _content(name, top, _NOTE_BYTES)
        except FileNotFoundError:
            return None
    note = _parse(_Note, _json(data, name), name)
    kind = UserError if note.user else ChexGenBenchError
    message, hint = harmless(note.message), harmless(note.hint or "")
    return kind(message[:_NOTE_TEXT], hint=hint[:_NOTE_TEXT] or None)


def most_of(shard: Shard) -> tuple[int, int]:
    """The bytes and files that the job directory of a shard may hold."""
    n = len(shard.requests)
    each = LARGEST_MADE if n < 100 else 2048 * 2048
    # An image of noise in colours, uncompressed, and what a plugin may leave beside it.
    images = (_png_bytes(asked.size**2 if asked.size else each) for asked in shard.requests)
    return SLACK_BYTES + sum(images), SLACK_FILES + 2 * n


def remove(folder: Path) -> None:
    """Removes a job directory, as far as it can be, whatever its worker made of it."""
    try:
        if folder.is_symlink():
            folder.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # folders in folders, deeper than Python can go
        subprocess.run(["rm", "-rf", "--", str(folder)], check=False, capture_output=True)


def _twice(said: _Line) -> Refused:
    return Refused(f"The worker returned an image twice: {said.id[:80]!r}.")


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_TOGETHER, thread_name_prefix="border")


def _parse(kind: type[T], line: Any, name: str) -> T:
    try:
        return kind.model_validate(line)
    except ValidationError as error:
        raise Refused(f"The worker's {name} has a fault: {_first(error)}.") from error


def _first(error: ValidationError) -> str:
    """The first fault; the names of keys in it are the worker's own."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))[:80]
    return harmless(f"{where}: {first['msg']}" if where else first["msg"])


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_disk_fault(error) or error.errno in _OURS:
            raise
        raise Refused(
            f"The worker's job directory cannot be opened: {_strerror(error)}."
        ) from error
    try:
        yield top
    finally:
        os.close(top)


@contextmanager
def _present(folder: Path) -> Iterator[int]:
    with ExitStack() as stack:
        try:
            top = stack.enter_context(_opened(folder))
        except FileNotFoundError as error:
            raise Refused("The worker's job directory is gone.") from error
        yield top


def _open(name: str, flags: int, top: int) -> int:
    """A plain file, or folder, of that name in the opened folder; never through a link.

    Raises:
        FileNotFoundError: it is not there.
        Refused: it is something else.
    """
    try:
        # Not blocking: a FIFO would wait for ever.
        file = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_disk_fault(error) or error.errno in _OURS:
            raise
        raise Refused(f"The worker's {name} cannot be read: {_strerror(error)}.") from error
    found = os.fstat(file)
    if flags & os.O_DIRECTORY:
        return file
    fault = None
    if not stat.S_ISREG(found.st_mode):
        fault = "is no plain file"
    elif found.st_nlink > 1:  # perhaps of a file that is not the worker's
        fault = "has a second name (a hard link)"
    if fault:
        os.close(file)
        raise Refused(f"The worker's {name} {fault}.")
    return file


def _strerror(error: OSError) -> str:
    kind = {errno.ELOOP: "a symbolic link", errno.ENOTDIR: "no folder, or a symbolic link"}
    return kind.get(error.errno or 0, error.strerror or "unknown error")


def _content(name: str, top: int, most: int) -> bytes:
    """A file's bytes, read once."""
    with os.fdopen(_open(name, os.O_RDONLY, top), "rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise Refused(f"The worker's {name} has more than {most} bytes.")
    return data


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(f"The worker's {name} is not JSON.") from error


def _no_number(text: str) -> Any:
    """NaN and infinities, which are Python's own and no JSON."""
    raise ValueError(text)


def _png_bytes(pixels: int) -> int:
    """What a PNG file of that many pixels takes at most: noise in three colours grows a little."""
    return pixels * 3 + pixels // 100 + 100_000


def usage(folder: Path, most_files: int) -> tuple[int, int]:
    """Bytes on the disk and files below a folder; stops counting above `most_files`.

    Raises:
        Refused: folders lie so deep in folders that they could not be counted.
    """
    size, files = 0, 0
    waiting = [(folder, 0)]
    while waiting and files <= most_files:
        here, depth = waiting.pop()
        if depth > _DEEPEST:
            raise Refused(f"The worker has made folders more than {_DEEPEST} deep.")
        with suppress(OSError), os.scandir(here) as entries:
            for entry in entries:
                files += 1
                if files > most_files:
                    break
                with suppress(OSError):  # it was there a moment ago
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((Path(entry.path), depth + 1))
    return size, files
