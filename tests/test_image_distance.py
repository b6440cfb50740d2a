"""Pixel and latent distance to the prompt's own image, and the defects of the published code."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from chexgenbench.errors import UserError
from chexgenbench.generation.requests import make_requests
from chexgenbench.statistics import Estimate
from chexgenbench.types import Context, ImageSet, TaskResult, TaskScore
from chexgenbench_plugins.metrics.image_distance import (
    LatentDistance,
    OwnImageParameters,
    PixelDistance,
    PixelParameters,
)
from image_sets import image_set, prompt_table, task

PROMPTS, REPEATS, SIDE = 24, 3, 32
Images = NDArray[np.uint8]


def scores_of(result: TaskResult, name: str, variant: str = "") -> TaskScore:
    return next(one for one in result.scores if (one.name, one.variant) == (name, variant))


def value(result: TaskResult, name: str, variant: str = "") -> float:
    found = scores_of(result, name, variant).estimate
    assert isinstance(found, Estimate)
    return found.value


def worlds(
    folder: Path,
    members: Images,
    held_out: Images,
    real: tuple[Images, Images],
    labels: NDArray[np.float64] | None = None,
) -> dict[str, ImageSet]:
    """Two rows a patient; `members` and `held_out` hold REPEATS images a row."""
    sets: dict[str, ImageSet] = {}
    for name, side, own, made in (
        ("members", "training", real[0], members),
        ("held_out", "test", real[1], held_out),
    ):
        patients = [f"{side}-p{i // 2}" for i in range(len(own))]
        one = image_set(
            images=list(own), folder=folder / "real", side=side, patients=patients, labels=labels
        )
        sets[f"{name}_real"] = one
        sets[name] = image_set(
            images=list(made), folder=folder / "made", side=side, source="model",
            repeats=len(made) // len(own), table=one.prompts,
        )  # fmt: skip
    return sets


def drawn(seed: int, rows: int) -> Images:
    """Smooth images of full contrast."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (rows, 8, 8), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((SIDE, SIDE)), np.uint8) for each in coarse]
    )


def run_pixel(sets: dict[str, ImageSet], folder: Path, size: int = SIDE) -> TaskResult:
    parameters = PixelParameters(prompts=PROMPTS, repeats=REPEATS, size=size)
    context = Context(home=folder, cache=folder)
    return PixelDistance(parameters, context).run(task(sets, folder, context=context))


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, ImageSet]:
    real = drawn(0, PROMPTS), drawn(1, PROMPTS)
    return worlds(tmp_path, drawn(2, PROMPTS * REPEATS), drawn(3, PROMPTS * REPEATS), real)


def published(first: NDArray[Any], second: NDArray[Any]) -> float:
    """The published distance: the norm of the difference over the root of the number of values."""
    return float(np.linalg.norm(first - second) / np.sqrt(first.size))


def arrays(images: ImageSet, size: int, dtype: type) -> list[NDArray[Any]]:
    read = [Image.open(path).convert("RGB").resize((size, size)) for path in images.paths]
    return [np.asarray(one).astype(dtype) for one in read]


@pytest.mark.parametrize("size", [SIDE, 48])
def test_pixel_distance_is_the_published_one_in_floats(
    sets: dict[str, ImageSet], tmp_path: Path, size: int
) -> None:
    made, real = (arrays(sets[name], size, float) for name in ("members", "members_real"))
    expected = np.array([published(real[i // REPEATS], one) for i, one in enumerate(made)])
    expected = expected.reshape(PROMPTS, REPEATS)
    result = run_pixel(sets, tmp_path, size)
    assert value(result, "pixel_distance_mean") == pytest.approx(expected.mean(), rel=1e-9)
    assert value(result, "pixel_distance_min") == pytest.approx(expected.min(1).mean(), rel=1e-9)


def test_defect_8_bytes_wrap_around(tmp_path: Path) -> None:
    """The published code subtracts bytes: a copy that is one grey level brighter, where 256 such
    steps are left, is 255 away at most of its pixels."""
    real = drawn(0, PROMPTS), drawn(1, PROMPTS)
    brighter = np.minimum(real[0].astype(int) + 1, 255).astype(np.uint8).repeat(REPEATS, 0)
    sets = worlds(tmp_path, brighter, drawn(3, PROMPTS * REPEATS), real)
    made, own = (arrays(sets[name], SIDE, np.uint8) for name in ("members", "members_real"))
    faulty = np.mean([published(own[i // REPEATS], one) for i, one in enumerate(made)])
    assert faulty > 200
    result = run_pixel(sets, tmp_path)
    assert value(result, "pixel_distance_mean") <= 1.0
    # Bytes of unrelated images look nearer than they are, too: the two cannot be told apart.
    assert value(result, "pixel_distance_real", "other_patient") > 50


@pytest.mark.parametrize("place", range(REPEATS))
def test_defect_8_the_last_image_alone(tmp_path: Path, place: int) -> None:
    """The published loop takes the distance of the last image as often as there are images."""
    real = drawn(0, PROMPTS), drawn(1, PROMPTS)
    made = drawn(2, PROMPTS * REPEATS).reshape(PROMPTS, REPEATS, SIDE, SIDE)
    made[:, place] = real[0]
    sets = worlds(tmp_path, made.reshape(-1, SIDE, SIDE), drawn(3, PROMPTS * REPEATS), real)
    last = np.mean([published(real[0][i] * 1.0, made[i, -1]) for i in range(PROMPTS)])
    result = run_pixel(sets, tmp_path)
    assert value(result, "pixel_distance_min") == 0.0
    assert (last == 0.0) == (place == REPEATS - 1)  # the faulty one sees one copy of three
    assert value(result, "pixel_distance_mean") > 0.0


def test_defect_9_a_distance_without_a_control(tmp_path: Path) -> None:
    """A model that follows its prompts is nearer to their images than another patient is, without
    any memorising: held-out prompts show the same, and the excess is nothing."""
    rng = np.random.default_rng(4)
    looks = drawn(5, PROMPTS).astype(float)  # what a prompt says
    labels = np.where(rng.random((PROMPTS, 14)) < 0.5, 1.0, 0.0)

    def follow(rows: int) -> Images:
        noise = rng.normal(0, 20, (PROMPTS * rows, SIDE, SIDE))
        return (looks.repeat(rows, 0) + noise).clip(0, 255).astype(np.uint8)

    sets = worlds(tmp_path, follow(REPEATS), follow(REPEATS), (follow(1), follow(1)), labels)
    result = run_pixel(sets, tmp_path)
    random_pair = value(result, "pixel_distance_real", "same_patient")
    assert value(result, "pixel_distance_mean") < 0.6 * random_pair  # would be called a leak
    for name in ("mean", "min"):
        excess = scores_of(result, f"pixel_distance_{name}").excess
        assert excess is not None
        assert excess.ci_low is not None
        assert excess.ci_low <= 0 <= excess.ci_high
    # Another patient with the same labels is as near as the image that follows the prompt.
    assert value(result, "pixel_distance_real", "other_patient") >= value(
        result, "pixel_distance_mean"
    )


def test_copies_are_seen(tmp_path: Path) -> None:
    real = drawn(0, PROMPTS), drawn(1, PROMPTS)
    sets = worlds(tmp_path, real[0].repeat(REPEATS, 0), drawn(3, PROMPTS * REPEATS), real)
    result = run_pixel(sets, tmp_path)
    mean = scores_of(result, "pixel_distance_mean")
    assert value(result, "pixel_distance_mean") == 0.0
    assert mean.control is not None
    assert mean.control > 50
    assert mean.excess is not None
    assert mean.excess.ci_high is not None
    assert mean.excess.ci_high < 0
    assert any("one image for several seeds" in note for note in result.notes)


def test_defect_10_seeds_drawn_with_replacement() -> None:
    """The published seeds, ten draws with replacement, repeat in one run of 23; ours never do."""
    faulty = sum(
        len(set(random.Random(run).choices(range(1, 1000), k=10))) < 10 for run in range(500)
    )
    assert faulty > 5
    for run in range(500):
        requests = make_requests(prompt_table(1), seed=run, repeats=10, size=None)
        assert len({request.seed for request in requests}) == 10


def test_colour_counts(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    """A tinted image is as far as its three channels say, not as its grey version."""
    for path in sets["members"].paths:
        grey = np.asarray(Image.open(path))
        Image.fromarray(np.stack([grey, 255 - grey, grey], axis=-1)).save(path)
    made, real = (arrays(sets[name], SIDE, float) for name in ("members", "members_real"))
    expected = np.mean([published(real[i // REPEATS], one) for i, one in enumerate(made)])
    found = value(run_pixel(sets, tmp_path / "other"), "pixel_distance_mean")
    assert found == pytest.approx(expected, rel=1e-9)


def features(sets: dict[str, ImageSet], seed: int) -> dict[str, ImageSet]:
    import dataclasses

    rng = np.random.default_rng(seed)
    return {
        name: dataclasses.replace(
            one, outputs={"features": rng.normal(size=(len(one), 16)).astype(np.float32)}
        )
        for name, one in sets.items()
    }


def run_latent(sets: dict[str, ImageSet], folder: Path) -> TaskResult:
    parameters = OwnImageParameters(prompts=PROMPTS, repeats=REPEATS)
    context = Context(home=folder, cache=folder)
    return LatentDistance(parameters, context).run(task(sets, folder, context=context))


def test_latent_distance_is_the_published_one(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    given = features(sets, 0)
    made, real = (torch.from_numpy(given[name].features) for name in ("members", "members_real"))
    apart = real.repeat_interleave(REPEATS, 0) - made
    expected = apart.norm(dim=1) / apart.shape[1] ** 0.5
    result = run_latent(given, tmp_path)
    assert value(result, "latent_distance_mean") == pytest.approx(expected.mean().item(), rel=1e-5)
    least = expected.reshape(PROMPTS, REPEATS).min(1).values.mean().item()
    assert value(result, "latent_distance_min") == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("run", [run_pixel, run_latent])
def test_order_of_rows_changes_nothing(sets: dict[str, ImageSet], tmp_path: Path, run: Any) -> None:
    given = features(sets, 0)
    before = run(given, tmp_path / "one")
    rng = np.random.default_rng(1)
    turned = {name: one.take(rng.permutation(len(one))) for name, one in given.items()}
    after = run(turned, tmp_path / "two")
    again = run(turned, tmp_path / "two")
    for one, other, third in zip(before.scores, after.scores, again.scores, strict=True):
        assert (one.name, one.variant) == (other.name, other.variant)
        assert isinstance(one.estimate, Estimate)
        assert isinstance(other.estimate, Estimate)
        assert one.estimate.value == pytest.approx(other.estimate.value, rel=1e-12)
        assert one.estimate.ci_low == pytest.approx(other.estimate.ci_low, rel=1e-9)
        assert other.estimate == third.estimate


def test_another_mix_of_findings_accuses_nobody(tmp_path: Path) -> None:
    """Training patients are sick in 20 % and held-out ones in 60 %; an honest model draws the sick
    farther off. Unweighted, the control would be larger by 0.4 * 0.8."""
    rng = np.random.default_rng(0)
    given, rows = {}, 200
    for name, side, sick in (("members", "training", 0.2), ("held_out", "test", 0.6)):
        labels = np.full((rows, 14), np.nan)
        labels[:, 3] = np.where(rng.random(rows) < sick, 1.0, np.nan)
        spread = 0.4 + 0.8 * (labels[:, 3] == 1)
        real = rng.normal(size=(rows, 16))
        made = real.repeat(2, axis=0) + spread.repeat(2)[:, None] * rng.normal(size=(2 * rows, 16))
        one = image_set(features=real, side=side, labels=labels)  # type: ignore[arg-type]
        given[f"{name}_real"] = one
        given[name] = image_set(
            features=made, side=side, source="model", repeats=2, table=one.prompts  # type: ignore[arg-type]
        )  # fmt: skip
    parameters = OwnImageParameters(prompts=rows, repeats=2)
    work = task(given, tmp_path)
    result = LatentDistance(parameters, work.context).run(work)
    for name in ("mean", "min"):
        found = scores_of(result, f"latent_distance_{name}")
        assert found.excess is not None
        assert found.excess.ci_low is not None
        assert found.excess.ci_low <= 0 <= found.excess.ci_high
        assert found.excess.ci_high - found.excess.ci_low < 0.2
        assert isinstance(found.estimate, Estimate)
        assert found.estimate.warning is None  # more than half of 200 are left
    assert scores_of(result, "latent_distance_mean").n_real == rows


def test_nan_features_are_refused(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    given = features(sets, 0)
    given["members"].features[3, 2] = np.nan
    with pytest.raises(UserError, match="members hold NaN"):
        run_latent(given, tmp_path)
