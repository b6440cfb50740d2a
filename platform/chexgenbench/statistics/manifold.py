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
    Groups,
    Pairs,
    Units,
    estimate,
    linear,
    units_of,
    withheld,
)

__all__ = ["precision_recall_density_coverage"]


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
    within 1e-12 of the largest squared norm, since distances of equal rows differ by rounding.

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
        alone would forget that the balls move too. Withheld where all rows agree (a share of 0
        or 1 shows no variation), and for n or m = k + 1.

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
            f"k = {k} neighbours need more than {k} rows a side, got {len(x)} real and {len(y)} fake"
        )
    units = units_of(len(x), len(y), pairs=pairs, groups_real=groups_real, groups_fake=groups_fake)
    centre = x.mean(axis=0)
    x, y = x - centre, y - centre
    slack = 1e-12 * max(float((x**2).sum(axis=1).max()), float((y**2).sum(axis=1).max()))
    around_real, around_fake = _balls(x, k, slack), _balls(y, k, slack)
    by_real, by_fake = _cover(x, y, around_real, around_fake)
    n, m = len(x), len(y)

    precision, on_real, on_fake, paired = _share_covered(by_real, around_real, n, m)
    scores = {"precision": _shared(precision, units, on_real, on_fake, paired, 1.0)}
    recall, on_fake, on_real, paired = _share_covered(by_fake, around_fake, m, n)
    scores["recall"] = _shared(recall, units, on_real, on_fake, paired, 1.0)
    density, on_real, on_fake, paired = _density(by_real, around_real, n, m, k)
    scores["density"] = _shared(density, units, on_real, on_fake, paired, n / k)
    coverage, on_real, on_fake, paired = _share_covering(by_real, around_real, n, m)
    scores["coverage"] = _shared(coverage, units, on_real, on_fake, paired, 1.0)
    if min(n, m) < k + 2:
        reason = "n = k + 1: no row can be left out"
        return {name: withheld(score.value, reason) for name, score in scores.items()}
    return scores


@dataclass(frozen=True, slots=True)
class _Balls:
    """Squared radii [n], the next larger ones, and the k rows [n, k] that span each ball."""

    radius: FloatArray
    larger: FloatArray
    neighbours: IntArray


@dataclass(frozen=True, slots=True)
class _Cover:
    """How the balls of one side (owners) hold the rows of the other (points)."""

    holders: IntArray  # balls that hold each point
    one_holder: IntArray  # sum of their numbers: the only one, where there is one
    held: IntArray  # points that each ball holds
    one_held: IntArray  # sum of their numbers
    shell_owner: IntArray  # (owner, point) pairs between radius and larger radius
    shell_point: IntArray


def _balls(rows: FloatArray, k: int, slack: float) -> _Balls:
    count = len(rows)
    width = min(k + 1, count - 1)
    radius, larger = np.empty(count), np.empty(count)
    neighbours = np.empty((count, k), dtype=np.int64)
    norms = (rows**2).sum(axis=1)
    for block in blocks(count, 2 * count):  # argpartition makes a second array of that size
        squares = _squares(rows[block], rows, norms[block], norms)
        squares[np.arange(block.stop - block.start), np.arange(block.start, block.stop)] = np.inf
        nearest = np.argpartition(squares, width - 1, axis=1)[:, :width]
        distances = np.take_along_axis(squares, nearest, axis=1)
        order = np.argsort(distances, axis=1)
        distances = np.take_along_axis(distances, order, axis=1)
        neighbours[block] = np.take_along_axis(nearest, order, axis=1)[:, :k]
        radius[block] = distances[:, k - 1]
        larger[block] = distances[:, width - 1]
    return _Balls(radius - slack, larger - slack, neighbours)


def _squares(x: FloatArray, y: FloatArray, norms_x: FloatArray, norms_y: FloatArray) -> FloatArray:
    squares = x @ y.T
    squares *= -2.0
    squares += norms_x[:, None]
    squares += norms_y
    return squares


def _cover(
    x: FloatArray, y: FloatArray, around_x: _Balls, around_y: _Balls
) -> tuple[_Cover, _Cover]:
    """How balls around x hold rows of y, and the other way round, in one pass."""
    n, m = len(x), len(y)
    norms_x, norms_y = (x**2).sum(axis=1), (y**2).sum(axis=1)
    counts = [np.zeros(size, dtype=np.int64) for size in (m, m, n, n, n, n, m, m)]
    y_holders, y_one, x_held, x_one_held, x_holders, x_one, y_held, y_one_held = counts
    shells: list[tuple[IntArray, IntArray]] = []
    shells_y: list[tuple[IntArray, IntArray]] = []
    numbers_y = np.arange(m)
    for block in blocks(n, 2 * m):
        numbers_x = np.arange(block.start, block.stop)
        squares = _squares(x[block], y, norms_x[block], norms_y)
        for radii, larger, outer in (
            (around_x.radius[block, None], around_x.larger[block, None], True),
            (around_y.radius[None, :], around_y.larger[None, :], False),
        ):
            inside = squares < radii
            rows, columns = np.nonzero((squares < larger) & ~inside)
            of_rows, of_columns = inside.sum(axis=1), inside.sum(axis=0)
            # Products with 0 and 1 in float64 are exact here: numbers stay below 2^53.
            sum_rows = (inside @ numbers_y.astype(np.float64)).astype(np.int64)
            sum_columns = (numbers_x.astype(np.float64) @ inside).astype(np.int64)
            if outer:
                x_held[block], x_one_held[block] = of_rows, sum_rows
                y_holders += of_columns
                y_one += sum_columns
                shells.append((rows + block.start, columns))
            else:
                x_holders[block], x_one[block] = of_rows, sum_rows
                y_held += of_columns
                y_one_held += sum_columns
                shells_y.append((columns, rows + block.start))
    owner, point = (np.concatenate(part) for part in zip(*shells, strict=True))
    owner_y, point_y = (np.concatenate(part) for part in zip(*shells_y, strict=True))
    return (
        _Cover(y_holders, y_one, x_held, x_one_held, owner, point),
        _Cover(x_holders, x_one, y_held, y_one_held, owner_y, point_y),
    )


Parts = tuple[float, FloatArray, FloatArray, float]
"""Value, contributions of the owners of the balls and of the points, pairwise variance."""


def _share_covered(cover: _Cover, balls: _Balls, owners: int, points: int) -> Parts:
    """Share of points held by some ball: precision, and with the sides exchanged recall."""
    held = cover.holders > 0
    value = float(held.mean())
    alone = np.flatnonzero(cover.holders == 1)
    # Deleting owner l frees the points that it alone held, and lets the balls grow that it
    # helped to span: (l, point) pairs, each counted once.
    lost = cover.one_holder[alone] * points + alone
    near = cover.holders[cover.shell_point] <= 1
    owner, point = cover.shell_owner[near], cover.shell_point[near]
    grown = np.unique(balls.neighbours[owner] * points + point[:, None])
    gained = grown[~held[grown % points]]
    lost = np.setdiff1d(lost, grown, assume_unique=True)
    change = _count(gained // points, owners) - _count(lost // points, owners)
    on_owners = -change / points
    on_points = (held - value) / points
    return value, on_owners, on_points, (gained.size + lost.size) / points**2


def _density(cover: _Cover, balls: _Balls, owners: int, points: int, k: int) -> Parts:
    value = float(cover.holders.sum()) / (k * points)
    shell = _count(cover.shell_owner, owners)
    grown = np.bincount(balls.neighbours.ravel(), weights=np.repeat(shell, k), minlength=owners)
    change = grown - cover.held
    on_owners = -change / (k * points)
    on_points = (cover.holders / k - value) / points
    both = float(cover.held.sum()) + k * cover.shell_owner.size - float((change**2).sum()) / points
    return value, on_owners, on_points, max(both, 0.0) / (k * points) ** 2


def _share_covering(cover: _Cover, balls: _Balls, owners: int, points: int) -> Parts:
    """Share of balls that hold some point: coverage."""
    holding = cover.held > 0
    value = float(holding.mean())
    single = cover.held == 1
    lost = _count(cover.one_held[single], points)
    waiting = np.zeros(owners, dtype=bool)
    waiting[cover.shell_owner] = True
    waiting &= ~holding
    gained = _count(balls.neighbours[waiting].ravel(), owners)
    on_owners = (holding - value - gained) / owners
    on_points = lost / owners
    pairs = float(single.sum()) + balls.neighbours[waiting].size
    return value, on_owners, on_points, pairs / owners**2


def _count(numbers: IntArray, size: int) -> FloatArray:
    return np.bincount(numbers, minlength=size).astype(np.float64)


def _shared(
    value: float,
    units: Units,
    real: FloatArray,
    fake: FloatArray,
    paired: float,
    high: float,
) -> Estimate:
    influence = linear(units, fake - fake.mean(), real - real.mean())
    if not (influence.real.any() or influence.fake.any()):
        return withheld(value, "every row agrees, so the variation cannot be estimated")
    return estimate(value, influence, extra=-paired, low=0.0, high=high)
