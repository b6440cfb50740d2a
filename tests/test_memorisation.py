"""Memorisation: known answers, how often honest models are accused, and phantoms end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import beta, binom

from chexgenbench import Context, NotApplicable, TaskResult, UserError
from chexgenbench.statistics import (
    Estimate,
    copy_threshold,
    excess_below,
    members_excess,
    nearest,
    rate_estimate,
    training_share,
)
from chexgenbench_plugins.memorisation import find_duplicates
from chexgenbench_plugins.metrics.memorisation import Memorisation, MemorisationParameters
from image_sets import image_set, prompt_table, task

Array = NDArray[np.float64]


def at_most(count: int, trials: int, rate: float) -> None:
    """Asserts that `count` of `trials` is no more than a rate of `rate` gives by chance."""
    assert count <= binom.ppf(0.999, trials, rate), (count, trials)


def at_least(count: int, trials: int, rate: float) -> None:
    assert count >= binom.ppf(0.001, trials, rate), (count, trials)


def accused(excess: Estimate) -> bool:
    return excess.ci_low is not None and excess.ci_low > 0


class Clinic:
    """Patients with several rows, and images that follow a prompt; features of 12 dimensions."""

    def __init__(self, seed: int, training: int = 240, held_out: int = 60) -> None:
        self.random = np.random.default_rng(seed)
        self.train, self.of_train, self.prompt_train = self._side("t", training)
        self.held_out, self.of_held_out, self.prompt_held_out = self._side("h", held_out)

    def _side(self, name: str, patients: int) -> tuple[Array, list[str], Array]:
        of = np.repeat(np.arange(patients), self.random.geometric(0.5, patients))
        prompts = self.random.normal(size=(of.size, 12))
        anatomy = self.random.normal(size=(patients, 12))[of]
        return self._mixed(anatomy, prompts), [f"{name}{i}" for i in of], prompts

    def _mixed(self, anatomy: Array, prompts: Array) -> Array:
        noise = self.random.normal(size=prompts.shape)
        spectrum = (1 + np.arange(12)) ** -0.5
        return (0.75 * anatomy + 0.55 * prompts + 0.35 * noise) * spectrum

    def images(self, prompts: Array) -> Array:
        """Of fresh patients."""
        return self._mixed(self.random.normal(size=prompts.shape), prompts)

    def share(self, fake: Array, repeats: int = 4) -> Any:
        return training_share(
            self.train,
            self.held_out,
            fake,
            groups_train=self.of_train,
            groups_held_out=self.of_held_out,
            groups_fake=self.of_held_out,
            rate=0.05,
            repeats=repeats,
        )

    def members(self, members: Array, own: NDArray[np.int64], others: Array) -> Any:
        return members_excess(
            self.train,
            self.held_out,
            members,
            others,
            own_members=own,
            own_others=np.arange(len(self.held_out)),
            groups_train=self.of_train,
            groups_held_out=self.of_held_out,
            rate=0.05,
            repeats=4,
        )


# --- thresholds and rates -------------------------------------------------------------------


def test_the_threshold_has_its_false_match_rate_whatever_the_distribution() -> None:
    """Another row falls below with chance k / (n + 1): of the mean over draws, known exactly."""
    for n, rate, rank in ((199, 0.05, 10), (60, 0.01, 1), (99, 0.01, 1)):
        found = copy_threshold(np.random.default_rng(0).normal(size=n), rate)
        assert (found.rank, found.rate) == (rank, rank / (n + 1))
    random = np.random.default_rng(1)
    # Of uniform distances the chance of falling below is the threshold itself.
    chances = [copy_threshold(random.random(60), 0.1).distance for _ in range(2000)]
    truth = beta(6, 55)
    assert abs(np.mean(chances) - 6 / 61) < 4 * truth.std() / 2000**0.5


def test_a_rate_that_cannot_be_had_is_said() -> None:
    found, _ = excess_below([1.0, 2.0], np.arange(30.0), rate=0.01)
    assert found.control == 1 / 31
    assert found.warning == "30 held-out rows give a false-match rate of 1 in 31 at best"


@pytest.mark.parametrize("power", [1.0, 0.5, 3.0])
def test_excess_covers_what_it_is_for(power: float) -> None:
    """Held-out distances uniform, generated ones with distribution function x^power: the excess at
    threshold t is t^power - t, known for every draw. Power 1 is the honest model."""
    random = np.random.default_rng(int(10 * power))
    held, alarms, trials = 0, 0, 500
    for _ in range(trials):
        fake, real = random.random(150) ** (1 / power), random.random(150)
        found, threshold = excess_below(fake, real, rate=0.05)
        t = threshold.distance
        low, high = found.excess.ci_low, found.excess.ci_high
        assert low is not None
        assert high is not None
        held += low <= t**power - t <= high
        alarms += low > 0
    at_least(held, trials, 0.95)
    if power >= 1:
        at_most(alarms, trials, 0.025)


def test_patients_of_several_images_count_once() -> None:
    """All images of a patient below, or none: worth as many rows as there are patients."""
    random = np.random.default_rng(0)
    held, wrong, trials = 0, 0, 400
    for _ in range(trials):
        values = np.repeat(random.random(60) < 0.1, 5)
        found = rate_estimate(values, groups=np.arange(300) // 5)
        alone = rate_estimate(values)
        assert found.ci_low is not None
        assert found.ci_high is not None
        assert alone.ci_low is not None
        assert alone.ci_high is not None
        held += found.ci_low <= 0.1 <= found.ci_high
        wrong += not alone.ci_low <= 0.1 <= alone.ci_high
    at_least(held, trials, 0.95)
    assert wrong > trials / 5


def test_a_rate_of_none_or_all_has_an_interval() -> None:
    none, every = rate_estimate(np.zeros(100)), rate_estimate(np.ones(100))
    assert none.ci_low == 0.0
    # Exact: (1 - p)^100 = 0.025 at 0.036; Wilson's is near it.
    assert 0.03 < (none.ci_high or 1) < 0.045
    assert every.ci_low == pytest.approx(1 - (none.ci_high or 0), abs=1e-12)
    assert every.ci_high == 1.0
    assert rate_estimate([1.0, 0.0], groups=["a", "a"]).reason == "one independent unit only"


# --- training rows against held-out rows ----------------------------------------------------


def test_sizes_decide_the_share_unless_they_are_equal() -> None:
    """With 4,000 rows against 512 the nearest is a training row in 8 of 9 cases whoever made the
    image, so an honest model looks guilty nearly always; at equal sizes it does not."""
    random = np.random.default_rng(0)
    guilty, alarms = 0, 0
    for _ in range(20):
        train, held_out, fake = np.split(random.normal(size=(4_000 + 512 + 300, 8)), [4000, 4512])
        near = nearest(fake, train).distances < nearest(fake, held_out).distances
        low = rate_estimate(near[:, 0]).ci_low
        assert low is not None
        guilty += low > 0.5
        assert abs(near.mean() - 4000 / 4512) < 0.1
        alarms += accused(training_share(train, held_out, fake, repeats=1).share.excess)
    assert guilty == 20
    at_most(alarms, 20, 0.025)


@pytest.mark.slow
def test_honest_models_are_not_accused() -> None:
    """Images follow their prompts, patients have several rows, and blurred images lie near
    everything: no excess in more than the 2.5 % that one end of an interval leaves out."""
    trials = 100
    alarms = dict.fromkeys(("share", "equal", "blurred", "members", "members replicated"), 0)
    values = []
    for seed in range(trials):
        clinic = Clinic(seed)
        fake = clinic.images(clinic.prompt_held_out)
        found = clinic.share(fake)
        values.append(found.share.excess)
        alarms["share"] += accused(found.share.excess)
        alarms["equal"] += accused(found.replicated.excess)
        blurred = clinic.share(0.5 * fake)
        alarms["blurred"] += accused(blurred.share.excess) or accused(blurred.replicated.excess)
        own = clinic.random.choice(len(clinic.train), 50, replace=False)
        asked = clinic.members(clinic.images(clinic.prompt_train[own]), own, fake)
        alarms["members"] += accused(asked.share.excess)
        alarms["members replicated"] += accused(asked.replicated.excess)
    for name, count in alarms.items():
        at_most(count, trials, 0.05 if name == "blurred" else 0.025)
    # The interval is no wider than it must be: its error is the deviation between draws.
    deviation = np.std([e.value for e in values], ddof=1)
    errors = np.sqrt(np.mean([e.standard_error**2 for e in values]))
    assert abs(errors / deviation - 1) < 3 / np.sqrt(2 * (trials - 1)) + 0.1
    # 0 is held, too: all these models are honest.
    at_least(sum(e.ci_low <= 0 <= e.ci_high for e in values), trials, 0.95)


def test_copies_of_training_rows_are_seen() -> None:
    clinic = Clinic(0)
    others = clinic.images(clinic.prompt_held_out)
    own = np.arange(40)
    asked = clinic.members(clinic.train[own], own, others)
    assert asked.share.rate.value == asked.replicated.rate.value == 1.0
    assert accused(asked.share.excess)
    assert (asked.replicated.excess.ci_low or 0) > 0.7
    copies = clinic.train[clinic.random.choice(len(clinic.train), len(clinic.held_out))]
    found = clinic.share(copies)
    assert found.replicated.excess.value > 0.1
    # A group holds a quarter of the patients, with one of about two rows each.
    assert 0.5 < found.share.rate.value < 0.5 + 0.25 / 2 + 0.1


def test_the_own_patient_does_not_count_for_an_image_of_its_prompt() -> None:
    """Images that are the held-out rows themselves are not nearer to the held-out side."""
    clinic = Clinic(3)
    found = clinic.share(clinic.held_out)
    assert not accused(found.share.excess)
    assert abs(found.share.rate.value - 0.5) < 0.15
    # Without the patient's name they are.
    blind = training_share(
        clinic.train,
        clinic.held_out,
        clinic.held_out,
        groups_train=clinic.of_train,
        groups_held_out=clinic.of_held_out,
        repeats=2,
    )
    assert blind.share.rate.value < 0.25


def test_the_order_of_rows_does_not_matter() -> None:
    clinic = Clinic(5)
    fake = clinic.images(clinic.prompt_held_out)
    own = np.arange(30)
    members = clinic.images(clinic.prompt_train[own])
    before = clinic.share(fake), clinic.members(members, own, fake)
    t = clinic.random.permutation(len(clinic.train))
    h = clinic.random.permutation(len(clinic.held_out))
    clinic.train, clinic.of_train = clinic.train[t], [clinic.of_train[i] for i in t]
    clinic.held_out, clinic.of_held_out = clinic.held_out[h], [clinic.of_held_out[i] for i in h]
    after = clinic.share(fake[h]), clinic.members(members, np.argsort(t)[own], fake[h])
    for one, other in zip(before, after, strict=True):
        for name in ("share", "replicated"):
            a, b = getattr(one, name), getattr(other, name)
            assert a.rate.value == pytest.approx(b.rate.value, abs=1e-12)
            assert a.excess.value == pytest.approx(b.excess.value, abs=1e-12)
            assert a.excess.ci_low == pytest.approx(b.excess.ci_low, abs=1e-9)


def test_equal_distances_count_half() -> None:
    """All rows equal: nobody is nearer."""
    found = training_share(np.zeros((20, 3)), np.zeros((4, 3)), np.zeros((6, 3)), repeats=2)
    assert found.share.rate.value == 0.5
    assert found.share.excess.reason == "no variation between the units"


def test_what_cannot_be_compared_is_refused() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3))
    bad = rows.copy()
    bad[4, 1] = np.nan
    for sides in ((bad, rows, rows), (rows, bad, rows), (rows, rows, bad)):
        with pytest.raises(ValueError, match="row 4 holds NaN"):
            training_share(*sides)
    with pytest.raises(ValueError, match=r"20 patient\(s\) are on both sides"):
        training_share(rows, rows, rows, groups_train=range(20), groups_held_out=range(20))
    with pytest.raises(ValueError, match="2 held-out and 8 training patients needed, got 20 and 7"):
        training_share(rows[:7], rows, rows)
    with pytest.raises(ValueError, match="own_members: real rows are numbered 0 to 19"):
        members_excess(rows, rows + 1, rows[:1], rows[:1], own_members=[20], own_others=[0])


# --- the plugin on phantoms -----------------------------------------------------------------


class Phantoms:
    """A small split of phantoms, with what the oracle draws for its prompts."""

    def __init__(self, folder: Path) -> None:
        import torch

        from chexgenbench_plugins.encoders.phantom_clip import PhantomClip, PhantomClipParameters
        from chexgenbench_plugins.phantom.canvas import one_thread
        from chexgenbench_plugins.phantom.split import (
            make_rows,
            oracle_image,
            read_labels,
            render_row,
        )

        self.folder = folder
        self.encoder = PhantomClip(PhantomClipParameters(), Context(home=folder, cache=folder))
        self.torch = torch
        train, test = make_rows("train")[:150], make_rows("test")[:90]
        with one_thread():
            self.train = [render_row(row) for row in train]
            self.test = [render_row(row) for row in test]
            fresh = [
                [
                    oracle_image(
                        row["annotated_prompt"], read_labels(row["chexpert_labels"]), start + at
                    )
                    for at, row in enumerate(rows)
                ]
                for start, rows in ((10**6, test), (2 * 10**6, train[:40]))
            ]
        self.fresh_test, self.fresh_train = fresh
        self.patients = [row["patientID"] for row in train], [row["patientID"] for row in test]
        self.features = {
            name: self.encode(getattr(self, name))
            for name in ("train", "test", "fresh_test", "fresh_train")
        }

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        parts = []
        with self.torch.inference_mode():
            for at in range(0, len(images), 50):
                batch = [
                    self.encoder.preprocess(Image.fromarray(pixels))
                    for pixels in images[at : at + 50]
                ]
                parts.append(self.encoder.encode(self.torch.stack(batch))["features"])
        return np.concatenate(parts)

    def result(self, share: float, **parameters: Any) -> TaskResult:
        """Of a model that answers this share of prompts with training images."""
        random = np.random.default_rng(1)
        copied = random.random(90) < share
        which = random.integers(150, size=90)

        def mixed(fresh: str, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
            copies, images = self.features["train"][chosen], self.features[fresh]
            return np.where(copied[: len(chosen), None], copies, images)

        images = [
            self.train[at] if copy else fresh
            for at, copy, fresh in zip(which, copied, self.fresh_test, strict=True)
        ]
        trained, kept = self.patients
        real: dict[str, Any] = {"source": "real"}
        made: dict[str, Any] = {"source": "model"}
        folder = self.folder / f"share-{share}"
        sets = {
            "generated": image_set(
                features=mixed("fresh_test", which), images=images, folder=folder, patients=kept,
                **made,
            ),
            "training": image_set(
                features=self.features["train"], images=self.train, folder=self.folder,
                side="training", patients=trained, **real,
            ),
            "held_out": image_set(
                features=self.features["test"], images=self.test, folder=self.folder,
                patients=kept, **real,
            ),
            "members": image_set(
                features=mixed("fresh_train", np.arange(40)), side="training",
                images=[
                    self.train[at] if copied[at] else self.fresh_train[at] for at in range(40)
                ],
                folder=folder / "pool", patients=trained[:40], **made,
            ),
            "others": image_set(
                features=mixed("fresh_test", which), images=images, folder=folder / "pool",
                patients=kept, **made,
            ),
        }  # fmt: skip
        settings = MemorisationParameters(subsamples=4, **parameters)
        if not settings.members:
            sets = {name: sets[name] for name in ("generated", "training", "held_out")}
        work = task(sets, self.folder)
        return Memorisation(settings, work.context).run(work)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Phantoms:
    return Phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="module")
def results(phantoms: Phantoms) -> dict[float, dict[str, Any]]:
    return {
        share: {
            f"{score.name} {score.variant}".strip(): score
            for score in phantoms.result(share).scores
        }
        for share in (0.0, 0.5, 1.0)
    }


LOWER = (
    "replicated_rate",
    "replicated_rate members",
    "training_share members",
    "near_duplicates",
)
HIGHER = ("nndr", "authenticity", "ct_score")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LOWER, *HIGHER])
def test_memorizer_half_and_oracle(results: dict[float, dict[str, Any]], name: str) -> None:
    """The oracle is as its control, the memorizer is flagged, the mixture lies between."""
    sign = 1 if name in LOWER else -1
    excess = [results[share][name].excess for share in (0.0, 0.5, 1.0)]
    values = [sign * one.value for one in excess]
    assert values == sorted(values)
    assert values[1] - values[0] > 0.1 * (values[2] - values[0]) < values[2] - values[1]
    oracle, _, memorizer = excess
    ends = sorted([sign * oracle.ci_low, sign * oracle.ci_high])
    assert ends[0] <= 0
    if memorizer.ci_low is None:
        # Every image is a copy: C_T and its like see no variation left.
        assert memorizer.reason
    else:
        assert min(sign * memorizer.ci_low, sign * memorizer.ci_high) > 0


@pytest.mark.slow
def test_the_memorizer_is_replicated(results: dict[float, dict[str, Any]]) -> None:
    for name in ("replicated_rate", "replicated_rate members", "near_duplicates"):
        assert results[1.0][name].estimate.value > 0.9
    assert results[1.0]["nndr"].estimate.value == 0.0


@pytest.mark.slow
def test_what_is_stored_of_each_image(phantoms: Phantoms) -> None:
    found = phantoms.result(0.5, members=False, pairs=20)
    values = {one.name: one.values for one in found.values}
    copied = np.random.default_rng(1).random(90) < 0.5
    assert (values["near_copy"][copied] == 1).all()
    # Of the others as many as the false-match rates allow.
    at_most(int(values["near_copy"][~copied].sum()), int((~copied).sum()), 3 / 91)
    assert ((values["nearest_training_distance"] == 0) == copied).all()
    (pairs,) = found.pairs
    assert (pairs.kind, pairs.images, pairs.others, len(pairs.at)) == (
        "nearest_training", "generated", "training", 20,
    )  # fmt: skip
    assert copied[pairs.at].all()
    assert pairs.flagged.all()
    assert (np.diff(pairs.values) >= 0).all()
    which = np.random.default_rng(1)
    which.random(90)
    assert (pairs.others_at == which.integers(150, size=90)[pairs.at]).all()
    assert not any("members" in score.variant for score in found.scores)


@pytest.mark.slow
def test_images_of_every_set_are_looked_at(phantoms: Phantoms) -> None:
    """A copy of a training image must not leave, whichever prompt it answers, its own included."""
    found = phantoms.result(0.5)
    copied = np.random.default_rng(1).random(90) < 0.5
    values = {(one.images, one.name): one.values for one in found.values}
    for name, count in (("generated", 90), ("members", 40), ("others", 90)):
        flagged, honest = values[name, "near_copy"], ~copied[:count]
        assert (flagged[~honest] == 1).all()
        at_most(int(flagged[honest].sum()), int(honest.sum()), 3 / 91)
        assert ((values[name, "nearest_training_distance"] == 0) == ~honest).all()


@pytest.mark.slow
def test_a_file_of_the_training_side_is_a_copy_whatever_the_held_out_side_is(
    phantoms: Phantoms, tmp_path: Path
) -> None:
    """Held-out images that are training images allow no threshold, but equal files are equal."""
    training = image_set(images=phantoms.train[:20], folder=tmp_path / "t", side="training")
    held_out = image_set(images=phantoms.train[:20], folder=tmp_path / "h")
    made = [*phantoms.train[:2], *phantoms.fresh_test[:3]]
    generated = image_set(images=made, folder=tmp_path / "g", source="model")
    found = find_duplicates(task({}, tmp_path), {"generated": generated}, training, held_out)
    assert isinstance(found.rate, str)
    assert found.near["generated"].tolist() == [True, True, False, False, False]


def test_all_images_at_one_distance_of_hashes_are_compared() -> None:
    """Of 40 training images with hashes as far as the third nearest, the last has the pixels."""
    from chexgenbench_plugins.memorisation import duplicates

    random = np.random.default_rng(0)
    hashes = np.zeros((43, 32), np.uint8)
    hashes[:2, 0] = 1  # two are 1 bit away, 40 are 2 bits away, one is 3 bits away
    hashes[2:42, 0] = 3
    hashes[42, 0] = 7
    small = random.integers(0, 256, (43, 256), dtype=np.uint8)
    queries = np.zeros((2, 32), np.uint8), small[[30, 42]]
    for _ in range(5):
        order = random.permutation(43)
        bits, pixels = duplicates._nearest(queries, (hashes[order], small[order]))
        assert bits.tolist() == [1, 1]
        assert pixels[0] == 0.0
        assert pixels[1] > 0.5  # its twin is too far by the hash


def changed(kind: str, pixels: NDArray[np.uint8], folder: Path) -> NDArray[np.uint8]:
    image = Image.fromarray(pixels)
    if kind == "jpeg":
        image.save(folder / "one.jpg", quality=50)
        return np.asarray(Image.open(folder / "one.jpg").convert("L"))
    if kind == "smaller":
        small = image.resize((96, 96), Image.Resampling.BICUBIC)
        return np.asarray(small)
    if kind == "noise":
        noise = np.random.default_rng(0).normal(0, 5, pixels.shape)
        return np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return np.clip(1.1 * pixels + 5.0, 0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jpeg", "smaller", "noise", "contrast"])
def test_near_duplicates_survive_what_files_go_through(
    phantoms: Phantoms, tmp_path: Path, kind: str
) -> None:
    trained, kept = phantoms.patients
    make: Callable[..., Any] = image_set
    copies = [changed(kind, phantoms.train[i], tmp_path) for i in range(0, 150, 5)]
    generated = make(
        images=[*copies, *phantoms.fresh_test[:30]], folder=tmp_path / "made", source="model",
        patients=[f"g{i}" for i in range(60)],
    )  # fmt: skip
    training = make(
        images=phantoms.train, folder=phantoms.folder, side="training", patients=trained
    )
    held_out = make(images=phantoms.test, folder=phantoms.folder, patients=kept)
    found = find_duplicates(task({}, phantoms.folder), {"generated": generated}, training, held_out)
    assert found.near["generated"][:30].all()
    assert found.exact == 0
    at_most(int(found.near["generated"][30:].sum()), 30, 1 / 91)
    assert found.rate.control == 1 / 91


@pytest.mark.slow
def test_hashes_are_kept_between_runs(
    phantoms: Phantoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chexgenbench_plugins.memorisation import duplicates

    sides = [
        image_set(images=phantoms.train[:20], folder=tmp_path / "t", side="training"),
        image_set(images=phantoms.test[:20], folder=tmp_path / "h"),
    ]
    generated = image_set(images=phantoms.fresh_test[:20], folder=tmp_path / "g", source="model")
    work = task({}, tmp_path)
    first = find_duplicates(work, {"generated": generated}, *sides)
    monkeypatch.setattr(duplicates, "read_image", lambda path: pytest.fail(f"{path} read again"))
    again = find_duplicates(work, {"generated": generated}, *sides)
    assert again.rate == first.rate
    assert (again.near["generated"] == first.near["generated"]).all()


def small(seed: int, **sides: Any) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    sets = {
        "generated": image_set(features=random.normal(size=(20, 4)), source="model"),
        "training": image_set(features=random.normal(size=(40, 4)), side="training"),
        "held_out": image_set(features=random.normal(size=(20, 4))),
    }
    return sets | sides


def test_faulty_sets_are_refused(tmp_path: Path) -> None:
    metric = Memorisation(MemorisationParameters(members=False), None)  # type: ignore[arg-type]
    bad = np.random.default_rng(0).normal(size=(20, 4))
    bad[3, 2] = np.nan
    with pytest.raises(UserError, match=r"1 image\(s\) hold NaN or infinity, first of test-3"):
        metric.run(task(small(0, held_out=image_set(features=bad)), tmp_path))
    few = image_set(features=np.ones((7, 4)), side="training")
    with pytest.raises(NotApplicable, match="at least 8 training and 2 held-out"):
        metric.run(task(small(0, training=few), tmp_path))
    patients = [f"p{i}" for i in range(20)]
    shared = small(
        0,
        held_out=image_set(features=np.ones((20, 4)), patients=patients),
        training=image_set(
            features=np.ones((40, 4)), side="training", patients=patients + patients
        ),
    )
    with pytest.raises(NotApplicable, match=r"20 patient\(s\) of the held-out side"):
        metric.run(task(shared, tmp_path))


def test_patients_are_asked_for_and_own_images_are_all_looked_at() -> None:
    context = Context(home=Path(), cache=Path())
    full, nobody = prompt_table(30), prompt_table(30, side="training", patients=[None] * 30)
    parameters = MemorisationParameters()
    tables = {"training": nobody, "held_out": full}
    with pytest.raises(UserError, match=r"no training row of .* has one") as refused:
        Memorisation.check(parameters, context, tables)
    assert "memorisation.without_patients=true" in str(refused.value.hint)
    agreed = MemorisationParameters(without_patients=True)
    assert not Memorisation.check(agreed, context, tables)
    some = prompt_table(30, side="training", patients=["a", *[None] * 29])
    (remark,) = Memorisation.check(parameters, context, tables | {"training": some})
    assert remark.startswith("29 of 30 training rows have no patient")
    assert Memorisation.needs(parameters)["generated"].repeats is None
