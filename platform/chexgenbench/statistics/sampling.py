"""From what each row contributed to a standard error: pairs, patients, second-order terms.

A statistic of two samples is, up to second order, its expectation plus a sum over the
*independent units* of the design (a prompt with its real and generated image, or all of one
patient):

    T = E T + sum_u g_u + 1/2 sum_{u, v} H_uv

Row contributions found at the sample (infinitesimal jackknife) are g_u + sum_v H_uv, so the sum
of their squares has expectation V1 + 2 V2, where Var T = V1 + V2: the second-order variance is
counted twice, the upward bias of Efron and Stein (1981), "The jackknife estimate of variance".
For a Frechet distance that is no detail: at d = 128, N = 2,000 it made 0.20 of a true 0.17. So
V2 = 1/2 sum over u != v of H_uv^2 is estimated and taken off again, without forming H: give half
of the units random signs e and the others 0; then (H e)_u of a unit u that has 0 has expectation
0 and variance sum of H_uv^2 over the half (Hutchinson's trace estimate without the diagonal,
which for a Frechet distance would be larger than all the rest), and H e is one more derivative of
the statistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench.statistics.arrays import FloatArray, IntArray
from chexgenbench.statistics.estimate import Estimate

Pairs: TypeAlias = ArrayLike | Literal[True] | None
Scale: TypeAlias = Literal["linear", "log", "logit"]
Groups: TypeAlias = Sequence[object] | NDArray[Any] | None
KeyArray: TypeAlias = NDArray[np.uint64]

MOST_PROBES = 16
"""Columns of second-order terms that are kept for differences: with 16 their variance is known to
a third or better, and the 64 of some statistics would be four times the storage."""

NO_VARIATION = "no variation between the units"
ALL_AGREE = "all rows agree, which shows no variation"
_ONE_UNIT = "one independent unit only"
_ONE_OUTWEIGHS = "one unit outweighs the others"


@dataclass(frozen=True, slots=True)
class Units:
    """Which independent unit each row belongs to; ``real`` is empty for one-sided statistics.

    ``keys`` (uint64 [count]) choose a unit's random signs: a hash of its label where rows have
    labels, else its number. Two models scored against the same patients, or two subsets that
    share some, then have the same signs, and their second-order terms can be added and subtracted.
    """

    real: IntArray
    fake: IntArray
    count: int
    keys: KeyArray | None = None

    def named(self) -> KeyArray:
        """The keys, by default the numbers of the units."""
        return np.arange(self.count, dtype=np.uint64) if self.keys is None else self.keys

    def probes(self, count: int) -> FloatArray:
        """Random entries [units, probes]; see :func:`signs`."""
        return signs(self.named(), count)


def signs(keys: KeyArray, count: int) -> FloatArray:
    """Random entries [keys, count]: 0 for about half of the keys, else -1 or 1.

    Entry (u, j) depends on key u and on j alone. The top two bits of a counter mixed as in
    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").

    >>> signs(np.array([7, 8], dtype=np.uint64), 4).shape
    (2, 4)
    """
    mixed = keys[:, None] * np.uint64(0xD1342543DE82EF95)
    mixed = mixed + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    quarter = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(62)).astype(np.float64)
    entries: FloatArray = np.where(quarter < 2, 0.0, 2.0 * quarter - 5.0)
    return entries


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """What each row contributed: ``value - expectation`` is about ``real.sum() + fake.sum()``.

    Attributes:
        units: The independent unit of each row.
        real: Contributions [n] of the real rows, centred; empty for a one-sided statistic.
        fake: Contributions [m] of the generated rows, centred.
        probes_real: Second-order terms [n, probes] under random signs (see the module), or no
            columns where the statistic is linear.
        probes_fake: The same for the generated rows.
        curvature: How much of the second-order variance the statistic has: 1, or more where it
            is averaged over random partitions.
        extra: Variance that does not come from the units, for example of drawing subsets.
        least: Share of the sum of squares that is left to the variance at least, where the
            second-order part is an upper bound and not all there is; 0 where it is exact.
        scale: Where the interval is symmetric; see :func:`estimate`.
    """

    units: Units
    real: FloatArray
    fake: FloatArray
    probes_real: FloatArray
    probes_fake: FloatArray
    curvature: float = 1.0
    extra: float = 0.0
    least: float = 0.0
    scale: Scale = "linear"

    def variance(self) -> float:
        """Variance of the statistic over draws of other units, and ``extra``."""
        return total_variance(
            self.by_unit(), self.second_order(), self.curvature, self.extra, self.least
        )

    def degrees_of_freedom(self) -> float:
        """Effective number of units of the smaller side less one.

        rows^2 / sum of (rows of a unit)^2: their number where all have the same size, and near 1
        where one patient has most of the rows.
        """
        sides = [np.bincount(side) for side in (self.units.real, self.units.fake) if side.size]
        return min(float(sizes.sum()) ** 2 / float((sizes**2).sum()) for sizes in sides) - 1.0

    def by_unit(self) -> FloatArray:
        """Contributions summed within each unit, with the small-sample factor u / (u - 1)."""
        return self._sum(self.real[:, None], self.fake[:, None])[:, 0]

    def second_by_unit(self) -> FloatArray:
        """Second-order terms summed within each unit [units, probes]."""
        return self._sum(self.probes_real, self.probes_fake)

    def second_order(self) -> float:
        """The part of the variance that comes from pairs of units; 0 for a linear statistic."""
        if self.probes_fake.shape[1] == 0:
            return 0.0
        return pair_variance(self.second_by_unit(), self.units.named())

    def _sum(self, real: FloatArray, fake: FloatArray) -> FloatArray:
        total = np.zeros((self.units.count, fake.shape[1]))
        for codes, rows in ((self.units.real, real), (self.units.fake, fake)):
            if codes.size:
                used = np.unique(codes).size
                factor = np.sqrt(used / (used - 1)) if used > 1 else 1.0
                np.add.at(total, codes, factor * rows)
        return total


def pair_variance(terms: FloatArray, keys: KeyArray) -> float:
    """V2 from the second-order terms [units, probes] of units with these keys (see the module)."""
    silent = signs(keys, terms.shape[1]) == 0.0
    count, off = len(terms), silent.sum(axis=0)
    pairs = off * (count - off)
    if not pairs.size or not pairs.all():
        return 0.0
    scale = count * (count - 1) / pairs
    return float((scale * (terms**2 * silent).sum(axis=0)).mean()) / 2


def total_variance(
    first: FloatArray, second: float, curvature: float, extra: float, least: float
) -> float:
    """V1 + curvature V2 + extra from first-order terms [units], whose squares sum to V1 + 2 V2.

    V1 is nothing for equal distributions, and its estimate is then often negative: taken as 0, so
    that V2 is left, or ``least`` of the sum of squares where V2 itself is not to be relied on.
    """
    squares = float((first**2).sum())
    floor = least * squares if least else curvature * second
    return max(squares - (2 - curvature) * second, floor) + extra


def units_of(
    real: int,
    fake: int,
    *,
    pairs: Pairs = None,
    groups_real: Groups = None,
    groups_fake: Groups = None,
) -> Units:
    """The independent units of a design of ``real`` and ``fake`` rows.

    Args:
        real: Rows of the real side; 0 for a one-sided statistic.
        fake: Rows of the generated side.
        pairs: True when row i of fake answers row i of real; or an integer array [fake] that
            names the real row of each fake row, -1 for none.
        groups_real: A label a row; rows of one label (a patient) are one unit.
        groups_fake: The same for the generated side. A label that both sides know is the same
            patient.

    Returns:
        Units, numbered by their first row, real side first.

    Raises:
        ValueError: lengths do not fit, or a pair names a row that does not exist.

    >>> units_of(3, 2, pairs=[2, 0], groups_real=["a", "b", "a"]).fake
    array([0, 0])
    """
    links: list[IntArray] = []
    total = real + fake
    if pairs is not None:
        links.append(_pair_links(pairs, real, fake))
    labels: dict[object, int] = {}
    for name, groups, offset, rows in (
        ("groups_real", groups_real, 0, real),
        ("groups_fake", groups_fake, real, fake),
    ):
        if groups is None:
            continue
        listed = np.asarray(groups).tolist()
        if not isinstance(listed, list) or len(listed) != rows:
            raise ValueError(f"{name}: expected one label for each of {rows} rows")
        nodes = [labels.setdefault(label, total + len(labels)) for label in listed]
        links.append(np.array([np.arange(offset, offset + rows), nodes], dtype=np.int64))
    nodes_of = np.arange(total + len(labels), dtype=np.int64)
    if pairs is not None:
        nodes_of = _components(np.concatenate(links, axis=1), nodes_of.size)
    else:  # a row has its label and no other link: floors ask thousands of times
        for rows_of_side, labels_of_side in links:
            nodes_of[rows_of_side] = labels_of_side
    _, first, inverse = np.unique(nodes_of[:total], return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    numbered = order[inverse].astype(np.int64)
    keys = np.arange(first.size, dtype=np.uint64)
    if labels:
        # A unit's least hash: another order of its labels, or of the rows, gives the same.
        least = np.full(nodes_of.max() + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(least, nodes_of[total:], np.array([_hash(label) for label in labels]))
        labelled = np.zeros(least.size, dtype=bool)
        labelled[nodes_of[total:]] = True
        components = nodes_of[np.sort(first)]
        keys = np.where(labelled[components], least[components], keys)
    return Units(numbered[:real], numbered[real:], int(first.size), keys)


def _hash(label: object) -> np.uint64:
    return np.uint64(int.from_bytes(blake2b(repr(label).encode(), digest_size=8).digest(), "big"))


def _pair_links(pairs: ArrayLike, real: int, fake: int) -> IntArray:
    if pairs is True:
        if real != fake:
            raise ValueError(f"pairs=True needs as many real as fake rows, got {real} and {fake}")
        answered = np.arange(fake)
    else:
        answered = np.asarray(pairs)
        if answered.shape != (fake,) or answered.dtype.kind not in "iu":
            raise ValueError(f"pairs: expected the number of a real row for each of {fake} rows")
        if answered.size and (answered.min() < -1 or answered.max() >= real):
            raise ValueError(f"pairs: real rows are numbered 0 to {real - 1}, -1 for none")
    known = np.flatnonzero(answered >= 0)
    return np.array([answered[known], real + known], dtype=np.int64)


def _components(links: IntArray, nodes: int) -> IntArray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(links.shape[1]), (links[0], links[1])), shape=(nodes, nodes))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def linear(units: Units, fake: FloatArray, real: FloatArray | None = None) -> Influence:
    """The influence of a statistic without (or with negligible) second-order terms."""
    first = np.zeros(0) if real is None else real
    return Influence(units, first, fake, np.zeros((first.size, 0)), np.zeros((fake.size, 0)))


def estimate(
    value: float,
    influence: Influence,
    *,
    extra: float = 0.0,
    low: float = -np.inf,
    high: float = np.inf,
    scale: Scale = "linear",
    warning: str | None = None,
) -> Estimate:
    """Value with a 95 % t interval from the influence's variance and ``extra``.

    Args:
        value: The statistic.
        influence: What each row contributed to it.
        extra: Variance to add (or, if negative, to take off); stays with the influence.
        low: Lower end of the statistic's range, at which the interval is cut.
        high: Upper end of it.
        scale: Where the interval is symmetric: on the value itself, on its logarithm (positive
            values whose spread grows with them), or on its logit (shares). Stays with the
            influence too.
        warning: Passed on.
    """
    influence = replace(influence, extra=influence.extra + extra, scale=scale)
    found = interval(
        value,
        influence.variance(),
        influence.degrees_of_freedom(),
        low=low,
        high=high,
        scale=scale,
    )
    kept = None if found.reason in (_ONE_UNIT, _ONE_OUTWEIGHS) else influence
    return replace(found, warning=warning, influence=kept)


def interval(
    value: float,
    variance: float,
    freedom: float,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    scale: Scale = "linear",
) -> Estimate:
    """Value with a 95 % t interval of this variance and these degrees of freedom."""
    if freedom < 1.0 - 1e-9:
        return withheld(value, _ONE_UNIT if freedom < 1e-9 else _ONE_OUTWEIGHS)
    error = float(np.sqrt(variance))
    if error == 0.0:
        return withheld(value, NO_VARIATION)
    half = _t_quantile(freedom) * error
    if scale == "linear":
        ends = value - half, value + half
    elif scale == "log":
        ends = _power(value, -half / value), _power(value, half / value)
    else:
        odds, width = value / (1 - value), half / (value * (1 - value))
        ends = 1 / (1 + 1 / _power(odds, -width)), 1 / (1 + 1 / _power(odds, width))
    return Estimate(value, error, max(ends[0], low), min(ends[1], high), degrees_of_freedom=freedom)


def _power(value: float, shift: float) -> float:
    """The value times e^shift, kept away from 0 and infinity."""
    return float(np.exp(np.clip(np.log(value) + shift, -700.0, 700.0)))


def withheld(
    value: float, reason: str, *, warning: str | None = None, influence: Influence | None = None
) -> Estimate:
    """Value without an interval."""
    return Estimate(value, None, None, None, reason, warning, influence)


def _t_quantile(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
