"""Means with clustered errors, and cosines."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity as reference

from chexgenbench.statistics import alignment, cosine_similarity, mean_estimate


def test_independent_rows_get_the_textbook_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=25)
    estimate = mean_estimate(values)
    low, high = stats.t.interval(0.95, 24, loc=values.mean(), scale=stats.sem(values))
    assert estimate.value == pytest.approx(values.mean(), rel=1e-14)
    assert estimate.standard_error == pytest.approx(stats.sem(values), rel=1e-12)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((low, high), rel=1e-10)


def test_groups_of_one_size_are_the_mean_of_their_means() -> None:
    values = np.random.default_rng(0).normal(size=(12, 5))
    estimate = mean_estimate(values.ravel(), groups=np.repeat(np.arange(12), 5))
    means = values.mean(axis=1)
    low, high = stats.t.interval(0.95, 11, loc=means.mean(), scale=stats.sem(means))
    assert estimate.standard_error == pytest.approx(stats.sem(means), rel=1e-12)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((low, high), rel=1e-10)


def test_unequal_groups_agree_with_the_cluster_robust_formula() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 9, 50)
    values = random.normal(size=50)
    sums = np.bincount(groups, values - values.mean())
    expected = np.sqrt(9 / 8 * (sums**2).sum()) / 50
    assert mean_estimate(values, groups=groups).standard_error == pytest.approx(expected, rel=1e-12)
    names = [f"patient {group}" for group in groups]
    assert mean_estimate(values, groups=names) == mean_estimate(values, groups=groups)


def test_order_and_offset_change_nothing() -> None:
    random = np.random.default_rng(0)
    values = np.round(random.normal(size=100) * 2**20) / 2**20
    groups, order = random.integers(0, 30, 100), random.permutation(100)
    straight = mean_estimate(values, groups=groups)
    for other in (
        mean_estimate(values[order], groups=groups[order]),
        mean_estimate(values + 2.0**20, groups=groups),
    ):
        assert other.standard_error == pytest.approx(straight.standard_error, rel=1e-9)
    moved = mean_estimate(values + 2.0**20, groups=groups).value - 2.0**20
    assert moved == pytest.approx(straight.value, abs=1e-9)


def test_what_shows_no_variation_gets_no_interval() -> None:
    assert mean_estimate([3.0]).reason == "one independent unit only"
    assert mean_estimate([3.0, 4.0], groups=["a", "a"]).reason == "one independent unit only"
    heavy = mean_estimate(np.arange(50.0), groups=[0] * 49 + [1])
    assert heavy.reason == "one unit outweighs the others"
    constant = mean_estimate([0.7] * 10)
    assert constant.reason == "no variation between the units"
    assert constant.value == 0.7
    assert mean_estimate([3.0, 4.0]).ci_low is not None


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="values: at least 1"):
        mean_estimate([])
    with pytest.raises(ValueError, match="first row 1"):
        mean_estimate([1.0, np.nan])
    with pytest.raises(ValueError, match="one value a row"):
        mean_estimate(np.ones((2, 2)))
    with pytest.raises(ValueError, match="one label for each of 3 rows"):
        mean_estimate([1.0, 2.0, 3.0], groups=["a", "b"])


def test_cosine_agrees_with_scikit_learn() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 50, 16))
    assert cosine_similarity(a, b) == pytest.approx(np.diag(reference(a, b)), abs=1e-14)
    half = cosine_similarity(a.astype(np.float16), b.astype(np.float16))
    assert half.dtype == np.float64
    assert half == pytest.approx(cosine_similarity(a, b), abs=2e-3)


def test_cosine_of_extreme_lengths() -> None:
    a = np.array([[1e200, 1e200], [1e-200, 0.0], [3.0, 4.0], [1.0, 1e-9]])
    b = np.array([[1e-200, 1e-200], [0.0, 1e200], [-3.0, -4.0], [1.0, 1e-9]])
    assert cosine_similarity(a, b) == pytest.approx([1.0, 0.0, -1.0, 1.0], abs=1e-15)


def test_cosine_refuses_what_has_no_angle() -> None:
    a = np.ones((3, 2))
    with pytest.raises(ValueError, match="b: row 1 is zero and has no direction"):
        cosine_similarity(a, [[1, 1], [0, 0], [1, 1]])
    with pytest.raises(ValueError, match="a has 3 rows and b 2"):
        cosine_similarity(a, a[:2])
    with pytest.raises(ValueError, match="a has 2 features a row and b 3"):
        cosine_similarity(a, np.ones((3, 3)))
    with pytest.raises(ValueError, match="a: 1 row"):
        cosine_similarity([[np.inf, 1.0]], [[1.0, 1.0]])
    with pytest.raises(ValueError, match="a: at least 1"):
        cosine_similarity(a[:0], a[:0])


def test_alignment_is_the_mean_of_the_cosines() -> None:
    images, texts = np.random.default_rng(0).normal(size=(2, 60, 8)) + 0.5
    patients = np.arange(60) // 3
    cosines = np.diag(reference(images, texts))
    found = alignment(images, texts, groups=patients)
    expected = mean_estimate(cosines, groups=patients)
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=1e-9)
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.ci_low, expected.ci_high))
    order = np.random.default_rng(1).permutation(60)
    mixed = alignment(images[order] * 7, texts[order], groups=patients[order])
    assert mixed.value == pytest.approx(found.value, rel=1e-12)
    half = alignment(images.astype(np.float16), texts.astype(np.float16))
    assert half.value == pytest.approx(found.value, abs=1e-3)


def test_alignment_of_shuffled_texts_is_not_theirs() -> None:
    images = np.random.default_rng(0).normal(size=(200, 16))
    texts = images + 0.5 * np.random.default_rng(1).normal(size=(200, 16))
    own, others = alignment(images, texts), alignment(images, np.roll(texts, 1, axis=0))
    assert own.ci_low is not None
    assert others.ci_high is not None
    assert own.ci_low > 0.8
    assert others.ci_high < 0.2


def test_alignment_stays_in_its_range_and_names_bad_input() -> None:
    wide = alignment([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert (wide.ci_low, wide.value, wide.ci_high) == (-1.0, 0.0, 1.0)
    same = alignment(np.eye(4), np.eye(4) * 3)
    assert (same.value, same.reason) == (1.0, "no variation between the units")
    assert alignment([[1.0, 2.0]], [[2.0, 1.0]]).reason == "one independent unit only"
    rows = np.ones((3, 2))
    with pytest.raises(ValueError, match="text_features: 1 row"):
        alignment(rows, [[1, 1], [np.nan, 1], [1, 1]])
    with pytest.raises(ValueError, match="image_features: row 0 is zero"):
        alignment(np.zeros((3, 2)), rows)
    with pytest.raises(ValueError, match="image_features has 3 rows and text_features 2"):
        alignment(rows, rows[:2])
    with pytest.raises(ValueError, match="image_features has 2 features a row and text_features 1"):
        alignment(rows, rows[:, :1])
    with pytest.raises(ValueError, match="one label for each of 3 rows"):
        alignment(rows, rows, groups=["a"])
