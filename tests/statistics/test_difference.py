"""Differences of two models, averages over subsets, and what is concluded from them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from chexgenbench.statistics import (
    Estimate,
    frechet_distance,
    frechet_distance_infinite,
    inception_score,
    kernel_distance,
    mean_estimate,
    precision_recall_density_coverage,
)
from chexgenbench.statistics.difference import (
    UnitInfluence,
    difference,
    holm,
    images_needed,
    macro_average,
    p_value,
)
from chexgenbench.statistics.sampling import MOST_PROBES

Array = NDArray[np.float64]


def features(seed: int, n: int, d: int, shift: float = 0.0, scale: float = 1.0) -> Array:
    return scale * np.random.default_rng(seed).normal(size=(n, d)) + shift


def values(seed: int, n: int) -> Array:
    return np.random.default_rng(seed).normal(size=n)


def names(n: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{i}" for i in range(n)]


def kept(numbers: Array, labels: list[str]) -> UnitInfluence:
    return UnitInfluence.of(mean_estimate(numbers, groups=labels), labels)


def error(estimate: Estimate) -> float:
    assert estimate.standard_error is not None
    return estimate.standard_error


# --- the difference of two means has a known error ---------------------------------------------


def test_means_over_the_same_prompts_are_compared_prompt_by_prompt() -> None:
    a = values(1, 40)
    b = a + 0.3 * values(2, 40) + 0.1
    found = difference(kept(a, names(40)), kept(b, names(40)))
    expected = stats.ttest_rel(b, a)
    low, high = expected.confidence_interval(0.95)
    assert found.value == pytest.approx((b - a).mean(), rel=1e-12)
    assert found.ci_low == pytest.approx(low, rel=1e-9)
    assert found.ci_high == pytest.approx(high, rel=1e-9)
    assert p_value(found) == pytest.approx(expected.pvalue, rel=1e-9)
    apart = np.hypot(error(mean_estimate(a)), error(mean_estimate(b)))
    assert error(found) < 0.4 * apart


def test_means_over_other_prompts_are_independent() -> None:
    a, b = values(1, 40), values(2, 30)
    found = difference(kept(a, names(40, "p")), kept(b, names(30, "q")))
    variance = a.var(ddof=1) / 40 + b.var(ddof=1) / 30
    assert error(found) == pytest.approx(np.sqrt(variance), rel=1e-9)
    assert found.degrees_of_freedom == pytest.approx(29)


def test_a_prompt_that_one_side_lacks_counts_on_the_other() -> None:
    a, b = values(1, 10), values(2, 9)
    found = difference(kept(a, names(10)), kept(b, names(9)))
    of_a = (a - a.mean()) / 10 * np.sqrt(10 / 9)
    of_b = np.r_[(b - b.mean()) / 9 * np.sqrt(9 / 8), 0.0]
    assert error(found) == pytest.approx(np.sqrt(((of_b - of_a) ** 2).sum()), rel=1e-9)


def test_units_meet_by_name_in_any_order() -> None:
    a, b, labels = values(1, 30), values(2, 30), names(30)
    straight = difference(kept(a, labels), kept(b, labels))
    order = np.random.default_rng(3).permutation(30)
    shuffled = difference(kept(a, labels), kept(b[order], [labels[i] for i in order]))
    assert error(shuffled) == pytest.approx(error(straight), rel=1e-12)
    wrong = difference(kept(a, labels), kept(b[order], labels))
    assert error(wrong) != pytest.approx(error(straight), rel=1e-3)


def test_patients_are_one_unit_each() -> None:
    a, b = values(1, 30), values(2, 30)
    patients = [f"p{i // 3}" for i in range(30)]
    found = difference(kept(a, patients), kept(b, patients))
    assert error(found) == pytest.approx(error(mean_estimate(b - a, groups=patients)), rel=1e-9)
    assert found.degrees_of_freedom == pytest.approx(9)


# --- two-sided statistics ------------------------------------------------------------------------


def design(n: int) -> dict[str, Any]:
    patients = [f"p{i // 2}" for i in range(n)]
    return {"pairs": True, "groups_real": patients, "groups_fake": patients}


def prdc(name: str) -> Callable[..., Estimate]:
    def score(real: Array, fake: Array, **kwargs: Any) -> Estimate:
        return precision_recall_density_coverage(real, fake, **kwargs)[name]

    return score


STATISTICS: dict[str, Callable[..., Estimate]] = {
    "fid": frechet_distance,
    "fid_infinity": frechet_distance_infinite,
    "kid": kernel_distance,
    **{name: prdc(name) for name in ("precision", "recall", "density", "coverage")},
}
EACH = pytest.mark.parametrize("name", list(STATISTICS))


@EACH
def test_a_run_does_not_differ_from_itself(name: str) -> None:
    x, y = features(1, 120, 4), features(2, 120, 4, 0.3)
    one = STATISTICS[name](x, y, **design(120))
    assert one.standard_error is not None
    labels = design(120)["groups_real"]
    for a in (one, UnitInfluence.of(one, labels, labels)):
        found = difference(a, a)
        assert (found.value, found.standard_error) == (0.0, None)
        assert found.reason == "no variation between the units"
        assert p_value(found) is None


@EACH
def test_what_is_kept_gives_the_score_its_own_interval_back(name: str) -> None:
    x, y = features(1, 120, 4), features(2, 120, 4, 0.3)
    one = STATISTICS[name](x, y, **design(120))
    labels = design(120)["groups_real"]
    back = UnitInfluence.of(one, labels, labels)
    assert back.probes.shape[1] <= MOST_PROBES
    assert back.probes.dtype == np.float32
    assert back.value == one.value
    # From 16 columns of random signs instead of up to 64.
    assert error(back.estimate()) == pytest.approx(error(one), rel=0.1)
    assert back.estimate().degrees_of_freedom == one.degrees_of_freedom


@EACH
def test_stored_or_not_the_difference_is_the_same(name: str) -> None:
    x = features(1, 120, 4)
    a, b = (
        STATISTICS[name](x, features(seed, 120, 4, shift), **design(120))
        for seed, shift in ((2, 0.3), (3, 0.5))
    )
    plain = difference(a, b)
    labels = design(120)["groups_real"]
    stored = difference(*(UnitInfluence.of(one, labels, labels) for one in (a, b)))
    assert plain.value == b.value - a.value
    assert stored.value == plain.value
    assert error(stored) == pytest.approx(error(plain), rel=1e-6)
    back = difference(b, a)
    assert back.value == -plain.value
    assert error(back) == pytest.approx(error(plain), rel=1e-12)


@EACH
def test_models_that_share_most_images_have_a_small_error(name: str) -> None:
    alone, paired = [], []
    for seed in range(6):
        x, y = features(seed, 200, 4), features(100 + seed, 200, 4, 0.3)
        other = y.copy()
        other[:10] = features(200 + seed, 10, 4, 0.5)
        a, b = (STATISTICS[name](x, side, pairs=True) for side in (y, other))
        alone.append(error(a))
        paired.append(error(difference(a, b)))
    # What one in twenty of the images adds; independent models would have sqrt(2) of the error.
    assert np.mean(np.square(paired)) < 0.75**2 * np.mean(np.square(alone))


def test_second_order_terms_are_subtracted_before_they_are_squared() -> None:
    x = features(1, 300, 16)
    a, b = (kernel_distance(x, features(seed, 300, 16), pairs=True) for seed in (2, 3))
    found = difference(a, b)
    assert a.influence is not None
    assert b.influence is not None
    first = b.influence.by_unit() - a.influence.by_unit()
    terms = (b.influence.second_by_unit() - a.influence.second_by_unit())[:, :MOST_PROBES]
    silent = a.influence.units.probes(MOST_PROBES) == 0
    off = silent.sum(axis=0)
    second = ((terms**2 * silent).sum(axis=0) * 300 * 299 / (off * (300 - off))).mean() / 2
    squares = float((first**2).sum())
    assert second > 0.05 * squares
    expected = max(squares - second, second)
    assert error(found) == pytest.approx(np.sqrt(expected), rel=1e-6)
    # Signs of which nothing is known in common: counted twice rather than taken off wrongly.
    labels = names(300)
    one, two = (UnitInfluence.of(side, labels, labels) for side in (a, b))
    mixed = difference(one, replace(two, keys=two.keys + np.uint64(1000)))
    assert error(mixed) == pytest.approx(np.sqrt(squares), rel=1e-6)


def test_labels_choose_the_signs_so_that_missing_images_do_not_shift_them() -> None:
    odds = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 200))
    labels = names(200)
    whole, other = (inception_score(side, groups=labels) for side in odds)
    short = inception_score(odds[1][1:], groups=labels[1:])
    a, b = UnitInfluence.of(whole, labels), UnitInfluence.of(short, labels[1:])
    assert np.array_equal(a.keys[1:], b.keys)
    # One image of two hundred hardly moves the error; without the correction it would.
    expected = error(difference(a, UnitInfluence.of(other, labels)))
    assert error(difference(a, b)) == pytest.approx(expected, rel=0.05)


def test_an_unknown_error_withholds_the_difference() -> None:
    x, y = features(1, 20, 30), features(2, 20, 30)
    a, b = frechet_distance(x, y), frechet_distance(x, y + 1)
    found = difference(a, b)
    assert found.value == b.value - a.value
    assert found.standard_error is None
    assert found.reason is not None
    assert found.reason.startswith("no error of the first score: n <= d")
    assert p_value(found) is None
    assert images_needed(found, 20) is None
    known = kept(values(1, 5), names(5))
    unknown = UnitInfluence.unknown(0.5, "not computed")
    assert difference(known, unknown).reason == "no error of the second score: not computed"


def test_a_constant_gap_between_equal_contributions_is_no_certainty() -> None:
    a = values(1, 10)
    found = difference(mean_estimate(a), mean_estimate(a + 0.5))
    # Rounding aside no unit differs, and nothing is learnt of how the gap would vary.
    assert found.standard_error is None or found.standard_error < 1e-15
    exact = difference(mean_estimate([1.0, 2.0, 3.0]), mean_estimate([2.0, 3.0, 4.0]))
    assert exact.value == 1.0
    assert exact.reason == "no unit shows where the difference comes from"


def test_estimates_of_other_designs_must_be_named() -> None:
    a, b = mean_estimate(values(1, 5)), mean_estimate(values(2, 6))
    with pytest.raises(ValueError, match="the fake rows belong to other units"):
        difference(a, b)
    with pytest.raises(ValueError, match="one of each"):
        difference(a, UnitInfluence.of(b, names(6)))


def test_names_must_fit_the_rows_and_rows_of_one_name_are_one_unit() -> None:
    numbers = values(1, 12)
    estimate = mean_estimate(numbers)
    with pytest.raises(ValueError, match="expected a name for each of 12 rows, got 3"):
        UnitInfluence.of(estimate, names(3))
    patients = [f"p{i // 3}" for i in range(12)]
    merged = UnitInfluence.of(estimate, patients)
    assert merged.units.tolist() == ["p0", "p1", "p2", "p3"]
    sums = (numbers - numbers.mean()).reshape(4, 3).sum(axis=1) / 12 * np.sqrt(12 / 11)
    assert merged.first == pytest.approx(sums, rel=1e-12)


# --- averages over subsets -----------------------------------------------------------------------


def test_the_same_subset_twice_is_no_more_certain() -> None:
    x, y = features(1, 120, 4), features(2, 120, 4, 0.3)
    labels = design(120)["groups_real"]
    for name, statistic in STATISTICS.items():
        one = UnitInfluence.of(statistic(x, y, **design(120)), labels, labels)
        mean = macro_average([one, one]).estimate()
        assert mean.value == one.value
        assert error(mean) == pytest.approx(np.sqrt(one.variance()), rel=1e-5), name


def test_disjoint_subsets_are_independent() -> None:
    a, b = values(1, 20), values(2, 10)
    mean = macro_average([kept(a, names(20, "p")), kept(b, names(10, "q"))]).estimate()
    parts = a.var(ddof=1) / 20, b.var(ddof=1) / 10
    assert mean.value == pytest.approx((a.mean() + b.mean()) / 2, rel=1e-12)
    assert error(mean) == pytest.approx(np.sqrt(sum(parts)) / 2, rel=1e-9)
    welch = stats.ttest_ind(a, -b, equal_var=False)  # the sum of two means, but for the halves
    assert mean.degrees_of_freedom == pytest.approx(welch.df, rel=1e-9)
    assert p_value(mean) == pytest.approx(welch.pvalue, rel=1e-9)


def test_overlapping_subsets_share_their_units() -> None:
    numbers = values(1, 30)
    labels = names(30)
    rows = [np.arange(20), np.arange(10, 30), np.arange(0, 30, 2)]
    parts = [kept(numbers[at], [labels[i] for i in at]) for at in rows]
    units = macro_average(parts)
    mean = units.estimate()
    expected = np.zeros(30)
    for at in rows:
        own = numbers[at] - numbers[at].mean()
        expected[at] += own / at.size * np.sqrt(at.size / (at.size - 1)) / 3
    assert error(mean) == pytest.approx(np.sqrt((expected**2).sum()), rel=1e-9)
    by_name = dict(zip(units.units.tolist(), units.first.tolist(), strict=True))
    assert [by_name[label] for label in labels] == pytest.approx(expected)


def test_averages_of_two_models_are_compared_unit_by_unit() -> None:
    labels = names(60)
    shared = values(1, 60)
    subsets = [np.arange(40), np.arange(20, 60)]
    averages = []
    for seed in (2, 3):
        numbers = shared + 0.2 * values(seed, 60)
        averages.append(
            macro_average([kept(numbers[at], [labels[i] for i in at]) for at in subsets])
        )
    a, b = averages
    one, two = a.estimate(), b.estimate()
    found = difference(a, b)
    assert found.value == pytest.approx(two.value - one.value, rel=1e-12)
    assert error(found) < 0.4 * np.hypot(error(one), error(two))


def test_an_average_needs_every_error() -> None:
    known = kept(values(1, 5), names(5))
    units = macro_average([known, UnitInfluence.unknown(2.0, "n <= d: 4 rows")])
    mean = units.estimate()
    assert mean.value == pytest.approx((known.value + 2.0) / 2)
    assert mean.standard_error is None
    assert mean.reason == "no error for 1 of 2 subsets: n <= d: 4 rows"
    assert units.reason == mean.reason
    with pytest.raises(ValueError, match="no scores"):
        macro_average([])


def test_subsets_that_know_their_units_by_other_keys_are_not_corrected() -> None:
    x, y = features(1, 300, 16), features(2, 300, 16)
    labels = names(300)
    one, two = np.arange(200), np.arange(100, 300)

    def part(at: NDArray[np.int64], grouped: bool) -> UnitInfluence:
        own = [labels[i] for i in at]
        groups = {"groups_real": own, "groups_fake": own} if grouped else {}
        return UnitInfluence.of(
            kernel_distance(x[at], y[at], pairs=True, **groups),  # type: ignore[arg-type]
            own,
            own,
        )

    known = macro_average([part(one, grouped=True), part(two, grouped=True)]).estimate()
    units = macro_average([part(one, grouped=False), part(two, grouped=False)])
    unknown = units.estimate()
    assert units.probes.shape[1] == 0
    assert error(unknown) == pytest.approx(np.sqrt((units.first**2).sum()), rel=1e-12)
    assert error(known) < 0.95 * error(unknown)


# --- conclusions ---------------------------------------------------------------------------------


def test_holm_on_a_known_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, None, 0.6]) == [1.0, None, 1.0]
    assert holm([]) == []
    for wrong in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm([0.5, wrong])


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    random = np.random.default_rng(0)
    for p in random.random((200, 6)) ** 4:
        rejected = np.zeros(6, dtype=bool)
        for rank, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (6 - rank):
                break
            rejected[i] = True
        adjusted = holm(p.tolist())
        assert [one is not None and one <= 0.05 for one in adjusted] == rejected.tolist()


def test_p_values_agree_with_the_interval() -> None:
    for seed, n in itertools.product(range(20), (3, 10, 50)):
        found = mean_estimate(values(seed, n) + 0.3)
        assert found.ci_low is not None
        assert found.ci_high is not None
        outside = not found.ci_low <= 0.0 <= found.ci_high
        p = p_value(found)
        assert p is not None
        assert (p < 0.05) == outside
        assert p == pytest.approx(stats.ttest_1samp(values(seed, n) + 0.3, 0.0).pvalue, rel=1e-9)


def test_the_images_needed_settle_the_difference_four_times_in_five() -> None:
    # sd 1, difference 0.2, seen with 100 images.
    needed = images_needed(Estimate(0.2, 0.1), 100)
    assert needed == 197
    random = np.random.default_rng(0)
    settled = [
        (p_value(mean_estimate(random.normal(0.2, 1.0, needed))) or 1.0) < 0.05 for _ in range(400)
    ]
    # Four standard errors of a share of 0.8 over 400 draws.
    assert np.mean(settled) == pytest.approx(0.8, abs=0.08)
    assert images_needed(Estimate(0.2, 0.1), 100, power=0.5) == 97
    assert images_needed(Estimate(0.0, 0.1), 100) is None
    assert images_needed(Estimate(1e-9, 0.1), 100) is None
    assert images_needed(Estimate(0.2), 100) is None
    with pytest.raises(ValueError, match="power"):
        images_needed(Estimate(0.2, 0.1), 100, power=1.0)
