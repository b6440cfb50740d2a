"""Feature likelihood divergence: closed forms, the published procedure in torch, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import multivariate_normal

import chexgenbench.statistics.likelihood as likelihood
from chexgenbench.statistics import Estimate, feature_likelihood_divergence
from chexgenbench.statistics.novelty import order_by_content
from intervals import check_intervals

Array = NDArray[np.float64]


def features(seed: int, n: int, d: int, scale: float = 1.0) -> Array:
    return scale * np.random.default_rng(seed).normal(size=(n, d))


def check(estimate: Estimate) -> None:
    assert math.isfinite(estimate.value)
    if estimate.ci_low is None:
        assert estimate.reason
        assert estimate.standard_error is None
    else:
        assert estimate.ci_high is not None
        assert math.isfinite(estimate.ci_high - estimate.ci_low)
        assert estimate.ci_low <= estimate.value <= estimate.ci_high
        assert 0 < (estimate.standard_error or 0) < math.inf


def plain_cost(centres: Array, rows: Array, test: Array) -> float:
    """The published procedure with automatic derivatives and the optimiser of torch."""
    c, x, y = (torch.from_numpy(side) for side in (centres, rows, test))
    m, d = centres.shape

    def log_density(squares: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
        return -squares / (2 * logs.exp()) - d / 2 * (logs + math.log(2 * math.pi))

    def squares(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ((a[:, None] - b) ** 2).sum(dim=2)

    near = squares(x, c)
    logs = ((near.min(dim=0).values + 1e-3) / d).log().requires_grad_()
    origin = torch.zeros((), dtype=torch.float64, requires_grad=True)
    away = 0.9**2 * squares(x, x.mean(dim=0, keepdim=True))
    optimiser = torch.optim.Adam([logs, origin], lr=0.5)
    for _ in range(50):
        optimiser.zero_grad()
        parts = [log_density(near, logs) - math.log(m), log_density(away, origin)]
        (-torch.logsumexp(torch.cat(parts, dim=1), dim=1).mean() / d).backward()
        optimiser.step()
        with torch.no_grad():
            logs.clamp_(-40, 20)
    with torch.no_grad():
        whole = torch.logsumexp(log_density(squares(y, c), logs) - math.log(m), dim=1)
    return float(-whole.mean() / d)


@pytest.mark.parametrize(
    ("l", "n", "m", "d", "by"),
    [(80, 50, 60, 4, "train"), (90, 40, 30, 32, "test"), (40, 30, 90, 8, "test")],
)
def test_agrees_with_the_published_procedure(l: int, n: int, m: int, d: int, by: str) -> None:  # noqa: E741
    train, test, fake = features(1, l, d, 2.0), features(2, n, d, 2.0), features(3, m, d, 3.0)
    fake[:5] = train[:5]  # some copies
    found = feature_likelihood_divergence(train, test, fake, scaled_by=by)  # type: ignore[arg-type]
    side = train if by == "train" else test
    mean, spread = side.mean(axis=0), side.std(axis=0, ddof=1)
    train, test, fake = (
        (rows - mean) / spread for rows in (train[order_by_content(train)], test, fake)
    )
    shuffled = np.random.default_rng(0).permutation(l)
    order = np.argsort(shuffled, kind="stable")
    half = min(m, l // 2)
    base = plain_cost(train[order[:half]], train[order[half:]], test)
    expected = 100 * (plain_cost(fake, train, test) - base)
    assert found.value == pytest.approx(expected, rel=1e-8)
    assert (found.ci_low is None) == (by == "test")


def test_likelihood_of_a_given_mixture_is_scipys() -> None:
    centres, rows, logs = features(1, 7, 3), features(2, 20, 3), np.linspace(-1, 1, 7)
    densities = [
        multivariate_normal.pdf(rows, centre, math.exp(log) * np.eye(3))
        for centre, log in zip(centres, logs, strict=True)
    ]
    expected = -np.log(np.mean(densities, axis=0)) / 3
    assert likelihood._evaluated(centres, logs, rows) == pytest.approx(expected, rel=1e-12)


def test_one_centre_gets_the_best_variance() -> None:
    # Far from the mean of the rows the mixture is one normal, whose best variance is the mean
    # square; fifty steps at a rate of a half come within a few percent of it.
    rows = features(1, 400, 3)
    centre = np.zeros((1, 3))
    best = math.log((rows**2).sum(axis=1).mean() / 3)
    cost = likelihood._evaluated(centre, np.array([best]), rows).mean()
    fitted = likelihood._evaluated(centre, likelihood._fitted(centre, rows), rows).mean()
    assert cost <= fitted <= cost + 0.05


def test_order_of_quality() -> None:
    # Three clusters: around one alone, rows drawn together to the mean are the best mixture.
    means = features(9, 3, 6, 4.0)

    def draw(seed: int, n: int) -> Array:
        return means[np.arange(n) % 3] + features(seed, n, 6)

    train, test = draw(1, 300), draw(2, 200)
    scores = {
        "good": feature_likelihood_divergence(train, test, draw(3, 150)),
        "moved": feature_likelihood_divergence(train, test, draw(3, 150) + 1.0),
        "noisy": feature_likelihood_divergence(train, test, draw(3, 150) + features(5, 150, 6, 2)),
        "one cluster": feature_likelihood_divergence(train, test, draw(3, 450)[::3]),
        "near copies": feature_likelihood_divergence(
            train, test, train[:150] + features(4, 150, 6, 0.01)
        ),
        "copies": feature_likelihood_divergence(train, test, train[:150]),
    }
    good = scores.pop("good")
    assert good.ci_high is not None
    assert good.value < 6
    for name, score in scores.items():
        assert score.ci_low is not None
        assert score.ci_low > good.ci_high, name
    assert scores["copies"].warning == "so high a score comes from copies of training rows"
    assert scores["moved"].warning is None


def test_the_comparison_keeps_patients_together() -> None:
    patients = np.repeat(np.arange(50), 4)
    for seed in range(5):
        centres, others = likelihood._divided(patients, 1000, np.random.default_rng(seed))
        assert centres.size == 100
        assert not set(patients[centres]) & set(patients[others])
        assert np.unique(np.r_[centres, others]).size == centres.size + others.size
        renamed = likelihood._divided(patients[::-1].copy(), 1000, np.random.default_rng(seed))
        assert np.array_equal(renamed[0], centres)
    # Divided by rows, the comparison's variances come from other studies of the same patients and
    # say nothing about those of others: any model then looks good.
    train = np.repeat(features(1, 50, 6, 3.0), 4, axis=0) + features(2, 200, 6, 0.1)
    test, fake = features(3, 100, 6, 3.0), features(4, 100, 6, 3.0)
    together = feature_likelihood_divergence(train, test, fake, groups_train=patients)
    apart = feature_likelihood_divergence(train, test, fake)
    assert abs(together.value) < 10
    assert apart.value < together.value - 20
    whole = feature_likelihood_divergence(train, test, fake, groups_train=[1] * 200)
    check(whole)


def test_blocks_and_cache_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = features(1, 90, 5), features(2, 40, 5), features(3, 70, 5)
    whole = feature_likelihood_divergence(*sides)
    monkeypatch.setattr("chexgenbench.statistics.arrays.BLOCK_BYTES", 8 * 70 * 20)
    for size in (likelihood._CACHE_BYTES, 0):
        monkeypatch.setattr(likelihood, "_CACHE_BYTES", size)
        assert feature_likelihood_divergence(*sides).value == pytest.approx(whole.value, rel=1e-9)


def test_order_scale_offset_and_dtype_change_nothing() -> None:
    random = np.random.default_rng(0)
    train, test, fake = (np.round(features(i, 80, 5) * 2**20) / 2**20 for i in range(3))
    groups = np.arange(80) // 2
    straight = feature_likelihood_divergence(train, test, fake, groups_test=groups)
    order = random.permutation(80)
    others = [
        feature_likelihood_divergence(
            random.permutation(train),
            test[order],
            random.permutation(fake),
            groups_test=groups[order],
        ),
    ]
    for other in others:
        assert other.value == pytest.approx(straight.value, rel=1e-7)
        assert other.standard_error == pytest.approx(straight.standard_error, rel=1e-7)
    # The division follows the rows' content, so the scale is changed where it decides nothing.
    cost = likelihood._standardised(train, test, fake, by=0)
    moved = likelihood._standardised(
        train * 8 + 2.0**20, test * 8 + 2.0**20, fake * 8 + 2.0**20, by=0
    )
    for one, two in zip(cost, moved, strict=True):
        assert one == pytest.approx(two, rel=1e-9, abs=1e-9)
    halves = [rows.astype(np.float16) for rows in (train, test, fake)]
    before = [rows.copy() for rows in halves]
    same = feature_likelihood_divergence(*[rows.astype(np.float64) for rows in halves])
    assert feature_likelihood_divergence(*halves) == same
    assert all(map(np.array_equal, halves, before))


@pytest.mark.parametrize(
    "sides",
    [
        [features(i, 2, 5) for i in range(3)],
        [features(1, 2, 3), features(2, 1, 3), features(3, 1, 3)],
        [features(i, 10, 64) for i in range(3)],
        [np.outer(np.arange(1.0, 31) + i, np.ones(4)) for i in range(3)],
        [np.c_[features(i, 30, 3), np.full(30, 7.1)] for i in range(3)],
        [np.c_[features(i, 30, 3), np.full(30, float(i))] for i in range(3)],
        [np.full((30, 3), 2.5)] * 3,
        [np.tile(features(i, 10, 4), (6, 1)) for i in range(3)],
        [features(1, 40, 4)] * 3,
        [features(i, 30, 4) + 1e6 for i in range(3)],
        [features(i, 30, 4, 1e-9) for i in range(3)],
        [features(1, 30, 3), features(2, 30, 3), np.r_[features(3, 29, 3), [[1e6] * 3]]],
    ],
)
def test_degenerate_input_gives_a_number(sides: list[Array]) -> None:
    check(feature_likelihood_divergence(*sides))
    check(feature_likelihood_divergence(*sides, scaled_by="test"))
    check(feature_likelihood_divergence(*sides, groups_test=np.arange(len(sides[1])) // 2))


@settings(max_examples=30, deadline=None)
@given(
    sides=arrays(
        np.float64,
        st.tuples(st.just(3), st.integers(2, 10), st.integers(1, 4)),
        elements=st.floats(-100, 100, width=16),
    )
)
def test_any_finite_input_gives_a_number(sides: Array) -> None:
    check(feature_likelihood_divergence(sides[0], sides[1], sides[2]))


def test_bad_input_is_named() -> None:
    good = features(1, 20, 3)
    bad = good.copy()
    bad[7, 1] = np.nan
    for position, name in enumerate(("train", "test", "fake")):
        sides = [good, good, good]
        sides[position] = bad
        with pytest.raises(ValueError, match=rf"{name}: 1 row\(s\) hold NaN or infinity, first"):
            feature_likelihood_divergence(*sides)
        sides[position] = good[:0]
        with pytest.raises(ValueError, match=f"{name}: at least 1"):
            feature_likelihood_divergence(*sides)
    with pytest.raises(ValueError, match="train: at least 2"):
        feature_likelihood_divergence(good[:1], good, good)
    with pytest.raises(ValueError, match="train has 3 features a row and fake 2"):
        feature_likelihood_divergence(good, good, good[:, :2])
    with pytest.raises(ValueError, match="scaled_by must be 'train' or 'test', got 'all'"):
        feature_likelihood_divergence(good, good, good, scaled_by="all")  # type: ignore[arg-type]
    for groups in ({"groups_train": ["a"]}, {"groups_test": ["a"]}):
        with pytest.raises(ValueError, match="one label for each of 20 rows"):
            feature_likelihood_divergence(good, good, good, **groups)  # type: ignore[arg-type]


@pytest.mark.parametrize(("d", "n", "images"), [(4, 80, 1), (32, 40, 1), (8, 80, 4)])
def test_intervals_hold_what_other_test_rows_would_give(d: int, n: int, images: int) -> None:
    repeats, random = 150, np.random.default_rng(5)
    train, fake = features(8, 60, d), features(9, 60, d, 0.9)
    groups, share = np.arange(n) // images, 0.5 if images > 1 else 0.0
    found = []
    for _ in range(repeats):
        patient = random.normal(size=(n, d))[groups]
        test = np.sqrt(share) * patient + np.sqrt(1 - share) * random.normal(size=(n, d))
        found.append(feature_likelihood_divergence(train, test, fake, groups_test=groups))
    check_intervals(found)
