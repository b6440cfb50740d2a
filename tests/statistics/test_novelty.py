"""Authenticity and C_T: by hand, against the definitions written plainly, and their coverage."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu, ortho_group
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from chexgenbench.statistics import Estimate, authenticity, ct_score
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


def plain_authenticity(train: Array, fake: Array) -> float:
    among = cdist(train, train)
    np.fill_diagonal(among, np.inf)
    across = cdist(train, fake)
    return float((among.min(axis=0)[across.argmin(axis=0)] < across.min(axis=0)).mean())


def plain_ct(train: Array, test: Array, fake: Array, seed: int = 0) -> float:
    """As evaluation tools take it: 3 cells, 64 components, cells of more than 20 generated rows."""
    if train.shape[1] > 64:
        axes = PCA(n_components=64, svd_solver="full").fit(train)
        train, test, fake = axes.transform(train), axes.transform(test), axes.transform(fake)
    clusters = KMeans(n_clusters=3, n_init=10, random_state=seed).fit(train)
    of_train, of_test, of_fake = (clusters.predict(rows) for rows in (train, test, fake))
    total, weights = 0.0, 0
    for cell in range(3):
        inside = train[of_train == cell]
        near = cdist(test[of_test == cell], inside).min(axis=1)
        far = cdist(fake[of_fake == cell], inside).min(axis=1)
        n, m = near.size, far.size
        if m > 20:
            u = mannwhitneyu(far, near, alternative="less").statistic
            z = (u - (n * m / 2 - 0.5)) / math.sqrt(n * m * (n + m + 1) / 12)
            total, weights = total + n * z, weights + n
    return total / weights


# --- authenticity ---------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "d"), [(100, 80, 2), (60, 150, 16), (2, 50, 3), (300, 1, 64)])
def test_authenticity_agrees_with_the_definition(n: int, m: int, d: int) -> None:
    train, fake = features(1, n, d), features(2, m, d, 0.9)
    assert authenticity(train, fake).value == plain_authenticity(train, fake)


def test_authenticity_by_hand_and_its_direction() -> None:
    # Neighbours of the training rows are 1, 1 and 4 away.
    train = np.array([[0.0], [1.0], [5.0]])
    assert authenticity(train, [[-0.5], [-1.5], [8.0], [10.0]]).value == 0.5
    rows = features(1, 200, 8)
    copies = authenticity(rows, rows + features(2, 200, 8, 1e-3))
    assert copies.value == 0.0
    assert copies.reason == "all rows agree, which shows no variation"
    assert authenticity(rows, features(3, 200, 8, 3.0)).value == 1.0


def test_equal_distances_are_no_evidence_of_being_new() -> None:
    rows = features(1, 40, 3)
    twice = np.repeat(rows, 2, axis=0)
    assert authenticity(twice, rows).value == 0.0  # copies of rows that have copies
    # Midway between 0 and 2, whose neighbours are 2 and 0.5 away: the lenient row does not decide.
    assert authenticity([[0.0], [2.0], [2.5]], [[1.0]]).value == 0.0
    assert authenticity([[2.5], [2.0], [0.0]], [[1.0]]).value == 0.0
    for offset in (0.0, 0.1, 1000.1):
        assert authenticity(np.arange(5.0)[:, None] / 3 + offset, [[-1 / 3 + offset]]).value == 0


def test_another_study_of_the_patient_does_not_let_a_copy_pass() -> None:
    patients = features(1, 50, 4, 10.0)
    train = np.repeat(patients, 2, axis=0) + features(2, 100, 4, 0.01)
    fake = train + features(3, 100, 4, 0.5)  # between the studies' and the patients' distances
    assert authenticity(train, fake).value > 0.9
    assert authenticity(train, fake, groups_train=np.arange(100) // 2).value == 0.0
    alone = authenticity(train, fake, groups_train=np.arange(100)).value
    assert alone == authenticity(train, fake).value
    with pytest.raises(ValueError, match="groups_train: rows of at least 2 groups"):
        authenticity(train, fake, groups_train=[1] * 100)


def test_authenticity_error_is_that_of_a_share() -> None:
    train, fake = features(1, 300, 8), features(2, 120, 8)
    single = authenticity(train, fake)
    p = single.value
    assert single.standard_error == pytest.approx(math.sqrt(p * (1 - p) / 119), rel=1e-12)
    # Each row four times over: as much as is known from the rows alone.
    four = authenticity(train, np.repeat(fake, 4, axis=0), groups_fake=np.arange(480) // 4)
    assert four.standard_error == pytest.approx(single.standard_error, rel=1e-12)


# --- C_T ------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [6, 80])
def test_ct_agrees_with_the_definition(d: int) -> None:
    # Three clear clusters, so that every k-means finds the same cells.
    random = np.random.default_rng(0)
    means = 30 * random.normal(size=(3, d))

    def side(n: int, scale: float) -> Array:
        return means[random.integers(0, 3, n)] + scale * random.normal(size=(n, d))

    train, test, fake = side(300, 1.0), side(150, 1.0), side(200, 0.9)
    fake[:40] = train[:40] + 0.1
    expected = plain_ct(train, test, fake)
    assert ct_score(train, test, fake).value == pytest.approx(expected, rel=1e-9)
    assert ct_score(train, test, fake, seed=5).value == pytest.approx(expected, rel=1e-9)


def test_ct_by_hand_in_one_cell() -> None:
    # Test rows are 1 and 3 away, generated rows 2, 2 and 4: farther than the one 3 times, than the
    # other once.
    train, test, fake = [[0.0]], [[1.0], [-3.0]], [[2.0], [-2.0], [4.0]]
    found = ct_score(train, test, fake, cells=1)
    assert found.value == pytest.approx((4 - 3 + 0.5) / math.sqrt(6 * 6 / 12), rel=1e-12)
    assert found.warning == (
        "no cell has more than 20 generated rows and a test row: all rows are one cell"
    )
    # All equal: U is half of the pairs.
    tied = ct_score(train, [[1.0], [-1.0]], [[1.0], [-1.0], [1.0]], cells=1)
    assert tied.value == pytest.approx(0.5 / math.sqrt(3), rel=1e-12)


def test_ct_is_below_zero_for_copies_and_above_for_far_rows() -> None:
    train, test = features(1, 300, 4), features(2, 200, 4)
    copies = ct_score(train, test, train[:200] + features(3, 200, 4, 0.3))
    far = ct_score(train, test, features(4, 200, 4, 2.0))
    assert copies.ci_high is not None
    assert copies.ci_high < 0
    assert far.ci_low is not None
    assert far.ci_low > 0
    exact = ct_score(train, test, train[:200])
    assert exact.value < -5
    assert exact.reason is not None
    assert exact.reason.startswith("every generated row is on one side")


def test_cells_without_generated_or_test_rows_are_left_out() -> None:
    train = np.r_[features(1, 100, 2), features(2, 100, 2) + 50, features(3, 100, 2) - 50]
    test = np.r_[features(4, 40, 2), features(5, 40, 2) + 50]
    fake = np.r_[features(6, 60, 2), features(7, 20, 2) + 50, features(8, 60, 2) - 50]
    found = ct_score(train, test, fake)
    # The second has 20 generated rows, one too few; the third no test row.
    first = ct_score(train[:100], test[:40], fake[:60], cells=1)
    assert found.value == pytest.approx(first.value, rel=1e-9)
    assert found.warning is None


def test_ct_of_one_cell_has_delongs_error_for_the_null() -> None:
    train, test, fake = features(1, 200, 3), features(2, 400, 3), features(3, 300, 3)
    found = ct_score(train, test, fake, cells=1)
    near, far = cdist(test, train).min(axis=1), cdist(fake, train).min(axis=1)
    farther = (far > near[:, None]).astype(float)
    variance = farther.mean(axis=1).var(ddof=1) / 400 + farther.mean(axis=0).var(ddof=1) / 300
    expected = math.sqrt(variance * 12 * 400 * 300 / 701)
    assert found.standard_error == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx(1.0, abs=0.1)


def test_ct_ignores_order_and_common_offset_and_takes_float16() -> None:
    train, test = np.round(features(1, 150, 5) * 2**20) / 2**20, features(2, 90, 5)
    test = np.round(test * 2**20) / 2**20
    fake = np.round(features(3, 80, 5, 0.9) * 2**20) / 2**20
    random = np.random.default_rng(0)
    patients, pairs = np.arange(90) // 3, np.r_[np.arange(60), np.full(20, -1)]
    straight = ct_score(train, test, fake, groups_test=patients, pairs=pairs)
    order, moved = random.permutation(90), random.permutation(80)
    place = np.empty(90, dtype=int)
    place[order] = np.arange(90)
    shuffled = ct_score(
        random.permutation(train),
        test[order],
        fake[moved],
        groups_test=patients[order],
        pairs=np.where(pairs[moved] < 0, -1, place[pairs[moved]]),
    )
    far = ct_score(train + 2.0**20, test + 2.0**20, fake + 2.0**20, cells=1)
    near = ct_score(train, test, fake, cells=1)
    for one, other in ((straight, shuffled), (near, far)):
        for field in ("value", "standard_error", "ci_low", "ci_high"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-9)
    halves = [rows.astype(np.float16) for rows in (train, test, fake)]
    before = [rows.copy() for rows in halves]
    assert ct_score(*halves) == ct_score(*[rows.astype(np.float64) for rows in halves])
    assert all(map(np.array_equal, halves, before))


def test_one_cell_ignores_scale_and_rotation() -> None:
    train, test, fake = features(1, 100, 5), features(2, 60, 5), features(3, 50, 5)
    turn = 1e-3 * ortho_group.rvs(5, random_state=0)
    there = ct_score(train, test, fake, cells=1)
    again = ct_score(train @ turn, test @ turn, fake @ turn, cells=1)
    assert again.value == pytest.approx(there.value, rel=1e-12)
    assert authenticity(train @ turn, fake @ turn) == authenticity(train, fake)


# --- both -----------------------------------------------------------------------------------

DEGENERATE: dict[str, tuple[Array, Array, Array]] = {
    "two rows": (features(1, 2, 5), features(2, 2, 5), features(3, 2, 5)),
    "fewer rows than features": (features(1, 10, 99), features(2, 12, 99), features(3, 8, 99)),
    "rank one": tuple(np.outer(np.arange(1.0, 31) + i / 3, np.ones(4)) for i in range(3)),  # type: ignore[dict-item]
    "a constant column": tuple(np.c_[features(i, 30, 3), np.full(30, 7.0)] for i in range(3)),  # type: ignore[dict-item]
    "all rows equal": (np.full((30, 3), 2.5),) * 3,
    "the same rows": (features(1, 40, 4),) * 3,
    "ten rows copied": tuple(np.tile(features(i, 10, 4), (6, 1)) for i in range(3)),  # type: ignore[dict-item]
    "offset": tuple(features(i, 30, 4) + 1e6 for i in range(3)),  # type: ignore[dict-item]
    "tiny": tuple(features(i, 30, 4, 1e-9) for i in range(3)),  # type: ignore[dict-item]
    "an outlier": (features(1, 30, 3), features(2, 30, 3), np.r_[features(3, 29, 3), [[1e6] * 3]]),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_gives_a_number(case: str) -> None:
    train, test, fake = DEGENERATE[case]
    for halves in (None, [i // 2 for i in range(len(fake))]):
        check(authenticity(train, fake, groups_fake=halves))
        check(ct_score(train, test, fake, groups_fake=halves))


@settings(max_examples=50, deadline=None)
@given(
    sides=arrays(
        np.float64,
        st.tuples(st.just(3), st.integers(2, 12), st.integers(1, 4)),
        elements=st.floats(-100, 100, width=32),
    ),
    seed=st.integers(0, 99),
)
def test_any_finite_input_gives_a_number_that_ignores_order(sides: Array, seed: int) -> None:
    random = np.random.default_rng(seed)
    train, test, fake = sides
    share, score = authenticity(train, fake), ct_score(train, test, fake)
    check(share)
    check(score)
    assert 0 <= share.value <= 1
    mixed = [random.permutation(rows) for rows in sides]
    assert authenticity(mixed[0], mixed[2]).value == share.value
    assert ct_score(*mixed).value == pytest.approx(score.value, rel=1e-9, abs=1e-9)
    assert np.array_equal(train[order_by_content(train)], mixed[0][order_by_content(mixed[0])])


def test_bad_input_is_named() -> None:
    good = features(1, 20, 3)
    bad = good.copy()
    bad[7, 1] = np.inf
    calls: dict[str, Callable[[Array], Estimate]] = {
        "train": lambda rows: ct_score(rows, good, good),
        "test": lambda rows: ct_score(good, rows, good),
        "fake": lambda rows: ct_score(good, good, rows),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"{name}: 1 row\(s\) hold NaN or infinity, first"):
            call(bad)
        with pytest.raises(ValueError, match=f"{name}: at least 1"):
            call(good[:0])
    for name in ("test", "fake"):
        with pytest.raises(ValueError, match=f"train has 3 features a row and {name} 2"):
            calls[name](good[:, :2])
    with pytest.raises(ValueError, match="train: at least 2"):
        authenticity(good[:1], good)
    with pytest.raises(ValueError, match=r"fake: 1 row\(s\) hold NaN"):
        authenticity(good, bad)
    with pytest.raises(ValueError, match="train has 3 features a row and fake 2"):
        authenticity(good, good[:, :2])
    with pytest.raises(ValueError, match="one label for each of 20 rows"):
        authenticity(good, good, groups_train=["a"])
    for number in (0, 1.5, True):
        with pytest.raises(ValueError, match="cells must be a whole number"):
            ct_score(good, good, good, cells=number)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="components must be a whole number"):
            ct_score(good, good, good, components=number)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pairs: real rows are numbered 0 to 19"):
        ct_score(good, good, good, pairs=np.full(20, 20))


@pytest.mark.slow
@pytest.mark.parametrize("design", ["apart", "copies", "patients", "paired"])
def test_intervals_hold_the_expectation(design: str) -> None:
    repeats, random, d = 200, np.random.default_rng(5), 6
    train = features(9, 300, d)
    n = 160 if design == "patients" else 60

    def clustered(share: float, patients: NDArray[np.int64]) -> Array:
        common = random.normal(size=(n, d))[patients]
        return np.sqrt(share) * common + np.sqrt(1 - share) * random.normal(size=(n, d))

    found: list[list[Estimate]] = [[], []]
    for _ in range(repeats):
        own = np.arange(n) // 4 if design == "patients" else np.arange(n)
        share = 0.6 if design == "patients" else 0.0
        test, fake = clustered(share, own), clustered(share, own)
        pairs: bool | None = None
        if design == "paired":
            common, pairs = random.normal(size=(n, d)), True
            test, fake = (0.8 * common + 0.6 * rows for rows in (test, fake))
        if design == "copies":
            copied = random.random(n) < 0.5
            fake[copied] = train[random.integers(0, 300, copied.sum())] + 0.2 * fake[copied]
        labels = {"groups_test": [f"t{i}" for i in own], "groups_fake": [f"f{i}" for i in own]}
        found[0].append(ct_score(train, test, fake, cells=2, pairs=pairs, **labels))
        found[1].append(authenticity(train, fake, groups_fake=own))
    for estimates in found:
        check_intervals(estimates)
