"""Frechet distance: against other implementations and closed forms, and what the errors mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torchmetrics.image.fid import _compute_fid

from chexgenbench.statistics import frechet, frechet_distance, frechet_distance_infinite

Array = NDArray[np.float64]


def features(seed: int, n: int, d: int, shift: float = 0.0, decay: float = 0.5) -> Array:
    """Non-negative and of very different scales, like pool features."""
    rows = np.abs(np.random.default_rng(seed).normal(size=(n, d)) + shift)
    return rows * (1 + np.arange(d)) ** -decay


def by_sqrtm(x: Array, y: Array) -> float:
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(axis=0) - y.mean(axis=0)
    root = np.real(sqrtm(np.atleast_2d(first) @ np.atleast_2d(second)))
    return float(gap @ gap + np.trace(np.atleast_2d(first)) + np.trace(np.atleast_2d(second))) - (
        2 * float(np.trace(root))
    )


SIZES = pytest.mark.parametrize(
    ("n", "m", "d"), [(300, 250, 8), (1000, 700, 64), (1500, 1500, 256), (65, 66, 64)]
)


@SIZES
def test_agrees_with_sqrtm(n: int, m: int, d: int) -> None:
    x, y = features(1, n, d), features(2, m, d, 0.3)
    for interval in (True, False):
        value = frechet_distance(x, y, interval=interval).value
        assert value == pytest.approx(by_sqrtm(x, y), rel=1e-9)


@SIZES
def test_agrees_with_torch_fidelity_and_torchmetrics(n: int, m: int, d: int) -> None:
    x, y = features(1, n, d), features(2, m, d, 0.3)
    stats = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (x, y)]
    value = frechet_distance(x, y).value
    fidelity = fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]
    assert value == pytest.approx(fidelity, rel=1e-9)
    tensors = [torch.from_numpy(stat[key]) for stat in stats for key in ("mu", "sigma")]
    assert value == pytest.approx(float(_compute_fid(*tensors)), rel=1e-9)


def test_fewer_rows_than_features_agrees_with_eigenvalues() -> None:
    # sqrtm fails on singular products; their eigenvalues, which torch-fidelity takes, do not.
    x, y = features(1, 40, 100), features(2, 30, 100, 0.3)
    stats = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (x, y)]
    expected = fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance(x, y).value == pytest.approx(expected, rel=1e-5)


def test_a_shift_of_the_mean_is_its_squared_length() -> None:
    x = features(1, 400, 6)
    shift = np.array([3.0, 0, 0, -4.0, 0, 0])
    assert frechet_distance(x, x + shift).value == pytest.approx(25.0, rel=1e-12)


def test_a_scale_has_a_closed_form() -> None:
    # Covariances S and a^2 S: (1 - a)^2 tr S, and the mean moves by (a - 1) m.
    x = features(1, 400, 6)
    spread = np.trace(np.cov(x, rowvar=False)) + (x.mean(axis=0) ** 2).sum()
    assert frechet_distance(x, 3 * x).value == pytest.approx(4 * spread, rel=1e-12)


def test_commuting_covariances_have_a_closed_form() -> None:
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T  # covariance 16/15 I
    first, second = np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 1, 0.5])
    expected = 16 / 15 * ((first - second) ** 2).sum()
    assert frechet_distance(signs * first, signs * second).value == pytest.approx(expected)


def test_equal_sides_are_at_distance_zero() -> None:
    x = features(1, 300, 32)
    estimate = frechet_distance(x, x.copy())
    assert 0 <= estimate.value < 1e-12 * np.trace(np.cov(x, rowvar=False))


def test_is_symmetric_with_its_error() -> None:
    x, y = features(1, 300, 8), features(2, 200, 8, 0.3)
    there, back = frechet_distance(x, y), frechet_distance(y, x)
    assert back.value == pytest.approx(there.value, rel=1e-12)
    assert back.standard_error == pytest.approx(there.standard_error, rel=0.02)


def test_is_unchanged_by_rotation_and_scales_with_the_square() -> None:
    x, y = features(1, 300, 8), features(2, 300, 8, 0.3)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    plain, turned = frechet_distance(x, y), frechet_distance(10 * x @ rotation, 10 * y @ rotation)
    assert turned.value == pytest.approx(100 * plain.value, rel=1e-10)
    assert turned.standard_error == pytest.approx(100 * (plain.standard_error or 0), rel=1e-8)


@pytest.mark.parametrize("copies", [1, 7])
def test_too_few_rows_are_warned_about_and_get_no_interval(copies: int) -> None:
    # Defect 7: the covariance of a finding with a handful of images is singular.
    x, y = features(1, 200, 64), np.tile(features(2, 30, 64), (copies, 1))
    estimate = frechet_distance(x, y)
    assert estimate.ci_low is None
    assert estimate.standard_error is None
    assert estimate.reason is not None
    assert "n <= d: 30 " in estimate.reason
    assert estimate.warning == estimate.reason
    assert frechet_distance(x, features(2, 65, 64)).ci_low is not None


def test_shards_do_not_average_to_the_distance() -> None:
    # Defect 1: what averaging over shards gives is several times too large.
    x, y = features(1, 1000, 32), features(2, 1000, 32)
    shards = [frechet_distance(x[i::10], y[i::10]).value for i in range(10)]
    assert np.mean(shards) > 5 * frechet_distance(x, y).value


def test_influence_is_the_derivative_of_the_value() -> None:
    # The value with one row counted (1 + e) times, by weighted moments.
    x, y = features(1, 60, 5), features(2, 50, 5, 0.3)
    influence = frechet_distance(x, y).influence
    assert influence is not None

    def weighted(real: Array, fake: Array) -> float:
        moments = []
        for rows, weights in ((x, real), (y, fake)):
            mean = weights @ rows / weights.sum()
            scatter = (rows - mean).T @ ((rows - mean) * weights[:, None]) / weights.sum()
            moments.append((mean, scatter * len(rows) / (len(rows) - 1)))
        (m1, s1), (m2, s2) = moments
        root = np.real(np.trace(sqrtm(s1 @ s2)))
        return float((m1 - m2) @ (m1 - m2) + np.trace(s1) + np.trace(s2) - 2 * root)

    step = 1e-4
    for row in (0, 17, 49):
        bump = step * np.eye(60)[row], step * np.eye(50)[row]
        slope = weighted(1 + bump[0], np.ones(50)) - weighted(1 - bump[0], np.ones(50))
        assert slope / (2 * step) == pytest.approx(influence.real[row], rel=1e-4, abs=1e-6)
        slope = weighted(np.ones(60), 1 + bump[1]) - weighted(np.ones(60), 1 - bump[1])
        assert slope / (2 * step) == pytest.approx(influence.fake[row], rel=1e-4, abs=1e-6)


def test_pairing_lowers_the_error_of_sides_that_vary_together() -> None:
    random = np.random.default_rng(0)
    shared = random.normal(size=(500, 8))
    x = shared + 0.3 * random.normal(size=(500, 8))
    y = 1.2 * shared + 0.3 * random.normal(size=(500, 8)) + 0.5
    paired, free = frechet_distance(x, y, pairs=True), frechet_distance(x, y)
    assert paired.value == free.value
    assert (paired.standard_error or 0) < 0.8 * (free.standard_error or 0)
    by_number = frechet_distance(x, y[::-1], pairs=np.arange(500)[::-1])
    assert by_number.standard_error == pytest.approx(paired.standard_error, rel=0.02)


def test_repeated_rows_of_a_patient_do_not_lower_the_error() -> None:
    x, y = features(1, 200, 4), features(2, 200, 4, 0.3)
    once = frechet_distance(x, y)
    four = frechet_distance(
        np.repeat(x, 4, axis=0),
        np.repeat(y, 4, axis=0),
        groups_real=np.repeat(np.arange(200), 4),
        groups_fake=np.repeat(np.arange(200) + 1000, 4),
    )
    assert four.standard_error == pytest.approx(once.standard_error, rel=0.05)


def test_infinite_is_the_extrapolation_of_its_halves() -> None:
    x, y = features(1, 200, 4), features(2, 200, 4, 0.3)
    estimate = frechet_distance_infinite(x, y, seed=3)
    assert estimate == frechet_distance_infinite(x, y, seed=3)
    others = {frechet_distance_infinite(x, y, seed=seed).value for seed in range(5)}
    assert len(others) == 5
    assert max(others) - min(others) < (estimate.standard_error or 0)


def test_infinite_adds_the_variance_of_its_partitions_to_the_error() -> None:
    added, found = [], []
    for data in range(6):
        x, y = features(2 * data, 200, 4), features(2 * data + 1, 200, 4)
        draws = [frechet_distance_infinite(x, y, seed=seed) for seed in range(30)]
        plugin = frechet_distance(x, y)
        added.append((draws[0].standard_error or 0) ** 2 - (plugin.standard_error or 0) ** 2)
        found.append(np.var([one.value for one in draws], ddof=1))
    # Each variance over 30 draws is known to 26 %, and the second-order part to as much: the
    # means of six to 15 % together, of which three are allowed.
    assert np.mean(added) == pytest.approx(np.mean(found), rel=0.45)


def test_infinite_removes_the_bias_of_equal_distributions() -> None:
    draws = [(features(2 * i, 400, 16), features(2 * i + 1, 400, 16)) for i in range(20)]
    plugin = np.array([frechet_distance(x, y, interval=False).value for x, y in draws])
    infinite = np.array([frechet_distance_infinite(x, y).value for x, y in draws])
    assert plugin.min() > 0
    # Twenty draws: the mean lies within 3.3 standard errors of zero in 999 of 1000 cases.
    assert abs(infinite.mean()) < 3.3 * infinite.std(ddof=1) / np.sqrt(20) + 0.02 * plugin.mean()
    assert abs(infinite.mean()) < 0.1 * plugin.mean()


def test_infinite_is_withheld_where_the_bias_is_not_yet_linear() -> None:
    x, y = features(1, 127, 16), features(2, 400, 16)
    estimate = frechet_distance_infinite(x, y)
    assert estimate.ci_low is None
    assert estimate.reason == "n < 8 d: 127 independent rows, 16 features"
    assert estimate.warning
    patients = np.arange(400) // 4
    whole = features(3, 400, 16)
    assert frechet_distance_infinite(whole, y).ci_low is not None
    assert frechet_distance_infinite(whole, y, groups_real=patients).ci_low is None


def test_infinite_needs_units_to_split() -> None:
    x, y = features(1, 20, 2), features(2, 20, 2)
    with pytest.raises(ValueError, match="too few independent units to split"):
        frechet_distance_infinite(x, y, groups_real=["one"] * 20)
    with pytest.raises(ValueError, match="at least 4"):
        frechet_distance_infinite(x[:3], y)


def test_the_fast_solver_and_the_decomposition_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(1, 400, 60, 0.3), 0.8 * features(2, 300, 60)
    fast = frechet_distance(x, y)
    monkeypatch.setattr(frechet, "_sure", lambda _squares: False)
    slow = frechet_distance(x, y)
    assert fast.value == pytest.approx(slow.value, rel=1e-11)
    assert fast.standard_error == pytest.approx(slow.standard_error, rel=1e-9)


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(1, 300, 50, 0.3), 0.8 * features(2, 200, 50)
    whole = frechet_distance(x, y)
    for tile in (1, 16, 25, 49):
        monkeypatch.setattr(frechet, "_TILE", tile)
        tiled = frechet_distance(x, y)
        assert tiled.value == pytest.approx(whole.value, rel=1e-12)
        assert tiled.standard_error == pytest.approx(whole.standard_error, rel=1e-10)
        value = frechet_distance(x, y, interval=False).value
        assert value == pytest.approx(whole.value, rel=1e-12)


@pytest.mark.parametrize("decay", [1.0, 3.0, 8.0])
def test_ill_conditioned_covariances_agree_with_singular_values(decay: float) -> None:
    # At decay 8 the s^2 range over 25 digits and the symmetric problem is not taken.
    x, y = features(1, 300, 40, decay=decay), features(2, 200, 40, 0.3, decay=decay)
    factors = [np.linalg.qr((z - z.mean(axis=0)) / np.sqrt(len(z) - 1))[1] for z in (x, y)]
    gap = x.mean(axis=0) - y.mean(axis=0)
    expected = gap @ gap + sum((factor**2).sum() for factor in factors)
    expected -= 2 * np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    for interval in (True, False):
        value = frechet_distance(x, y, interval=interval).value
        assert value == pytest.approx(expected, rel=1e-9)


def test_rows_are_not_changed() -> None:
    x, y = features(1, 100, 4), features(2, 90, 4)
    kept = x.copy(), y.copy()
    frechet_distance(x, y)
    frechet_distance(x, y, interval=False)
    frechet_distance_infinite(x, y)
    assert (x == kept[0]).all()
    assert (y == kept[1]).all()


def test_rows_that_agree_in_their_first_feature_are_still_different() -> None:
    x, y = features(1, 200, 8), features(2, 200, 8)
    x[:, 0] = np.arange(200) % 2
    assert frechet_distance(x, y).ci_low is not None
    x[:, 0] = np.arange(200) % 60
    assert frechet_distance_infinite(x, y).ci_low is not None


def test_float32_is_enough_for_the_error_of_wide_features(monkeypatch: pytest.MonkeyPatch) -> None:
    for shift, scale in ((0.0, 1.0), (0.3, 0.7)):
        x = 1e3 * features(1, 300, 48, decay=2.0)
        y = 1e3 * scale * features(2, 300, 48, shift, decay=2.0)
        whole = frechet_distance(x, y, pairs=True)
        monkeypatch.setattr(frechet, "_WIDE", 1)
        narrow = frechet_distance(x, y, pairs=True)
        monkeypatch.undo()
        assert narrow.value == whole.value
        assert narrow.standard_error == pytest.approx(whole.standard_error, rel=1e-4)


def test_sides_without_a_common_direction_have_an_error() -> None:
    x, y = features(1, 50, 6), features(2, 50, 6)
    x[:, 3:], y[:, :3] = 0.0, 0.0
    found = frechet_distance(x, y)
    sides = (x - x.mean(axis=0), y - y.mean(axis=0))
    gap = x.mean(axis=0) - y.mean(axis=0)
    expected = gap @ gap + sum((side**2).sum() for side in sides) / 49
    # Where a covariance is singular, singular values of 0 come out as roots of rounding: sqrt(eps).
    assert found.value == pytest.approx(expected, rel=1.5e-8)
    assert found.standard_error is not None
