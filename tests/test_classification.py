"""Utility by classification: regimes, labels, training that survives a kill, scores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torchmetrics.classification import MultilabelAUROC

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.registry import load_registry
from chexgenbench.statistics import Estimate
from chexgenbench.statistics.classification import by_column, roc_auc
from chexgenbench.types import FINDINGS, Context, ImageSet, NotApplicable, Task, TaskScore
from chexgenbench_plugins.classification.data import (
    augmented,
    by_id,
    check_tables,
    decoded,
    targets,
    untestable,
)
from chexgenbench_plugins.classification.networks import build, weight_file
from chexgenbench_plugins.classification.regimes import (
    REAL,
    SYNTHETIC,
    compose,
    held_out,
    repeats_of,
    variants,
)
from chexgenbench_plugins.classification.scores import (
    ONE_SEED,
    Predictions,
    best_thresholds,
    mean_difference,
    mean_score,
    utility_scores,
)
from chexgenbench_plugins.classification.training import _loss
from chexgenbench_plugins.metrics.classification import Classification, ClassificationParameters
from image_sets import image_set, prompt_table, task

PLUGIN = load_registry().metrics["classification"]
CARDIOMEGALY, EDEMA = FINDINGS.index("Cardiomegaly"), FINDINGS.index("Edema")
TINY = ClassificationParameters(
    backbone="mobilenetv3_small_050",
    size=32,
    epochs=2,
    batch_size=16,
    learning_rate=1e-3,
    seeds=1,
    regimes=("real", "synthetic"),
)


def labels_of(n: int, seed: int) -> NDArray[np.float64]:
    """Cardiomegaly in half of the rows, edema in a third and uncertain in a third."""
    rng = np.random.default_rng(seed)
    labels = np.full((n, len(FINDINGS)), np.nan)
    labels[:, CARDIOMEGALY] = rng.permutation(np.arange(n) % 2)
    labels[:, EDEMA] = rng.permutation(np.arange(n) % 3 - 1.0)
    return labels


def pictures(labels: NDArray[np.float64], seed: int) -> list[NDArray[np.uint8]]:
    """Noise with a bright square at the place of each finding that is there."""
    rng = np.random.default_rng(seed)
    found = rng.normal(100, 20, (len(labels), 40, 40))
    found[labels[:, CARDIOMEGALY] == 1, 8:20, 8:20] += 90
    found[labels[:, EDEMA] == 1, 24:36, 22:36] += 90
    return list(found.clip(0, 255).astype(np.uint8))


def study_sets(
    folder: Path, n: int = 60, tests: int = 40, repeats: int = 1, model_seed: int = 3
) -> dict[str, ImageSet]:
    """Training rows, two a patient, an image of each from a model, and test rows."""
    labels, held = labels_of(n, 0), labels_of(tests, 1)
    patients = [f"p{i // 2}" for i in range(n)]
    real = image_set(
        images=pictures(labels, 2), folder=folder, side="training", patients=patients, labels=labels
    )
    made = image_set(
        images=pictures(np.repeat(labels, repeats, axis=0), model_seed),
        folder=folder / str(model_seed),
        side="training",
        source="model",
        repeats=repeats,
        table=real.prompts,
    )
    owners = [f"t{i // 2}" for i in range(tests)]
    test = image_set(images=pictures(held, 4), folder=folder, patients=owners, labels=held)
    return {"real": real, "synthetic": made, "test": test}


def run(
    sets: dict[str, ImageSet], folder: Path, parameters: ClassificationParameters = TINY
) -> list[TaskScore]:
    context = Context(home=folder, cache=folder)
    return list(Classification(parameters, context).run(task(sets, folder)).scores)


def values(scores: Sequence[TaskScore]) -> dict[tuple[str, str, str], float | str]:
    return {
        (s.name, s.variant, s.subset): (
            s.estimate.value if isinstance(s.estimate, Estimate) else s.estimate
        )
        for s in scores
    }


# --- labels -----------------------------------------------------------------------------------


def test_the_policy_says_what_an_uncertain_label_teaches() -> None:
    labels = np.array([[1.0, 0.0, -1.0, np.nan]])
    for policy, wanted in (("ignore", np.nan), ("positive", 1.0), ("negative", 0.0)):
        found = targets(labels, policy)
        np.testing.assert_array_equal(found, [[1.0, 0.0, wanted, 0.0]])


def test_15_an_uncertain_label_is_not_silently_negative() -> None:
    """Defect 15: by default the loss does not depend on what is said of an uncertain finding."""

    def check(goal_of: object) -> None:
        goals = torch.from_numpy(goal_of(np.array([[1.0, -1.0]])))
        losses = [_loss(torch.tensor([[0.3, logit]]), goals) for logit in (-4.0, 4.0)]
        assert losses[0] == losses[1] == pytest.approx(float(np.log1p(np.exp(-0.3))))

    def faulty(labels: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.where(labels == -1, 0, np.nan_to_num(labels)).astype(np.float32)

    check(lambda labels: targets(labels, ClassificationParameters().uncertain))
    with pytest.raises(AssertionError):
        check(faulty)


def test_the_loss_is_torchs_where_all_is_known() -> None:
    logits, goals = torch.randn(5, 14), torch.rand(5, 14).round()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, goals)
    torch.testing.assert_close(_loss(logits, goals), wanted)


# --- pictures ---------------------------------------------------------------------------------


def test_14_no_image_is_mirrored() -> None:
    """Defect 14: whatever is drawn, what is on the left stays there."""
    image = torch.full((1, 1, 64, 64), -1.0)
    image[:, :, 24:40, 8:20] = 1.0
    draws = np.random.default_rng(0).uniform(-1, 1, (200, 6)).astype(np.float32)
    # The ends of each range too.
    draws = np.concatenate([draws, np.eye(6), -np.eye(6), np.ones((1, 6))]).astype(np.float32)

    def check(alter: object) -> None:
        altered = alter(image.repeat(len(draws), 1, 1, 1))
        left, right = altered[..., :32].mean((1, 2, 3)), altered[..., 32:].mean((1, 2, 3))
        assert (left > right).all()
        assert len({tuple(one.flatten().tolist()) for one in altered}) > 100  # they do differ

    def faulty(batch: torch.Tensor) -> torch.Tensor:
        flip = torch.from_numpy(draws[:, 0] > 0)[:, None, None, None]
        return torch.where(flip, batch.flip(-1), augmented(batch, draws))

    check(lambda batch: augmented(batch, draws))
    with pytest.raises(AssertionError):
        check(faulty)


def test_without_draws_nothing_changes() -> None:
    batch = torch.randn(3, 1, 33, 33)
    found = augmented(batch, np.zeros((3, 6), np.float32))
    torch.testing.assert_close(found, batch, atol=1e-4, rtol=0)


def test_images_are_decoded_once_in_proportion(tmp_path: Path) -> None:
    wide = np.zeros((40, 80), np.uint8)
    wide[:, 20:60] = 200  # the centre, which is all that stays
    rgb = np.repeat(np.full((50, 50, 1), 77, np.uint8), 3, axis=2)
    images = image_set(images=[wide, rgb], folder=tmp_path)
    work = task({}, tmp_path)
    found = decoded(work, images, 32, "test")
    assert found.shape == (2, 32, 32)
    assert isinstance(found, np.memmap)
    assert (found[0][:, 2:-2] == 200).all()
    assert (found[1] == 77).all()
    for path in images.paths:
        path.unlink()
    np.testing.assert_array_equal(decoded(work, images, 32, "test"), found)


# --- regimes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageSet, ImageSet]:
    sets = study_sets(tmp_path_factory.mktemp("sides"), n=60, repeats=2)
    return by_id(sets["real"]), by_id(sets["synthetic"])


def test_regimes_have_the_sizes_that_they_say(sides: tuple[ImageSet, ImageSet]) -> None:
    real, made = sides
    held = held_out(real, 0.2, 0)
    assert len(held) == 6  # of 30 patients, two images each
    wanted = {  # training and validation images, real and synthetic
        "real": ((48, 0), (12, 0)),
        "synthetic": ((0, 48), (0, 12)),
        "augmented": ((48, 48), (12, 0)),
        "pretrained": ((48, 0), (12, 0)),
    }
    for name, counts in wanted.items():
        part = compose(name, real, made, held, 0)
        for rows, count in zip((part.train, part.validation), counts, strict=True):
            assert tuple((rows[:, 0] == source).sum() for source in (REAL, SYNTHETIC)) == count
    assert compose("pretrained", real, made, held, 0).after == "synthetic"


def test_mixed_replaces_half_of_the_prompts(sides: tuple[ImageSet, ImageSet]) -> None:
    real, made = sides
    part = compose("mixed", real, made, held_out(real, 0.2, 0), 0)
    rows = np.concatenate([part.train, part.validation])
    prompts = [(real, made)[source].rows[at] for source, at in part.train.tolist()]
    assert len(set(prompts)) == len(prompts) == 48  # each prompt once: the total of `real`
    assert part.count(REAL) == 30
    assert all(made.repeats[at] == 0 for source, at in rows.tolist() if source == SYNTHETIC)


def test_a_larger_ratio_keeps_the_images_of_a_smaller_one(
    sides: tuple[ImageSet, ImageSet],
) -> None:
    real, made = sides
    nobody = np.array(["nobody"])
    with pytest.raises(NotApplicable, match="too few"):
        compose("ratio-1", real, made, nobody, 0)
    held = held_out(real, 0.2, 0)
    chosen = {
        ratio: {
            at
            for source, at in compose(f"ratio-{ratio:g}", real, made, held, 0).train.tolist()
            if source == SYNTHETIC
        }
        for ratio in (0.25, 0.5, 1.0, 2.0)
    }
    assert chosen[0.25] < chosen[0.5] < chosen[1.0] < chosen[2.0]
    assert len(chosen[2.0]) == 96
    # All first images before any second one: at 1 it is the regime `augmented`.
    whole = compose("augmented", real, made, held, 0)
    np.testing.assert_array_equal(compose("ratio-1", real, made, held, 0).train, whole.train)
    assert variants(("real", "real"), (0.25, 2.0)) == ["real", "ratio-0.25", "ratio-2"]
    assert [repeats_of(each) for each in ((), (0.5,), (1.0, 1.5))] == [1, 1, 2]


def test_14_no_patient_is_on_both_sides(sides: tuple[ImageSet, ImageSet]) -> None:
    """Defect 14: training and validation are split by patient, synthetic images with them."""
    real, made = sides
    owners = real.patients, made.patients

    def check(split: object) -> None:
        for name in ("real", "synthetic", "mixed", "augmented", "ratio-2"):
            train, validation = split(name)
            assert len(validation)
            mine, theirs = (
                {owners[source][at] for source, at in rows.tolist()} for rows in (train, validation)
            )
            assert not mine & theirs

    def ours(name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        part = compose(name, real, made, held_out(real, 0.2, 0), 0)
        return part.train, part.validation

    def by_image(name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows = np.concatenate(ours(name))
        rows = rows[np.random.default_rng(42).permutation(len(rows))]
        return rows[10:], rows[:10]

    check(ours)
    with pytest.raises(AssertionError):
        check(by_image)


def test_validation_patients_depend_on_seed_and_names_alone(
    sides: tuple[ImageSet, ImageSet],
) -> None:
    real, made = sides
    first = held_out(real, 0.3, 5)
    assert first.tolist() == held_out(made, 0.3, 5).tolist()
    assert first.tolist() == held_out(real.take(np.arange(40)), 0.3, 5).tolist()
    assert first.tolist() != held_out(real, 0.3, 6).tolist()
    with pytest.raises(NotApplicable, match="two patients"):
        held_out(image_set(features=np.ones((2, 1)), patients=["a", "a"]), 0.5, 0)


# --- scores -----------------------------------------------------------------------------------


def forecasts(seed: int, test: ImageSet, skill: float = 1.5) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    truth = np.nan_to_num(test.labels).clip(min=0)
    found = 1 / (1 + np.exp(1.0 - skill * truth - rng.normal(size=truth.shape)))
    return found.astype(np.float32)


def features_set(labels: NDArray[np.float64]) -> ImageSet:
    patients = [f"t{i // 2}" for i in range(len(labels))]
    return image_set(features=np.ones((len(labels), 1)), patients=patients, labels=labels)


@pytest.fixture(scope="module")
def test_set() -> ImageSet:
    labels = (np.random.default_rng(9).random((200, 14)) < 0.3).astype(float)
    labels[:40, EDEMA] = -1.0
    labels[:, 5] = 0.0  # a finding that nobody has
    labels[0, 8], labels[1:, 8] = 1.0, 0.0  # and one that one image has
    return features_set(labels)


def test_scores_are_those_of_reference_implementations(test_set: ImageSet) -> None:
    chance = np.stack([forecasts(seed, test_set) for seed in (1, 2)])
    cuts = np.full((2, 14), 0.4)
    found = values(
        utility_scores(
            test_set,
            {"real": Predictions(probabilities=chance, thresholds=cuts, n_real=1, n_fake=0)},
        )
    )
    tested = [i for i in range(14) if i not in (5, 8)]
    single: dict[str, list[float]] = {"auroc": [], "auprc": [], "f1": []}
    for column in tested:
        known = test_set.labels[:, column] >= 0
        truth = test_set.labels[known, column]
        parts = [each[known, column] for each in chance]
        wanted = {
            "auroc": np.mean([roc_auc_score(truth, each) for each in parts]),
            "auprc": np.mean([average_precision_score(truth, each) for each in parts]),
            "f1": np.mean([f1_score(truth, each >= 0.4) for each in parts]),
        }
        for name, value in wanted.items():
            assert found[name, "real", FINDINGS[column]] == pytest.approx(value, abs=1e-12)
            single[name].append(float(value))
    for name, each in single.items():
        assert found[name, "real", "macro"] == pytest.approx(np.mean(each), abs=1e-12)
    # Micro F1 counts over all known entries of the findings that can be tested.
    known = test_set.labels[:, tested] >= 0
    micro = [
        f1_score(test_set.labels[:, tested][known], each[:, tested][known] >= 0.4)
        for each in chance
    ]
    assert found["f1", "real", "overall"] == pytest.approx(np.mean(micro), abs=1e-12)
    # And torchmetrics agrees on the columns without uncertain labels.
    plain = [i for i in tested if i != EDEMA]
    area = MultilabelAUROC(len(plain), average=None)
    theirs = area(
        torch.from_numpy(chance[0][:, plain]), torch.from_numpy(test_set.labels[:, plain]).long()
    )
    alone = values(
        utility_scores(
            test_set,
            {"x": Predictions(probabilities=chance[:1], thresholds=None, n_real=1, n_fake=0)},
        )
    )
    mine = [alone["auroc", "x", FINDINGS[i]] for i in plain]
    np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-6)


def test_13_a_finding_that_cannot_be_tested_shifts_no_name(test_set: ImageSet) -> None:
    """Defect 13: each area stands under its own finding, and the others say why there is none."""
    chance = forecasts(1, test_set)
    known = [i for i in range(14) if i not in (5, 8)]
    truth = np.where(test_set.labels == -1, np.nan, test_set.labels)

    def check(areas: object) -> None:
        found = areas(truth, chance)
        for i in known:
            rows = ~np.isnan(truth[:, i])
            wanted = roc_auc_score(truth[rows, i], chance[rows, i])
            assert found[FINDINGS[i]] == pytest.approx(wanted, abs=1e-12)
        assert found[FINDINGS[5]] == (
            "0 test patients with the finding and 100 without; 2 of each are needed"
        )
        assert found[FINDINGS[8]].startswith("1 test patients with the finding and 100 without")

    def ours(truth: NDArray[np.float64], chance: NDArray[np.float32]) -> dict[str, float | str]:
        made = Predictions(probabilities=chance[None], thresholds=None, n_real=1, n_fake=0)
        labels = np.where(np.isnan(truth), -1.0, truth)
        scores = values(utility_scores(features_set(labels), {"real": made}))
        return {subset: value for (name, _, subset), value in scores.items() if name == "auroc"}

    def faulty(truth: NDArray[np.float64], chance: NDArray[np.float32]) -> dict[str, float | str]:
        areas = []
        for label, each in zip(truth.T, chance.T, strict=True):
            rows = ~np.isnan(label)
            if len(np.unique(label[rows])) > 1:
                areas.append(float(roc_auc_score(label[rows], each[rows])))
        return dict(zip(FINDINGS, areas, strict=False))

    check(ours)
    with pytest.raises((AssertionError, KeyError)):
        check(faulty)


def test_differences_are_paired_by_patient_and_by_seed(test_set: ImageSet) -> None:
    """The same forecasts, each seed a little more or less sharp: the pairs differ by little."""
    base = np.stack([forecasts(seed, test_set) for seed in range(3)])
    rng = np.random.default_rng(0)
    other = (base * (1 - 0.02 * rng.random(base.shape))).astype(np.float32)
    far = np.stack([forecasts(seed + 10, test_set, 0.0) for seed in range(3)])
    made = {
        name: Predictions(probabilities=each, thresholds=None, n_real=1, n_fake=0)
        for name, each in (("synthetic", other), ("real", base), ("mixed", far))
    }
    scores = utility_scores(test_set, made)
    found = {(s.name, s.variant, s.subset): s.estimate for s in scores}
    single = found["auroc", "real", "macro"]
    near = found["auroc_difference", "synthetic_minus_real", "macro"]
    chance = found["auroc_difference", "mixed_minus_real", "macro"]
    assert isinstance(single, Estimate)
    assert isinstance(near, Estimate)
    assert isinstance(chance, Estimate)
    assert near.standard_error < 0.3 * single.standard_error
    assert near.ci_low < 0.0 < near.ci_high
    assert chance.ci_high < -0.2
    gap = found["auroc", "mixed", "macro"].value - single.value
    assert chance.value == pytest.approx(gap, abs=1e-12)
    assert ("auroc_difference", "real_minus_real", "macro") not in found


def test_the_spread_between_seeds_is_in_the_interval(test_set: ImageSet) -> None:
    """Trainings of unequal skill widen it; one training says that this is not known."""

    def macro(skills: Sequence[float]) -> Estimate:
        chance = np.stack([forecasts(3, test_set, skill) for skill in skills])
        made = Predictions(probabilities=chance, thresholds=None, n_real=1, n_fake=0)
        found = utility_scores(test_set, {"real": made})
        estimate = next(s.estimate for s in found if (s.name, s.subset) == ("auroc", "macro"))
        assert isinstance(estimate, Estimate)
        return estimate

    even, uneven, one = macro([1.5] * 3), macro([0.5, 1.5, 2.5]), macro([1.5])
    assert even.standard_error == pytest.approx(one.standard_error)
    assert uneven.standard_error > 1.5 * even.standard_error
    assert uneven.degrees_of_freedom < 5 < even.degrees_of_freedom
    assert one.warning == ONE_SEED
    assert even.warning is None


def test_thresholds_are_the_best_of_validation() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((60, 2)) < 0.4).astype(np.float32)
    truth[:, 1] = 0.0
    truth[:5, 0] = np.nan
    chance = (0.3 * np.nan_to_num(truth) + 0.7 * rng.random((60, 2))).astype(np.float32)
    found = best_thresholds(chance, truth)
    rows = ~np.isnan(truth[:, 0])
    best = max(f1_score(truth[rows, 0], chance[rows, 0] >= cut) for cut in chance[rows, 0])
    assert f1_score(truth[rows, 0], chance[rows, 0] >= found[0]) == pytest.approx(best)
    assert found[1] == 0.5  # no positive to choose by


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.9]), st.sampled_from([0.0, 1.0, np.nan])),
        min_size=1,
        max_size=20,
    )
)
def test_thresholds_are_those_of_trying_each(rows: list[tuple[float, float]]) -> None:
    chance, truth = (np.array(side, np.float32)[:, None] for side in zip(*rows, strict=True))
    known = ~np.isnan(truth[:, 0])
    chance_known, positive = chance[known, 0], truth[known, 0] == 1
    wanted = 0.5
    if positive.sum() >= 2:
        cuts = np.unique(chance_known)
        f1 = [
            2
            * (positive & (chance_known >= cut)).sum()
            / (positive.sum() + (chance_known >= cut).sum())
            for cut in cuts
        ]
        wanted = float(cuts[np.argmax(f1)])
    assert best_thresholds(chance, truth).tolist() == [wanted]


def test_thresholds_need_memory_in_proportion_to_the_images() -> None:
    """Each image against each cut would be 400 MB here."""
    rng = np.random.default_rng(0)
    truth = (rng.random((20_000, 1)) < 0.1).astype(np.float32)
    chance = rng.random((20_000, 1)).astype(np.float32)
    tracemalloc.start()
    try:
        best_thresholds(chance, truth)
        assert tracemalloc.get_traced_memory()[1] < 100 * truth.nbytes
    finally:
        tracemalloc.stop()


def owned_set(owners: Sequence[str], labels: NDArray[np.float64]) -> ImageSet:
    return image_set(features=np.ones((len(owners), 1)), patients=list(owners), labels=labels)


def test_a_finding_needs_two_patients_and_not_two_images() -> None:
    """Of one patient's images no error is known, however many there are."""
    owners = ["a", "a", "a", "b", "c", "d"]
    labels = np.zeros((6, len(FINDINGS)))
    labels[:3, CARDIOMEGALY] = 1.0
    labels[2:4, EDEMA] = 1.0
    found = untestable(labels, np.array(owners))
    assert "1 test patients with the finding and 3 without" in found["Cardiomegaly"]
    assert "Edema" not in found
    side = prompt_table(6, side="training", labels=labels)
    tables = {"real": side, "synthetic": side}
    test = prompt_table(6, labels=labels, patients=owners)
    remarks = check_tables("m", tables | {"test": test}, without_patients=False)
    assert "Cardiomegaly is left out: 1 test patients" in " ".join(remarks)
    assert "Edema" not in " ".join(remarks)
    alone = prompt_table(6, labels=labels, patients=[None] * 6)
    remarks = check_tables("m", tables | {"test": alone}, without_patients=True)
    assert "Cardiomegaly" not in " ".join(remarks)
    made = Predictions(probabilities=np.full((1, 6, 14), 0.5), thresholds=None, n_real=1, n_fake=0)
    with pytest.raises(NotApplicable, match="no finding can be scored"):
        utility_scores(owned_set(owners, np.zeros((6, 14))), {"real": made})


def test_a_perfect_score_of_one_patients_positives_has_no_interval() -> None:
    """Its variance is 0, of no degrees of freedom, by which nothing can be divided."""
    owners, truth = np.array(list("aabcde")), np.array([[1, 1, 0, 0, 0, 0]]).T
    chance = np.array([[0.9, 0.8, 0.1, 0.2, 0.3, 0.1]]).T
    score = by_column(roc_auc, chance, truth, ["x"], groups=owners).scores["x"]
    assert score.reason is None
    assert score.degrees_of_freedom == 0.0
    for found in (
        mean_score([score] * 3),
        mean_score([score], [score] * 4),
        mean_difference([(score, score)] * 3),
        mean_difference([(score, score)], [(score, score)] * 4),
    ):
        assert found.value in (0.0, 1.0)
        assert found.standard_error is None
        assert found.reason


# --- trainings --------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "task").rglob("*.npy"))
        if path.name == "probabilities.npy"
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TaskScore]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(study_sets(folder / "images"), folder)


def test_a_training_depends_on_the_data_alone(
    trained: tuple[Path, list[TaskScore]], tmp_path: Path
) -> None:
    """Another order of rows, another folder: the same predictions, to the last bit."""
    folder, scores = trained
    sets = study_sets(tmp_path / "images")
    shuffled = {
        name: images.take(np.random.default_rng(1).permutation(len(images)))
        for name, images in sets.items()
    }
    np.random.seed(5)  # noqa: NPY002 - what others do to the global generators has no effect
    torch.manual_seed(5)
    assert values(run(shuffled, tmp_path)) == values(scores)
    assert contents(tmp_path) == contents(folder)


def test_the_real_regime_is_trained_once_for_all_models(
    trained: tuple[Path, list[TaskScore]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scores = trained
    stages: list[str] = []
    other = study_sets(folder / "images", model_seed=7)
    work = task(other, folder)

    def stage(name: str, total: int, unit: str) -> object:
        stages.append(name)
        return work.stage(name, total, unit)

    context = Context(home=folder, cache=folder)
    again = Classification(TINY, context).run(replace(work, stage=stage)).scores
    assert stages == ["decode synthetic", "train synthetic, 1 of 1"]
    before, after = values(scores), values(again)
    assert all(after[key] == value for key, value in before.items() if key[1] == "real")
    assert any(after[key] != value for key, value in before.items() if key[1] == "synthetic")


_CHILD = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_classification import SLOW, run, study_sets
folder = Path(sys.argv[1])
run(study_sets(folder / "images"), folder, SLOW)
"""

SLOW = TINY.model_copy(update={"regimes": ("real",), "epochs": 5})


@pytest.mark.slow
def test_a_killed_training_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-c", _CHILD, str(killed), str(Path(__file__).parent)]
    child = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while not list(killed.rglob("epoch-00000[2-4]")):
            assert child.poll() is None, "the training ended before it could be killed"
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not list(killed.rglob("weights.safetensors"))
    assert contents(killed) == {}
    told: list[int] = []
    work = task(study_sets(killed / "images"), killed)

    from contextlib import contextmanager

    @contextmanager
    def stage(name: str, total: int, unit: str) -> object:
        yield told.append

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        context = Context(home=killed, cache=killed)
        Classification(SLOW, context).run(replace(work, stage=stage))
        run(study_sets(whole / "images"), whole, SLOW)
    finally:
        torch.set_num_threads(threads)
    assert told[0] >= 2  # epochs that were not done again
    assert sum(told) == 5
    assert contents(killed) == contents(whole)
    assert len(contents(whole)) == 2  # test and validation
    losses = [json.loads(path.read_text()) for path in tmp_path.rglob("losses.json")]
    assert len(losses) == 2
    assert losses[0] == losses[1]
    assert not list(tmp_path.rglob("epoch-*"))


def test_pretrained_starts_from_the_synthetic_training(tmp_path: Path) -> None:
    parameters = TINY.model_copy(update={"regimes": ("pretrained",), "epochs": 1})
    names: list[str] = []
    work = task(study_sets(tmp_path / "images"), tmp_path)

    def stage(name: str, total: int, unit: str) -> object:
        names.append(name)
        return work.stage(name, total, unit)

    context = Context(home=tmp_path, cache=tmp_path)
    scores = Classification(parameters, context).run(replace(work, stage=stage)).scores
    assert names[-2:] == ["train synthetic, 1 of 1", "train pretrained, 1 of 1"]
    assert {s.variant for s in scores} == {"pretrained"}
    assert {s.n_fake for s in scores} == {60}


def test_a_network_learns_what_can_be_seen(tmp_path: Path) -> None:
    """The squares are plain: real and synthetic images teach them, images of noise do not."""
    parameters = TINY.model_copy(
        update={
            "backbone": "resnet10t",
            "epochs": 4,
            "learning_rate": 3e-3,
            "batch_size": 8,
            "validation": 0.2,
        }
    )
    sets = study_sets(tmp_path / "images")
    found = values(run(sets, tmp_path, parameters))
    assert found["auroc", "real", "Cardiomegaly"] > 0.95
    assert found["auroc", "synthetic", "Cardiomegaly"] > 0.95


def test_divergence_is_said(tmp_path: Path) -> None:
    parameters = TINY.model_copy(update={"learning_rate": 1e30, "regimes": ("real",)})
    with pytest.raises(ChexGenBenchError, match="diverged in epoch 1"):
        run(study_sets(tmp_path / "images"), tmp_path, parameters)


# --- the plugin -------------------------------------------------------------------------------


def check(parameters: ClassificationParameters, folder: Path, **tables: object) -> Sequence[str]:
    return Classification.check(parameters, Context(home=folder, cache=folder), tables)


def test_bad_input_is_refused_before_anything_expensive(tmp_path: Path) -> None:
    side = prompt_table(40, side="training", labels=labels_of(40, 0))
    test = prompt_table(40, labels=labels_of(40, 1))
    good = {"real": side, "synthetic": side, "test": test}
    remarks = check(TINY, tmp_path, **good)
    assert len(remarks) == 12
    assert "Fracture is left out: 0 test patients" in " ".join(remarks)
    with pytest.raises(UserError, match="no network named 'resnet5O'") as caught:
        check(TINY.model_copy(update={"backbone": "resnet5O"}), tmp_path, **good)
    assert "resnet50" in str(caught.value.hint)
    alone = prompt_table(40, labels=labels_of(40, 0), patients=[None] * 40)
    with pytest.raises(UserError, match=r"no training row of .* has one") as caught:
        check(TINY, tmp_path, **good | {"real": alone})
    assert "without_patients=true" in str(caught.value.hint)
    told = TINY.model_copy(update={"without_patients": True})
    check(told, tmp_path, **good | {"real": alone, "test": alone})
    with pytest.raises(UserError, match="two patients"):
        check(
            TINY,
            tmp_path,
            **good | {"real": prompt_table(4, labels=labels_of(4, 0), patients=["a"] * 4)},
        )
    with pytest.raises(UserError, match="no finding to score"):
        check(TINY, tmp_path, **good | {"test": prompt_table(3)})
    with pytest.raises(UserError, match="no test rows"):
        check_tables("m", good | {"test": prompt_table(0)}, without_patients=True)


def test_weights_are_safetensors_of_that_network(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "net.pth").write_bytes(b"\x80")
    with pytest.raises(UserError, match="pickle"):
        weight_file("net.pth", tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        weight_file("./nothing", tmp_path)
    import timm

    published = timm.create_model("resnet10t", num_classes=1000)  # three channels, ImageNet
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    found = weight_file(".", tmp_path)
    assert found == tmp_path / "model.safetensors" == weight_file("model.safetensors", tmp_path)
    ours = build("resnet10t", found)
    theirs = dict(published.named_parameters())
    torch.testing.assert_close(
        ours.get_parameter("layer1.0.conv1.weight"), theirs["layer1.0.conv1.weight"]
    )
    with pytest.raises(UserError, match="not those of 'resnet18'"):
        build("resnet18", found)


def test_the_descriptor_declares_what_is_reported(
    trained: tuple[Path, list[TaskScore]],
) -> None:
    _, scores = trained
    declared = {spec.name for spec in PLUGIN.spec.scores}
    assert {score.name for score in scores} == declared
    assert PLUGIN.load() is Classification
    needs = Classification.needs(ClassificationParameters(ratios=(0.5, 2.0), images=500))
    assert {name: need.name for name, need in needs.items()} == {
        "real": "training-500-real",
        "synthetic": "training-500x2",
        "test": "test-all-real",
    }
    labels = prompt_table(4).table[list(FINDINGS)].to_numpy(float)
    assert set(untestable(labels, np.arange(4))) == set(FINDINGS)
    assert isinstance(task({}, Path()), Task)
