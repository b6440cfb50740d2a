"""Vendi score: closed forms, the definition written plainly, deletion by hand, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.linalg import eigvalsh
from scipy.stats import ortho_group

from chexgenbench.statistics import Estimate, vendi_score
from intervals import check_intervals

Array = NDArray[np.float64]


def features(seed: int, n: int, d: int, offset: float = 0.0) -> Array:
    rows = np.random.default_rng(seed).normal(size=(n, d)) * (1 + np.arange(d)) ** -0.5
    return rows + offset


def plain(rows: Array) -> float:
    """Definition 3.1, on the full kernel matrix."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    shares = eigvalsh(units @ units.T / len(rows))
    shares = shares[shares > 1e-15]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def check(estimate: Estimate, rows: Array) -> None:
    assert 1.0 <= estimate.value <= min(rows.shape)
    if estimate.ci_low is None:
        assert estimate.reason
        assert estimate.standard_error is None
    else:
        assert estimate.ci_high is not None
        assert 1.0 <= estimate.ci_low <= estimate.value <= estimate.ci_high <= min(rows.shape)
        assert 0 < (estimate.standard_error or 0) < math.inf


@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50), (64, 64), (200, 3)])
def test_agrees_with_the_definition(n: int, d: int) -> None:
    rows = features(1, n, d, 0.2)
    assert vendi_score(rows).value == pytest.approx(plain(rows), rel=1e-10)


def test_closed_forms() -> None:
    kinds = np.tile(np.eye(7), (20, 1))
    assert vendi_score(kinds).value == pytest.approx(7.0, rel=1e-12)
    assert vendi_score(np.eye(30)).value == pytest.approx(30.0, rel=1e-12)
    assert vendi_score(np.ones((30, 3))).value == pytest.approx(1.0, rel=1e-12)
    # Two kinds at an angle of cosine c have eigenvalues (1 +- c) / 2; three to one, p and 1 - p.
    c, p = 0.6, 0.75
    pair = np.tile([[1.0, 0.0], [c, math.sqrt(1 - c**2)]], (10, 1))
    expected = math.exp(-sum(x * math.log(x) for x in ((1 + c) / 2, (1 - c) / 2)))
    assert vendi_score(pair).value == pytest.approx(expected, rel=1e-12)
    uneven = np.repeat(np.eye(2), [30, 10], axis=0)
    expected = math.exp(-(p * math.log(p) + (1 - p) * math.log(1 - p)))
    assert vendi_score(uneven).value == pytest.approx(expected, rel=1e-12)


def test_a_small_score_keeps_its_digits_under_an_offset() -> None:
    # Angles of 1e-4: the score is 1 + 1e-8 or so, of which 1e-7 of itself must be right.
    rows = features(1, 60, 4) * 1e-4 + [1, 0, 0, 0]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    shares = np.linalg.svd(unit, compute_uv=False) ** 2 / 60
    shares[0] = 1 - shares[1:].sum()
    entropy = -(shares[1:] * np.log(shares[1:])).sum() - shares[0] * math.log1p(-shares[1:].sum())
    assert vendi_score(rows).value - 1 == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (30, 64), (30, 30)])
@pytest.mark.parametrize("design", ["rows", "triples", "uneven", "one large"])
def test_contributions_are_those_of_leaving_a_patient_out(n: int, d: int, design: str) -> None:
    rows = features(2, n, d)
    random = np.random.default_rng(3)
    groups = {
        "rows": np.arange(n),
        "triples": np.arange(n) // 3,
        "uneven": random.integers(0, 12, n),
        "one large": np.maximum(np.arange(n) - 15, 0),
    }[design]
    influence = vendi_score(rows, groups=groups).influence
    assert influence is not None
    left = np.array([plain(rows[groups != group]) for group in np.unique(groups)])
    count = left.size
    jackknife = (count - 1) / count * ((left - left.mean()) ** 2).sum()
    assert (influence.by_unit() ** 2).sum() == pytest.approx(jackknife, rel=1e-8)


@settings(max_examples=50, deadline=None)
@given(
    rows=arrays(
        np.float64,
        st.tuples(st.integers(1, 14), st.integers(1, 6)),
        elements=st.floats(-100, 100, width=32).map(lambda x: x or 1.0),
    ),
    seed=st.integers(0, 99),
)
def test_any_input_gives_a_number_that_ignores_order_length_and_rotation(
    rows: Array, seed: int
) -> None:
    random = np.random.default_rng(seed)
    found = vendi_score(rows)
    check(found, rows)
    assert vendi_score(random.permutation(rows)).value == pytest.approx(found.value, rel=1e-9)
    longer = rows * random.uniform(0.1, 1e3, (len(rows), 1))
    assert vendi_score(longer).value == pytest.approx(found.value, rel=1e-9)
    if rows.shape[1] > 1:
        turned = rows @ ortho_group.rvs(rows.shape[1], random_state=seed)
        assert vendi_score(turned).value == pytest.approx(found.value, rel=1e-9)
    assert vendi_score(np.repeat(rows, 2, axis=0)).value == pytest.approx(found.value, rel=1e-9)


@pytest.mark.parametrize(
    "rows",
    [
        features(1, 2, 5),
        features(1, 10, 32),
        features(1, 30, 1),
        np.outer(np.arange(1.0, 31), np.ones(4)),
        np.c_[features(1, 30, 3), np.full(30, 7.0)],
        np.full((30, 3), 2.5),
        np.tile(features(2, 10, 12), (6, 1)),
        features(1, 30, 4) + 1e6,
        features(1, 30, 4) * 1e-160,
        np.r_[features(2, 29, 3), np.full((1, 3), 1e6)],
    ],
)
def test_degenerate_input_gives_a_number(rows: Array) -> None:
    check(vendi_score(rows), rows)
    check(vendi_score(rows, groups=np.arange(len(rows)) // 2), rows)


def test_float16_order_and_input() -> None:
    rows = features(1, 70, 5).astype(np.float16)
    before = rows.copy()
    assert vendi_score(rows) == vendi_score(rows.astype(np.float64))
    assert np.array_equal(rows, before)
    patients = np.arange(70) // 2
    order = np.random.default_rng(0).permutation(70)
    straight = vendi_score(rows, groups=patients)
    shuffled = vendi_score(rows[order], groups=patients[order])
    assert shuffled.standard_error == pytest.approx(straight.standard_error, rel=1e-6)


def test_reasons_and_errors() -> None:
    rows = features(1, 30, 4)
    assert vendi_score(rows[:1]).reason == "one independent unit only"
    assert vendi_score(rows[:9]).reason == "only 9 independent units, 10 needed"
    assert vendi_score(rows[:10]).reason is None
    assert vendi_score(np.ones((30, 4))).reason == "no variation between the units"
    bad = rows.copy()
    bad[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"features: 1 row\(s\) hold NaN or infinity, first row 7"):
        vendi_score(bad)
    with pytest.raises(ValueError, match="features: row 3 is zero and has no direction"):
        vendi_score(np.where(np.arange(30)[:, None] == 3, 0.0, rows))
    with pytest.raises(ValueError, match="features: at least 1"):
        vendi_score(rows[:0])
    with pytest.raises(ValueError, match="one label for each of 30 rows"):
        vendi_score(rows, groups=["a"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "d", "images"), [(20, 64, 1), (100, 16, 1), (60, 64, 1), (200, 16, 4)]
)
def test_intervals_hold_the_expectation(n: int, d: int, images: int) -> None:
    repeats, random = 200, np.random.default_rng(5)
    found = []
    for _ in range(repeats):
        groups = np.arange(n) // images
        patient = random.normal(size=(n, d))[groups]
        share = 0.5 if images > 1 else 0.0
        rows = np.sqrt(share) * patient + np.sqrt(1 - share) * random.normal(size=(n, d))
        found.append(vendi_score(rows * (1 + np.arange(d)) ** -0.5 + 0.2, groups=groups))
    check_intervals(found)
