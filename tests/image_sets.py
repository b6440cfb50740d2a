"""Image sets and tasks made by hand, as the planner would make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from chexgenbench.files import sha256_bytes, sha256_file
from chexgenbench.splits.prompts import PromptTable
from chexgenbench.types import FINDINGS, Context, ImageNeed, ImageSet, Task


def prompt_table(
    count: int,
    *,
    side: str = "test",
    patients: Sequence[str | None] | None = None,
    labels: NDArray[np.float64] | None = None,
    prompts: Sequence[str] | None = None,
    images_root: Path | None = None,
) -> PromptTable:
    """`count` rows with ids ``SIDE-0`` and so on; without `patients` each has one of its own."""
    if patients is None:
        patients = [f"{side}-p{i}" for i in range(count)]
    values = np.full((count, len(FINDINGS)), np.nan) if labels is None else labels
    table = pd.DataFrame(
        {
            "prompt_id": [f"{side}-{i}" for i in range(count)],
            "prompt": prompts or [f"prompt {side} {i}" for i in range(count)],
            "patient_id": pd.array(list(patients), dtype="str"),
            "view": pd.array(["PA"] * count, dtype="str"),
            "image_path": pd.array([f"{side}-{i}.png" for i in range(count)], dtype="str"),
            **dict(zip(FINDINGS, np.asarray(values, np.float64).T, strict=True)),
            "line": np.arange(2, count + 2),
            "copies": 1,
        }
    )
    return PromptTable(
        name="by hand",
        table=table,
        source_file=Path(f"{side}.csv"),
        images_root=images_root,
        rows_read=count,
    )


def image_set(
    *,
    features: NDArray[Any] | None = None,
    images: Sequence[NDArray[Any]] | None = None,
    folder: Path | None = None,
    side: Literal["test", "training"] = "test",
    source: Literal["real", "model"] = "real",
    patients: Sequence[str | None] | None = None,
    labels: NDArray[np.float64] | None = None,
    prompts: Sequence[str] | None = None,
    repeats: int = 1,
    table: PromptTable | None = None,
) -> ImageSet:
    """A set of n images: of n / `repeats` rows, `repeats` images a row one after the other.

    Args:
        features: float [n, d]; without them `images` alone.
        images: uint8 arrays, written as PNG files to `folder`.
        patients, labels, prompts: one a row.
        table: the rows, where they are those of another set.
    """
    count = len(features) if features is not None else len(images or ())
    rows = count // repeats
    assert rows * repeats == count
    if table is None:
        table = prompt_table(rows, side=side, patients=patients, labels=labels, prompts=prompts)
    ids = table.table["prompt_id"].tolist()
    names = [f"{ids[i // repeats]}~{i % repeats}" for i in range(count)]
    paths = [(folder or Path()) / f"{side}-{source}-{name}.png" for name in names]
    if images is not None:
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        for path, pixels in zip(paths, images, strict=True):
            Image.fromarray(pixels).save(path)
        keys = [sha256_file(path) for path in paths]
    else:
        assert features is not None
        keys = [sha256_bytes(np.ascontiguousarray(row).tobytes()) for row in features]
    return ImageSet(
        need=ImageNeed(side=side, source=source, repeats=repeats),
        prompts=table,
        rows=np.arange(count) // repeats,
        repeats=np.arange(count) % repeats,
        ids=tuple(names if source == "model" else [ids[i // repeats] for i in range(count)]),
        keys=tuple(keys),
        paths=tuple(paths),
        outputs={} if features is None else {"features": np.asarray(features, np.float32)},
    )


@contextmanager
def _stage(_name: str, _total: int, _unit: str = "images") -> Iterator[Callable[[int], None]]:
    yield lambda _count: None


def task(
    sets: Mapping[str, ImageSet],
    folder: Path,
    *,
    seed: int = 0,
    encoder: str = "by-hand",
    model: str = "mine",
    said: list[str] | None = None,
    context: Context | None = None,
) -> Task:
    """A task on `sets`, with its folder below `folder`; what it says goes to `said`."""
    lines: list[str] = [] if said is None else said
    return Task(
        sets=sets,
        encoder=encoder,
        model=model,
        seed=seed,
        folder=folder / "task",
        context=context or Context(home=folder, cache=folder / "cache"),
        stage=_stage,
        say=lines.append,
    )


GAP = """
from hashlib import sha256

import numpy as np
from pydantic import Field
from chexgenbench import (
    ImageNeed, ImagePairs, ImageValues, MetricSpec, NotApplicable, Parameters, ScoreSpec,
    TaskMetric, TaskResult, TaskScore, UserError, hookimpl,
)
from chexgenbench.statistics import Estimate


class GapParameters(Parameters):
    prompts: int = Field(6, ge=1, description="Training prompts.")
    repeats: int = Field(2, ge=1, description="Images of each.")
    fault: str = Field("", description="What goes wrong.")


class Gap(TaskMetric):
    @classmethod
    def needs(cls, parameters):
        made = {"prompts": parameters.prompts, "repeats": parameters.repeats}
        return {
            "made": ImageNeed(side="training", source="model", **made),
            "real": ImageNeed(side="training", source="real", prompts=parameters.prompts),
            "own": ImageNeed(side="test", source="model"),
            "held_out": ImageNeed(side="test", source="real"),
        }

    @classmethod
    def check(cls, parameters, context, tables):
        if parameters.fault == "check":
            raise UserError("The metric gap wants more rows.", hint="Give it more.")
        return [f"looked at {len(tables['made'])} rows."]

    def run(self, task):
        fault = self.parameters.fault
        if fault == "raise":
            raise RuntimeError("broken inside")
        if fault == "skip":
            raise NotApplicable("not today")
        made, real, own = (task.sets[name] for name in ("made", "real", "own"))
        apart = ((made.features[:, None] - real.features[None]) ** 2).sum(2)
        for each in task.sets.values():
            for path, key in zip(each.paths, each.keys):
                assert sha256(path.read_bytes()).hexdigest() == key
        near = apart.argmin(1)
        names = [name.partition("~")[0] for name in made.ids]
        mine = np.asarray([real.ids.index(n) if n in real.ids else 0 for n in names])
        exact = apart[np.arange(len(made)), mine]
        value = float("nan") if fault == "nan" else float(exact.mean())
        name = "gape" if fault == "name" else "gap"
        part = task.part({"keys": list(made.keys)})
        (part / "done").write_text("yes")
        return TaskResult(
            scores=[
                TaskScore(
                    name=name, estimate=Estimate(value, reason="none derived"),
                    n_real=None if fault == "count" else len(real), n_fake=len(made),
                    control=2.0, excess=Estimate(value - 2.0, 0.1, -9.0, 9.0),
                ),
                TaskScore(name="gap", variant="edema", subset="Edema", estimate="no such rows"),
            ],
            values=[
                ImageValues(name="near_copy", images="made", values=(exact == 0).astype(float)),
                ImageValues(name="one", images="own", values=np.ones(len(own))),
            ],
            pairs=[
                ImagePairs(
                    kind="nearest_training", images="made", others="real", at=np.arange(3),
                    others_at=near[:3] + (100 if fault == "pairs" else 0), values=exact[:3],
                    flagged=exact[:3] == 0,
                )
            ],
            notes=["worked."],
        )


@hookimpl
def chexgenbench_metrics():
    yield MetricSpec(
        name="gap", summary="Distance to the own training image", load=Gap, metric="task",
        parameters=GapParameters, scores=(ScoreSpec(name="gap", higher_is_better=True),),
    )
"""
"""A plugin's file: a task metric that wants images of every kind, and fails as it is told."""
