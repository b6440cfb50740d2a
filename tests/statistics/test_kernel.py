"""Kernel distances: against other implementations, a double loop and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics.pairwise import rbf_kernel
from torch_fidelity.metric_kid import mmd2
from torchmetrics.image.kid import poly_mmd

import chexgenbench.statistics.arrays as blocks
from chexgenbench.statistics import cmmd, kernel_distance

Array = NDArray[np.float64]


def features(seed: int, n: int, d: int, shift: float = 0.0) -> Array:
    rows = np.abs(np.random.default_rng(seed).normal(size=(n, d)) + shift)
    return rows * (1 + np.arange(d)) ** -0.5


def by_loop(x: Array, y: Array) -> float:
    """Every pair by itself."""
    n, m, d = len(x), len(y), x.shape[1]
    within = sum((a @ b / d + 1) ** 3 for i, a in enumerate(x) for j, b in enumerate(x) if i != j)
    within_y = sum((a @ b / d + 1) ** 3 for i, a in enumerate(y) for j, b in enumerate(y) if i != j)
    between = sum((a @ b / d + 1) ** 3 for a in x for b in y)
    return float(within / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m))


def test_agrees_with_a_double_loop_at_unequal_sizes() -> None:
    x, y = features(1, 40, 7), features(2, 25, 7, 0.3)
    assert kernel_distance(x, y).value == pytest.approx(by_loop(x, y), rel=1e-10)


@pytest.mark.parametrize("d", [4, 64, 512])
def test_agrees_with_torch_fidelity_and_torchmetrics(d: int) -> None:
    x, y = features(1, 300, d), features(2, 300, d, 0.3)
    value = kernel_distance(x, y).value
    kernels = [(a @ b.T / d + 1) ** 3 for a, b in ((x, x), (x, y), (y, y))]
    assert value == pytest.approx(mmd2(*kernels), rel=1e-9)
    assert value == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))), 1e-9)


def test_cmmd_agrees_with_scikit_learn_and_the_published_bias() -> None:
    x, y = features(1, 60, 16), features(2, 50, 16, 0.3)
    a = x / np.linalg.norm(x, axis=1, keepdims=True)
    b = y / np.linalg.norm(y, axis=1, keepdims=True)
    xx, yy, xy = (rbf_kernel(*sides, gamma=1 / 200) for sides in ((a, a), (b, b), (a, b)))
    within = (xx.sum() - 60) / (60 * 59), (yy.sum() - 50) / (50 * 49)
    unbiased = 1000 * (sum(within) - 2 * xy.mean())
    assert cmmd(x, y).value == pytest.approx(unbiased, rel=1e-9)
    published = 1000 * (xx.mean() + yy.mean() - 2 * xy.mean())
    shift = 1000 * ((1 - within[0]) / 60 + (1 - within[1]) / 50)
    assert published == pytest.approx(cmmd(x, y).value + shift, rel=1e-9)


def test_cmmd_does_not_see_the_length_of_a_row() -> None:
    x, y = features(1, 40, 8), features(2, 40, 8, 0.3)
    lengths = np.random.default_rng(0).uniform(0.1, 100, size=(40, 1))
    assert cmmd(x * lengths, y).value == pytest.approx(cmmd(x, y).value, rel=1e-9)
    with pytest.raises(ValueError, match="fake: row 3 is zero and has no direction"):
        y[3] = 0
        cmmd(x, y)


def test_a_large_offset_keeps_its_digits() -> None:
    # The same numbers in exact arithmetic: whole numbers, Python integers.
    random = np.random.default_rng(0)
    x, y = random.integers(0, 9, (12, 4)) + 2**20, random.integers(2, 9, (12, 4)) + 2**20

    def total(a: NDArray[np.int64], b: NDArray[np.int64], skip: bool) -> int:
        return sum(
            (sum(int(p) * int(q) for p, q in zip(u, v, strict=True)) + 4) ** 3
            for i, u in enumerate(a)
            for j, v in enumerate(b)
            if not (skip and i == j)
        )

    # Over the common denominator n^2 (n - 1): exact until the last division.
    n = len(x)
    within = n * (total(x, x, True) + total(y, y, True))
    exact = (within - 2 * (n - 1) * total(x, y, False)) / (4**3 * n * n * (n - 1))
    assert kernel_distance(x, y).value == pytest.approx(exact, rel=1e-9)


def test_is_unbiased_at_any_size() -> None:
    # Mean over many draws of 5 rows against the value for the distributions: x ~ N(0, 1),
    # y ~ N(1, 1) in one dimension, k = (xy + 1)^3 with E k = sum of binomial moments.
    moment = {0: (1, 1), 1: (0, 1), 2: (1, 2), 3: (0, 4)}
    truth = sum(
        weight * (moment[p][0] - moment[p][1]) ** 2
        for p, weight in ((0, 1), (1, 3), (2, 3), (3, 1))
    )
    random = np.random.default_rng(0)
    values = np.array(
        [
            kernel_distance(random.normal(size=(5, 1)), random.normal(size=(5, 1)) + 1).value
            for _ in range(2000)
        ]
    )
    assert abs(values.mean() - truth) < 3.3 * values.std() / np.sqrt(2000)
    assert (values < 0).any()


def test_the_exact_value_takes_no_seed_and_has_a_spread() -> None:
    # Defect 3: with subsets of all rows every draw is the same and the spread is zero.
    x, y = features(1, 120, 8), features(2, 120, 8, 0.1)
    exact = kernel_distance(x, y)
    assert exact == kernel_distance(x, y, seed=7)
    assert exact.standard_error
    whole = kernel_distance(x, y, subset_size=120, subsets=5)
    assert whole.value == pytest.approx(exact.value, rel=1e-9)
    assert whole.standard_error == pytest.approx(exact.standard_error, rel=1e-6)


def test_subsets_scatter_around_the_exact_value_with_a_larger_error() -> None:
    x, y = features(1, 200, 8), features(2, 200, 8, 0.3)
    exact = kernel_distance(x, y)
    few = [kernel_distance(x, y, subset_size=20, subsets=5, seed=seed) for seed in range(40)]
    values = np.array([one.value for one in few])
    assert few[0] == kernel_distance(x, y, subset_size=20, subsets=5, seed=0)
    assert abs(values.mean() - exact.value) < 3.3 * values.std(ddof=1) / np.sqrt(40)
    added = np.mean(
        [(one.standard_error or 0) ** 2 - (exact.standard_error or 0) ** 2 for one in few]
    )
    # A variance over 40 draws has a relative standard deviation of 23 %.
    assert added == pytest.approx(values.var(ddof=1), rel=0.75)


def test_subset_sizes_that_do_not_fit_are_errors() -> None:
    x, y = features(1, 20, 3), features(2, 12, 3)
    for size in (1, 13):
        with pytest.raises(ValueError, match="between 2 and the 12 rows"):
            kernel_distance(x, y, subset_size=size)
    with pytest.raises(ValueError, match="subsets must be at least 1"):
        kernel_distance(x, y, subset_size=5, subsets=0)


def test_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Defect 1: no result depends on the batch.
    x, y = features(1, 90, 6), features(2, 70, 6, 0.3)
    whole = kernel_distance(x, y)
    for size in (1, 8 * 90 * 7, 8 * 90 * 89):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
        parts = kernel_distance(x, y)
        assert parts.value == pytest.approx(whole.value, rel=1e-10)
        assert parts.standard_error == pytest.approx(whole.standard_error, rel=1e-10)


def test_second_order_variance_agrees_with_the_kernel_matrix() -> None:
    # Sum over pairs of rows of the squared interaction, formed in full, for equal distributions.
    n, d = 80, 3
    x, y = np.random.default_rng(0).normal(size=(2, n, d))
    influence = kernel_distance(x, y).influence
    assert influence is not None
    rows = np.r_[x, y]
    kernel = (rows @ rows.T / d + 1) ** 3
    sign = np.r_[np.ones(n), -np.ones(n)] / n
    centre = np.zeros((2 * n, 2 * n))
    centre[:n, :n] = centre[n:, n:] = 1 / n
    projection = np.eye(2 * n) - centre
    interaction = 2 * (projection @ kernel @ projection) * np.outer(sign, sign)
    np.fill_diagonal(interaction, 0)
    # Var = 1/4 of the full double sum of H for T = 1/2 sum H: here 1/2 sum over u != v of H^2.
    expected = (interaction**2).sum() / 2
    assert influence.second_order() == pytest.approx(expected, rel=0.2)


def test_rows_of_one_unit_are_no_pair() -> None:
    """By the definition, in two loops, with the kernel about the middle of both sides (what depends
    on one row alone cancels in expectation, and with groups of unequal size only there)."""
    random = np.random.default_rng(3)
    x, y = random.normal(size=(14, 3)), random.normal(size=(11, 3)) + 0.3
    patients_x = random.integers(0, 5, 14)
    patients_y = random.integers(3, 8, 11)

    centre = (x.mean(axis=0) + y.mean(axis=0)) / 2

    def kernel(p: Array, q: Array) -> float:
        return float((p @ q / 3 + 1) ** 3)

    def mean(a: Array, b: Array, of_a: Array, of_b: Array) -> float:
        kernels = [
            kernel(p, q) - kernel(p, centre) - kernel(centre, q) + kernel(centre, centre)
            for p, i in zip(a, of_a, strict=True)
            for q, j in zip(b, of_b, strict=True)
            if i != j
        ]
        return float(np.mean(kernels))

    expected = (
        mean(x, x, patients_x, patients_x)
        + mean(y, y, patients_y, patients_y)
        - 2 * mean(x, y, patients_x, patients_y)
    )
    found = kernel_distance(x, y, groups_real=patients_x, groups_fake=patients_y)
    assert found.value == pytest.approx(expected, rel=1e-10)


def test_an_honest_model_of_the_same_prompts_is_at_zero() -> None:
    """Answers to the same prompts are alike in what the prompt says; that is no distance."""
    random = np.random.default_rng(4)
    paired, all_pairs = [], []
    for _ in range(200):
        said = random.normal(size=(60, 6)) * 2
        x, y = said + random.normal(size=(60, 6)), said + random.normal(size=(60, 6))
        paired.append(kernel_distance(x, y, pairs=True).value)
        all_pairs.append(kernel_distance(x, y).value)
    error = np.std(paired) / np.sqrt(len(paired))
    assert abs(np.mean(paired)) < 3.5 * error
    assert np.mean(all_pairs) < -10 * error


def test_one_patient_only_has_a_value_and_no_interval() -> None:
    random = np.random.default_rng(5)
    x, y = random.normal(size=(2, 9, 3))
    found = kernel_distance(x, y, groups_real=["p"] * 9, groups_fake=["p"] * 9)
    assert found.value == pytest.approx(kernel_distance(x, y).value)
    assert found.ci_low is None
