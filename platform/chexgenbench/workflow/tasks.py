"""Task metrics: the sets of images that they ask for, and the stages that serve them.

A set of real images is a part of the split's test or training side. A set that the model makes is
a part of the run's own generation where that has all of it, else of a *pool*: one more generation
of the model, for other rows or more seeds. A pool serves every need that it covers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexgenbench import provenance
from chexgenbench.errors import PLUGIN_FAULTS, ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.executors import TaskFailed, Workplace, run_task
from chexgenbench.features import EncoderPlan
from chexgenbench.files import Presence, digest
from chexgenbench.images import BadImage, read_image
from chexgenbench.jobs.job import TaskJob, plain_context
from chexgenbench.scoring import Score, interval_warning
from chexgenbench.splits.prompts import PromptTable, check_images
from chexgenbench.statistics import Estimate
from chexgenbench.store.records import SCHEMAS
from chexgenbench.types import (
    FINDINGS,
    MACRO,
    OVERALL,
    ImageNeed,
    ImageSet,
    MetricSpec,
    NotApplicable,
    Parameters,
    Task,
    TaskMetric,
    TaskResult,
    TaskScore,
)

if TYPE_CHECKING:
    from chexgenbench.features import HashCache
    from chexgenbench.registry import Plugin
    from chexgenbench.types import Context

Extract = Callable[[str, Sequence[tuple[str, Path]], EncoderPlan], Mapping[str, BadImage]]
"""Encodes (content hash, file) pairs of a set of that name; returns those that cannot be read."""

_LISTED = 10
_DRAWN = 200


@dataclass(frozen=True)
class TaskPlan:
    """A task metric chosen for a run.

    Attributes:
        encoders: names of those it is taken on; one empty name where it takes none.
        needs: the sets that it asked for, by its own names.
        weights: SHA-256 of each file that decides its scores.
        files: those files, for a worker that is to read them.
    """

    plugin: Plugin[MetricSpec]
    parameters: Parameters
    context: Context
    encoders: tuple[str, ...]
    needs: Mapping[str, ImageNeed]
    weights: Mapping[str, str]
    files: tuple[Path, ...] = ()

    def identity(self) -> dict[str, Any]:
        """All that its scores depend on, images and encoders aside."""
        return {
            **self.plugin.identity(),
            "parameters": self.parameters.identity(),
            "weights": dict(self.weights),
            "needs": {name: need.name for name, need in sorted(self.needs.items())},
        }

    def folder(self, cache: Path) -> Path:
        """Where its intermediate results lie, whatever run they are of."""
        facts = [self.plugin.identity(), dict(self.weights), provenance.numerics()]
        return cache / "tasks" / f"{self.plugin.name}-{digest(facts)[:16]}"


def plan_task(
    plugin: Plugin[MetricSpec],
    parameters: Parameters,
    context: Context,
    encoders: Sequence[str],
    weights: Mapping[str, str],
    *,
    repeats: int,
    here: bool = True,
) -> TaskPlan:
    """What a task metric asks of a run that makes `repeats` images of each of its prompts.

    Args:
        here: whether its modules must be installed in this environment.

    Raises:
        ChexGenBenchError: the plugin's own code fails, or asks for what cannot be.
    """
    found = plugin.load(here=here)
    assert issubclass(found, TaskMetric)  # Plugin.load has checked the class
    needs = dict(plugin.call("cannot say what it needs", lambda: found.needs(parameters)))
    for name, need in needs.items():
        real = need.source == "real"
        needs[name] = need = replace(need, repeats=need.repeats or (1 if real else repeats))
        several = real and need.repeats != 1
        odd = need.every_row and (not real or need.prompts is not None)
        if (need.repeats or 0) < 1 or several or odd or (need.prompts or 1) < 1:
            raise ChexGenBenchError(
                f"The metric {plugin.name!r} ({plugin.source}) asks for {need} as {name!r}, "
                "which cannot be."
            )
    return TaskPlan(plugin, parameters, context, tuple(encoders) or ("",), needs, weights)


@dataclass(frozen=True)
class Tables:
    """The two sides of the split; `training` is None where it has none."""

    test: PromptTable
    training: PromptTable | None
    seed: int

    def rows(self, need: ImageNeed) -> PromptTable:
        """The rows of the side that a need is about, in the order of the table."""
        table = self.test if need.side == "test" else self.training
        if table is None:
            raise UserError(
                f"The split {self.test.name!r} has no training side.",
                hint="Leave the privacy and utility metrics out, or name a split that has one.",
            )
        if need.every_row:
            return table.every_row()
        if need.prompts is None or need.prompts >= len(table):
            return table
        return table.take(chosen_rows(table, need.prompts, self.seed))


def chosen_rows(table: PromptTable, count: int, seed: int) -> NDArray[np.int64]:
    """The `count` rows whose hashed ids are smallest, in the order of the table."""
    keys = [
        hashlib.sha256(f"{seed}\n{name}".encode()).digest() for name in table.table["prompt_id"]
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)[:count]
    return np.sort(np.asarray(order, np.int64))


def check_tasks(tasks: Sequence[TaskPlan], tables: Tables) -> list[str]:
    """Lets each task metric look at its rows; returns their remarks.

    Raises:
        UserError: a metric that cannot be taken.
    """
    remarks: list[str] = []
    for task in tasks:
        found = task.plugin.load(here=False)  # `plan_task` has looked for its modules
        assert issubclass(found, TaskMetric)
        chosen = {name: tables.rows(need) for name, need in task.needs.items()}
        check = partial(found.check, task.parameters, task.context, chosen)
        said = task.plugin.call("cannot check its rows", partial(_listed, check))
        remarks += [f"{task.plugin.name}: {remark.rstrip('.')}" for remark in said]
    return remarks


def _listed(check: Callable[[], Sequence[str]]) -> tuple[str, ...]:
    return tuple(check())


def find_leakage(tables: Tables) -> list[str]:
    """What stands on both sides of the split, by lines of the files: patients and paths are not
    named, since they may be credentialed."""
    if tables.training is None:
        return []
    test, training = tables.test.every_row(), tables.training.every_row()
    patients = [table.table["patient_id"] for table in (test, training)]
    found = _on_both(test, training, *patients, what="the same patient")
    return found + _on_both(test, training, _places(test), _places(training), what="the same image")


def _places(table: PromptTable) -> pd.Series[str]:
    """The file of each row's image, however its path is written."""
    if table.images_root is None:
        return pd.Series([None] * len(table), dtype="str")
    root = table.images_root
    paths = table.table["image_path"]
    return paths.map(lambda path: os.path.normpath(root / path), na_action="ignore")


def _on_both(
    test: PromptTable, training: PromptTable, mine: pd.Series, theirs: pd.Series, *, what: str
) -> list[str]:
    left = pd.DataFrame({"test": test.table["line"], "key": mine}).dropna()
    right = pd.DataFrame({"training": training.table["line"], "key": theirs}).dropna()
    both = left.merge(right.drop_duplicates("key"), on="key")
    return [
        f"line {one} of {test.source_file.name} and line {two} of "
        f"{training.source_file.name}: {what}"
        for one, two in zip(both["test"], both["training"], strict=True)
    ]


def find_copies(found: Mapping[ImageNeed, SetImages]) -> list[str]:
    """Real images of equal content on both sides, as `find_leakage` says it."""
    sides: dict[str, dict[str, str]] = {"test": {}, "training": {}}
    for need, made in found.items():
        lines = made.prompts.table["line"].to_numpy()[made.rows]
        for key, line in zip(made.keys, lines.tolist(), strict=True):
            where = f"line {line} of {made.prompts.source_file.name}"
            sides[need.side].setdefault(key, where)
    test, training = sides["test"], sides["training"]
    return [f"{test[key]} and {training[key]}: the same image" for key in test if key in training]


def compares_sides(tasks: Sequence[TaskPlan]) -> bool:
    """Whether the task metrics use the test and the training side, be it one by one."""
    return len({need.side for task in tasks for need in task.needs.values()}) > 1


def refuse_leakage(found: Sequence[str], name: str, *, allow: bool) -> list[str]:
    """A remark on what `find_leakage` or `find_copies` found, or nothing.

    Raises:
        UserError: they found something, and that was not allowed; with the lines.
    """
    if not found:
        return []
    if not allow:
        listed = "\n".join(found[:_LISTED])
        more = f"\n... and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise UserError(
            f"The training and the test side of the split {name!r} overlap in {len(found)} rows, "
            f"so that no privacy or utility score would hold:\n{listed}{more}",
            hint="Take those rows out of one side. To see what it does: --allow-leakage.",
        )
    return [f"training and test side overlap in {len(found)} rows: the scores do not hold"]


# --- images ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SetImages:
    """The images of one generation as a set needs them."""

    prompts: PromptTable
    rows: NDArray[np.int64]
    repeats: NDArray[np.int64]
    ids: Sequence[str]
    keys: Sequence[str]
    paths: Sequence[Path]

    def at(self, index: NDArray[np.int64]) -> SetImages:
        """The images at those positions, in that order."""
        chosen = index.tolist()
        return replace(
            self,
            rows=self.rows[index],
            repeats=self.repeats[index],
            ids=[self.ids[i] for i in chosen],
            keys=[self.keys[i] for i in chosen],
            paths=[self.paths[i] for i in chosen],
        )


def covers(one: ImageNeed, other: ImageNeed) -> bool:
    """Whether the images that a model makes for `one` have those of `other` among them.

    >>> wide = ImageNeed(side="training", source="model", prompts=100, repeats=2)
    >>> covers(wide, replace(wide, prompts=20)), covers(wide, replace(wide, prompts=None))
    (True, False)
    """
    enough = one.prompts is None or (other.prompts is not None and other.prompts <= one.prompts)
    seeds = (other.repeats or 1) <= (one.repeats or 1)
    return (one.side, one.source) == (other.side, other.source) and enough and seeds


def fewest(needs: Sequence[ImageNeed]) -> list[ImageNeed]:
    """The needs of which none is covered by another."""
    distinct = list(dict.fromkeys(needs))
    return [
        need
        for need in distinct
        if not any(other != need and covers(other, need) for other in distinct)
    ]


def part_of(made: SetImages, need: ImageNeed, prompts: PromptTable) -> SetImages:
    """The images for the rows `prompts` and the first seeds of each, in canonical order."""
    place = {name: row for row, name in enumerate(prompts.table["prompt_id"])}
    names = made.prompts.table["prompt_id"].tolist()
    rows = np.asarray([place.get(names[row], -1) for row in made.rows.tolist()], np.int64)
    kept = np.flatnonzero((rows >= 0) & (made.repeats < (need.repeats or 1)))
    chosen = kept[np.lexsort((made.repeats[kept], rows[kept]))]
    return replace(made.at(chosen), prompts=prompts, rows=rows[chosen])


Row = tuple[str, int]
"""A row of a split, by the name of its file and its line."""


def real_images(
    tables: Tables,
    needs: Iterable[ImageNeed],
    hashes: HashCache,
    stage: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
) -> tuple[dict[ImageNeed, SetImages], dict[Row, BadImage]]:
    """The real images of each need, drawn where the split is procedural, and hashed; and the rows
    whose image is missing. A side without images has none."""
    found: dict[ImageNeed, SetImages] = {}
    missing: dict[Row, BadImage] = {}
    for need in dict.fromkeys(need for need in needs if need.source == "real"):
        table = tables.rows(need)
        named = np.flatnonzero(table.has_image()).tolist()
        if not named:
            continue
        if table.materialise is not None:
            with stage(f"draw {need.side} images", len(named)) as advance:
                for start in range(0, len(named), _DRAWN):
                    part = named[start : start + _DRAWN]
                    table.materialise_rows(part)
                    advance(len(part))
        bad = dict(check_images(table))
        rows = [row for row in named if row not in bad]
        keys = hashes.sha256([table.path(row) for row in rows])
        for row, key in zip(rows, keys, strict=True):
            if key is None:
                bad[row] = BadImage(f"{table.path(row)} cannot be read.")
        missing |= {_row(table, row): error for row, error in bad.items()}
        kept = [(row, key) for row, key in zip(rows, keys, strict=True) if key is not None]
        at = np.asarray([row for row, _ in kept], np.int64)
        found[need] = SetImages(
            prompts=table,
            rows=at,
            repeats=np.zeros(len(at), np.int64),
            ids=table.table["prompt_id"].iloc[at].tolist(),
            keys=[key for _, key in kept],
            paths=[table.path(row) for row, _ in kept],
        )
    return found, missing


def _row(table: PromptTable, row: int) -> Row:
    return table.source_file.name, int(table.table["line"].iloc[row])


def undecodable(made: SetImages) -> dict[str, BadImage]:
    """The images that cannot be decoded, by content."""
    bad: dict[str, BadImage] = {}
    for key, path in dict(zip(made.keys, made.paths, strict=True)).items():
        try:
            read_image(path)
        except BadImage as error:
            bad[key] = error
    return bad


def leave_out(
    made: SetImages, bad: Mapping[str, BadImage]
) -> tuple[SetImages, dict[Row, BadImage]]:
    """The images without those of the given content, and the rows that these belonged to."""
    lost = [i for i, key in enumerate(made.keys) if key in bad]
    rows = {_row(made.prompts, int(made.rows[i])): bad[made.keys[i]] for i in lost}
    kept = [i for i, key in enumerate(made.keys) if key not in bad]
    return (made.at(np.asarray(kept, np.int64)) if lost else made), rows


def real_identity(found: Mapping[ImageNeed, SetImages]) -> dict[str, str]:
    """What of each real set a score depends on: rows, labels, patients and images."""
    return {
        need.name: digest([made.prompts.fingerprint(), made.rows.tolist(), list(made.keys)])
        for need, made in found.items()
    }


@dataclass(frozen=True, eq=False)
class Sets:
    """The sets of images of one model's run, and how those of the model are encoded."""

    made: Mapping[ImageNeed, SetImages]
    extract: Extract
    say: Callable[[str], None]

    def get(self, need: ImageNeed, encoder: EncoderPlan | None) -> ImageSet:
        """The images of a need, with the encoder's outputs.

        Raises:
            NotApplicable: they are not there: a side without images, or a user's own images, for
                which no model can be asked.
            ChexGenBenchError: features that are no numbers.
        """
        if need not in self.made:
            if need.source == "real":
                raise NotApplicable(f"the {need.side} side of the split has no real images")
            raise NotApplicable("it needs images that a model makes for further prompts")
        found = self.made[need]
        bad: Mapping[str, BadImage] = {}
        if encoder is not None:
            bad = self.extract(need.name, list(zip(found.keys, found.paths, strict=True)), encoder)
        elif need.source == "model":
            bad = undecodable(found)
        if bad:
            found, rows = leave_out(found, bad)
            self.say(f"{len(rows)} images of {need.name} cannot be read")
        result = ImageSet(
            need=need,
            prompts=found.prompts,
            rows=found.rows,
            repeats=found.repeats,
            ids=tuple(found.ids),
            keys=tuple(found.keys),
            paths=tuple(found.paths),
        )
        if encoder is None:
            return result
        outputs = encoder.images.read(list(result.keys))
        for name, values in outputs.items():
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                raise ChexGenBenchError(
                    f"The encoder {encoder.name!r} gave {name} that are no numbers for "
                    f"{result.ids[int(np.argmin(finite))]!r} of {need.name}.",
                    hint="Look at that image, or choose another encoder.",
                )
        return replace(result, outputs=outputs)


# --- scores ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Found:
    """What all task metrics of a run found, as the run directory keeps it."""

    scores: Sequence[Score]
    samples: pd.DataFrame
    neighbours: pd.DataFrame
    notes: Sequence[str]


def run_tasks(
    tasks: Sequence[TaskPlan],
    sets: Sets,
    encoders: Mapping[str, EncoderPlan],
    *,
    run_id: str,
    model: str,
    seed: int,
    cache: Path,
    pools: Mapping[ImageNeed, str | None],
    basis: str,
    stage: Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]],
    say: Callable[[str], None],
    workplace: Callable[[Plugin[MetricSpec]], Workplace | None] = lambda _plugin: None,
) -> Found:
    """Runs every task metric on each of its encoders; one that fails is recorded and the others
    stand.

    Args:
        pools: the pool of each set that the model made; None for the run's own images.
        basis: identity of the real sides, protocol and code.
        workplace: where a metric works; None where that is this process.
    """
    scores: list[Score] = []
    samples: list[pd.DataFrame] = []
    neighbours: list[pd.DataFrame] = []
    notes: list[str] = []
    for plan in tasks:
        for name in plan.encoders:
            encoder = encoders[name] if name else None
            own = digest([basis, plan.identity(), encoder.id if encoder else "", seed])[:16]
            result: TaskResult | None = None
            status, reason = "ok", None
            held: dict[str, ImageSet] = {}
            try:
                held = {key: sets.get(need, encoder) for key, need in plan.needs.items()}
                task = Task(
                    sets=held,
                    encoder=name,
                    model=model,
                    seed=seed,
                    folder=plan.folder(cache),
                    context=plan.context,
                    stage=stage,
                    say=say,
                )
                task.folder.mkdir(parents=True, exist_ok=True)
                with closing(Presence(task.folder)):
                    result = _take(plan, task, workplace(plan.plugin))
                _check_result(result, plan, held)
            except TaskFailed as error:
                status, reason = "failed", error.message
            except NotApplicable as error:
                status, reason = "skipped", str(error)
            except PLUGIN_FAULTS as error:  # whatever it raises, the others stand
                if is_disk_fault(error):
                    raise
                status, reason = "failed", f"{type(error).__name__}: {error}"
            as_score = _converter(plan, encoder, own)
            if result is None or status != "ok":
                scores += [as_score(score, status, reason) for score in _nothing(plan)]
                continue
            scores += [as_score(score, "ok", None) for score in result.scores]
            samples += list(_samples(result, held, pools, name))
            neighbours += list(_neighbours(result, held, pools, plan.plugin.name, name))
            notes += [f"{plan.plugin.name}: {note.rstrip('.')}" for note in result.notes]
    values = _table("sample_scores", samples, run_id)
    # An image can be in several sets, and several metrics can give a value of one name to it.
    key = ["run_id", "image_id", "prompt_id", "metric", "encoder"]
    values = values.groupby(key, sort=False)["value"].max().reset_index()
    return Found(
        scores=scores,
        samples=values,
        neighbours=_table("neighbours", neighbours, run_id),
        notes=notes,
    )


def _take(plan: TaskPlan, task: Task, workplace: Workplace | None) -> TaskResult:
    """What the metric finds, here or where it works."""
    if workplace is None:
        metric = plan.plugin.create(plan.parameters, plan.context)
        assert isinstance(metric, TaskMetric)
        return metric.run(task)
    job = TaskJob(
        metric=plan.plugin.name,
        source=plan.plugin.source_hash(),
        parameters=plan.parameters.model_dump(mode="json"),
        encoder=task.encoder,
        model=task.model,
        seed=task.seed,
        folder=str(task.folder) if workplace.sees_files else None,
        sets=(),
        tables=(),
        context=plain_context(plan.context),
        device=plan.context.device.partition(":")[0],
        limits=workplace.limits,
        **replace(workplace.source, weights=plan.files).told(),
    )
    return run_task(job, task, workplace)


def _table(name: str, parts: Sequence[pd.DataFrame], run_id: str) -> pd.DataFrame:
    columns = list(SCHEMAS[name].names)
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts, ignore_index=True).assign(run_id=run_id)[columns]


def _nothing(plan: TaskPlan) -> Iterator[TaskScore]:
    for declared in plan.plugin.spec.scores:
        yield TaskScore(name=declared.name, estimate="")


def _converter(
    plan: TaskPlan, encoder: EncoderPlan | None, basis: str
) -> Callable[[TaskScore, str, str | None], Score]:
    """A task's score as the scores table has it."""
    declared = {score.name: score for score in plan.plugin.spec.scores}

    def convert(score: TaskScore, status: str, reason: str | None) -> Score:
        known = score.estimate if isinstance(score.estimate, Estimate) else None
        if known is None and status == "ok":
            status, reason = "skipped", str(score.estimate)
        level, warning = interval_warning(known, score.n_real, score.n_fake) if known else (0, None)
        excess = score.excess
        return Score(
            metric=f"{score.name}_{score.variant}" if score.variant else score.name,
            plugin=plan.plugin.spec.name,
            encoder=encoder.name if encoder else "",
            subset=score.subset,
            higher_is_better=declared[score.name].higher_is_better,
            n_real=score.n_real,
            n_fake=score.n_fake,
            status=status,
            value=known.value if known else None,
            standard_error=known.standard_error if known else None,
            ci_low=known.ci_low if known else None,
            ci_high=known.ci_high if known else None,
            reason=known.reason if known else reason,
            warning=warning,
            warning_level=level,
            floor=score.control,
            matched=known.value if known and score.control is not None else None,
            excess=excess.value if excess else None,
            excess_low=excess.ci_low if excess else None,
            excess_high=excess.ci_high if excess else None,
            n_floor=score.n_fake if score.control is not None else None,
            encoder_id=encoder.id if encoder else "",
            basis=basis,
        )

    return convert


def _check_result(result: object, plan: TaskPlan, sets: Mapping[str, ImageSet]) -> None:
    """Raises `ValueError` for what a plugin must not return."""
    if not isinstance(result, TaskResult):
        raise ValueError(f"it returned a {type(result).__name__}, not a TaskResult")
    declared = {score.name: score for score in plan.plugin.spec.scores}
    seen: set[tuple[str, str, str]] = set()
    for score in result.scores:
        key = (score.name, score.variant, score.subset)
        if score.name not in declared:
            raise ValueError(f"it returned {score.name!r}, which it does not declare")
        if key in seen:
            raise ValueError(f"it returned {score.name!r} twice for {key[1:]}")
        seen.add(key)
        if score.subset not in (OVERALL, MACRO, *FINDINGS):
            raise ValueError(f"it returned {score.name!r} for an unknown subset {score.subset!r}")
        known = score.estimate if isinstance(score.estimate, Estimate) else None
        if known is not None and not declared[score.name].holds(known.value):
            raise ValueError(f"it returned {known.value} for {score.name!r}")
    for values in result.values:
        if len(values.values) != len(sets[values.images]):
            raise ValueError(f"{values.name!r} has {len(values.values)} values")
    for pairs in result.pairs:
        for at, of in ((pairs.at, pairs.images), (pairs.others_at, pairs.others)):
            inside = not len(at) or 0 <= min(at) <= max(at) < len(sets[of])
            if len(at) != len(pairs.values) or not inside:
                raise ValueError(f"the pairs {pairs.kind!r} name images that are not there")


def image_id(pool: str | None, name: str) -> str:
    """What the store calls an image of a pool."""
    return f"{pool}/{name}" if pool else name


def _samples(
    result: TaskResult,
    sets: Mapping[str, ImageSet],
    pools: Mapping[ImageNeed, str | None],
    encoder: str,
) -> Iterator[pd.DataFrame]:
    for item in result.values:
        images = sets[item.images]
        if images.need.source == "real":
            continue
        pool = pools[images.need]
        ids = images.prompts.table["prompt_id"].to_numpy()[images.rows]
        yield pd.DataFrame(
            {
                "image_id": [image_id(pool, name) for name in images.ids],
                "prompt_id": ids,
                "metric": item.name,
                "encoder": encoder,
                "value": np.asarray(item.values, np.float64),
            }
        )


def _neighbours(
    result: TaskResult,
    sets: Mapping[str, ImageSet],
    pools: Mapping[ImageNeed, str | None],
    plugin: str,
    encoder: str,
) -> Iterator[pd.DataFrame]:
    for pairs in result.pairs:
        one, other = sets[pairs.images], sets[pairs.others]
        pool = pools.get(one.need)
        at, others = pairs.at.tolist(), pairs.others_at.tolist()
        yield pd.DataFrame(
            {
                "plugin": plugin,
                "encoder": encoder,
                "kind": pairs.kind,
                "rank": np.arange(1, len(at) + 1),
                "value": np.asarray(pairs.values, np.float64),
                "flagged": np.asarray(pairs.flagged, bool),
                "image_id": [image_id(pool, one.ids[i]) for i in at],
                "prompt_id": one.prompts.table["prompt_id"].to_numpy()[one.rows[pairs.at]],
                "pool": pool,
                "path": [str(one.paths[i]) for i in at],
                "sha256": [one.keys[i] for i in at],
                "other_id": [image_id(pools.get(other.need), other.ids[i]) for i in others],
                "other_side": other.need.side,
                "other_real": other.need.source == "real",
                "other_path": [str(other.paths[i]) for i in others],
                "other_sha256": [other.keys[i] for i in others],
            }
        )
