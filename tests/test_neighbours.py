"""Nearest rows: against scipy, in every order, and where float32 is not enough."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from chexgenbench.statistics import nearest, nearest_approximate

Array = NDArray[np.float64]


def rows(seed: int, n: int, d: int) -> Array:
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize(("n", "t", "d", "k"), [(40, 300, 8, 5), (3, 25, 2, 25), (70, 9000, 33, 1)])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_agrees_with_scipy(n: int, t: int, d: int, k: int, metric: str) -> None:
    x, y = rows(1, n, d).astype(np.float32), rows(2, t, d).astype(np.float32)
    found = nearest(x, y, k, metric=metric)  # type: ignore[arg-type]
    expected = cdist(x.astype(np.float64), y.astype(np.float64), metric)
    order = np.argsort(expected, axis=1)[:, :k]
    assert (found.indices == order).all()
    truth = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_allclose(found.distances, truth, rtol=1e-9, atol=1e-12)


def test_a_copy_is_at_0_where_float32_says_otherwise() -> None:
    """Far from the origin the distance of a near copy is lost in rounding, at these sizes."""
    import faiss

    y = (30 + rows(1, 3000, 768)).astype(np.float32)
    x = (y[:500] + np.float32(0.01)).astype(np.float32)
    truth = np.linalg.norm(x.astype(np.float64) - y[:500], axis=1)
    squares, _ = faiss.knn(x, y, 5)
    assert np.abs(np.sqrt(np.maximum(squares[:, 0], 0)) / truth - 1).max() > 0.1
    found = nearest(np.concatenate([x, y[:500]]), y)
    assert (found.indices[:, 0] == np.tile(np.arange(500), 2)).all()
    np.testing.assert_allclose(found.distances[:500, 0], truth, rtol=1e-12)
    assert (found.distances[500:] == 0.0).all()


def test_rows_that_float32_cannot_hold_are_compared_all_the_same() -> None:
    y = np.array([[0.0, 0.0], [1e30, 0.0], [3.0, 4.0], [1e-30, 0.0]])
    found = nearest([[1.1e-30, 0.0], [1e30, 1.0]], y, 2)
    assert found.indices.tolist() == [[3, 0], [1, 0]]
    np.testing.assert_allclose(found.distances[0], [1e-31, 1.1e-30])


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=2, max_size=40),
    k=st.integers(1, 2),
    order=st.randoms(use_true_random=False),
    distinct=st.booleans(),
)
def test_ties_do_not_depend_on_the_order_of_rows(
    points: list[tuple[int, int]], k: int, order: object, distinct: bool
) -> None:
    """On a grid most distances are tied; groups are the first coordinate."""
    y = np.array(points, dtype=np.float64)
    groups = y[:, 0].astype(int).tolist()
    if len(set(groups)) < k and distinct:
        return
    x = np.array([[0.0, 0.0], [0.5, 0.5]])
    shuffled = list(range(len(y)))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    found = nearest(x, y, k, groups_targets=groups, distinct=distinct)
    other = nearest(
        x, y[shuffled], k, groups_targets=[groups[i] for i in shuffled], distinct=distinct
    )
    assert (found.distances == other.distances).all()
    assert (y[found.indices] == y[shuffled][other.indices]).all()
    if distinct:
        assert all(len(set(y[chosen, 0])) == k for chosen in found.indices)


def test_many_equal_rows_are_searched_to_the_end() -> None:
    """More ties than candidates of any width: the row beyond them is found."""
    y = np.concatenate([np.zeros((2000, 3)), [[0.5, 0.0, 0.0]]])
    groups = [0] * 2000 + [1]
    found = nearest([[0.1, 0.0, 0.0]], y, 2, groups_targets=groups, distinct=True)
    np.testing.assert_allclose(found.distances, [[0.1, 0.4]])
    assert found.indices[0, 1] == 2000


def test_the_own_group_is_left_out() -> None:
    x, y = rows(1, 60, 5), rows(2, 400, 5)
    mine, theirs = np.arange(60) % 7, np.arange(400) % 7
    found = nearest(x, y, 3, groups_queries=mine, groups_targets=theirs)
    expected = cdist(x, y)
    expected[mine[:, None] == theirs] = np.inf
    assert (found.indices == np.argsort(expected, axis=1)[:, :3]).all()


def test_blocks_and_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    from chexgenbench.statistics import neighbours

    x, y = rows(1, 90, 12).astype(np.float32), rows(2, 700, 12).astype(np.float32)
    # About these float32 sees no differences: more candidates are asked for, and at last all.
    x[::3], y[::2] = 300 + x[::3] / 100, 300 + y[::2] / 100
    expected = nearest(x, y, 4)
    monkeypatch.setattr(neighbours, "_QUERIES", 17)
    monkeypatch.setattr(neighbours, "_TARGETS", 61)
    monkeypatch.setattr(neighbours, "_CANDIDATES", 200)
    before = faiss.omp_get_max_threads()
    try:
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            found = nearest(x, y, 4)
            assert (found.indices == expected.indices).all()
            assert (found.distances == expected.distances).all()
    finally:
        faiss.omp_set_num_threads(before)


def test_what_cannot_be_compared_is_refused() -> None:
    good = np.ones((3, 2))
    bad = good.copy()
    bad[1, 0] = np.nan
    with pytest.raises(ValueError, match="targets: row 1 holds NaN"):
        nearest(good, bad)
    with pytest.raises(ValueError, match="2 features a row and targets 3"):
        nearest(good, np.ones((3, 3)))
    for k in (0, 4):
        with pytest.raises(ValueError, match="k must be"):
            nearest(good, good, k)
    with pytest.raises(ValueError, match="zeros has no direction"):
        nearest(good, np.zeros((1, 2)), metric="cosine")
    with pytest.raises(ValueError, match="row 0 has 0 target"):
        nearest(good, good, groups_queries="aaa", groups_targets=list("aaa"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"row 0 has 1 target"):
        nearest(good, good, 2, groups_targets=list("aaa"), distinct=True)


def test_the_recall_of_the_approximate_search_is_what_it_says() -> None:
    y = rows(1, 4000, 16)
    x = rows(2, 300, 16)
    truth = nearest(x, y, 5)
    recalls = []
    for probes in (1, 8, 60):
        found, recall = nearest_approximate(x, y, 5, probes=probes, sample=300)
        hits = [len(set(a) & set(b)) / 5 for a, b in zip(found.indices, truth.indices, strict=True)]
        assert recall.value == pytest.approx(np.mean(hits), abs=1e-12)
        recalls.append(recall.value)
        reached = found.indices >= 0
        exact = np.linalg.norm(x[:, None] - y[found.indices], axis=2)
        np.testing.assert_allclose(found.distances[reached], exact[reached], rtol=1e-12)
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.9 < recalls[-1]


def test_faiss_and_torch_live_in_one_process() -> None:
    """Both bring an OpenMP of their own, and both compute with several threads. (Torch comes first
    in the tests of memorisation on phantoms.)"""
    code = (
        "import numpy as np, sys\n"
        "x = np.random.default_rng(0).normal(size=(2000, 64)).astype('f4')\n"
        "def a():\n"
        "    import torch; torch.set_num_threads(2); t = torch.from_numpy(x); print(float((t @ t.T)"
        ".trace()) > 0)\n"
        "def b():\n"
        "    from chexgenbench.statistics import nearest; print(nearest(x, x).distances.max() == 0)"
        "\n"
        "for f in sys.argv[1]: globals()[f]()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "bab"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"] * 3
