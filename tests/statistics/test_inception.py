"""Inception Score: against other implementations, closed forms and deletion by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch_fidelity.metric_isc import isc_features_to_metric

from chexgenbench.statistics import inception_score

Array = NDArray[np.float64]


def logits(seed: int, n: int, classes: int, sharp: float = 2.0) -> Array:
    return sharp * np.random.default_rng(seed).normal(size=(n, classes))


def softmax(values: Array) -> Array:
    odds = np.exp(values - values.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("n", "classes", "splits"), [(200, 10, 10), (203, 10, 10), (500, 1008, 10), (90, 14, 1)]
)
def test_agrees_with_torch_fidelity(n: int, classes: int, splits: int) -> None:
    values = logits(1, n, classes)
    expected = isc_features_to_metric(torch.from_numpy(values), splits=splits, shuffle=False)
    score = inception_score(softmax(values), splits=splits).value
    assert score == pytest.approx(expected["inception_score_mean"], rel=1e-12)


def test_closed_forms() -> None:
    sure = np.tile(np.eye(7), (20, 1))
    assert inception_score(sure, splits=2).value == pytest.approx(7.0, rel=1e-12)
    assert inception_score(np.full((40, 7), 1 / 7)).value == pytest.approx(1.0, rel=1e-12)
    assert inception_score(np.tile(softmax(logits(0, 1, 5)), (40, 1))).value == pytest.approx(1.0)
    # Two classes, each row sure with probability 1 - e: ln 2 less the entropy of (e, 1 - e).
    e = 0.1
    rows = np.tile([[e, 1 - e], [1 - e, e]], (20, 1))
    entropy = -e * np.log(e) - (1 - e) * np.log(1 - e)
    assert inception_score(rows).value == pytest.approx(2 * np.exp(-entropy), rel=1e-12)


def test_a_constant_score_gets_no_interval() -> None:
    estimate = inception_score(np.full((40, 7), 1 / 7))
    assert estimate.ci_low is None
    assert estimate.reason == "no variation between the units"


@pytest.mark.parametrize("kind", ["logits", "pool features"])
def test_what_is_not_a_probability_is_refused(kind: str) -> None:
    # Defect 2: the score of 2048 pool features is a number, but not this one.
    values = logits(1, 40, 16) if kind == "logits" else np.abs(logits(1, 40, 2048))
    with pytest.raises(ValueError, match="do not sum to 1"):
        inception_score(values)


def test_other_bad_input_is_named() -> None:
    good = softmax(logits(1, 40, 5))
    bad = good.copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match=r"probabilities: 1 row\(s\) hold NaN"):
        inception_score(bad)
    with pytest.raises(ValueError, match="10 parts need at least 20 rows, got 19"):
        inception_score(good[:19])
    for splits in (0, 2.5, True):
        with pytest.raises(ValueError, match="splits must be a whole number"):
            inception_score(good, splits=splits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one label for each of 40 rows"):
        inception_score(good, groups=["a"])


def test_float16_probabilities_are_accepted() -> None:
    values = softmax(logits(1, 200, 1008))
    exact, half = inception_score(values), inception_score(values.astype(np.float16))
    assert half.value == pytest.approx(exact.value, rel=2e-3)


def test_order_inside_a_part_changes_nothing() -> None:
    values = softmax(logits(1, 200, 6))
    random = np.random.default_rng(0)
    order = np.concatenate([random.permutation(20) + start for start in range(0, 200, 20)])
    straight, shuffled = inception_score(values), inception_score(values[order])
    assert shuffled.value == pytest.approx(straight.value, rel=1e-12)
    assert shuffled.standard_error == pytest.approx(straight.standard_error, rel=0.02)
    one = inception_score(values, splits=1)
    anyhow = inception_score(values[random.permutation(200)], splits=1)
    assert anyhow.value == pytest.approx(one.value, rel=1e-12)


def test_the_error_is_not_the_spread_of_the_parts() -> None:
    values = softmax(logits(1, 1000, 10))
    spread = isc_features_to_metric(torch.from_numpy(logits(1, 1000, 10)), shuffle=False)
    error = inception_score(values).standard_error or 0
    # One part has ten times the variance of the mean of ten; a spread of ten parts is known to
    # some 24 %, so it lies within half of it.
    assert error * np.sqrt(10) == pytest.approx(spread["inception_score_std"], rel=0.5)


def test_contributions_are_those_of_leaving_a_patient_out() -> None:
    values = softmax(logits(1, 60, 5))
    patients = np.arange(60) // 4
    influence = inception_score(values, splits=1, groups=patients).influence
    assert influence is not None
    left = np.array([inception_score(values[patients != p], splits=1).value for p in range(15)])
    jackknife = (left.mean() - left) * np.sqrt(14 / 15)
    assert np.bincount(patients, influence.fake) == pytest.approx(jackknife, rel=1e-9)


def test_a_part_of_one_patient_gets_no_interval() -> None:
    values = softmax(logits(1, 40, 5))
    estimate = inception_score(values, splits=2, groups=np.r_[np.zeros(20), np.arange(1, 21)])
    assert estimate.reason == "a part holds one independent unit only"
