"""Checks at the door, and the few array operations that several statistics share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]

BLOCK_BYTES = 48 * 2**20
"""Size of one block of a pairwise matrix: beyond some 30 MB larger blocks are not faster."""


EDGE = 1e-12
"""Squared distances that differ by less than this share of the squared norms are equal."""


def matrix(name: str, data: ArrayLike, *, minimum: int = 1) -> FloatArray:
    """``data`` as float64 [n, d] with n >= ``minimum``, d >= 1 and every entry finite.

    Always a copy: callers change it in place.
    """
    rows: NDArray[Any] = np.asarray(data)
    if rows.ndim != 2:
        raise ValueError(f"{name}: expected an array [rows, features], got shape {rows.shape}")
    if rows.shape[1] == 0:
        raise ValueError(f"{name}: the rows have no features (shape {rows.shape})")
    if rows.shape[0] < minimum:
        raise ValueError(f"{name}: at least {minimum} row(s) needed, got {rows.shape[0]}")
    if rows.dtype.kind not in "fiub":
        raise ValueError(f"{name}: real numbers expected, got dtype {rows.dtype}")
    floats = rows.astype(np.float64)
    bad = ~np.isfinite(floats).all(axis=1)
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(f"{name}: {int(bad.sum())} row(s) hold NaN or infinity, first row {first}")
    return floats


def two_sides(
    real: ArrayLike, fake: ArrayLike, *, minimum: int = 1, names: tuple[str, str] = ("real", "fake")
) -> tuple[FloatArray, FloatArray]:
    """Both sides through :func:`matrix`, with the same number of features."""
    first = matrix(names[0], real, minimum=minimum)
    second = matrix(names[1], fake, minimum=minimum)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{names[0]} has {first.shape[1]} features a row and {names[1]} {second.shape[1]}"
        )
    return first, second


def vector(name: str, data: ArrayLike) -> FloatArray:
    """``data`` as a finite float64 [n], n >= 1."""
    values: NDArray[Any] = np.asarray(data)
    if values.ndim != 1:
        raise ValueError(f"{name}: expected one value a row, got shape {values.shape}")
    if values.size == 0:
        raise ValueError(f"{name}: at least 1 row(s) needed, got 0")
    return matrix(name, values[:, None])[:, 0]


def unit_rows(name: str, rows: FloatArray) -> FloatArray:
    """The rows scaled to length one; a row of zeros has no direction and is an error."""
    # Divided by the largest entry first, so that squares neither overflow nor vanish.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError(f"{name}: row {int(np.argmin(largest))} is zero and has no direction")
    scaled = rows / largest
    directions: FloatArray = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    return directions


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices over ``rows`` such that a float64 block of ``columns`` stays below BLOCK_BYTES."""
    return slices(rows, max(1, BLOCK_BYTES // (8 * max(columns, 1))))


def slices(count: int, step: int) -> Iterator[slice]:
    """Slices over ``count`` rows, ``step`` of them each and what is left in the last."""
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def squared_distances(x: FloatArray, y: FloatArray, norms_y: FloatArray) -> FloatArray:
    """|x - y|^2 of all pairs [n, m], off by some 1e-15 of |x|^2 + |y|^2; ``norms_y`` is |y|^2."""
    squares: FloatArray = x @ y.T
    squares *= -2.0
    squares += (x**2).sum(axis=1)[:, None]
    squares += norms_y
    return squares


def order_by_content(rows: FloatArray) -> IntArray:
    """An order of the rows that does not depend on the order in which they came."""
    from hashlib import blake2b

    keys = [blake2b((row + 0.0).tobytes(), digest_size=16).digest() for row in rows]
    return np.array(sorted(range(len(rows)), key=keys.__getitem__), dtype=np.int64)
