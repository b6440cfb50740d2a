"""Task metrics taken by workers: sets of images out, scores in."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chexgenbench.errors import ChexGenBenchError, harmless
from chexgenbench.executors.border import SLACK_BYTES, Refused, read_plain
from chexgenbench.executors.errands import Errand, run_errands
from chexgenbench.executors.workplace import Workplace, folder_of_command, staged
from chexgenbench.jobs.job import TaskJob, stage_of
from chexgenbench.jobs.tasks import (
    RESULT,
    read_result,
    set_facts,
    table_facts,
    write_task_job,
)
from chexgenbench.types import ImageSet, NotApplicable, Task, TaskResult

if TYPE_CHECKING:
    from chexgenbench.splits.prompts import PromptTable

_RESULT_BYTES = 10_000_000
_VALUE_BYTES = 200
"""Bytes of a result beside its values, and of a value of one image at most."""

_PARTS_BYTES = 50_000_000_000
"""What a metric keeps in its job directory, its checkpoints for example."""

_FILES = 1_000_000
_EVENTS = "events-0.jsonl"
_EVENT_BYTES = 50_000_000
_SHOWN = 200


class TaskFailed(ChexGenBenchError):
    """The metric failed in its worker; the message is what it would be here."""


def run_task(job: TaskJob, task: Task, workplace: Workplace) -> TaskResult:
    """Has a worker take a task metric.

    Args:
        job: its sets and tables aside, what the worker is told.
        task: what the metric would be given here.

    Raises:
        NotApplicable: the metric said so.
        TaskFailed: the metric failed.
        ChexGenBenchError: the worker died, hung or returned something else than a result.
    """
    with (
        closing(workplace.open()) as launcher,
        folder_of_command(workplace.root, workplace.forget, workplace.elsewhere) as root,
        ExitStack() as stages,
    ):
        errand = _Taking(job, task, _Shown(task, stages), stage=not workplace.sees_files)
        failures = run_errands([errand], launcher, root, timeout=workplace.timeout, say=task.say)
    if failures:
        raise failures[0]
    returned = errand.result
    assert returned is not None  # else there is a failure
    if returned.status == "skipped":
        raise NotApplicable(returned.reason)
    if returned.status == "failed":
        raise TaskFailed(returned.reason or "")
    return read_result(returned.model_dump())


# --- what comes back ------------------------------------------------------------------------

_Name = Annotated[str, Field(max_length=200)]
_Text = Annotated[str, Field(max_length=4_000)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=2**40)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Estimate(_Strict):
    value: float  # judged with the score's range, as one that was taken here
    standard_error: _Number | None
    ci_low: _Number | None
    ci_high: _Number | None
    reason: _Text | None
    warning: _Text | None
    degrees_of_freedom: float | None


class _Score(_Strict):
    name: _Name
    estimate: _Estimate | _Text
    variant: Annotated[str, Field(max_length=100, pattern=r"^[\w.+@ -]*$")]
    subset: _Name
    control: _Number | None
    excess: _Estimate | None
    n_real: _Count
    n_fake: _Count


class _Values(_Strict):
    name: Annotated[str, Field(max_length=100, pattern=r"^[\w.+@ -]+$")]
    images: _Name
    values: list[float]


class _Pairs(_Strict):
    kind: Annotated[str, Field(max_length=100, pattern=r"^[\w.+@ -]+$")]
    images: _Name
    others: _Name
    at: list[_Count]
    others_at: list[_Count]
    values: list[float]
    flagged: list[bool]


class _Result(_Strict):
    """``result.json`` as a worker may write it."""

    status: Literal["ok", "skipped", "failed"]
    reason: _Text | None
    scores: Annotated[list[_Score], Field(max_length=10_000)] = []
    values: Annotated[list[_Values], Field(max_length=100)] = []
    pairs: Annotated[list[_Pairs], Field(max_length=100)] = []
    notes: Annotated[list[_Text], Field(max_length=100)] = []


def parse_result(data: bytes, sets: Mapping[str, ImageSet]) -> _Result:
    """A worker's result, its texts made harmless.

    Raises:
        Refused: it is something else, or names sets or images that are not there.
    """
    try:
        found = _Result.model_validate(_harmless(json.loads(data)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:80]
        raise Refused(f"The worker's {RESULT} has a fault: {where}: {first['msg']}.") from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"The worker's {RESULT} is not JSON.") from error
    for name in (*(v.images for v in found.values), *(n for p in found.pairs for n in _sides(p))):
        if name not in sets:
            raise Refused(f"The worker's {RESULT} names a set that is not there: {name[:80]!r}.")
    for each in found.pairs:
        lengths = {len(each.at), len(each.others_at), len(each.values), len(each.flagged)}
        if len(lengths) > 1:
            raise Refused(f"The worker's {RESULT} has pairs of several lengths.")
        if any(math.isnan(value) for value in each.values):
            raise Refused(f"The worker's {RESULT} has pairs whose value is no number.")
    return found


def _sides(pairs: _Pairs) -> tuple[str, str]:
    return pairs.images, pairs.others


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, list):
        return [_harmless(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _harmless(each) for key, each in value.items()}
    return value


# --- the worker at work ---------------------------------------------------------------------


@dataclass(eq=False)
class _Shown:
    """A worker's events as stages and lines of this command."""

    task: Task
    stages: ExitStack
    advance: Any = None
    left: int = 0

    def show(self, event: Mapping[str, Any]) -> bool:
        """Shows an event; whether it is progress: a stage that begins, or a part of it done."""
        kind = event.get("event")
        if kind == "say":
            self.task.say(_short(event.get("text")))
        elif kind == "stage":
            self.stages.close()
            total = event.get("total")
            self.left = total if isinstance(total, int) and 0 <= total < 2**40 else 0
            self.advance = self.stages.enter_context(
                self.task.stage(_short(event.get("name")), self.left, _short(event.get("unit")))
            )
            return True
        elif kind == "advance" and self.advance is not None:
            count = event.get("count")
            count = min(count, self.left) if isinstance(count, int) and count > 0 else 0
            self.left -= count
            self.advance(count)
            return count > 0
        elif kind == "stage_done":
            self.stages.close()
            self.advance = None
        return False


def _short(value: object) -> str:
    return harmless(str(value)).replace("\n", " ")[:_SHOWN]


class _Taking(Errand):
    """A task metric for one worker."""

    def __init__(
        self,
        job: TaskJob,
        task: Task,
        shown: _Shown,
        *,
        stage: bool,
    ) -> None:
        self._job, self._task, self._shown, self._stage = job, task, shown, stage
        self._read = self.taken = 0
        self.result: _Result | None = None
        self.name = "task"
        images = sum(len(each) for each in task.sets.values())
        held = sum(v.nbytes for each in task.sets.values() for v in each.outputs.values())
        self._result_bytes = _RESULT_BYTES + images * _VALUE_BYTES * 20
        own = _PARTS_BYTES if job.folder is None else 0
        self.most_bytes = own + 2 * held + images * 10_000 + self._result_bytes + SLACK_BYTES
        self.most_files = _FILES

    def write(self, folder: Path, number: int) -> TaskJob:
        folder.mkdir()
        files = self._job.files
        paths: list[Sequence[Path]] = [each.paths for each in self._task.sets.values()]
        if self._stage:
            place = stage_of(folder)
            place.mkdir()
            paths = [
                [path.relative_to(folder.parent) for path in staged(place / str(n), each)]
                for n, each in enumerate(paths)
            ]
            files = (*files, str(place))
        tables: list[PromptTable] = []
        facts = []
        for name, images in self._task.sets.items():
            at = next((n for n, each in enumerate(tables) if each is images.prompts), len(tables))
            if at == len(tables):
                tables.append(images.prompts)
            facts.append(set_facts(name, images, at))
        job = self._job.model_copy(
            update={
                "files": files,
                "sets": tuple(facts),
                "tables": tuple(map(table_facts, tables)),
            }
        )
        write_task_job(folder, job, list(zip(self._task.sets.values(), paths, strict=True)), tables)
        return job

    def take(self, folder: Path) -> None:
        self._take_events(folder)
        if self.result is None:
            with suppress(FileNotFoundError):
                data = read_plain(folder, RESULT, self._result_bytes)
                self.result = parse_result(data, self._task.sets)

    def gained(self) -> bool:
        return False  # its checkpoints are nothing that can be counted

    def complete(self) -> bool:
        return self.result is not None

    def rest(self) -> _Taking:
        """The same again. Checkpoints in the job directory are left behind with it: nobody has
        looked at them, and what another worker is given it must be able to believe."""
        self._read = 0
        return self

    def _take_events(self, folder: Path) -> None:
        """Shows what the worker says of its progress; what makes no sense is left out."""
        lines = _new_lines(folder / _EVENTS, self._read)
        self._read += sum(len(line) + 1 for line in lines)
        for line in lines:
            with suppress(ValueError, RecursionError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self.taken += self._shown.show(event)


def _new_lines(path: Path, start: int) -> list[bytes]:
    """The whole lines of a worker's file behind that byte; none where it is no plain file, or has
    grown beyond all measure."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    with os.fdopen(file, "rb") as stream:
        if not stat.S_ISREG(os.fstat(file).st_mode) or start > _EVENT_BYTES:
            return []
        stream.seek(start)
        data = stream.read(1_000_000)
    return data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
