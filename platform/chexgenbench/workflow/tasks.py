"""Task metrics: the sets of images that they ask for, and the stages that serve them.

A set of real images is a part of the split's test or training side. A set that the model makes is
the run's own generation where it asks for just that, else a *pool*: one more generation of the
model, for other rows or more seeds. Equal needs of several metrics are one set.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexgenbench import provenance
from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.features import EncoderPlan
from chexgenbench.files import digest
from chexgenbench.images import BadImage
from chexgenbench.scoring import MACRO, OVERALL, Score, interval_warning
from chexgenbench.splits.prompts import PromptTable, check_images
from chexgenbench.statistics import Estimate
from chexgenbench.store.records import SCHEMAS
from chexgenbench.types import (
    FINDINGS,
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
    """

    plugin: Plugin[MetricSpec]
    parameters: Parameters
    context: Context
    encoders: tuple[str, ...]
    needs: Mapping[str, ImageNeed]
    weights: Mapping[str, str]

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
) -> TaskPlan:
    """Raises `ChexGenBenchError` where the plugin's own code fails, or asks for what cannot be."""
    found = plugin.load()
    assert issubclass(found, TaskMetric)  # Plugin.load has checked the class
    needs = dict(plugin.call("cannot say what it needs", lambda: found.needs(parameters)))
    for name, need in needs.items():
        real = need.source == "real"
        if need.repeats < 1 or (real and need.repeats != 1) or (need.prompts or 1) < 1:
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
        found = task.plugin.load()
        assert issubclass(found, TaskMetric)
        chosen = {name: tables.rows(need) for name, need in task.needs.items()}
        check = partial(found.check, task.parameters, task.context, chosen)
        said = task.plugin.call("cannot check its rows", partial(_listed, check))
        remarks += [f"{task.plugin.name}: {remark.rstrip('.')}" for remark in said]
    return remarks


def _listed(check: Callable[[], Sequence[str]]) -> tuple[str, ...]:
    return tuple(check())


def find_leakage(tables: Tables) -> list[str]:
    """What stands on both sides of the split, by lines of the files: patients, images and ids say
    nothing here, since they may be credentialed."""
    test, training = tables.test, tables.training
    if training is None:
        return []
    found: list[str] = []
    for column, what in (("patient_id", "the same patient"), ("image_path", "the same image")):
        same_root = test.images_root == training.images_root
        if column == "image_path" and not same_root:
            continue
        mine = test.table[["line", column]].dropna()
        theirs = training.table[["line", column]].dropna().drop_duplicates(column)
        both = mine.merge(theirs, on=column, suffixes=("_test", "_training"))
        pairs = zip(both["line_test"], both["line_training"], strict=True)
        found += [
            f"line {one} of {test.source_file.name} and line {two} of "
            f"{training.source_file.name}: {what}"
            for one, two in pairs
        ]
    return found


def refuse_leakage(tasks: Sequence[TaskPlan], tables: Tables, *, allow: bool) -> list[str]:
    """Checks that test and training side share nothing, where a task metric uses both.

    Raises:
        UserError: they do, and that was not allowed; with the lines.
    """
    sides = {need.side for task in tasks for need in task.needs.values()}
    if len(sides) < 2:
        return []
    found = find_leakage(tables)
    if not found:
        return []
    listed = "\n".join(found[:_LISTED])
    more = f"\n... and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    if not allow:
        raise UserError(
            f"The training and the test side of the split {tables.test.name!r} overlap in "
            f"{len(found)} rows, so that no privacy or utility score would hold:\n{listed}{more}",
            hint="Take those rows out of one side. To see what it does: --allow-leakage.",
        )
    return [f"training and test side overlap in {len(found)} rows: the scores do not hold"]


# --- images ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Made:
    """The images of one generation as a set needs them."""

    prompts: PromptTable
    rows: NDArray[np.int64]
    repeats: NDArray[np.int64]
    ids: Sequence[str]
    keys: Sequence[str]
    paths: Sequence[Path]


def real_images(
    tables: Tables,
    needs: Iterable[ImageNeed],
    hashes: HashCache,
    stage: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
    say: Callable[[str], None],
) -> dict[ImageNeed, Made]:
    """The real images of each need, drawn where the split is procedural, and hashed.

    Unreadable ones are left out and counted; a side without images has none.
    """
    found: dict[ImageNeed, Made] = {}
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
        kept = [(row, key) for row, key in zip(rows, keys, strict=True) if key is not None]
        if len(kept) < len(named):
            say(f"{len(named) - len(kept)} real images of the {need.side} side cannot be read")
        at = np.asarray([row for row, _ in kept], np.int64)
        found[need] = Made(
            prompts=table,
            rows=at,
            repeats=np.zeros(len(at), np.int64),
            ids=table.table["prompt_id"].iloc[at].tolist(),
            keys=[key for _, key in kept],
            paths=[table.path(row) for row, _ in kept],
        )
    return found


def real_identity(found: Mapping[ImageNeed, Made]) -> dict[str, str]:
    """What of each real set a score depends on: rows, labels, patients and images."""
    return {
        need.name: digest([made.prompts.fingerprint(), made.rows.tolist(), list(made.keys)])
        for need, made in found.items()
    }


@dataclass(frozen=True, eq=False)
class Sets:
    """The sets of images of one model's run, and how they are encoded."""

    made: Mapping[ImageNeed, Made]
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
        bad = self.extract(need.name, list(zip(found.keys, found.paths, strict=True)), encoder)
        kept = np.flatnonzero([key not in bad for key in found.keys])
        if len(kept) < len(result):
            self.say(f"{len(result) - len(kept)} images of {need.name} cannot be read")
            result = result.take(kept)
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
) -> Found:
    """Runs every task metric on each of its encoders; one that fails is recorded and the others
    stand.

    Args:
        pools: the pool of each set that the model made; None for the run's own images.
        basis: identity of the real sides, protocol and code.
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
                metric = plan.plugin.create(plan.parameters, plan.context)
                assert isinstance(metric, TaskMetric)
                result = metric.run(task)
                _check_result(result, plan, held)
            except NotApplicable as error:
                status, reason = "skipped", str(error)
            except UserError:
                raise
            except Exception as error:  # a plugin: whatever it raises, the others stand
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
    return Found(
        scores=scores,
        samples=_table("sample_scores", samples, run_id),
        neighbours=_table("neighbours", neighbours, run_id),
        notes=notes,
    )


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
            matched=known.value if known and excess is not None else None,
            excess=excess.value if excess else None,
            excess_low=excess.ci_low if excess else None,
            excess_high=excess.ci_high if excess else None,
            n_floor=score.n_fake if excess else None,
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
        if isinstance(score.estimate, Estimate):
            spec, value = declared[score.name], score.estimate.value
            slack = 1e-9 * max(1.0, abs(value)) if math.isfinite(value) else 0.0
            if not (math.isfinite(value) and spec.lowest - slack <= value <= spec.highest + slack):
                raise ValueError(f"it returned {value} for {score.name!r}")
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
