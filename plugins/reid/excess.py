"""What training prompts show beyond held-out ones: thresholds, shares and differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench.statistics import Estimate, UnitInfluence, mean_estimate
from chexgenbench.statistics.difference import difference
from chexgenbench.statistics.sampling import withheld

Groups = NDArray[Any]


def threshold_at(strangers: ArrayLike, rate: float) -> tuple[float, float]:
    """The score that another stranger's exceeds with chance `rate` at most, and that chance.

    The k-th smallest of n scores with k = ceil((n + 1) (1 - rate)): a new score from the same
    distribution is above it with chance at most (n + 1 - k) / (n + 1) (split conformal prediction,
    Vovk et al. 2005, "Algorithmic learning in a random world"). Below 1 / rate - 1 scores there is
    no such k; then the largest is taken and the second value is 1 / (n + 1), above `rate`.

    >>> threshold_at(range(1, 200), 0.01)
    (198.0, 0.01)
    >>> threshold_at(range(1, 10), 0.01)
    (9.0, 0.1)
    """
    scores = np.sort(np.asarray(strangers, np.float64))
    count = len(scores)
    # The small number keeps (n + 1) (1 - rate) = 198 from being 198.0000001.
    k = min(int(np.ceil((count + 1) * (1 - rate) - 1e-9)), count)
    return float(scores[k - 1]), (count + 1 - k) / (count + 1)


def mean_and_excess(
    members: ArrayLike, patients: Groups, held_out: ArrayLike, held_out_patients: Groups
) -> tuple[Estimate, float, Estimate]:
    """The mean over members, over held-out prompts, and the first less the second.

    Intervals are clustered by patient; the two sides are independent unless a patient is on both.

    >>> a, b, excess = mean_and_excess([1, 2, 3], ["p", "q", "r"], [0, 1, 2], ["s", "t", "u"])
    >>> a.value, b, excess.value
    (2.0, 1.0, 1.0)
    """
    first = mean_estimate(members, groups=patients)
    second = mean_estimate(held_out, groups=held_out_patients)
    excess = difference(
        UnitInfluence.of(second, list(held_out_patients)), UnitInfluence.of(first, list(patients))
    )
    return first, second.value, excess


def share(hits: ArrayLike, patients: Groups) -> Estimate:
    """A share with Wilson's interval for rows that patients have several of.

    Wilson's interval (Wilson 1927) of p with n' = p (1 - p) / V rows, V the variance clustered by
    patient, at most the number of rows (Korn and Graubard 1998, "Confidence intervals for
    proportions with small expected number of positive counts"), and with the t quantile. Where all
    rows agree V is unknown, and n' is the effective number of patients, n^2 / sum of their rows^2:
    the interval then reaches far enough even if a patient's rows always agree.

    >>> found = share([0] * 50, list(range(50)))
    >>> found.value, round(found.ci_high, 3)
    (0.0, 0.075)
    """
    from scipy.special import stdtrit

    values = np.asarray(hits, np.float64)
    found = mean_estimate(values, groups=patients)
    _, counts = np.unique(np.asarray(patients), return_counts=True)
    freedom = len(values) ** 2 / float((counts**2).sum()) - 1.0
    if freedom < 1.0:
        return found
    p = found.value
    rows = freedom + 1.0
    if found.standard_error:
        rows = min(p * (1 - p) / found.standard_error**2, float(len(values)))
    t2 = float(stdtrit(freedom, 0.975)) ** 2
    centre = (p + t2 / (2 * rows)) / (1 + t2 / rows)
    half = np.sqrt(t2 * (p * (1 - p) / rows + t2 / (4 * rows**2))) / (1 + t2 / rows)
    low = 0.0 if p == 0.0 else max(float(centre - half), 0.0)
    high = 1.0 if p == 1.0 else min(float(centre + half), 1.0)
    error = found.standard_error or (high - low) / (2 * np.sqrt(t2))
    return replace(
        found,
        standard_error=float(error),
        ci_low=low,
        ci_high=high,
        reason=None,
        degrees_of_freedom=freedom,
    )


def share_excess(members: Estimate, held_out: Estimate) -> Estimate:
    """The difference of two independent shares, with the interval of Newcombe's method 10.

    Newcombe 1998, "Interval estimation for the difference between independent proportions", from
    the intervals of `share`; unlike a symmetric one it holds at 0 and 1, where a model that
    memorises or does not is.

    >>> one, none = share([1] * 40, list(range(40))), share([0] * 40, list(range(40)))
    >>> excess = share_excess(one, none)
    >>> excess.value, round(excess.ci_low, 2), excess.ci_high
    (1.0, 0.87, 1.0)
    """
    value = members.value - held_out.value
    for name, side in (("members", members), ("held-out prompts", held_out)):
        if side.ci_low is None:
            return withheld(value, f"no error for the {name}: {side.reason}")
    below = np.hypot(members.value - members.ci_low, held_out.ci_high - held_out.value)
    above = np.hypot(members.ci_high - members.value, held_out.value - held_out.ci_low)
    return Estimate(
        value,
        float(np.hypot(members.standard_error, held_out.standard_error)),
        float(max(value - below, -1.0)),
        float(min(value + above, 1.0)),
        degrees_of_freedom=min(members.degrees_of_freedom, held_out.degrees_of_freedom),
    )
