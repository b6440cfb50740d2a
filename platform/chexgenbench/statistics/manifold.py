"""Precision, recall, density and coverage: k-nearest-neighbour balls around the rows.

Distances are made in blocks of rows and never kept: memory is one block and a few numbers a row.
Beside the values, one pass collects what deleting each single row would change, exactly: a fake
row covered by one ball only, and the shells between a ball's radius and the radius it would grow
to (its k + 1st neighbour) if one of its k neighbours were deleted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from chexgenbench.statistics.arrays import FloatArray, IntArray, blocks, two_sides
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import (
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

_EDGE = 1e-12
"""Distances that differ by less than this share of the squared norms are equal."""

_FEWEST_BALLS = 10
"""Below that many balls that hold anything, chance decides how many rows the largest holds."""

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
        not be compared across sizes. Standard error from deleting each row, the interactions of
        two rows taken off once (see ``chexgenbench.statistics.sampling``): the binomial error
        alone would forget that the balls move too. Symmetric on the logit, or the logarithm for
        density, as these scores have long tails near 0 and 1. Withheld where a share is 0 or 1
        (no variation is seen), where fewer than 10 independent balls hold any row (then a few
        outliers of the other side decide the score), and for n or m = k + 1. The error is 0 to
        20 % too large, and up to 40 % in two to four dimensions (``benchmarks/coverage.py``).

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
    x, y = x - centre, y - centre
    around_real, around_fake = _balls(x, k), _balls(y, k)
    probes = units.probes(MOST_PROBES)
    signs = probes[units.real], probes[units.fake]
    by_real, by_fake = _cover(x, y, around_real, around_fake, signs)
    n, m = len(x), len(y)

    precision = _share_covered(by_real, around_real, *signs)
    recall = _share_covered(by_fake, around_fake, *signs[::-1])
    density = _density(by_real, around_real, *signs, k)
    coverage = _share_covering(by_real, around_real, *signs)
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


@dataclass(frozen=True, slots=True)
class _Balls:
    """Squared radii [n], and what they grow to if one of the rows that span them is deleted."""

    radius: FloatArray
    larger: FloatArray
    spanning: IntArray  # the k nearest rows [n, k], nearest first


@dataclass(frozen=True, slots=True)
class _Cover:
    """How the balls of one side (owners) hold the rows of the other (points)."""

    holders: IntArray  # balls that hold each point
    one_holder: IntArray  # sum of their numbers: the only one, where there is one
    held: IntArray  # points that each ball holds
    one_held: IntArray  # sum of their numbers
    signs_held: FloatArray  # sum of their random signs [owners, probes]
    signs_of_holders: FloatArray  # sum of the holders' [points, probes]
    shell_owner: IntArray  # (owner, point) pairs between radius and larger radius
    shell_point: IntArray


def _balls(rows: FloatArray, k: int) -> _Balls:
    count = len(rows)
    width = min(k + 1, count - 1)
    radii = np.empty((count, width))
    neighbours = np.empty((count, width), dtype=np.int64)
    norms = (rows**2).sum(axis=1)
    for block in blocks(count, 2 * count):  # argpartition makes a second array of that size
        squares = _squares(rows[block], rows, norms[block], norms)
        squares[np.arange(block.stop - block.start), np.arange(block.start, block.stop)] = np.inf
        nearest = np.argpartition(squares, width - 1, axis=1)[:, :width]
        distances = np.take_along_axis(squares, nearest, axis=1)
        order = np.argsort(distances, axis=1)
        radii[block] = np.take_along_axis(distances, order, axis=1)
        neighbours[block] = np.take_along_axis(nearest, order, axis=1)
    # Rounding of a square is some 1e-15 of the norms of its two rows.
    radii -= _EDGE * (norms[:, None] + norms[neighbours])
    return _Balls(radii[:, k - 1], radii[:, width - 1], neighbours[:, :k])


def _squares(x: FloatArray, y: FloatArray, norms_x: FloatArray, norms_y: FloatArray) -> FloatArray:
    squares = x @ y.T
    squares *= -2.0
    squares += norms_x[:, None]
    squares += norms_y
    return squares


def _cover(
    x: FloatArray,
    y: FloatArray,
    around_x: _Balls,
    around_y: _Balls,
    signs: tuple[FloatArray, FloatArray],
) -> tuple[_Cover, _Cover]:
    """How balls around x hold rows of y, and the other way round, in one pass."""
    n, m = len(x), len(y)
    norms_x, norms_y = (x**2).sum(axis=1), (y**2).sum(axis=1)
    by_x, by_y = _Counts(*signs), _Counts(np.zeros((m, 0)), np.zeros((n, 0)))
    for block in blocks(n, 3 * m):
        squares = _squares(x[block], y, norms_x[block], norms_y)
        by_x.add(squares, around_x, owners=block, points=slice(0, m))
        by_y.add(squares.T, around_y, owners=slice(0, m), points=block)
    return by_x.cover(), by_y.cover()


class _Counts:
    """Makes a :class:`_Cover` out of blocks of squared distances [owners, points]."""

    def __init__(self, of_owners: FloatArray, of_points: FloatArray) -> None:
        # Row numbers, ones and signs: their sums over a ball, in float64 exact below 2^53.
        self.of_owners, self.of_points = (
            np.column_stack([np.arange(len(signs)), np.ones(len(signs)), signs])
            for signs in (of_owners, of_points)
        )
        self.in_balls, self.in_holders = (
            np.zeros((len(self.of_owners), self.of_points.shape[1])),
            np.zeros((len(self.of_points), self.of_owners.shape[1])),
        )
        self.shells: list[tuple[IntArray, IntArray]] = []

    def add(self, squares: FloatArray, balls: _Balls, *, owners: slice, points: slice) -> None:
        inside = squares < balls.radius[owners, None]
        shell = squares < balls.larger[owners, None]
        shell &= ~inside
        owner, point = np.nonzero(shell)
        self.shells.append((owner + owners.start, point + points.start))
        ones = inside.astype(np.float64)
        self.in_balls[owners] += ones @ self.of_points[points]
        self.in_holders[points] += ones.T @ self.of_owners[owners]

    def cover(self) -> _Cover:
        owner, point = (np.concatenate(part) for part in zip(*self.shells, strict=True))
        return _Cover(
            holders=self.in_holders[:, 1].astype(np.int64),
            one_holder=self.in_holders[:, 0].astype(np.int64),
            held=self.in_balls[:, 1].astype(np.int64),
            one_held=self.in_balls[:, 0].astype(np.int64),
            signs_held=self.in_balls[:, 2:],
            signs_of_holders=self.in_holders[:, 2:],
            shell_owner=owner,
            shell_point=point,
        )


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
            return withheld(self.value, "all rows agree, which shows no variation")
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
    """Second-order terms of pairs of rows: what the score loses with both, less with each alone."""

    def __init__(self, of_owners: FloatArray, of_points: FloatArray) -> None:
        self.signs = of_owners, of_points
        self.sums = np.zeros_like(of_owners), np.zeros_like(of_points)
        # What is left of them without random signs, by the side of the partners.
        self.plain = np.zeros((len(of_owners), 2)), np.zeros((len(of_points), 2))

    def add(self, owners: IntArray, others: IntArray, weight: float, *, side: int = 1) -> None:
        """Pairs of an owner and a point (or, on side 0, of two owners)."""
        from scipy.sparse import coo_array

        for rows, of, partners, by in ((owners, 0, others, side), (others, side, owners, 0)):
            terms = coo_array(
                (np.full(rows.size, weight), (rows, partners)),
                shape=(len(self.signs[of]), len(self.signs[by])),
            ).tocsr()
            self.sums[of][:] += terms @ self.signs[by]
            self.plain[of][:, by] += weight * _count(rows, len(self.signs[of]))

    def terms(self, scale: float) -> tuple[FloatArray, FloatArray]:
        """Both sides' terms, centred over the row and over its partners."""
        balance = [signs.mean(axis=0) for signs in self.signs]
        centred = []
        for sums, plain in zip(self.sums, self.plain, strict=True):
            rest = sums - plain[:, :1] * balance[0] - plain[:, 1:] * balance[1]
            centred.append((rest - rest.mean(axis=0)) / scale)
        return centred[0], centred[1]


def _share_covered(
    cover: _Cover, balls: _Balls, of_owners: FloatArray, of_points: FloatArray
) -> _Score:
    """Share of points held by some ball: precision, and with the sides exchanged recall."""
    owners, points = len(of_owners), len(of_points)
    held = cover.holders > 0
    value = float(held.mean())
    alone = np.flatnonzero(cover.holders == 1)
    # Deleting owner l frees the points that it alone held, and lets the balls grow that it
    # helped to span: (l, point) pairs, each counted once.
    lost = cover.one_holder[alone] * points + alone
    near = cover.holders[cover.shell_point] <= 1
    owner, point = cover.shell_owner[near], cover.shell_point[near]
    grown = np.unique(balls.spanning[owner] * points + point[:, None])
    gained = grown[~held[grown % points]]
    lost = np.setdiff1d(lost, grown, assume_unique=True)
    change = _count(gained // points, owners) - _count(lost // points, owners)
    pairs = _Pairs(of_owners, of_points)
    pairs.add(lost // points, lost % points, 1.0)
    pairs.add(gained // points, gained % points, -1.0)
    return _Score(value, -change / points, (held - value) / points, *pairs.terms(points))


def _density(
    cover: _Cover, balls: _Balls, of_owners: FloatArray, of_points: FloatArray, k: int
) -> _Score:
    """Balls that hold a point, over k, averaged over the points."""
    owners, points = len(of_owners), len(of_points)
    value = float(cover.holders.sum()) / (k * points)
    shell = _count(cover.shell_owner, owners)
    grown = np.bincount(balls.spanning.ravel(), weights=np.repeat(shell, k), minlength=owners)
    change = grown - cover.held
    # Pairs of an owner and a point only: with those of two owners, whose interactions rest on
    # three and more rows, the error came out a third too small in simulation.
    pairs = _Pairs(of_owners, of_points)
    for rank in range(k):
        pairs.add(balls.spanning[cover.shell_owner, rank], cover.shell_point, -1.0)
    pairs.sums[0][:] += cover.signs_held
    pairs.sums[1][:] += cover.signs_of_holders
    pairs.plain[0][:, 1] += cover.held
    pairs.plain[1][:, 0] += cover.holders
    return _Score(
        value,
        -change / (k * points),
        (cover.holders / k - value) / points,
        *pairs.terms(k * points),
    )


def _share_covering(
    cover: _Cover, balls: _Balls, of_owners: FloatArray, of_points: FloatArray
) -> _Score:
    """Share of balls that hold some point: coverage."""
    owners, points = len(of_owners), len(of_points)
    holding = cover.held > 0
    value = float(holding.mean())
    single = np.flatnonzero(cover.held == 1)
    lost = _count(cover.one_held[single], points)
    waiting = np.zeros(owners, dtype=bool)
    waiting[cover.shell_owner] = True
    waiting &= ~holding
    spanning = balls.spanning[waiting]
    gained = _count(spanning.ravel(), owners)
    pairs = _Pairs(of_owners, of_points)
    pairs.add(single, cover.one_held[single], 1.0)
    pairs.add(np.repeat(np.flatnonzero(waiting), spanning.shape[1]), spanning.ravel(), -1.0, side=0)
    return _Score(value, (holding - value - gained) / owners, lost / owners, *pairs.terms(owners))


def _count(numbers: IntArray, size: int) -> FloatArray:
    return np.bincount(numbers, minlength=size).astype(np.float64)
