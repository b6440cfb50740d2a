"""Squared maximum mean discrepancy over all pairs in bounded memory: KID and CMMD.

The unbiased estimate is a two-sample U-statistic: the mean of k over pairs of real rows of
different units, plus the same for fake rows, less twice the mean over (real, fake) pairs. The sums
of its kernel matrix give the first-order (Hoeffding) projection of each row, and the matrix times a
few random vectors the second-order variance; both come out of the one pass over blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from chexgenbench.statistics.arrays import (
    FloatArray,
    IntArray,
    blocks,
    slices,
    two_sides,
    unit_rows,
)
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import (
    Groups,
    Influence,
    Pairs,
    Units,
    estimate,
    units_of,
)

__all__ = ["cmmd", "kernel_distance"]

Kernel: TypeAlias = Callable[[FloatArray, FloatArray], FloatArray]

_PROBES = 64
"""Random vectors for the second-order variance; few directions carry a smooth kernel."""

_STRIP = 2**15
"""Entries that are worked on at a time."""


def kernel_distance(
    real: ArrayLike,
    fake: ArrayLike,
    subset_size: int | None = None,
    subsets: int = 100,
    seed: int = 0,
    *,
    pairs: Pairs = None,
    groups_real: Groups = None,
    groups_fake: Groups = None,
) -> Estimate:
    """Kernel distance (KID): unbiased squared MMD under the kernel (x'y / d + 1)^3.

    Args:
        real: Features [n, d], n >= 2, any real dtype (computed in float64).
        fake: Features [m, d], m >= 2.
        subset_size: None for the exact statistic over all pairs. A number for the mean over
            ``subsets`` random subsets of that many rows a side, as the published tools do:
            the same expectation, more noise, and different for every seed.
        subsets: Number of such subsets.
        seed: Chooses them.
        pairs: True when row i of ``fake`` answers row i of ``real``, or an integer array [m] with
            the real row that each fake row answers, -1 for none.
        groups_real: A label a row (patient): rows of one label are not independent.
        groups_fake: The same for ``fake``; a label known to both sides is the same patient.

    Returns:
        Estimate, which may be negative. The interval is for the statistic's expectation, which is
        the squared MMD of the two distributions: two rows of one unit (an image and the real one
        of its prompt, two studies of a patient) are alike for another reason, so with ``pairs`` or
        ``groups`` the means are over pairs of rows of different units. Other tools take all pairs,
        which shifts the value by O(1 / n): at n = 200 an honest model then has a KID below zero
        by several standard errors. Without ``pairs`` and ``groups`` the value is theirs.
        Standard error from the U-statistic's first- and second-order terms, not from the spread
        of overlapping subsets; with subsets the variance of drawing them is added. Where the two
        distributions are equal it is a fifth to two fifths too large, so that the interval holds
        nearly always (``benchmarks/coverage.py``). The random signs behind the second-order
        part are chosen by a row's label, and where there is none by its number: then another order
        of rows moves the error by a percent or two.

    Raises:
        ValueError: NaN or infinity, fewer than 2 rows, different d, a subset size below 2 or
            above the number of rows, fewer than 1 subset.

    Sources: Binkowski et al. 2018 (arXiv 1801.01401), section 3; Gretton et al. 2012, "A kernel
    two-sample test", lemma 6; variance: Sutherland and Deka 2019 (arXiv 1906.02104).

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(2, 300, 8))
    >>> same, apart = kernel_distance(rows[0], rows[1]), kernel_distance(rows[0], rows[1] + 1)
    >>> bool(abs(same.value) < 0.05 and apart.ci_low > 1)
    True
    """
    x, y = two_sides(real, fake, minimum=2)
    units = units_of(len(x), len(y), pairs=pairs, groups_real=groups_real, groups_fake=groups_fake)
    x, y, centre = _centred(x, y)
    kernel = _cubic(centre)
    value, influence = _mmd(x, y, units, kernel)
    if subset_size is None:
        return estimate(value, influence)
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(
            f"subset_size must lie between 2 and the {min(len(x), len(y))} rows of the smaller "
            f"side, got {subset_size}"
        )
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, got {subsets}")
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(subsets):
        in_x = random.permutation(len(x))[:subset_size]
        in_y = random.permutation(len(y))[:subset_size]
        part = Units(units.real[in_x], units.fake[in_y], units.count)
        draws.append(_mmd_value(x[in_x], y[in_y], part, kernel))
    # Given the rows, the subsets are independent draws around the exact statistic.
    scatter = float(np.mean((np.array(draws) - value) ** 2)) / subsets
    return estimate(float(np.mean(draws)), influence, extra=scatter)


def cmmd(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    pairs: Pairs = None,
    groups_real: Groups = None,
    groups_fake: Groups = None,
) -> Estimate:
    """CMMD: 1000 times the squared MMD of CLIP embeddings under exp(-|x - y|^2 / (2 10^2)).

    Args:
        real: CLIP image embeddings [n, d], n >= 2; scaled to length one here.
        fake: CLIP image embeddings [m, d], m >= 2.
        pairs: As in :func:`kernel_distance`.
        groups_real: As in :func:`kernel_distance`.
        groups_fake: As in :func:`kernel_distance`.

    Returns:
        Estimate, which may be slightly negative: the unbiased statistic. The published code takes
        the biased one, which also counts each row's kernel with itself and so is larger by about
        1000 (1 - mean kernel) (1 / n + 1 / m). The interval is as in :func:`kernel_distance`.

    Raises:
        ValueError: as :func:`kernel_distance`, and a row of zeros.

    Source: Jayasumana et al. 2024 (arXiv 2401.09603), section 4.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(2, 200, 8))
    >>> abs(cmmd(rows[0], rows[1]).value) < 0.1 < cmmd(rows[0], rows[1] + 1).value
    True
    """
    x, y = two_sides(real, fake, minimum=2)
    units = units_of(len(x), len(y), pairs=pairs, groups_real=groups_real, groups_fake=groups_fake)
    x, y, _ = _centred(unit_rows("real", x), unit_rows("fake", y))
    value, influence = _mmd(x, y, units, _gaussian)
    return estimate(value, influence)


def _centred(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Both sides, changed in place, about the middle of their means, and that middle [d]."""
    origin = x[0].copy()
    means = [
        sum((side[rows] - origin).sum(axis=0) for rows in blocks(len(side), side.shape[1]))
        / len(side)
        for side in (x, y)
    ]
    centre: FloatArray = origin + (means[0] + means[1]) / 2
    x -= centre
    y -= centre
    return x, y, centre


def _cubic(centre: FloatArray) -> Kernel:
    """k(x, y) - k(x, c) - k(c, y) + k(c, c) of rows given as x - c, for k = (x'y / d + 1)^3.

    What depends on one row alone cancels in an MMD. Subtracted here by algebra it costs no digits:
    features of mean 1e6 have k near 1e36, of which only 1e20 would be left to an MMD of 1e24.
    With z = (x - c)'(y - c) / d, p = c'(x - c) / d, q = c'(y - c) / d, a = c'c / d + 1 and
    w = a + p + q, the kernel is (w + z)^3 and the difference 3 p q (a + w) + z (3 w (w + z) + z^2).
    """
    width = centre.size
    base = float(centre @ centre) / width + 1.0

    def kernel(x: FloatArray, y: FloatArray) -> FloatArray:
        values: FloatArray = x @ y.T
        p, q = x @ centre / width, y @ centre / width
        for rows in _strips(values):
            z = values[rows]
            z /= width
            w = (base + p[rows])[:, None] + q
            sums = w + z
            sums *= w
            sums *= 3.0
            sums += z * z
            z *= sums
            w += base
            w *= (3.0 * p[rows])[:, None]
            w *= q
            z += w
        return values

    return kernel


def _strips(values: FloatArray) -> Iterator[slice]:
    """Rows of a block by so many that a few arrays of their size stay in the cache: passing over
    a whole block a dozen times costs as much as its matrix product."""
    return slices(len(values), max(1, _STRIP // values.shape[1]))


def _gaussian(x: FloatArray, y: FloatArray) -> FloatArray:
    # Less the constant 1, which cancels in an MMD but would cost digits: between rows of length
    # one and with a bandwidth of 10 all kernels lie within 2 % of one another.
    values: FloatArray = x @ y.T
    of_x, of_y = (x**2).sum(axis=1)[:, None] / 2, (y**2).sum(axis=1) / 2
    for rows in _strips(values):
        halves = values[rows]
        halves -= of_x[rows]
        halves -= of_y
        np.minimum(halves, 0.0, out=halves)
        halves /= 100.0
        np.expm1(halves, out=halves)
        halves *= 1000.0
    return values


@dataclass(frozen=True, slots=True)
class _Counts:
    """Pairs of rows of different units: in all, and for each row, within the sides and between."""

    xx: int
    yy: int
    xy: int
    of_x: tuple[FloatArray, FloatArray]  # partners of each real row on the real, the fake side
    of_y: tuple[FloatArray, FloatArray]

    @classmethod
    def of(cls, units: Units) -> _Counts | None:
        """None where some mean would be over no pair."""
        n, m = units.real.size, units.fake.size
        in_x = np.bincount(units.real, minlength=units.count).astype(np.float64)
        in_y = np.bincount(units.fake, minlength=units.count).astype(np.float64)
        of_x = (n - in_x[units.real], m - in_y[units.real])
        of_y = (m - in_y[units.fake], n - in_x[units.fake])
        xx, yy, xy = int(of_x[0].sum()), int(of_y[0].sum()), int(of_x[1].sum())
        return cls(xx, yy, xy, of_x, of_y) if min(xx, yy, xy) > 0 else None


def _separated(units: Units) -> tuple[Units, _Counts]:
    """The units, or each row as its own where they leave no pair (there is no interval then)."""
    counts = _Counts.of(units)
    if counts is not None:
        return units, counts
    n, m = units.real.size, units.fake.size
    single = Units(np.arange(n), np.arange(n, n + m), n + m)
    counts = _Counts.of(single)
    assert counts is not None  # two rows a side have been checked
    return single, counts


def _within(x: FloatArray, codes: IntArray, kernel: Kernel, vectors: FloatArray) -> FloatArray:
    """Kernel matrix of x, 0 within a unit, times ``vectors`` [n, v]; each pair taken once."""
    sums = np.zeros(vectors.shape)
    single = np.unique(codes).size == codes.size
    for rows in blocks(len(x), len(x)):
        values = kernel(x[rows], x[rows.start :])
        size = rows.stop - rows.start
        if single:
            np.fill_diagonal(values, 0.0)
        else:
            values[codes[rows, None] == codes[rows.start :]] = 0.0
        sums[rows] += values @ vectors[rows.start :]
        sums[rows.stop :] += values[:, size:].T @ vectors[rows]
    return sums


def _between(
    x: FloatArray,
    y: FloatArray,
    units: Units,
    kernel: Kernel,
    for_x: FloatArray,
    for_y: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Kernel matrix of x and y, 0 within a unit, times ``for_x`` [m, v], and its transpose times
    ``for_y`` [n, v]."""
    of_x, of_y = np.zeros((len(x), for_x.shape[1])), np.zeros((len(y), for_y.shape[1]))
    shared = np.intersect1d(units.real, units.fake).size > 0
    for rows in blocks(len(x), len(y)):
        values = kernel(x[rows], y)
        if shared:
            values[units.real[rows, None] == units.fake] = 0.0
        of_x[rows] = values @ for_x
        of_y += values.T @ for_y[rows]
    return of_x, of_y


def _mmd_value(x: FloatArray, y: FloatArray, units: Units, kernel: Kernel) -> float:
    units, counts = _separated(units)
    ones_x, ones_y = np.ones((len(x), 1)), np.ones((len(y), 1))
    within = _within(x, units.real, kernel, ones_x).sum() / counts.xx
    within += _within(y, units.fake, kernel, ones_y).sum() / counts.yy
    between = _between(x, y, units, kernel, ones_y, ones_x)[0].sum() / counts.xy
    return float(within - 2 * between)


def _mmd(x: FloatArray, y: FloatArray, units: Units, kernel: Kernel) -> tuple[float, Influence]:
    apart, counts = _separated(units)
    probes = units.probes(_PROBES)
    with_x = np.column_stack([np.ones(len(x)), probes[units.real]])
    with_y = np.column_stack([np.ones(len(y)), probes[units.fake]])
    xx = _within(x, apart.real, kernel, with_x) / counts.xx
    yy = _within(y, apart.fake, kernel, with_y) / counts.yy
    xy, yx = _between(x, y, apart, kernel, with_y, with_x)
    xy /= counts.xy
    yx /= counts.xy
    means = [float(part[:, 0].sum()) for part in (xx, yy, xy)]
    value = means[0] + means[1] - 2 * means[2]
    real, fake = 2 * (xx - xy), 2 * (yy - yx)
    # What the means themselves give to a row, by the number of its partners.
    real[:, 0] -= 2 * (
        counts.of_x[0] * means[0] / counts.xx - counts.of_x[1] * means[2] / counts.xy
    )
    fake[:, 0] -= 2 * (
        counts.of_y[0] * means[1] / counts.yy - counts.of_y[1] * means[2] / counts.xy
    )
    # Centred on both sides: a row's second-order term is what is left of the probe's sum after
    # the row means, weighted by the probe's mean.
    real -= real.mean(axis=0)
    fake -= fake.mean(axis=0)
    balance_x, balance_y = with_x[:, 1:].mean(axis=0), with_y[:, 1:].mean(axis=0)
    xx_rows, xy_rows = (2 * (part[:, :1] - part[:, :1].mean()) for part in (xx, xy))
    yy_rows, yx_rows = (2 * (part[:, :1] - part[:, :1].mean()) for part in (yy, yx))
    second_x = real[:, 1:] - (xx_rows * balance_x - xy_rows * balance_y)
    second_y = fake[:, 1:] - (yy_rows * balance_y - yx_rows * balance_x)
    return value, Influence(units, real[:, 0], fake[:, 0], second_x, second_y)
