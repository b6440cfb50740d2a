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
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench.statistics.arrays import FloatArray, IntArray
from chexgenbench.statistics.estimate import Estimate

Pairs: TypeAlias = ArrayLike | Literal[True] | None
Scale: TypeAlias = Literal["linear", "log", "logit"]
Groups: TypeAlias = Sequence[object] | NDArray[Any] | None


@dataclass(frozen=True, slots=True)
class Units:
    """Which independent unit each row belongs to; ``real`` is empty for one-sided statistics."""

    real: IntArray
    fake: IntArray
    count: int

    def probes(self, count: int) -> FloatArray:
        """Random entries [units, probes]: 0 for about half of the units, else -1 or 1.

        Row u depends on the number u alone: two models scored against the same real rows get the
        same probes, so their second-order terms can be subtracted too.
        """
        quarter = np.random.default_rng(20250516).integers(0, 4, (self.count, count))
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
    """

    units: Units
    real: FloatArray
    fake: FloatArray
    probes_real: FloatArray
    probes_fake: FloatArray

    def variance(self) -> float:
        """Variance of the statistic over draws of other units.

        Never less than its second-order part, which is all there is for equal distributions.
        """
        second = self.second_order()
        return max(float((self.by_unit() ** 2).sum()) - second, second)

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

    def second_order(self) -> float:
        """The part of the variance that comes from pairs of units; 0 for a linear statistic."""
        if self.probes_fake.shape[1] == 0:
            return 0.0
        terms = self._sum(self.probes_real, self.probes_fake)
        silent = self.units.probes(terms.shape[1]) == 0.0
        off = silent.sum(axis=0)
        pairs = off * (self.units.count - off)
        if not pairs.all():
            return 0.0
        scale = self.units.count * (self.units.count - 1) / pairs
        return float((scale * (terms**2 * silent).sum(axis=0)).mean()) / 2

    def _sum(self, real: FloatArray, fake: FloatArray) -> FloatArray:
        total = np.zeros((self.units.count, fake.shape[1]))
        for codes, rows in ((self.units.real, real), (self.units.fake, fake)):
            if codes.size:
                used = np.unique(codes).size
                factor = np.sqrt(used / (used - 1)) if used > 1 else 1.0
                np.add.at(total, codes, factor * rows)
        return total


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
    if not links:
        codes = np.arange(total, dtype=np.int64)
    else:
        codes = _components(np.concatenate(links, axis=1), total + len(labels))[:total]
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    numbered = order[inverse].astype(np.int64)
    return Units(numbered[:real], numbered[real:], int(first.size))


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
        extra: Variance to add (or, if negative, to take off).
        low: Lower end of the statistic's range, at which the interval is cut.
        high: Upper end of it.
        scale: Where the interval is symmetric: on the value itself, on its logarithm (positive
            values whose spread grows with them), or on its logit (shares).
        warning: Passed on.
    """
    freedom = influence.degrees_of_freedom()
    if freedom < 1.0 - 1e-9:
        few = "one independent unit only" if freedom < 1e-9 else "one unit outweighs the others"
        return withheld(value, few, warning=warning)
    error = float(np.sqrt(influence.variance() + extra))
    if error == 0.0:
        return withheld(
            value, "no variation between the units", warning=warning, influence=influence
        )
    half = _t_quantile(freedom) * error
    if scale == "linear":
        ends = value - half, value + half
    elif scale == "log":
        ends = _power(value, -half / value), _power(value, half / value)
    else:
        odds, width = value / (1 - value), half / (value * (1 - value))
        ends = 1 / (1 + 1 / _power(odds, -width)), 1 / (1 + 1 / _power(odds, width))
    return Estimate(value, error, max(ends[0], low), min(ends[1], high), None, warning, influence)


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
