"""Metrics over subsets of one real and one generated side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chexgenbench.features.extract import EncoderPlan, read_texts
from chexgenbench.registry import Plugin
from chexgenbench.scoring.subsets import subset_names
from chexgenbench.splits.prompts import PromptTable
from chexgenbench.statistics import Estimate, mean_estimate
from chexgenbench.types import (
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
    """One number: a metric on an encoder over a subset, or why there is none."""

    metric: str
    plugin: str
    encoder: str
    subset: str
    higher_is_better: bool
    n_real: int | None
    n_fake: int
    status: str
    value: float | None = None
    standard_error: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    reason: str | None = None
    warning: str | None = None


@dataclass(frozen=True, eq=False)
class SampleScore:
    """A value for each generated image: float64 [n], NaN where the image was not readable."""

    metric: str
    encoder: str
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Encoded:
    """Both sides under one encoder, unreadable images left out."""

    real: Sample
    real_rows: NDArray[np.int64]
    fake: Sample
    fake_rows: NDArray[np.int64]
    fake_kept: NDArray[np.bool_]


def score(
    sides: Sides,
    metrics: Sequence[MetricPlan],
    encoders: Sequence[EncoderPlan],
    *,
    seed: int,
    advance: Callable[[int], None] = lambda _count: None,
) -> tuple[list[Score], list[SampleScore]]:
    """Takes every metric over every subset; one that fails is recorded and the others stand.

    Features are read once an encoder, and rows stay in canonical order, so that a score depends
    neither on batches nor on what was computed first.

    Args:
        seed: for metrics that draw at random.
        advance: told the number of (metric, encoder, subset) done.
    """
    scores: list[Score] = []
    samples: list[SampleScore] = []
    masks = {name: sides.prompts.subset_mask(name) for name in subset_names()}
    for plan in encoders:
        used = [metric for metric in metrics if plan.name in metric.encoders]
        if not used:
            continue
        encoded = _read(sides, plan, text=any(metric.plugin.spec.text for metric in used))
        for metric in used:
            if metric.plugin.spec.metric == "sample":
                new, per_image = _sample_metric(metric, plan.name, encoded, masks, seed, sides)
                samples.extend(per_image)
                scores.extend(new)
                advance(len(masks))
            else:
                for subset, mask in masks.items():
                    scores.extend(_set_metric(metric, plan.name, encoded, subset, mask, seed))
                    advance(1)
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

    return _Encoded(
        real=sample(sides.real, real_rows),
        real_rows=real_rows,
        fake=sample(sides.fake, fake_rows),
        fake_rows=fake_rows,
        fake_kept=fake_kept,
    )


def _take(sample: Sample, index: NDArray[np.int64]) -> Sample:
    return Sample(
        outputs={name: values[index] for name, values in sample.outputs.items()},
        text=None if sample.text is None else sample.text[index],
        prompts=sample.prompts[index],
        patients=None if sample.patients is None else sample.patients[index],
    )


def _set_metric(
    plan: MetricPlan,
    encoder: str,
    encoded: _Encoded,
    subset: str,
    mask: NDArray[np.bool_],
    seed: int,
) -> Iterator[Score]:
    real = _take(encoded.real, np.flatnonzero(mask[encoded.real_rows]))
    fake = _take(encoded.fake, np.flatnonzero(mask[encoded.fake_rows]))

    def run() -> Mapping[str, Estimate]:
        _require(len(fake) > 0, "no generated image in this subset")
        metric = plan.plugin.create(plan.parameters, seed)
        assert isinstance(metric, SetMetric)  # Plugin.load has checked the class
        return metric.score(real, fake)

    yield from _scores(plan, encoder, subset, len(real), len(fake), run)


def _sample_metric(
    plan: MetricPlan,
    encoder: str,
    encoded: _Encoded,
    masks: Mapping[str, NDArray[np.bool_]],
    seed: int,
    sides: Sides,
) -> tuple[list[Score], list[SampleScore]]:
    fake = encoded.fake
    samples: list[SampleScore] = []
    fault: Exception | None = None
    values: dict[str, NDArray[np.float64]] = {}
    try:
        _require(len(fake) > 0, "no generated image")
        metric = plan.plugin.create(plan.parameters, seed)
        assert isinstance(metric, SampleMetric)
        for name, column in metric.values(fake).items():
            array = np.asarray(column, np.float64)
            if array.shape != (len(fake),):
                raise ValueError(f"{name!r} has shape {array.shape}, not ({len(fake)},)")
            values[name] = array
            spread = np.full(len(sides.fake), np.nan)
            spread[encoded.fake_kept] = array
            samples.append(SampleScore(name, encoder, spread))
    except Exception as error:
        fault = error

    scores: list[Score] = []
    for subset, mask in masks.items():
        index = np.flatnonzero(mask[encoded.fake_rows])

        def run(index: NDArray[np.int64] = index) -> Mapping[str, Estimate]:
            if fault is not None:
                raise fault
            _require(len(index) > 0, "no generated image in this subset")
            # Images of one prompt share it, and prompts of one patient share the patient.
            groups = fake.prompts if fake.patients is None else fake.patients
            return {
                name: mean_estimate(array[index], groups=groups[index])
                for name, array in values.items()
            }

        scores.extend(_scores(plan, encoder, subset, None, len(index), run))
    return scores, samples


_NOTHING = Estimate(math.nan)


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise NotApplicable(reason)


def _scores(
    plan: MetricPlan,
    encoder: str,
    subset: str,
    n_real: int | None,
    n_fake: int,
    run: Callable[[], Mapping[str, Estimate]],
) -> Iterator[Score]:
    spec = plan.plugin.spec
    estimates: Mapping[str, Estimate] = {}
    status, reason = "ok", None
    try:
        estimates = dict(run())
    except NotApplicable as error:
        status, reason = "skipped", str(error)
    except Exception as error:  # a metric is a plugin: whatever it raises, the others stand
        status, reason = "failed", f"{type(error).__name__}: {error}"
    for declared in spec.scores:
        estimate = estimates.get(declared.name)
        row_status, row_reason = status, reason
        if status == "ok":
            row_reason = _fault(estimate, declared)
            row_status = "failed" if row_reason else "ok"
        good = estimate if row_status == "ok" and isinstance(estimate, Estimate) else None
        known = good or _NOTHING
        yield Score(
            metric=declared.name,
            plugin=spec.name,
            encoder=encoder,
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
            warning=known.warning,
        )


def _fault(estimate: object, declared: ScoreSpec) -> str | None:
    """What is wrong with what a metric returned for a score; it may be anything."""
    if estimate is None:
        return f"the metric returned no {declared.name!r}"
    if not isinstance(estimate, Estimate):
        return f"the metric returned a {type(estimate).__name__} for {declared.name!r}"
    value = estimate.value
    # Rounding may carry a share a last bit beyond 1.
    slack = 1e-9 * max(1.0, abs(value))
    if not (math.isfinite(value) and declared.lowest - slack <= value <= declared.highest + slack):
        return f"the metric returned {value} for {declared.name!r}"
    return None
