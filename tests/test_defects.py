"""Defects of published evaluation code that must not come back (numbers of the protocol's list).

For each: what a right implementation does, as a check; ours, which passes it; and an implementation
that has the defect, written here, on which the same check fails.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from chexgenbench.features import FeatureStore, extract
from chexgenbench.features.extract import EncoderPlan, text_key
from chexgenbench.files import sha256_file
from chexgenbench.registry import Plugin, load_registry
from chexgenbench.scoring import MetricPlan, Score, Sides, score
from chexgenbench.splits.prompts import PromptTable
from chexgenbench.statistics import Estimate, frechet_distance, inception_score, kernel_distance
from chexgenbench.statistics import precision_recall_density_coverage as prdc
from chexgenbench.store.export_csv import CONDITIONAL_NAME, OVERALL_NAME, export_run
from chexgenbench.store.records import RUN_TABLES, RunRecord
from chexgenbench.store.run_directory import write_run
from chexgenbench.store.store import Store
from chexgenbench.types import (
    FINDINGS,
    Context,
    Encoder,
    EncoderSpec,
    MetricSpec,
    Parameters,
    Sample,
    ScoreSpec,
    SetMetric,
)

Array = NDArray[np.float64]
REGISTRY = load_registry()
N, D = 240, 8


def features(seed: int, n: int = N, d: int = D, shift: float = 0.0, scale: float = 1.0) -> Array:
    return scale * np.random.default_rng(seed).normal(size=(n, d)) + shift


# --- the platform, from features to scores ----------------------------------------------------


def prompts(rows: int = N, rare: int = 0) -> PromptTable:
    """As many prompts, each of a patient of its own; the first `rare` have a fracture."""
    labels = np.full((rows, len(FINDINGS)), np.nan)
    labels[:rare, FINDINGS.index("Fracture")] = 1.0
    table = pd.DataFrame(
        {
            "prompt_id": [f"s{i}" for i in range(rows)],
            "prompt": [f"text {i}" for i in range(rows)],
            "patient_id": [f"p{i}" for i in range(rows)],
            "view": "PA",
            "image_path": [f"{i}.png" for i in range(rows)],
            **dict(zip(FINDINGS, labels.T, strict=True)),
            "line": np.arange(rows) + 2,
            "copies": 1,
        }
    )
    return PromptTable(
        name="t", table=table, source_file=Path("t.csv"), images_root=Path(), rows_read=rows
    )


def platform(
    folder: Path,
    metric: str | MetricPlan,
    real: Array,
    fake: Array,
    *,
    shards: int = 1,
    fake_rows: Sequence[int] | None = None,
    probabilities: Array | None = None,
    rare: int = 0,
) -> dict[tuple[str, str], Score]:
    """The scores of a metric by (score, subset), from features stored in so many parts."""
    outputs = {"features": real.shape[1]}
    outputs |= {} if probabilities is None else {"probabilities": probabilities.shape[1]}
    spec = EncoderSpec(
        name="e", summary="", load="a:B", outputs=outputs, preprocessing="", text=True
    )
    images = FeatureStore(folder / "images", outputs)
    texts = FeatureStore(folder / "texts", {"features": real.shape[1]})
    for side, rows in (("r", real), ("f", fake)):
        for part in np.array_split(np.arange(len(rows)), shards):
            values = {"features": rows[part].astype(np.float32)}
            if probabilities is not None:
                values["probabilities"] = probabilities[part].astype(np.float32)
            images.write([f"{side}{i}" for i in part], values)
    table = prompts(len(real), rare)
    keys = [text_key(text) for text in table.table["prompt"]]
    texts.write(keys, {"features": real.astype(np.float32)})
    context = Context(home=folder, cache=folder)
    encoder = EncoderPlan(Plugin(spec, "t"), Parameters(), context, {}, images, texts)
    if isinstance(metric, str):
        plugin = REGISTRY.metrics[metric]
        # Real images against real ones take time, and are no part of these defects.
        plugin = dataclasses.replace(plugin, spec=dataclasses.replace(plugin.spec, floor=False))
        metric = MetricPlan(plugin, plugin.parse({}), ("e",))
    sides = Sides(
        prompts=table,
        real=[f"r{i}" for i in range(len(real))],
        fake=[f"f{i}" for i in range(len(fake))],
        fake_rows=np.arange(len(fake)) if fake_rows is None else np.asarray(fake_rows),
    )
    subsets = ("overall", "Fracture") if rare else ("overall",)
    masks = {name: table.subset_mask(name) for name in subsets}
    found, _ = score(sides, [metric], [encoder], seed=0, masks=masks)
    return {(item.metric, item.subset): item for item in found}


RECORD = RunRecord(
    run_id="run",
    suite="s",
    model="m",
    split="t",
    protocol="standard",
    seed=0,
    status="finished",
    created_at="2026-01-01T00:00:00+00:00",
)


def stored(folder: Path, scores: Iterable[Score]) -> list[dict[str, Any]]:
    """The rows of DuckDB's `scores` after these went through a run directory."""
    columns = RUN_TABLES["scores"].names
    facts = {name: getattr(RECORD, name) for name in columns if hasattr(RECORD, name)}
    rows = []
    for item in scores:
        mine = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
        rows.append({name: mine.get(name, facts.get(name)) for name in columns})
    tables: dict[str, Any] = {name: schema.empty_table() for name, schema in RUN_TABLES.items()}
    write_run(folder / "runs" / "run", RECORD, tables | {"scores": pd.DataFrame(rows)})
    store = Store(folder / "store.duckdb")
    store.ingest([folder / "runs" / "run"])
    return list(store.query("SELECT * FROM scores").to_pylist())


# --- 1: averaged over shards ------------------------------------------------------------------

Sharded = Callable[[Array, Array, int], float]


def check_1(fid: Sharded) -> None:
    """The score of all images is one number, however the work was cut."""
    real, fake = features(1), features(2, shift=0.2)
    whole = fid(real, fake, 1)
    assert fid(real, fake, 4) == pytest.approx(whole, rel=1e-9)
    assert whole == pytest.approx(frechet_distance(real, fake).value, rel=1e-5)  # float32 store


def test_1_a_score_is_not_averaged_over_shards(tmp_path: Path) -> None:
    def ours(real: Array, fake: Array, shards: int) -> float:
        folder = tmp_path / str(shards)
        value = platform(folder, "fid", real, fake, shards=shards)["fid", "overall"].value
        assert value is not None
        return value

    def faulty(real: Array, fake: Array, shards: int) -> float:
        parts = zip(np.array_split(real, shards), np.array_split(fake, shards), strict=True)
        return float(np.mean([frechet_distance(x, y).value for x, y in parts]))

    check_1(ours)
    with pytest.raises(AssertionError):
        check_1(faulty)


# --- 2: Inception Score of pool features ------------------------------------------------------

Outputs = Mapping[str, Array]


def check_2(inception: Callable[[Outputs], float]) -> None:
    """Sure and even over five classes is a score of 5, whatever the features are."""
    sure = np.tile(np.eye(5), (40, 1))  # even in each of the ten parts too
    for seed in (1, 2):
        outputs = {"features": features(seed, n=200, d=64), "probabilities": sure}
        assert inception(outputs) == pytest.approx(5.0, rel=1e-6)


def test_2_the_inception_score_reads_class_probabilities(tmp_path: Path) -> None:
    def ours(outputs: Outputs) -> float:
        rows = outputs["features"]
        found = platform(
            tmp_path / str(abs(rows[0, 0])),
            "inception-score",
            rows,
            rows,
            probabilities=outputs["probabilities"],
        )
        value = found["inception_score", "overall"].value
        assert value is not None
        return value

    def faulty(outputs: Outputs) -> float:
        odds = np.exp(outputs["features"])
        return inception_score(odds / odds.sum(axis=1, keepdims=True)).value

    check_2(ours)
    with pytest.raises(AssertionError):
        check_2(faulty)


# --- 3: one subset of all, rounded ------------------------------------------------------------


def check_3(saved: Callable[[Array, Array], Mapping[str, Any]]) -> None:
    """Full precision, and an error that is that of other draws."""
    rows = []
    for seed in range(20):
        real, fake = features(2 * seed), features(2 * seed + 1, shift=0.1)
        rows.append(saved(real, fake))
        if seed == 0:
            # In float64 and in full; an image and the real one of its prompt are no pair.
            x, y = (side.astype(np.float32).astype(np.float64) for side in (real, fake))
            xx, yy, xy = ((a @ b.T / D + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
            off = ~np.eye(N, dtype=bool)
            expected = xx[off].mean() + yy[off].mean() - 2 * xy[off].mean()
            assert rows[0]["value"] == pytest.approx(expected, rel=1e-9)
    errors = np.array([row["standard_error"] for row in rows], dtype=float)
    assert (errors > 0).all()
    # The spread of twenty draws is known to 16 %: three times that, and the error's own excess.
    spread = float(np.std([row["value"] for row in rows], ddof=1))
    assert 0.6 < errors.mean() / spread < 1.7


@pytest.mark.slow
def test_3_kid_has_an_error_and_keeps_its_digits(tmp_path: Path) -> None:
    def ours(real: Array, fake: Array) -> Mapping[str, Any]:
        folder = tmp_path / str(abs(real[0, 0]))
        found = platform(folder, "kid", real, fake)["kid", "overall"]
        (row,) = stored(folder, [found])
        return row

    def faulty(real: Array, fake: Array) -> Mapping[str, Any]:
        subsets = [kernel_distance(real, fake).value]  # one, of all rows
        return {"value": round(np.mean(subsets), 3), "standard_error": round(np.std(subsets), 3)}

    def without_error(real: Array, fake: Array) -> Mapping[str, Any]:
        exact = kernel_distance(real, fake, pairs=True).value
        return {"value": exact, "standard_error": 0.0}

    check_3(ours)
    for wrong in (faulty, without_error):
        with pytest.raises(AssertionError):
            check_3(wrong)


# --- 4: unreadable images become black --------------------------------------------------------


class Brightness(Encoder):
    def preprocess(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.convert("L"), np.float32)).mean().reshape(1)

    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        return {"features": batch.numpy()}


Levels = tuple[list[float], set[str]]


def check_4(read: Callable[[Sequence[Path]], Levels], folder: Path) -> None:
    """What cannot be read is named and not counted."""
    paths = []
    for level in range(100, 108):
        paths.append(folder / f"{level}.png")
        Image.new("L", (32, 32), level).save(paths[-1])
    noisy = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noisy).save(folder / "whole.png")
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:-1000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    bad = [folder / name for name in ("truncated.png", "empty.png", "text.png", "missing.png")]
    levels, named = read([*paths[:4], *bad, *paths[4:]])
    assert levels == [float(level) for level in range(100, 108)]
    assert named == {path.name for path in bad}


def test_4_an_unreadable_image_is_no_black_image(tmp_path: Path) -> None:
    def ours(paths: Sequence[Path]) -> Levels:
        spec = EncoderSpec(
            name="b", summary="", load=Brightness, outputs={"features": 1}, preprocessing=""
        )
        context = Context(home=tmp_path, cache=tmp_path)
        images = FeatureStore(tmp_path / "images", {"features": 1})
        texts = FeatureStore(tmp_path / "texts", {"features": 1})
        plan = EncoderPlan(Plugin(spec, "t"), Parameters(), context, {}, images, texts)
        # A missing file has no content to hash.
        keyed = [(sha256_file(p) if p.exists() else p.name, p) for p in paths]
        done = extract(
            keyed,
            [],
            [plan],
            batch_size=3,
        )
        keys = [key for key, _ in keyed if key in images]
        levels = images.read(keys)["features"][:, 0].tolist()
        return levels, {path.name for key, path in keyed if key in done.bad}

    def faulty(paths: Sequence[Path]) -> Levels:
        levels = []
        for path in paths:
            try:
                image = Image.open(path).convert("L")
            except Exception:
                image = Image.new("L", (32, 32))
            levels.append(float(np.asarray(image, np.float32).mean()))
        return levels, set()

    def silent(paths: Sequence[Path]) -> Levels:
        levels, _ = faulty(paths)
        return [level for level in levels if level > 0], set()

    check_4(ours, tmp_path)
    for wrong in (faulty, silent):
        with pytest.raises(AssertionError):
            check_4(wrong, tmp_path)


# --- 5: squashed to 299, then enlarged --------------------------------------------------------

Preprocess = Callable[[Image.Image], torch.Tensor]


def check_5(preprocess: Preprocess) -> None:
    """To 518 at once, with the aspect kept, and with an antialias filter."""
    y, x = np.mgrid[:600, :1200]
    disc = np.where((x - 600) ** 2 + (y - 300) ** 2 < 150**2, 255, 0).astype(np.uint8)
    white = preprocess(Image.fromarray(disc))[0].numpy()
    white = white > (white.max() + white.min()) / 2
    wide, high = white.any(axis=0).sum(), white.any(axis=1).sum()
    assert abs(int(wide) - int(high)) <= 2, "a disc is a disc"

    # At the encoder's own size nothing is resized: lines of two pixels stay as sharp as they are.
    lines = np.where(np.arange(518) // 2 % 2 == 0, 200, 50).astype(np.uint8)
    seen = preprocess(Image.fromarray(np.tile(lines, (518, 1))))[0].numpy()
    flat = preprocess(Image.new("L", (518, 518), 125))[0].numpy()
    contrast = (200 - 50) / 2 / 255 / 0.2583
    assert (seen - flat).std() > 0.95 * contrast, "fine lines are kept"

    # Four times that size: lines of one pixel are finer than what is left, so they become grey.
    fine = np.where(np.arange(4 * 518) % 2 == 0, 200, 50).astype(np.uint8)
    seen = preprocess(Image.fromarray(np.tile(fine, (4 * 518, 1))))[0].numpy()
    assert (seen - flat)[:, 8:-8].std() < 0.05 * contrast, "no aliasing"
    assert abs((seen - flat).mean()) < 0.05 * contrast, "no aliasing"


def test_5_rad_dino_resizes_once_and_keeps_the_aspect(rad_dino: Path, tmp_path: Path) -> None:
    plugin = REGISTRY.encoders["rad-dino"]

    def encoder(**values: object) -> Preprocess:
        parameters = plugin.parse({"weights": str(rad_dino), **values})
        made = plugin.create(parameters, Context(home=tmp_path, cache=tmp_path))
        assert isinstance(made, Encoder)
        return made.preprocess

    def normalised(image: Image.Image) -> torch.Tensor:
        pixels = (np.asarray(image.convert("L"), np.float32) / 255 - 0.5307) / 0.2583
        return torch.from_numpy(pixels).expand(3, 518, 518)

    def squashed(image: Image.Image) -> torch.Tensor:
        return normalised(image.resize((299, 299)).resize((518, 518), Image.Resampling.BICUBIC))

    def stretched(image: Image.Image) -> torch.Tensor:
        return normalised(image.resize((518, 518), Image.Resampling.BICUBIC))

    def aliased(image: Image.Image) -> torch.Tensor:
        width, height = (side * 518 // min(image.size) for side in image.size)
        image = image.resize((width, height), Image.Resampling.NEAREST)
        left, top = (width - 518) // 2, (height - 518) // 2
        return normalised(image.crop((left, top, left + 518, top + 518)))

    check_5(encoder())
    published = encoder(**plugin.spec.protocols["legacy"])  # keeps the defect, under that name only
    for wrong, why in (
        (squashed, "disc"),
        (published, "disc"),
        (stretched, "disc"),
        (aliased, "aliasing"),
    ):
        with pytest.raises(AssertionError, match=why):
            check_5(wrong)


# --- 6: paired by position --------------------------------------------------------------------


class Gap(SetMetric):
    """How far each generated image is from the real one that it answers."""

    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        answered = fake.answers(real)
        assert (answered >= 0).all()
        return {"gap": Estimate(float(np.abs(fake.features - real.features[answered]).max()))}


Gaps = Callable[[Array, Array, Sequence[int]], float]


def check_6(gap: Gaps) -> None:
    """Copies of the real images are at their own prompt's image, however many answer a prompt."""
    real = features(1)
    for rows in (
        list(range(N)),
        [0, 0, *range(1, N)],  # a repeated prompt that only the generated side keeps
        [row for row in range(N) if row % 7],  # a real image without an answer
        list(reversed(range(N))),
    ):
        assert gap(real, real[rows], rows) == 0.0


def test_6_sides_are_paired_by_prompt(tmp_path: Path) -> None:
    spec = MetricSpec(
        name="gap",
        summary="",
        load=Gap,
        metric="set",
        scores=(ScoreSpec(name="gap", higher_is_better=False),),
    )
    metric = MetricPlan(Plugin(spec, "t"), Parameters(), ("e",))

    def ours(real: Array, fake: Array, rows: Sequence[int]) -> float:
        folder = tmp_path / f"{len(rows)} {rows[0]}"
        found = platform(folder, metric, real, fake, fake_rows=rows)["gap", "overall"]
        assert found.status == "ok", found.reason
        assert found.value is not None
        # The same rows joined to their own texts, which here are the real features.
        aligned = platform(folder / "a", "alignment", real, fake, fake_rows=rows)
        assert aligned["alignment", "overall"].value == pytest.approx(1.0, abs=1e-6)
        return found.value

    def faulty(real: Array, fake: Array, rows: Sequence[int]) -> float:
        pairs = min(len(real), len(fake))
        return float(np.abs(fake[:pairs] - real[:pairs]).max())

    check_6(ours)
    with pytest.raises(AssertionError):
        check_6(faulty)


# --- 7: a handful of images, no warning -------------------------------------------------------


def check_7(rows: Callable[[Array, Array, int], Sequence[Mapping[str, Any]]]) -> None:
    """A query can leave out the FID of a finding with fewer images than features; others stand."""
    found = {row["subset"]: row for row in rows(features(1), features(2, shift=0.2), D)}
    few, all_rows = found["Fracture"], found["overall"]
    assert few["n_fake"] == D
    assert few["warning"], "few images are warned about"
    assert "n <= d" in few["warning"], "the warning says why"
    assert few["warning_level"] > all_rows["warning_level"] == 0, "a query can tell them apart"
    assert few["ci_low"] is None, "no interval where none can be right"
    assert all_rows["warning"] is None
    assert all_rows["ci_low"] < all_rows["value"] < all_rows["ci_high"]


def test_7_the_fid_of_a_handful_of_images_is_warned_about(tmp_path: Path) -> None:
    def ours(real: Array, fake: Array, rare: int) -> Sequence[Mapping[str, Any]]:
        found = platform(tmp_path, "fid", real, fake, rare=rare)
        return stored(tmp_path, found.values())

    def row(subset: str, value: Estimate, count: int) -> Mapping[str, Any]:
        ends = {"ci_low": value.ci_low, "ci_high": value.ci_high, "value": value.value}
        return ends | {"subset": subset, "n_fake": count, "warning": None, "warning_level": 0}

    def faulty(real: Array, fake: Array, rare: int) -> Sequence[Mapping[str, Any]]:
        return [
            row("overall", frechet_distance(real, fake), len(fake)),
            row("Fracture", frechet_distance(real[:rare], fake[:rare]), rare),
        ]

    check_7(ours)
    with pytest.raises(AssertionError, match="few images are warned about"):
        check_7(faulty)


# --- 12: written into the last row ------------------------------------------------------------

Export = Callable[[Path, RunRecord, pd.DataFrame], object]


def check_12(export: Export, folder: Path) -> None:
    """A later score of a run stands in that run's row, whatever was added since."""
    first, second = (
        RECORD.model_copy(update={"run_id": name, "model": name}) for name in ("first", "second")
    )

    def row(metric: str, value: float, subset: str = "overall") -> Mapping[str, Any]:
        facts = {"metric": metric, "encoder": "inception-v3", "subset": subset}
        return facts | {"value": value, "status": "ok"}

    subsets = ("overall", "Edema")
    export(folder, first, pd.DataFrame([row("fid", 1.25, s) for s in subsets]))
    export(folder, second, pd.DataFrame([row("fid", 2.5, s) for s in subsets]))
    later = [row("fid", 1.25, s) for s in subsets] + [row("kid", 0.125, s) for s in subsets]
    export(folder, first, pd.DataFrame(later))
    for name in (OVERALL_NAME, CONDITIONAL_NAME):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows = {line["Run"]: line for line in csv.DictReader(file)}
        assert {run: line["FID"] for run, line in rows.items()} == {
            "first": "1.25",
            "second": "2.5",
        }
        assert rows["first"]["KID"] == "0.125"
        assert rows["second"]["KID"] == ""


def test_12_a_score_is_written_into_its_own_runs_row(tmp_path: Path) -> None:
    def faulty(folder: Path, record: RunRecord, scores: pd.DataFrame) -> object:
        columns = {"fid": "FID", "kid": "KID"}
        folder.mkdir(exist_ok=True)
        for name, subset in ((OVERALL_NAME, "overall"), (CONDITIONAL_NAME, "Edema")):
            path = folder / name
            rows = scores[scores["subset"] == subset]
            mine = dict(zip(rows["metric"].map(columns), rows["value"], strict=True))
            old = pd.read_csv(path) if path.exists() else pd.DataFrame()
            if list(mine) == ["FID"]:  # the main script appends a row
                old = pd.concat([old, pd.DataFrame([{"Run": record.run_id, "KID": None} | mine])])
            else:  # the script of the later metric finds the last one
                old = old.reset_index(drop=True)
                old.loc[len(old) - 1, "KID"] = mine["KID"]
            old.to_csv(path, index=False)
        return None

    check_12(export_run, tmp_path / "ours")
    with pytest.raises(AssertionError):
        check_12(faulty, tmp_path / "theirs")


# --- 16: swapped sides ------------------------------------------------------------------------


def check_16(scores: Callable[[Array, Array], Mapping[str, float]]) -> None:
    """Generated images of one of two kinds: all of them realistic, half of the real ones missed."""
    real = np.r_[features(1, N // 2), features(2, N // 2, shift=50.0)]
    found = scores(real, features(3, N, scale=0.5))
    assert found["precision"] > 0.95
    assert found["recall"] < 0.55
    assert found["coverage"] < 0.55
    # More than one ball holds a generated image where only half of the real ones are near.
    assert found["density"] > 1.0


def test_16_neither_precision_and_recall_nor_the_sides_are_swapped(tmp_path: Path) -> None:
    def ours(real: Array, fake: Array) -> Mapping[str, float]:
        found = platform(tmp_path, "prdc", real, fake)
        values = {name: item.value for (name, subset), item in found.items() if subset == "overall"}
        return {name: value for name, value in values.items() if value is not None}

    def plain(real: Array, fake: Array) -> dict[str, float]:
        return {name: estimate.value for name, estimate in prdc(real, fake).items()}

    def swapped_names(real: Array, fake: Array) -> Mapping[str, float]:
        found = plain(real, fake)
        return found | {"precision": found["recall"], "recall": found["precision"]}

    def swapped_sides(real: Array, fake: Array) -> Mapping[str, float]:
        return plain(fake, real)

    def both(real: Array, fake: Array) -> Mapping[str, float]:
        """Names and sides: precision and recall are right again, density and coverage are not."""
        return swapped_names(fake, real)

    check_16(ours)
    for wrong in (swapped_names, swapped_sides, both):
        with pytest.raises(AssertionError):
            check_16(wrong)
