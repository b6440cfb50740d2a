"""Metrics over subsets of one real and one generated side."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from chexgenbench.errors import PLUGIN_FAULTS
from chexgenbench.features.extract import EncoderPlan, read_texts
from chexgenbench.files import digest
from chexgenbench.registry import Plugin
from chexgenbench.scoring.floor import Floors, keep_influence, take_floor
from chexgenbench.scoring.subsets import subset_masks
from chexgenbench.splits.prompts import PromptTable
from chexgenbench.statistics import Estimate, mean_estimate
from chexgenbench.statistics.difference import UnitInfluence, macro_average
from chexgenbench.types import (
    FINDINGS,
    MACRO,
    MetricSpec,
    NotApplicable,
    Parameters,
    Sample,
    SampleMetric,
    ScoreSpec,
    SetMetric,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


FEW = 50
"""Images a side below which a score is marked."""

_Named: TypeAlias = Mapping[str, Estimate]


@dataclass(frozen=True)
class MetricPlan:
    """A metric chosen for a run, and the encoders it is taken on."""

    plugin: Plugin[MetricSpec]
    parameters: Parameters
    encoders: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Sides:
    """The images of both sides in canonical order, by the hash of their content.

    Attributes:
        real: one entry a row of `prompts`; None where there is no readable image.
        fake: one entry a generated image; None where it is not readable.
        fake_rows: int64 [n], the row of `prompts` that each generated image answers.
    """

    prompts: PromptTable
    real: Sequence[str | None]
    fake: Sequence[str | None]
    fake_rows: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number: a metric on an encoder over a subset, or why there is none.

    Attributes:
        n_real: real images used; 0 for a score of single images.
        warning_level: 0 none; 1 the interval is wider than the value; 2 fewer than 50 images a
            side; 3 the statistic itself is unsound here (it says why in `warning`).
        floor, matched: what the metric says of real against real images, halves of the subset by
            patient, and of real against generated images at those same sizes (`n_floor` a side).
        excess: matched less floor, with its paired interval.
        basis: hash of all but the generated images; scores of one basis and `n_fake` compare.
        influence: what each patient or prompt contributed.
    """

    metric: str
    plugin: str
    encoder: str
    subset: str
    higher_is_better: bool
    n_real: int
    n_fake: int
    status: str
    value: float | None = None
    standard_error: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    reason: str | None = None
    warning: str | None = None
    warning_level: int = 0
    floor: float | None = None
    matched: float | None = None
    excess: float | None = None
    excess_low: float | None = None
    excess_high: float | None = None
    n_floor: int | None = None
    encoder_id: str = ""
    basis: str = ""
    influence: UnitInfluence | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class SampleScore:
    """A value for each generated image: float64 [n], NaN where the image was not readable."""

    metric: str
    encoder: str
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Encoded:
    """Both sides under one encoder, unreadable images left out."""

    encoder: str
    encoder_id: str
    real: Sample
    real_rows: NDArray[np.int64]
    fake: Sample
    fake_rows: NDArray[np.int64]
    fake_kept: NDArray[np.bool_]
    names: NDArray[np.str_]  # of each independent unit, by its code


@dataclass(frozen=True, eq=False)
class _Setting:
    """What is the same for all scores of one call."""

    masks: Mapping[str, NDArray[np.bool_]]
    basis: str
    seed: int
    floors: Floors

    def basis_of(self, plan: MetricPlan, encoded: _Encoded, subset: str) -> str:
        rows = self.masks[subset] if subset in self.masks else np.asarray(list(FINDINGS))
        facts = [self.basis, encoded.encoder_id, plan.plugin.identity()]
        facts += [plan.parameters.identity(), hashlib.sha256(rows.tobytes()).hexdigest()]
        return digest(facts)[:16]


def score(
    sides: Sides,
    metrics: Sequence[MetricPlan],
    encoders: Sequence[EncoderPlan],
    *,
    seed: int,
    masks: Mapping[str, NDArray[np.bool_]] | None = None,
    basis: str = "",
    floors: Floors | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> tuple[list[Score], list[SampleScore]]:
    """Takes every metric over every subset; one that fails is recorded and the others stand.

    Features are read once an encoder, and rows stay in canonical order, so that a score depends
    neither on batches nor on what was computed first.

    Args:
        seed: for metrics that draw at random.
        masks: the subsets, bool [rows of the prompts table] each; by default ``overall`` and the
            14 findings. Where all findings are there, ``macro`` is their mean.
        basis: identity of the real side, prompts, protocol and code.
        floors: what was already found of real against real images; shared by the models of a run.
        advance: told the number of (metric, encoder, subset) done.
    """
    scores: list[Score] = []
    samples: list[SampleScore] = []
    chosen = subset_masks(sides.prompts) if masks is None else masks
    setting = _Setting(chosen, basis, seed, {} if floors is None else floors)
    for plan in encoders:
        used = [metric for metric in metrics if plan.name in metric.encoders]
        if not used:
            continue
        encoded = _read(sides, plan, text=any(metric.plugin.spec.text for metric in used))
        for metric in used:
            found: list[Score] = []
            if metric.plugin.spec.metric == "sample":
                found, per_image = _sample_metric(metric, encoded, setting, sides)
                samples.extend(per_image)
                advance(len(chosen))
            else:
                for subset in chosen:
                    found.extend(_set_metric(metric, encoded, setting, subset))
                    advance(1)
            scores.extend(found)
            scores.extend(_macro(metric, encoded, setting, found))
    return scores, samples


def _read(sides: Sides, plan: EncoderPlan, *, text: bool) -> _Encoded:
    table = sides.prompts.table
    patients = sides.prompts.patient_codes()
    real_rows = np.asarray([i for i, key in enumerate(sides.real) if key is not None], np.int64)
    fake_kept = np.asarray([key is not None for key in sides.fake], np.bool_)
    fake_rows = sides.fake_rows[fake_kept]
    texts: NDArray[np.float32] | None = None
    if text:
        texts = read_texts(plan, table["prompt"].tolist())

    def sample(keys: Sequence[str | None], rows: NDArray[np.int64]) -> Sample:
        return Sample(
            outputs=plan.images.read([key for key in keys if key is not None]),
            text=None if texts is None else texts[rows],
            prompts=rows,
            patients=None if patients is None else patients[rows],
        )

    codes = np.arange(len(table)) if patients is None else patients
    names = np.empty(int(codes.max(initial=-1)) + 1, dtype=object)
    # The first prompt of a patient names the unit, so that no patient's id is needed.
    names[codes[::-1]] = table["prompt_id"].to_numpy()[::-1]
    return _Encoded(
        encoder=plan.name,
        encoder_id=plan.id,
        names=names.astype(np.str_),
        real=sample(sides.real, real_rows),
        real_rows=real_rows,
        fake=sample(sides.fake, fake_rows),
        fake_rows=fake_rows,
        fake_kept=fake_kept,
    )


def _set_metric(
    plan: MetricPlan, encoded: _Encoded, setting: _Setting, subset: str
) -> Iterator[Score]:
    mask = setting.masks[subset]
    real = encoded.real.take(np.flatnonzero(mask[encoded.real_rows]))
    fake = encoded.fake.take(np.flatnonzero(mask[encoded.fake_rows]))

    def compare(real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        metric = plan.plugin.create(plan.parameters, setting.seed)
        assert isinstance(metric, SetMetric)  # Plugin.load has checked the class
        return metric.score(real, fake)

    def run() -> Mapping[str, Estimate]:
        _require(len(fake) > 0, "no generated image in this subset")
        return compare(real, fake)

    def keep(_name: str, estimate: Estimate) -> UnitInfluence:
        return keep_influence(estimate, encoded.names[fake.units], encoded.names[real.units])

    basis = setting.basis_of(plan, encoded, subset)
    found = list(_scores(plan, encoded, subset, basis, len(real), len(fake), run, keep))
    if plan.plugin.spec.floor and any(item.status == "ok" for item in found):
        floors: dict[str, dict[str, Any]] = {}
        try:
            floors = take_floor(
                compare, real, fake, encoded.names, setting.floors, basis, seed=setting.seed
            )
        except PLUGIN_FAULTS as error:  # the score itself stands
            why = f"no floor: {type(error).__name__}: {error}"
            found = [
                replace(item, warning="; ".join(filter(None, (item.warning, why))))
                for item in found
            ]
        found = [replace(item, **floors.get(item.metric, {})) for item in found]
    yield from found


def _sample_metric(
    plan: MetricPlan, encoded: _Encoded, setting: _Setting, sides: Sides
) -> tuple[list[Score], list[SampleScore]]:
    fake = encoded.fake
    samples: list[SampleScore] = []
    fault: Exception | SystemExit | None = None
    values: dict[str, NDArray[np.float64]] = {}
    try:
        _require(len(fake) > 0, "no generated image")
        metric = plan.plugin.create(plan.parameters, setting.seed)
        assert isinstance(metric, SampleMetric)
        for name, column in metric.values(fake).items():
            array = np.asarray(column, np.float64)
            if array.shape != (len(fake),):
                raise ValueError(f"{name!r} has shape {array.shape}, not ({len(fake)},)")
            values[name] = array
            spread = np.full(len(sides.fake), np.nan)
            spread[encoded.fake_kept] = array
            samples.append(SampleScore(name, encoded.encoder, spread))
    except PLUGIN_FAULTS as error:
        fault = error

    scores: list[Score] = []
    for subset, mask in setting.masks.items():
        index = np.flatnonzero(mask[encoded.fake_rows])

        def run(index: NDArray[np.int64] = index) -> Mapping[str, Estimate]:
            if fault is not None:
                raise fault
            _require(len(index) > 0, "no generated image in this subset")
            # Images of one prompt share it, and prompts of one patient share the patient.
            return {
                name: mean_estimate(array[index], groups=fake.units[index])
                for name, array in values.items()
            }

        def keep(_name: str, estimate: Estimate, index: NDArray[np.int64] = index) -> UnitInfluence:
            return keep_influence(estimate, encoded.names[fake.units[index]])

        basis = setting.basis_of(plan, encoded, subset)
        scores.extend(_scores(plan, encoded, subset, basis, 0, len(index), run, keep))
    return scores, samples


def _macro(
    plan: MetricPlan, encoded: _Encoded, setting: _Setting, found: Sequence[Score]
) -> Iterator[Score]:
    """The mean over the findings of each score of a metric."""
    if not set(FINDINGS) <= set(setting.masks):
        return
    any_finding = np.logical_or.reduce([setting.masks[name] for name in FINDINGS])
    n_fake = int(any_finding[encoded.fake_rows].sum())
    basis = setting.basis_of(plan, encoded, MACRO)
    parts = {
        declared.name: [s for s in found if s.metric == declared.name and s.subset in FINDINGS]
        for declared in plan.plugin.spec.scores
    }
    kept: dict[str, UnitInfluence] = {}

    def run() -> _Named:
        means: dict[str, Estimate] = {}
        for name, row in parts.items():
            there = [part.influence for part in row if part.influence is not None]
            if there:
                kept[name] = macro_average(there)
                means[name] = kept[name].estimate()
        _require(bool(means), "no finding has this score")
        return means

    n_real = int(any_finding[encoded.real_rows].sum()) if any(s.n_real for s in found) else 0
    for row in _scores(
        plan, encoded, MACRO, basis, n_real, n_fake, run, lambda name, _: kept[name]
    ):
        there = [part for part in parts[row.metric] if part.status == "ok"]
        if not there:
            row = replace(row, status="skipped", reason="no finding has this score")
        lacking = [part.subset for part in parts[row.metric] if part.status != "ok"]
        if row.status == "ok":
            notes = [row.warning] if row.warning else []
            if lacking:
                notes.append(f"mean of {len(there)} findings, without {', '.join(lacking)}")
            row = replace(
                row,
                warning="; ".join(notes) or None,
                warning_level=max(part.warning_level for part in there),
                # Means of other findings do not compare.
                basis=digest([row.basis, [part.basis for part in there]])[:16],
            )
        yield row


_NOTHING = Estimate(math.nan)


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise NotApplicable(reason)


def _scores(
    plan: MetricPlan,
    encoded: _Encoded,
    subset: str,
    basis: str,
    n_real: int,
    n_fake: int,
    run: Callable[[], _Named],
    keep: Callable[[str, Estimate], UnitInfluence],
) -> Iterator[Score]:
    spec = plan.plugin.spec
    estimates: _Named = {}
    status, reason = "ok", None
    try:
        estimates = dict(run())
    except NotApplicable as error:
        status, reason = "skipped", str(error)
    except PLUGIN_FAULTS as error:  # a metric is a plugin: whatever it raises, the others stand
        status, reason = "failed", f"{type(error).__name__}: {error}"
    for declared in spec.scores:
        estimate = estimates.get(declared.name)
        row_status, row_reason = status, reason
        if status == "ok":
            row_reason = _fault(estimate, declared)
            row_status = "failed" if row_reason else "ok"
        good = estimate if row_status == "ok" and isinstance(estimate, Estimate) else None
        known = good or _NOTHING
        level, warning = interval_warning(good, n_real, n_fake)
        yield Score(
            metric=declared.name,
            plugin=spec.name,
            encoder=encoded.encoder,
            subset=subset,
            higher_is_better=declared.higher_is_better,
            n_real=n_real,
            n_fake=n_fake,
            status=row_status,
            value=good.value if good else None,
            standard_error=known.standard_error,
            ci_low=known.ci_low,
            ci_high=known.ci_high,
            reason=good.reason if good else row_reason,
            warning=warning,
            warning_level=level,
            encoder_id=encoded.encoder_id,
            basis=basis,
            influence=keep(declared.name, good) if good else None,
        )


def interval_warning(estimate: Estimate | None, n_real: int, n_fake: int) -> tuple[int, str | None]:
    """The level of `Score.warning_level`, and all that there is to say."""
    if estimate is None:
        return 0, None
    notes: list[tuple[int, str]] = []
    if estimate.warning:
        notes.append((3, estimate.warning))
    # A score of one side alone says 0 of the other.
    fewest = min(n_real, n_fake) or max(n_real, n_fake)
    if fewest < FEW:
        notes.append((2, f"n < {FEW}: {fewest} images"))
    if estimate.ci_low is not None and estimate.ci_high is not None:
        width = estimate.ci_high - estimate.ci_low
        if width > abs(estimate.value):
            notes.append((1, "the interval is wider than the value"))
    if not notes:
        return 0, None
    return max(level for level, _ in notes), "; ".join(text for _, text in notes)


def _fault(estimate: object, declared: ScoreSpec) -> str | None:
    """What is wrong with what a metric returned for a score; it may be anything."""
    if estimate is None:
        return f"the metric returned no {declared.name!r}"
    if not isinstance(estimate, Estimate):
        return f"the metric returned a {type(estimate).__name__} for {declared.name!r}"
    if not declared.holds(estimate.value):
        return f"the metric returned {estimate.value} for {declared.name!r}"
    return None
