"""How well scores separate two classes: ROC and precision-recall areas, rates, calibration.

Rows are not independent where patients have several, so each function takes ``groups``. Positive
rows are the ``fake`` side of the influence and negative ones the ``real`` side: the error and the
degrees of freedom follow the rarer class, and a patient with rows of both classes is one unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench.statistics.arrays import BLOCK_BYTES, BoolArray, FloatArray, matrix, vector
from chexgenbench.statistics.difference import UnitInfluence, macro_average
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import (
    ALL_AGREE,
    NO_VARIATION,
    Groups,
    Influence,
    estimate,
    linear,
    units_of,
    withheld,
)

__all__ = [
    "ColumnScores",
    "Undefined",
    "average_precision",
    "by_column",
    "cluster_bootstrap",
    "expected_calibration_error",
    "roc_auc",
    "threshold_metrics",
    "tpr_at_fpr",
]

_FEWEST_ABOVE = 10
"""Negatives (of different groups) above a threshold below which its false-positive rate is not
known: at 10 its own relative error is a third."""

_FEWEST_GROUPS = 10
"""Below that the tails of a bootstrap are a matter of a few groups."""

_LEAST_DEFINED = 0.95
"""Share of bootstrap draws in which the statistic must be defined."""


class Undefined(ValueError):
    """The statistic has no value on these rows, such as an AUC of one class.

    >>> try:
    ...     roc_auc([0.1, 0.9], [0, 0])
    ... except Undefined as error:
    ...     print(error)
    no positive row
    """


class _Statistic(Protocol):
    def __call__(
        self, scores: FloatArray, labels: FloatArray, *, groups: Groups = None
    ) -> Estimate: ...


def roc_auc(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    groups: Groups = None,
    weights: ArrayLike | None = None,
) -> Estimate:
    """Area under the ROC curve: the chance that a positive row scores above a negative one.

    Args:
        scores: A number a row [n], higher for more likely positive.
        labels: 1, 0, or NaN for a row to leave out [n].
        groups: A label a row (patient): rows of one label are not independent.
        weights: How much a row counts among those of its class [n], at least 0; taken as given.

    Returns:
        Estimate in [0, 1]; ties count one half. Variance after DeLong, for groups after
        Obuchowski; 95 % t interval, symmetric on the logit, for the AUC of all rows that could
        have been drawn. Withheld for an AUC of 0 or 1 (no variation is seen) and for a class with
        one group. The `difference` of two on the same rows is DeLong's paired comparison.

    Raises:
        Undefined: rows of one class only.
        ValueError: NaN or infinite scores, other labels, or lengths that do not fit.

    Sources: DeLong et al. 1988, "Comparing the areas under two or more correlated receiver
    operating characteristic curves"; Obuchowski 1997, "Nonparametric analysis of clustered ROC
    curve data"; the logit: Qin and Hotilovac 2008, "Comparison of non-parametric confidence
    intervals for the area under the ROC curve of a continuous-scale diagnostic test".

    >>> roc_auc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1]).value
    0.875
    """
    rows = _Rows.of(scores, labels, groups)
    high, low = rows.scores[rows.positive], rows.scores[~rows.positive]
    if weights is None:
        of_high, of_low = placements(high, low)
        # Twice the counts are whole numbers: the sum is exact in whatever order.
        value = float((2 * of_high * low.size).sum()) / (2 * high.size * low.size)
        shares = np.full(high.size, 1 / high.size), np.full(low.size, 1 / low.size)
    else:
        given = _weights(weights, rows.known.size)[rows.known]
        shares = _shares(given[rows.positive]), _shares(given[~rows.positive])
        of_high, of_low = placements(high, low, *shares)
        value = float(shares[0] @ of_high)
    if high.min() > low.max() or high.max() < low.min():
        value = float(round(value))  # weights leave it off by rounding
    influence = rows.influence(shares[0] * (of_high - value), shares[1] * (of_low - value))
    if value in (0.0, 1.0):
        return withheld(value, ALL_AGREE, influence=influence)
    return estimate(value, influence, low=0.0, high=1.0, scale="logit")


def placements(
    high: FloatArray,
    low: FloatArray,
    share_high: FloatArray | None = None,
    share_low: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """For each of `high` the share of `low` below it, and for each of `low` the share of `high`
    above it; equal ones count one half. Shares [m], [n] sum to 1; None where all are equal."""
    return _share_below(low, share_low, high), 1.0 - _share_below(high, share_high, low)


def _share_below(of: FloatArray, share: FloatArray | None, at: FloatArray) -> FloatArray:
    order = np.argsort(of, kind="stable")
    ends = [np.searchsorted(of[order], at, side) for side in ("left", "right")]
    if share is None:
        counted: FloatArray = (ends[0] + ends[1]) / (2 * of.size)
        return counted
    sums = np.append(0.0, np.cumsum(share[order]))
    weighed: FloatArray = (sums[ends[0]] + sums[ends[1]]) / (2 * sums[-1])
    return weighed


def _weights(weights: ArrayLike, rows: int) -> FloatArray:
    given = vector("weights", weights)
    if given.size != rows or given.min() < 0.0:
        raise ValueError(f"weights: expected a number of at least 0 for each of {rows} rows")
    return given


def _shares(weights: FloatArray) -> FloatArray:
    total = float(weights.sum())
    if total <= 0.0:
        raise Undefined("all rows of a class have weight 0")
    return weights / total


def average_precision(scores: ArrayLike, labels: ArrayLike, *, groups: Groups = None) -> Estimate:
    """Average precision: the mean over positive rows of the precision at their score.

    Args:
        scores: A number a row [n], higher for more likely positive.
        labels: 1, 0, or NaN for a row to leave out [n].
        groups: A label a row (patient): rows of one label are not independent.

    Returns:
        Estimate in (0, 1]; equal scores share one precision, as in scikit-learn, and nothing is
        interpolated. It depends on the share of positives, and scores without information give
        about that share. The interval is for its own expectation at these sizes (for few
        positives that lies above the limit for many), from the derivative by the weight of each
        row; symmetric on the logit. Withheld for a value of 1 and for a class with one group.

    Raises:
        Undefined: rows of one class only.
        ValueError: NaN or infinite scores, other labels, or lengths that do not fit.

    Source: Boyd et al. 2013, "Area under the precision-recall curve: point estimates and
    confidence intervals", for the logit interval.

    >>> round(average_precision([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]).value, 6)
    0.833333
    """
    rows = _Rows.of(scores, labels, groups)
    order = np.argsort(-rows.scores, kind="stable")
    ranked, hit = rows.scores[order], rows.positive[order].astype(np.float64)
    # Position of the last row of each run of equal scores, for each row.
    ends = np.searchsorted(-ranked, -ranked, "right") - 1
    counted = ends + 1.0
    precision = np.cumsum(hit)[ends] / counted
    total = float(hit.sum())
    value = min(float((hit * precision).sum() / total), 1.0)
    # Sums over the positive rows i that score no higher than a row: their precision changes by
    # (hit - precision_i) / counted_i with the weight of that row.
    starts = np.searchsorted(-ranked, -ranked, "left")
    inverse, weighted = (_from_the_end(hit * part / counted)[starts] for part in (1.0, precision))
    change = (hit * (precision - value) + hit * inverse - weighted) / total
    of_row = np.empty(change.size)
    of_row[order] = change
    influence = rows.influence(of_row[rows.positive], of_row[~rows.positive])
    if value == 1.0:
        return withheld(value, ALL_AGREE, influence=influence)
    return estimate(value, influence, low=0.0, high=1.0, scale="logit")


def _from_the_end(parts: FloatArray) -> FloatArray:
    sums: FloatArray = np.cumsum(parts[::-1])[::-1]
    return sums


def tpr_at_fpr(
    positives: ArrayLike,
    negatives: ArrayLike,
    fpr: float,
    *,
    groups_positive: Groups = None,
    groups_negative: Groups = None,
    weights_negative: ArrayLike | None = None,
) -> Estimate:
    """True-positive rate at the threshold that lets a share ``fpr`` of the negatives pass.

    The threshold is the lowest at which at most that share of the negatives lies above it, so that
    the value is the highest of the empirical ROC curve there.

    Args:
        positives: Scores [m] of positive rows.
        negatives: Scores [n] of negative rows.
        fpr: The false-positive rate, in (0, 1), such as 0.01.
        groups_positive: A label a positive row (patient).
        groups_negative: The same for the negatives; a label on both sides is the same patient.
        weights_negative: How much each negative counts [n], at least 0; taken as given.

    Returns:
        Estimate in [0, 1]. The interval includes the uncertainty of the threshold: the influence
        of a negative is its share of the false-positive rate times the slope of the ROC curve,
        which is taken for a straight line in probits between half and twice that rate. Symmetric
        on the logit; withheld for a rate of 0 or 1 and for one group.

    Raises:
        Undefined: fewer than 10 / fpr groups of negatives (with weights: their effective number,
            sum^2 over sum of squares): the threshold is not known.
        ValueError: NaN or infinite scores, no row, a rate outside (0, 1), or labels that do not
            fit.

    Sources: Pepe 2003, "The statistical evaluation of medical tests for classification and
    prediction", section 5.2, for the variance; Carlini et al. 2022 (arXiv 2112.03570) for the
    measure.

    >>> import numpy as np
    >>> tpr_at_fpr([0.5, 98.5, 99.5, 100.5], np.arange(100.0), 0.1).value
    0.75
    """
    if not 0.0 < fpr < 1.0:
        raise ValueError(f"fpr must lie between 0 and 1, got {fpr}")
    high, low = vector("positives", positives), vector("negatives", negatives)
    units = units_of(low.size, high.size, groups_real=groups_negative, groups_fake=groups_positive)
    given = np.ones(low.size) if weights_negative is None else weights_negative
    share = _shares(_weights(given, low.size))
    of_group = np.bincount(units.real, share)
    needed, have = int(np.ceil(_FEWEST_ABOVE / fpr - 1e-9)), 1 / float((of_group**2).sum())
    if weights_negative is None:
        have = np.unique(units.real).size
    if have < needed - 1e-9:
        raise Undefined(
            f"a false-positive rate of {fpr:g} needs {needed} independent negatives, there are "
            f"{have:.0f}"
        )
    order = np.argsort(-low, kind="stable")
    passing = np.cumsum(share[order])

    def threshold(rate: float) -> float:
        """The highest score that must not pass."""
        stop = int(np.searchsorted(passing, rate + 1e-9, "right"))
        return float(low[order[min(stop, low.size - 1)]])

    cut = threshold(fpr)
    found, false = high > cut, low > cut
    value = float(found.mean())
    rates = np.array([fpr / 2, min(2 * fpr, (1 + fpr) / 2)])
    above = np.array([(high > threshold(rate)).sum() for rate in rates])
    slope = _binormal_slope((above + 0.5) / (high.size + 1), rates, value, fpr)
    by_negative = -slope * share * (false - float(share @ false))
    influence = linear(units, (found - value) / high.size, by_negative)
    if value in (0.0, 1.0):
        return withheld(value, ALL_AGREE, influence=influence)
    return estimate(value, influence, low=0.0, high=1.0, scale="logit")


def _binormal_slope(found: FloatArray, rates: FloatArray, value: float, fpr: float) -> float:
    """Slope at (fpr, value) of the ROC curve that is straight in probits through these points."""
    from scipy.special import ndtri

    rise = float(np.diff(ndtri(found))[0] / np.diff(ndtri(rates))[0])
    if not 0.0 < value < 1.0:
        return 0.0
    return rise * float(np.exp((ndtri(fpr) ** 2 - ndtri(value) ** 2) / 2))


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, groups: Groups = None
) -> Estimate:
    """Expected calibration error: mean gap between probability and frequency over equal bins.

    sum over bins of |sum of (label - probability)| / n, bins of equal width on [0, 1], closed
    above.

    Args:
        probabilities: Predicted probability of the positive class [n], in [0, 1].
        labels: 1, 0, or NaN for a row to leave out [n]; one class is enough.
        bins: Number of bins, at least 1.
        groups: A label a row (patient): rows of one label are not independent.

    Returns:
        Estimate in [0, 1]. It is biased upward (a calibrated forecast has more than 0, the more so
        the fewer rows a bin has), and the interval is for its own expectation at this n; for a
        forecast near calibration it is up to two thirds too wide, never too narrow.

    Raises:
        Undefined: no labelled row.
        ValueError: probabilities outside [0, 1], other labels, fewer than 1 bin, or lengths that
            do not fit.

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning";
    Guo et al. 2017 (arXiv 1706.04599), equation 3.

    >>> round(expected_calibration_error([0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0]).value, 12)
    0.25
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    chance, truth = vector("probabilities", probabilities), _labels(labels)
    if chance.shape != truth.shape:
        raise ValueError(f"{chance.size} probabilities and {truth.size} labels: one a row expected")
    _within("probabilities", chance)
    units = units_of(0, chance.size, groups_fake=groups)
    known = ~np.isnan(truth)
    if not known.any():
        raise Undefined("no labelled row")
    chance, truth = chance[known], truth[known]
    units = units_of(0, truth.size, groups_fake=units.fake[known])
    which = np.ceil(chance * bins).astype(np.int64).clip(1, bins) - 1
    gaps = np.bincount(which, truth - chance, minlength=bins)
    value = float(np.abs(gaps).sum() / truth.size)
    change = np.sign(gaps)[which] * (truth - chance) - value
    return estimate(value, linear(units, change / truth.size), low=0.0, high=1.0)


@dataclass(frozen=True, slots=True, eq=False)
class ColumnScores:
    """One statistic of several columns, such as the findings, by name.

    Attributes:
        scores: what is known of each column that has a value and of ``macro``, the mean of these
            columns (``micro``, over all entries, where the statistic has one); they may be given
            to `chexgenbench.statistics.difference.difference`.
        undefined: why each of the other columns has no value. That depends on the labels alone, so
            the columns of two models on the same rows are the same.

    >>> columns = [[0, 1], [1, 0]], [[0, 0], [1, 0]], ["a", "b"]
    >>> by_column(roc_auc, *columns).estimates()["b"]
    'no positive row'
    """

    scores: Mapping[str, UnitInfluence]
    undefined: Mapping[str, str]

    def estimates(self) -> dict[str, Estimate | str]:
        """Value and interval by name, or the reason why there is none."""
        values = {name: one.estimate(low=0.0, high=1.0) for name, one in self.scores.items()}
        return {**values, **self.undefined}


def by_column(
    statistic: _Statistic,
    scores: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str],
    *,
    groups: Groups = None,
) -> ColumnScores:
    """`roc_auc` or `average_precision` of each column, and its mean.

    Args:
        statistic: One of the two.
        scores: Finite numbers [n, k].
        labels: 1, 0, or NaN for an entry to leave out [n, k].
        names: Of the k columns.
        groups: A label a row (patient): rows of one label are not independent.

    Returns:
        Values under the columns' own names: a column of one class is in ``undefined`` and the
        others keep their places.

    Raises:
        ValueError: shapes, labels or names that do not fit, or NaN among the scores.

    >>> found = by_column(roc_auc, [[0, 1], [0, 3], [0, 2]], [[0, 0], [0, 1], [0, 1]], ["a", "b"])
    >>> found.undefined["a"], found.scores["b"].value
    ('no positive row', 1.0)
    """
    values, truth = _columns(scores, labels, names)
    own = _names(groups, len(values))
    kept: dict[str, UnitInfluence] = {}
    undefined: dict[str, str] = {}
    for name, column, label in zip(names, values.T, truth.T, strict=True):
        try:
            found = statistic(column, label, groups=own)
        except Undefined as error:
            undefined[name] = str(error)
            continue
        kept[name] = UnitInfluence.of(found, own[label == 1.0], own[label == 0.0])
    if kept:
        kept["macro"] = macro_average(list(kept.values()))
    else:
        undefined["macro"] = "no column has rows of both classes"
    return ColumnScores(kept, undefined)


def threshold_metrics(
    probabilities: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str],
    *,
    threshold: float | Sequence[float] = 0.5,
    groups: Groups = None,
) -> dict[str, ColumnScores]:
    """Precision, recall, F1 and accuracy of each column, over all entries and as column means.

    Args:
        probabilities: Finite numbers [n, k]; an entry of at least the threshold is a positive
            prediction.
        labels: 1, 0, or NaN for an entry to leave out [n, k].
        names: Of the k columns.
        threshold: One for all columns, or one a column.
        groups: A label a row (patient): rows of one label are not independent.

    Returns:
        ``precision``, ``recall``, ``f1`` (2 TP / (2 TP + FP + FN)) and ``accuracy``, each by
        column, ``micro`` (of the counts of all columns with both classes) and ``macro`` (mean over
        these columns). Where nothing is predicted positive precision is 0, so that a model gains
        nothing by leaving a column out. Errors by linearisation of the ratio; intervals symmetric
        on the logit (``macro``: on the value), withheld for 0 and 1 and for a class with one
        group.

    Raises:
        ValueError: shapes, labels or names that do not fit, or NaN among the probabilities.

    >>> found = threshold_metrics([[0.9], [0.8], [0.2], [0.6]], [[1], [0], [1], [1]], ["a"])
    >>> {name: round(one.scores["a"].value, 3) for name, one in found.items()}
    {'precision': 0.667, 'recall': 0.667, 'f1': 0.667, 'accuracy': 0.5}
    """
    values, truth = _columns(probabilities, labels, names)
    own = _names(groups, len(values))
    called = values >= np.broadcast_to(np.asarray(threshold, np.float64), (values.shape[1],))
    undefined = {
        name: reason
        for name, label in zip(names, truth.T, strict=True)
        if (reason := _one_class(label))
    }
    used = np.array([name not in undefined for name in names])
    positive, known = truth == 1.0, ~np.isnan(truth) & used
    hits = (called & positive & known).astype(np.float64)
    predicted, actual = (called & known) * 1.0, (positive & known) * 1.0
    ratios = {
        "precision": (hits, predicted),
        "recall": (hits, actual),
        "f1": (2 * hits, predicted + actual),
        "accuracy": (((called == positive) & known) * 1.0, known * 1.0),
    }
    found = {}
    for metric, (top, bottom) in ratios.items():
        if not used.any():
            missing = dict.fromkeys(("micro", "macro"), "no column has rows of both classes")
            found[metric] = ColumnScores({}, {**undefined, **missing})
            continue
        kept: dict[str, UnitInfluence] = {}
        for j, name in enumerate(names):
            if not used[j]:
                continue
            sides = truth[:, j] == 1.0, truth[:, j] == 0.0
            value, change = _ratio(top[:, j], bottom[:, j])
            units = units_of(
                int(sides[1].sum()),
                int(sides[0].sum()),
                groups_real=own[sides[1]],
                groups_fake=own[sides[0]],
            )
            influence = linear(units, change[sides[0]], change[sides[1]])
            kept[name] = UnitInfluence.of(
                estimate(value, influence, scale="logit"), own[sides[0]], own[sides[1]]
            )
        macro = macro_average(list(kept.values()))
        value, change = _ratio(top.sum(axis=1), bottom.sum(axis=1))
        over_all = linear(units_of(0, len(values), groups_fake=own), change)
        kept["micro"] = UnitInfluence.of(estimate(value, over_all, scale="logit"), own)
        kept["macro"] = macro
        found[metric] = ColumnScores(kept, undefined)
    return found


def _ratio(top: FloatArray, bottom: FloatArray) -> tuple[float, FloatArray]:
    """Sum over sum, and its derivative by the weight of each row; 0 where there is nothing."""
    total = float(bottom.sum())
    if total == 0.0:
        return 0.0, np.zeros(top.size)
    value = float(top.sum()) / total
    return value, (top - value * bottom) / total


def cluster_bootstrap(
    statistic: Callable[[FloatArray], ArrayLike],
    groups: Sequence[object] | NDArray[np.str_],
    *,
    draws: int = 1000,
    seed: int = 0,
    low: float = -np.inf,
    high: float = np.inf,
) -> Estimate:
    """A statistic with the interval of a bootstrap over groups, for want of a closed form.

    Whole groups (patients) are drawn with replacement. The 95 % interval is bias-corrected and
    accelerated (BCa), the acceleration from leaving out each group, with the tails of a t interval
    of as many groups.

    Args:
        statistic: Is given weights, float64 [b, n], how often each row counts, and returns a
            value [b] for each row of them: NaN where they leave it undefined.
        groups: A label a row [n], such as its patient, or a name of its own. Which groups a draw
            takes depends on the labels and the seed alone, not on the order of the rows.
        draws: Number of draws, at least 100.
        seed: Of the draws.
        low: Lower end of the statistic's range.
        high: Upper end of it.

    Returns:
        Estimate without influence: for a difference of two statistics bootstrap the difference.
        In simulation with 60 patients its interval held in 98 % (F1) and 89 % (a standard
        deviation); prefer a closed form where there is one.
        Withheld where more than 5 % of the draws leave the statistic undefined, where all draws
        lie on one side of the value (a biased statistic, which this interval does not suit), for
        fewer than 10 groups, and where no draw differs.

    Raises:
        Undefined: the statistic has no value on the rows themselves.
        ValueError: no rows, fewer than 100 draws, or a statistic that returns another number of
            values.

    Sources: Efron 1987, "Better bootstrap confidence intervals"; clusters: Field and Welsh 2007,
    "Bootstrapping clustered data"; tails: Hesterberg 2015, "What teachers should know about the
    bootstrap", section 5.4.

    >>> import numpy as np
    >>> values = np.arange(30.0)
    >>> found = cluster_bootstrap(lambda w: w @ values / w.sum(axis=1), range(30))
    >>> found.value, found.ci_low < 14.5 < found.ci_high
    (14.5, True)
    """
    if draws < 100:
        raise ValueError(f"draws must be at least 100, got {draws}")
    rows = len(groups)
    if rows == 0:
        raise ValueError("groups: at least 1 row(s) needed, got 0")
    units = units_of(0, rows, groups_fake=groups)
    # Units numbered by the hash of their label.
    place = np.argsort(np.argsort(units.named(), kind="stable"))
    of_row = place[units.fake]

    def values_of(weights: FloatArray) -> FloatArray:
        values = np.asarray(statistic(weights), np.float64)
        if values.shape != (len(weights),):
            raise ValueError(
                f"the statistic returned shape {values.shape} for {len(weights)} sets of weights"
            )
        return values

    value = float(values_of(np.ones((1, rows)))[0])
    if not np.isfinite(value):
        raise Undefined("the statistic has no value on these rows")
    if units.count < _FEWEST_GROUPS:
        return withheld(value, f"only {units.count} independent units, {_FEWEST_GROUPS} needed")
    step = max(1, BLOCK_BYTES // (8 * rows))
    random = np.random.default_rng(seed)
    drawn = np.empty(draws)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        counts = np.zeros((size, units.count))
        for row in counts:
            row += np.bincount(random.integers(units.count, size=units.count), None, units.count)
        drawn[start : start + size] = values_of(counts[:, of_row])
    left_out = np.empty(units.count)
    for start in range(0, units.count, step):
        without = np.arange(start, min(start + step, units.count))
        left_out[without] = values_of((of_row != without[:, None]).astype(np.float64))
    freedom = linear(units, np.zeros(rows)).degrees_of_freedom()
    return _bca(value, drawn, left_out, freedom, low, high)


def _bca(
    value: float,
    drawn: FloatArray,
    left_out: FloatArray,
    freedom: float,
    low: float,
    high: float,
) -> Estimate:
    from scipy.special import ndtr, ndtri, stdtrit

    defined = drawn[np.isfinite(drawn)]
    if defined.size < _LEAST_DEFINED * drawn.size or not np.isfinite(left_out).all():
        missing = 100 * (1 - defined.size / drawn.size)
        return withheld(value, f"undefined in {missing:.0f} % of the bootstrap draws")
    error = float(defined.std(ddof=1))
    if error == 0.0:
        return withheld(value, NO_VARIATION)
    below = float((defined < value).mean() + (defined == value).mean() / 2)
    if not 0.0 < below < 1.0:
        return withheld(value, "all bootstrap draws lie on one side of the value")
    shift = float(ndtri(below))
    gaps = left_out.mean() - left_out
    power = float((gaps**2).sum())
    lean = float((gaps**3).sum()) / (6 * power**1.5) if power else 0.0
    # As a t interval is wider than a normal one, and s^2 than the variance over n.
    width = float(stdtrit(max(freedom, 1.0), 0.975) * np.sqrt(left_out.size / (left_out.size - 1)))
    ends = []
    for tail in (-width, width):
        reach = shift + tail
        ends.append(float(np.quantile(defined, ndtr(shift + reach / (1 - lean * reach)))))
    return Estimate(value, error, max(ends[0], low), min(ends[1], high))


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The labelled rows of a two-class problem, both classes among them."""

    scores: FloatArray
    positive: BoolArray
    known: BoolArray  # [all rows]
    names: NDArray[np.object_] | None

    @classmethod
    def of(cls, scores: ArrayLike, labels: ArrayLike, groups: Groups) -> _Rows:
        values, truth = vector("scores", scores), _labels(labels)
        if values.shape != truth.shape:
            raise ValueError(f"{values.size} scores and {truth.size} labels: one a row expected")
        if reason := _one_class(truth):
            raise Undefined(reason)
        known = ~np.isnan(truth)
        names = None if groups is None else _names(groups, truth.size)[known]
        return cls(values[known], truth[known] == 1.0, known, names)

    def influence(self, positive: FloatArray, negative: FloatArray) -> Influence:
        own: tuple[Groups, Groups] = (None, None)
        if self.names is not None:
            own = (self.names[~self.positive], self.names[self.positive])
        units = units_of(negative.size, positive.size, groups_real=own[0], groups_fake=own[1])
        return linear(units, positive, negative)


def _labels(labels: ArrayLike) -> FloatArray:
    truth = np.asarray(labels, np.float64)
    if truth.ndim != 1:
        raise ValueError(f"labels: expected one a row, got shape {truth.shape}")
    _zero_or_one(truth)
    return truth


def _zero_or_one(truth: FloatArray) -> None:
    strange = ~((truth == 0.0) | (truth == 1.0) | np.isnan(truth))
    if strange.any():
        raise ValueError(f"labels: 0, 1 or NaN expected, got {truth[strange][0]:g}")


def _one_class(truth: FloatArray) -> str | None:
    for kind, wanted in (("positive", 1.0), ("negative", 0.0)):
        if not (truth == wanted).any():
            return f"no {kind} row"
    return None


def _within(name: str, chance: FloatArray) -> None:
    if chance.min() < 0.0 or chance.max() > 1.0:
        raise ValueError(f"{name}: numbers between 0 and 1 expected")


def _names(groups: Groups, rows: int) -> NDArray[np.object_]:
    """A label a row as an array of objects, which keeps what they are; row numbers for None."""
    names = np.empty(rows, dtype=object)
    listed = list(range(rows)) if groups is None else np.asarray(groups).tolist()
    if not isinstance(listed, list) or len(listed) != rows:
        raise ValueError(f"groups: expected one label for each of {rows} rows")
    names[:] = listed
    return names


def _columns(
    scores: ArrayLike, labels: ArrayLike, names: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    values, truth = matrix("scores", scores), np.asarray(labels, np.float64)
    if values.shape != truth.shape or len(names) != values.shape[1]:
        raise ValueError(
            f"scores {values.shape}, labels {truth.shape} and {len(names)} names do not fit"
        )
    taken = [name for name in names if name in ("micro", "macro")]
    if taken or len(set(names)) != len(names):
        raise ValueError("names: columns need names of their own, none of them micro or macro")
    _zero_or_one(truth)
    return values, truth
