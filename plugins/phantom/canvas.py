"""Drawing tools on square arrays: smooth noise, blurred strokes and soft edges.

Coordinates run from -1 to 1 over the image, so that a drawing looks the same at every size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def one_thread() -> AbstractContextManager[object]:
    """Matrix products on one thread: as fast at these sizes, the same grey levels whatever the
    number of cores, and no quarrel with a model that uses them all."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1, user_api="blas")


@lru_cache(maxsize=64)
def _blur_matrix(size: int, sigma: float) -> Array:
    at = np.arange(size, dtype=np.float32)
    weights = np.exp(-0.5 * ((at[:, None] - at[None, :]) / max(sigma, 1e-3)) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=64)
def _spread_matrix(size: int, cells: int) -> Array:
    at = (np.arange(size, dtype=np.float32) + 0.5) / size * cells - 0.5
    weights = np.exp(-0.5 * ((at[:, None] - np.arange(-1, cells + 1)[None, :]) / 0.6) ** 2)
    return (weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))).astype(np.float32)


def blur(image: Array, sigma: float) -> Array:
    """The image [n, n] blurred by a Gaussian of `sigma` pixels."""
    matrix = _blur_matrix(image.shape[0], round(sigma, 3))
    return matrix @ image @ matrix.T


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Smooth noise [size, size] of mean 0 and variance 1, with `cells` bumps across the image."""
    matrix = _spread_matrix(size, cells)
    field = rng.standard_normal((cells + 2, cells + 2), dtype=np.float32)
    return matrix @ field @ matrix.T


def step(distance: Array, width: float) -> Array:
    """A soft step from 0 to 1 where `distance` turns positive, about 4 `width` across."""
    return 0.5 + 0.5 * np.tanh(distance * np.float32(0.5 / width))


def band(distance: Array, half_width: float) -> Array:
    """A flat-topped band: 1 near distance 0, falling off at `half_width`."""
    ratio = distance * np.float32(1.0 / half_width)
    ratio *= ratio
    return np.exp(-ratio * ratio)


class Strokes:
    """Collects polylines, then draws them all at once as lines of one width."""

    def __init__(self, size: int, width: float) -> None:
        """`width` is the Gaussian half-width of the lines in coordinate units."""
        self.size = size
        self.sigma = max(width * size / 2, 0.45)
        self._points: list[Array] = []
        self._weights: list[Array] = []

    def add(self, points: NDArray[np.floating], weight: float | NDArray[np.floating] = 1.0) -> None:
        """Add a polyline [k, 2] of (x, y); `weight` is its brightness, one or one a vertex."""
        points = np.asarray(points, dtype=np.float32)
        weights = np.broadcast_to(np.asarray(weight, dtype=np.float32), points.shape[:1])
        delta = np.diff(points, axis=0)
        length = np.hypot(delta[:, 0], delta[:, 1]) * (self.size / 2)
        along = np.concatenate([[0.0], np.cumsum(length)])
        if along[-1] <= 0:
            return
        count = int(np.ceil(along[-1] * 2.0)) + 1
        at = np.linspace(0.0, along[-1], count)
        spot = [np.interp(at, along, points[:, i]) for i in (0, 1)]
        share = along[-1] / count
        self._points.append(np.stack(spot, axis=1).astype(np.float32))
        self._weights.append((np.interp(at, along, weights) * share).astype(np.float32))

    def draw(self) -> Array:
        """The lines [size, size]: about 1 on a line of weight 1, 0 elsewhere."""
        size = self.size
        if not self._points:
            return np.zeros((size, size), dtype=np.float32)
        points = (np.concatenate(self._points) + 1.0) * (size / 2) - 0.5
        weights = np.concatenate(self._weights)
        corner = np.floor(points).astype(np.int64)
        part = points - corner
        total = np.zeros(size * size, dtype=np.float64)
        for dx in (0, 1):
            for dy in (0, 1):
                x, y = corner[:, 0] + dx, corner[:, 1] + dy
                inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
                share = np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1]) * weights
                flat = (y * size + x)[inside]
                total += np.bincount(flat, share[inside], minlength=size * size)
        image = blur(total.reshape(size, size).astype(np.float32), self.sigma)
        return image * np.float32(self.sigma * np.sqrt(2 * np.pi))


def curve(*points: tuple[float, float], count: int = 24) -> Array:
    """A Bezier curve [count, 2] with the given control points."""
    t = np.linspace(0.0, 1.0, count, dtype=np.float32)[:, None]
    stack = [np.asarray(p, dtype=np.float32)[None, :] for p in points]
    while len(stack) > 1:
        stack = [(1 - t) * a + t * b for a, b in pairwise(stack)]
    return np.broadcast_to(stack[0], (count, 2)).astype(np.float32)
