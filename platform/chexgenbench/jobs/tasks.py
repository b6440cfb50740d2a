"""A task metric's job: sets of images in, scores out.

Beside ``job.json`` lie, by their numbers in it, the tables of prompts (``table-0.parquet``; with
``table-0-others.parquet`` and ``table-0-every.parquet`` where there are such rows) and the sets of
images (``set-0.parquet`` and the encoder's outputs, ``set-0.safetensors``). The worker notes how
far it is as events and writes ``result.json``, also where the metric cannot be taken or fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chexgenbench.errors import PLUGIN_FAULTS, UserError, is_disk_fault
from chexgenbench.files import atomic_path, write_json
from chexgenbench.jobs.job import (
    Counted,
    Events,
    SetFacts,
    TableFacts,
    TaskJob,
    read_rows,
    write_facts,
    write_rows,
)
from chexgenbench.types import (
    Context,
    ImageNeed,
    ImagePairs,
    ImageSet,
    ImageValues,
    NotApplicable,
    Task,
    TaskMetric,
    TaskResult,
    TaskScore,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from chexgenbench.splits.prompts import PromptTable
    from chexgenbench.statistics.estimate import Estimate

RESULT = "result.json"
PARTS = "parts"


# --- what the platform writes ---------------------------------------------------------------


def table_facts(table: PromptTable) -> TableFacts:
    """What a job says of a table beside its rows."""
    return TableFacts(
        name=table.name,
        n_rows=len(table),
        source_file=str(table.source_file),
        images_root=None if table.images_root is None else str(table.images_root),
        rows_read=table.rows_read,
        uncertain=table.uncertain,
        conflicts=tuple(table.conflicts),
    )


def set_facts(name: str, images: ImageSet, table: int) -> SetFacts:
    """What a job says of a set beside its rows."""
    return SetFacts(
        name=name,
        need=asdict(images.need),
        table=table,
        n_images=len(images),
        outputs=tuple(images.outputs),
    )


def write_task_job(
    folder: Path,
    job: TaskJob,
    sets: Sequence[tuple[ImageSet, Sequence[Path]]],
    tables: Sequence[PromptTable],
) -> None:
    """Writes the files of a job.

    Args:
        sets: those of the job, in its order, and where the worker finds the images of each.
        tables: those of the job, in its order.
    """
    for number, table in enumerate(tables):
        _write_frame(folder / f"table-{number}.parquet", table.table)
        for name, frame in (("others", table.others), ("every", table.every)):
            if frame is not None and len(frame.columns):
                _write_frame(folder / f"table-{number}-{name}.parquet", frame)
    for number, (images, paths) in enumerate(sets):
        columns = zip(
            images.rows.tolist(),
            images.repeats.tolist(),
            images.ids,
            images.keys,
            map(str, paths),
            strict=True,
        )
        names = _set_schema().names
        rows = [dict(zip(names, each, strict=True)) for each in columns]
        write_rows(folder / f"set-{number}.parquet", rows, _set_schema())
        if images.outputs:
            from safetensors.numpy import save_file

            outputs = {name: np.ascontiguousarray(v) for name, v in images.outputs.items()}
            with atomic_path(folder / f"set-{number}.safetensors") as temporary:
                save_file(outputs, temporary)
    write_facts(folder, job)


def _write_frame(path: Path, frame: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)


def _set_schema() -> pa.Schema:
    import pyarrow as pa

    kinds = [("row", pa.int64()), ("repeat", pa.int64())]
    return pa.schema([*kinds, *((name, pa.string()) for name in ("id", "key", "path"))])


# --- what the worker reads and does ---------------------------------------------------------


def read_sets(folder: Path, job: TaskJob) -> dict[str, ImageSet]:
    """The sets of a job, as the metric is given them."""
    tables = [_read_table(folder, number, facts) for number, facts in enumerate(job.tables)]
    return {
        facts.name: _read_set(folder, number, facts, tables[facts.table])
        for number, facts in enumerate(job.sets)
    }


def _read_table(folder: Path, number: int, facts: TableFacts) -> PromptTable:
    import pandas as pd

    from chexgenbench.splits.prompts import PromptTable

    def frame(name: str) -> pd.DataFrame | None:
        path = folder / f"table-{number}{name}.parquet"
        return pd.read_parquet(path) if path.is_file() else None

    table, others = frame(""), frame("-others")
    rows = 0 if table is None else len(table)
    if table is None or rows != facts.n_rows:
        raise UserError(
            f"{folder}/table-{number}.parquet has {rows} rows, and its job has {facts.n_rows}."
        )
    return PromptTable(
        name=facts.name,
        table=table,
        source_file=Path(facts.source_file),
        images_root=None if facts.images_root is None else Path(facts.images_root),
        rows_read=facts.rows_read,
        uncertain=facts.uncertain,
        conflicts=facts.conflicts,
        others=pd.DataFrame() if others is None else others,
        every=frame("-every"),
    )


def _read_set(folder: Path, number: int, facts: SetFacts, table: PromptTable) -> ImageSet:
    rows = read_rows(folder / f"set-{number}.parquet", _set_schema(), count=facts.n_images)
    outputs: dict[str, Any] = {}
    if facts.outputs:
        from safetensors.numpy import load_file

        found = load_file(folder / f"set-{number}.safetensors")
        outputs = {name: found[name] for name in facts.outputs}
    return ImageSet(
        need=ImageNeed(**facts.need),
        prompts=table,
        rows=np.asarray([row["row"] for row in rows], np.int64),
        repeats=np.asarray([row["repeat"] for row in rows], np.int64),
        ids=tuple(row["id"] for row in rows),
        keys=tuple(row["key"] for row in rows),
        paths=tuple(folder.parent / row["path"] for row in rows),
        outputs=outputs,
    )


def work(
    folder: Path, job: TaskJob, context: Context, load: Callable[[], TaskMetric], events: Events
) -> None:
    """Takes the metric and writes ``result.json``."""
    result: TaskResult | None = None
    status, reason = "ok", None
    try:
        task = Task(
            sets=read_sets(folder, job),
            encoder=job.encoder,
            model=job.model,
            seed=job.seed,
            folder=folder / PARTS if job.folder is None else Path(job.folder),
            context=context,
            stage=_Stages(events).stage,
            say=lambda text: events.note("say", text=str(text)),
        )
        result = load().run(task)
        if not isinstance(result, TaskResult):
            raise ValueError(f"it returned a {type(result).__name__}, not a TaskResult")
        values = plain_result(result)
    except NotApplicable as error:
        status, reason, values = "skipped", str(error), {}
    except PLUGIN_FAULTS as error:  # whatever it raises, the platform records it
        if is_disk_fault(error):
            raise
        status, reason, values = "failed", f"{type(error).__name__}: {error}", {}
    write_json(folder / RESULT, {"status": status, "reason": reason, **values})


class _Stages:
    """The stages of a task as events."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._count = 0

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        self._count += 1
        number = self._count
        self._events.note("stage", stage=number, name=str(name), total=int(total), unit=str(unit))
        counted = Counted(partial(self._events.note, "advance", stage=number))
        yield counted.add
        counted.flush()
        self._events.note("stage_done", stage=number)


# --- the result -----------------------------------------------------------------------------

_ESTIMATE = (
    "value",
    "standard_error",
    "ci_low",
    "ci_high",
    "reason",
    "warning",
    "degrees_of_freedom",
)
"""What of an `Estimate` comes back: no task score's influence is used."""


def plain_result(result: TaskResult) -> dict[str, Any]:
    """A result as JSON values; Python's JSON gives each float back as it was."""
    return {
        "scores": [
            {
                "name": score.name,
                "estimate": _plain_estimate(score.estimate),
                "variant": score.variant,
                "subset": score.subset,
                "control": None if score.control is None else float(score.control),
                "excess": None if score.excess is None else _plain_estimate(score.excess),
                "n_real": int(score.n_real),
                "n_fake": int(score.n_fake),
            }
            for score in result.scores
        ],
        "values": [
            {"name": each.name, "images": each.images, "values": _numbers(each.values)}
            for each in result.values
        ],
        "pairs": [
            {
                "kind": each.kind,
                "images": each.images,
                "others": each.others,
                "at": [int(at) for at in each.at],
                "others_at": [int(at) for at in each.others_at],
                "values": _numbers(each.values),
                "flagged": [bool(flag) for flag in each.flagged],
            }
            for each in result.pairs
        ],
        "notes": [str(note) for note in result.notes],
    }


def _plain_estimate(estimate: Estimate | str) -> Any:
    if isinstance(estimate, str):
        return estimate
    values = {name: getattr(estimate, name) for name in _ESTIMATE}
    return {
        name: float(value) if value is not None and not isinstance(value, str) else value
        for name, value in values.items()
    }


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in np.asarray(values, np.float64).reshape(-1)]


def read_result(values: Mapping[str, Any]) -> TaskResult:
    """The result that `plain_result` wrote; the caller has checked the kinds of its values."""
    from chexgenbench.statistics.estimate import Estimate

    def estimate(value: Any) -> Any:
        return Estimate(**value) if isinstance(value, Mapping) else value

    return TaskResult(
        scores=[
            TaskScore(
                **{
                    **each,
                    "estimate": estimate(each["estimate"]),
                    "excess": estimate(each["excess"]),
                }
            )
            for each in values["scores"]
        ],
        values=[
            ImageValues(**{**each, "values": np.asarray(each["values"], np.float64)})
            for each in values["values"]
        ],
        pairs=[
            ImagePairs(
                kind=each["kind"],
                images=each["images"],
                others=each["others"],
                at=np.asarray(each["at"], np.int64),
                others_at=np.asarray(each["others_at"], np.int64),
                values=np.asarray(each["values"], np.float64),
                flagged=np.asarray(each["flagged"], np.bool_),
            )
            for each in values["pairs"]
        ],
        notes=list(values["notes"]),
    )
