"""Membership attacks: closed forms, models with a known answer, populations that differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chexgenbench.errors import UserError
from chexgenbench.statistics import Estimate, Undefined
from chexgenbench.statistics.attacks import (
    ATTACKS,
    Pool,
    Prompted,
    balancing_weights,
    membership_attacks,
    membership_scores,
    stand_ins,
)
from chexgenbench.types import FINDINGS, Context, ImageSet, NotApplicable, TaskScore
from chexgenbench_plugins.metrics.membership import Membership, MembershipParameters
from image_sets import image_set, prompt_table, task

Array = NDArray[np.float64]


def names(prefix: str, n: int, each: int = 1) -> list[str]:
    return [f"{prefix}{i // each}" for i in range(n)]


def side(name: str, real: Array, images: Array, *, repeats: int = 1, each: int = 1) -> Prompted:
    n = len(real)
    of = np.arange(n * repeats) // repeats
    return Prompted.checked(name, real, names(name, n, each), np.zeros((n, 1)), images, of)


def honest(
    seed: int, n: int = 300, d: int = 8, repeats: int = 2, each: int = 2, shift: float = 0.0
) -> tuple[Prompted, Prompted, Pool]:
    """A model that draws from the training population, given the label of the prompt."""
    random = np.random.default_rng(seed)
    effect = np.random.default_rng(1).normal(size=(3, d))

    def draw(labels: Array, name: str, off: float) -> tuple[Array, list[str]]:
        patients = random.normal(size=(len(labels), d))[np.arange(len(labels)) // each]
        noise = 0.7 * patients + 0.7 * random.normal(size=(len(labels), d))
        return labels @ effect + noise + off, names(name, len(labels), each)

    sides, pool = [], None
    for name, off in (("member", 0.0), ("other", shift)):
        labels = (random.random((n, 3)) < 0.3).astype(float)
        real, who = draw(labels, name, off)
        of = np.arange(n * repeats) // repeats
        made = labels[of] @ effect + random.normal(size=(n * repeats, d))
        sides.append(Prompted.checked(name, real, who, labels, made, of))
        if pool is None:
            more = (random.random((n, 3)) < 0.3).astype(float)
            others, whose = draw(more, "unprompted", 0.0)
            pool = Pool.checked(
                np.concatenate([real, others]), who + whose, np.concatenate([labels, more])
            )
    assert pool is not None
    return sides[0], sides[1], pool


@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_distance_attack_has_the_known_auc(spread: float) -> None:
    """In the plane a member's squared distance is exponential with mean 2 spread^2, a non-member's
    with mean 4: AUC 2 / (2 + spread^2), and TPR 1 - (1 - f)^(2 / spread^2) at FPR f."""
    random = np.random.default_rng(0)
    n = 1500
    real = random.normal(size=(2 * n, 2))
    made = np.concatenate(
        [real[:n] + spread * random.normal(size=(n, 2)), random.normal(size=(n, 2))]
    )
    made[n:] += real[n:] - random.normal(size=(n, 2)) - made[n:] + random.normal(size=(n, 2))
    members, others = side("a", real[:n], made[:n]), side("b", real[n:], made[n:])
    pool = Pool.checked(random.normal(size=(200, 2)), names("c", 200), np.zeros((200, 1)))
    found = membership_attacks(members, others, pool, rates=(0.1,))["distance"]
    assert found.auc.ci_low < 2 / (2 + spread**2) < found.auc.ci_high  # type: ignore[operator]
    tpr = found.tpr[0.1]
    assert isinstance(tpr, Estimate)
    assert tpr.ci_low < 1 - 0.9 ** (2 / spread**2) < tpr.ci_high  # type: ignore[operator]


def test_density_ratio_finds_where_the_model_puts_mass() -> None:
    """The ratio of two normal densities in one dimension, known up to the estimate's noise."""
    random = np.random.default_rng(1)
    members = side("a", random.normal(size=(2000, 1)), random.normal(1.0, 0.5, size=(2000, 1)))
    others = side("b", random.normal(size=(2000, 1)), random.normal(1.0, 0.5, size=(2000, 1)))
    score = membership_scores(members, others, neighbours=50)["domias"][0]
    at = members.real[:, 0]
    exact = -((at - 1) ** 2) / 0.5 + at**2 / 2 + np.log(2)
    near = np.abs(at - 1) < 1  # where the model has its mass
    assert near.sum() > 500
    assert score[near] == pytest.approx(exact[near], abs=1.0)
    assert np.abs(score[near] - exact[near]).mean() < 0.25


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_honest_model_is_not_accused(attack: str) -> None:
    """Over 40 models: the mean excess is none, and intervals leave 0 out as often as 5 in 100."""
    excesses = [
        membership_attacks(*honest(seed, n=120), rates=())[attack].excess_auc for seed in range(40)
    ]
    values = np.array([one.value for one in excesses])
    assert abs(values.mean()) < 3 * values.std(ddof=1) / np.sqrt(40)
    missed = sum(not one.ci_low <= 0.0 <= one.ci_high for one in excesses)  # type: ignore[operator]
    assert missed <= 7  # more has a chance of 1 in 300


def test_another_population_shows_in_the_control_and_not_in_the_excess() -> None:
    """Defect of an attack without control: an honest model looks guilty."""
    members, others, pool = honest(5, shift=1.0)
    for name, found in membership_attacks(members, others, pool, rates=()).items():
        assert found.auc.ci_low > 0.6, name  # type: ignore[operator]
        assert found.control_auc.value > 0.6, name
        assert abs(found.excess_auc.value) < 0.08, name


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_copies_are_found(share: float) -> None:
    members, others, pool = honest(6)
    copied = np.random.default_rng(0).random(len(members.real)) < share
    images = np.where(copied[members.of, None], members.real[members.of], members.images)
    found = membership_attacks(replace(members, images=images), others, pool, rates=(0.1,))
    for name in ATTACKS:
        assert found[name].excess_auc.ci_low > 0, name  # type: ignore[operator]
        if share == 1.0:
            assert found[name].auc.value > 0.99, name
    assert found["distance"].auc.value == pytest.approx(
        0.5 + share / 2, abs=0.05
    )  # a copy beats every non-member, others one in two
    if share == 1.0:
        assert found["distance"].auc.value == 1.0
        assert found["distance"].auc.ci_low is None
        assert found["distance"].tpr[0.1].value == 1.0  # type: ignore[union-attr]


def test_scores_by_hand() -> None:
    """Two records a side on a line; ``a0`` and ``a1`` are of one patient."""
    members = Prompted.checked(
        "a", [[0.0], [10.0]], ["p", "p"], np.zeros((2, 1)), [[3.0], [-1.0], [0.5]], [0, 0, 1]
    )
    groups = [f"q{i}" for i in range(8)]  # some in each half
    real = np.linspace(20, 90, 8)[:, None]
    others = Prompted.checked("b", real, groups, np.zeros((8, 1)), real + 2, range(8))
    scores = membership_scores(members, others)
    assert scores["distance"][0].tolist() == [-1.0, -9.5]
    # The image at 0.5 answers another prompt of the same patient; 12 is far.
    assert scores["nearest"][0].tolist() == [-1.0, -9.5]
    assert scores["nearest"][1].tolist() == [-2.0] * 8
    stranger = replace(members, groups=np.array(["p", "r"]))
    assert membership_scores(stranger, others)["nearest"][0].tolist() == [-0.5, -7.0]


def test_stand_ins_have_the_labels_and_another_patient() -> None:
    members, _, pool = honest(7, n=60, repeats=3)
    stood = stand_ins(members, pool)
    place = {tuple(row): i for i, row in enumerate(pool.real.tolist())}
    rows = np.array([place[tuple(row)] for row in stood.images.tolist()])
    assert np.array_equal(np.bincount(stood.of), np.full(60, 3))
    assert not (pool.groups[rows] == members.groups[stood.of]).any()
    differing = np.abs(pool.labels[rows] - members.labels[stood.of]).sum(axis=1)
    for record in range(60):
        apart = np.abs(pool.labels - members.labels[record]).sum(axis=1)
        apart = np.sort(apart[pool.groups != members.groups[record]])
        assert sorted(differing[stood.of == record]) == apart[:3].tolist()


def test_weights_give_the_means_of_the_members() -> None:
    random = np.random.default_rng(2)
    own, wanted = (random.random((400, 4)) < 0.3) * 1.0, (random.random((900, 4)) < 0.5) * 1.0
    own[:, 3] = 0.0  # cannot be balanced
    weights = balancing_weights(own, wanted)
    assert weights.mean() == pytest.approx(1.0)
    means = np.average(own, axis=0, weights=weights)
    assert means[:3] == pytest.approx(wanted.mean(axis=0)[:3], abs=1e-3)
    # One label with two values: the ratio of its shares.
    alone = balancing_weights(own[:, :1], wanted[:, :1])
    ratio = wanted[:, 0].mean() / own[:, 0].mean()
    assert alone[own[:, 0] == 1.0] == pytest.approx(ratio, rel=1e-3)


def test_a_different_mix_of_labels_is_no_membership() -> None:
    """Label 0 makes images twice as spread out, so that own images lie farther off."""
    random = np.random.default_rng(3)

    def draw(name: str, share: float) -> Prompted:
        n = 500
        labels = (random.random((n, 1)) < share) * 1.0
        spread = 1 + 2 * labels
        real, made = (spread * random.normal(size=(n, 4)) for _ in range(2))
        return Prompted.checked(name, real, names(name, n), labels, made, range(n))

    members, others = draw("a", 0.2), draw("b", 0.5)
    pool = Pool.checked(members.real, members.groups, members.labels)
    found = membership_attacks(members, others, pool, rates=())["distance"]
    assert abs(found.auc.value - 0.5) < 0.06
    high, low = membership_scores(members, others)["distance"]
    unweighted = (high[:, None] > low).mean()
    assert unweighted > 0.6


def test_order_of_rows_plays_no_part() -> None:
    members, others, pool = honest(8, n=80)
    random = np.random.default_rng(0)

    def shuffled(one: Prompted) -> Prompted:
        order, images = random.permutation(len(one.real)), random.permutation(len(one.images))
        return Prompted(
            one.real[order],
            one.groups[order],
            one.labels[order],
            one.images[images],
            np.argsort(order)[one.of[images]],
        )

    at = random.permutation(len(pool.real))
    again = Pool(pool.real[at], pool.groups[at], pool.labels[at])
    one = membership_attacks(members, others, pool, rates=(0.5,))
    two = membership_attacks(shuffled(members), shuffled(others), again, rates=(0.5,))
    for name in ATTACKS:
        assert two[name].auc.value == pytest.approx(one[name].auc.value, abs=1e-12)
        assert two[name].control_auc.value == pytest.approx(one[name].control_auc.value, abs=1e-12)
        assert two[name].excess_auc.standard_error == pytest.approx(
            one[name].excess_auc.standard_error, rel=1e-9
        )


def test_blocks_play_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    members, others, pool = honest(9, n=60)
    whole = membership_scores(members, others, pool=pool)
    monkeypatch.setattr("chexgenbench.statistics.arrays.BLOCK_BYTES", 20_000)
    for name, sides in membership_scores(members, others, pool=pool).items():
        for found, expected in zip(sides, whole[name], strict=True):
            assert found == pytest.approx(expected, rel=1e-9)


def test_what_cannot_be_attacked() -> None:
    members, others, pool = honest(10, n=60)
    with pytest.raises(Undefined, match="are among the members and the non-members"):
        membership_attacks(members, replace(others, groups=members.groups), pool)
    with pytest.raises(Undefined, match="too few held-out patients"):
        membership_attacks(members, replace(others, groups=np.full(60, "one")), pool)
    alone = Pool(pool.real[:2], pool.groups[:2], pool.labels[:2])
    with pytest.raises(Undefined, match="no other patient"):
        stand_ins(members, alone)
    with pytest.raises(ValueError, match="NaN or infinity"):
        side("a", np.full((3, 2), np.nan), np.ones((3, 2)))
    with pytest.raises(ValueError, match="every real row needs an image"):
        Prompted.checked("a", np.ones((3, 2)), list("abc"), np.ones((3, 1)), [[1.0, 2.0]], [0])


# --- the plugin -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms() -> dict[str, Any]:
    """80 rows a side of the demo split with features, 40 training rows more, and the images of
    `oracle` for the first 80 of each side, two a prompt."""
    import torch
    from PIL import Image

    from chexgenbench_plugins.data import data_folder
    from chexgenbench_plugins.encoders.phantom_clip import PhantomClip, PhantomClipParameters
    from chexgenbench_plugins.phantom import oracle_image
    from chexgenbench_plugins.phantom.split import read_labels, read_rows, render_row

    context = Context(home=Path(), cache=Path())
    encoder = PhantomClip(PhantomClipParameters(), context)

    def encode(images: list[NDArray[np.uint8]]) -> Array:
        found = []
        with torch.inference_mode():
            for at in range(0, len(images), 64):
                batch = [encoder.preprocess(Image.fromarray(x)) for x in images[at : at + 64]]
                found.append(encoder.encode(torch.stack(batch))["features"])
        return np.concatenate(found)

    kept: dict[str, Any] = {}
    for name, file, count in (("training", "TRAIN", 120), ("test", "TEST", 80)):
        listed = read_rows(data_folder("demo_split") / f"DEMO_ANNOTATIONS_{file}.csv")
        rows = list({row["annotated_prompt"]: row for row in listed}.values())
        order = np.random.default_rng(0).permutation(len(rows))[:count]
        rows = [rows[i] for i in order]
        labels = [read_labels(row["chexpert_labels"]) for row in rows]
        table = prompt_table(
            count,
            side=name,
            patients=[row["patientID"] for row in rows],
            labels=np.array([[np.nan if x[f] is None else x[f] for f in FINDINGS] for x in labels]),
        )
        made = [
            oracle_image(row["annotated_prompt"], one, 2 * i + repeat)
            for i, (row, one) in enumerate(zip(rows[:80], labels[:80], strict=True))
            for repeat in range(2)
        ]
        kept[name] = table, encode([render_row(row) for row in rows]), encode(made)
    return kept


def sets(
    phantoms: dict[str, Any], made: Array | None = None, others: Array | None = None
) -> dict[str, ImageSet]:
    (training, real, oracle), (test, held_out, oracle_test) = phantoms["training"], phantoms["test"]

    def images(side: Any, table: Any, features: Array) -> ImageSet:
        return image_set(features=features, side=side, source="model", repeats=2, table=table)

    return {
        "members": images(
            "training", training.take(np.arange(80)), oracle if made is None else made
        ),
        "held_out": images("test", test, oracle_test if others is None else others),
        "training_real": image_set(features=real, side="training", table=training),
        "held_out_real": image_set(features=held_out, side="test", table=test),
    }


def run(
    which: dict[str, ImageSet], folder: Path, **parameters: Any
) -> tuple[dict[str, TaskScore], list[str]]:
    metric = Membership(MembershipParameters(**parameters), Context(home=folder, cache=folder))
    result = metric.run(task(which, folder))
    return {f"{one.name}_{one.variant}": one for one in result.scores}, list(result.notes)


def repeated(phantoms: dict[str, Any]) -> tuple[Array, Array]:
    """What `memorizer` answers: the training image itself, or one with the nearest labels."""
    training, real, _ = phantoms["training"]
    test = phantoms["test"][0]
    known, wanted = (
        np.nan_to_num(one.table[list(FINDINGS)].to_numpy(float)) for one in (training, test)
    )
    nearest = np.abs(wanted[:, None] - known).sum(axis=2).argmin(axis=1)
    return real[:80].repeat(2, axis=0), real[nearest].repeat(2, axis=0)


@pytest.mark.slow
def test_oracle_is_clear_and_memorizer_is_not(phantoms: dict[str, Any], tmp_path: Path) -> None:
    clear, notes = run(sets(phantoms), tmp_path)
    assert not notes
    guilty, _ = run(sets(phantoms, *repeated(phantoms)), tmp_path)
    for name in ATTACKS:
        one = clear[f"membership_auc_{name}"]
        assert isinstance(one.estimate, Estimate)
        assert one.excess is not None
        assert one.estimate.ci_low <= 0.5 <= one.estimate.ci_high  # type: ignore[operator]
        assert one.excess.ci_low <= 0.0 <= one.excess.ci_high  # type: ignore[operator]
        assert (one.n_real, one.n_fake) == (160, 320)
        other = guilty[f"membership_auc_{name}"]
        assert isinstance(other.estimate, Estimate)
        assert other.excess is not None
        assert other.estimate.value > 0.95
        assert other.excess.ci_low > 0.3  # type: ignore[operator]
    # 80 held-out rows are too few for a false-positive rate of 1 %, and it says so.
    rate = clear["membership_tpr_distance_at_1pct"]
    assert isinstance(rate.estimate, str)
    assert "needs 1000 independent negatives" in rate.estimate
    assert (rate.control, rate.excess) == (None, None)
    assert "membership_tpr_domias_at_0_1pct" in clear


def test_half_a_memorizer_lies_between(phantoms: dict[str, Any], tmp_path: Path) -> None:
    copies, nearest = repeated(phantoms)
    oracle, oracle_test = phantoms["training"][2], phantoms["test"][2]
    order = np.random.default_rng(0).permutation(80)
    values: dict[str, list[float]] = {name: [] for name in ATTACKS}
    for share in (0, 25, 55, 80):
        chosen = np.isin(np.arange(80), order[:share]).repeat(2)[:, None]
        made = np.where(chosen, copies, oracle), np.where(chosen, nearest, oracle_test)
        found, _ = run(sets(phantoms, *made), tmp_path)
        for name in ATTACKS:
            values[name].append(found[f"membership_auc_{name}"].estimate.value)  # type: ignore[union-attr]
    for name, rising in values.items():
        assert rising == sorted(rising), name


def test_held_out_images_of_training_patients_are_left_out(
    phantoms: dict[str, Any], tmp_path: Path
) -> None:
    which = sets(phantoms)
    test = phantoms["test"][0]
    training = phantoms["training"][0]
    table = test.table.copy()
    table.loc[:9, "patient_id"] = training.table["patient_id"].iloc[0]
    leaky = replace(test, table=table)
    which["held_out"] = replace(which["held_out"], prompts=leaky)
    which["held_out_real"] = replace(which["held_out_real"], prompts=leaky)
    found, notes = run(which, tmp_path)
    # The platform puts the metric's name in front.
    assert notes[0].startswith("10 held-out images show patients of the training side")
    assert found["membership_auc_distance"].n_real == 150


def test_bad_input(phantoms: dict[str, Any], tmp_path: Path) -> None:
    which = sets(phantoms)
    broken = phantoms["training"][2].copy()
    broken[3] = np.nan
    with pytest.raises(UserError, match=r"'membership' on 'by-hand': members: images: 1 row\(s\)"):
        run(sets(phantoms, broken), tmp_path)
    few = {**which, "members": which["members"].take(np.arange(60))}
    with pytest.raises(NotApplicable, match="30 training prompts have a readable real image"):
        run(few, tmp_path)


def test_check_refuses_before_anything_is_made(tmp_path: Path) -> None:
    context = Context(home=tmp_path, cache=tmp_path)
    parameters = MembershipParameters(prompts=100)

    def tables(members: Any, held_out: Any) -> dict[str, Any]:
        return {"members": members, "held_out": held_out}

    full = prompt_table(100, side="training"), prompt_table(100)
    assert not Membership.check(parameters, context, tables(*full))
    with pytest.raises(UserError, match="at least 50 training prompts and gets 49"):
        Membership.check(parameters, context, tables(prompt_table(49), full[1]))
    nobody = prompt_table(100, patients=[None] * 100)
    with pytest.raises(UserError, match=r"no test row of .* has one") as refused:
        Membership.check(parameters, context, tables(full[0], nobody))
    assert "without_patients=true" in str(refused.value.hint)
    agreed = MembershipParameters(prompts=100, without_patients=True)
    assert not Membership.check(agreed, context, tables(full[0], nobody))
    some = prompt_table(60, patients=["a", *[None] * 59])
    remarks = Membership.check(parameters, context, tables(full[0], some))
    assert any(one.startswith("100 test prompts were asked for and 60") for one in remarks)
    assert any(one.startswith("59 of 60 test rows have no patient") for one in remarks)
