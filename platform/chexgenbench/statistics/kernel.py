"""Squared maximum mean discrepancy over all pairs in bounded memory: KID and CMMD.

The unbiased estimate is a two-sample U-statistic: the mean of k over pairs of different real
rows, plus the same for fake rows, less twice the mean over (real, fake) pairs. Rows of its
kernel matrix give the first-order (Hoeffding) projection of each row, and the matrix times a few
random vectors the second-order variance; both come out of the one pass over blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from chexgenbench.statistics.arrays import FloatArray, blocks, two_sides, unit_rows
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
        Estimate, which may be negative. The interval is for the statistic's own expectation; with
        independent sides and rows that is the squared MMD of the two distributions. (Where pairs
        depend on each other their n of the n m terms shift it by O(1 / n), as in every tool.)
        Standard error from the U-statistic's first- and second-order terms, not from the spread
        of overlapping subsets; with subsets the variance of drawing them is added. Where the two
        distributions are equal it is a fifth to two fifths too large, so that the interval holds
        nearly always (``benchmarks/coverage.py``). The random vectors behind the second-order
        part are drawn by row number: another order of rows moves the error by a percent or two.

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
    draws = [
        _mmd_value(
            x[random.permutation(len(x))[:subset_size]],
            y[random.permutation(len(y))[:subset_size]],
            kernel,
        )
        for _ in range(subsets)
    ]
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
    """Both sides about the middle of their means, and that middle [d]."""
    centre = x[0] + ((x - x[0]).mean(axis=0) + (y - x[0]).mean(axis=0)) / 2
    return x - centre, y - centre, centre


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
        z = x @ y.T
        z /= width
        p, q = x @ centre / width, y @ centre / width
        w = (base + p)[:, None] + q
        values: FloatArray = w + z
        values *= w
        values *= 3.0
        values += z * z
        values *= z
        w += base
        w *= (3.0 * p)[:, None]
        w *= q
        values += w
        return values

    return kernel


def _gaussian(x: FloatArray, y: FloatArray) -> FloatArray:
    # Less the constant 1, which cancels in an MMD but would cost digits: between rows of length
    # one and with a bandwidth of 10 all kernels lie within 2 % of one another.
    halves = x @ y.T
    halves -= (x**2).sum(axis=1)[:, None] / 2
    halves -= (y**2).sum(axis=1) / 2
    kernels: FloatArray = 1000.0 * np.expm1(np.minimum(halves, 0.0) / 100.0)
    return kernels


def _within(x: FloatArray, kernel: Kernel, vectors: FloatArray) -> FloatArray:
    """Kernel matrix of x less its diagonal, times ``vectors`` [n, v]; each pair taken once."""
    sums = np.zeros(vectors.shape)
    for rows in blocks(len(x), len(x)):
        values = kernel(x[rows], x[rows.start :])
        size = rows.stop - rows.start
        np.fill_diagonal(values, 0.0)
        sums[rows] += values @ vectors[rows.start :]
        sums[rows.stop :] += values[:, size:].T @ vectors[rows]
    return sums


def _between(
    x: FloatArray, y: FloatArray, kernel: Kernel, for_x: FloatArray, for_y: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Kernel matrix of x and y times ``for_x`` [m, v], and its transpose times ``for_y`` [n, v]."""
    of_x, of_y = np.zeros((len(x), for_x.shape[1])), np.zeros((len(y), for_y.shape[1]))
    for rows in blocks(len(x), len(y)):
        values = kernel(x[rows], y)
        of_x[rows] = values @ for_x
        of_y += values.T @ for_y[rows]
    return of_x, of_y


def _mmd_value(x: FloatArray, y: FloatArray, kernel: Kernel) -> float:
    n, m = len(x), len(y)
    ones_x, ones_y = np.ones((n, 1)), np.ones((m, 1))
    within = _within(x, kernel, ones_x).sum() / (n * (n - 1))
    within += _within(y, kernel, ones_y).sum() / (m * (m - 1))
    between = _between(x, y, kernel, ones_y, ones_x)[0].sum() / (n * m)
    return float(within - 2 * between)


def _mmd(x: FloatArray, y: FloatArray, units: Units, kernel: Kernel) -> tuple[float, Influence]:
    n, m = len(x), len(y)
    probes = units.probes(_PROBES)
    with_x = np.column_stack([np.ones(n), probes[units.real]])
    with_y = np.column_stack([np.ones(m), probes[units.fake]])
    xx, yy = _within(x, kernel, with_x), _within(y, kernel, with_y)
    xy, yx = _between(x, y, kernel, with_y, with_x)
    xx /= n * (n - 1)
    yy /= m * (m - 1)
    xy /= n * m
    yx /= n * m
    value = float(xx[:, 0].sum() + yy[:, 0].sum() - 2 * xy[:, 0].sum())
    real, fake = 2 * (xx - xy), 2 * (yy - yx)
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
