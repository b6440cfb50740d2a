"""Work for workers that is no generation: encoding, task metrics. Handed out, watched, taken in.

Each errand is a job directory of its own. What a worker returns is checked by the errand as if it
were hostile; a worker that dies, hangs or lies loses its errand only.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.executors.border import Refused, read_plain, remove, usage
from chexgenbench.executors.launch import (
    Launcher,
    Running,
    check_disk,
    disk_fault,
    exit_text,
    last_line,
    log_end,
    printable,
)
from chexgenbench.executors.processes import ModelSource
from chexgenbench.jobs.job import Job, Limits, error_path
from chexgenbench.jobs.waiting import Silence

_LOOK_AGAIN = 0.1
_MEASURE_AGAIN = 2.0
"""Seconds between two looks at what workers have written, and at how much."""

_ENDING = 10.0
"""Seconds that a worker has to end once all it was asked for is there."""

_TRIES = 3
"""How often an errand is started without any progress."""

_NOTE_BYTES = 65_536
_NOTE_TEXT = 4_000


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where errands are done.

    Attributes:
        open: gives what starts workers; `UserError` where the place is not there.
        name: what tells it from others.
        root: the folder for job directories, each command's in one of its own.
        source: where a worker finds plugins.
        limits: what a worker may use.
        timeout: seconds without progress after which a worker is given up.
        shards: into how many errands a list is cut; None is one for each place.
        sees_files: whether workers see this file system; else images are staged for them.
        foreign: whether they have packages of their own, which need not be installed here.
    """

    open: Callable[[], Launcher] = field(compare=False)
    name: str
    root: Path
    source: ModelSource
    limits: Limits = field(default_factory=Limits)
    timeout: float = 1800.0
    shards: int | None = None
    sees_files: bool = True
    foreign: bool = False


class Errand(Protocol):
    """One worker's work, and what is taken of what it returns.

    Attributes:
        name: what messages and job directories are called by.
        most_bytes, most_files: what its job directory may hold.
    """

    name: str
    most_bytes: int
    most_files: int

    def write(self, folder: Path) -> Job:
        """Writes the job directory, which is new; what else the worker reads lies beside it."""

    def take(self, folder: Path) -> int:
        """Takes what is there since the last call, signs of life too; returns how much that was.

        Raises:
            Refused: the worker wrote something else than it was asked for.
        """

    def gained(self) -> bool:
        """Whether a part of the work was taken, so that another try begins further on."""

    def complete(self) -> bool:
        """Whether nothing is missing."""

    def rest(self, folder: Path) -> Errand:
        """What is missing, for another worker; the folder is about to be removed."""


@dataclass
class _Worker:
    number: int
    errand: Errand
    tries: int
    folder: Path
    device: str
    log: Path
    running: Running
    taken: int = 0
    last: float = field(default_factory=time.monotonic)
    measured: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"worker {self.number} on {self.device}"


def run_errands(
    errands: Sequence[Errand],
    launcher: Launcher,
    root: Path,
    *,
    timeout: float = 1800.0,
    say: Callable[[str], None] = lambda _text: None,
) -> list[ChexGenBenchError]:
    """Has every errand done, as many at a time as the launcher has places.

    Args:
        root: an empty folder for the job directories, which the caller removes.
        say: told about workers that were lost.

    Returns:
        Why errands could not be done, each with the end of its worker's log.

    Raises:
        UserError: the launcher cannot start any worker.
        OSError: the disk is full or broken.
    """
    waiting = deque((errand, 0) for errand in errands)
    free = deque(launcher.places)
    working: list[_Worker] = []
    failures: list[ChexGenBenchError] = []
    started = 0
    silence = Silence()
    try:
        while waiting or working:
            while waiting and free:
                started += 1
                errand, tries = waiting.popleft()
                device = free.popleft()
                working.append(_start(errand, tries + 1, launcher, root, device, started))
            time.sleep(_LOOK_AGAIN)
            for worker in working.copy():
                before = worker.taken
                ended, fault = _look(worker, timeout)
                if worker.taken > before:
                    silence = Silence()
                if not ended:
                    continue
                worker.running.stop()
                working.remove(worker)
                free.append(worker.device)
                again = _after(worker, fault, failures, say)
                if again is not None:
                    waiting.append(again)
            if working and silence.due():
                names = ", ".join(str(worker) for worker in working)
                say(f"nothing for {silence.seconds:.0f} s; waiting for {names} ({launcher.name})")
    finally:
        with ExitStack() as stack:
            for worker in working:
                stack.callback(worker.running.stop)
        for worker in working:
            with suppress(Refused):
                worker.errand.take(worker.folder)
    return failures


@contextmanager
def folder_of_command(root: Path) -> Iterator[Path]:
    """A folder for this command's job directories, which no other user reads: some hold patients'
    images. Removed at the end, and by the next command where this one is killed."""
    root.mkdir(parents=True, exist_ok=True)
    for left in root.iterdir():
        with suppress(OSError), (left / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(left)
    own = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(4).hex()}"
    own.mkdir(mode=0o700)
    with (own / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield own
        finally:
            remove(own)


def staged(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """The files under names of their own in the folder: those alone, for a worker that must not
    see the folders that they come from, and for nobody else. Hard links where that is possible,
    else copies."""
    folder.mkdir(mode=0o700)
    result: list[Path] = []
    for number, path in enumerate(paths):
        target = folder / f"{number:07d}{path.suffix.lower()}"
        try:
            source = path.resolve(strict=True)
            # A worker that is another user is given the copies; a link has its file's permissions.
            if source.stat().st_mode & 0o004:
                os.link(source, target)
            else:
                raise PermissionError
        except OSError:
            with suppress(FileNotFoundError):  # the worker finds it missing, as one here would
                shutil.copyfile(path, target)
                target.chmod(0o600)
        result.append(target)
    return result


def _start(
    errand: Errand, tries: int, launcher: Launcher, root: Path, device: str, number: int
) -> _Worker:
    folder = root / f"{errand.name}-{number:04d}"
    folder.mkdir()
    job = errand.write(folder)
    # Beside the job directory, not in it: what a worker can write to is never opened for writing.
    log = root / f"{folder.name}.log"
    running = launcher.start(folder, job, device, log)
    return _Worker(number, errand, tries, folder, device, log, running)


def _look(worker: _Worker, timeout: float) -> tuple[bool, ChexGenBenchError | None]:
    """Takes in what a worker has made; whether it works no more, and why not where it failed."""
    try:
        code = worker.running.poll()
    except UserError:  # of the place, which every worker would meet
        raise
    except ChexGenBenchError as error:
        return True, error
    now = time.monotonic()
    try:
        count = worker.errand.take(worker.folder)
        if now - worker.measured > _MEASURE_AGAIN:
            worker.measured = now
            _check_size(worker)
    except Refused as error:
        return True, error
    if count:
        worker.taken += count
        worker.last = now
    if worker.running.waiting:
        worker.last = now
    if worker.errand.complete():
        # One that has done all is given a moment to end by itself.
        return code is not None or now - worker.last > min(_ENDING, timeout), None
    if code is None:
        late = now - worker.last > timeout
        fault = f"{worker} returned nothing for {timeout:.0f} s and was ended." if late else ""
        return late, ChexGenBenchError(fault) if late else None
    return True, _failure(worker, code)


def _check_size(worker: _Worker) -> None:
    errand = worker.errand
    size, files = usage(worker.folder, errand.most_files)
    if files > errand.most_files or size > errand.most_bytes:
        raise Refused(
            f"{worker} has written {size / 1e9:.1f} GB in {files} files into its job directory, "
            f"where {errand.most_bytes / 1e9:.1f} GB and {errand.most_files} files are allowed."
        )


def _failure(worker: _Worker, code: int) -> ChexGenBenchError:
    """Why a worker ended before it was done.

    Raises:
        OSError: because the disk of this command is at fault.
    """
    try:
        error = _noted(worker.folder)
    except Refused as refused:
        return refused
    if error is not None:
        return error
    if is_disk_fault(fault := disk_fault(code)):
        check_disk(worker.log.parent, fault)
        return ChexGenBenchError(f"{worker} ended by a fault of its disk: {fault.strerror}.")
    if code == 0:
        return Refused(f"{worker} ended as if it were done, and a part of its work is missing.")
    said = last_line(worker.log)
    return ChexGenBenchError(f"{worker} ended with {exit_text(code)}: {said or 'it said nothing'}")


def _noted(folder: Path) -> ChexGenBenchError | None:
    """The error that a worker noted, its text made harmless; None where it noted none."""
    name = error_path(Path(), 0).name
    try:
        values = json.loads(read_plain(folder, name, _NOTE_BYTES))
        message, hint = values["message"], values["hint"]
        user = values["user"] is True
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refused(f"The worker's {name} is no error note.") from error
    kind = UserError if user else ChexGenBenchError
    shown = printable(hint)[:_NOTE_TEXT] if isinstance(hint, str) else None
    return kind(printable(str(message))[:_NOTE_TEXT], hint=shown)


def _after(
    worker: _Worker,
    fault: ChexGenBenchError | None,
    failures: list[ChexGenBenchError],
    say: Callable[[str], None],
) -> tuple[Errand, int] | None:
    """What another worker is to try of an errand whose worker has ended."""
    errand = worker.errand
    with suppress(Refused):
        worker.taken += errand.take(worker.folder)  # between the last look and its end
    done = fault is None or errand.complete()
    gained = errand.gained()
    rest = None if done else errand.rest(worker.folder)
    remove(worker.folder)
    remove(worker.folder.with_name(f"{worker.folder.name}.images"))
    if rest is None or fault is None:
        return None
    tries = 0 if gained else worker.tries
    # Bad input would be met by all, and who lied once is not asked again.
    if not isinstance(fault, Refused | UserError) and tries < _TRIES:
        say(f"{fault.message} Another takes its part.")
        return rest, tries
    hint = f"{fault.hint}\n" if fault.hint else ""
    failures.append(
        type(fault)(fault.message, hint=f"{hint}The end of its log:\n{log_end(worker.log)}")
    )
    return None
