"""What holds for every statistic: finite values, clear errors, order, dtype, offset, laziness."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

import chexgenbench.statistics as statistics
from chexgenbench.statistics import (
    Estimate,
    cmmd,
    cosine_similarity,
    frechet_distance,
    frechet_distance_infinite,
    inception_score,
    kernel_distance,
    mean_estimate,
    precision_recall_density_coverage,
)

Array = NDArray[np.float64]
Scores = Callable[..., dict[str, Estimate]]


def _one(function: Callable[..., Estimate]) -> Scores:
    return lambda *args, **kwargs: {"": function(*args, **kwargs)}


def _prdc(real: Array, fake: Array, **kwargs: object) -> dict[str, Estimate]:
    return precision_recall_density_coverage(real, fake, k=1, **kwargs)  # type: ignore[arg-type]


TWO_SIDED: dict[str, Scores] = {
    "frechet_distance": _one(frechet_distance),
    "frechet_distance_infinite": _one(frechet_distance_infinite),
    "kernel_distance": _one(kernel_distance),
    "cmmd": _one(cmmd),
    "precision_recall_density_coverage": _prdc,
}
SMALLEST = {"frechet_distance_infinite": 4}
ALL = pytest.mark.parametrize("name", TWO_SIDED)


def features(seed: int, n: int, d: int, shift: float = 0.0) -> Array:
    rows = np.random.default_rng(seed).normal(size=(n, d)) * (1 + np.arange(d)) ** -0.5
    return rows + shift


def check(estimate: Estimate) -> None:
    """Finite throughout; an interval around the value, or a reason why there is none."""
    assert isinstance(estimate.value, float)
    assert math.isfinite(estimate.value)
    if estimate.ci_low is None:
        assert estimate.ci_high is None
        assert estimate.standard_error is None
        assert estimate.reason
    else:
        assert estimate.ci_high is not None
        assert estimate.standard_error is not None
        assert estimate.reason is None
        assert math.isfinite(estimate.ci_low)
        assert math.isfinite(estimate.ci_high)
        assert 0 < estimate.standard_error < math.inf
        assert estimate.ci_low <= estimate.value <= estimate.ci_high


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, chexgenbench.statistics as s; from chexgenbench.statistics import Estimate;"
        "heavy = {'numpy', 'scipy', 'torch', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy;"
        "s.kernel_distance; s.frechet_distance; s.inception_score; s.mean_estimate;"
        "s.precision_recall_density_coverage;"
        "heavy = {'scipy', 'torch', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_exported_is_there_and_documented() -> None:
    assert set(dir(statistics)) == set(statistics.__all__)
    for name in statistics.__all__:
        assert ">>>" in getattr(statistics, name).__doc__, name
    with pytest.raises(AttributeError, match="frechet_distanse"):
        _ = statistics.frechet_distanse  # type: ignore[attr-defined]


@ALL
def test_bad_input_is_named(name: str) -> None:
    score = TWO_SIDED[name]
    good = features(0, 20, 3)
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[7, 1] = value
        with pytest.raises(ValueError, match=r"real: 1 row\(s\) hold NaN or infinity, first row 7"):
            score(bad, good)
        with pytest.raises(ValueError, match=r"fake: 1 row\(s\) hold NaN or infinity, first row 7"):
            score(good, bad)
    with pytest.raises(ValueError, match="real has 3 features a row and fake 2"):
        score(good, good[:, :2])
    with pytest.raises(ValueError, match="real: at least"):
        score(good[:0], good)
    with pytest.raises(ValueError, match="fake: at least"):
        score(good, good[:0])
    with pytest.raises(ValueError, match="no features"):
        score(good[:, :0], good[:, :0])
    with pytest.raises(ValueError, match=r"expected an array \[rows, features\]"):
        score(good[0], good)
    with pytest.raises(ValueError, match="real numbers expected"):
        score(good + 1j, good)
    with pytest.raises(ValueError, match="pairs=True needs as many real as fake rows"):
        score(good, good[:-1], pairs=True)
    with pytest.raises(ValueError, match="pairs: real rows are numbered 0 to 19"):
        score(good, good, pairs=np.full(20, 20))
    with pytest.raises(ValueError, match="groups_fake: expected one label for each of 20 rows"):
        score(good, good, groups_fake=["a"])


@ALL
def test_row_order_changes_nothing(name: str) -> None:
    real, fake = features(1, 90, 5), features(2, 80, 5, 0.2)
    pairs = np.r_[np.arange(60), np.full(20, -1)]
    patients = np.arange(90) // 3
    random = np.random.default_rng(3)
    order_real, order_fake = random.permutation(90), random.permutation(80)
    place = np.empty(90, dtype=int)
    place[order_real] = np.arange(90)
    moved = np.where(pairs[order_fake] < 0, -1, place[pairs[order_fake]])
    straight = TWO_SIDED[name](real, fake, pairs=pairs, groups_real=patients)
    shuffled = TWO_SIDED[name](
        real[order_real], fake[order_fake], pairs=moved, groups_real=patients[order_real]
    )
    for key, estimate in straight.items():
        if name == "frechet_distance_infinite":
            # Its partitions are drawn at random: the same value only for the same order.
            assert estimate == TWO_SIDED[name](real, fake, pairs=pairs, groups_real=patients)[key]
            continue
        assert shuffled[key].value == pytest.approx(estimate.value, rel=1e-9, abs=1e-12)
        # The second-order variance comes from random signs, which rows without label draw by
        # their number.
        assert shuffled[key].standard_error == pytest.approx(estimate.standard_error, rel=0.05)


@ALL
def test_row_order_changes_no_error_where_rows_have_labels(name: str) -> None:
    real, fake = features(1, 90, 5), features(2, 80, 5, 0.2)
    patients = np.arange(90) // 3
    random = np.random.default_rng(3)
    order_real, order_fake = random.permutation(90), random.permutation(80)
    straight = TWO_SIDED[name](real, fake, groups_real=patients, groups_fake=patients[:80])
    shuffled = TWO_SIDED[name](
        real[order_real],
        fake[order_fake],
        groups_real=patients[order_real],
        groups_fake=patients[:80][order_fake],
    )
    for key, estimate in straight.items():
        if name == "frechet_distance_infinite":
            continue  # its partitions are drawn by number
        assert shuffled[key].value == pytest.approx(estimate.value, rel=1e-9, abs=1e-12)
        assert shuffled[key].standard_error == pytest.approx(estimate.standard_error, rel=1e-9)


@ALL
def test_float16_is_computed_in_float64(name: str) -> None:
    real, fake = features(1, 70, 5).astype(np.float16), features(2, 70, 5, 0.2).astype(np.float16)
    assert TWO_SIDED[name](real, fake) == TWO_SIDED[name](
        real.astype(np.float64), fake.astype(np.float64)
    )


@ALL
def test_input_is_not_changed(name: str) -> None:
    real, fake = features(1, 40, 3), features(2, 40, 3)
    before = real.copy(), fake.copy()
    TWO_SIDED[name](real, fake)
    assert np.array_equal(real, before[0])
    assert np.array_equal(fake, before[1])


@pytest.mark.parametrize(
    "name", ["frechet_distance", "frechet_distance_infinite", "precision_recall_density_coverage"]
)
def test_a_common_offset_changes_nothing(name: str) -> None:
    # Rounded so that adding 2^20 is exact: what is left is the computation's own error.
    real = np.round(features(1, 90, 6) * 2**20) / 2**20
    fake = np.round(features(2, 80, 6, 0.2) * 2**20) / 2**20
    near, far = TWO_SIDED[name](real, fake), TWO_SIDED[name](real + 2.0**20, fake + 2.0**20)
    for key, estimate in near.items():
        for field in ("value", "standard_error", "ci_low", "ci_high"):
            assert getattr(far[key], field) == pytest.approx(getattr(estimate, field), rel=1e-9)


DEGENERATE: dict[str, tuple[Array, Array]] = {
    "smallest": (features(1, 4, 8), features(2, 4, 8)),
    "fewer rows than features": (features(1, 10, 32), features(2, 12, 32)),
    "one feature": (features(1, 30, 1), features(2, 30, 1)),
    "rank one": (
        np.outer(np.arange(1.0, 31), np.ones(4)),
        np.outer(np.arange(30.0, 0, -1), np.arange(1, 5)),
    ),
    "a constant column": (
        np.c_[features(1, 30, 3), np.full(30, 7.0)],
        np.c_[features(2, 30, 3), np.full(30, 7.0)],
    ),
    "a column constant on one side": (
        np.c_[features(1, 30, 3), np.full(30, 7.0)],
        features(2, 30, 4),
    ),
    "all rows equal": (np.full((30, 3), 2.5), np.full((30, 3), 2.5)),
    "one side all equal": (features(1, 30, 3), np.full((30, 3), 2.5)),
    "the same rows": (features(1, 40, 4), features(1, 40, 4)),
    "ten rows copied": (features(1, 60, 12), np.tile(features(2, 10, 12), (6, 1))),
    "offset": (features(1, 30, 4) + 1e6, features(2, 30, 4) + 1e6),
    "tiny": (features(1, 30, 4) * 1e-9, features(2, 30, 4) * 1e-9),
    "integers": (
        np.random.default_rng(1).integers(1, 5, (40, 3)).astype(np.float64),
        np.random.default_rng(2).integers(1, 5, (40, 3)).astype(np.float64),
    ),
    "one outlier": (features(1, 30, 3), np.r_[features(2, 29, 3), np.full((1, 3), 1e6)]),
}


@ALL
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_gives_a_number(name: str, case: str) -> None:
    for design in ({}, {"groups_real": [i // 2 for i in range(len(DEGENERATE[case][0]))]}):
        for estimate in TWO_SIDED[name](*DEGENERATE[case], **design).values():
            check(estimate)


@pytest.mark.parametrize("name", sorted(set(TWO_SIDED) - set(SMALLEST)))
def test_two_rows_a_side_give_a_number(name: str) -> None:
    for estimate in TWO_SIDED[name](features(1, 2, 5), features(2, 2, 5)).values():
        check(estimate)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=arrays(
        np.float64,
        st.tuples(st.just(2), st.integers(5, 12), st.integers(1, 6)),
        elements=st.floats(-100, 100, width=32).map(lambda x: x or 1.0),
    )
)
def test_any_finite_input_gives_a_number(data: Array) -> None:
    for name, score in TWO_SIDED.items():
        scores = score(data[0], data[1])
        for estimate in scores.values():
            check(estimate)
        values = [estimate.value for estimate in scores.values()]
        if name == "frechet_distance":
            assert values[0] >= 0
        if name == "precision_recall_density_coverage":
            assert min(values) >= 0
            assert max(values[0], values[1], values[3]) <= 1


@settings(max_examples=100, deadline=None)
@given(
    values=arrays(np.float64, st.integers(1, 30), elements=st.floats(-1e9, 1e9)),
    groups=st.integers(1, 5),
)
def test_any_mean_is_a_number(values: Array, groups: int) -> None:
    check(mean_estimate(values, groups=np.arange(values.size) % groups))


@settings(max_examples=60, deadline=None)
@given(
    logits=arrays(
        np.float64,
        st.tuples(st.integers(4, 20), st.integers(1, 6)),
        elements=st.floats(-800, 800),
    )
)
def test_any_inception_score_is_a_number_in_its_range(logits: Array) -> None:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    estimate = inception_score(odds / odds.sum(axis=1, keepdims=True), splits=2)
    check(estimate)
    assert 1 - 1e-12 <= estimate.value <= logits.shape[1] + 1e-9


@settings(max_examples=60, deadline=None)
@given(
    a=arrays(np.float64, (5, 3), elements=st.floats(-1e150, 1e150).map(lambda x: x or 1.0)),
    b=arrays(np.float64, (5, 3), elements=st.floats(-1e-150, 1e-150).map(lambda x: x or 1.0)),
)
def test_any_cosine_lies_in_its_range(a: Array, b: Array) -> None:
    cosines = cosine_similarity(a, b)
    assert np.isfinite(cosines).all()
    assert np.abs(cosines).max() <= 1
