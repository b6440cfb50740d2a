"""Known answers of the utility metrics on the chest phantom.

    python benchmarks/utility.py FOLDER [--images 1000] [--diffusion 1000] [--seeds 3] [--epochs 12]
                                 [--models oracle,noise] [--regimes real,synthetic]
                                 [--parts probe,classification,leakage,coverage]

Images and trainings stay in FOLDER, so that a second call goes on. Expected macro AUROC on real
test images: oracle as real, then phantom-diffusion, then noise at chance. ``leakage`` puts the test
patients' own images into training, at equal sizes, which must raise the score. ``coverage`` draws
trainings and test patients with known spread and counts how often the intervals hold the truth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench.files import sha256_file
from chexgenbench.generation.requests import make_requests
from chexgenbench.images import read_image, to_image
from chexgenbench.registry import load_registry
from chexgenbench.splits.prompts import PromptTable, read_prompts
from chexgenbench.statistics import Estimate
from chexgenbench.statistics.classification import roc_auc
from chexgenbench.statistics.difference import UnitInfluence
from chexgenbench.types import Context, ImageNeed, ImageSet, Task, TaskScore

SEED = 20250516
MODELS = ("oracle", "phantom-diffusion", "noise")
REGISTRY = load_registry()

# A small network from scratch, for 64 x 64 phantoms on two cores.
NETWORK: dict[str, Any] = {
    "backbone": "resnet10t",
    "size": 64,
    "batch_size": 32,
    "learning_rate": 1e-3,
}


class Bench:
    """The demo split, its images and features, and what models make for its training prompts."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder = folder
        self.context = Context(home=folder, cache=folder / "cache")
        plugin = REGISTRY.splits["demo"]
        source = plugin.load()(plugin.parse({}), self.context).source()
        assert source.train is not None
        self.test, training = (
            read_prompts(
                path, name="demo", images_root=source.images_root, materialise=source.materialise
            )
            for path in (source.test, source.train)
        )
        # The first rows of whole patients are a fair draw: patients come in random order.
        self.training = training.limit(images)
        encoder = REGISTRY.encoders["phantom-clip"]
        self.encoder = encoder.load()(encoder.parse({}), self.context)

    def real(self, table: PromptTable, side: str) -> ImageSet:
        rows = np.arange(len(table))
        table.materialise_rows(rows.tolist())
        ids = table.table["prompt_id"].tolist()
        return self._set(table, side, "real", rows, ids, [table.path(row) for row in rows])

    def made(self, model: str, count: int) -> ImageSet:
        """One image for each of the first `count` training prompts."""
        table = self.training.limit(count)
        plugin = REGISTRY.models[model]
        folder = self.folder / model
        folder.mkdir(parents=True, exist_ok=True)
        requests = make_requests(table, seed=SEED, repeats=1, size=None)
        paths = [folder / f"{request.id}.png" for request in requests]
        batch = plugin.spec.batch_size
        network = None
        for start in range(0, len(requests), batch):
            part = slice(start, start + batch)
            if all(path.exists() for path in paths[part]):
                continue
            network = network or plugin.load()(plugin.parse({}), self.context)
            for image, path in zip(network.generate(requests[part]), paths[part], strict=True):
                to_image(getattr(image, "image", image))[0].save(path)
        ids = [request.id for request in requests]
        return self._set(table, "training", "model", np.arange(len(table)), ids, paths)

    def _set(
        self,
        table: PromptTable,
        side: Any,
        source: Any,
        rows: NDArray[np.int64],
        ids: Sequence[str],
        paths: Sequence[Path],
    ) -> ImageSet:
        import torch

        features = []
        with torch.inference_mode():
            for start in range(0, len(paths), 64):
                batch = [self.encoder.preprocess(read_image(p)) for p in paths[start : start + 64]]
                features.append(self.encoder.encode(torch.stack(batch))["features"])
        return ImageSet(
            need=ImageNeed(side=side, source=source),
            prompts=table,
            rows=rows,
            repeats=np.zeros(len(rows), np.int64),
            ids=tuple(ids),
            keys=tuple(sha256_file(path) for path in paths),
            paths=tuple(paths),
            outputs={"features": np.concatenate(features)},
        )

    def scores(
        self, metric: str, values: dict[str, Any], real: ImageSet, made: ImageSet, test: ImageSet
    ) -> list[TaskScore]:
        plugin = REGISTRY.metrics[metric]
        task = Task(
            sets={"real": real, "synthetic": made, "test": test},
            encoder="phantom-clip",
            model="bench",
            seed=SEED,
            folder=self.folder / "task",
            context=self.context,
            stage=_stage,
            say=print,
        )
        return list(plugin.load()(plugin.parse(values), self.context).run(task).scores)


@contextmanager
def _stage(name: str, _total: int, _unit: str = "images") -> Iterator[Any]:
    start = time.time()
    yield lambda _count: None
    if time.time() - start > 5:
        print(f"    [{name}: {time.time() - start:.0f} s]", flush=True)


def show(title: str, scores: Sequence[TaskScore]) -> None:
    for score in scores:
        if score.subset == "macro" and isinstance(score.estimate, Estimate):
            one = score.estimate
            ends = (
                f"{one.ci_low:.3f} to {one.ci_high:.3f}" if one.ci_low is not None else one.reason
            )
            print(
                f"| {title} | {score.name} | {score.variant} | {one.value:.3f} | {ends} |"
                f" {score.n_real} | {score.n_fake} |",
                flush=True,
            )


def leakage(bench: Bench, test: ImageSet, epochs: int, seeds: int) -> None:
    """Training images of other patients against as many, half of them the test's own."""
    full = bench.real(bench.training, "training")
    count = len(test)
    assert len(full) >= count
    clean = full.take(np.arange(count))
    for title, chosen in (("clean", clean), ("half leaked", _half_of(clean, test))):
        network = NETWORK | {"regimes": ("real",), "seeds": seeds, "epochs": epochs}
        for metric, values in (
            ("linear-probe", {"regimes": ("real",)}),
            ("classification", network),
        ):
            show(f"{metric}, {title}", bench.scores(metric, values, chosen, chosen, test))


def _half_of(clean: ImageSet, test: ImageSet) -> ImageSet:
    """The first half of the training images, and every second test image with its labels."""
    import pandas as pd

    leaked = test.take(np.arange(0, len(test), 2))
    kept = clean.take(np.arange(len(clean) - len(leaked)))
    table = pd.concat(
        [kept.prompts.table.iloc[kept.rows], leaked.prompts.table.iloc[leaked.rows]],
        ignore_index=True,
    )
    return replace(
        clean,
        prompts=replace(clean.prompts, table=table, conflicts=()),
        rows=np.arange(len(table)),
        repeats=np.zeros(len(table), np.int64),
        ids=kept.ids + leaked.ids,
        keys=kept.keys + leaked.keys,
        paths=kept.paths + leaked.paths,
        outputs={"features": np.concatenate([kept.features, leaked.features])},
    )


def seed_coverage(repeats: int = 500) -> None:
    """Intervals of a mean over seeds, and of the difference of two regimes.

    A patient's image has a score of class + patient + image + seed parts; seeds differ in how well
    they separate the classes (skill) and in what they say of each image (taste). The truth is the
    mean over many draws of everything.
    """
    from chexgenbench_plugins.classification.scores import mean_difference, mean_score

    for seeds, skill in ((1, 0.0), (3, 0.0), (3, 0.1), (3, 0.3), (5, 0.1), (5, 0.3)):
        rng = np.random.default_rng(0)
        single, gap = [], []
        for _ in range(repeats):
            patients = np.repeat(np.arange(75), 2)
            labels = (rng.random(150) < 0.25).astype(float)
            shared = rng.normal(size=75)[patients] * 0.6 + rng.normal(size=150) * 0.6
            names = patients.astype(str)
            both = []
            for strength in (1.0, 0.8):
                found = []
                for _seed in range(seeds):
                    own = strength + skill * rng.normal()
                    values = own * labels + shared + 0.5 * rng.normal(size=150)
                    score = roc_auc(values, labels, groups=names)
                    found.append(UnitInfluence.of(score, names[labels == 1], names[labels == 0]))
                both.append(found)
            single.append(mean_score(both[0]))
            gap.append(mean_difference(list(zip(*both, strict=True))))
        for name, found in (("mean over seeds", single), ("difference", gap)):
            _report(f"{name}, {seeds} seeds, skill {skill}", found)


def probe_coverage(folder: Path, repeats: int = 120) -> None:
    """Intervals of the linear probe where training and test patients are drawn again each time."""
    from chexgenbench.types import FINDINGS

    plugin = REGISTRY.metrics["linear-probe"]
    context = Context(home=folder, cache=folder)
    rng = np.random.default_rng(1)
    found: dict[str, list[Estimate]] = {}
    for _ in range(repeats):
        sets = {}
        for name, side, count in (("real", "training", 120), ("test", "test", 150)):
            patients = np.repeat(np.arange(count // 2), 2)
            labels = np.full((count, len(FINDINGS)), np.nan)
            labels[:, :3] = rng.random((count, 3)) < 0.35
            shared = rng.normal(size=(count // 2, 20))[patients] * 0.6
            sets[name] = (side, patients, labels, shared)
        images = {}
        for name, skill in (("real", 1.0), ("test", 1.0), ("synthetic", 0.0)):
            side, patients, labels, shared = sets["real" if name == "synthetic" else name]
            values = shared * (skill > 0) + 0.8 * rng.normal(size=shared.shape)
            values[:, :3] += skill * (labels[:, :3] == 1)
            images[name] = _drawn(values, side, name, patients, labels)
        task = Task(
            sets=images,
            encoder="toy",
            model="toy",
            seed=int(rng.integers(1 << 30)),
            folder=folder / "toy",
            context=context,
            stage=_stage,
            say=print,
        )
        values = {"regimes": ("real", "synthetic", "augmented"), "penalties": (0.01, 0.1)}
        for score in plugin.load()(plugin.parse(values), context).run(task).scores:
            if score.subset == "macro" and isinstance(score.estimate, Estimate):
                found.setdefault(score.variant, []).append(score.estimate)
    for name, estimates in found.items():
        _report(f"probe, {name}", estimates)


def _drawn(
    features: NDArray[np.float64],
    side: Any,
    name: str,
    patients: NDArray[np.int64],
    labels: NDArray[np.float64],
) -> ImageSet:
    import pandas as pd

    from chexgenbench.types import FINDINGS

    ids = [f"{side}-{i:04d}" for i in range(len(features))]
    table = pd.DataFrame({"prompt_id": ids, "patient_id": [f"{side}{p}" for p in patients]})
    table[list(FINDINGS)] = labels
    prompts = PromptTable(
        name="toy", table=table, source_file=Path("toy"), images_root=None, rows_read=len(ids)
    )
    return ImageSet(
        need=ImageNeed(side=side, source="model" if name == "synthetic" else "real"),
        prompts=prompts,
        rows=np.arange(len(ids)),
        repeats=np.zeros(len(ids), np.int64),
        ids=tuple(ids),
        keys=tuple(ids),
        paths=tuple(Path(each) for each in ids),
        outputs={"features": features.astype(np.float32)},
    )


def _report(name: str, found: Sequence[Estimate]) -> None:
    """Share of intervals that hold the mean of all values, and mean error over their spread."""
    truth = np.mean([one.value for one in found])
    held = [
        one.ci_low is not None and one.ci_high is not None and one.ci_low <= truth <= one.ci_high
        for one in found
    ]
    error = np.mean([one.standard_error for one in found if one.standard_error])
    ratio = error / np.std([one.value for one in found])
    print(f"| {name} | {truth:.3f} | {np.mean(held):.3f} | {ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--diffusion", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--regimes", default="real,synthetic,mixed,augmented,pretrained")
    parser.add_argument("--parts", default="coverage,probe,classification,leakage")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if "coverage" in parts:
        seed_coverage()
        probe_coverage(options.folder)
    if parts == ["coverage"]:
        return
    bench = Bench(options.folder, options.images)
    real, test = bench.real(bench.training, "training"), bench.real(bench.test, "test")
    for metric, part, values in (
        ("linear-probe", "probe", {"regimes": ("real", "synthetic", "mixed", "augmented")}),
        (
            "classification",
            "classification",
            NETWORK
            | {
                "seeds": options.seeds,
                "epochs": options.epochs,
                "regimes": options.regimes.split(","),
            },
        ),
    ):
        if part in parts:
            for model in options.models.split(","):
                count = options.diffusion if model == "phantom-diffusion" else options.images
                made = bench.made(model, count)
                show(model, bench.scores(metric, values, real, made, test))
    if "leakage" in parts:
        leakage(bench, test, 3 * options.epochs, options.seeds)


if __name__ == "__main__":
    main()
