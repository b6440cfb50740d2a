"""Scores of classification: against scikit-learn, closed forms, deletion by hand, simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from chexgenbench.statistics import (
    Estimate,
    Undefined,
    average_precision,
    by_column,
    cluster_bootstrap,
    expected_calibration_error,
    mean_estimate,
    roc_auc,
    threshold_metrics,
    tpr_at_fpr,
)
from chexgenbench.statistics.difference import difference
from intervals import check_intervals

Array = NDArray[np.float64]
TIES = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def rows(seed: int, n: int = 80, share: float = 0.3, steps: int = 1000) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    y = (np.arange(n) < share * n).astype(float)
    scores = np.round((random.normal(size=n) + y) * steps) / steps
    order = random.permutation(n)
    return scores[order], y[order]


def delong(scores: list[Array], y: Array) -> tuple[Array, Array]:
    """AUCs and their covariance, by DeLong's formulas written out with all pairs."""
    tens, ones, values = [], [], []
    for s in scores:
        wins = (s[y == 1][:, None] > s[y == 0]) + 0.5 * (s[y == 1][:, None] == s[y == 0])
        values.append(wins.mean())
        tens.append(wins.mean(axis=1))
        ones.append(wins.mean(axis=0))
    covariance = np.cov(tens) / len(tens[0]) + np.cov(ones) / len(ones[0])
    return np.array(values), covariance


@given(TIES)
def test_areas_agree_with_scikit_learn(found: list[tuple[int, bool]]) -> None:
    s, y = np.array(found, float).T
    assert roc_auc(s, y).value == pytest.approx(roc_auc_score(y, s), abs=1e-14)
    assert average_precision(s, y).value == pytest.approx(average_precision_score(y, s), abs=1e-14)


def test_auc_has_delongs_error() -> None:
    (first, y), (second, _) = rows(1, steps=3), rows(2)
    other = second + first
    values, covariance = delong([first, other], y)
    a, b = roc_auc(first, y), roc_auc(other, y)
    assert [a.value, b.value] == pytest.approx(values)
    assert [a.standard_error, b.standard_error] == pytest.approx(np.sqrt(np.diag(covariance)))
    paired = difference(a, b)
    expected = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert paired.value == pytest.approx(values[1] - values[0])
    assert paired.standard_error == pytest.approx(np.sqrt(expected))


def test_auc_of_patients_has_obuchowskis_error() -> None:
    """Each row three times under one patient is as much evidence as the rows once."""
    s, y = rows(3)
    once = roc_auc(s, y)
    thrice = roc_auc(np.tile(s, 3), np.tile(y, 3), groups=np.tile(np.arange(80), 3))
    assert thrice.value == once.value
    assert thrice.standard_error == pytest.approx(once.standard_error)
    alone = roc_auc(np.tile(s, 3), np.tile(y, 3))
    assert alone.standard_error < 0.6 * once.standard_error  # type: ignore[operator]


def test_weights_are_copies() -> None:
    s, y = rows(4, n=80, steps=2)
    times = np.random.default_rng(0).integers(1, 4, 80)
    copied = roc_auc(np.repeat(s, times), np.repeat(y, times), groups=np.repeat(range(80), times))
    weighted = roc_auc(s, y, weights=times)
    assert weighted.value == pytest.approx(copied.value)
    assert weighted.standard_error == pytest.approx(copied.standard_error)
    high, low = s[y == 1], s[y == 0]
    at = tpr_at_fpr(high, low, 0.4, weights_negative=times[y == 0])
    again = tpr_at_fpr(high, np.repeat(low, times[y == 0]), 0.4)
    assert at.value == again.value


@pytest.mark.parametrize("steps", [3, 1000])
def test_average_precision_has_the_derivative_by_each_weight(steps: int) -> None:
    s, y = rows(5, n=30, steps=steps)
    influence = average_precision(s, y).influence
    assert influence is not None
    changes = []
    for row in range(30):
        both = []
        for step in (1e-5, -1e-5):
            weights = np.ones(30)
            weights[row] += step
            both.append(average_precision_score(y, s, sample_weight=weights))
        changes.append((both[0] - both[1]) / 2e-5)
    by_hand = np.array(changes)
    assert influence.fake == pytest.approx(by_hand[y == 1], abs=1e-6)
    assert influence.real == pytest.approx(by_hand[y == 0], abs=1e-6)


@given(TIES, st.sampled_from([0.1, 0.25, 0.5]))
def test_tpr_is_that_of_the_roc_curve(found: list[tuple[int, bool]], fpr: float) -> None:
    s, y = np.repeat(np.array(found, float), 100, axis=0).T  # enough negatives
    rates, hits, _ = roc_curve(y, s, drop_intermediate=False)
    best = hits[rates <= fpr + 1e-12].max()
    assert tpr_at_fpr(s[y == 1], s[y == 0], fpr).value == pytest.approx(best, abs=1e-14)


def test_tpr_needs_negatives_of_enough_patients() -> None:
    scores = np.random.default_rng(0).normal(size=2000)
    assert tpr_at_fpr(scores[:500], scores[500:], 0.01).ci_low is not None
    with pytest.raises(Undefined, match=r"0\.01 needs 1000 independent negatives, there are 750"):
        tpr_at_fpr(scores[:500], scores[500:], 0.01, groups_negative=np.arange(1500) // 2)


def test_metrics_at_a_threshold_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(6)
    y = (random.random((120, 4)) < [0.5, 0.2, 0.1, 0.3]).astype(float)
    p = np.clip(0.5 * y + 0.6 * random.random((120, 4)), 0, 1)
    names = list("abcd")
    called = p >= 0.5
    found = threshold_metrics(p, y, names)
    for name, reference in (
        ("precision", precision_score),
        ("recall", recall_score),
        ("f1", f1_score),
    ):
        scores = found[name].scores
        assert [scores[c].value for c in names] == pytest.approx(reference(y, called, average=None))
        for average in ("micro", "macro"):
            assert scores[average].value == pytest.approx(reference(y, called, average=average))
    accuracy = found["accuracy"].scores
    assert accuracy["b"].value == pytest.approx(accuracy_score(y[:, 1], called[:, 1]))
    assert accuracy["micro"].value == pytest.approx((y == called).mean())


def test_an_unknown_entry_is_no_row() -> None:
    random = np.random.default_rng(7)
    y = (random.random((90, 2)) < 0.4).astype(float)
    p = random.random((90, 2))
    y[::3, 0] = np.nan
    kept = ~np.isnan(y[:, 0])
    found = threshold_metrics(p, y, ["a", "b"])["f1"].scores["a"]
    assert found.value == pytest.approx(f1_score(y[kept, 0], p[kept, 0] >= 0.5))
    auc = by_column(roc_auc, p, y, ["a", "b"]).scores["a"]
    assert auc.value == pytest.approx(roc_auc_score(y[kept, 0], p[kept, 0]))


def shifted(scores: Array, labels: Array, names: list[str]) -> dict[str, float]:
    """As the published code does it: the classes with an AUC, under the first names."""
    values = [
        float(roc_auc_score(y, s))
        for s, y in zip(scores.T, labels.T, strict=True)
        if len(set(y)) == 2
    ]
    return dict(zip(names, values, strict=False))


def test_names_do_not_shift_where_a_class_has_one_label() -> None:
    """Defect 13."""
    random = np.random.default_rng(8)
    labels = np.tile([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], (30, 1))
    scores = random.normal(size=(60, 3))
    scores[:, 2] += 5 * labels[:, 2]
    names = ["Fracture", "Edema", "Pneumonia"]
    right = float(roc_auc_score(labels[:, 2], scores[:, 2]))
    assert shifted(scores, labels, names)["Edema"] == right  # Pneumonia's
    found = by_column(roc_auc, scores, labels, names).estimates()
    assert found["Fracture"] == "no positive row"
    assert isinstance(found["Pneumonia"], Estimate)
    assert found["Pneumonia"].value == right
    for metric in threshold_metrics(scores, labels, names).values():
        assert metric.undefined == {"Fracture": "no positive row"}
        assert set(metric.scores) == {"Edema", "Pneumonia", "micro", "macro"}


def test_a_model_gains_nothing_by_calling_no_row() -> None:
    y = np.tile([[1.0, 1.0], [0.0, 0.0]], (20, 1))
    p = np.column_stack([0.9 * y[:, 0], np.zeros(40)])
    found = threshold_metrics(p, y, ["a", "b"])["precision"].scores
    assert found["b"].value == 0.0
    assert found["macro"].value == 0.5


def test_one_class_in_every_column() -> None:
    found = by_column(roc_auc, np.zeros((5, 1)), np.ones((5, 1)), ["a"]).estimates()
    assert found == {"a": "no negative row", "macro": "no column has rows of both classes"}
    for metric in threshold_metrics(np.zeros((5, 1)), np.ones((5, 1)), ["a"]).values():
        assert not metric.scores
        assert set(metric.undefined) == {"a", "micro", "macro"}


def test_one_positive_has_no_interval() -> None:
    y = np.array([1.0, *[0.0] * 20])
    found = roc_auc(np.arange(21.0) % 7, y)
    assert found.ci_low is None
    assert found.reason == "one independent unit only"


def test_macro_difference_of_two_models_is_paired() -> None:
    """Two models that agree but for little noise: their errors cancel."""
    random = np.random.default_rng(9)
    y = (random.random((300, 3)) < 0.3).astype(float)
    patients = np.arange(300) // 3
    s = random.normal(size=(300, 3)) + y
    near = s + 0.05 * random.normal(size=s.shape)
    one, two = (by_column(roc_auc, x, y, list("abc"), groups=patients) for x in (s, near))
    gap = difference(one.scores["macro"], two.scores["macro"])
    alone = one.scores["macro"].estimate()
    assert gap.standard_error < 0.3 * alone.standard_error  # type: ignore[operator]


def test_calibration_error_by_hand() -> None:
    p, y = np.array([0.05, 0.15, 0.15, 0.95, 1.0, 0.0]), np.array([0, 1, 0, 1, 1, 0.0])
    # Bins of a tenth, closed above: (0.05, 0), (0.15 twice), (0.95, 1).
    expected = (abs(0.05) + abs(1 - 0.3) + abs(2 - 1.95)) / 6
    assert expected_calibration_error(p, y, bins=10).value == pytest.approx(expected)
    assert expected_calibration_error([0.5, 0.5], [1, np.nan], bins=3).value == 0.5


def test_bootstrap_of_a_mean_is_the_mean_estimate() -> None:
    random = np.random.default_rng(10)
    patients = np.arange(300) // 3
    values = random.normal(size=100)[patients] + random.normal(size=300)

    def mean(weights: Array) -> Array:
        found: Array = weights @ values / weights.sum(axis=1)
        return found

    found, exact = (
        cluster_bootstrap(mean, patients, draws=4000),
        mean_estimate(values, groups=patients),
    )
    assert found.value == pytest.approx(exact.value)
    assert found.standard_error == pytest.approx(exact.standard_error, rel=0.05)
    assert found.ci_low == pytest.approx(exact.ci_low, abs=0.1 * exact.standard_error)
    assert found.ci_high == pytest.approx(exact.ci_high, abs=0.1 * exact.standard_error)


def test_bootstrap_does_not_depend_on_order_or_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(11)
    names = np.array([f"p{i // 2}" for i in range(60)])
    values = random.normal(size=60)

    def found(order: NDArray[np.int64]) -> Estimate:
        def spread(weights: Array) -> Array:
            mean = weights @ values[order] / 60
            return np.asarray(weights @ values[order] ** 2 / 60 - mean**2)

        return cluster_bootstrap(spread, names[order], draws=200, seed=3)

    first = found(np.arange(60))
    shuffled = found(random.permutation(60))
    assert shuffled.ci_low == pytest.approx(first.ci_low, rel=1e-9)
    assert shuffled.ci_high == pytest.approx(first.ci_high, rel=1e-9)
    monkeypatch.setattr("chexgenbench.statistics.classification.BLOCK_BYTES", 8 * 60 * 7)
    assert found(np.arange(60)).ci_low == pytest.approx(first.ci_low, rel=1e-9)


def test_bootstrap_withholds_what_it_cannot_give() -> None:
    names = [f"p{i}" for i in range(40)]
    values = np.arange(40.0)
    rare = cluster_bootstrap(lambda w: np.where(w[:, 0] > 0, 1.0, np.nan), names)
    assert rare.reason is not None
    assert "undefined in" in rare.reason
    few = cluster_bootstrap(lambda w: w @ values[:9], names[:9])
    assert few.reason == "only 9 independent units, 10 needed"
    with pytest.raises(Undefined):
        cluster_bootstrap(lambda w: np.full(len(w), np.nan), names)


@pytest.mark.parametrize("statistic", [roc_auc, average_precision])
def test_order_of_rows_plays_no_part(statistic: Callable[..., Estimate]) -> None:
    s, y = rows(12, steps=4)
    patients = np.arange(80) // 2
    order = np.random.default_rng(0).permutation(80)
    one = statistic(s, y, groups=patients)
    two = statistic(s[order], y[order], groups=patients[order])
    assert two.value == pytest.approx(one.value, rel=1e-14)
    assert two.standard_error == pytest.approx(one.standard_error, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roc_auc([0.1, np.nan], [0, 1]), "NaN or infinity"),
        (lambda: roc_auc([0.1, 0.2], [0, 2]), "0, 1 or NaN expected"),
        (lambda: roc_auc([0.1, 0.2], [0, 1, 1]), "2 scores and 3 labels"),
        (lambda: roc_auc([0.1, 0.2], [0, 1], weights=[1, -1]), "at least 0"),
        (lambda: roc_auc([0.1, 0.2], [0, 1], groups=["a"]), "one label for each of 2 rows"),
        (lambda: roc_auc([0.1, 0.2], [1, 1]), "no negative row"),
        (lambda: average_precision([0.1, 0.2], [0, 0]), "no positive row"),
        (lambda: tpr_at_fpr([1.0], [0.0], 1.0), "between 0 and 1"),
        (lambda: expected_calibration_error([1.5], [1]), "between 0 and 1"),
        (lambda: expected_calibration_error([0.5], [np.nan]), "no labelled row"),
        (lambda: by_column(roc_auc, [[1.0]], [[1.0]], ["macro"]), "names of their own"),
        (lambda: by_column(roc_auc, [[1.0]], [[1.0]], ["a", "b"]), "do not fit"),
        (lambda: cluster_bootstrap(lambda w: w[:, 0], [], draws=100), "at least 1 row"),
        (lambda: cluster_bootstrap(lambda w: w, ["a"], draws=100), "returned shape"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_intervals_of_clustered_rows_hold_their_target() -> None:
    """In short; benchmarks/coverage_classification.py has the whole table."""
    aucs, precisions, f1s = [], [], []
    for stream in np.random.SeedSequence(0).spawn(300):
        random = np.random.default_rng(stream)
        patients = np.repeat(np.arange(120), random.integers(1, 4, 120))
        n = len(patients)
        own = random.normal(size=(2, 120))[:, patients]
        y = (own[0] + random.normal(size=n) > 0.8).astype(float)
        s = 0.8 * y + 0.7 * own[1] + 0.7 * random.normal(size=n)
        aucs.append(roc_auc(s, y, groups=patients))
        precisions.append(average_precision(s, y, groups=patients))
        f1 = threshold_metrics(s[:, None], y[:, None], ["a"], groups=patients)["f1"]
        f1s.append(f1.scores["a"].estimate())
    for found in (aucs, precisions, f1s):
        check_intervals(found)
