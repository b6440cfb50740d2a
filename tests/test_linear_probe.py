"""The linear probe: what it fits, what its scores mean, and what a leak does to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from chexgenbench.errors import UserError
from chexgenbench.registry import load_registry
from chexgenbench.statistics import Estimate
from chexgenbench.types import FINDINGS, Context, ImageSet, TaskScore
from chexgenbench_plugins.classification.probe import fit_predict, halves
from chexgenbench_plugins.classification.regimes import held_out
from chexgenbench_plugins.classification.scores import ONE_SEED, Predictions, utility_scores
from chexgenbench_plugins.metrics.linear_probe import LinearProbe, ProbeParameters
from image_sets import image_set, prompt_table, task

WIDTH = 12
Array = NDArray[np.float64]


def labels_of(n: int, seed: int) -> Array:
    """Three findings in a third of the rows each; some of the second uncertain."""
    rng = np.random.default_rng(seed)
    labels = np.full((n, len(FINDINGS)), np.nan)
    labels[:, :3] = rng.random((n, 3)) < 0.35
    labels[rng.random(n) < 0.1, 1] = -1.0
    return labels


def features_of(labels: Array, seed: int, skill: float = 1.5, width: int = WIDTH) -> Array:
    """Findings 0, 1 and 2 move a feature each, by `skill` standard deviations."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(len(labels), width))
    found[:, :3] += skill * (labels[:, :3] == 1)
    return 3.0 * found + 5.0


def study_sets(n: int = 300, tests: int = 200, skill: float = 1.5) -> dict[str, ImageSet]:
    """Two rows a patient; synthetic features that follow the labels with `skill`."""
    labels, held = labels_of(n, 0), labels_of(tests, 1)
    real = image_set(
        features=features_of(labels, 2),
        side="training",
        patients=[f"p{i // 2}" for i in range(n)],
        labels=labels,
    )
    made = image_set(
        features=features_of(labels, 3, skill), side="training", source="model", table=real.prompts
    )
    test = image_set(
        features=features_of(held, 4), patients=[f"t{i // 2}" for i in range(tests)], labels=held
    )
    return {"real": real, "synthetic": made, "test": test}


def run(
    sets: dict[str, ImageSet], folder: Path, parameters: ProbeParameters | None = None
) -> dict[tuple[str, str, str], TaskScore]:
    context = Context(home=folder, cache=folder)
    scores = LinearProbe(parameters or ProbeParameters(), context).run(task(sets, folder)).scores
    return {(s.name, s.variant, s.subset): s for s in scores}


def estimate(
    scores: dict[tuple[str, str, str], TaskScore], variant: str, subset: str = "macro"
) -> Estimate:
    name = "probe_auroc_difference" if variant.endswith("_minus_real") else "probe_auroc"
    found = scores[name, variant, subset].estimate
    assert isinstance(found, Estimate)
    return found


def test_it_fits_what_scikit_learn_fits(tmp_path: Path) -> None:
    """With one penalty there is nothing to choose: a scaler and regressions."""
    sets = study_sets()
    parameters = ProbeParameters(penalties=(0.05,), regimes=("real", "augmented"))
    scores = run(sets, tmp_path, parameters)
    patients = held_out(sets["real"], parameters.validation, 0)
    for regime in parameters.regimes:
        images = sets["real"].features
        truth = sets["real"].labels
        if regime == "augmented":  # synthetic images of validation patients are not used
            kept = ~np.isin(sets["synthetic"].patients, patients)
            images = np.concatenate([images, sets["synthetic"].features[kept]])
            truth = np.concatenate([truth, sets["synthetic"].labels[kept]])
        areas = []
        scaler = StandardScaler().fit(images.astype(np.float64))
        asked = scaler.transform(sets["test"].features.astype(np.float64))
        for column in range(3):
            known = truth[:, column] >= 0
            model = LogisticRegression(C=0.05)
            model.fit(scaler.transform(images[known].astype(np.float64)), truth[known, column])
            chance = model.predict_proba(asked)[:, 1]
            rows = sets["test"].labels[:, column] >= 0
            area = roc_auc_score(sets["test"].labels[rows, column], chance[rows])
            assert estimate(scores, regime, FINDINGS[column]).value == pytest.approx(area, abs=1e-4)
            areas.append(estimate(scores, regime, FINDINGS[column]).value)
        assert estimate(scores, regime).value == pytest.approx(np.mean(areas), abs=1e-12)


def test_the_penalty_is_chosen_by_validation(tmp_path: Path) -> None:
    """Few rows and many features without meaning: a strong penalty is better, and is taken."""
    labels, held = labels_of(80, 0), labels_of(400, 1)
    train = features_of(labels, 2, width=100), np.nan_to_num(labels).clip(0)
    test = features_of(held, 4, width=100)
    sides = [
        tuple(np.asarray(each[part], np.float32) for each in train)
        for part in (slice(0, 60), slice(60, 80))
    ]
    both = [
        fit_predict(
            task({}, tmp_path), *sides, test.astype(np.float32), penalties, np.ones((1, 80))
        )
        for penalties in ((1e-3, 100.0), (1e-3,), (100.0,))
    ]
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_allclose(both[0][1], both[0][0], atol=1e-5)  # weights of 1 change nothing
    losses = [log_loss(held[:, 0], chance[0][:, 0]) for chance in both[1:]]
    assert losses[0] < losses[1]


def test_regimes_are_ordered_by_what_their_images_are_worth(tmp_path: Path) -> None:
    good = run(study_sets(), tmp_path / "good")
    weak = run(study_sets(skill=0.3), tmp_path / "weak")
    none = run(study_sets(skill=0.0), tmp_path / "none")
    gap = estimate(good, "synthetic_minus_real")
    assert gap.ci_low < 0.0 < gap.ci_high  # images as good as real ones
    values = [estimate(each, "synthetic").value for each in (good, weak, none)]
    assert values == sorted(values, reverse=True)
    chance = estimate(none, "synthetic")
    assert chance.ci_low < 0.5 < chance.ci_high
    assert estimate(none, "synthetic_minus_real").ci_high < 0.0
    assert estimate(good, "real") == estimate(none, "real")
    assert estimate(good, "augmented_minus_real").value > -0.02
    counts = [(s.n_real, s.n_fake) for key, s in good.items() if key[1] in ("real", "synthetic")]
    assert set(counts) == {(500, 0), (200, 300)}


def test_an_area_between_two_models_is_paired(tmp_path: Path) -> None:
    """Nearly equal probes: the difference is known far better than either area."""
    scores = run(study_sets(), tmp_path)
    assert estimate(scores, "augmented_minus_real").standard_error < 0.5 * (
        estimate(scores, "real").standard_error
    )


def test_halves_share_no_patient_whatever_the_order_of_rows() -> None:
    patients = np.array(["a", "b", "a", "c", "d"])
    found = halves(patients, 50, 3)
    np.testing.assert_array_equal(found[:, 0], found[:, 2])
    np.testing.assert_array_equal(found[::2] + found[1::2], np.ones((50, 5)))
    assert set(found[:, [0, 1, 3, 4]].sum(axis=1)) == {2.0}
    np.testing.assert_array_equal(halves(patients[::-1], 50, 3), found[:, ::-1])
    assert len({tuple(row) for row in found.tolist()}) == 6  # all there are


def test_other_training_patients_are_in_the_interval(tmp_path: Path) -> None:
    """Images that say nothing: which way the area errs is a matter of the training set, so that
    intervals of the test patients alone leave one half out far too often."""
    test = study_sets()["test"]
    labels, held = np.nan_to_num(labels_of(60, 0)).clip(0).astype(np.float32), slice(48, None)
    draws = halves(np.array([f"p{i}" for i in range(60)]), 5, 0)
    holds: dict[str, list[bool]] = {"all": [], "test": []}
    for seed in range(30):
        images = np.random.default_rng(seed).normal(size=(60, WIDTH)).astype(np.float32)
        train, validation = (images[:48], labels[:48]), (images[held], labels[held])
        work = task({}, tmp_path)
        fits = fit_predict(work, train, validation, test.features, (0.1,), draws)
        made = Predictions(probabilities=fits[:1], thresholds=None, n_real=0, n_fake=60)
        for name, refits in (("all", fits[1:]), ("test", None)):
            scores = utility_scores(test, {"x": replace(made, refits=refits)}, full=False)
            found = next(s.estimate for s in scores if s.subset == "macro")
            assert found.warning == (ONE_SEED if refits is None else None)
            holds[name].append(found.ci_low < 0.5 < found.ci_high)
    # At 95 %, 24 or fewer of 30 have a chance of 0.3 %; at two thirds, 27 or more of 0.3 %.
    assert sum(holds["all"]) > 24
    assert sum(holds["test"]) < 27


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    sets = study_sets()
    shuffled = {
        name: images.take(np.random.default_rng(0).permutation(len(images)))
        for name, images in sets.items()
    }
    found = run(sets, tmp_path / "a"), run(shuffled, tmp_path / "b")
    assert {k: s.estimate for k, s in found[0].items()} == {
        k: s.estimate for k, s in found[1].items()
    }


def leaked(sets: dict[str, ImageSet]) -> dict[str, ImageSet]:
    """As many training rows, half of them the test's own images with their labels."""
    real, test = sets["real"], sets["test"]
    half = len(real) // 2
    mine, theirs = np.arange(half), np.arange(half)
    labels = np.concatenate([real.labels[mine], test.labels[theirs]])
    mixed = image_set(
        features=np.concatenate([real.features[mine], test.features[theirs]]),
        side="training",
        patients=[*real.patients[mine], *test.patients[theirs]],
        labels=labels,
    )
    return sets | {"real": mixed}


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_test_patients_in_training_raise_the_score(tmp_path: Path, seed: int) -> None:
    """A leak that the platform refuses (see the tests of tasks): the interval shows its size."""
    width, n = 150, 200
    labels, held = labels_of(n, seed), labels_of(n, seed + 1)
    sets = study_sets(n=n)
    sets["real"] = image_set(
        features=features_of(labels, seed + 2, 0.8, width),
        side="training",
        patients=[f"p{i}" for i in range(n)],
        labels=labels,
    )
    sets["test"] = image_set(
        features=features_of(held, seed + 4, 0.8, width),
        patients=[f"t{i}" for i in range(n)],
        labels=held,
    )
    sets["synthetic"] = sets["real"]  # which no regime takes
    parameters = ProbeParameters(regimes=("real",))
    found = [
        estimate(run(each, tmp_path / name, parameters), "real")
        for name, each in (("clean", sets), ("leaked", leaked(sets)))
    ]
    assert found[1].value > found[0].value + 0.05
    assert found[1].ci_low > found[0].value


def test_one_class_and_constant_features_are_no_obstacle(tmp_path: Path) -> None:
    """Training rows that all lack a finding teach nothing of it: its area is one half."""
    sets = study_sets()
    labels = sets["real"].labels
    labels[:, 2] = 0.0
    features = np.array(sets["real"].features)
    features[:, 5] = 1e6  # no variation, and large
    sets["real"] = image_set(
        features=features,
        side="training",
        patients=[f"p{i // 2}" for i in range(len(labels))],
        labels=labels,
    )
    sets["synthetic"] = image_set(
        features=np.ones_like(features), side="training", source="model", table=sets["real"].prompts
    )
    scores = run(sets, tmp_path)
    assert estimate(scores, "real", FINDINGS[2]).value == 0.5
    assert estimate(scores, "synthetic").value == 0.5
    assert estimate(scores, "real", FINDINGS[0]).value > 0.75
    assert scores["probe_auroc", "real", FINDINGS[5]].estimate == (
        "0 test patients with the finding and 100 without; 2 of each are needed"
    )


def test_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    sets = study_sets()
    sets["test"].features[3, 4] = np.nan
    with pytest.raises(UserError, match="'by-hand' gave features that are not numbers"):
        run(sets, tmp_path)


def test_the_real_probe_is_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    fit = LogisticRegression.fit

    def counting(self: LogisticRegression, *arrays: Array) -> LogisticRegression:
        fits.append(len(arrays[0]))
        return fit(self, *arrays)

    monkeypatch.setattr(LogisticRegression, "fit", counting)
    parameters = ProbeParameters(penalties=(0.1,), regimes=("real", "synthetic"), halvings=2)
    run(study_sets(), tmp_path, parameters)
    first = len(fits)
    assert first == 36  # three findings, two regimes: to validate, in the end, and four halves
    run(study_sets(skill=0.5), tmp_path, parameters)
    assert len(fits) == 54


def check(folder: Path, **tables: object) -> Sequence[str]:
    context = Context(home=folder, cache=folder)
    return LinearProbe.check(ProbeParameters(), context, tables)


def test_the_descriptor_and_its_check(tmp_path: Path) -> None:
    plugin = load_registry().metrics["linear-probe"]
    assert plugin.load() is LinearProbe
    scores = run(study_sets(), tmp_path)
    assert {name for name, _, _ in scores} == {spec.name for spec in plugin.spec.scores}
    needs = LinearProbe.needs(ProbeParameters(images=100))
    assert {name: need.name for name, need in needs.items()} == {
        "real": "training-100-real",
        "synthetic": "training-100x1",
        "test": "test-all-real",
    }
    side = prompt_table(40, side="training", labels=labels_of(40, 0), patients=[None] * 40)
    with pytest.raises(UserError, match="'linear-probe' must keep patients apart"):
        check(tmp_path, real=side, synthetic=side, test=prompt_table(40, labels=labels_of(40, 1)))
