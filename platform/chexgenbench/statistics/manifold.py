"""Precision, recall, density and coverage: k-nearest-neighbour balls around the rows.

Distances are made in blocks of rows and never kept: memory is one block and a few numbers a row.
Beside the values, one pass collects what deleting each independent unit (a row, a prompt's two
images, all of a patient) would change, exactly: a row of others that its balls alone cover, and the
shells between a ball's radius and the radius it would grow to if the neighbours of that unit were
deleted. Adding up what each row of a patient does alone made the error up to twice too large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench.statistics.arrays import (
    EDGE,
    BoolArray,
    FloatArray,
    IntArray,
    blocks,
    squared_distances,
    two_sides,
)
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import (
    ALL_AGREE,
    MOST_PROBES,
    Groups,
    Influence,
    Pairs,
    Scale,
    Units,
    estimate,
    units_of,
    withheld,
)

__all__ = ["precision_recall_density_coverage"]


_Split: TypeAlias = tuple[BoolArray, IntArray, IntArray]

_MOST_OPEN = 1 / 32
"""Share of the pairs of a block up to which single ones are settled; above it all are made anew."""

_FEWEST_BALLS = 10
"""Below that many balls that hold anything, chance decides how many rows the largest holds."""

_MOST_OF_A_UNIT = 32
"""Rows of a unit that deleting it is followed through for; few patients have more studies."""

_LEFT = 0.25
"""Triples and larger sets of rows make the pairs look too important at times; what was left over
in simulation was never less than a quarter on average."""


def precision_recall_density_coverage(
    real: ArrayLike,
    fake: ArrayLike,
    k: int = 5,
    *,
    pairs: Pairs = None,
    groups_real: Groups = None,
    groups_fake: Groups = None,
) -> dict[str, Estimate]:
    """Improved precision and recall, and density and coverage, of ``fake`` against ``real``.

    With B(x) the open ball around a row that reaches to its k-th nearest neighbour on its own
    side (itself not counted):

    * precision: share of fake rows that lie in some B(real row); [0, 1]
    * recall: share of real rows that lie in some B(fake row); [0, 1]
    * density: mean over fake rows of the number of B(real row) that hold it, over k; [0, n / k]
    * coverage: share of real rows whose B holds some fake row; [0, 1]

    A row exactly on the edge of a ball is outside, as in the published code; "exactly" means
    within 1e-12 of the squared norms, since distances of equal rows differ by rounding.

    Args:
        real: Features [n, d], n > k, any real dtype (computed in float64).
        fake: Features [m, d], m > k.
        k: Neighbours that span a ball, at least 1.
        pairs: True when row i of ``fake`` answers row i of ``real``, or an integer array [m] with
            the real row that each fake row answers, -1 for none.
        groups_real: A label a row (patient): rows of one label are not independent.
        groups_fake: The same for ``fake``; a label known to both sides is the same patient.

    Returns:
        ``precision``, ``recall``, ``density`` and ``coverage``. Each interval is for the
        statistic's own expectation at this n, m and k; the values depend on all three and must
        not be compared across sizes. Standard error from deleting each independent unit, the
        interactions of two units taken off once (see ``chexgenbench.statistics.sampling``): the
        binomial error alone would forget that the balls move too. Symmetric on the logit, or the
        logarithm for density, as these scores have long tails near 0 and 1. Withheld where a share
        is 0 or 1 (no variation is seen), where fewer than 10 independent balls hold any row (then
        a few outliers of the other side decide the score), and for n or m = k + 1. The error is 0
        to 20 % too large, a third at worst, and up to 40 % in two to four dimensions
        (docs/uncertainty.md).

    Raises:
        ValueError: NaN or infinity, different d, k below 1 or not below n and m, or pairs and
            groups that do not fit.

    Sources: Kynkaanniemi et al. 2019 (arXiv 1904.06991), eq. 1-3; Naeem et al. 2020
    (arXiv 2002.09797), eq. 3-6.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(2, 200, 4))
    >>> scores = precision_recall_density_coverage(rows[0], rows[1])
    >>> list(scores), bool(scores["recall"].value > 0.8)
    (['precision', 'recall', 'density', 'coverage'], True)
    """
    x, y = two_sides(real, fake)
    if isinstance(k, bool) or k != int(k) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k}")
    k = int(k)
    if k >= min(len(x), len(y)):
        raise ValueError(
            f"k = {k} neighbours need more than {k} rows a side, "
            f"got {len(x)} real and {len(y)} fake"
        )
    units = units_of(len(x), len(y), pairs=pairs, groups_real=groups_real, groups_fake=groups_fake)
    # The median: one outlier must not move all rows away from the origin.
    centre = np.median(x, axis=0)
    x -= centre  # copies of the arguments
    y -= centre
    sides = _Side(units.real, units), _Side(units.fake, units)
    around_real, around_fake = _balls(x, k, sides[0]), _balls(y, k, sides[1])
    by_real, by_fake = _cover(x, y, around_real, around_fake, *sides)
    n, m = len(x), len(y)

    precision = _share_covered(by_real, *sides)
    recall = _share_covered(by_fake, *sides[::-1])
    density = _density(by_real, *sides, k)
    coverage = _share_covering(by_real, *sides)
    real_balls = np.unique(units.real[by_real.held > 0]).size
    fake_balls = np.unique(units.fake[by_fake.held > 0]).size
    scores = {
        "precision": precision.estimate(units, real_balls, "logit"),
        "recall": recall.estimate(units, fake_balls, "logit", owner="fake"),
        "density": density.estimate(units, real_balls, "log", high=n / k),
        "coverage": coverage.estimate(units, real_balls, "logit"),
    }
    if min(n, m) < k + 2:
        reason = "n = k + 1: no row can be left out"
        return {name: withheld(score.value, reason) for name, score in scores.items()}
    return scores


class _Side:
    """The independent unit of each row of a side, and what is added over the rows of a ball."""

    def __init__(self, codes: IntArray, units: Units) -> None:
        self.codes = codes
        self.rows = _count(codes, units.count)  # of each unit
        self.signs = units.probes(MOST_PROBES)
        numbers = codes.astype(np.float64)
        # Sums of these over a ball tell whether its rows are all of one unit, and which.
        self.summed = np.column_stack([np.ones(codes.size), numbers, numbers**2, self.signs[codes]])

    def total(self, of_rows: FloatArray) -> FloatArray:
        """Sums [units, columns] of the rows of each unit."""
        totals = np.zeros((self.rows.size, of_rows.shape[1]))
        np.add.at(totals, self.codes, of_rows)
        return totals

    def spread(self, of_units: FloatArray) -> FloatArray:
        """What units contribute, in equal parts over their rows on this side."""
        shares: FloatArray = (of_units.T / np.maximum(self.rows, 1.0)).T[self.codes]
        return shares


@dataclass(frozen=True, slots=True)
class _Balls:
    """Squared radii [n], and what they grow to if all rows of a unit are deleted.

    Each of the ``k`` slots of ``grown`` is for the unit in ``without`` (-1: an own row of the
    ball's unit, or a unit that has a slot already).
    """

    radius: FloatArray
    grown: FloatArray  # [n, k]
    without: IntArray  # [n, k]


@dataclass(frozen=True, slots=True)
class _Cover:
    """How the balls of one side (owners) hold the rows of the other (points)."""

    holders: IntArray  # balls that hold each point
    holding_unit: IntArray  # the unit of all of them, -1 for none or several
    held: IntArray  # points that each ball holds
    held_unit: IntArray
    signs_held: FloatArray  # sum of their random signs [owners, probes]
    signs_of_holders: FloatArray  # sum of the holders' [points, probes]
    own_held: IntArray  # points of the ball's own unit in it
    own_holders: IntArray
    # Deleting the unit brings the point into the owner's ball; neither belongs to the unit.
    grown_unit: IntArray
    grown_owner: IntArray
    grown_point: IntArray


def _balls(rows: FloatArray, k: int, side: _Side) -> _Balls:
    count = len(rows)
    # Enough neighbours for k of them to be left without a unit.
    width = min(k + min(int(side.rows.max()), _MOST_OF_A_UNIT), count - 1)
    distances = np.empty((count, width))
    neighbours = np.empty((count, width), dtype=np.int64)
    rough = _Rough(rows, rows)
    norms = rough.norms_x
    for block in blocks(count, 2 * count):
        distances[block], neighbours[block] = _nearest(rough, block, width)
    # Rounding of a square is some 1e-15 of the norms of its two rows.
    distances -= EDGE * (norms[:, None] + norms[neighbours])
    unit = side.codes[neighbours]
    grown, without = np.empty((count, k)), unit[:, :k].copy()
    for slot in range(k):
        left = np.cumsum(unit != unit[:, slot, None], axis=1)
        kth = np.where(left[:, -1] >= k, (left >= k).argmax(axis=1), width - 1)
        grown[:, slot] = distances[np.arange(count), kth]
        seen = (unit[:, :slot] == unit[:, slot, None]).any(axis=1)
        without[seen | (unit[:, slot] == side.codes), slot] = -1
    return _Balls(distances[:, k - 1], grown, without)


@dataclass(frozen=True, slots=True)
class _Squares:
    """Squared distances over ``unit`` [rows of x, rows of y], and what they may be too low by.

    ``low`` is never above the truth, and below it by at most ``slack_x`` of the row and
    ``slack_y`` of the column together. ``exact`` gives single ones, not over ``unit``.
    """

    low: NDArray[Any]
    slack_x: FloatArray
    slack_y: FloatArray
    unit: float
    exact: Callable[[IntArray, IntArray], FloatArray]

    def transposed(self) -> _Squares:
        return _Squares(
            self.low.T,
            self.slack_y,
            self.slack_x,
            self.unit,
            lambda first, second: self.exact(second, first),
        )

    def below(self, squared: FloatArray, *, surely: bool = False) -> BoolArray:
        """Which may be less than ``squared`` [rows of x], or surely are."""
        limits = squared / self.unit
        if surely:
            limits -= self.slack_x + self.slack_y.max()
        below: BoolArray = self.low < limits.astype(self.low.dtype)[:, None]
        return below


class _Rough:
    """Squared distances of two sides: bounds from a float32 product, and float64 where asked for.

    The product in float32 takes half of the time. Its rounding is bounded, and what the bounds
    leave open is settled in float64: no decision depends on float32.
    """

    def __init__(self, x: FloatArray, y: FloatArray) -> None:
        self.x, self.y = x, y
        self.norms_x, self.norms_y = (np.einsum("ij,ij->i", rows, rows) for rows in (x, y))
        largest = max(self.norms_x.max(), self.norms_y.max())
        # A power of two, exact to divide by, that keeps clear of the ends of float32's range.
        scale = float(2.0 ** np.ceil(np.log2(largest) / 2)) if largest > 0 else 1.0
        self.unit = scale**2
        # With u = 2^-24, as a share of |x|^2 + |y|^2 >= 2 |x||y|: 2 u for rounding the factors, u
        # for the norms, 2 (d + 2) u for the sum of a product that has the norms in it (Higham
        # 2002, "Accuracy and Stability of Numerical Algorithms", eq. 3.5), and for the limits
        # that it is compared with. The second number is for what is below float32's range.
        width = x.shape[1]
        share, least = 1.01 * (2 * width + 16) * 2.0**-24, (width + 16) * 2.0**-120
        below_x, below_y = (
            share * norms / self.unit + least for norms in (self.norms_x, self.norms_y)
        )
        self.slack_x, self.slack_y = 2 * below_x, 2 * below_y
        # -2 x'y + |x|^2 + |y|^2 as one product: passes over the result would take as long.
        self.narrow_x = np.empty((len(x), width + 2), dtype=np.float32)
        self.narrow_y = np.empty((len(y), width + 2), dtype=np.float32)
        np.multiply(x, -2.0 / scale, out=self.narrow_x[:, :width], casting="same_kind")
        np.divide(y, scale, out=self.narrow_y[:, :width], casting="same_kind")
        self.narrow_x[:, width], self.narrow_y[:, width] = self.norms_x / self.unit - below_x, 1.0
        self.narrow_x[:, width + 1], self.narrow_y[:, width + 1] = (
            1.0,
            self.norms_y / self.unit - below_y,
        )

    def bounds(self, block: slice) -> _Squares:
        """Rows ``block`` of x against all of y."""

        def exact(first: IntArray, second: IntArray) -> FloatArray:
            first = first + block.start
            found: FloatArray = self.norms_x[first] + self.norms_y[second]
            for part in blocks(first.size, 16 * self.x.shape[1]):  # small enough for the cache
                left, right = self.x[first[part]], self.y[second[part]]
                found[part] -= 2.0 * np.einsum("ij,ij->i", left, right)
            return found

        low = self.narrow_x[block] @ self.narrow_y.T
        return _Squares(low, self.slack_x[block], self.slack_y, self.unit, exact)

    def exactly(self, block: slice) -> _Squares:
        """The same in float64, for blocks where the bounds leave much open."""
        squares = squared_distances(self.x[block], self.y, self.norms_y)
        none = np.zeros(len(squares)), np.zeros(len(self.y))
        return _Squares(squares, *none, 1.0, lambda first, second: squares[first, second])


def _nearest(rough: _Rough, block: slice, width: int) -> tuple[FloatArray, IntArray]:
    """Squared distances of each row of ``block`` to its nearest others, in order, and which."""
    bounds = rough.bounds(block)
    low, rows = bounds.low, np.arange(block.stop - block.start)
    low[rows, rows + block.start] = np.inf
    # The smallest of each of some groups of columns: the width-th of them is an upper bound of
    # the width-th of all, and much quicker to find.
    count = low.shape[1]
    size = max(1, min(16, count // (4 * width)))
    whole = count // size * size
    least = low[:, :whole].reshape(rows.size, size, -1).min(axis=1)
    least = np.concatenate([least, low[:, whole:]], axis=1)
    limit = np.partition(least, width - 1, axis=1)[:, width - 1].astype(np.float64)
    limit += bounds.slack_x + bounds.slack_y.max()
    near = low <= np.nextafter(limit.astype(np.float32), np.float32(np.inf))[:, None]
    if np.count_nonzero(near) > _MOST_OPEN * near.size + 2 * width * rows.size:
        squares = rough.exactly(block).low
        squares[rows, rows + block.start] = np.inf
        others = np.argpartition(squares, width - 1, axis=1)[:, :width]
        found = np.take_along_axis(squares, others, axis=1)
        order = np.argsort(found, axis=1)
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(others, order, axis=1)
    first, second = _where(near)
    found = bounds.exact(first, second)
    order = np.lexsort((found, first))  # by row, then by distance
    chosen = order[np.searchsorted(first, rows)[:, None] + np.arange(width)]
    return found[chosen], second[chosen]


def _where(mask: BoolArray) -> tuple[IntArray, IntArray]:
    """``np.nonzero`` of a matrix; several times faster, and ordered as its memory is."""
    if not mask.flags.c_contiguous:
        second, first = _where(np.ascontiguousarray(mask.T))
        return first, second
    first, second = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return first, second


def _cover(
    x: FloatArray, y: FloatArray, around_x: _Balls, around_y: _Balls, of_x: _Side, of_y: _Side
) -> tuple[_Cover, _Cover]:
    """How balls around x hold rows of y, and the other way round, in one pass."""
    n, m = len(x), len(y)
    rough = _Rough(x, y)
    by_x, by_y = _Counts(around_x, of_x, of_y), _Counts(around_y, of_y, of_x)
    for block in blocks(n, 3 * m):
        bounds = rough.bounds(block)
        other = bounds.transposed()
        split_x, split_y = by_x.split(bounds, block), by_y.split(other, slice(0, m))
        if split_x[1].size + split_y[1].size > _MOST_OPEN * bounds.low.size:
            bounds = rough.exactly(block)
            other = bounds.transposed()
            split_x, split_y = by_x.split(bounds, block), by_y.split(other, slice(0, m))
        by_x.add(bounds, split_x, owners=block, points=slice(0, m))
        by_y.add(other, split_y, owners=slice(0, m), points=block)
    return by_x.cover(), by_y.cover()


class _Counts:
    """Makes a :class:`_Cover` out of blocks of squared distances [owners, points]."""

    def __init__(self, balls: _Balls, of_owners: _Side, of_points: _Side) -> None:
        self.balls, self.of_owners, self.of_points = balls, of_owners, of_points
        columns = of_owners.summed.shape[1]
        self.in_balls = np.zeros((of_owners.codes.size, columns))
        self.in_holders = np.zeros((of_points.codes.size, columns))
        self.own_held, self.own_holders = (
            np.zeros(side.codes.size, dtype=np.int64) for side in (of_owners, of_points)
        )
        self.largest = np.where(balls.without >= 0, balls.grown, 0.0).max(axis=1)
        self.shared = np.flatnonzero((of_owners.rows > 0) & (of_points.rows > 0))
        self.grown: list[tuple[IntArray, IntArray, IntArray]] = []

    def split(self, squares: _Squares, owners: slice) -> _Split:
        """What lies within the balls for sure, and the pairs for which that is to be settled."""
        inside = squares.below(self.balls.radius[owners], surely=True)
        reach = np.maximum(self.largest[owners], self.balls.radius[owners])
        near = squares.below(reach)
        near &= ~inside
        return inside, *_where(near)

    def add(self, squares: _Squares, split: _Split, *, owners: slice, points: slice) -> None:
        """Counts a block; ``split`` is this block's."""
        from scipy.sparse import coo_array

        owner_units, point_units = self.of_owners.codes[owners], self.of_points.codes[points]
        inside, owner, point = split
        distances = squares.exact(owner, point)
        within = distances < self.balls.radius[owners][owner]
        inside[owner[within], point[within]] = True
        owner, point, distances = owner[~within], point[~within], distances[~within]
        for slot in range(self.balls.without.shape[1]):
            unit = self.balls.without[owners, slot][owner]
            comes = (unit >= 0) & (distances < self.balls.grown[owners, slot][owner])
            comes &= unit != point_units[point]
            self.grown.append(
                (unit[comes], owner[comes] + owners.start, point[comes] + points.start)
            )
        owner, point = _where(inside)
        held = coo_array((np.ones(owner.size), (owner, point)), shape=inside.shape)
        self.in_balls[owners] += held @ self.of_points.summed[points]
        self.in_holders[points] += held.T @ self.of_owners.summed[owners]
        if self.shared.size:
            own = owner_units[owner] == point_units[point]
            self.own_held[owners] += np.bincount(owner[own], minlength=owner_units.size)
            self.own_holders[points] += np.bincount(point[own], minlength=point_units.size)

    def cover(self) -> _Cover:
        unit, owner, point = (np.concatenate(part) for part in zip(*self.grown, strict=True))
        return _Cover(
            holders=self.in_holders[:, 0].astype(np.int64),
            holding_unit=_one_unit(self.in_holders),
            held=self.in_balls[:, 0].astype(np.int64),
            held_unit=_one_unit(self.in_balls),
            signs_held=self.in_balls[:, 3:],
            signs_of_holders=self.in_holders[:, 3:],
            own_held=self.own_held,
            own_holders=self.own_holders,
            grown_unit=unit,
            grown_owner=owner,
            grown_point=point,
        )


def _one_unit(sums: FloatArray) -> IntArray:
    """The unit of all rows that were summed, -1 where they are of several or there are none."""
    count, first, second = sums[:, :3].astype(np.int64).T
    # Equal numbers are those with the square of the sum count times the sum of squares.
    return np.where((count > 0) & (first**2 == count * second), first // np.maximum(count, 1), -1)


@dataclass(frozen=True, slots=True)
class _Score:
    """A value, what each row of both sides contributed, and its second-order terms [rows, p]."""

    value: float
    owners: FloatArray
    points: FloatArray
    probes_owners: FloatArray
    probes_points: FloatArray

    def estimate(
        self, units: Units, balls: int, scale: Scale, *, owner: str = "real", high: float = 1.0
    ) -> Estimate:
        if scale == "logit" and not 0.0 < self.value < 1.0:
            return withheld(self.value, ALL_AGREE)
        if balls < _FEWEST_BALLS:
            return withheld(
                self.value, f"only {balls} independent balls hold a row, {_FEWEST_BALLS} needed"
            )
        sides = [
            (self.owners - self.owners.mean(), self.probes_owners),
            (self.points - self.points.mean(), self.probes_points),
        ]
        (real, probes_real), (fake, probes_fake) = sides if owner == "real" else sides[::-1]
        influence = Influence(units, real, fake, probes_real, probes_fake, least=_LEFT)
        return estimate(self.value, influence, high=high, scale=scale)


class _Pairs:
    """Second-order terms: what the score loses with a unit and a row, less with each alone.

    Side 0 is that of the owners, side 1 that of the points.
    """

    def __init__(self, of_owners: _Side, of_points: _Side) -> None:
        self.sides = of_owners, of_points
        count, probes = of_owners.signs.shape
        self.sums = np.zeros((2, count, probes))
        self.plain = np.zeros((2, count, 2))  # without signs, by the side of the partner

    def add(
        self, unit: IntArray, rows: IntArray, weight: float, *, of: int = 0, side: int = 1
    ) -> None:
        """Pairs of a unit (as it is on side ``of``) and a row of ``side``, of another unit."""
        from scipy.sparse import coo_array

        count = self.sums.shape[1]
        other = self.sides[side].codes[rows]
        terms = coo_array((np.full(unit.size, weight), (unit, other)), shape=(count, count))
        signs = self.sides[0].signs
        self.sums[of] += terms @ signs
        self.sums[side] += terms.T @ signs
        self.plain[of, :, side] += weight * _count(unit, count)
        self.plain[side, :, of] += weight * _count(other, count)

    def terms(self, scale: float) -> tuple[FloatArray, FloatArray]:
        """Both sides' terms by row, centred over the row and over its partners."""
        balance = [side.signs[side.codes].mean(axis=0) for side in self.sides]
        centred = []
        for side, sums, plain in zip(self.sides, self.sums, self.plain, strict=True):
            rest = side.spread(sums - plain[:, :1] * balance[0] - plain[:, 1:] * balance[1])
            centred.append((rest - rest.mean(axis=0)) / scale)
        return centred[0], centred[1]


def _share_covered(cover: _Cover, of_owners: _Side, of_points: _Side) -> _Score:
    """Share of points held by some ball: precision, and with the sides exchanged recall."""
    points = of_points.codes.size
    held = cover.holders > 0
    value = float(held.mean())
    # Deleting a unit frees the points of others that it alone held, and lets the balls grow that
    # it helped to span: (unit, point) pairs, each counted once.
    alone = np.flatnonzero((cover.holding_unit >= 0) & (cover.holding_unit != of_points.codes))
    lost = cover.holding_unit[alone] * points + alone
    near = ~held[cover.grown_point] | (cover.holding_unit[cover.grown_point] == cover.grown_unit)
    grown = np.unique(cover.grown_unit[near] * points + cover.grown_point[near])
    gained = grown[~held[grown % points]]
    lost = np.setdiff1d(lost, grown, assume_unique=True)
    pairs = _Pairs(of_owners, of_points)
    pairs.add(lost // points, lost % points, 1.0)
    pairs.add(gained // points, gained % points, -1.0)
    return _Score(
        value,
        of_owners.spread(pairs.plain[0, :, 1]) / points,
        (held - value) / points,
        *pairs.terms(points),
    )


def _density(cover: _Cover, of_owners: _Side, of_points: _Side, k: int) -> _Score:
    """Balls that hold a point, over k, averaged over the points."""
    points = of_points.codes.size
    value = float(cover.holders.sum()) / (k * points)
    # Pairs of an owner's unit and a point only: with those of two owners, whose interactions rest
    # on three and more rows, the error came out a third too small in simulation.
    pairs = _Pairs(of_owners, of_points)
    pairs.add(cover.grown_unit, cover.grown_point, -1.0)
    for at, side, counts, own, signs in (
        (0, of_owners, cover.held, cover.own_held, cover.signs_held),
        (1, of_points, cover.holders, cover.own_holders, cover.signs_of_holders),
    ):
        pairs.sums[at] += side.total(signs - own[:, None] * side.signs[side.codes])
        pairs.plain[at, :, 1 - at] += side.total((counts - own)[:, None].astype(np.float64))[:, 0]
    return _Score(
        value,
        of_owners.spread(pairs.plain[0, :, 1]) / (k * points),
        (cover.holders / k - value) / points,
        *pairs.terms(k * points),
    )


def _share_covering(cover: _Cover, of_owners: _Side, of_points: _Side) -> _Score:
    """Share of balls that hold some point: coverage."""
    owners = of_owners.codes.size
    holding = cover.held > 0
    value = float(holding.mean())
    alone = np.flatnonzero((cover.held_unit >= 0) & (cover.held_unit != of_owners.codes))
    lost = cover.held_unit[alone] * owners + alone
    grown = np.unique(cover.grown_unit * owners + cover.grown_owner)
    gained = grown[~holding[grown % owners]]
    lost = np.setdiff1d(lost, grown, assume_unique=True)
    pairs = _Pairs(of_owners, of_points)
    pairs.add(lost // owners, lost % owners, 1.0, of=1, side=0)
    by_points = pairs.plain[1, :, 0].copy()
    pairs.add(gained // owners, gained % owners, -1.0, of=0, side=0)
    by_owners = -_count(gained // owners, pairs.plain.shape[1])
    return _Score(
        value,
        (holding - value) / owners + of_owners.spread(by_owners) / owners,
        of_points.spread(by_points) / owners,
        *pairs.terms(owners),
    )


def _count(numbers: IntArray, size: int) -> FloatArray:
    return np.bincount(numbers, minlength=size).astype(np.float64)
