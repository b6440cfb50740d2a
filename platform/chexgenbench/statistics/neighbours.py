"""Nearest rows of a large set: exact, in bounded memory, and the same however they are found.

Candidates come from faiss in float32, whose expansion |x|^2 - 2 x'y + |y|^2 is off by far more than
the distance of near copies. So each candidate's distance is made again in float64 from the
differences, and a bound on the rounding says whether another row could belong among the chosen
ones; where it could, more candidates are asked for, and at last all.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench.statistics.arrays import BLOCK_BYTES, FloatArray, IntArray, slices
from chexgenbench.statistics.averages import mean_estimate
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import Groups

__all__ = ["Neighbours", "nearest", "nearest_approximate"]

Metric = Literal["euclidean", "cosine"]

_QUERIES, _TARGETS = 16384, 16384
"""Rows a block of the search in float32."""

_CANDIDATES = 2**22
"""Candidates of a block of queries, of 12 bytes each, and as many that are compared with them."""

_CACHE = 2**19
"""Bytes of differences that are worked out at once: they should not leave the cache."""

_LARGEST = 1e15
"""Entries beyond it (about the centre) would overflow as squares in float32."""


class Neighbours(NamedTuple):
    """The nearest targets of each query, the nearest first.

    Attributes:
        distances: float64 [n, k].
        indices: int64 [n, k], rows of the targets.
    """

    distances: FloatArray
    indices: IntArray


def nearest(
    queries: ArrayLike,
    targets: ArrayLike,
    k: int = 1,
    *,
    metric: Metric = "euclidean",
    groups_queries: Groups = None,
    groups_targets: Groups = None,
    distinct: bool = False,
) -> Neighbours:
    """The k nearest targets of each query, exactly.

    Args:
        queries: Features [n, d], n >= 1, any real dtype.
        targets: Features [t, d].
        k: Neighbours a query, 1 <= k <= t.
        metric: ``euclidean``, |x - y|; or ``cosine``, 1 - x'y / (|x| |y|).
        groups_queries: A label a row (patient): targets of the query's own label are left out.
        groups_targets: The same for the targets.
        distinct: Of each group of targets the nearest alone counts, so that the k neighbours are
            of k groups.

    Returns:
        Neighbours, distances in float64 from the differences of the rows: equal rows are 0 apart.
        Equal distances are ordered by the content of the targets, so neither the order of rows nor
        the number of threads plays a part (of targets that are equal, the first is named). Memory
        beyond the arguments and the result is at most about 300 MB at d = 768 whatever n and t.

    Raises:
        ValueError: NaN or infinity, different d, a row of zeros under ``cosine``, k or labels
            that do not fit, or a query with fewer than k targets that may be its neighbours.

    Source: Johnson, Douze and Jegou 2019, "Billion-scale similarity search with GPUs" (faiss);
    Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1 (the bound).

    >>> nearest([[0.0], [5.0]], [[4.0], [1.0], [0.5]], k=2).indices.tolist()
    [[2, 1], [0, 1]]
    >>> nearest([[0.0]], [[0.1], [1.0]], groups_queries=["a"], groups_targets=["a", "b"]).distances
    array([[1.]])
    """
    x, y = row_array("queries", queries), row_array("targets", targets)
    _fits(x, y, k, metric)
    own_x, own_y = _codes(groups_queries, groups_targets, len(x), len(y), distinct)
    search = _Search(x, y, k, metric, own_x, own_y, distinct)
    distances, indices = np.empty((len(x), k)), np.empty((len(x), k), dtype=np.int64)
    # Those of the own group are candidates too, and so are several of a group.
    least = k + 8 if own_y is None else 2 * k + 16
    wide = [width for i in range(3) if (width := least * 8**i) < min(1025, len(y))]
    widths = wide if search.fits_float32 else []
    for part in slices(len(x), _QUERIES):
        open_rows = np.arange(part.start, part.stop)
        for width in widths:
            some = slices(open_rows.size, max(1, _CANDIDATES // width))
            settled = [search.settle(open_rows[rows], width, distances, indices) for rows in some]
            open_rows = open_rows[~np.concatenate([np.zeros(0, dtype=bool), *settled])]
        for row in open_rows.tolist():
            search.exhaust(row, distances, indices)
    return Neighbours(distances, indices)


def nearest_approximate(
    queries: ArrayLike,
    targets: ArrayLike,
    k: int = 1,
    *,
    probes: int = 8,
    sample: int = 500,
    seed: int = 0,
) -> tuple[Neighbours, Estimate]:
    """Near targets of each query by cells of k-means, and how many of the nearest it finds.

    Args:
        queries: Features [n, d], n >= 1, any real dtype.
        targets: Features [t, d].
        k: Neighbours a query, 1 <= k <= t.
        probes: Cells that are searched, of about sqrt(t) in all.
        sample: Queries whose exact neighbours are found too.
        seed: Draws that sample, and starts k-means.

    Returns:
        Neighbours (euclidean, distances exact for the rows found; where the cells hold fewer than
        k, infinity and -1), and the recall: the share of them that are no farther than the k-th
        nearest, over the sampled queries, with its interval; without one where all are.

    Raises:
        ValueError: as :func:`nearest`; fewer than 1 probe or sampled query.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(400, 4))
    >>> found, recall = nearest_approximate(rows[:50], rows, probes=80)
    >>> float(found.distances.max()), recall.value
    (0.0, 1.0)
    """
    x, y = row_array("queries", queries), row_array("targets", targets)
    _fits(x, y, k, "euclidean")
    if probes < 1 or sample < 1:
        raise ValueError(f"probes and sample must be at least 1, got {probes} and {sample}")
    search = _Search(x, y, k, "euclidean", None, None, distinct=False)
    if not search.fits_float32:
        raise ValueError("the features are too far apart for float32")
    random = np.random.default_rng(seed)
    cells = _Cells(search, int(random.integers(2**31)))
    width = min(k + 16, len(y))
    distances = np.full((len(x), k), np.inf)
    indices = np.full((len(x), k), -1, dtype=np.int64)
    for rows in slices(len(x), 2 * _QUERIES):
        ids = cells.near(x[rows], width, probes)
        found = np.where(ids < 0, np.inf, search.all_exact(x[rows], ids))
        for at, row in enumerate(range(rows.start, rows.stop)):
            chosen = search.choose(row, found[at], ids[at])[:k]
            chosen = chosen[ids[at, chosen] >= 0]
            distances[row, : chosen.size] = found[at, chosen]
            indices[row, : chosen.size] = ids[at, chosen]
    asked = np.sort(random.choice(len(x), min(sample, len(x)), replace=False))
    truth = nearest(x[asked], y, k).distances
    reached = (distances[asked] <= truth[:, -1:]).mean(axis=1)
    return Neighbours(distances, indices), mean_estimate(reached)


class _Search:
    """Two sides, and how a row's neighbours among candidates are chosen."""

    def __init__(
        self,
        x: NDArray[Any],
        y: NDArray[Any],
        k: int,
        metric: Metric,
        own_x: IntArray | None,
        own_y: IntArray | None,
        distinct: bool,
    ) -> None:
        self.x, self.y, self.k, self.metric = x, y, k, metric
        self.own_x, self.own_y, self.distinct = own_x, own_y, distinct
        # About a median, so that one outlier does not cost all rows their digits; in whole float32,
        # so that rows of float32 less it are rounded once, whichever the arithmetic.
        some = self.double(y[:: max(1, len(y) // 1000)])
        with np.errstate(over="ignore", invalid="ignore"):
            self.centre = np.median(some, axis=0).astype(np.float32)
            self.fits_float32 = max(map(self._farthest, (x, y))) < _LARGEST
        # Rounding of the entries, the products and the three sums, in units of |x|^2 + |y|^2.
        self.slack = (x.shape[1] + 16) * float(np.finfo(np.float32).eps)

    def _farthest(self, side: NDArray[Any]) -> float:
        """The largest entry of the rows about the centre, without its sign."""
        if self.metric == "cosine":
            return 2.0
        return max(
            float(np.abs(edge.astype(np.float64) - self.centre).max())
            for part in slices(len(side), _TARGETS)
            for edge in (side[part].max(axis=0), side[part].min(axis=0))
        )

    def double(self, rows: NDArray[Any]) -> FloatArray:
        """The rows as they are compared, in float64."""
        floats = rows.astype(np.float64)
        if self.metric == "cosine":
            floats /= np.abs(floats).max(axis=-1, keepdims=True)
            floats /= np.sqrt((floats**2).sum(axis=-1, keepdims=True))
        return floats

    def single(
        self, rows: NDArray[Any], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The rows about the centre in float32; in the first rows of `out` where that is given."""
        exact = rows.dtype == np.float32 and self.metric == "euclidean"
        out = np.empty(rows.shape, np.float32) if out is None else out[: len(rows)]
        np.subtract(rows if exact else self.double(rows), self.centre, out=out, casting="same_kind")
        return out

    def candidates(self, rows: IntArray, width: int) -> tuple[FloatArray, IntArray, FloatArray]:
        """Exact distances [n, width] and numbers of the nearest in float32, and what the last of
        them is away in float32: no other row is nearer than that, as float32 sees it."""
        import faiss

        x = self.single(self.x[rows])
        near = np.zeros((len(x), 0), dtype=np.float32)
        ids = np.zeros((len(x), 0), dtype=np.int64)
        # Memory that is asked for anew would be mapped anew, a tenth of a block's time.
        block = np.empty((min(_TARGETS, len(self.y)), self.y.shape[1]), np.float32)
        for part in slices(len(self.y), _TARGETS):
            y = self.single(self.y[part], block)
            distances, numbers = faiss.knn(x, y, min(width, len(y)))
            near = np.concatenate([near, distances], axis=1)
            ids = np.concatenate([ids, numbers + part.start], axis=1)
            if near.shape[1] > width:
                keep = np.argpartition(near, width - 1, axis=1)[:, :width]
                near = np.take_along_axis(near, keep, axis=1)
                ids = np.take_along_axis(ids, keep, axis=1)
        return self.all_exact(self.x[rows], ids), ids, near.max(axis=1).astype(np.float64)

    def all_exact(self, x: NDArray[Any], ids: IntArray) -> FloatArray:
        """:meth:`exact` in bounded memory."""
        found = np.empty(ids.shape)
        for block in slices(len(x), max(1, _CACHE // (8 * ids.shape[1] * x.shape[1]))):
            found[block] = self.exact(x[block], ids[block])
        return found

    def exact(self, x: NDArray[Any], ids: IntArray) -> FloatArray:
        """Distances [n, c] of queries [n, d] to targets [n, c], from the differences."""
        gaps = self.double(self.y[ids])
        gaps -= self.double(x)[:, None]
        gaps *= gaps
        squares: FloatArray = gaps.sum(axis=2)
        return squares / 2 if self.metric == "cosine" else np.sqrt(squares)

    def settle(
        self, rows: IntArray, width: int, distances: FloatArray, indices: IntArray
    ) -> NDArray[np.bool_]:
        """Writes the neighbours of the rows where no target beyond `width` candidates can be one;
        whether that is so."""
        found, ids, reached = self.candidates(rows, width)
        settled = np.zeros(len(rows), dtype=bool)
        norms = np.concatenate(
            [
                np.sqrt(((self.double(self.x[rows[part]]) - self.centre) ** 2).sum(axis=1))
                for part in slices(len(rows), 1024)
            ]
        )
        for at, row in enumerate(rows.tolist()):
            chosen = self.choose(row, found[at], ids[at])
            if chosen.size < self.k:
                continue
            chosen = chosen[: self.k]
            last = float(found[at, chosen[-1]])
            square = 2 * last if self.metric == "cosine" else last**2
            # A row as near as that has a norm of at most |x| + its distance.
            bound = self.slack * (norms[at] ** 2 + (norms[at] + square**0.5) ** 2)
            if reached[at] > square + bound:
                distances[row], indices[row] = found[at, chosen], ids[at, chosen]
                settled[at] = True
        return settled

    def exhaust(self, row: int, distances: FloatArray, indices: IntArray) -> None:
        """Writes the neighbours of one row from its distances to all targets."""
        x, ids = self.x[row : row + 1], np.arange(len(self.y))
        step = max(1, BLOCK_BYTES // (8 * x.shape[1]))
        found = np.concatenate(
            [self.exact(x, ids[None, part])[0] for part in slices(len(ids), step)]
        )
        chosen = self.choose(row, found, ids)[: self.k]
        if chosen.size < self.k:
            raise ValueError(
                f"queries: row {row} has {chosen.size} target(s) that may be its neighbours, "
                f"k = {self.k} needed"
            )
        distances[row], indices[row] = found[chosen], ids[chosen]

    def choose(self, row: int, found: FloatArray, ids: IntArray) -> IntArray:
        """Positions of the candidates that may be neighbours, the nearest first; at least k of
        them where there are as many."""
        allowed = np.arange(ids.size)
        if self.own_x is not None and self.own_y is not None:
            allowed = allowed[self.own_y[ids] != self.own_x[row]]
        order = allowed[np.lexsort((ids[allowed], found[allowed]))]
        sorted_distances = found[order]
        ties = np.flatnonzero(sorted_distances[1:] == sorted_distances[:-1])
        if ties.size and (self.distinct or ties[0] < self.k):
            order = self._by_content(order, found, ids)
        if self.distinct and self.own_y is not None:
            first = np.unique(self.own_y[ids[order]], return_index=True)[1]
            order = order[np.sort(first)]
        return order

    def _by_content(self, order: IntArray, found: FloatArray, ids: IntArray) -> IntArray:
        """The order, with equal distances ordered by a hash of the target."""
        tied = np.flatnonzero(np.bincount(np.unique(found[order], return_inverse=True)[1]) > 1)
        runs = np.unique(found[order], return_inverse=True)[1]
        keys = {
            at: blake2b((self.double(self.y[ids[at]][None]) + 0.0).tobytes()).digest()
            for at in order[np.isin(runs, tied)].tolist()
        }
        ranked = sorted(order.tolist(), key=lambda at: (found[at], keys.get(at, b""), ids[at]))
        return np.array(ranked, dtype=np.int64)


class _Cells:
    """The targets by cells of k-means.

    There are as many cells as rows in one, so that finding them and searching them cost alike, and
    they are learned from the fewest rows that faiss takes.
    """

    def __init__(self, search: _Search, seed: int) -> None:
        import faiss

        self.search, targets = search, search.y
        self.count = max(1, min(round(len(targets) ** 0.5), len(targets) // 39))
        size = min(len(targets), 39 * self.count)
        learn = np.sort(np.random.default_rng(seed).choice(len(targets), size, replace=False))
        # Not by `faiss.Kmeans`: it reads a C++ vector, which fails where another extension made
        # with SWIG was imported before and gave such vectors its own class.
        settings = faiss.ClusteringParameters()
        settings.niter, settings.seed = 5, seed
        index = faiss.IndexFlatL2(targets.shape[1])
        clustering = faiss.Clustering(targets.shape[1], self.count, settings)
        clustering.train(search.single(targets[learn]), index)
        self.centroids: NDArray[np.float32] = index.reconstruct_n(0, self.count)
        cells = [self._nearest(targets[part], 1)[:, 0] for part in slices(len(targets), _TARGETS)]
        self.order, self.ends = self._by_cell(np.concatenate(cells))

    def near(self, x: NDArray[Any], width: int, probes: int) -> IntArray:
        """Numbers [n, width] of the nearest in float32 among the targets of the `probes` nearest
        cells of each query; -1 where they hold fewer.

        A cell's targets meet all its queries in one matrix product, where an index would go
        through them for each query.
        """
        probes = min(probes, self.count)
        queries = self.search.single(x)
        asking, ends = self._by_cell(self._nearest(x, probes).ravel())
        near = np.full((len(x) * probes, width), np.inf, dtype=np.float32)
        ids = np.full((len(x) * probes, width), -1, dtype=np.int64)
        for cell in range(self.count):
            targets = self.order[self.ends[cell] : self.ends[cell + 1]]
            asked = asking[ends[cell] : ends[cell + 1]]
            if not targets.size or not asked.size:
                continue
            y, kept = self.search.single(self.search.y[targets]), min(width, targets.size)
            norms = (y**2).sum(axis=1)
            for part in slices(asked.size, max(1, BLOCK_BYTES // (4 * targets.size))):
                places = asked[part]
                # Less the query's own norm, which orders nothing.
                squares = norms - 2 * (queries[places // probes] @ y.T)
                least = np.argpartition(squares, kept - 1, axis=1)[:, :kept]
                near[places, :kept] = np.take_along_axis(squares, least, axis=1)
                ids[places, :kept] = targets[least]
        near, ids = near.reshape(len(x), -1), ids.reshape(len(x), -1)
        least = np.argpartition(near, width - 1, axis=1)[:, :width]
        found: IntArray = np.take_along_axis(ids, least, axis=1)
        return found

    def _nearest(self, rows: NDArray[Any], count: int) -> IntArray:
        import faiss

        cells: IntArray = faiss.knn(self.search.single(rows), self.centroids, count)[1]
        return cells

    def _by_cell(self, cells: IntArray) -> tuple[IntArray, IntArray]:
        """An order by cell, and where each cell begins in it, with the end as the last."""
        order = np.argsort(cells, kind="stable")
        return order, np.searchsorted(cells[order], np.arange(self.count + 1))


def row_array(name: str, data: ArrayLike) -> NDArray[Any]:
    """The rows [n, d] in their own dtype, every entry finite; no copy is made."""
    rows: NDArray[Any] = np.asarray(data)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name}: expected an array [rows, features], got shape {rows.shape}")
    if rows.dtype.kind not in "fiub":
        raise ValueError(f"{name}: real numbers expected, got dtype {rows.dtype}")
    for part in slices(len(rows), _TARGETS):
        block = rows[part]
        if not np.isfinite([block.min(), block.max()]).all():  # either is NaN where an entry is
            first = part.start + int(np.argmin(np.isfinite(block).all(axis=1)))
            raise ValueError(f"{name}: row {first} holds NaN or infinity")
    return rows


def _fits(x: NDArray[Any], y: NDArray[Any], k: int, metric: Metric) -> None:
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"queries have {x.shape[1]} features a row and targets {y.shape[1]}")
    if isinstance(k, bool) or k != int(k) or not 1 <= k <= len(y):
        raise ValueError(f"k must be a whole number of 1 to {len(y)} targets, got {k}")
    for name, rows in (("queries", x), ("targets", y)):
        if metric == "cosine" and not rows.any(axis=1).all():
            raise ValueError(f"{name}: a row of zeros has no direction")


def _codes(
    groups_x: Groups, groups_y: Groups, n: int, t: int, distinct: bool
) -> tuple[IntArray | None, IntArray | None]:
    """Numbers of the labels on both sides; an equal number is an equal label."""
    if groups_x is not None and groups_y is None:
        raise ValueError("groups_queries need groups_targets")
    if distinct and groups_y is None:
        raise ValueError("distinct needs groups_targets")
    labels: dict[object, int] = {}
    sides: list[IntArray | None] = []
    for name, groups, count in (("groups_queries", groups_x, n), ("groups_targets", groups_y, t)):
        listed = None if groups is None else np.asarray(groups).tolist()
        if listed is not None and len(listed) != count:
            raise ValueError(f"{name}: expected one label for each of {count} rows")
        sides.append(
            None
            if listed is None
            else np.array([labels.setdefault(one, len(labels)) for one in listed], dtype=np.int64)
        )
    return sides[0], sides[1]
