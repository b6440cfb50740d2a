"""What an evaluation costs beside the published route, and beside the bare networks.

    OMP_NUM_THREADS=1 python benchmarks/overall.py [--images 24] [--rounds 2] [--write]
        [--published-rounds 1] [--keep FILE] [--quick]

Three sides, each a process of its own, take turns on the same PNG images of 512 x 512 and the same
networks (Inception-v3 and RAD-DINO at their real architectures, random weights):

* ``bare``: both networks once over all images of both sides, as tensors that are there already.
* ``ours``: ``chexgenbench evaluate --protocol legacy`` in the process, its imports aside: a first
  model with nothing cached, a second model against the same real images, the first again under
  another seed with every feature cached; that last once more as a command of its own. Reading,
  hashing, decoding, loading the networks, writing the features and the store are all inside.
  How much of it the networks' own calls were is noted too: other processes disturb that share less
  than a comparison with another turn.
* ``published``: the steps of the published code (tests/published/fidelity.py), each network run
  once for every metric object that asks, so RAD-DINO three times an image, Inception twice and
  thrice; its networks are loaded outside of the time. Then once for one finding: the published code
  is run 14 times for the 14, and the table multiplies.

``legacy`` because there the definitions are the published ones, so that the values can be compared:
the script ends with an error where they differ. Below 21 images a side, as in the findings, this
project takes no neighbours, and below 20 no Inception Score; the published route does, which costs
it nothing that shows. The library of the report's charts, which is made once on a machine, is made
before. ``--keep`` appends what each turn found to a file and counts what it has already.
An encoder fills its last batch up, so that no row depends on their number: ``--images`` should be
whole batches, as a real evaluation nearly is.
``--quick`` takes one layer of RAD-DINO and 7 images, in two minutes, and is no measurement.
``--write`` puts the tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import ROOT, machine, spread, table, write_between

from chexgenbench.types import FINDINGS

SIZE = 512
LAYERS = 12
BATCH = 12
TOLERANCE = 1e-3
"""Relative, of equal definitions; see docs/protocols.md."""

COLUMNS = {
    ("fid", "inception-v3"): "FID",
    ("kid", "inception-v3"): "KID",
    ("inception_score", "inception-v3"): "Inception Score",
    ("fid", "rad-dino"): "FID (RadDino)",
    ("kid", "rad-dino"): "KID (RadDino)",
    ("precision", "rad-dino"): "Precision",
    ("recall", "rad-dino"): "Recall",
    ("density", "rad-dino"): "Density",
    ("coverage", "rad-dino"): "Coverage",
}
METRICS = ("fid", "kid", "inception-score@inception-v3", "prdc@rad-dino")
MODELS = ("first", "second")
FINDING = FINDINGS[0]

sys.path.append(str(ROOT / "tests"))


@dataclass
class Found:
    """What one process of a side found.

    Attributes:
        costs: work to seconds by the clock and of the processor.
        values: subset to the columns of the published table.
        load: of the machine when the turn began.
    """

    side: str
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    costs: dict[str, tuple[float, float]] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, work: str) -> Iterator[None]:
        begun, worked = time.perf_counter(), time.process_time()
        yield
        self.costs[work] = (time.perf_counter() - begun, time.process_time() - worked)


# --- images and networks ----------------------------------------------------------------------


WITH_FINDING = 7
"""Images a side that each finding has: fewer the published code cannot take neighbours of."""


def make_desk(folder: Path, images: int, layers: int) -> None:
    """Tables, images and weights of all sides."""
    from PIL import Image, ImageFilter

    from chexgenbench_plugins.phantom import oracle_image
    from random_encoders import save_inception, save_rad_dino

    with (ROOT / "MIMIC_Splits/demo/DEMO_ANNOTATIONS_TEST.csv").open(encoding="utf-8") as file:
        prompts = list(dict.fromkeys(row["annotated_prompt"] for row in csv.DictReader(file)))
    for name in ("real", *MODELS):
        (folder / name).mkdir(parents=True)
    rows = []
    for number, prompt in enumerate(prompts[:images]):
        for place, (name, blur) in enumerate((("real", 0.0), ("first", 1.5), ("second", 3.0))):
            pixels = oracle_image(prompt, {}, 1000 * place + number, size=128)
            image = Image.fromarray(np.asarray(pixels)).resize((SIZE, SIZE))
            if place:  # as the pipelines give them
                image = image.filter(ImageFilter.GaussianBlur(blur)).convert("RGB")
            image.save(folder / name / f"{number}.png")
        labels = {
            finding: float((number - 5 * place) % images < WITH_FINDING)
            for place, finding in enumerate(FINDINGS)
        }
        rows.append(
            {
                "id": f"s{number}",
                "path": f"real/{number}.png",
                "view": "PA",
                "chexpert_labels": str(labels),
                "annotated_prompt": prompt,
                "patientID": f"p{number}",
            }
        )
    _write(folder / "split.csv", rows)
    made = [
        {"prompt": row["annotated_prompt"], "img_savename": f"{number}.png"}
        for number, row in enumerate(rows)
    ]
    _write(folder / "made.csv", made)
    some = [folder / "first" / f"{number}.png" for number in range(min(images, 12))]
    save_inception(folder / "inception.pth", some)
    save_rad_dino(
        folder / "rad-dino", num_hidden_layers=layers, patch_size=14, initializer_range=0.05
    )


def _write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# --- the sides --------------------------------------------------------------------------------


def _settings(folder: Path) -> dict[str, str]:
    return {"inception-v3": str(folder / "inception.pth"), "rad-dino": str(folder / "rad-dino")}


def bare(folder: Path, batch: int) -> Found:
    import torch
    from PIL import Image

    from chexgenbench.registry import load_registry
    from chexgenbench.types import Context

    registry = load_registry()
    found = Found("bare")
    context = Context(home=folder, cache=folder)
    paths = [path for name in ("real", "first") for path in sorted((folder / name).iterdir())]
    images = [Image.open(path).convert("RGB") for path in paths]
    work: list[tuple[Callable[[Any], Any], Any]] = []
    for name, weights in _settings(folder).items():
        plugin = registry.find("encoders", name)
        legacy = plugin.spec.protocols["legacy"]
        encoder: Any = plugin.create(plugin.parse({**legacy, "weights": weights}), context)
        run = encoder.network.trunk if name == "inception-v3" else encoder.network
        tensors = torch.stack([encoder.preprocess(image) for image in images])
        with torch.inference_mode():
            run(tensors[:1])
        work.append((run, tensors))
    with found.timed("forward"), torch.inference_mode():
        for run, tensors in work:
            for part in tensors.split(batch):
                run(part)
    return found


def ours(folder: Path, batch: int) -> Found:
    import transformers.models.dinov2.modeling_dinov2  # noqa: F401
    from torch_fidelity import feature_extractor_inceptionv3  # noqa: F401

    from chexgenbench.cli.main import app
    from chexgenbench.report.charts import program
    from chexgenbench.workflow import run as workflow
    from chexgenbench_plugins.encoders.dinov2 import DinoV2
    from chexgenbench_plugins.encoders.inception_v3 import InceptionV3

    found = Found("ours")
    spent = [0.0, 0.0]
    for kind in (DinoV2, InceptionV3):

        def encode(self: Any, batch: Any, plain: Any = kind.encode) -> Any:
            begun, worked = time.perf_counter(), time.thread_time()
            try:
                return plain(self, batch)
            finally:
                spent[0] += time.perf_counter() - begun
                spent[1] += time.thread_time() - worked  # not that of threads that decode

        kind.encode = encode
    seen: dict[str, Any] = {}
    real_score = workflow.score

    def by_parts(sides: Any, metrics: Any, encoders: Any, *, masks: Any, **more: Any) -> Any:
        """The same scores, the findings timed by themselves."""
        overall = {name: mask for name, mask in masks.items() if name == "overall"}
        others = {name: mask for name, mask in masks.items() if name != "overall"}
        first, samples = real_score(sides, metrics, encoders, masks=overall, **more)
        with found.timed("findings"):
            second, further = real_score(sides, metrics, encoders, masks=others, **more)
        seen.update(sides=sides, encoders={each.name: each for each in encoders})
        seen["scores"] = [*first, *second]
        return seen["scores"], [*samples, *further]

    workflow.score = by_parts
    with tempfile.TemporaryDirectory() as place:
        os.environ["CHEXGENBENCH_CACHE"] = str(Path(place, "cache"))
        Path(place, "home").mkdir()
        program(Path(place, "cache"))

        def words(model: str, seed: int) -> list[str]:
            given = ["evaluate", "--split", folder / "split.csv", "--images-root", folder]
            given += ["--images-csv", folder / "made.csv", "--images-dir", folder / model]
            given += ["--name", model, "--home", Path(place, "home"), "--device", "cpu"]
            given += ["--protocol", "legacy", "--encode-batch-size", batch, "--seed", seed]
            for encoder, weights in _settings(folder).items():
                given += ["--encoder", encoder, "--set", f"{encoder}.weights={weights}"]
            for metric in METRICS:
                given += ["--metric", metric]
            return [*map(str, given), "--quiet"]

        def evaluate(work: str, model: str, seed: int) -> None:
            with contextlib.redirect_stdout(io.StringIO()), found.timed(work):
                app(words(model, seed), standalone_mode=False)

        evaluate("cold", "first", 0)
        found.costs["networks"] = (spent[0], spent[1])
        cold = found.costs["cold"], found.costs.pop("findings")
        whole, findings = cold
        found.costs["overall"] = (whole[0] - findings[0], whole[1] - findings[1])
        found.values = _values(**seen)
        evaluate("second", "second", 0)
        evaluate("again", "first", 1)
        found.costs["findings"] = findings
        begun = time.perf_counter()
        before = os.times()
        command = [str(Path(sys.executable).with_name("chexgenbench")), *words("first", 2)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        worked = sum(after[2:4]) - sum(before[2:4])
        found.costs["command"] = (time.perf_counter() - begun, worked)
    return found


def _values(sides: Any, encoders: Any, scores: Any) -> dict[str, dict[str, float]]:
    """The columns of the published table, overall and of one finding."""
    import torch
    from scipy.special import softmax

    from chexgenbench.statistics import inception_score

    values: dict[str, dict[str, float]] = {"overall": {}, FINDING: {}}
    for each in scores:
        column = COLUMNS.get((each.metric, each.encoder))
        if column and each.subset in values and each.status == "ok":
            values[each.subset][column] = each.value
    # The published order of the rows is drawn at random, and torch cuts n rows into parts of
    # ceil(n / 10): the same order and parts, for the comparison alone.
    torch.manual_seed(42)
    order = torch.randperm(len(sides.fake))
    keys = [sides.fake[row] for row in order.tolist()]
    rows = encoders["inception-v3"].images.read(keys)["features"].astype(np.float64)
    parts = len(order.chunk(10))
    if len(order) >= 2 * parts:
        values["overall"]["Inception Score"] = inception_score(softmax(rows, axis=1), parts).value
    values[FINDING].pop("Inception Score", None)
    return values


def published(folder: Path, batch: int) -> Found:
    import torch
    import transformers
    from torchmetrics.image.fid import NoTrainInceptionV3

    from published import fidelity

    class Pool(torch.nn.Module):
        """Inception for every metric that asks, each time."""

        num_features = 2048

        def __init__(self) -> None:
            super().__init__()
            weights = str(folder / "inception.pth")
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights)

        def forward(self, images: Any) -> Any:
            return self.network(images)

    class Pooled(torch.nn.Module):
        """RAD-DINO behind its processor for every metric that asks, each time."""

        num_features = 768

        def __init__(self) -> None:
            super().__init__()
            place = folder / "rad-dino"
            self.network = transformers.AutoModel.from_pretrained(place).eval()
            self.processor = transformers.BitImageProcessorPil.from_pretrained(place)

        def forward(self, images: Any) -> Any:
            with torch.inference_mode():
                given = self.processor(images=images, return_tensors="pt")
                return self.network(**given).pooler_output

    found = Found("published")
    pool, pooled = Pool(), Pooled()
    whole = fidelity.compared(folder / "split.csv", folder / "made.csv", None, "prompt")
    for subset, pathology in (("overall", None), (FINDING, FINDING)):
        real, fake = fidelity.compared(
            folder / "split.csv", folder / "made.csv", pathology, "prompt"
        )
        if pathology and (real, fake) == whole:  # --quick: all images have it
            found.costs[subset] = found.costs["overall"]
            found.values[subset] = found.values["overall"]
            continue
        with found.timed(subset):
            found.values[subset] = fidelity.scores(
                [folder / name for name in real],
                [folder / "first" / name for name in fake],
                pool,
                pooled,
                batch,
            )
    return found


SIDES: dict[str, Callable[[Path, int], Found]] = {
    "bare": bare,
    "ours": ours,
    "published": published,
}


# --- the tables -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A row of the table: what was measured, of which side."""

    label: str
    side: str
    name: str
    times: int = 1


WORKS = {
    "bare": Work("both networks, forward pass alone", "bare", "forward"),
    "overall": Work("`evaluate`, nothing cached, overall scores", "ours", "overall"),
    "networks": Work("of which inside the two networks", "ours", "networks"),
    "published": Work("published route, overall scores", "published", "overall"),
    "findings": Work("`evaluate`, what the 14 findings add", "ours", "findings"),
    "published-findings": Work("published route, one finding, times 14", "published", FINDING, 14),
    "cold": Work("`evaluate`, nothing cached, all scores", "ours", "cold"),
    "second": Work("`evaluate`, second model, same real images", "ours", "second"),
    "again": Work("`evaluate` again, all features cached, other seed", "ours", "again"),
    "command": Work("the same as a command, its start included", "ours", "command"),
}

GOALS = (
    ("overall scores", "published", "overall", "at least 2.7 times faster"),
    ("overall scores, part of the bare pass", "overall", "bare", "at most 1.08"),
    ("overall scores, part of the networks within", "overall", "networks", "at most 1.08"),
    ("14 findings after overall", "published-findings", "findings", "at least 40 times faster"),
    ("second model, part of the first", "second", "cold", "at most 0.55"),
    ("again with all cached", "cold", "again", "at least 100 times faster"),
    ("the same, start of the command included", "cold", "command", ""),
)


def costs_table(results: Sequence[Found]) -> str:
    def all_of(key: str) -> list[tuple[float, float]]:
        work = WORKS[key]
        return [
            (each.costs[work.name][0] * work.times, each.costs[work.name][1] * work.times)
            for each in results
            if each.side == work.side and work.name in each.costs
        ]

    rows = []
    for key, work in WORKS.items():
        costs = all_of(key)
        wall, worked = zip(*costs, strict=True)
        rows.append([work.label, str(len(costs)), spread(wall), spread(worked)])
    measured = table(["work", "runs", "seconds", "processor seconds"], rows)
    rows = []
    for label, over, under, goal in GOALS:
        above, below = all_of(over), all_of(under)
        ratios = [min(c[i] for c in above) / min(c[i] for c in below) for i in (0, 1)]
        rows.append([label, goal, *(f"{ratio:,.2f}" for ratio in ratios)])
    return f"{measured}\n\n{table(['', 'goal', 'by the clock', 'by processor time'], rows)}"


def agreement(results: Sequence[Found]) -> str:
    """The values of both sides; raises where equal definitions differ."""
    mine, theirs = (
        next(each.values for each in results if each.side == side) for side in ("ours", "published")
    )
    rows, faults = [], []
    for subset, values in mine.items():
        for column in COLUMNS.values():
            if column not in values:
                continue
            value, expected = values[column], theirs[subset][column]
            gap = abs(value - expected) / max(abs(expected), 1e-12)
            rows.append([subset, column, f"{value:.6g}", f"{expected:.6g}", f"{gap:.1e}"])
            if gap > TOLERANCE:
                faults.append(f"{column} of {subset}: {value} and {expected}")
    print(table(["subset", "score", "here", "published route", "relative difference"], rows))
    if faults:
        raise SystemExit("The two sides differ: " + "; ".join(faults))
    largest = max(float(row[-1]) for row in rows)
    return (
        f"All {len(rows)} scores that both sides have (overall and {FINDING}) agree to "
        f"{largest:.0e} of their value."
    )


def turn(side: str, folder: Path, batch: int) -> Found:
    script = str(Path(__file__).resolve())
    command = [sys.executable, script, "--side", side, "--folder", str(folder)]
    done = subprocess.run(
        [*command, "--batch", str(batch)], check=True, stdout=subprocess.PIPE, text=True
    )
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="a side")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of RAD-DINO; it has 12")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=2, help="of the bare pass and of ours")
    parser.add_argument("--published-rounds", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a file of earlier turns, to which these go too")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--side", choices=SIDES, help="one side in this process")
    parser.add_argument("--folder", type=Path, help="of --side")
    chosen = parser.parse_args()
    if chosen.side:
        os.environ["HF_HUB_OFFLINE"] = "1"
        print(json.dumps(vars(SIDES[chosen.side](chosen.folder, chosen.batch))))
        return
    if chosen.quick:
        chosen.images, chosen.layers, chosen.batch, chosen.rounds = WITH_FINDING, 1, WITH_FINDING, 1
        if chosen.write:
            parser.error("--quick is no measurement: it is not written")
    results: list[Found] = []
    if chosen.keep and chosen.keep.exists():
        results = [Found(**json.loads(line)) for line in chosen.keep.read_text().splitlines()]
    begin = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rounds = max(chosen.rounds, chosen.published_rounds)
        if rounds:
            make_desk(folder, chosen.images, chosen.layers)
        for number in range(rounds):
            for side in ("bare", "ours", "published"):
                if number < (chosen.published_rounds if side == "published" else chosen.rounds):
                    results.append(turn(side, folder, chosen.batch))
                    print(side, results[-1].costs, file=sys.stderr, flush=True)
                    if chosen.keep:
                        with chosen.keep.open("a") as file:
                            file.write(json.dumps(vars(results[-1])) + "\n")
    if lacking := SIDES.keys() - {each.side for each in results}:
        print(f"no table: no turn of {', '.join(sorted(lacking))}")
        return
    agreed = agreement(results)
    loads = [each.load for each in results]
    size = f"{chosen.images} images of {SIZE} x {SIZE} a side, {WITH_FINDING} in each finding"
    text = (
        f"{begin}, {min(loads):.1f} to {max(loads):.1f} as turns began; {size}; batches of "
        f"{chosen.batch}. {agreed}\n\n{costs_table(results)}"
    )
    print(text)
    if chosen.write:
        write_between(ROOT / "docs" / "performance.md", "overall", text)


if __name__ == "__main__":
    main()
