"""Work that is handed out to workers, watched, and taken in.

An errand is a part of some work that one worker does in a job directory of its own. What a worker
returns is checked by the errand as if it were hostile; a worker that dies, hangs or lies loses its
errand only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.executors.border import Refused, noted, remove, usage
from chexgenbench.executors.launch import (
    Launcher,
    Running,
    check_disk,
    disk_fault,
    exit_text,
    last_line,
    log_end,
    memory_hint,
)
from chexgenbench.jobs.job import Job
from chexgenbench.jobs.waiting import Silence

_LOOK_AGAIN = 0.1
_MEASURE_AGAIN = 2.0
"""Seconds between two looks at what workers have written, and at how much."""

_ENDING = 10.0
"""Seconds that a worker has to end once all it was asked for is there."""

_TRIES = 3
"""How often an errand is started without any progress."""


class Errand(Protocol):
    """One worker's work, and what is taken of what it returns.

    Attributes:
        name: what its job directory is called by.
        taken: how much was taken until now, signs of life too.
        most_bytes, most_files: what its job directory may hold.
    """

    name: str
    taken: int
    most_bytes: int
    most_files: int

    def write(self, folder: Path, number: int) -> Job:
        """Writes the job directory, which is new, for the worker of that number.

        What else the worker reads, or is known of it, lies beside it under its name and a suffix,
        and is removed with it.
        """

    def take(self, folder: Path) -> None:
        """Takes what is there since the last call.

        Raises:
            Refused: the worker wrote something else than it was asked for; what was taken until
                then counts.
        """

    def gained(self) -> bool:
        """Whether a part of the work was taken, so that another try begins further on."""

    def complete(self) -> bool:
        """Whether nothing is missing."""

    def rest(self) -> Errand:
        """What is missing, for another worker."""


@dataclass
class _Work:
    """An errand, how often it was tried, and why the last try failed."""

    errand: Errand
    tries: int = 0
    fault: ChexGenBenchError | None = None


@dataclass
class _Worker:
    number: int
    work: _Work
    folder: Path
    job: Job
    device: str
    log: Path
    running: Running
    last: float = field(default_factory=time.monotonic)
    measure_at: float = field(default_factory=lambda: time.monotonic() + _MEASURE_AGAIN)

    def __str__(self) -> str:
        return f"worker {self.number} on {self.device}"

    @property
    def errand(self) -> Errand:
        return self.work.errand


def run_errands(
    errands: Sequence[Errand],
    launcher: Launcher,
    root: Path,
    *,
    logs: Path | None = None,
    timeout: float = 1800.0,
    say: Callable[[str], None] = lambda _text: None,
) -> list[ChexGenBenchError]:
    """Has every errand done, as many at a time as the launcher has places.

    A worker that dies, hangs or returns what it was not asked for loses its errand, and ends
    neither the others nor the command, whatever it says: what was good is kept, and what is missing
    goes to another worker, unless it was refused or is bad input.

    Args:
        root: the folder for the job directories, which the caller removes.
        logs: the folder for what workers print; None is `root`.
        timeout: seconds without a sign of progress after which a worker is given up.
        say: told about a worker that was lost, with the end of its log.

    Returns:
        Why errands could not be done, each with the end of its worker's log.

    Raises:
        UserError: the launcher cannot start any worker.
        OSError: the disk is full or broken.
    """
    waiting = deque(_Work(errand) for errand in errands)
    free = deque(launcher.places)
    working: list[_Worker] = []
    failures: list[ChexGenBenchError] = []
    number = barren = 0  # of workers started, and of those that ended since the last gain
    silence = Silence()

    def end(worker: _Worker, fault: ChexGenBenchError | None) -> None:
        nonlocal barren
        worker.running.stop()
        _take_last(worker, fault)
        working.remove(worker)
        free.append(worker.device)
        barren += not worker.errand.gained()
        more = _after(worker, fault, logs, failures, say)
        if more is not None:
            waiting.append(more)

    try:
        while waiting or working:
            # Where nothing that starts gains anything, no more is started than it takes to know:
            # the plugin itself is at fault, or one place whose workers die at once.
            while waiting and free and barren < _TRIES:
                number += 1
                work, device = waiting.popleft(), free.popleft()
                working.append(_start(work, launcher, root, logs or root, device, number))
            if not working:
                failures += [work.fault for work in waiting if work.fault is not None]
                break
            time.sleep(_LOOK_AGAIN)
            for worker in working.copy():
                before = worker.errand.taken
                try:
                    ended, fault = _look(worker, timeout)
                    if ended:
                        end(worker, fault)
                except OSError as error:
                    greedy = [(each, found) for each in working if (found := _greed(each))]
                    if not is_disk_fault(error) or not greedy:
                        raise
                    for each, found in greedy:
                        end(each, found)
                    break
                finally:
                    if worker.errand.taken > before:
                        silence, barren = Silence(), 0
            if working and silence.due():
                names = ", ".join(str(worker) for worker in working)
                say(f"nothing for {silence.seconds:.0f} s; waiting for {names} ({launcher.name})")
    finally:
        _stop_all(working)
        for worker in working:
            with suppress(Refused):
                worker.errand.take(worker.folder)
    return failures


def _start(
    work: _Work, launcher: Launcher, root: Path, logs: Path, device: str, number: int
) -> _Worker:
    folder = root / f"{work.errand.name}-{number:04d}"
    while folder.exists() or folder.is_symlink():  # one that could not be removed
        folder = folder.with_name(f"{folder.name}-again")
    job = work.errand.write(folder, number)
    # Beside the job directory, not in it: what a worker can write to is never opened for writing.
    log = logs / f"worker-{number}.log"
    work.tries += 1
    running = launcher.start(folder, job, device, log)
    return _Worker(number, work, folder, job, device, log, running)


def _stop_all(workers: Sequence[_Worker]) -> None:
    """Stops each, also where stopping one fails or is interrupted; then raises what was raised."""
    with ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.running.stop)


def _look(worker: _Worker, timeout: float) -> tuple[bool, ChexGenBenchError | None]:
    """Takes in what a worker has made; whether it works no more, and why not where it failed."""
    try:
        code = worker.running.poll()
    except UserError:  # of the place, which every worker would meet
        raise
    except ChexGenBenchError as error:
        return True, error
    begun = time.monotonic()
    taken = worker.errand.taken
    try:
        worker.errand.take(worker.folder)
    except Refused as error:
        return True, error
    if worker.errand.taken > taken or worker.running.waiting:
        worker.last = time.monotonic()
    if begun > worker.measure_at:
        if greed := _greed(worker):
            return True, greed
        # At most a twentieth of the time goes into measuring.
        took = time.monotonic() - begun
        worker.measure_at = time.monotonic() + max(_MEASURE_AGAIN, 20 * took)
    silent = time.monotonic() - worker.last
    if worker.errand.complete():
        # One that has done all is given a moment to end by itself.
        return code is not None or silent > min(_ENDING, timeout), None
    if code is not None:
        return True, _failure(worker, code)
    if silent > timeout:
        said = f"{worker} returned nothing for {timeout:.0f} s (--timeout) and was ended."
        return True, ChexGenBenchError(said)
    return False, None


def _greed(worker: _Worker) -> Refused | None:
    """The fault of a worker that has written more than its errand can need."""
    most_bytes, most_files = worker.errand.most_bytes, worker.errand.most_files
    try:
        size, files = usage(worker.folder, most_files)
    except Refused as error:
        return error
    if files > most_files:
        return Refused(f"It has written more than {most_files} files into its job directory.")
    if size > most_bytes:
        return Refused(
            f"It has written {size / 1e9:.1f} GB into its job directory, where its work takes at "
            f"most {most_bytes / 1e9:.1f} GB."
        )
    return None


def _failure(worker: _Worker, code: int) -> ChexGenBenchError:
    """Why a worker ended before it was done.

    Raises:
        OSError: because the disk of this command is at fault.
    """
    try:
        error = noted(worker.folder)
    except Refused as refused:
        return refused
    if error is not None:
        return error
    if is_disk_fault(fault := disk_fault(code)):
        # A worker's word does not end the command, and its disk need not be ours.
        check_disk(worker.log.parent, fault)
        return ChexGenBenchError(f"{worker} ended by a fault of its disk: {fault.strerror}.")
    if code == 0:
        return Refused("It ended as if it were done, and a part of its work is missing.")
    said = last_line(worker.log)
    return ChexGenBenchError(f"{worker} ended with {exit_text(code)}: {said or 'it said nothing'}")


def _take_last(worker: _Worker, fault: ChexGenBenchError | None) -> None:
    """Takes what a worker made between the last look and its end."""
    try:
        worker.errand.take(worker.folder)
    except Refused:
        pass
    except OSError:
        if fault is None:
            raise


def _after(
    worker: _Worker,
    fault: ChexGenBenchError | None,
    logs: Path | None,
    failures: list[ChexGenBenchError],
    say: Callable[[str], None],
) -> _Work | None:
    """What is left of the errand of a worker that has ended, where another one is to try it."""
    errand = worker.errand
    gained, done = errand.gained(), errand.complete()
    for left in (worker.folder, *worker.folder.parent.glob(f"{worker.folder.name}.*")):
        if left.is_file():
            left.unlink()
        else:
            remove(left)
    if fault is None:
        return None
    # The log stays where its folder does.
    shown = f"The end of its log{f', {worker.log}' if logs else ''}:\n{log_end(worker.log)}"
    message = fault.message
    if isinstance(fault, Refused):
        message = f"{worker} is refused. {message}"
    hints = [fault.hint, memory_hint(worker.job.limits, fault.message), shown]
    fault = type(fault)(message, hint="\n".join(hint for hint in hints if hint))
    if done:
        say(f"{message} What it was asked for was there. {shown}")
        return None
    tries = 0 if gained else worker.work.tries
    # Bad input would be met by all, and who lied once is not asked again.
    if isinstance(fault, (Refused, UserError)) or tries >= _TRIES:
        failures.append(fault)
        say(f"{message} Its part is left. {shown}")
        return None
    say(f"{message} Another takes its part. {shown}")
    return _Work(errand.rest(), tries, fault)
