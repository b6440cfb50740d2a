"""Generations cut into job directories for anybody's scheduler, and taken in again.

`shard` writes the job directories, ``chexgenbench worker`` does one of them, wherever it lies, and
`merge` checks and takes in what is there. What was asked stands in the project as well
(``runs/shards/ID``, named by the hash of ``shards.json``), and that is what `merge` goes by:
nothing that a job directory, or the folder of them, says of itself is believed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from chexgenbench import provenance
from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.executors.border import Intake, Refused, Shard, noted, read_plain
from chexgenbench.executors.shards import SHARDS, cut, shard_of, write_shard
from chexgenbench.files import inside, read_json, sha256_bytes, umask, write_json, write_text
from chexgenbench.generation import Generation, conclude, is_concluded
from chexgenbench.home import Home
from chexgenbench.jobs.generate import finish, finished, hold
from chexgenbench.jobs.job import (
    JOB,
    REQUESTS,
    GenerateJob,
    Limits,
    heartbeat_path,
    read_generate_job,
    write_generate_job,
)
from chexgenbench.jobs.manifest import IDENTITY, MANIFEST, is_whole, read_calls, read_manifest
from chexgenbench.jobs.waiting import WORKER
from chexgenbench.progress import Progress
from chexgenbench.types import Request
from chexgenbench.workflow.options import Options
from chexgenbench.workflow.places import place_of
from chexgenbench.workflow.plan import (
    Plan,
    make_plan,
    plan_models,
    plan_pools,
    plugin_source,
    weight_paths,
)

FORMAT = 1
RECORD = "shards.json"
LINES = "jobs.txt"
SCRIPT = "array.sh"

OWN = "own"
"""What the folder of a model's own images is called; its pools have the names of the needs."""

SILENT = 60.0
"""Seconds without a heartbeat after which a worker is taken for gone: a file server may be slow to
show it."""

_MANIFEST_BYTES = 1_000_000_000
_HEARTBEAT_BYTES = 4_096


class _Values(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Values):
    """A file of a job directory, as it was written."""

    bytes: int
    sha256: str


class Part(_Values):
    """One job directory.

    Attributes:
        folder: relative to the folder of all.
        batches: their positions in the generation.
        files: what the worker is told.
    """

    folder: str
    batches: tuple[int, ...]
    n_images: int
    files: Mapping[str, File]


class Asked(_Values):
    """One generation, and the job directories of what it lacked when they were written.

    Attributes:
        images: ``own``, or the name of the pool.
        generation: its id.
        identity: what that is the hash of.
    """

    model: str
    images: str
    generation: str
    identity: Mapping[str, Any]
    n_images: int
    parts: tuple[Part, ...]


class Sharded(_Values):
    """``shards.json``: what was cut into job directories.

    Attributes:
        count: into how many each generation was cut at most.
        command: what was typed.
    """

    format: int = FORMAT
    count: int
    command: str
    generations: tuple[Asked, ...]

    @property
    def parts(self) -> list[Part]:
        """All job directories, as ``jobs.txt`` numbers them from 1."""
        return [part for asked in self.generations for part in asked.parts]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `shard` did.

    Attributes:
        sharded: None where no image is missing, so that nothing was written.
        renewed: job directories that were gone and were written again; None: all are new.
        notes: models whose images are not made by job directories, and why.
        failed: models whose own code failed.
    """

    sharded: Sharded | None
    renewed: Sequence[str] | None
    notes: Sequence[str]
    failed: Mapping[str, ChexGenBenchError]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How far one job directory is.

    Attributes:
        number: its line in ``jobs.txt``.
        state: in words.
    """

    number: int
    part: Part
    made: int
    state: str


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What `merge` found in one job directory.

    Attributes:
        number: its line in ``jobs.txt``.
        made: images of the part that are in the project now.
        fault: why it was refused, or what its worker noted.
    """

    number: int
    part: Part
    made: int
    fault: ChexGenBenchError | None

    @property
    def complete(self) -> bool:
        return self.made == self.part.n_images


@dataclass(frozen=True, kw_only=True)
class Merged:
    """One generation after a merge.

    Attributes:
        made: images of it that are in the project now.
    """

    asked: Asked
    made: int
    parts: Sequence[Taken]

    @property
    def whole(self) -> bool:
        return self.made == self.asked.n_images


def shard(options: Options, out: Path, count: int, command: str) -> Written:
    """Writes a job directory for each part of what the models of a suite still have to make.

    Their own images, and the pools of task metrics. Where `out` has the job directories of the same
    plan, those that are gone are written again.

    Args:
        count: parts of each generation, at most.
        command: what was typed, for those who find the folder.

    Raises:
        UserError: bad input; `out` holds something else; no model can be cut into job directories.
    """
    plan = make_plan(replace(options, elsewhere=True))
    if plan.suite.batch_size == "auto" and not plan.suite.exact:
        raise UserError(
            "--batch-size auto measures on this machine, and others make these images.",
            hint="Give a number, or leave it out for the model's own.",
        )
    failed: dict[str, ChexGenBenchError] = {}
    work, notes = _work(plan, failed)
    if not work:
        error = next(iter(failed.values()), None)
        raise error or UserError("\n".join(f"{note}." for note in notes))
    there = _is_there(out)
    if there:
        sharded, record = _open(options.home, out)
        _compare(sharded, work, count, out)
        renewed = _renew(options.home, sharded, record, out)
        return Written(sharded=sharded, renewed=renewed, notes=notes, failed=failed)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Whole or absent, so that a kill in the middle leaves nothing that looks like a plan.
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        sharded = _write(plan, work, count, command, aside, out)
        if not sharded.parts:
            return Written(sharded=None, renewed=None, notes=notes, failed=failed)
        aside.chmod(0o777 & ~umask())
        aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Written(sharded=sharded, renewed=None, notes=notes, failed=failed)


def merge(home: Home, out: Path, progress: Progress) -> list[Merged]:
    """Takes in what workers have made in the job directories of `out`, while they work or later.

    A generation of which every image is there is finished, as `Generation.run` leaves it. A job
    directory that holds something else than it was asked for loses what is missing of it only.

    Raises:
        UserError: `out` is not what this project wrote.
    """
    sharded, record = _open(home, out)
    number = 1
    merged: list[Merged] = []
    for asked in sharded.generations:
        merged.append(_merge(home, out, record, asked, number, progress))
        number += len(asked.parts)
    return merged


def look(out: Path) -> list[Shown]:
    """How far each job directory is, by what stands in it; no project is needed.

    Raises:
        UserError: `out` holds no ``shards.json`` of this release.
    """
    return [
        _look(out, number, part) for number, part in enumerate(_read(out / RECORD).parts, start=1)
    ]


@dataclass(frozen=True)
class _Work:
    """A generation to cut, with the Python of its model's own environment, if it has one."""

    model: str
    images: str
    generation: Generation
    interpreter: Path | None


def _work(plan: Plan, failed: dict[str, ChexGenBenchError]) -> tuple[list[_Work], list[str]]:
    """Each generation once, and why models are left out."""
    work: dict[str, _Work] = {}
    notes: list[str] = []
    for generation in plan_models(plan, failed):
        name = generation.plugin.name
        place = place_of(plan.options, generation.plugin)
        why = ""
        if generation.plugin.spec.uses_training:
            why = "reads the split's training side, which a job directory does not hold"
        elif place.kind in ("container", "ray"):
            why = f"works by the executor {place.kind}"
        if why:
            notes.append(f"{name} {why}: `chexgenbench run` makes its images")
            continue
        for images, item in ((OWN, generation), *plan_pools(plan, generation).items()):
            work.setdefault(item.id, _Work(name, images, item, place.interpreter))
    return list(work.values()), notes


def _write(
    plan: Plan, work: Sequence[_Work], count: int, command: str, aside: Path, out: Path
) -> Sharded:
    """Writes everything to `aside`, which becomes `out`, and the project's own record of it."""
    asked: list[Asked] = []
    lines: list[str] = []
    jobs: dict[str, tuple[GenerateJob, Sequence[Request]]] = {}
    names: set[str] = set()
    for each in work:
        generation = each.generation
        job = _job(plan, generation)
        jobs[generation.id] = (job, generation.requests)
        rows = read_manifest(generation.folder)
        known = {key for key, row in rows.items() if is_whole(generation.folder / row.path)}
        cuts = read_calls(generation.folder)
        base = _folder_name(each, names)
        parts: list[Part] = []
        for number, cut_off in enumerate(
            cut(generation.requests, known, generation.batch_size, count), start=1
        ):
            name = f"{base}/shard-{number:04d}"
            parts.append(_write_part(aside, name, job, cut_off, cuts))
            lines.append(f"{name}\t{each.interpreter}" if each.interpreter else name)
        asked.append(
            Asked(
                model=each.model,
                images=each.images,
                generation=generation.id,
                identity=generation.identity,
                n_images=len(generation.requests),
                parts=tuple(parts),
            )
        )
    sharded = Sharded(count=count, command=command, generations=tuple(asked))
    if not lines:
        return sharded
    write_json(aside / RECORD, sharded.model_dump(mode="json"))
    write_text(aside / LINES, "".join(f"{line}\n" for line in lines))
    write_text(aside / SCRIPT, _script(out, len(lines), plan.device))
    (aside / SCRIPT).chmod((aside / SCRIPT).stat().st_mode | 0o111)
    record = _record(plan.options.home, (aside / RECORD).read_bytes())
    for name, (job, requests) in jobs.items():
        write_generate_job(record / name, job, requests)
    shutil.copyfile(aside / RECORD, record / RECORD)
    return sharded


def _write_part(
    out: Path, name: str, job: GenerateJob, part: Shard, cuts: Mapping[int, Sequence[int]]
) -> Part:
    """Writes a job directory.

    Args:
        cuts: see `write_shard`.
    """
    folder = out / name
    write_shard(folder, job, part, cuts)
    files = {}
    for file in (JOB, REQUESTS):
        data = (folder / file).read_bytes()
        files[file] = File(bytes=len(data), sha256=sha256_bytes(data))
    return Part(folder=name, batches=tuple(part.batches), n_images=len(part.requests), files=files)


def _job(plan: Plan, generation: Generation) -> GenerateJob:
    weights = weight_paths(generation.plugin, generation.parameters, generation.context).values()
    source = replace(plugin_source(plan.options), weights=tuple(weights))
    return generation.job(source, Limits(memory=plan.options.memory))


def _folder_name(work: _Work, taken: set[str]) -> str:
    """``MODEL/IMAGES`` in letters that every file system takes, another for each."""
    plain = [
        re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "x"
        for text in (work.model, work.images)
    ]
    name = "/".join(plain)
    if name.casefold() in taken:
        name += f"-{work.generation.id[:8]}"
    taken.add(name.casefold())
    return name


def _script(out: Path, count: int, device: str) -> str:
    threads = provenance.threads()
    program = Path(sysconfig.get_path("scripts")) / "chexgenbench"
    gpu = "" if device.startswith("cpu") else "#SBATCH --gres=gpu:1\n"
    return f"""#!/bin/bash
# One job directory a task. On a Slurm cluster, in this folder: sbatch array.sh
# Elsewhere, the third job directory: bash array.sh 3
# All of them, two at a time: seq {count} | xargs -P 2 -n 1 bash array.sh
# A task that was killed goes on when it is started again; one that is done ends at once.
#SBATCH --job-name=chexgenbench
#SBATCH --array=1-{count}
#SBATCH --cpus-per-task={threads}
{gpu}#SBATCH --output=array-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

if [ -n "${{SLURM_ARRAY_TASK_ID:-}}" ]; then
    number=$SLURM_ARRAY_TASK_ID
else
    number=${{1:?the number of a job directory, from 1 to {count}}}
    shift
fi

# Slurm runs a copy of this script, so that it may lie elsewhere than the job directories.
for out in "$(dirname "$0")" "${{SLURM_SUBMIT_DIR:-.}}" {shlex.quote(str(out))}; do
    if [ -f "$out/{LINES}" ]; then break; fi
done
folder="" python=""
IFS=$'\\t' read -r folder python < <(sed -n "${{number}}p" "$out/{LINES}") || true
if [ -z "$folder" ]; then
    echo "$out/{LINES} has no line $number" >&2
    exit 2
fi

# Another number of threads can change the last bit of an image that a CPU makes.
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{threads}}}"
if [ -n "$python" ]; then
    exec "$python" -P -m {WORKER} "$out/$folder" "$@"
fi
exec "${{CHEXGENBENCH:-{shlex.quote(str(program))}}}" worker "$out/$folder" "$@"
"""


def _is_there(out: Path) -> bool:
    """Whether the folder holds job directories.

    Raises:
        UserError: it holds something else.
    """
    if not out.exists():
        return False
    if out.is_dir() and not any(out.iterdir()):
        return False
    if not (out / RECORD).is_file():
        raise UserError(
            f"{out} is there and holds no {RECORD}: it is not a folder of job directories.",
            hint="Name a new folder.",
        )
    return True


def _record(home: Home, data: bytes) -> Path:
    """The project's own folder for a ``shards.json``."""
    return home.runs / SHARDS / sha256_bytes(data)[:16]


def _open(home: Home, out: Path) -> tuple[Sharded, Path]:
    """The plan of the folder, and where the project's record of it lies.

    Raises:
        UserError: it is none, of another release, or none that this project wrote.
    """
    sharded = _read(out / RECORD)
    record = _record(home, (out / RECORD).read_bytes())
    if not (record / RECORD).is_file():
        raise UserError(
            f"{out / RECORD} is not what this project ({home.root}) wrote: it was changed, or "
            "another project wrote it.",
            hint="Name the project's folder (--home), or write the job directories again to a new "
            f"folder. It was made by: {sharded.command}",
        )
    return sharded, record


def _read(path: Path) -> Sharded:
    if not path.exists():
        raise UserError(
            f"{path} is missing.",
            hint="Name the folder that chexgenbench shard wrote job directories to.",
        )
    values = read_json(path)
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found}, and this release reads format {FORMAT}.",
            hint="Use the release that wrote it, or write the job directories again.",
        )
    try:
        return Sharded.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged: {where}: {first['msg']}.") from error


def _compare(sharded: Sharded, work: Sequence[_Work], count: int, out: Path) -> None:
    """Raises `UserError` where the folder's plan is not this one."""
    planned = [(each.model, each.images, each.generation.id) for each in work]
    found = [(each.model, each.images, each.generation) for each in sharded.generations]
    if planned == found and sharded.count == count:
        return
    if planned == found:
        differs = f"{sharded.count} shards, not {count}"
    else:
        odd = {f"{model}, {images}" for model, images, _ in set(planned) ^ set(found)}
        differs = f"not the same images of {'; '.join(sorted(odd))}"
    raise UserError(
        f"{out} has the job directories of another plan: {differs}.",
        hint=f"Name a new folder. That one was made by: {sharded.command}",
    )


def _renew(home: Home, sharded: Sharded, record: Path, out: Path) -> list[str]:
    """Writes the job directories again that are gone; their names."""
    renewed: list[str] = []
    for asked in sharded.generations:
        gone = [part for part in asked.parts if not os.path.lexists(out / part.folder)]
        if not gone:
            continue
        job, requests = read_generate_job(record / asked.generation)
        cuts = read_calls(home.generations / asked.generation)
        for part in gone:
            own = shard_of(requests, part.batches, job.batch_size)
            again = _write_part(out, part.folder, job, own, cuts)
            if again != part:
                shutil.rmtree(out / part.folder)
                raise UserError(
                    f"{out / part.folder} cannot be written as it was: another release wrote it.",
                    hint="Name a new folder: images that were merged are not asked for again.",
                )
            renewed.append(part.folder)
    return renewed


def _merge(
    home: Home, out: Path, record: Path, asked: Asked, first: int, progress: Progress
) -> Merged:
    job, requests = read_generate_job(record / asked.generation)
    folder = home.generations / asked.generation
    taken: list[Taken] = []
    with (
        hold(folder, progress.say),
        progress.stage(f"merge {asked.model}, {asked.images}", len(asked.parts), "shards") as done,
    ):
        if not (folder / IDENTITY).exists():
            write_json(folder / IDENTITY, asked.identity)
        known = set(read_manifest(folder))
        for number, part in enumerate(asked.parts, start=1):
            own = shard_of(requests, part.batches, job.batch_size)
            fault = None
            if any(request.id not in known for request in own.requests):
                fault = _take(out / part.folder, part, own, folder, known, number)
            made = sum(request.id in known for request in own.requests)
            taken.append(Taken(number=first + number - 1, part=part, made=made, fault=fault))
            done(1)
        made = sum(request.id in known for request in requests)
        if made == len(requests) and not (
            is_concluded(folder) and finished(requests, folder) is not None
        ):
            conclude(requests, folder, finish(requests, folder))
    return Merged(asked=asked, made=made, parts=taken)


def _take(
    folder: Path, part: Part, own: Shard, generation: Path, known: set[str], number: int
) -> ChexGenBenchError | None:
    """Takes in what is there of a part; why not all of it is, where that is known."""
    try:
        for name, file in part.files.items():
            data = read_plain(folder, name, file.bytes)
            if len(data) != file.bytes or sha256_bytes(data) != file.sha256:
                raise Refused(f"Its {name} is not the one that was written: its job is another.")
    except Refused as error:
        return error
    except FileNotFoundError as error:
        return ChexGenBenchError(f"{error.filename} is not there.")
    except OSError as error:
        if is_disk_fault(error):
            raise
        return Refused(f"It cannot be read: {error.strerror}.")
    try:
        intake = Intake(folder, own, generation, known, number)
        intake.take()
        return None if intake.complete() else noted(folder)
    except Refused as error:
        return error


def _look(out: Path, number: int, part: Part) -> Shown:
    made, state = 0, "not started"
    try:
        folder = inside(out, part.folder)
        if not folder.is_dir():
            state = "gone"
        with suppress(FileNotFoundError):
            made = read_plain(folder, MANIFEST, _MANIFEST_BYTES).count(b"\n")
        if made >= part.n_images:
            state = "done"
        elif (age := _silence(folder)) is not None:
            state = f"working, {age:.0f} s ago" if age <= SILENT else f"no sign for {_span(age)}"
            error = noted(folder) if folder.is_dir() else None
            if error is not None:
                state = f"failed: {error.message}"
    except (Refused, ValueError, OSError) as error:
        state = f"cannot be read: {error}"
    return Shown(number=number, part=part, made=min(made, part.n_images), state=state)


def _silence(folder: Path) -> float | None:
    """Seconds since the worker's last heartbeat; None where it never began.

    Of two clocks that differ, the file's time stands for what the worker says.
    """
    name = heartbeat_path(Path(), 0).name
    try:
        read_plain(folder, name, _HEARTBEAT_BYTES)
        return max(0.0, time.time() - (folder / name).lstat().st_mtime)
    except FileNotFoundError:
        return None


def _span(seconds: float) -> str:
    """A time as one reads it.

    >>> _span(70), _span(7300)
    ('70 s', '2 h')
    """
    for size, unit in ((86_400, "days"), (3_600, "h"), (120, "min")):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds / (60 if unit == 'min' else size):.0f} {unit}"
    return f"{seconds:.0f} s"
