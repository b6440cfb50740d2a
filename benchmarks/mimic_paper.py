"""The whole benchmark on MIMIC-CXR on paper: what it costs here, and on the published route.

    python benchmarks/mimic_paper.py [--findings 2] [--inception-v3 0.002] ... [--write]

Eleven models, 18,575 prompts, the overall scores and those of 14 findings. Neither the images nor
the weights nor a GPU are needed. Three kinds of numbers go in, and the tables say which is which:

* counted: how often a network sees an image. The published steps (tests/published/fidelity.py) run
  on a few images with networks that count; so does this platform's encoding, for two models and
  all subsets. Steps and sizes come from the descriptors of the eleven models.
* measured: bytes of an image, a row of features and a row of a run, written here by the
  platform's own functions; and the constants of benchmarks/overheads.json and docs/performance.md.
* given: how many findings an image shows, and the seconds that a GPU takes for a pass and for a
  denoising step. Those are examples, not measurements: name your own.

In seconds, and nothing is downloaded. ``--write`` puts the tables into docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from side_by_side import ROOT, table, write_between

from chexgenbench.features import extract, plan_encoder
from chexgenbench.features.store import FeatureStore
from chexgenbench.files import sha256_file
from chexgenbench.jobs.generate import generate, hold
from chexgenbench.jobs.manifest import IMAGES
from chexgenbench.registry import Plugin, load_registry
from chexgenbench.types import FINDINGS, Context, Encoder, EncoderSpec, Parameters, Request

PAGE, MEASURED = ROOT / "docs" / "scale.md", ROOT / "docs" / "performance.md"
NUMBERS = ROOT / "benchmarks" / "overheads.json"

MODELS = (
    *("sd-v1-4", "sd-v1-5", "sd-v2", "sd-v2-1", "sd-v3-5-medium", "radedit", "sana"),
    *("pixart-sigma", "lumina-2", "flux-1-dev", "llm-cxr"),
)
PROMPTS = 18_575
NETWORKS = ("inception-v3", "rad-dino", "biovil-t")
FEW = 8
"""Images a side on which passes are counted."""

sys.path.append(str(ROOT / "tests"))


# --- counted ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passes:
    """How often a network sees an image of each side, for one model and one set of prompts."""

    real: float
    fake: float


def draw(folder: Path) -> tuple[list[Path], list[Path]]:
    """Bright images for the real side and dark ones for the other."""
    random = np.random.default_rng(0)
    sides: list[list[Path]] = []
    for name, level in (("real", 128), ("fake", 0)):
        paths = [folder / f"{name}-{number}.png" for number in range(FEW)]
        for path in paths:
            Image.fromarray(random.integers(level, level + 128, (32, 32), np.uint8)).save(path)
        sides.append(paths)
    return sides[0], sides[1]


def published_passes(folder: Path) -> dict[str, Passes]:
    """By the published steps; alignment is a script of its own, a pass a generated image."""
    import torch

    from published import fidelity

    class Counting(torch.nn.Module):
        """A few numbers of an image; counts the bright and the dark ones that it is shown."""

        num_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.real = self.fake = 0

        def forward(self, images: Any) -> Any:
            levels = images.float().mean((1, 2, 3))
            self.real += int((levels >= 128).sum())
            self.fake += int((levels < 128).sum())
            return images[:, 0, ::100, ::100].float().flatten(1)[:, :4]

    real, fake = draw(folder)
    pool, pooled = Counting(), Counting()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics on its memory
        fidelity.scores(real, fake, pool, pooled, batch_size=4)
    found = [Passes(each.real / FEW, each.fake / FEW) for each in (pool, pooled)]
    return dict(zip(NETWORKS, [*found, Passes(0.0, 1.0)], strict=True))


class Counting(Encoder):
    """Stands for any encoder here: the platform gives all of them their images alike."""

    seen = 0

    def preprocess(self, image: Image.Image) -> Any:
        import torch

        return torch.from_numpy(np.asarray(image.convert("L"), np.float32)).mean().reshape(1)

    def encode(self, batch: Any) -> Mapping[str, NDArray[np.float32]]:
        type(self).seen += len(batch)
        return {"features": batch.numpy()}


def passes_here(folder: Path) -> tuple[Passes, Passes]:
    """Of the first model and of the second against the same real images, all subsets together."""
    real, first = draw(folder)
    second = [path.with_name(path.name.replace("fake", "other")) for path in first]
    for number, path in enumerate(second):
        Image.fromarray(np.full((32, 32), number, np.uint8)).save(path)
    spec = EncoderSpec(
        name="counting", summary="", load=Counting, outputs={"features": 1}, preprocessing=""
    )
    context = Context(home=folder, cache=folder)

    def take(paths: Sequence[Path]) -> float:
        """What overall and each finding ask for, each as a command of its own."""
        Counting.seen = 0
        for subset in range(1 + len(FINDINGS)):
            plan = plan_encoder(
                Plugin(spec, "counting"),
                Parameters(),
                context,
                root=folder / "features",
                weights={},
            )
            asked = paths[subset % 5 :]
            extract([(sha256_file(path), path) for path in asked], [], [plan], batch_size=1)
        return Counting.seen / FEW

    return Passes(take(real), take(first)), Passes(take(real), take(second))


@dataclass(frozen=True)
class Making:
    """What a model's descriptor says of an image.

    Attributes:
        steps: of denoising; None is a language model that draws codes.
    """

    name: str
    size: int
    steps: int | None


def makings() -> list[Making]:
    registry = load_registry()
    found = []
    for name in MODELS:
        spec = registry.find("models", name).spec
        field = spec.parameters.model_fields.get("steps")
        assert spec.image_size
        found.append(Making(name, spec.image_size, field.default if field else None))
    return found


# --- measured ---------------------------------------------------------------------------------


class Ready:
    """A model whose images are there."""

    def __init__(self, images: Sequence[Image.Image]) -> None:
        self._images = images

    def generate(self, asked: Sequence[Request]) -> list[Image.Image]:
        return [self._images[int(each.id[1:])] for each in asked]


def image_bytes(sizes: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Bytes of an image file as the platform writes it and as Pillow does by itself: phantoms in
    three colours, blurred as a model's are."""
    from chexgenbench_plugins.phantom import oracle_image

    prompt = "Heart size is normal. Small left pleural effusion. No pneumothorax."
    drawn = [Image.fromarray(np.asarray(oracle_image(prompt, {}, n, size=256))) for n in range(FEW)]
    found = {}
    for size in sizes:
        images = [
            each.resize((size, size)).filter(ImageFilter.GaussianBlur(1.5)).convert("RGB")
            for each in drawn
        ]
        requests = [
            Request(id=f"p{n}", prompt_id=f"p{n}", prompt=prompt, seed=n) for n in range(FEW)
        ]
        with tempfile.TemporaryDirectory() as name:
            folder, plain = Path(name, "made"), Path(name, "plain")
            folder.mkdir()
            plain.mkdir()
            with hold(folder):
                generate(
                    lambda: Ready(images),  # type: ignore[arg-type, return-value]  # noqa: B023
                    requests,
                    folder,
                    batch_size=FEW,
                    advance=lambda _count: None,
                )
            for number, image in enumerate(images):
                image.save(plain / f"{number}.png")
            found[size] = size_of(folder / IMAGES) / FEW, size_of(plain) / FEW
    return found


def feature_bytes(outputs: Mapping[str, int], rows: int = 1_024) -> float:
    """Bytes a row of a part of the cache."""
    random = np.random.default_rng(0)
    keys = [f"{number:064x}" for number in range(rows)]
    values = {name: random.random((rows, width), np.float32) for name, width in outputs.items()}
    with tempfile.TemporaryDirectory() as name:
        store = FeatureStore(Path(name), outputs)
        store.write(keys, values)
        store.close()
        return sum(part.stat().st_size for part in Path(name).glob("part-*")) / rows


def run_bytes(models: int, prompts: int) -> tuple[float, float]:
    """Bytes of the directories of all runs, influences aside, and of the store over them."""
    from store_speed import write_runs

    from chexgenbench.store.store import Store

    with tempfile.TemporaryDirectory() as name, redirect_stderr(StringIO()):
        folders = write_runs(Path(name), models, prompts, 1, 1)
        store = Path(name) / "store.duckdb"
        Store(store).ingest(folders)
        return float(sum(map(size_of, folders))), float(store.stat().st_size)


def influence_bytes(units: int = 2_000, width: int = 768) -> float:
    """Bytes that a run directory keeps of a prompt for all scores of one set: what it contributed.

    Two FID, two KID, Inception Score, precision, recall, density, coverage, alignment. From random
    features; the number of columns is that of the real ones.
    """
    import pyarrow.parquet as pq

    from chexgenbench.scoring.score import Score
    from chexgenbench.statistics import (
        Estimate,
        frechet_distance,
        inception_score,
        kernel_distance,
        mean_estimate,
        precision_recall_density_coverage,
    )
    from chexgenbench.statistics.difference import UnitInfluence
    from chexgenbench.workflow.differences import influence_table

    random = np.random.default_rng(0)
    x, y = (random.standard_normal((units, width), np.float32) for _ in range(2))
    chances = random.random((units, 64))
    chances /= chances.sum(axis=1, keepdims=True)
    distances = [
        frechet_distance(x, y, pairs=True),
        kernel_distance(x[:, :64], y[:, :64], pairs=True),
    ]
    shares = precision_recall_density_coverage(x[:, :8], y[:, :8], pairs=True)
    two_sided: list[Estimate] = [*distances, *distances, *shares.values()]
    one_sided = [inception_score(chances), mean_estimate(chances[:, 0])]
    names = np.array([f"s{50_000_000 + number}" for number in range(units)])
    kept = [UnitInfluence.of(each, names, names) for each in two_sided]
    kept += [UnitInfluence.of(each, names) for each in one_sided]
    scores = [
        Score(
            metric=f"m{number}",
            plugin="p",
            encoder="e",
            subset="overall",
            higher_is_better=True,
            n_real=units,
            n_fake=units,
            status="ok",
            influence=each,
        )
        for number, each in enumerate(kept)
    ]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "influences.parquet"
        # As `store.run_directory.write_run` does.
        found = influence_table("r", scores)
        pq.write_table(found, path, compression="zstd", write_page_checksum=True)
        return path.stat().st_size / units


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measured_ratio(label: str) -> float:
    """A ratio by processor time of the first table of docs/performance.md."""
    page = MEASURED.read_text(encoding="utf-8").partition("<!-- overall -->")[2]
    found = re.search(rf"^\| {re.escape(label)} \|.*\| ([\d.,]+) \|$", page, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{MEASURED} has no row {label!r}")
    return float(found[1].replace(",", ""))


# --- the tables -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What no measurement of this script says.

    Attributes:
        findings: that an image shows, on average: how many of the 14 subsets it is in.
        a_pass: network to the seconds of a GPU for one image.
        step: seconds of a GPU for a denoising step of one image of 512 x 512.
        code: seconds of a GPU for one of the codes of an image of a language model.
    """

    prompts: int
    findings: float
    a_pass: Mapping[str, float]
    step: float
    code: float

    def seconds(self, model: Making) -> float:
        """Of an image: steps, and pixels."""
        if model.steps is None:
            from chexgenbench_plugins.llm_cxr.sampling import LENGTH

            return float(LENGTH * self.code)
        return model.steps * self.step * (model.size / 512) ** 2


@dataclass(frozen=True)
class Encoded:
    """Passes of a network over all images of all models, and how many images there are."""

    network: str
    each: Passes
    images: int
    published: float
    here: float


def encoded(given: Given, each: Mapping[str, Passes], here: tuple[Passes, Passes]) -> list[Encoded]:
    found = []
    models, prompts = len(MODELS), given.prompts
    first, later = here
    for network, passes in each.items():
        again = 1 + given.findings
        published = models * prompts * again * (passes.real + passes.fake)
        real = (first.real + (models - 1) * later.real) if passes.real else 0.0
        ours = prompts * (real + first.fake + (models - 1) * later.fake)
        images = prompts * (models + (1 if passes.real else 0))
        found.append(Encoded(network, passes, images, published, ours))
    return found


def inputs_table(given: Given) -> str:
    rows = [["findings that an image shows, of 14", f"{given.findings:g}", "`--findings`"]]
    rows += [
        [f"GPU seconds of a pass of {name}", f"{seconds:g}", f"`--{name}`"]
        for name, seconds in given.a_pass.items()
    ]
    rows.append(["GPU seconds of a denoising step, 512 x 512", f"{given.step:g}", "`--step`"])
    rows.append(["GPU seconds of a code of LLM-CXR", f"{given.code:g}", "`--code`"])
    return table(["given, not measured", "example", "option"], rows)


def passes_table(found: Sequence[Encoded]) -> str:
    rows = [
        [
            each.network,
            f"{each.each.real:g} / {each.each.fake:g}",
            f"{each.images:,}",
            f"{each.published:,.0f}",
            f"{each.here:,.0f}",
            f"{each.published / each.here:.1f}",
        ]
        for each in found
    ]
    published, here = sum(each.published for each in found), sum(each.here for each in found)
    rows.append(["all", "", "", f"{published:,.0f}", f"{here:,.0f}", f"{published / here:.1f}"])
    header = ["network", "passes a real / a generated image, each model and set"]
    header += ["images", "passes, published route", "passes here", "times fewer"]
    return table(header, rows)


def by_findings(given: Given, make: Callable[[Given], list[Encoded]]) -> str:
    """How far the ratios depend on the findings an image shows."""
    counts = (0, 1, 2, 3, 14)
    columns = [make(replace(given, findings=count)) for count in counts]
    rows = [
        [name, *(f"{column[place].published / column[place].here:.1f}" for column in columns)]
        for place, name in enumerate(given.a_pass)
    ]
    return table(["times fewer, if an image shows so many findings", *map(str, counts)], rows)


def hours_table(given: Given, found: Sequence[Encoded], models: Sequence[Making]) -> str:
    rows = []
    sums = [0.0, 0.0]
    for each in found:
        hours = [count * given.a_pass[each.network] / 3600 for count in (each.published, each.here)]
        sums = [total + more for total, more in zip(sums, hours, strict=True)]
        rows.append([f"encoding, {each.network}", *(f"{hour:,.1f}" for hour in hours)])
    rows.append(["encoding", *(f"{hour:,.1f}" for hour in sums)])
    made = sum(given.prompts * given.seconds(each) for each in models) / 3600
    rows.append(["generation, the same on both", *[f"{made:,.0f}"] * 2])
    rows.append(["both", *(f"{hour + made:,.0f}" for hour in sums)])
    return table(["GPU hours at the example seconds", "published route", "here"], rows)


def models_table(
    given: Given, models: Sequence[Making], sizes: Mapping[int, tuple[float, float]]
) -> str:
    rows = []
    for each in models:
        seconds = given.seconds(each)
        rows.append(
            [
                each.name,
                f"{each.size}",
                f"{each.steps or '-'}",
                f"{seconds:.2f}",
                f"{given.prompts * seconds / 3600:,.1f}",
                f"{given.prompts * sizes[each.size][0] / 1e9:.1f}",
            ]
        )
    header = ["model", "pixels a side", "steps", "example: GPU seconds an image"]
    return table([*header, "example: GPU hours", "GB if like phantoms"], rows)


def disk_table(
    given: Given,
    found: Sequence[Encoded],
    models: Sequence[Making],
    sizes: Mapping[int, tuple[float, float]],
    costs: Mapping[str, float],
) -> str:
    registry = load_registry()
    prompts, count = given.prompts, len(models)
    here = prompts * sum(sizes[each.size][0] for each in models)
    plain = prompts * sum(sizes[each.size][1] for each in models)
    # Noise in three colours packs worst, three times as badly as in one.
    noise = 3 * prompts * sum(by_size(costs, "bytes", each.size) for each in models)
    rows = [
        ["images, if like phantoms", f"{plain / 1e9:,.1f}", f"{here / 1e9:,.1f}"],
        ["images, if they were noise in colour: the most", *[f"{noise / 1e9:,.0f}"] * 2],
    ]
    features = 0.0
    for each in found:
        outputs = registry.find("encoders", each.network).spec.outputs
        kept = each.images * feature_bytes(outputs)
        if each.network == "biovil-t":  # prompts are encoded too, once for all models
            kept += prompts * feature_bytes({"features": outputs["features"]})
        features += kept
        numbers = " + ".join(f"{width:,}" for width in outputs.values())
        label = f"features, {each.network}: {numbers} numbers a row"
        rows.append([label, "0", f"{kept / 1e9:.2f}"])
    manifest = prompts * count * costs["line bytes"]
    rows.append(["manifests, a line an image", "0", f"{manifest / 1e9:.2f}"])
    runs, store = run_bytes(count, prompts)
    rows.append(["run directories: prompts (made up), images, scores", "0", f"{runs / 1e9:.2f}"])
    # Overall, the findings, and their mean, in which a prompt counts once.
    influences = influence_bytes() * prompts * (2 + given.findings) * count
    rows.append(["run directories: what each prompt contributed", "0", f"{influences / 1e9:.2f}"])
    rows.append(["the store", "0", f"{store / 1e9:.2f}"])
    beside = features + manifest + runs + influences + store
    rows.append(["all but the images", "0", f"{beside / 1e9:.2f}"])
    return table(["GB on the disk", "published route", "here"], rows)


def by_size(costs: Mapping[str, float], name: str, size: int) -> float:
    """A constant of that size of image; of one that was not measured that of 512, by pixels."""
    return costs.get(f"{name} {size}", costs[f"{name} 512"] * (size / 512) ** 2)


def beside_the_gpu(models: Sequence[Making], prompts: int, costs: Mapping[str, float]) -> str:
    """Processor hours of the platform's own work, by the constants of overheads.json."""
    written = prompts * sum(by_size(costs, "worker's image", each.size) for each in models)
    kept = prompts * len(models) * (costs["finish"] + 3 * costs["features write"])
    kept += len(models) * costs["pair"] * prompts**2
    return (
        f"Beside the GPU, images written, hashed and noted take {written / 3600:.1f} processor "
        f"hours, manifests, features and the search for duplicates {kept / 3600:.2f} "
        "(benchmarks/overheads.json)."
    )


def report(given: Given) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        published = published_passes(folder)
        here = passes_here(folder)
    models = makings()
    sizes = image_bytes(sorted({each.size for each in models}))
    costs = json.loads(NUMBERS.read_text(encoding="utf-8"))

    def make(given: Given) -> list[Encoded]:
        return encoded(given, published, here)

    found = make(given)
    # One model, overall scores: what docs/performance.md measured.
    once = [published[name].real + published[name].fake for name in NETWORKS[:2]]
    mine = here[0].real + here[0].fake
    low, high = sorted(passes / mine for passes in once)
    check = (
        "A check where both were measured, overall scores of one model on a CPU: by passes the "
        f"published route takes {low:.2f} (inception-v3) to {high:.2f} times (rad-dino) as long; "
        f"measured {measured_ratio('overall scores'):.2f} by processor time, all of the rest "
        "included ([performance](performance.md))."
    )
    return "\n\n".join(
        [
            f"{len(MODELS)} models x {given.prompts:,} prompts x (overall + {len(FINDINGS)} "
            f"findings); on the published route {len(MODELS) * (1 + len(FINDINGS))} evaluations, "
            "each of which encodes its own images, real ones too.",
            inputs_table(given),
            "### Passes of the networks: counted, with the findings given",
            passes_table(found),
            by_findings(given, make),
            check,
            "### GPU hours: examples",
            hours_table(given, found, models),
            models_table(given, models, sizes),
            beside_the_gpu(models, given.prompts, costs),
            "### Disk: measured bytes",
            disk_table(given, found, models, sizes, costs),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--findings", type=float, default=2.0, help="that an image shows (example)")
    examples = dict(zip(NETWORKS, (0.002, 0.010, 0.004), strict=True))
    for name, seconds in examples.items():
        parser.add_argument(
            f"--{name}", type=float, default=seconds, help="GPU seconds of a pass (example)"
        )
    parser.add_argument(
        "--step", type=float, default=0.05, help="GPU seconds of a step at 512 x 512 (example)"
    )
    parser.add_argument(
        "--code", type=float, default=0.02, help="GPU seconds of a code of LLM-CXR (example)"
    )
    parser.add_argument("--write", action="store_true", help="into docs/scale.md")
    chosen = parser.parse_args()
    given = Given(
        prompts=chosen.prompts,
        findings=chosen.findings,
        a_pass={name: getattr(chosen, name.replace("-", "_")) for name in NETWORKS},
        step=chosen.step,
        code=chosen.code,
    )
    text = report(given)
    print(text)
    if chosen.write:
        write_between(PAGE, "mimic", text)


if __name__ == "__main__":
    main()
