"""From predictions on the real test images to scores with intervals, and to differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chexgenbench import FINDINGS, ImageSet, NotApplicable, ScoreSpec, TaskScore
from chexgenbench.statistics.estimate import Estimate

from .data import targets, untestable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from chexgenbench.statistics.arrays import FloatArray
    from chexgenbench.statistics.difference import UnitInfluence

    Table = dict[tuple[str, str], UnitInfluence]

AUROC = ScoreSpec(
    name="auroc",
    higher_is_better=True,
    lowest=0.0,
    highest=1.0,
    summary="area under the ROC curve on real test images; chance is 0.5",
    formula=r"\Pr [ p_+ > p_- ] + \tfrac{1}{2} \Pr [ p_+ = p_- ]",
)
AUROC_DIFFERENCE = ScoreSpec(
    name="auroc_difference",
    higher_is_better=True,
    lowest=-1.0,
    highest=1.0,
    summary="AUROC of one training regime less that of another, paired by patient",
    formula=r"\mathrm{AUROC}(A) - \mathrm{AUROC}(B)",
)
AUPRC = ScoreSpec(
    name="auprc",
    higher_is_better=True,
    lowest=0.0,
    highest=1.0,
    summary="average precision; chance is the share of positives",
    formula=r"\frac{1}{n_+} \sum_{i \in +} \mathrm{precision}(p \ge p_i)",
)
AT_THRESHOLD = tuple(
    ScoreSpec(
        name=name,
        higher_is_better=True,
        lowest=0.0,
        highest=1.0,
        summary=summary,
        formula=formula,
    )
    for name, summary, formula in (
        (
            "f1",
            "F1 at the threshold that was best in validation; overall: micro",
            r"\frac{2 \, \mathrm{TP}}{2 \, \mathrm{TP} + \mathrm{FP} + \mathrm{FN}}",
        ),
        (
            "precision",
            "share of calls that are right, at that threshold; overall: micro",
            r"\frac{\mathrm{TP}}{\mathrm{TP} + \mathrm{FP}}",
        ),
        (
            "recall",
            "share of findings that are called, at that threshold; overall: micro",
            r"\frac{\mathrm{TP}}{\mathrm{TP} + \mathrm{FN}}",
        ),
    )
)
ECE = ScoreSpec(
    name="ece",
    higher_is_better=False,
    lowest=0.0,
    highest=1.0,
    summary="expected calibration error over 15 bins; overall: over all entries",
    formula=r"\sum_b \frac{1}{n} \left| \sum_{i \in b} (l_i - p_i) \right|",
)

ONE_SEED = "one training: how much another would differ is not in the interval"


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What classifiers of one regime say of the test images.

    Attributes:
        probabilities: [seeds, n, 14], in the order of the test set.
        thresholds: [seeds, 14], from which on a finding is called present; None: no such scores.
        n_real, n_fake: images that a training took from either side.
        refits: [2 k, n, 14], where a training knows no chance: what is said after k halvings of the
            training patients by fits to one half and to the other, for the error from these.
    """

    probabilities: NDArray[np.float32]
    thresholds: NDArray[np.float64] | None
    n_real: int
    n_fake: int
    refits: NDArray[np.float32] | None = None


def best_thresholds(
    probabilities: NDArray[np.float32], truth: NDArray[np.float32]
) -> NDArray[np.float64]:
    """For each column of [n, k] the probability from which on F1 is highest in validation.

    The lowest of several equal ones; one half where validation has fewer than two positives, so
    that nothing can be chosen.

    >>> import numpy as np
    >>> best_thresholds(np.array([[0.1], [0.3], [0.4]]), np.array([[0.0], [1.0], [1.0]])).round(6)
    array([0.3])
    """
    import numpy as np

    found = np.full(truth.shape[1], 0.5)
    for column, (chance, label) in enumerate(zip(probabilities.T, truth.T, strict=True)):
        known = ~np.isnan(label)
        positive = label[known] == 1.0
        if positive.sum() < 2:
            continue
        order = np.argsort(-chance[known], kind="stable")
        cuts = chance[known][order]
        hits = np.cumsum(positive[order])
        f1 = 2 * hits / (np.arange(1, cuts.size + 1) + positive.sum())
        # Equal probabilities are called together: at the last of them, and the lowest cut first.
        last = np.flatnonzero(np.append(cuts[1:] < cuts[:-1], True))[::-1]
        found[column] = cuts[last[np.argmax(f1[last])]]
    return found


def utility_scores(
    test: ImageSet, regimes: Mapping[str, Predictions], *, full: bool = True, prefix: str = ""
) -> list[TaskScore]:
    """The scores of each regime and their differences, over the findings that can be tested.

    Args:
        test: the real test images.
        regimes: predictions by variant.
        full: also average precision and calibration.
        prefix: put before the names of scores.

    Returns:
        Means over the seeds. Errors are those of drawing other test patients and of training again:
        on the same images with another seed, or, where there are `refits`, on other patients.
        Findings that cannot be tested stand there with their reason, and are no part of a mean.

    Raises:
        NotApplicable: no finding can be tested on the images that could be read.
    """
    patients = test.patients
    truth, untested = targets(test.labels, "ignore"), untestable(test.labels, patients)
    tested = [name for name in FINDINGS if name not in untested]
    if not tested:
        raise NotApplicable(f"no finding can be scored: {FINDINGS[0]}: {untested[FINDINGS[0]]}")
    columns = [FINDINGS.index(name) for name in tested]

    def table(chance: NDArray[np.float32], cut: NDArray[np.float64] | None) -> Table:
        cuts = None if cut is None else cut[columns]
        return _table(chance[:, columns], truth[:, columns], tested, patients, cuts, full)

    tables, refits = {}, {}
    for variant, made in regimes.items():
        tables[variant] = [
            table(chance, None if made.thresholds is None else made.thresholds[seed])
            for seed, chance in enumerate(made.probabilities)
        ]
        again = () if made.refits is None else made.refits
        refits[variant] = [table(chance, None) for chance in again]
    found: list[TaskScore] = []
    for variant, made in regimes.items():
        keys = list(tables[variant][0])
        results: list[tuple[str, str, str, Estimate | str]] = [
            (
                key[0],
                variant,
                key[1],
                mean_score(_column(tables[variant], key), _column(refits[variant], key)),
            )
            for key in keys
        ]
        if "real" in regimes and variant != "real":
            results += [
                (
                    "auroc_difference",
                    f"{variant}_minus_real",
                    key[1],
                    mean_difference(
                        _pairs(tables["real"], tables[variant], key),
                        _pairs(refits["real"], refits[variant], key),
                    ),
                )
                for key in keys
                if key[0] == "auroc"
            ]
        known = dict.fromkeys((metric, name) for metric, name, _, _ in results)
        results += [
            (metric, name, subset, reason)
            for metric, name in known
            for subset, reason in untested.items()
        ]
        alone = made.refits is None and len(made.probabilities) == 1
        for metric, name, subset, estimate in results:
            if alone and isinstance(estimate, Estimate):
                estimate = replace(estimate, warning=ONE_SEED)
            found.append(
                TaskScore(
                    name=prefix + metric,
                    variant=name,
                    subset=subset,
                    estimate=estimate,
                    n_real=len(test) + made.n_real,
                    n_fake=made.n_fake,
                )
            )
    return found


def _column(tables: Sequence[Table], key: tuple[str, str]) -> list[UnitInfluence]:
    return [table[key] for table in tables]


def _pairs(
    base: Sequence[Table], other: Sequence[Table], key: tuple[str, str]
) -> list[tuple[UnitInfluence, UnitInfluence]]:
    return list(zip(_column(base, key), _column(other, key), strict=True))


def mean_score(scores: Sequence[UnitInfluence], refits: Sequence[UnitInfluence] = ()) -> Estimate:
    """The mean of a score over trainings that differ in their seed, on the same test patients.

    Its variance is that over other test patients, and what other seeds, or (from `refits`) other
    training patients, add to it; see `_seeds_add` and `_patients_add`.
    """
    import numpy as np

    mean = _over_patients(scores)
    # Of fewer than one degree no interval follows, whatever training again would add.
    if mean.reason is None and mean.degrees_of_freedom >= 1.0 - 1e-9:
        many = refits or scores
        extra, freedom = (_patients_add if refits else _seeds_add)(
            mean.variance(),
            mean.degrees_of_freedom,
            [score.value for score in many],
            np.stack([score.first for score in many]),
        )
        mean = replace(mean, extra=extra, degrees_of_freedom=freedom)
    return mean.estimate(low=0.0, high=1.0)


def mean_difference(
    pairs: Sequence[tuple[UnitInfluence, UnitInfluence]],
    refits: Sequence[tuple[UnitInfluence, UnitInfluence]] = (),
) -> Estimate:
    """Mean of second less first over pairs of trainings, with errors as in `mean_score`: patient
    by patient, seed by seed, refit by refit."""
    import numpy as np

    from chexgenbench.statistics.difference import difference
    from chexgenbench.statistics.sampling import interval

    found = difference(*(_over_patients(side) for side in zip(*pairs, strict=True)))
    if found.standard_error is None or found.degrees_of_freedom is None:
        return found
    own, many = found.standard_error**2, refits or pairs
    extra, freedom = (_patients_add if refits else _seeds_add)(
        own,
        found.degrees_of_freedom,
        [b.value - a.value for a, b in many],
        np.stack([b.first - a.first for a, b in many]),
    )
    return interval(found.value, own + extra, freedom)


def _over_patients(scores: Sequence[UnitInfluence]) -> UnitInfluence:
    """The mean over trainings, with the error of other test patients alone."""
    from chexgenbench.statistics.difference import macro_average

    # The trainings see the same patients, so together they have no more freedom than each.
    mean = macro_average(scores)
    freedom = min(score.degrees_of_freedom for score in scores)
    return replace(mean, degrees_of_freedom=freedom, scale=scores[0].scale)


def _seeds_add(
    own: float, freedom: float, values: Sequence[float], units: FloatArray
) -> tuple[float, float]:
    """What other seeds add to the variance of a mean over seeds, and its degrees of freedom then.

    The variance between seeds has two parts: what their networks are worth, and what each says by
    chance of just these patients. The second is in the patients' variance already (there the
    networks differ unit by unit), so it is taken off, as between groups in an analysis of variance.

    Args:
        own: variance of the mean over other patients, with `freedom` degrees.
        values: the score of each seed.
        units: contribution of each patient to each of them [seeds, patients].

    Sources: Searle et al. 1992, "Variance components"; Satterthwaite 1946.
    """
    seeds = len(values)
    if seeds == 1:
        return 0.0, freedom
    between, by_chance = (part / seeds for part in _spread(values, units))
    alone = max(own - by_chance, 0.0)
    both = max(own, alone + between)
    doubt = alone**2 / freedom + between**2 / (seeds - 1)
    return both - own, both**2 / doubt if doubt else freedom


def _patients_add(
    own: float, freedom: float, values: Sequence[float], units: FloatArray
) -> tuple[float, float]:
    """What other training patients add to the variance of one fit, from pairs of fits to halves.

    Two halves have no patient in common, so the variance between them is that of training sets of
    half the size: more than that of the whole, or as much where the images say nothing and the
    direction that is fitted is a matter of chance whatever their number. (A bootstrap resamples the
    set at hand, whose direction it keeps, and finds too little there.) Arguments, and what is taken
    off, are as in `_seeds_add`.
    """
    import numpy as np

    pairs = np.reshape(values, (-1, 2)), units.reshape(-1, 2, units.shape[1])
    spreads = [_spread(list(value), unit) for value, unit in zip(*pairs, strict=True)]
    between, by_chance = np.mean(spreads, axis=0).tolist()
    both = own + max(between - by_chance, 0.0)
    doubt = own**2 / freedom + between**2 / len(spreads)
    return both - own, max(both**2 / doubt, 1.0) if doubt else freedom


def _spread(values: Sequence[float], units: FloatArray) -> tuple[float, float]:
    """Variance between trainings, and how much of it the choice of test patients explains."""
    import numpy as np

    by_chance = ((units - units.mean(axis=0)) ** 2).sum() / (len(values) - 1)
    return float(np.var(values, ddof=1)), float(by_chance)


def _table(
    chance: NDArray[np.float32],
    truth: NDArray[np.float32],
    names: Sequence[str],
    patients: NDArray[np.str_],
    thresholds: NDArray[np.float64] | None,
    full: bool,
) -> Table:
    """Scores of one training by (metric, subset)."""
    import numpy as np

    from chexgenbench.statistics.classification import (
        average_precision,
        by_column,
        expected_calibration_error,
        roc_auc,
        threshold_metrics,
    )
    from chexgenbench.statistics.difference import UnitInfluence, macro_average

    columns = {"auroc": by_column(roc_auc, chance, truth, names, groups=patients)}
    if full:
        columns["auprc"] = by_column(average_precision, chance, truth, names, groups=patients)
    if thresholds is not None:
        at = threshold_metrics(chance, truth, names, threshold=list(thresholds), groups=patients)
        columns |= {spec.name: at[spec.name] for spec in AT_THRESHOLD}
    table = {
        (metric, "overall" if name == "micro" else name): score
        for metric, found in columns.items()
        for name, score in found.scores.items()
    }
    if full:
        calibration = {}
        for name, forecast, label in zip(names, chance.T, truth.T, strict=True):
            error = expected_calibration_error(forecast, label, groups=patients)
            calibration[name] = UnitInfluence.of(error, patients[~np.isnan(label)])
        calibration["macro"] = macro_average(list(calibration.values()))
        every = truth.ravel()
        owners = np.repeat(patients, truth.shape[1])
        pooled = expected_calibration_error(chance.ravel(), every, groups=owners)
        calibration["overall"] = UnitInfluence.of(pooled, owners[~np.isnan(every)])
        table |= {("ece", name): score for name, score in calibration.items()}
    return table
