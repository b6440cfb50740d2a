"""The same images give the same scores, however the work was ordered, cut, batched or resumed.

Sides are encoded by the demo's encoder into a feature store, as a run does it, and scored by every
metric that the encoder serves. Values agree to 1e-9 and errors to 1e-9 as well, since the platform
puts rows into canonical order before any metric sees them; encoding in other batches may change the
last bit of a feature, and a score by 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from chexgenbench.features import extract, plan_encoder
from chexgenbench.features.extract import EncoderPlan
from chexgenbench.files import sha256_file
from chexgenbench.jobs import encode as encode_module
from chexgenbench.registry import load_registry
from chexgenbench.scoring import MetricPlan, Score, Sides, score
from chexgenbench.splits.prompts import PromptTable
from chexgenbench.types import FINDINGS, Context

ENCODER = "phantom-clip"
N = 160

Files = Sequence[tuple[str, Path]]


@dataclass(frozen=True)
class World:
    """Prompts, and a PNG with its hash for each on both sides."""

    prompts: PromptTable
    real: Files
    fake: Files


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Cheap pictures with structure, so that the encoder tells them apart: blobs and gratings."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64] / 64

    def picture(strength: float) -> NDArray[np.uint8]:
        a, b, c, d = random.uniform(0.2, 0.8, 4)
        blob = np.exp(-((x - a) ** 2 + (y - b) ** 2) / (0.02 + 0.1 * c))
        waves = strength * np.sin(20 * c * x + 15 * d * y)
        grey = np.clip(0.7 * blob + 0.15 * waves + 0.2 * d, 0, 1)
        return np.asarray(255 * grey, np.uint8)

    def side(name: str, strength: float) -> Files:
        files = []
        for i in range(N):
            path = folder / f"{name}{i}.png"
            Image.fromarray(picture(strength)).save(path)
            files.append((sha256_file(path), path))
        return files

    labels = random.choice([1.0, 0.0, -1.0, np.nan], (N, len(FINDINGS)))
    table = pd.DataFrame(
        {
            "prompt_id": [f"s{i}" for i in range(N)],
            "prompt": [
                f"There is a {'small' if i % 2 else 'large'} opacity {i}." for i in range(N)
            ],
            "patient_id": [f"p{i // 2}" for i in range(N)],
            "view": "PA",
            "image_path": [f"real{i}.png" for i in range(N)],
            **dict(zip(FINDINGS, labels.T, strict=True)),
            "line": np.arange(N) + 2,
            "copies": 1,
        }
    )
    prompts = PromptTable(
        name="t", table=table, source_file=folder / "t.csv", images_root=folder, rows_read=N
    )
    return World(prompts, side("real", 1.0), side("fake", 0.5))


def new_plan(folder: Path) -> EncoderPlan:
    plugin = load_registry().encoders[ENCODER]
    context = Context(home=folder, cache=folder)
    return plan_encoder(
        plugin, plugin.parse({}), context, root=folder / "features", weights={"file": "hash"}
    )


def encode(world: World, folder: Path, images: Files, batch: int = 32) -> None:
    """One call, with a plan of its own, as each process of a run makes one."""
    extract(
        images,
        world.prompts.table["prompt"].tolist(),
        [new_plan(folder)],
        batch_size=batch,
        text_encoders=frozenset({ENCODER}),
    )


def scores(world: World, folder: Path) -> dict[tuple[str, str], Score]:
    registry = load_registry()
    plan = new_plan(folder)
    metrics = [
        MetricPlan(plugin, plugin.parse({}), (ENCODER,))
        for plugin in registry.metrics.values()
        if plugin.spec.output in plan.plugin.spec.outputs
    ]
    sides = Sides(
        prompts=world.prompts,
        real=[key for key, _ in world.real],
        fake=[key for key, _ in world.fake],
        fake_rows=np.arange(N),
    )
    finding = "Edema"
    masks = {name: world.prompts.subset_mask(name) for name in ("overall", finding)}
    found, _ = score(sides, metrics, [plan], seed=0, masks=masks)
    return {(item.metric, item.subset): item for item in found}


@pytest.fixture(scope="module")
def plain(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Score]:
    """Encoded in one go, in order, 32 at a time."""
    folder = tmp_path_factory.mktemp("plain")
    encode(world, folder, [*world.real, *world.fake])
    found = scores(world, folder)
    known = [item for item in found.values() if item.status == "ok"]
    assert {"fid", "kid", "precision", "inception_score", "alignment"} <= {i.metric for i in known}
    # Scores that nothing could move would prove nothing.
    assert sum(item.standard_error is not None for item in known) >= 8
    return found


def agree(
    found: dict[tuple[str, str], Score], expected: dict[tuple[str, str], Score], share: float
) -> None:
    assert found.keys() == expected.keys()
    for key, item in found.items():
        other = expected[key]
        assert (item.status, item.n_real, item.n_fake) == (other.status, other.n_real, other.n_fake)
        for name in ("value", "standard_error", "ci_low", "ci_high", "floor", "matched", "excess"):
            one, two = getattr(item, name), getattr(other, name)
            assert (one is None) == (two is None), (key, name)
            if one is not None:
                # Differences such as an excess are as exact as what they are differences of.
                scale = max(abs(two), abs(item.matched or 0.0), abs(item.value or 0.0))
                assert abs(one - two) <= share * scale, (key, name, one, two)


def test_the_order_of_encoding_does_not_matter(
    world: World, plain: dict[tuple[str, str], Score], tmp_path: Path
) -> None:
    """Other images share a batch then; the kernels of one shape give each row the same bits."""
    images = [*world.real, *world.fake]
    order = np.random.default_rng(1).permutation(len(images))
    encode(world, tmp_path, [images[i] for i in order])
    agree(scores(world, tmp_path), plain, 1e-9)


@pytest.mark.parametrize("shards", [2, 4])
def test_the_number_of_shards_does_not_matter(
    world: World, plain: dict[tuple[str, str], Score], tmp_path: Path, shards: int
) -> None:
    """Each shard encoded by itself into the same store, the last one first."""
    images = [*world.real, *world.fake]
    for shard in reversed(range(shards)):
        encode(world, tmp_path, images[shard::shards])
    parts = list((tmp_path / "features").rglob("images/part-*.parquet"))
    assert len(parts) == shards
    agree(scores(world, tmp_path), plain, 1e-9)


@pytest.mark.parametrize(("workers", "decoders"), [(2, 2), (1, 1), (1, 4)])
def test_the_number_of_workers_does_not_matter(
    world: World,
    plain: dict[tuple[str, str], Score],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    decoders: int,
) -> None:
    """Workers at one store at once, a shard each; and more or fewer threads that decode."""
    monkeypatch.setattr(encode_module, "_decoders", lambda _device: decoders)
    images = [*world.real, *world.fake]
    shards = [images[shard::workers] for shard in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda shard: encode(world, tmp_path, shard), shards))
    agree(scores(world, tmp_path), plain, 1e-9)


def test_a_resumed_run_scores_the_same(
    world: World, plain: dict[tuple[str, str], Score], tmp_path: Path
) -> None:
    """Stopped after a part was written, another part lost to the kill; then started again."""
    images = [*world.real, *world.fake]
    encode(world, tmp_path, images[:70])
    encode(world, tmp_path, images[70:150])
    parts = sorted((tmp_path / "features").rglob("images/part-*.parquet"))
    parts[0].write_bytes(parts[0].read_bytes()[:200])
    encode(world, tmp_path, images)
    agree(scores(world, tmp_path), plain, 1e-9)


@pytest.mark.parametrize("batch", [1, 64])
def test_the_batch_size_moves_the_last_bits_only(
    world: World, plain: dict[tuple[str, str], Score], tmp_path: Path, batch: int
) -> None:
    encode(world, tmp_path, [*world.real, *world.fake], batch)
    agree(scores(world, tmp_path), plain, 1e-5)


def test_other_images_score_otherwise(
    world: World, plain: dict[tuple[str, str], Score], tmp_path: Path
) -> None:
    """What the tests above would find: one image of one side that is another's."""
    swapped = World(world.prompts, world.real, [world.real[0], *world.fake[1:]])
    encode(swapped, tmp_path, [*swapped.real, *swapped.fake])
    with pytest.raises(AssertionError):
        agree(scores(swapped, tmp_path), plain, 1e-5)
