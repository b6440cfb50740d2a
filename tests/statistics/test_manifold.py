"""Precision, recall, density, coverage: against other implementations and deletion by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from prdc import compute_prdc
from torch_fidelity.metric_prc import calculate_precision_recall_full

import chexgenbench.statistics.arrays as blocks
from chexgenbench.statistics import manifold
from chexgenbench.statistics import precision_recall_density_coverage as prdc

Array = NDArray[np.float64]
NAMES = ("precision", "recall", "density", "coverage")


def features(seed: int, n: int, d: int, shift: float = 0.0, scale: float = 1.0) -> Array:
    return scale * np.random.default_rng(seed).normal(size=(n, d)) + shift


@pytest.mark.parametrize(
    ("n", "m", "d", "k", "shift"),
    [(200, 200, 4, 5, 0.0), (300, 150, 16, 5, 0.3), (150, 300, 64, 3, 0.1), (60, 40, 2, 1, 1.0)],
)
def test_agrees_exactly_with_the_prdc_package(n: int, m: int, d: int, k: int, shift: float) -> None:
    x, y = features(1, n, d), features(2, m, d, shift, 0.9)
    expected = compute_prdc(x, y, k)
    for name, estimate in prdc(x, y, k=k).items():
        # Counts over counts: the same to the last bit or two of the division.
        assert estimate.value == pytest.approx(expected[name], rel=1e-14), name


def test_precision_and_recall_agree_with_torch_fidelity() -> None:
    x, y = features(1, 300, 8), features(2, 250, 8, 0.3, 0.7)
    scores = prdc(x, y, k=3)
    generated, real = torch.from_numpy(y), torch.from_numpy(x)
    precision, recall = calculate_precision_recall_full(generated, real, neighborhood=3)
    # torch-fidelity averages in float32.
    assert scores["precision"].value == pytest.approx(precision, abs=1e-7)
    assert scores["recall"].value == pytest.approx(recall, abs=1e-7)


def test_precision_and_recall_are_not_swapped() -> None:
    # Defect 16. Fakes that all look like one real mode are precise and do not recall the other.
    real = np.r_[features(1, 100, 3), features(2, 100, 3, 50.0)]
    fake = features(3, 150, 3, scale=0.5)
    scores = prdc(real, fake)
    assert scores["precision"].value == 1.0
    assert scores["recall"].value < 0.5
    back = prdc(fake, real)
    assert back["precision"].value == scores["recall"].value
    assert back["recall"].value == scores["precision"].value


def test_counted_by_hand() -> None:
    # On a line with k = 1: real radii 1, 1, 3; fake radii 6.5 and 6.5.
    real, fake = np.array([[0.0], [1.0], [4.0]]), np.array([[0.5], [7.0]])
    values = {name: estimate.value for name, estimate in prdc(real, fake, k=1).items()}
    # 0.5 lies in the balls of 0 and 1; 7 lies on the edge of the ball of 4, so outside.
    assert values == {"precision": 0.5, "recall": 1.0, "density": 1.0, "coverage": 2 / 3}


def test_a_row_on_the_edge_is_outside_whatever_the_rounding() -> None:
    # A grid: all distances are ties. Thirds are not exact in binary.
    grid = np.array(np.meshgrid(*[np.arange(5.0)] * 3)).reshape(3, -1).T / 3
    step = np.array([1 / 3, 0, 0])
    for offset in (0.0, 0.1, 1000.1):
        scores = prdc(grid + offset, grid + step + offset, k=1)
        # Every fake row sits on a real one or one step outside, where the edge is.
        assert scores["precision"].value == 0.8
        assert scores["coverage"].value == 0.8


def test_copies_span_no_ball() -> None:
    real = np.repeat(features(1, 30, 3), 6, axis=0)
    scores = prdc(real, real.copy(), k=5)
    assert [scores[name].value for name in NAMES] == [0.0, 0.0, 0.0, 0.0]
    once = prdc(real[::6], real[::6].copy(), k=5)
    assert [once[name].value for name in NAMES[::3]] == [1.0, 1.0]


def test_k_must_fit() -> None:
    x = features(1, 10, 2)
    for k in (10, 11):
        with pytest.raises(ValueError, match="need more than"):
            prdc(x, x, k=k)
    with pytest.raises(ValueError, match="need more than 5 rows a side, got 10 real and 5 fake"):
        prdc(x, x[:5])
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            prdc(x, x, k=wrong)  # type: ignore[arg-type]


def test_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(1, 130, 6), features(2, 110, 6, 0.3)
    whole = prdc(x, y)
    for size in (1, 16 * 130 * 7):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
        for name, estimate in prdc(x, y).items():
            assert estimate.value == whole[name].value
            assert estimate.standard_error == pytest.approx(whole[name].standard_error, rel=1e-12)


def hard_sides(kind: str, seed: int) -> tuple[Array, Array]:
    """Sides for which distances in float32 are far from enough."""
    random = np.random.default_rng(seed)
    n, m, d = (int(size) for size in random.integers([40, 40, 1], [160, 160, 40]))
    x, y = random.normal(size=(n, d)), 0.8 * random.normal(size=(m, d)) + 0.2
    if kind == "ties":
        x, y = np.round(2 * x) / 3, np.round(2 * y) / 3
    elif kind == "copies":
        x[n // 2 :] = x[: n - n // 2]
        y[:20] = x[:20]
    elif kind == "offset":
        x, y = x + 1e6, y + 1e6
    elif kind == "two far clusters":
        x[: n // 2] += 1e4
        y[: m // 2] += 1e4
    elif kind == "outliers":
        x[0] *= 1e5
        y[-1] *= 1e7
    elif kind == "tiny":
        x, y = 1e-30 * x, 1e-30 * y
    elif kind == "huge":
        x, y = 1e30 * x, 1e30 * y
        x[:, 0] *= 1e-12
    return x, y


HARD = pytest.mark.parametrize(
    "kind",
    ["plain", "ties", "copies", "offset", "two far clusters", "outliers", "tiny", "huge"],
)


@HARD
def test_decisions_are_those_of_float64(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(12):
        x, y = hard_sides(kind, seed)
        groups = np.arange(len(x)) // 3, np.arange(len(y)) // 2
        found = []
        for most_open in (-10.0, 1 / 32, 10.0):  # float64 alone, as it is, single pairs alone
            monkeypatch.setattr(manifold, "_MOST_OPEN", most_open)
            found.append(prdc(x, y, k=3, groups_real=groups[0], groups_fake=groups[1]))
        for other in found[1:]:
            for name in NAMES:
                assert other[name].value == found[0][name].value, (kind, seed, name)
                assert other[name].reason == found[0][name].reason
                expected, influence = found[0][name].influence, other[name].influence
                assert (expected is None) == (influence is None)
                if expected is not None and influence is not None:
                    for part in ("real", "fake", "probes_real", "probes_fake"):
                        np.testing.assert_array_equal(
                            getattr(influence, part), getattr(expected, part)
                        )


@HARD
def test_float32_bounds_hold(kind: str) -> None:
    for seed in range(12):
        x, y = hard_sides(kind, seed)
        rough = manifold._Rough(x, y)
        squares = rough.bounds(slice(0, len(x)))
        gaps = x[:, None].astype(np.longdouble) - y.astype(np.longdouble)
        truth = (gaps**2).sum(axis=2) / squares.unit
        assert (squares.low <= truth).all()
        assert (truth <= squares.low + squares.slack_x[:, None] + squares.slack_y).all()
        assert squares.slack_x.max() < 1e-4  # of the largest squared norm


def test_features_are_decided_in_float32_but_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = []
    exact = manifold._Squares.below

    def spy(self: manifold._Squares, squared: Array, *, surely: bool = False) -> object:
        settled.append(self.low.dtype)
        return exact(self, squared, surely=surely)

    monkeypatch.setattr(manifold._Squares, "below", spy)
    prdc(features(1, 1000, 64), features(2, 1000, 64, 0.1))
    assert set(settled) == {np.dtype(np.float32)}


def test_contributions_are_those_of_leaving_a_row_out() -> None:
    n, m, k = 60, 50, 3
    x, y = features(1, n, 3), features(2, m, 3, 0.4, 0.8)
    scores = prdc(x, y, k=k)
    without = {
        "real": [prdc(np.delete(x, i, axis=0), y, k=k) for i in range(n)],
        "fake": [prdc(x, np.delete(y, i, axis=0), k=k) for i in range(m)],
    }
    for name in NAMES:
        influence = scores[name].influence
        assert influence is not None
        for side, rows in (("real", n), ("fake", m)):
            left = np.array([one[name].value for one in without[side]])
            jackknife = (rows - 1) / rows * (left.mean() - left)
            found = getattr(influence, side)
            # Shares over m - 1 rows against shares over m: equal to that factor.
            assert found == pytest.approx(jackknife, rel=0.1, abs=2e-3 * np.abs(jackknife).max()), (
                name,
                side,
            )


@pytest.mark.parametrize("shift", [0.2, 0.4])
def test_contributions_of_a_patient_are_those_of_leaving_all_of_its_rows_out(shift: float) -> None:
    # A patient's images are alike: each hides what leaving the other out would do.
    n, k = 60, 3
    patients = np.arange(n) // 4
    random = np.random.default_rng(1)
    centres = 2 * random.normal(size=(15, 3))[patients]
    x = centres + 0.3 * random.normal(size=(n, 3))
    y = centres + 0.3 * random.normal(size=(n, 3)) + shift
    scores = prdc(x, y, k=k, pairs=True, groups_real=patients, groups_fake=patients)
    without = [prdc(x[patients != u], y[patients != u], k=k) for u in range(15)]
    rows = prdc(x, y, k=k)
    worse = []
    for name in NAMES:
        influence = scores[name].influence
        assert influence is not None
        left = np.array([one[name].value for one in without])
        jackknife = (n - 4) / n * (left.mean() - left)
        found = np.bincount(influence.units.real, influence.real)
        found += np.bincount(influence.units.fake, influence.fake)
        assert found == pytest.approx(jackknife, abs=1e-12), name
        # Rows left out one by one, and their contributions added, are another number.
        single = rows[name].influence
        assert single is not None
        added = np.bincount(patients, single.real) + np.bincount(patients, single.fake)
        worse.append(np.abs(added - jackknife).max())
    assert min(worse) > 0.002


def test_second_order_terms_are_what_two_rows_do_together() -> None:
    # T less both without one, plus that without both: for all pairs of a real and a fake row,
    # through the random signs that the influence keeps.
    n, m, k = 21, 20, 2
    x, y = features(1, n, 2), features(2, m, 2, 0.6)
    scores = prdc(x, y, k=k)
    # Sums of each score with a real and a fake row left out; the last of each is none of them.
    sums = {name: np.empty((n + 1, m + 1)) for name in ("precision", "recall", "density")}
    for i in range(n + 1):
        for j in range(m + 1):
            left = prdc(np.delete(x, slice(i, i + 1), 0), np.delete(y, slice(j, j + 1), 0), k=k)
            sums["precision"][i, j] = left["precision"].value * (m - (j < m))
            sums["recall"][i, j] = left["recall"].value * (n - (i < n))
            sums["density"][i, j] = left["density"].value * (m - (j < m))
    for name, rows in (("precision", m), ("recall", n), ("density", m)):
        total = sums[name]
        both = (total[-1, -1] - total[:-1, -1:] - total[-1:, :-1] + total[:-1, :-1]) / rows
        influence = scores[name].influence
        assert influence is not None
        signs = influence.units.probes(16)
        signs_real, signs_fake = signs[influence.units.real], signs[influence.units.fake]
        for found, terms in (
            (influence.probes_real, both @ (signs_fake - signs_fake.mean(axis=0))),
            (influence.probes_fake, both.T @ (signs_real - signs_real.mean(axis=0))),
        ):
            assert np.abs(terms).max() > 0.01
            assert found == pytest.approx(terms - terms.mean(axis=0), abs=1e-12), name


def test_intervals_are_withheld_where_they_would_be_wrong() -> None:
    x = features(1, 300, 16)
    far = prdc(x, features(2, 300, 16, 5.0))
    assert [far[name].value for name in NAMES] == [0.0, 0.0, 0.0, 0.0]
    assert all(estimate.ci_low is None and estimate.reason for estimate in far.values())
    # Rows far from all others, each with a fake row on it that no other ball reaches.
    for alone in (9, 10):
        spots = 1000 * np.eye(16)[:alone]
        fake = np.r_[spots, features(2, 300 - alone, 16) + 1e5 * np.eye(16)[15]]
        few = prdc(np.r_[x, spots], fake)
        assert few["precision"].value == alone / 300
        for name in ("precision", "density", "coverage"):
            expected = "only 9 independent balls hold a row, 10 needed" if alone == 9 else None
            assert few[name].reason == expected
    smallest = prdc(features(3, 6, 2), features(4, 6, 2))
    assert {estimate.reason for estimate in smallest.values()} == {
        "n = k + 1: no row can be left out"
    }


def test_intervals_stay_inside_the_range() -> None:
    scores = prdc(features(1, 60, 2), features(2, 60, 2))
    for name in NAMES:
        estimate = scores[name]
        if estimate.ci_low is not None:
            assert estimate.ci_low > 0
            assert estimate.ci_high is not None
            assert name == "density" or estimate.ci_high < 1
