"""What reading native-size radiographs adds to a network's time, ahead of it and before it.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py [--rounds 3] [--write]
        [--network rad-dino] [--network inception-v3] [--quick]

JPEG files of 2,500 x 3,000 grey levels, phantoms with grain at quality 95, of the size of a film's
file. The networks are RAD-DINO and Inception-v3 at their real architectures, with random weights.
Three sides, each a process of its own, take turns on the same files in the same batches:

* ``network``: the network's calls alone, on tensors that are there already.
* ``ours``: ``features.extract``, as ``evaluate`` calls it with nothing cached: files are hashed,
  decoded and preprocessed by threads ahead of the network, features are checked and written.
* ``pil``: the images of a batch are decoded by Pillow in the main thread and preprocessed by the
  same encoder, then the network is called, then the next batch.

Before the clock starts, every side has imported its modules, and loaded its network and called it
once. All features must be the same: the script ends with an error where one differs. How much of a
side's time was inside the network's calls is noted too: threads that decode take cores from it, and
other processes disturb that share less than a comparison with another turn. The files were just
written, so none is read from a disk. ``--quick`` takes few images and Inception-v3 alone (and one
layer of RAD-DINO where that is named), and is no measurement. ``--write`` puts the table into
docs/performance.md. Linux only (memory).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from side_by_side import ROOT, Cost, by_turns, machine, measure, spread, table, write_between

WIDTH, HEIGHT = 2500, 3000
QUALITY = 95
LAYERS = 12
TOLERANCE = 1e-5
"""Largest difference of a feature, as a part of the largest feature."""

GOAL = 0.05
"""What our path may add to the network's time."""

Features = NDArray[np.float32]

sys.path.append(str(ROOT / "tests"))


@dataclass(frozen=True)
class Size:
    """Images of a network's turn, and in one of its calls."""

    images: int
    batch: int


FULL = {"rad-dino": Size(16, 4), "inception-v3": Size(96, 8)}
QUICK = {"rad-dino": Size(2, 1), "inception-v3": Size(8, 4)}


# --- images and networks ----------------------------------------------------------------------


def make_films(folder: Path, images: int) -> None:
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    from chexgenbench_plugins.phantom import oracle_image

    with (ROOT / "MIMIC_Splits/demo/DEMO_ANNOTATIONS_TEST.csv").open(encoding="utf-8") as file:
        prompts = list(dict.fromkeys(row["annotated_prompt"] for row in csv.DictReader(file)))
    (folder / "films").mkdir()
    for number, prompt in enumerate(prompts[:images]):
        phantom = Image.fromarray(np.asarray(oracle_image(prompt, {}, number, size=512)))
        film = np.asarray(phantom.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        grain = np.random.default_rng(number).standard_normal(film.shape, np.float32)
        film = film + 6 * gaussian_filter(grain, 0.7)
        pixels = film.clip(0, 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / "films" / f"{number:03}.jpg", quality=QUALITY)


def films(folder: Path) -> list[Path]:
    return sorted((folder / "films").iterdir())


def make_network(folder: Path, name: str, layers: int) -> None:
    from random_encoders import save_inception, save_rad_dino

    place = folder / WEIGHTS[name]
    if name == "inception-v3":
        save_inception(place, films(folder)[:4])
    else:
        save_rad_dino(place, num_hidden_layers=layers, patch_size=14, initializer_range=0.05)


WEIGHTS = {"rad-dino": "rad-dino", "inception-v3": "inception.pth"}


class Bench:
    """An encoder that is loaded and warm, and the seconds that its calls took."""

    def __init__(self, folder: Path, network: str, size: Size) -> None:
        import torch

        from chexgenbench.registry import load_registry
        from chexgenbench.types import Context

        self.folder, self.batch = folder, size.batch
        self.paths = films(folder)[: size.images]
        self.plugin = load_registry().find("encoders", network)
        self.parameters = self.plugin.parse({"weights": str(folder / WEIGHTS[network])})
        self.context = Context(home=folder, cache=folder)
        self.encoder: Any = self.plugin.create(self.parameters, self.context)
        plain = self.encoder.encode
        shape = self.preprocess(self.paths[0]).shape
        with torch.inference_mode():
            plain(torch.zeros(self.batch, *shape))
        self.inside = 0.0

        def encode(batch: torch.Tensor) -> Any:
            begun = time.perf_counter()
            try:
                return plain(batch)
            finally:
                self.inside += time.perf_counter() - begun

        self.encoder.encode = encode

    def preprocess(self, path: Path) -> Any:
        """By Pillow alone: opened, decoded and handed to the encoder."""
        from PIL import Image

        with Image.open(path) as image:
            image.load()
            return self.encoder.preprocess(image)

    def encode(self, tensors: Sequence[Any]) -> Features:
        import torch

        with torch.inference_mode():
            features: Features = self.encoder.encode(torch.stack(list(tensors)))["features"]
        return features


# --- the sides --------------------------------------------------------------------------------


def network(bench: Bench) -> tuple[Cost, Features]:
    tensors = [bench.preprocess(path) for path in bench.paths]
    found: list[Features] = []

    def work() -> None:
        starts = range(0, len(tensors), bench.batch)
        found.extend(bench.encode(tensors[at : at + bench.batch]) for at in starts)

    return measure(work), np.concatenate(found)


def ours(bench: Bench) -> tuple[Cost, Features]:
    import pandas  # noqa: F401  (pyarrow takes it when it first makes a table)
    import pyarrow.parquet  # noqa: F401

    from chexgenbench.features.extract import EncoderPlan, extract, plan_encoder
    from chexgenbench.files import sha256_file

    images = [(sha256_file(path), path) for path in bench.paths]
    EncoderPlan.load = lambda _: bench.encoder  # type: ignore[assignment, method-assign]
    with tempfile.TemporaryDirectory() as place:
        plan = plan_encoder(
            bench.plugin, bench.parameters, bench.context, root=Path(place), weights={}
        )
        cost = measure(lambda: extract(images, [], [plan], batch_size=bench.batch))
        features = plan.images.read([key for key, _ in images])["features"]
        plan.close()
    return cost, features


def pil(bench: Bench) -> tuple[Cost, Features]:
    found: list[Features] = []

    def work() -> None:
        for at in range(0, len(bench.paths), bench.batch):
            batch = bench.paths[at : at + bench.batch]
            found.append(bench.encode([bench.preprocess(path) for path in batch]))

    return measure(work), np.concatenate(found)


SIDES: dict[str, tuple[str, Callable[[Bench], tuple[Cost, Features]]]] = {
    "network": ("network alone, tensors ready", network),
    "ours": ("`extract`, decoding ahead by threads", ours),
    "pil": ("Pillow in the main thread before each batch", pil),
}


def run_side(side: str, folder: Path, name: str, size: Size) -> dict[str, float]:
    bench = Bench(folder, name, size)
    cost, features = SIDES[side][1](bench)
    np.save(folder / f"{side}.npy", features)
    return {**dataclasses.asdict(cost), "inside": bench.inside}


# --- the tables -------------------------------------------------------------------------------


def agreement(folder: Path) -> float:
    """How far the features of all sides are apart; raises where that is too far."""
    alone = np.load(folder / "network.npy")
    gap = 0.0
    for side in SIDES:
        found = np.load(folder / f"{side}.npy")
        assert found.shape == alone.shape
        gap = max(gap, float(np.abs(found - alone).max() / np.abs(alone).max()))
    if gap > TOLERANCE:
        raise SystemExit(f"The features differ by {gap:.1e} of the largest.")
    return gap


def costs_table(costs: Mapping[str, Sequence[Cost]], inside: Mapping[str, list[float]]) -> str:
    alone = costs["network"]
    rows = []
    for side, (label, _) in SIDES.items():
        wall, worked = ([getattr(c, kind) for c in costs[side]] for kind in ("wall", "processor"))
        added = min(wall) / min(c.wall for c in alone) - 1
        processor = min(worked) / min(c.processor for c in alone) - 1
        rest = min(c / i - 1 for c, i in zip(wall, inside[side], strict=True))
        rows.append(
            [
                label,
                spread(wall),
                spread(worked),
                "" if side == "network" else f"{added:+.1%}",
                "" if side == "network" else f"{processor:+.1%}",
                f"{rest:.1%}",
                f"{max(c.memory for c in costs[side]):,.0f}",
            ]
        )
    header = ["", "seconds", "processor seconds", "added by the clock", "processor time added"]
    rows.append(["goal", "", "", f"at most {GOAL:+.0%}", "", "", ""])
    return table([*header, "outside of the network's calls", "MB"], rows)


def measured(folder: Path, name: str, size: Size, rounds: int) -> str:
    """The sides by turns, and their table."""
    inside: dict[str, list[float]] = {side: [] for side in SIDES}

    def apart(side: str) -> Callable[[], Cost]:
        def run() -> Cost:
            script = str(Path(__file__).resolve())
            words = ["--side", side, "--folder", folder, "--network", name]
            words += ["--images", size.images, "--batch", size.batch]
            done = subprocess.run(
                [sys.executable, script, *map(str, words)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            inside[side].append(found.pop("inside"))
            return Cost(**found)

        return run

    costs = by_turns({side: apart(side) for side in SIDES}, rounds)
    gap = agreement(folder)
    same = f"differ by {gap:.0e} of the largest at most" if gap else "are the same to the last bit"
    return (
        f"### {name}, {size.images} images in batches of {size.batch}\n\n"
        f"{costs_table(costs, inside)}\n\n"
        f"Features of the three sides {same}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=FULL, action="append", help="both where not said")
    parser.add_argument("--images", type=int, help="a turn")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--side", choices=SIDES, help="one side in this process")
    parser.add_argument("--folder", type=Path, help="of --side")
    chosen = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    names = chosen.network or (["inception-v3"] if chosen.quick else list(FULL))
    sizes = {
        name: Size(chosen.images or size.images, chosen.batch or size.batch)
        for name, size in (QUICK if chosen.quick else FULL).items()
    }
    if chosen.side:
        print(json.dumps(run_side(chosen.side, chosen.folder, names[0], sizes[names[0]])))
        return
    if chosen.quick and chosen.write:
        parser.error("--quick is no measurement: it is not written")
    for name in names:
        if sizes[name].images % sizes[name].batch:
            parser.error("images must fill whole batches: ours fills the last one up")
    rounds, layers = (1, 1) if chosen.quick else (chosen.rounds, LAYERS)
    begin = machine()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_films(folder, max(sizes[name].images for name in names))
        for name in names:
            make_network(folder, name, layers)
        weights = [path.stat().st_size / 1e6 for path in films(folder)]
        parts = [measured(folder, name, sizes[name], rounds) for name in names]
    text = (
        f"{begin}; {rounds} turns a side, interleaved; JPEG files of {WIDTH:,} x {HEIGHT:,} grey "
        f"levels, {spread(weights)} MB.\n\n" + "\n\n".join(parts)
    )
    print(text)
    if chosen.quick:
        print("\nNo measurement: one turn, few images.")
    if chosen.write:
        write_between(ROOT / "docs" / "performance.md", "decoding", text)


if __name__ == "__main__":
    main()
