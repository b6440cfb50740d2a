"""Frechet distance of two Gaussians fitted to features (FID), without a matrix square root.

With covariances S1 = F1' F1 and S2 = F2' F2, the trace of (S1 S2)^(1/2) is the sum of the
singular values s of M = F1 F2' = U diag(s) V': never an imaginary part, and for n < d, where F1 is
the centred data itself, M is only [n, m]. For n > d, with the Cholesky factor F1 = L', the s^2 are
the eigenvalues of the symmetric M M' = L' S2 L, which is several times faster; it is taken where
rounding cannot matter to the sum of the s. docs/performance.md has the times beside scipy's
``sqrtm``.

The same decomposition gives a frame in which both covariances are diag(s): rows
x~ = diag(s)^(-1/2) V' F2 (x - mean) and y~ = diag(s)^(-1/2) U' F1 (y - mean). There the first and
second derivatives of the distance are short:

    first:   2 (m1 - m2)'(x - m1) + |x - m1|^2 - |x~|^2 for a real row, alike for a generated one
    second:  sum_kl (dS1 - dS2)_kl^2 / (s_k + s_l) + 2 |dm1 - dm2|^2

(the second is the Bures metric: Bhatia, Jain and Lim 2019, "On the Bures-Wasserstein distance
between positive definite matrices").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench.statistics.arrays import BoolArray, FloatArray, two_sides
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import (
    Groups,
    Influence,
    Pairs,
    Units,
    estimate,
    units_of,
    withheld,
)

__all__ = ["frechet_distance", "frechet_distance_infinite"]


_WIDE = 512
"""From this number of features on a standard error is worked out in float32."""

_TILE = 256
"""Columns of a triangular product that are done at a time."""

_PARTITIONS = 4
"""Random partitions into halves that are averaged by the extrapolation."""


def frechet_distance(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    pairs: Pairs = None,
    groups_real: Groups = None,
    groups_fake: Groups = None,
    interval: bool = True,
) -> Estimate:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians fitted to both sides.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), means and unbiased (n - 1) covariances of
    the rows: the plug-in estimate, equal to other implementations' value.

    Args:
        real: Features [n, d], n >= 2, any real dtype (computed in float64).
        fake: Features [m, d], m >= 2.
        pairs: True when row i of ``fake`` answers row i of ``real``, or an integer array [m] with
            the real row that each fake row answers, -1 for none.
        groups_real: A label a row (patient): rows of one label are not independent.
        groups_fake: The same for ``fake``; a label known to both sides is the same patient.
        interval: False leaves the standard error out, which is faster.

    Returns:
        Estimate in [0, inf). The interval is for the plug-in's own expectation at this n and m:
        what another draw of the same sizes would give. It is not for the distance between the
        distributions, from which the plug-in is biased upward by about d / n; that is
        :func:`frechet_distance_infinite`. Standard error from the influence function in
        O((n + m) d^2), units summed over both sides, second-order variance corrected (see
        ``chexgenbench.statistics.sampling``), which also makes it right for equal distributions.
        Withheld for n <= d or m <= d (different rows counted), where the covariance is singular.
        Too wide by up to a third for d / n above one half and where both distributions are equal
        (measured by ``benchmarks/coverage.py``).

    Raises:
        ValueError: NaN or infinity, fewer than 2 rows, different d, or pairs and groups that do
            not fit.

    Sources: Dowson and Landau 1982, "The Frechet distance between multivariate normal
    distributions", eq. 4; Heusel et al. 2017 (arXiv 1706.08500), eq. 6.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(400, 3))
    >>> result = frechet_distance(rows, rows + [3.0, 4.0, 0.0])
    >>> round(result.value, 6)
    25.0
    >>> frechet_distance(rows[:3], rows[3:6]).ci_low is None
    True
    """
    x, y = two_sides(real, fake, minimum=2)
    units = units_of(len(x), len(y), pairs=pairs, groups_real=groups_real, groups_fake=groups_fake)
    singular = _singular(x, y)
    if singular or not interval:
        return withheld(_value(x, y), singular or "not asked for", warning=singular)
    fit = _fit(x, y)
    return estimate(fit.value, _influence(fit, units), low=0.0)


def frechet_distance_infinite(
    real: ArrayLike,
    fake: ArrayLike,
    seed: int = 0,
    *,
    pairs: Pairs = None,
    groups_real: Groups = None,
    groups_fake: Groups = None,
) -> Estimate:
    """Frechet distance between the distributions: the plug-in extrapolated to endless samples.

    The plug-in's bias is proportional to 1 / N (Chong and Forsyth 2020), so the value at N and
    the mean of the values at N / 2 give the intercept, 2 T(N) - T(N / 2). The halves are the two
    parts of a partition, drawn by independent unit and averaged over four partitions: every row
    is used equally, which at d = 64, N = 500 gave a standard deviation a quarter below that of
    the published regression over 15 random subsets, with the same bias.

    Args:
        real: Features [n, d], n >= 4, any real dtype.
        fake: Features [m, d], m >= 4.
        seed: Chooses the partitions.
        pairs: As in :func:`frechet_distance`.
        groups_real: As in :func:`frechet_distance`.
        groups_fake: As in :func:`frechet_distance`.

    Returns:
        Estimate, which may be slightly negative for equal distributions. The interval is for the
        Frechet distance between the two distributions' Gaussians (population means and
        covariances). Withheld unless both sides have at least 8 d independent units: before that
        the bias is not yet proportional to 1 / N.

    Raises:
        ValueError: as :func:`frechet_distance`; and where there are not two units of two rows a
            side to partition.

    Source: Chong and Forsyth 2020 (arXiv 1911.07023), section 3.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(2, 400, 3))
    >>> plugin = frechet_distance(rows[0], rows[1]).value
    >>> abs(frechet_distance_infinite(rows[0], rows[1]).value) < plugin
    True
    """
    x, y = two_sides(real, fake, minimum=4)
    units = units_of(len(x), len(y), pairs=pairs, groups_real=groups_real, groups_fake=groups_fake)
    random = np.random.default_rng(seed)
    halves = [
        _value(x[side[units.real]], y[side[units.fake]])
        for _ in range(_PARTITIONS)
        for side in _partition(units, random)
    ]
    needed = 8 * x.shape[1]
    fewest = min(
        np.unique(units.real).size,
        np.unique(units.fake).size,
        _distinct(x, needed),
        _distinct(y, needed),
    )
    if fewest < needed:
        reason = f"n < 8 d: {fewest} independent rows, {x.shape[1]} features"
        value = 2 * _value(x, y) - float(np.mean(halves))
        return withheld(value, reason, warning=f"extrapolated from too few rows ({reason})")
    fit = _fit(x, y)
    value = 2 * fit.value - float(np.mean(halves))
    influence = _influence(fit, units)
    # A pair of units counts twice in T(N) and, in half of the partitions, twice in T(N / 2):
    # on average once, with a variance of 1 / partitions.
    return estimate(value, replace(influence, curvature=1.0 + 1.0 / _PARTITIONS))


@dataclass(frozen=True, slots=True)
class _Fit:
    """The value, and what its derivatives need; rows are centred on their own side's mean."""

    value: float
    real: FloatArray
    fake: FloatArray
    gap: FloatArray  # mean of real less mean of fake, [d]
    singular: FloatArray  # s, [r]
    frame_real: FloatArray  # x~ = frame_real @ x, [r, d]
    frame_fake: FloatArray


def _fit(real: FloatArray, fake: FloatArray) -> _Fit:
    x, y, gap = _centred(real, fake)
    both = _regular(x, y)
    if both is not None:
        first, second = both
        traces = _traces(first, second)
        problem = _symmetric(first, second)
        if problem is not None:
            lower, product = problem
            squares, vectors = np.linalg.eigh(product)
            if _sure(squares):
                s = np.sqrt(squares)
                turned = _lower_times(lower, vectors)  # F1' U
                moved = second @ turned
                moved /= np.sqrt(s) * s
                turned /= np.sqrt(s)
                value = _distance(gap, traces, float(s.sum()))
                return _Fit(value, x, y, gap, s, moved.T, turned.T)
    left, right = _factor(x), _factor(y)
    u, s, _ = np.linalg.svd(left @ right.T, full_matrices=False)
    value = _distance(gap, _spread(x) + _spread(y), float(s.sum()))
    # Directions that one side does not have: their part of the derivatives is zero.
    kept = s > 1e-7 * s.max(initial=0.0)
    u, s = u[:, kept], s[kept]
    root = np.sqrt(s)[:, None]
    frame_fake = u.T @ left / root
    return _Fit(value, x, y, gap, s, (frame_fake @ right.T) @ right / s[:, None], frame_fake)


def _value(real: FloatArray, fake: FloatArray) -> float:
    """The value of :func:`_fit` alone."""
    x, y, gap = _centred(real, fake)
    both = _regular(x, y)
    if both is not None:
        traces = _traces(*both)
        cross = _cross(*both)
        if cross is not None:
            return _distance(gap, traces, cross)
    singular = np.linalg.svd(_factor(x) @ _factor(y).T, compute_uv=False)
    return _distance(gap, _spread(x) + _spread(y), float(singular.sum()))


def _regular(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """Both covariances, or None where one is singular for lack of rows."""
    if min(len(x), len(y)) <= x.shape[1]:
        return None
    return _covariance(x), _covariance(y)


def _traces(first: FloatArray, second: FloatArray) -> float:
    return float(np.trace(first) + np.trace(second))


def _cross(first: FloatArray, second: FloatArray) -> float | None:
    """Trace of (S1 S2)^(1/2), or None where rounding could matter to it; S1 is overwritten."""
    problem = _symmetric(first, second)
    if problem is None:
        return None
    squares = np.asarray(np.linalg.eigvalsh(problem[1]), dtype=np.float64)
    return float(np.sqrt(squares).sum()) if _sure(squares) else None


def _symmetric(first: FloatArray, second: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """L of S1 = L L', and the lower triangle of L' S2 L = M M' in the memory of S1.

    None where S1 has no such factor.
    """
    try:
        lower = np.asarray(np.linalg.cholesky(first), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    _congruent(second, lower, first)  # fresh memory would cost as much as filling it
    return lower, first


def _congruent(form: FloatArray, lower: FloatArray, product: FloatArray) -> None:
    """The lower triangle of L' S L into ``product``: a quarter of the work of full products."""
    width = len(form)
    for start in range(0, width, _TILE):
        columns = slice(start, start + _TILE)
        half = form[start:, start:] @ lower[start:, columns]
        for row in range(start, width, _TILE):
            rows = slice(row, row + _TILE)
            product[rows, columns] = lower[row:, rows].T @ half[row - start :]


def _lower_times(lower: FloatArray, matrix: FloatArray) -> FloatArray:
    """``lower @ matrix`` without the zeros of L."""
    product = np.empty_like(matrix)
    for start in range(0, len(lower), _TILE):
        stop = min(start + _TILE, len(lower))
        np.matmul(lower[start:stop, :stop], matrix[:stop], out=product[start:stop])
    return product


def _sure(squares: FloatArray) -> bool:
    """Whether the roots of these eigenvalues add up to 1e-10 of their sum.

    A symmetric solver is off by some eps of the largest eigenvalue in each, and the root of an
    eigenvalue by half of that over the root: too much where the smallest are rounding themselves.
    """
    largest = squares.max()
    if squares.min() <= 1e-12 * largest:
        return False
    roots = np.sqrt(squares)
    off = np.finfo(np.float64).eps * largest * (0.5 / roots).sum()
    return bool(off < 1e-10 * roots.sum())


def _centred(real: FloatArray, fake: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Both sides less their means, in their own memory, and the difference of the means."""
    # The common offset goes first: features of mean 1e6 would lose their digits in the sums.
    offset = real[0].copy()
    means = []
    for rows in (real, fake):
        rows -= offset
        means.append(rows.mean(axis=0))
        rows -= means[-1]
    return real, fake, means[0] - means[1]


def _spread(centred: FloatArray) -> float:
    return float(np.vdot(centred, centred)) / (len(centred) - 1)


def _distance(gap: FloatArray, traces: float, cross: float) -> float:
    return max(float(gap @ gap) + traces - 2 * cross, 0.0)


def _factor(centred: FloatArray) -> FloatArray:
    """F with F' F the covariance: the rows themselves, its Cholesky factor, or its eigenvectors."""
    rows, width = centred.shape
    factor: FloatArray
    if rows <= width:
        factor = centred / np.sqrt(rows - 1)
        return factor
    covariance = _covariance(centred)
    try:
        factor = np.asarray(np.linalg.cholesky(covariance).T, dtype=np.float64)
    except np.linalg.LinAlgError:  # rank below d: a constant column, duplicates
        values, vectors = np.linalg.eigh(covariance)
        factor = np.sqrt(np.clip(values, 0.0, None))[:, None] * vectors.T
    return factor


def _covariance(centred: FloatArray) -> FloatArray:
    covariance: FloatArray = centred.T @ centred
    covariance /= len(centred) - 1
    return covariance


def _singular(x: FloatArray, y: FloatArray) -> str | None:
    """Why no covariance of d features can be had from these rows, or None."""
    width = x.shape[1]
    if (rows := min(len(x), len(y))) <= width:
        return f"n <= d: {rows} rows, {width} features, so the covariance is singular"
    if (rows := min(_distinct(x, width + 1), _distinct(y, width + 1))) <= width:
        return f"n <= d: {rows} different rows, {width} features, so the covariance is singular"
    return None


def _distinct(rows: FloatArray, enough: int) -> int:
    """The number of different rows, or any number from ``enough`` on if there are as many."""
    # Rows that differ in one entry are different, which is quicker to see.
    seen = int(np.unique(rows[:, 0]).size)
    return seen if seen >= enough else len({row.tobytes() for row in rows})


def _influence(fit: _Fit, units: Units) -> Influence:
    x, y = fit.real, fit.fake
    n, m = len(x), len(y)
    # Rows in the frame, in float32 where that is most of the work: their squares enter a standard
    # error, and the scale keeps them far from the ends of its range.
    scale = float(np.sqrt(fit.singular.mean())) if fit.singular.size else 1.0
    narrow: type[Any] = np.float32 if x.shape[1] >= _WIDE else np.float64
    x_frame, y_frame = (
        np.divide(rows, scale, dtype=narrow, casting="same_kind") @ frame.astype(narrow).T
        for rows, frame in ((x, fit.frame_real), (y, fit.frame_fake))
    )
    length_x, length_y = (
        scale**2 * np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        for rows in (x_frame, y_frame)
    )
    first_x = 2 * x @ fit.gap / n + ((x**2).sum(axis=1) - length_x) / (n - 1)
    first_y = -2 * y @ fit.gap / m + ((y**2).sum(axis=1) - length_y) / (m - 1)

    # A probe averages over d^2 directions, so few are needed where d is large.
    count = int(np.clip(2048 // x.shape[1], 2, 64))
    probes = units.probes(count)
    # Of units that have a sign the terms are never looked at (pair_variance), and left at 0.
    second_x, second_y = np.zeros((n, count)), np.zeros((m, count))
    singular: NDArray[Any] = (fit.singular / scale**2).astype(narrow)
    weights = singular[:, None] + singular[None, :]
    for column in range(count):
        signs_x, signs_y = probes[units.real, column], probes[units.fake, column]
        shift = _scatter(x_frame, signs_x) / narrow(n - 1)
        shift -= _scatter(y_frame, signs_y) / narrow(m - 1)
        shift[np.diag_indices_from(shift)] -= singular * narrow(
            signs_x.sum() / (n - 1) - signs_y.sum() / (m - 1)
        )
        shift /= weights
        mean_shift = signs_x @ x / n - signs_y @ y / m
        level = float(np.diag(shift) @ singular)
        for second, rows, frame, signs, part in (
            (second_x, x, x_frame, signs_x, 1 / (n - 1)),
            (second_y, y, y_frame, signs_y, -1 / (m - 1)),
        ):
            silent = signs == 0.0
            bent = _quadratic(frame[silent], shift) - level
            moved = rows @ mean_shift / len(rows)
            second[silent, column] = scale**2 * part * bent + 2 * np.sign(part) * moved[silent]
    return Influence(units, first_x - first_x.mean(), first_y - first_y.mean(), second_x, second_y)


def _scatter(rows: NDArray[Any], signs: FloatArray) -> NDArray[Any]:
    """Sum of sign times row row', for signs of -1, 0 and 1."""
    # A product with its own transpose is symmetric, which is half of the work.
    raised, lowered = rows[signs > 0], rows[signs < 0]
    scatter: NDArray[Any] = raised.T @ raised
    scatter -= lowered.T @ lowered
    return scatter


def _quadratic(rows: NDArray[Any], form: NDArray[Any]) -> FloatArray:
    """Row' S row for each row and a symmetric S [d, d], from its upper triangle."""
    values = np.zeros(len(rows))
    for start in range(0, len(form), _TILE):
        stop = min(start + _TILE, len(form))
        tile = form[:stop, start:stop].copy()
        tile[:start] *= 2
        product = rows[:, :stop] @ tile
        values += np.einsum("ij,ij->i", product, rows[:, start:stop], dtype=np.float64)
    return values


def _partition(units: Units, random: np.random.Generator) -> tuple[BoolArray, BoolArray]:
    """Two masks over the units, each with half of the rows of both sides as near as units allow."""
    in_real = np.bincount(units.real, minlength=units.count) > 0
    in_fake = np.bincount(units.fake, minlength=units.count) > 0
    chosen = np.zeros(units.count, dtype=bool)
    # Units of both sides, of the real side only, of the fake side only: each halved by itself.
    for kind in (in_real & in_fake, in_real & ~in_fake, in_fake & ~in_real):
        members = random.permutation(np.flatnonzero(kind))
        chosen[members[: (members.size + 1) // 2]] = True
    for mask in (chosen, ~chosen):
        if min(mask[units.real].sum(), mask[units.fake].sum()) < 2:
            raise ValueError("too few independent units to split into halves of 2 rows a side")
    return chosen, ~chosen
