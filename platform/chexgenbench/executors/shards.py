"""A generation cut into shards, each a job directory for one worker, somewhere.

Batches are cut by the generation's list of requests and handed out whole, so that the images are
those that one process would make, whatever the number of shards, workers and restarts. Workers
write their job directories; this process alone writes the generation's folder, from what `border`
lets through.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.executors.border import Intake, Shard, most_of, remove
from chexgenbench.executors.errands import Errand, run_errands
from chexgenbench.executors.launch import Launcher
from chexgenbench.files import read_json, write_json
from chexgenbench.jobs.generate import finish
from chexgenbench.jobs.job import GenerateJob, write_generate_job
from chexgenbench.jobs.manifest import (
    Appender,
    Cut,
    ManifestRow,
    read_calls,
    read_manifest,
)
from chexgenbench.types import Request

SHARDS = "shards"
"""The folder of the job directories in the generation's folder."""

_CUTS_BEFORE = "calls-0.jsonl"
"""The part of a job directory's `CALLS` that says how earlier workers cut its batches."""


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
    taken in first. What becomes of a worker that dies, hangs or lies: see `run_errands`.

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
    root.mkdir(exist_ok=True)
    errands = [
        _Making(job, part, folder, known, advance)
        for part in cut(requests, known, job.batch_size, count)
    ]
    failures = run_errands(errands, launcher, root, logs=folder, timeout=timeout, say=say)
    if not wanted <= known:
        missing = len(wanted - known)
        error = failures[0] if failures else ChexGenBenchError(f"{missing} images are missing.")
        kept = "What was made is kept: the same command goes on."
        raise type(error)(error.message, hint=f"{error.hint}\n{kept}" if error.hint else kept)
    shutil.rmtree(root, ignore_errors=True)
    return finish(requests, folder)


class _Making(Errand):
    """A shard for one worker."""

    name = "shard"

    def __init__(
        self,
        job: GenerateJob,
        shard: Shard,
        generation: Path,
        known: set[str],
        advance: Callable[[int], None],
    ) -> None:
        self._job, self._shard, self._generation = job, shard, generation
        self._known, self._advance = known, advance
        self._intake: Intake | None = None
        self.taken = 0
        self.most_bytes, self.most_files = most_of(shard)

    def write(self, folder: Path, number: int) -> GenerateJob:
        write_json(_record(folder), list(self._shard.batches))
        own = write_shard(folder, self._job, self._shard, read_calls(self._generation))
        self._intake = Intake(folder, self._shard, self._generation, self._known, number)
        return own

    def take(self, folder: Path) -> None:
        assert self._intake is not None
        try:
            self._intake.take()
        finally:
            before, self.taken = self.taken, len(self._intake.rows)
            if self.taken > before:
                self._advance(self.taken - before)

    def gained(self) -> bool:
        return self.taken > 0

    def complete(self) -> bool:
        return self._intake is not None and self._intake.complete()

    def rest(self) -> _Making:
        size = self._shard.batch_size
        (left,) = cut(self._shard.requests, self._known, size, 1)
        batches = [self._shard.batches[number] for number in left.batches]
        rest = Shard(batches=batches, requests=left.requests, batch_size=size)
        return _Making(self._job, rest, self._generation, self._known, self._advance)


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
    write_generate_job(folder, own, shard.requests)
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
