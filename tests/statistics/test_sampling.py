"""Independent units, and the variance that comes from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chexgenbench.statistics.sampling import Influence, estimate, linear, signs, units_of


def test_without_a_design_every_row_is_a_unit() -> None:
    units = units_of(3, 2)
    assert units.real.tolist() == [0, 1, 2]
    assert units.fake.tolist() == [3, 4]
    assert units.count == 5


def test_pairs_join_the_sides() -> None:
    units = units_of(3, 4, pairs=[2, -1, 0, 2])
    assert units.real.tolist() == [0, 1, 2]
    assert units.fake.tolist() == [2, 3, 0, 2]
    assert units_of(2, 2, pairs=True).fake.tolist() == [0, 1]


def test_patients_join_their_rows_and_prompts_join_patients() -> None:
    units = units_of(4, 2, pairs=[0, 3], groups_real=["a", "b", "a", "c"], groups_fake=["a", "b"])
    # Row 3 (patient c) answers a fake row of patient b: one unit, for better or worse.
    assert units.real.tolist() == [0, 1, 0, 1]
    assert units.fake.tolist() == [0, 1]
    assert units.count == 2


def test_labels_of_both_sides_are_the_same_patients() -> None:
    units = units_of(2, 2, groups_real=["p", "q"], groups_fake=["q", "r"])
    assert units.real.tolist() == [0, 1]
    assert units.fake.tolist() == [1, 2]


def test_probes_do_not_depend_on_the_number_of_units() -> None:
    few, many = units_of(5, 5).probes(8), units_of(50, 50).probes(8)
    assert np.array_equal(few, many[:10])
    assert set(np.unique(many)) == {-1.0, 0.0, 1.0}


def test_signs_come_from_labels_where_there_are_any() -> None:
    labels = ["a", "b", "a", "c"]
    units = units_of(4, 2, groups_real=labels, groups_fake=["c", "d"])
    swapped = units_of(4, 2, groups_real=labels[::-1], groups_fake=["d", "c"])
    # a, b, c, d by their first row; then c, a, b, d.
    assert np.array_equal(units.named()[[2, 0, 1, 3]], swapped.named())
    assert np.unique(units.named()).size == 4
    alone = units_of(0, 1, groups_fake=["c"])
    assert alone.named()[0] == units.named()[2]
    assert np.array_equal(alone.probes(8)[0], units.probes(16)[2, :8])
    # Rows that a pair joins to a patient have the patient's key; others have their number.
    mixed = units_of(2, 2, pairs=[1, -1], groups_real=["a", "b"])
    assert mixed.named().tolist() == [*units.named()[:2].tolist(), 2]


def test_signs_are_half_zeros_and_uncorrelated() -> None:
    entries = signs(np.arange(4000, dtype=np.uint64), 32)
    # Shares over 128,000 entries; means over 4,000 pairs: four to five standard errors.
    for value, share in ((0.0, 0.5), (-1.0, 0.25), (1.0, 0.25)):
        assert np.mean(entries == value) == pytest.approx(share, abs=0.006)
    of_columns = entries.T @ entries / 4000
    assert np.abs(of_columns - np.diag(np.diag(of_columns))).max() < 5 * 0.5 / np.sqrt(4000)
    neighbours = (entries[1:] * entries[:-1]).mean()
    assert abs(neighbours) < 5 * 0.5 / np.sqrt(entries.size)


def test_degrees_of_freedom_count_effective_units_of_the_smaller_side() -> None:
    def freedom(real: list[int], fake: list[int]) -> float:
        units = units_of(len(real), len(fake), groups_real=real, groups_fake=fake)
        return linear(units, np.ones(len(fake)), np.ones(len(real))).degrees_of_freedom()

    assert freedom([1, 2, 3, 4], [5, 6, 7, 8, 9]) == pytest.approx(3)
    assert freedom([1, 1, 2, 2, 3, 3], list(range(10, 30))) == pytest.approx(2)
    assert freedom([1] * 9 + [2], list(range(10, 30))) == pytest.approx(100 / 82 - 1)


def test_contributions_of_a_unit_are_added_before_they_are_squared() -> None:
    units = units_of(4, 4, pairs=True)
    real, fake = np.array([1.0, -1.0, 2.0, -2.0]), np.array([-1.0, 1.0, -2.0, 2.0])
    assert linear(units, fake, real).variance() == pytest.approx(0.0)
    assert linear(units, -fake, real).variance() == pytest.approx(4 / 3 * 40)


def test_second_order_variance_is_taken_off_once() -> None:
    # T = (sum of e_u)^2 / 2 less its diagonal, e normal: all variance is of second order.
    # Var T = 1/2 sum over u != v of H_uv^2 with H = 1: u (u - 1) / 2.
    count, repeats = 40, 400
    units = units_of(0, count)
    probes = units.probes(64)
    random = np.random.default_rng(0)
    second, first = [], []
    for _ in range(repeats):
        e = random.normal(size=count)
        row = e * (e.sum() - e)
        terms = e[:, None] * (e @ probes - e[:, None] * probes)
        influence = Influence(units, np.zeros(0), row, np.zeros((0, 64)), terms)
        factor = count / (count - 1)
        second.append(influence.second_order() / factor)
        first.append((influence.by_unit() ** 2).sum() / factor)
    truth = count * (count - 1) / 2
    # Means over 400 draws; four standard errors of each.
    for values, expected in ((second, truth), (first, 2 * truth)):
        error = 4 * np.std(values) / np.sqrt(repeats)
        assert np.mean(values) == pytest.approx(expected, abs=error)
        assert error < 0.5 * expected


def test_variance_is_what_is_left_without_the_second_order_but_never_less_than_it() -> None:
    units = units_of(0, 50)
    random = np.random.default_rng(0)
    terms, row = random.normal(size=(50, 16)), random.normal(size=50)
    for size in (100.0, 0.1):
        influence = Influence(units, np.zeros(0), size * row, np.zeros((0, 16)), terms)
        first, second = float((influence.by_unit() ** 2).sum()), influence.second_order()
        assert second > 0
        expected = first - second if size == 100.0 else second
        assert influence.variance() == pytest.approx(expected)
        assert influence.variance() != pytest.approx(first)


def test_variance_beside_the_units_and_a_larger_second_order_part_are_added() -> None:
    units = units_of(0, 50)
    random = np.random.default_rng(0)
    terms, row = random.normal(size=(50, 16)), 100 * random.normal(size=50)
    plain = Influence(units, np.zeros(0), row, np.zeros((0, 16)), terms)
    second = plain.second_order()
    more = replace(plain, curvature=1.25, extra=7.0)
    assert more.variance() == pytest.approx(plain.variance() + 0.25 * second + 7.0)
    small = replace(plain, fake=1e-3 * row, least=0.25)
    assert small.variance() == pytest.approx(0.25 * float((small.by_unit() ** 2).sum()))


@pytest.mark.parametrize("value", [1e-12, 0.3, 0.999999])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_intervals_of_shares_stay_between_0_and_1(value: float, size: float) -> None:
    units = units_of(0, 4)
    found = estimate(value, linear(units, size * np.array([1.0, -1, 1, -1])), scale="logit")
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert 0 <= found.ci_low <= value <= found.ci_high <= 1


def test_intervals_on_a_logarithm_are_symmetric_in_ratio() -> None:
    found = estimate(2.0, linear(units_of(0, 4), np.array([0.1, -0.1, 0.1, -0.1])), scale="log")
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ci_low * found.ci_high == pytest.approx(4.0)
