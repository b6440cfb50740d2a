"""A generation cut into shards, each a job directory for one worker, somewhere.

Batches are cut by the generation's list of requests and handed out whole, so that the images are
those that one process would make, whatever the number of shards, workers and restarts. Workers
write their job directories; this process alone writes the generation's folder, from what `border`
lets through.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.executors.border import Intake, Refused, Shard, remove
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
from chexgenbench.files import read_json, write_json
from chexgenbench.jobs.generate import finish
from chexgenbench.jobs.job import GenerateJob, Limits, write_job
from chexgenbench.jobs.manifest import (
    Appender,
    Cut,
    ManifestRow,
    read_calls,
    read_manifest,
)
from chexgenbench.jobs.waiting import Silence
from chexgenbench.types import Request

SHARDS = "shards"
"""The folder of the job directories in the generation's folder."""

_LOOK_AGAIN = 0.1
_MEASURE_AGAIN = 2.0
"""Seconds between two looks at what workers have made, and at how much they have written."""

_TRIES = 3
"""How often a shard is started without making an image."""

_CUTS_BEFORE = "calls-0.jsonl"
"""The part of a job directory's `CALLS` that says how earlier workers cut its batches."""

_ENDING = 10.0
"""Seconds that a worker has for its end once its images are there."""


@dataclass
class _Work:
    """A shard, how often it was tried, and why the last try failed."""

    shard: Shard
    tries: int = 0
    fault: ChexGenBenchError | None = None


@dataclass
class _Worker:
    number: int
    work: _Work
    folder: Path
    device: str
    log: Path
    running: Running
    intake: Intake
    limits: Limits
    last: float = field(default_factory=time.monotonic)
    measure_at: float = field(default_factory=lambda: time.monotonic() + _MEASURE_AGAIN)

    def __str__(self) -> str:
        return f"worker {self.number} on {self.device}"


def run_shards(
    job: GenerateJob,
    requests: Sequence[Request],
    folder: Path,
    launcher: Launcher,
    *,
    shards: int | None = None,
    timeout: float = 1800.0,
    advance: Callable[[int], None] = lambda _count: None,
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, ManifestRow]:
    """Makes the images that are not there yet by workers that a launcher starts.

    The caller holds the folder (`jobs.generate.hold`). What workers of a killed command left is
    taken in first. A worker that dies, hangs or returns what it was not asked for loses its shard,
    and ends neither the others nor the command, whatever it says: what of the shard was good is
    kept, and what is missing goes to another worker, unless it was refused or is bad input.

    Args:
        job: its `n_requests` and `batches` aside, what each shard's job says.
        shards: into how many parts the missing batches are cut; None asks the launcher.
        timeout: seconds without an image after which a worker is given up.
        advance: told the number of images done, those found there included.
        say: told about a worker that was lost, with the end of its log.

    Returns:
        The whole manifest, in request order.

    Raises:
        UserError: the launcher cannot start any worker; or as below.
        ChexGenBenchError: images are missing although every shard was tried; the first error.
        OSError: the disk of the generation's folder is full or broken.
    """
    root = folder / SHARDS
    known = set(read_manifest(folder))
    _adopt(root, job, requests, folder, known)
    wanted = {request.id for request in requests}
    advance(len(known & wanted))
    count = shards or launcher.shards_a_place * len(launcher.places)
    parts = cut(requests, known, job.batch_size, count)
    waiting = deque(_Work(part) for part in parts)
    free = deque(launcher.places)
    working: list[_Worker] = []
    failures: list[ChexGenBenchError] = []
    number = barren = 0  # of workers started, and of those that ended since the last image
    silence = Silence()

    def end(worker: _Worker, fault: ChexGenBenchError | None) -> None:
        nonlocal barren
        worker.running.stop()
        _take_last(worker, fault)
        working.remove(worker)
        free.append(worker.device)
        barren += not worker.intake.rows
        more = _after(worker, fault, known, failures, say)
        if more is not None:
            waiting.append(more)

    try:
        while waiting or working:
            # Where nothing that starts makes an image, no more is started than it takes to know:
            # the model itself is at fault, or one place whose workers die at once.
            while waiting and free and barren < _TRIES:
                number += 1
                work, place = waiting.popleft(), free.popleft()
                working.append(_start(job, work, folder, launcher, place, number, known))
            if not working:
                failures += [work.fault for work in waiting if work.fault is not None]
                break
            time.sleep(_LOOK_AGAIN)
            before = len(known)
            for worker in working.copy():
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
            if len(known) > before:
                advance(len(known) - before)
                silence, barren = Silence(), 0
            if working and silence.due():
                names = ", ".join(str(worker) for worker in working)
                say(f"no image for {silence.seconds:.0f} s; waiting for {names} ({launcher.name})")
    finally:
        _stop_all(working)
        for worker in working:
            with suppress(Refused):
                worker.intake.take()
    if not wanted <= known:
        missing = len(wanted - known)
        raise failures[0] if failures else ChexGenBenchError(f"{missing} images are missing.")
    shutil.rmtree(root, ignore_errors=True)
    return finish(requests, folder)


def _stop_all(workers: Sequence[_Worker]) -> None:
    """Stops each, also where stopping one fails or is interrupted; then raises what was raised."""
    with ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.running.stop)


def cut(requests: Sequence[Request], known: set[str], batch_size: int, count: int) -> list[Shard]:
    """The batches that lack an image, as at most `count` shards of consecutive ones.

    >>> asked = [Request(id=str(i), prompt_id="", prompt="", seed=0) for i in range(7)]
    >>> [part.batches for part in cut(asked, {"0", "1"}, 2, 2)]
    [[1, 2], [3]]
    """
    missing = [
        number
        for number in range(-(-len(requests) // batch_size))
        if any(
            request.id not in known
            for request in requests[number * batch_size : (number + 1) * batch_size]
        )
    ]
    size, longer = divmod(len(missing), max(1, count))
    parts, start = [], 0
    for part in range(min(count, len(missing))):
        end = start + size + (part < longer)
        parts.append(shard_of(requests, missing[start:end], batch_size))
        start = end
    return parts


def shard_of(requests: Sequence[Request], batches: Sequence[int], batch_size: int) -> Shard:
    """The shard with those batches of a generation's requests."""
    asked = [
        request
        for number in batches
        for request in requests[number * batch_size : (number + 1) * batch_size]
    ]
    return Shard(batches=batches, requests=asked, batch_size=batch_size)


def write_shard(
    folder: Path,
    job: GenerateJob,
    shard: Shard,
    cuts: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> GenerateJob:
    """Writes a shard's job directory, which must be new.

    Args:
        cuts: how batches of the generation were cut into calls until now, by their number there; a
            worker forms the calls of its batches as they were.
    """
    folder.mkdir(parents=True)
    own = job.model_copy(
        update={"n_requests": len(shard.requests), "batches": tuple(shard.batches)}
    )
    before = [Cut(at, tuple(cuts[n])) for at, n in enumerate(shard.batches) if n in cuts]
    if before:
        # A part of its own: the worker, who may be another user, appends to the file itself.
        with Appender(folder / _CUTS_BEFORE) as notes:
            for each in before:
                notes.add(each)
    write_job(folder, own, shard.requests)
    return own


def _adopt(
    root: Path, job: GenerateJob, requests: Sequence[Request], folder: Path, known: set[str]
) -> None:
    """Takes in what a killed command's workers have made, and removes their job directories."""
    for left in sorted(root.glob("shard-*/")) if root.is_dir() else ():
        with suppress(ChexGenBenchError):
            take_in(left, job.batch_size, requests, folder, known)
        remove(left)
    shutil.rmtree(root, ignore_errors=True)


def take_in(
    left: Path, batch_size: int, requests: Sequence[Request], folder: Path, known: set[str]
) -> list[ManifestRow]:
    """The images of a job directory of `run_shards`, put into the generation's folder.

    Raises:
        UserError: what was asked for there is not known.
        Refused: its worker wrote something else than it was asked for; what was good is taken.
    """
    # Not what the job directory says of itself: its worker could write there.
    batches = read_json(_record(left))
    last = -(-len(requests) // batch_size)
    if not isinstance(batches, list) or not all(number in range(last) for number in batches):
        raise UserError(f"{_record(left)} is of other requests than this generation's.")
    intake = Intake(left, shard_of(requests, batches, batch_size), folder, known, worker=1)
    intake.take()
    return intake.rows


def _record(place: Path) -> Path:
    """The file beside a job directory that says which batches were asked for."""
    return place.with_name(f"{place.name}.json")


def _start(
    job: GenerateJob,
    work: _Work,
    folder: Path,
    launcher: Launcher,
    device: str,
    number: int,
    known: set[str],
) -> _Worker:
    place = folder / SHARDS / f"shard-{number:04d}"
    while place.exists() or place.is_symlink():  # one that could not be removed
        place = place.with_name(f"{place.name}-again")
    write_json(_record(place), list(work.shard.batches))
    own = write_shard(place, job, work.shard, read_calls(folder))
    # Beside the job directory, not in it: what a worker can write to is never opened for writing.
    log = folder / f"worker-{number}.log"
    work.tries += 1
    intake = Intake(place, work.shard, folder, known, number)
    running = launcher.start(place, own, device, log)
    return _Worker(number, work, place, device, log, running, intake, own.limits)


def _look(worker: _Worker, timeout: float) -> tuple[bool, ChexGenBenchError | None]:
    """Takes in what a worker has made; whether it works no more, and why not where it failed."""
    try:
        code = worker.running.poll()
    except UserError:  # of the place, which every worker would meet
        raise
    except ChexGenBenchError as error:
        return True, error
    begun = time.monotonic()
    taken = len(worker.intake.rows)
    try:
        worker.intake.take()
    except Refused as error:
        return True, error
    if len(worker.intake.rows) > taken or worker.running.waiting:
        worker.last = time.monotonic()
    if begun > worker.measure_at:
        if greed := _greed(worker):
            return True, greed
        # At most a twentieth of the time goes into measuring.
        took = time.monotonic() - begun
        worker.measure_at = time.monotonic() + max(_MEASURE_AGAIN, 20 * took)
    silent = time.monotonic() - worker.last
    if worker.intake.complete():
        return code is not None or silent > min(_ENDING, timeout), None
    if code is not None:
        return True, _failure(worker, code)
    if silent > timeout:
        said = f"{worker} made no image for {timeout:.0f} s (--timeout) and was ended."
        return True, ChexGenBenchError(said)
    return False, None


def _greed(worker: _Worker) -> Refused | None:
    """The fault of a worker that has written more than its images can need."""
    try:
        worker.intake.check_size()
    except Refused as error:
        return error
    return None


def _failure(worker: _Worker, code: int) -> ChexGenBenchError:
    """Why a worker ended before its shard was done.

    Raises:
        OSError: because the disk of this command is at fault.
    """
    try:
        error = worker.intake.error()
    except Refused as refused:
        return refused
    if error is not None:
        return error
    if is_disk_fault(fault := disk_fault(code)):
        # A worker's word does not end the command, and its disk need not be ours.
        check_disk(worker.log.parent, fault)
        return ChexGenBenchError(f"{worker} ended by a fault of its disk: {fault.strerror}.")
    if code == 0:
        return Refused("The worker ended as if it were done, and images of its shard are missing.")
    said = last_line(worker.log)
    return ChexGenBenchError(f"{worker} ended with {exit_text(code)}: {said or 'it said nothing'}")


def _take_last(worker: _Worker, fault: ChexGenBenchError | None) -> None:
    """Takes what a worker made between the last look and its end."""
    try:
        worker.intake.take()
    except Refused:
        pass
    except OSError:
        if fault is None:
            raise


def _after(
    worker: _Worker,
    fault: ChexGenBenchError | None,
    known: set[str],
    failures: list[ChexGenBenchError],
    say: Callable[[str], None],
) -> _Work | None:
    """What is left of the shard of a worker that has ended, where another one is to try it."""
    remove(worker.folder)
    _record(worker.folder).unlink(missing_ok=True)
    size = worker.work.shard.batch_size
    left = cut(worker.work.shard.requests, known, size, 1)
    if fault is None:
        return None
    shown = f"The end of its log, {worker.log}:\n{log_end(worker.log)}"
    message = fault.message
    if isinstance(fault, Refused):
        message = f"{worker} is refused. {message}"
    hints = [fault.hint, memory_hint(worker.limits, fault.message), shown]
    hints += ["What was made is kept: the same command goes on."]
    fault = type(fault)(message, hint="\n".join(hint for hint in hints if hint))
    if not left:
        say(f"{message} Its images were there. {shown}")
        return None
    tries = 0 if worker.intake.rows else worker.work.tries
    if isinstance(fault, (Refused, UserError)) or tries >= _TRIES:
        failures.append(fault)
        say(f"{message} Its part is left. {shown}")
        return None
    say(f"{message} Another takes its part. {shown}")
    batches = [worker.work.shard.batches[number] for number in left[0].batches]
    rest = Shard(batches=batches, requests=left[0].requests, batch_size=size)
    return _Work(rest, tries, fault)
