"""What training prompts show beyond held-out ones: thresholds, shares and differences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench.statistics import Estimate, mean_estimate
from chexgenbench.statistics.attacks import balancing_weights
from chexgenbench.statistics.sampling import interval, linear, units_of, withheld

Floats = NDArray[np.float64]
Groups = NDArray[Any]

_FEWEST = 5
"""Prompts with a finding, and without it, that balancing it takes, and patients for each."""

_APART = 0.02
"""Difference of a finding's frequency that weighting may leave."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Balance:
    """Held-out prompts weighted until their findings are as frequent as those of the members.

    Without it a control of sicker patients accuses a model that draws sick patients worse, or
    clears one that memorises.

    Attributes:
        weights: float64 [h], of the held-out prompts, positive with sum 1.
        members: float64 [m, k], 0 or 1: the findings that the weights balance.
        held_out: float64 [h, k], the same of the held-out prompts.
        warning: where the weights leave fewer than half of the prompts.
        fault: where no weights make the findings alike, so that there is no excess to speak of.
    """

    weights: Floats
    members: Floats
    held_out: Floats
    warning: str | None = None
    fault: str | None = None

    @classmethod
    def of(cls, members: ArrayLike, held_out: ArrayLike, patients: Groups) -> Balance:
        """By entropy balancing (`balancing_weights`).

        Findings that fewer than 5 prompts of a side have, or lack, are left out, and all but one
        for each 5 held-out patients: those that differ most between the sides are kept.

        Args:
            members: findings [m, 14] of the members' prompts as `ImageSet.labels`; present counts
                against all else.
            held_out: the same [h, 14] of the held-out prompts.
            patients: whose these [h] are.

        >>> sick, well = [1.0] + [0.0] * 13, [0.0] * 14
        >>> found = Balance.of([sick] * 30 + [well] * 30, [sick] * 10 + [well] * 30, range(40))
        >>> found.weights[[0, -1]].round(4).tolist()
        [0.05, 0.0167]
        """
        marks = [(np.asarray(side) == 1.0).astype(np.float64) for side in (members, held_out)]
        rare = [np.minimum(side.sum(axis=0), (1 - side).sum(axis=0)) for side in marks]
        gaps = np.abs(marks[0].mean(axis=0) - marks[1].mean(axis=0))
        gaps[np.minimum(*rare) < _FEWEST] = -1.0
        most = len(np.unique(np.asarray(patients))) // _FEWEST
        used = np.argsort(-gaps, kind="stable")[: min(most, int((gaps >= 0).sum()))]
        own, wanted = marks[1][:, used], marks[0][:, used]
        weights = balancing_weights(own, wanted) / len(own)
        left = 1 / float(weights @ weights)
        apart = np.abs(weights @ own - wanted.mean(axis=0)).max(initial=0.0)
        warning = fault = None
        if left < len(own) / 2:
            warning = (
                "members and held-out prompts differ in their findings: weights leave "
                f"{left:.0f} of {len(own)} held-out prompts"
            )
        if apart > _APART:
            fault = (
                "no weights give held-out prompts the findings of the members: one is "
                f"{100 * apart:.0f} points more or less frequent"
            )
        return cls(weights=weights, members=wanted, held_out=own, warning=warning, fault=fault)


def mean_and_excess(
    members: ArrayLike,
    patients: Groups,
    held_out: ArrayLike,
    held_out_patients: Groups,
    balance: Balance,
) -> tuple[Estimate, float, Estimate]:
    """The mean over members, the weighted one over held-out prompts, and first less second.

    Intervals are clustered by patient, and a patient on both sides is one unit. The weights make
    the held-out mean a regression estimate (Deville and Sarndal 1992, "Calibration estimators in
    survey sampling"): what a row adds to the error of the excess is what the findings do not
    explain of it, on both sides, since members decide the weights. Degrees of freedom are the
    effective number of patients less the findings and one.

    >>> members, held_out = ["p", "q", "r"], ["s", "t", "u"]
    >>> alike = Balance.of(np.zeros((3, 14)), np.zeros((3, 14)), held_out)
    >>> a, b, excess = mean_and_excess([1, 2, 3], members, [0, 1, 2], held_out, alike)
    >>> a.value, b, excess.value
    (2.0, 1.0, 1.0)
    """
    first = replace(mean_estimate(members, groups=patients), warning=balance.warning)
    values = np.asarray(held_out, np.float64)
    weights = balance.weights
    control = float(weights @ values)
    value = first.value - control
    of_members, of_held_out = np.asarray(members, np.float64) - first.value, values - control
    count = balance.held_out.shape[1]
    effective = _effective(weights, held_out_patients)
    freedom = min(_effective(np.ones(len(of_members)), patients), effective - count) - 1
    if balance.fault:
        return first, control, withheld(value, balance.fault)
    if count:
        if freedom < 1:
            return first, control, withheld(value, "too few held-out prompts for their findings")
        rows = balance.held_out - weights @ balance.held_out
        root = np.sqrt(weights)
        slope = np.linalg.lstsq(root[:, None] * rows, root * of_held_out, rcond=1e-6)[0]
        of_held_out = of_held_out - rows @ slope
        of_held_out *= np.sqrt((effective - 1) / (effective - 1 - count))
        of_members = of_members - (balance.members - balance.members.mean(axis=0)) @ slope
    units = units_of(
        len(values), len(of_members), groups_real=held_out_patients, groups_fake=patients
    )
    influence = linear(units, of_members / len(of_members), -weights * of_held_out)
    return first, control, interval(value, influence.variance(), freedom)


def _effective(weights: Floats, patients: Groups) -> float:
    """How many patients of equal weight these are worth: (sum)^2 / sum of squares."""
    _, codes = np.unique(np.asarray(patients), return_inverse=True)
    return float(weights.sum()) ** 2 / float((np.bincount(codes, weights) ** 2).sum())


def share(hits: ArrayLike, patients: Groups, weights: Floats | None = None) -> Estimate:
    """A share with Wilson's interval for rows that patients have several of.

    Wilson's interval (Wilson 1927) of p with n' = p (1 - p) / V rows, V the variance clustered by
    patient, at most the effective number of rows (Korn and Graubard 1998, "Confidence intervals
    for proportions with small expected number of positive counts"), and with the t quantile. Where
    all rows agree V is unknown, and n' is the effective number of patients, (sum of weights)^2 /
    sum of their squares: the interval then reaches far enough even if a patient's rows always
    agree.

    Args:
        hits: 0 or 1 a row [n].
        patients: the patient of each row.
        weights: how much each row counts, taken as given; all alike by default.

    >>> found = share([0] * 50, list(range(50)))
    >>> found.value, round(found.ci_high, 3)
    (0.0, 0.075)
    """
    from scipy.special import stdtrit

    values = np.asarray(hits, np.float64)
    shares = np.full(len(values), 1.0) if weights is None else weights
    shares = shares / shares.sum()
    p = float(shares @ values)
    if values.min() == values.max():
        p = float(values[0])
    patient_count = _effective(shares, patients)
    freedom = patient_count - 1.0
    units = units_of(0, len(values), groups_fake=patients)
    influence = linear(units, shares * (values - p))
    found = interval(p, influence.variance(), freedom)
    if freedom < 1.0:
        return found
    rows = patient_count
    if found.standard_error:
        rows = min(p * (1 - p) / found.standard_error**2, 1 / float(shares @ shares))
    t2 = float(stdtrit(freedom, 0.975)) ** 2
    centre = (p + t2 / (2 * rows)) / (1 + t2 / rows)
    half = np.sqrt(t2 * (p * (1 - p) / rows + t2 / (4 * rows**2))) / (1 + t2 / rows)
    low = 0.0 if p == 0.0 else max(float(centre - half), 0.0)
    high = 1.0 if p == 1.0 else min(float(centre + half), 1.0)
    error = found.standard_error or (high - low) / (2 * np.sqrt(t2))
    return Estimate(p, float(error), low, high, degrees_of_freedom=freedom)


def share_excess(members: Estimate, held_out: Estimate, fault: str | None = None) -> Estimate:
    """The difference of two independent shares, with the interval of Newcombe's method 10.

    Newcombe 1998, "Interval estimation for the difference between independent proportions", from
    the intervals of `share`; unlike a symmetric one it holds at 0 and 1, where a model that
    memorises or does not is. Withheld where `fault` says why the sides cannot be compared.

    >>> one, none = share([1] * 40, list(range(40))), share([0] * 40, list(range(40)))
    >>> excess = share_excess(one, none)
    >>> excess.value, round(excess.ci_low, 2), excess.ci_high
    (1.0, 0.87, 1.0)
    """
    value = members.value - held_out.value
    if fault:
        return withheld(value, fault)
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
