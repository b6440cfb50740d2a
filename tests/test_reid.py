"""The re-identification network, the pairs it is asked about, and the metric on known answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from chexgenbench.errors import UserError
from chexgenbench.statistics import Estimate
from chexgenbench.types import Context, ImageSet, NotApplicable, TaskResult, TaskScore
from chexgenbench_plugins.data import data_folder
from chexgenbench_plugins.metrics.reidentification import (
    Reidentification,
    ReidentificationParameters,
)
from chexgenbench_plugins.phantom import oracle_image, render_row
from chexgenbench_plugins.phantom.split import FILE_NAMES, read_labels, read_rows
from chexgenbench_plugins.reid.excess import (
    Balance,
    mean_and_excess,
    share,
    share_excess,
    threshold_at,
)
from chexgenbench_plugins.reid.loading import Reidentifier, weight_files
from chexgenbench_plugins.reid.network import Architecture, build, pixels
from chexgenbench_plugins.reid.pairs import Real, siblings, strangers
from image_sets import image_set, prompt_table, task

PUBLISHED_FILE = "ResNet-50_epoch11_data_handling_RPN.pth"
TINY = Architecture(
    bottleneck=False, layers=(1, 1, 1, 1), channels=(4, 4, 8, 8), inputs=1, size=64, first=0
)


class Published(torch.nn.Module):
    """The network as its authors describe it: a torchvision ResNet-50 under a Siamese head."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torchvision.models.resnet50(num_classes=128)
        self.fc_end = torch.nn.Linear(128, 1)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        a, b = torch.sigmoid(self.model(first)), torch.sigmoid(self.model(second))
        return torch.sigmoid(self.fc_end((a - b).abs()))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(home=tmp_path, cache=tmp_path / "cache")


# --- the network ------------------------------------------------------------------------------


def test_published_layout(tmp_path: Path, context: Context) -> None:
    """Weights under the published names give the published network's scores, from embeddings."""
    torch.manual_seed(0)
    reference = Published().eval()
    state = reference.state_dict()
    first, second = torch.rand(2, 2, 3, 224, 224)
    with torch.inference_mode():
        expected = reference(first, second)[:, 0].numpy()
    torch.save(state, tmp_path / PUBLISHED_FILE)
    (tmp_path / "safe").mkdir()
    save_file(state, tmp_path / "safe" / "model.safetensors")
    for source in (PUBLISHED_FILE, "safe"):
        ours = Reidentifier(weight_files(source, context), context)
        found = ours.scores(ours.embed(first), ours.embed(second))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_published_preprocessing() -> None:
    from torchvision import transforms

    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (300, 240), dtype=np.uint8))
    published = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])
    expected = published(image.resize((512, 512)).convert("RGB"))
    assert torch.equal(pixels(image, Architecture()), expected)


def save_tiny(folder: Path, architecture: Architecture = TINY, seed: int = 0) -> Path:
    import json

    torch.manual_seed(seed)
    folder.mkdir()
    save_file(build(architecture).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(architecture)))
    return folder


def test_weights_that_cannot_be_used(tmp_path: Path, context: Context) -> None:
    with pytest.raises(UserError, match="not on this machine"):
        weight_files("raman07/Patient_ReIdentification_MIMIC", context)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="missing") as missing:
        weight_files("empty", context)
    assert PUBLISHED_FILE in str(missing.value.hint)

    folder = save_tiny(tmp_path / "tiny")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("[4, 4, 8, 8]", "[4, 4, 8, 16]"))
    with pytest.raises(UserError, match="another network"):
        Reidentifier(weight_files(str(folder), context), context)
    (folder / "config.json").write_text('{"layers": [1, 1, 1, 1]}')
    with pytest.raises(UserError, match="does not describe"):
        Reidentifier(weight_files(str(folder), context), context)

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    torch.save({"weight": Path("x")}, foreign / "model.pth")
    with pytest.raises(UserError, match="cannot be read"):
        Reidentifier(weight_files(str(foreign), context), context)


# --- pairs ------------------------------------------------------------------------------------


def pool_of(patients: list[str | None], labels: NDArray[np.float64], order: list[int]) -> Real:
    table = prompt_table(len(patients), patients=patients, labels=labels)
    real = image_set(features=np.zeros((len(patients), 1)), table=table)
    return Real.of([real.take(np.array(order))], seed=0)


@given(st.data())
def test_strangers_and_siblings(data: st.DataObject) -> None:
    count = data.draw(st.integers(4, 12))
    patients = data.draw(st.lists(st.sampled_from("abcd"), min_size=count, max_size=count))
    if max(map(patients.count, patients)) > count - 2:
        return
    states = data.draw(
        st.lists(st.sampled_from([1.0, 0.0, -1.0, np.nan]), min_size=count, max_size=count)
    )
    labels = np.full((count, 14), np.nan)
    labels[:, 3] = states
    order = data.draw(st.permutations(range(count)))
    straight = pool_of(list(patients), labels, list(range(count)))
    mixed = pool_of(list(patients), labels, order)
    found, other = strangers(straight, 2), strangers(mixed, 2)
    for row in range(count):
        for column in range(2):
            assert patients[found[row, column]] != patients[row]
        same = [
            i
            for i in range(count)
            if patients[i] != patients[row]
            and (states[i] == states[row] or np.isnan([states[i], states[row]]).all())
        ]
        matched = [at in same for at in found[row].tolist()]
        assert sum(matched) == min(2, len(same))
        assert matched == sorted(matched, reverse=True)
        assert [order[at] for at in other[order.index(row)]] == found[row].tolist()
    mates, moved = siblings(straight), siblings(mixed)
    for row in range(count):
        mate = int(mates[row])
        assert (mate == -1) == (patients.count(patients[row]) == 1)
        assert mate == -1 or (mate != row and patients[mate] == patients[row])
        again = int(moved[order.index(row)])
        assert (order[again] if again >= 0 else -1) == mate


# --- thresholds, shares and their differences -------------------------------------------------


@given(st.integers(1, 400), st.floats(0.005, 0.5))
def test_threshold_is_the_least_that_keeps_the_rate(count: int, rate: float) -> None:
    """Of n + 1 exchangeable scores each is the new one equally often: all ranks can be counted."""
    scores = np.random.default_rng(count).permutation(count + 1).astype(float)
    passed = 0
    for new in range(count + 1):
        threshold, chance = threshold_at(np.delete(scores, new), rate)
        passed += scores[new] > threshold
    assert passed / (count + 1) == pytest.approx(chance)
    if count + 1 >= 1 / rate + 1e-6:
        assert chance <= rate + 1e-12
        assert chance > rate - 1 / (count + 1) - 1e-9
    else:
        assert chance == pytest.approx(1 / (count + 1))


def test_share_is_wilsons_interval_for_independent_rows() -> None:
    """Reference: the closed form, with the t quantile in the place of the normal one."""
    from scipy.stats import t

    hits = np.arange(80) < 20
    found = share(hits, np.arange(80))
    z2 = t.ppf(0.975, 79) ** 2
    # The clustered variance has n / (n - 1): so does the number of rows.
    n = 79
    roots = np.roots([1 + z2 / n, -(2 * 0.25 + z2 / n), 0.25**2])
    assert (found.ci_low, found.ci_high) == pytest.approx(sorted(roots), abs=1e-9)
    with_copies = share(np.repeat(hits, 3), np.repeat(np.arange(80), 3))
    assert with_copies.ci_low == pytest.approx(found.ci_low)
    assert share([1] * 9, ["one"] * 9).reason == "one independent unit only"


@pytest.mark.parametrize(("first", "second", "rows"), [(0.05, 0.05, 150), (0.9, 0.05, 100)])
def test_excess_of_shares_holds(first: float, second: float, rows: int) -> None:
    """Two patients of one rate each draw: coverage of 95 % intervals over 400 draws."""
    rng = np.random.default_rng(7)

    def draw(rate: float) -> Estimate:
        patients = np.sort(rng.integers(0, rows // 2, rows))
        concentration = 2.0  # patients' own rates differ
        rates = rng.beta(rate * concentration, (1 - rate) * concentration, rows // 2)
        return share(rng.random(rows) < rates[patients], patients)

    held = 0
    for _ in range(400):
        excess = share_excess(draw(first), draw(second))
        held += excess.ci_low <= first - second <= excess.ci_high
    # An exact interval holds 366 or more of 400 in 999 cases of 1,000.
    assert held >= 366


def clinic(
    rng: np.random.Generator, rows: int, sick: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Patients of two rows on average, and their 14 labels: the first for the sick, of whom others
    have more."""
    labels = np.zeros((rows, 14))
    labels[:, 0] = rng.random(rows) < sick
    chances = np.where(labels[:, :1] == 1, 0.5, 0.15)
    labels[:, 1:6] = rng.random((rows, 5)) < chances
    return np.sort(rng.integers(0, rows // 2, rows)), labels


def test_another_mix_of_findings_accuses_nobody() -> None:
    """Training patients are sick in 20 % and held-out ones in 60 % of rows. An honest model draws
    the sick worse, and their images pass for anybody: the excess is 0, and 0 is held."""
    rng, trials = np.random.default_rng(3), 300
    held = {"mean": 0, "unweighted mean": 0, "share": 0, "unweighted share": 0}
    for _ in range(trials):
        sides = [clinic(rng, 150, sick) for sick in (0.2, 0.6)]
        own = rng.normal(size=(2, 75))
        values = [
            labels[:, 0] + 0.2 * labels[:, 1:].sum(axis=1) + 0.3 * own[at][who]
            + 0.3 * rng.normal(size=150)
            for at, (who, labels) in enumerate(sides)
        ]  # fmt: skip
        hits = [rng.random(150) < 0.02 + 0.4 * labels[:, 0] for _, labels in sides]
        names = [
            [f"{side}{one}" for one in who] for side, (who, _) in zip("mh", sides, strict=True)
        ]
        found = Balance.of(sides[0][1], sides[1][1], names[1])
        none = Balance.of(np.zeros((150, 14)), np.zeros((150, 14)), names[1])
        for how, balance in (("", found), ("unweighted ", none)):
            _, _, mean = mean_and_excess(values[0], names[0], values[1], names[1], balance)
            rate = share_excess(share(hits[0], names[0]), share(hits[1], names[1], balance.weights))
            for name, excess in (("mean", mean), ("share", rate)):
                held[how + name] += excess.ci_low <= 0 <= excess.ci_high
    # An exact interval holds 272 or more of 300 in 999 cases of 1,000.
    assert held["mean"] >= 272
    assert held["share"] >= 272
    assert held["unweighted mean"] < 30
    assert held["unweighted share"] < 100


def test_weights_of_equal_findings_change_nothing() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile((rng.random((40, 14)) < 0.4).astype(float), (2, 1))
    balance = Balance.of(labels, labels[::-1], np.arange(80))
    np.testing.assert_allclose(balance.weights, 1 / 80, rtol=1e-6)
    assert (balance.warning, balance.fault) == (None, None)
    values, who = rng.normal(size=80), np.arange(80) // 2
    weighted, plain = share(values > 1, who, balance.weights), share(values > 1, who)
    assert weighted.ci_high == pytest.approx(plain.ci_high, rel=1e-6)
    assert weighted.ci_low == pytest.approx(plain.ci_low, rel=1e-6)


def test_few_effective_prompts_are_said_and_none_are_refused() -> None:
    rng = np.random.default_rng(0)
    members, held_out = np.zeros((100, 14)), np.zeros((100, 14))
    members[:90, 0] = held_out[:10, 0] = 1
    few = Balance.of(members, held_out, np.arange(100))
    assert few.warning is not None
    # 10 rows share 0.9 and 90 share 0.1: 1 / (0.81 / 10 + 0.01 / 90) rows.
    assert "weights leave 12 of 100" in few.warning
    # Two findings that exclude each other in one side and go together in the other.
    members[:, 1], held_out[:, 1] = members[:, 0], 1 - held_out[:, 0]
    none = Balance.of(members, held_out, np.arange(100))
    assert none.fault is not None
    values = rng.normal(size=(2, 100))
    who = [f"m{i}" for i in range(100)], [f"h{i}" for i in range(100)]
    _, _, excess = mean_and_excess(values[0], who[0], values[1], who[1], none)
    assert (excess.ci_low, excess.reason) == (None, none.fault)


# --- the metric on models with known answers --------------------------------------------------

PROMPTS, REPEATS = 60, 2


@dataclasses.dataclass
class World:
    """The real images of both sides of a part of the demo split."""

    rows: dict[str, list[dict[str, str]]]
    real: dict[str, ImageSet]
    folder: Path

    def made(self, name: str, draw: Callable[[int, int], NDArray[np.uint8]]) -> ImageSet:
        """`draw` answers row i and repeat r."""
        side = {"members": "training", "held_out": "test"}[name]
        images = [draw(i, r) for i in range(PROMPTS) for r in range(REPEATS)]
        table = self.real[f"{name}_real"].prompts
        folder = self.folder / f"{name}-{len(list(self.folder.iterdir()))}"
        return image_set(
            images=images, folder=folder, side=side, source="model", repeats=REPEATS,
            table=table,
        )  # fmt: skip

    def sets(self, draw: dict[str, Callable[[int, int], NDArray[np.uint8]]]) -> dict[str, ImageSet]:
        return self.real | {name: self.made(name, draw[name]) for name in draw}

    def oracle(self, name: str, patient: int = 0) -> Callable[[int, int], NDArray[np.uint8]]:
        rows = self.rows[name]
        return lambda i, r: oracle_image(
            rows[i]["annotated_prompt"], read_labels(rows[i]["chexpert_labels"]),
            1_000_000 * patient + 1_000 * i + r + (500 if name == "members" else 0),
        )  # fmt: skip

    def copy(self, name: str) -> Callable[[int, int], NDArray[np.uint8]]:
        paths = self.real[f"{name}_real"].paths
        return lambda i, _r: np.asarray(Image.open(paths[i]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    rows, real = {}, {}
    for name, split, side, count in (
        ("members", "train", "training", PROMPTS),
        ("held_out", "test", "test", 120),
    ):
        read = read_rows(data_folder("demo_split") / FILE_NAMES[split])[:count]
        labels = [
            [np.nan if v is None else v for v in read_labels(row["chexpert_labels"]).values()]
            for row in read
        ]
        rows[name] = read
        real[f"{name}_real"] = image_set(
            images=[render_row(row) for row in read], folder=folder / name, side=side,
            patients=[row["patientID"] for row in read], labels=np.array(labels, float),
            prompts=[row["annotated_prompt"] for row in read],
        )  # fmt: skip
    return World(rows, real, folder)


def run(
    world: World,
    sets: dict[str, ImageSet],
    weights: str = "phantom",
    cache: Path | None = None,
    **values: object,
) -> TaskResult:
    parameters = ReidentificationParameters(
        weights=weights, prompts=PROMPTS, repeats=REPEATS, **values
    )
    context = Context(home=world.folder, cache=world.folder)
    metric = Reidentification(parameters, context)
    return metric.run(task(sets, cache or world.folder / "kept", context=context))


def score(result: TaskResult, name: str, variant: str = "") -> TaskScore:
    return next(one for one in result.scores if (one.name, one.variant) == (name, variant))


def value(result: TaskResult, name: str, variant: str = "") -> float:
    found = score(result, name, variant).estimate
    assert isinstance(found, Estimate)
    return found.value


def again(made: ImageSet) -> Callable[[int, int], NDArray[np.uint8]]:
    """The images of a set, as they are."""
    return lambda i, r: np.asarray(Image.open(made.paths[i * REPEATS + r]))


@pytest.fixture(scope="module")
def oracle(world: World) -> tuple[dict[str, ImageSet], TaskResult]:
    sets = world.sets({name: world.oracle(name) for name in ("members", "held_out")})
    return sets, run(world, sets)


def test_network_knows_phantom_patients(oracle: tuple[dict[str, ImageSet], TaskResult]) -> None:
    """On patients it was not trained on, against strangers with the same labels."""
    _, result = oracle
    auc = score(result, "reid_network_auc").estimate
    assert isinstance(auc, Estimate)
    assert auc.ci_low is not None
    assert auc.ci_low > 0.9
    assert value(result, "reid_real", "same_patient") > value(result, "reid_real", "other_patient")
    assert not any("hardly" in note for note in result.notes)


def test_oracle_is_cleared(oracle: tuple[dict[str, ImageSet], TaskResult]) -> None:
    _, result = oracle
    for name in ("reid_rate", "reid_mean"):
        excess = score(result, name).excess
        assert excess is not None
        assert excess.ci_low is not None
        assert excess.ci_low <= 0 <= excess.ci_high
    assert value(result, "reid_rate") < 0.1


def test_memorizer_is_caught(world: World) -> None:
    """Its members are copies; held-out prompts get another patient's training image."""
    held_out = world.copy("members")
    sets = world.sets(
        {"members": world.copy("members"), "held_out": lambda i, r: held_out((7 * i + r) % 60, r)}
    )
    result = run(world, sets)
    rate = score(result, "reid_rate")
    assert value(result, "reid_rate") == 1.0
    assert rate.excess is not None
    assert rate.excess.ci_low is not None
    assert rate.excess.ci_low > 0.5  # more than half of the prompts beyond doubt
    assert value(result, "reid_count") == PROMPTS
    (pairs,) = result.pairs
    assert pairs.kind == "reidentified"
    assert pairs.flagged.all()
    assert len(set(pairs.others_at.tolist())) == len(pairs.others_at) == 16
    assert [(one.name, one.images) for one in result.values] == [
        ("reid_match", "members"), ("near_copy", "members"),
    ]  # fmt: skip
    assert all((one.values == 1).all() for one in result.values)
    answered = [sets["members"].prompts.table["prompt_id"][sets["members"].rows[i]] for i in
                pairs.at]  # fmt: skip
    assert answered == [sets["members_real"].ids[i] for i in pairs.others_at]


def test_rate_follows_the_share_of_copies(
    world: World, oracle: tuple[dict[str, ImageSet], TaskResult]
) -> None:
    rates = [value(oracle[1], "reid_rate")]
    copied, fresh = world.copy("members"), again(oracle[0]["members"])
    for share_ in (0.5, 1.0):
        mixed = world.made(
            "members",
            lambda i, r, share_=share_: copied(i, r) if i < share_ * PROMPTS else fresh(i, r),
        )
        rates.append(value(run(world, oracle[0] | {"members": mixed}), "reid_rate"))
    assert rates == sorted(rates)
    assert 0.45 <= rates[1] <= 0.65


def test_every_image_counts(world: World, oracle: tuple[dict[str, ImageSet], TaskResult]) -> None:
    """One copy among the images of a prompt is found, whichever of its seeds made it."""
    copied, fresh = world.copy("members"), again(oracle[0]["members"])
    for place in range(REPEATS):
        made = world.made(
            "members", lambda i, r, place=place: copied(i, r) if r == place else fresh(i, r)
        )
        result = run(world, oracle[0] | {"members": made})
        assert value(result, "reid_rate") == 1.0
        # The copy must not leave; the other image may, but for the false matches.
        matched = {one.name: one.values.reshape(PROMPTS, REPEATS) for one in result.values}
        for found in matched.values():
            assert (found[:, place] == 1).all()
            assert found[:, 1 - place].mean() < 0.1


def test_real_images_have_one_embedding_whatever_model_is_looked_at(
    world: World,
    oracle: tuple[dict[str, ImageSet], TaskResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch decides the last digits, so they share none with generated images: for another
    model they are not embedded again, and what is said of them alone is the same."""
    sets, before = oracle
    seen: list[int] = []
    embed = Reidentifier.embed

    def counted(network: Reidentifier, images: torch.Tensor) -> NDArray[np.float32]:
        seen.append(len(images))
        return embed(network, images)

    monkeypatch.setattr(Reidentifier, "embed", counted)
    dull = world.made("members", lambda i, r: np.full((128, 128), 2 * i + r, np.uint8))
    after = run(world, sets | {"members": dull})
    assert sum(seen) == len(dull)
    for variant in ("same_patient", "other_patient"):
        assert value(after, "reid_real", variant) == value(before, "reid_real", variant)
    assert value(after, "reid_network_auc") == value(before, "reid_network_auc")


def test_order_of_rows_and_a_second_run_change_nothing(
    world: World,
    oracle: tuple[dict[str, ImageSet], TaskResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets, before = oracle
    rng = np.random.default_rng(0)
    turned = {name: each.take(rng.permutation(len(each))) for name, each in sets.items()}
    for result in (run(world, turned, cache=tmp_path), run(world, turned)):
        for one, other in zip(before.scores, result.scores, strict=True):
            assert one.estimate == pytest.approx(other.estimate) or (
                isinstance(one.estimate, Estimate)
                and isinstance(other.estimate, Estimate)
                and one.estimate.value == pytest.approx(other.estimate.value, abs=1e-12)
                and one.estimate.ci_low == pytest.approx(other.estimate.ci_low, abs=1e-12)
            )

    def no_more(*_: object) -> None:
        raise AssertionError("embedded twice")

    monkeypatch.setattr(Reidentifier, "embed", no_more)
    assert value(run(world, turned), "reid_mean") == pytest.approx(value(before, "reid_mean"))


def test_defect_9_a_score_without_a_control(
    world: World, oracle: tuple[dict[str, ImageSet], TaskResult], tmp_path: Path
) -> None:
    """A network that knows nobody finds every patient by the published count; the control and the
    network's own AUC say that this means nothing."""
    weights = save_tiny(tmp_path / "untrained")
    network = Reidentifier(
        weight_files(str(weights), Context(home=tmp_path, cache=tmp_path)),
        Context(home=tmp_path, cache=tmp_path),
    )
    sets, _ = oracle
    made, real = network.embed_sets(task(sets, tmp_path), [sets["members"], sets["members_real"]])
    published = network.scores(made, real[sets["members"].rows]).reshape(PROMPTS, REPEATS)
    sign = 1 if (published > 0.5).all() else -1  # an untrained head may say no to all as well
    assert (sign * (published.max(1) - 0.5) > 0).all()

    result = run(world, sets, weights=str(weights))
    rate = score(result, "reid_rate")
    assert rate.excess is not None
    assert rate.excess.ci_low is not None
    assert rate.excess.ci_low <= 0
    assert isinstance(rate.estimate, Estimate)
    assert rate.estimate.warning is not None
    assert "hardly tells patients apart" in rate.estimate.warning


def test_unreadable_real_images_are_left_out_and_named(
    world: World, oracle: tuple[dict[str, ImageSet], TaskResult]
) -> None:
    sets, _ = oracle
    fewer = sets["members_real"].take(np.arange(5, PROMPTS))
    result = run(world, sets | {"members_real": fewer})
    assert score(result, "reid_rate").n_real == PROMPTS - 5
    assert any(f"{5 * REPEATS} images of members" in note for note in result.notes)
    with pytest.raises(NotApplicable, match="prompts of members"):
        run(world, sets | {"members_real": fewer.take(np.arange(10))})


def test_check_before_anything_expensive(tmp_path: Path) -> None:
    context = Context(home=tmp_path, cache=tmp_path)
    full = prompt_table(30, side="training")
    few = prompt_table(5, side="training")
    nobody = prompt_table(30, side="training", patients=[None] * 30)
    parameters = ReidentificationParameters(weights="phantom")

    def check(members: object, chosen: ReidentificationParameters = parameters) -> list[str]:
        tables = {"members": members, "held_out": full}
        return list(Reidentification.check(chosen, context, tables))  # type: ignore[arg-type]

    assert any("30 training prompts" in remark for remark in check(full))
    with pytest.raises(UserError, match="20 training prompts at least"):
        check(few)
    with pytest.raises(UserError, match=r"no training row of .* has one"):
        check(nobody)
    assert check(nobody, parameters.model_copy(update={"without_patients": True}))

    (tmp_path / "foreign").mkdir()
    other = torchvision.models.resnet18(num_classes=128)
    save_file(other.state_dict(), tmp_path / "foreign" / "model.safetensors")
    with pytest.raises(UserError, match="another network"):
        check(full, ReidentificationParameters(weights="foreign"))
