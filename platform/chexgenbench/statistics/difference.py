"""Differences and averages of scores that share prompts, patients or real images.

Two models answer the same prompts against the same real images, so their scores move together,
and the error of their difference is not that of two independent numbers. With T = E T + sum_u g_u
+ 1/2 sum_{u, v} H_uv for both (see ``chexgenbench.statistics.sampling``), the difference has the
terms g_u' - g_u and H_uv' - H_uv: what each unit contributed, subtracted unit by unit. Units meet
by name, so scores taken in other processes, or over other subsets of the same prompts, can be
combined from what :class:`UnitInfluence` keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench.statistics.arrays import FloatArray
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import (
    MOST_PROBES,
    NO_VARIATION,
    KeyArray,
    Scale,
    interval,
    pair_variance,
    total_variance,
    withheld,
)

__all__ = ["UnitInfluence", "difference", "holm", "images_needed", "macro_average", "p_value"]


@dataclass(frozen=True, slots=True, eq=False)
class UnitInfluence:
    """What a score is and what each independent unit contributed to it, ready to be stored.

    Attributes:
        value: The score.
        units: Name of each unit [u] (patient or prompt), no two alike; empty where nothing is
            known of the error.
        first: float64 [u], contributions of first order; their squares sum to V1 + 2 V2.
        probes: float32 [u, p], p <= 16: second-order terms under random signs; no columns where
            the statistic is linear or its second-order terms are not known.
        keys: uint64 [u], what chose each unit's signs.
        curvature: Share of the second-order variance V2 that the score has; 1 for most.
        extra: Variance that does not come from the units.
        least: Share of the sum of squares of ``first`` that is left to the variance at least.
        degrees_of_freedom: Of the score's t interval.
        scale: Where the score's own interval is symmetric.
        reason: Why nothing is known of the error; None where it is.

    >>> from chexgenbench.statistics import mean_estimate
    >>> kept = UnitInfluence.of(mean_estimate([1.0, 2.0, 6.0]), ["a", "b", "c"])
    >>> kept.value, kept.units.tolist()
    (3.0, ['a', 'b', 'c'])
    >>> kept.estimate() == mean_estimate([1.0, 2.0, 6.0])
    True
    """

    value: float
    units: NDArray[np.str_]
    first: FloatArray
    probes: NDArray[np.float32]
    keys: KeyArray
    curvature: float = 1.0
    extra: float = 0.0
    least: float = 0.0
    degrees_of_freedom: float = math.inf
    scale: Scale = "linear"
    reason: str | None = None

    @classmethod
    def of(
        cls,
        estimate: Estimate,
        fake: Sequence[object] | NDArray[Any],
        real: Sequence[object] | NDArray[Any] = (),
    ) -> UnitInfluence:
        """What to keep of an estimate.

        Args:
            estimate: The score; without influence (withheld) only its value and reason are kept.
            fake: Name of the unit of each generated row [m]: its patient, or its prompt where no
                patient is known. Rows of one unit need one name; a unit of several names (a
                patient whose rows are named by prompt) takes its first row's, real side first.
            real: The same for the real rows [n]; empty for a one-sided statistic.

        Raises:
            ValueError: not one name a row.
        """
        influence = estimate.influence
        if influence is None:
            return cls.unknown(estimate.value, estimate.reason or "no influence is known")
        units = influence.units
        names = np.empty(units.count, dtype=object)
        for codes, labels in ((units.fake, fake), (units.real, real)):
            if len(labels) != codes.size:
                raise ValueError(
                    f"expected a name for each of {codes.size} rows, got {len(labels)}"
                )
            # Backwards, so that the first row of a unit has the last word.
            names[codes[::-1]] = [str(label) for label in labels][::-1]
        freedom = influence.degrees_of_freedom()
        first, probes = influence.by_unit(), influence.second_by_unit()[:, :MOST_PROBES]
        kept = cls(
            estimate.value,
            names.astype(np.str_),
            first,
            probes.astype(np.float32),
            units.named(),
            influence.curvature,
            influence.extra,
            influence.least,
            freedom,
            influence.scale,
        )
        if np.unique(kept.units).size == kept.units.size:
            return kept
        # Rows that the statistic took for independent have one name: they are one unit.
        return _combined([(1.0, kept)], kept.value, freedom, kept.scale)

    @classmethod
    def unknown(cls, value: float, reason: str) -> UnitInfluence:
        """A score of which nothing but the value is known."""
        none = np.zeros(0)
        return cls(
            value,
            np.zeros(0, dtype=np.str_),
            none,
            np.zeros((0, 0), dtype=np.float32),
            np.zeros(0, dtype=np.uint64),
            degrees_of_freedom=0.0,
            reason=reason,
        )

    def variance(self) -> float:
        """Variance of the score over draws of other units.

        Without probes the second-order variance is counted twice: too large, never too small.
        """
        second = pair_variance(self.probes.astype(np.float64), self.keys)
        return total_variance(self.first, second, self.curvature, self.extra, self.least)

    def estimate(self, *, low: float = -math.inf, high: float = math.inf) -> Estimate:
        """The score with its interval, cut at the ends of its range."""
        if self.reason is not None:
            return withheld(self.value, self.reason)
        return interval(
            self.value,
            self.variance(),
            self.degrees_of_freedom,
            low=low,
            high=high,
            scale=self.scale,
        )


def difference(a: UnitInfluence | Estimate, b: UnitInfluence | Estimate) -> Estimate:
    """How much larger score ``b`` is than score ``a``, with the error of the pair.

    Args:
        a: A score of one model: a metric on an encoder over a subset.
        b: The same score of the other model over the same prompts. A unit that one side lacks
            (an unreadable image) contributes nothing on that side.
            Two plain `Estimate`s must come from the same design: row i of one answers what row i
            of the other answers.

    Returns:
        b - a with a symmetric 95 % t interval for the difference of the two scores' expectations
        at these sizes: what other prompts and other images of the same two models would give on
        average. Variance is the sum over units of (contribution to b - contribution to a)^2, less
        the second-order part that this counts twice where its terms are known on both sides under
        the same signs; degrees of freedom are the smaller of both. Withheld where either score's
        error is not known, and where no unit differs.

    Raises:
        ValueError: two plain estimates of different designs.

    >>> from chexgenbench.statistics import mean_estimate
    >>> a, b = mean_estimate([1.0, 5.0, 9.0]), mean_estimate([2.0, 6.5, 9.5])
    >>> found = difference(a, b)  # of 1, 1.5 and 0.5, however far apart the rows lie
    >>> round(found.value, 12), round(found.standard_error, 6)
    (1.0, 0.288675)
    """
    if isinstance(a, Estimate) or isinstance(b, Estimate):
        a, b = _numbered(a, b)
    value = b.value - a.value
    for name, side in (("first", a), ("second", b)):
        if side.reason is not None:
            return withheld(value, f"no error of the {name} score: {side.reason}")
    freedom = min(a.degrees_of_freedom, b.degrees_of_freedom)
    found = _combined([(-1.0, a), (1.0, b)], value, freedom, "linear").estimate()
    if found.standard_error is None and found.reason == NO_VARIATION and value != 0.0:
        return withheld(value, "no unit shows where the difference comes from")
    return found


def macro_average(scores: Sequence[UnitInfluence]) -> UnitInfluence:
    """Mean of a score over subsets that share units, for example over the findings.

    Args:
        scores: The score over each subset, at least one. An image with two findings is a row of
            both, so their errors are not independent; units meet by name.

    Returns:
        What each unit contributed to the mean, each subset weighing the same: its ``estimate()``
        has a symmetric 95 % t interval for the mean of the scores' expectations, and a
        :func:`difference` of two models takes it as it is. The interval needs an error for every
        subset and is withheld otherwise.
        Second-order terms are added too where the subsets know a unit by one key (patients or
        prompts given as groups); where they do not, their variance is counted twice, which makes
        the interval too wide. Degrees of freedom after Satterthwaite, as if the subsets were
        independent.

    Raises:
        ValueError: no scores.

    Source: Satterthwaite 1946, "An approximate distribution of estimates of variance components".

    >>> from chexgenbench.statistics import mean_estimate
    >>> parts = [UnitInfluence.of(mean_estimate([1.0, 3.0]), names) for names in ("ab", "bc")]
    >>> macro_average(parts).estimate().value
    2.0
    """
    if not scores:
        raise ValueError("no scores to average")
    share = 1.0 / len(scores)
    value = math.fsum(score.value for score in scores) * share
    missing = [score.reason for score in scores if score.reason is not None]
    if missing:
        reason = f"no error for {len(missing)} of {len(scores)} subsets: {missing[0]}"
        return UnitInfluence.unknown(value, reason)
    parts = [(score.variance(), score.degrees_of_freedom) for score in scores]
    total = sum(variance for variance, _ in parts)
    doubt = sum(variance**2 / freedom for variance, freedom in parts if variance > 0 < freedom)
    lone = any(variance > 0 >= freedom for variance, freedom in parts)
    freedom = 0.0 if lone else total**2 / doubt if doubt else math.inf
    return _combined([(share, score) for score in scores], value, freedom, "linear")


def p_value(estimate: Estimate) -> float | None:
    """Two-sided p value of the hypothesis that the estimated quantity is 0.

    From the t distribution of the estimate's interval, which must be symmetric on the value itself
    (that of a :func:`difference` is): below 0.05 just where the interval leaves 0 out. None where
    the interval is withheld.

    >>> p_value(Estimate(1.5)) is None
    True
    """
    if estimate.standard_error is None or estimate.degrees_of_freedom is None:
        return None
    from scipy.special import stdtr

    statistic = abs(estimate.value) / estimate.standard_error
    return float(2 * stdtr(estimate.degrees_of_freedom, -statistic))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p values: below alpha, with chance alpha at most, for any true hypothesis of all.

    Args:
        p_values: One a hypothesis, in [0, 1]; None for one that was not tested, which does not
            count.

    Returns:
        In the same order, max over the smaller ones of (tests - rank) p, at most 1.

    Raises:
        ValueError: a p value outside [0, 1].

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    tested = [(p, i) for i, p in enumerate(p_values) if p is not None]
    if any(not 0.0 <= p <= 1.0 for p, _ in tested):
        raise ValueError(f"p values lie between 0 and 1, got {[p for p, _ in tested]}")
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(sorted(tested)):
        largest = max(largest, min((len(tested) - rank) * p, 1.0))
        adjusted[i] = largest
    return adjusted


def images_needed(difference: Estimate, images: int, power: float = 0.8) -> int | None:
    """How many images a model would settle a difference of the size that was found.

    Args:
        difference: Of two models.
        images: Images a model that it rests on, n.
        power: Chance that the new interval leaves 0 out, if the true difference is the one found.

    Returns:
        n ((z_0.975 + z_power) se / difference)^2, rounded up: at a power of one half the interval
        just reaches 0 on average, at 0.8 it takes twice as many images. Smaller than n where the
        difference is settled with images to spare. None where the error is withheld, where the
        difference is 0, and beyond 10^12. It holds the difference fixed and lets the error fall as
        1 / sqrt(n), so it is a plan, not a promise; for a plug-in score such as `fid`, whose
        expectation moves with n, more so.

    Raises:
        ValueError: fewer than 1 image, or a power outside (0, 1).

    >>> images_needed(Estimate(1.0, 1.0), 100)
    785
    """
    if images < 1 or not 0.0 < power < 1.0:
        raise ValueError(f"images >= 1 and a power in (0, 1) needed, got {images} and {power}")
    if difference.standard_error is None or difference.value == 0.0:
        return None
    from scipy.special import ndtri

    reach = float(ndtri(0.975) + ndtri(power)) * difference.standard_error / abs(difference.value)
    needed = images * reach**2
    return math.ceil(needed) if needed <= 1e12 else None


def _combined(
    parts: Sequence[tuple[float, UnitInfluence]], value: float, freedom: float, scale: Scale
) -> UnitInfluence:
    """The weighted sum of scores, unit by unit; names may repeat, within a score too."""
    scores = [score for _, score in parts]
    names, at = np.unique(np.concatenate([score.units for score in scores]), return_inverse=True)
    first = np.zeros(names.size)
    np.add.at(first, at, np.concatenate([weight * score.first for weight, score in parts]))
    keys = np.concatenate([score.keys for score in scores])
    key_of = np.zeros(names.size, dtype=np.uint64)
    key_of[at] = keys
    width = min(score.probes.shape[1] for score in scores)
    if not np.array_equal(key_of[at], keys):
        width = 0  # other signs: the terms cannot be added
    probes = np.zeros((names.size, width))
    np.add.at(
        probes, at, np.concatenate([weight * score.probes[:, :width] for weight, score in parts])
    )
    return UnitInfluence(
        value,
        names,
        first,
        probes.astype(np.float32),
        key_of,
        max(score.curvature for score in scores),
        sum(weight**2 * score.extra for weight, score in parts),
        max(score.least for score in scores),
        freedom,
        scale,
    )


def _numbered(
    a: UnitInfluence | Estimate, b: UnitInfluence | Estimate
) -> tuple[UnitInfluence, UnitInfluence]:
    """Plain estimates with their units named by number."""
    if not isinstance(a, Estimate) or not isinstance(b, Estimate):
        raise ValueError("two estimates or two unit influences expected, got one of each")
    if a.influence is not None and b.influence is not None:
        left, right = a.influence.units, b.influence.units
        for side in ("real", "fake"):
            if not np.array_equal(getattr(left, side), getattr(right, side)):
                raise ValueError(
                    f"the {side} rows belong to other units: estimates of different designs are "
                    "compared as UnitInfluence, by name"
                )
    sides = []
    for one in (a, b):
        if one.influence is None:
            sides.append(UnitInfluence.of(one, ()))
        else:
            units = one.influence.units
            sides.append(UnitInfluence.of(one, units.fake, units.real))
    return sides[0], sides[1]
