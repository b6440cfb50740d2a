"""What each choice of the published code does to a score, alone, measured on the phantom.

    python benchmarks/deviations.py [--rows 568] [--pairs 48] [--write]

Every line of the table is the same metric plugin on the same images twice: as ``standard`` has it,
and with one choice of ``legacy`` switched on. Two sets of images:

* demo: the demo split's test rows at 128 x 128 under ``phantom-clip``. The generated side is the
  oracle (fresh phantoms of the same prompts: as good as a model can be), and the oracle blurred by
  one pixel, as a decoder would.
* film: phantoms of 512 pixels, the real ones cut to the 6 : 5 of a film (upright and lying in
  turn), the generated ones square and from the oracle, under ``rad-dino`` and ``inception-v3``
  with random weights. Such networks see pixels and no anatomy: that the scores change shows that
  the choice matters, not how much it does with the trained weights.

--write puts the table into docs/protocols.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from side_by_side import table, write_between

from chexgenbench.registry import load_registry
from chexgenbench.splits.prompts import PromptTable, read_prompts
from chexgenbench.statistics import Estimate
from chexgenbench.types import FINDINGS, Context, Sample

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "protocols.md"
SPLIT = ROOT / "MIMIC_Splits" / "demo" / "DEMO_ANNOTATIONS_TEST.csv"
REGISTRY = load_registry()
DECIMALS = 3
"""Of the published tables."""

IntArray = NDArray[np.int64]
Images = Sequence[Image.Image]


@dataclass(frozen=True)
class Change:
    """One line of the table."""

    choice: str
    score: str
    encoder: str
    standard: float
    changed: float
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        change = self.changed - self.standard
        relative = change / abs(self.standard)
        # Beside a value near zero any change is endless per cent.
        shown = f"{relative:+.1%}" if abs(relative) <= 2 else f"{change:+.2g} absolute"
        numbers = f"{self.standard:.4g}", f"{self.changed + 0.0:.4g}"
        return (self.choice, self.score, self.encoder, *numbers, shown, self.note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=568, help="rows of the demo split's CSV")
    parser.add_argument("--pairs", type=int, default=48, help="film images a side")
    parser.add_argument("--write", action="store_true", help="into docs/protocols.md")
    given = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        changes = [*demo(given.rows), *film(given.pairs, Path(folder))]
    head = ("choice", "score", "encoder", "standard", "with it alone", "change", "")
    text = table(head, [change.cells() for change in changes])
    print(text)
    print(f"{time.perf_counter() - begun:.0f} s")
    if given.write:
        write_between(PAGE, "deviations", text)


def demo(rows: int) -> Iterator[Change]:
    """Choices that need no large image: defects 2, 3 and 6, rounding, and k."""
    from chexgenbench_plugins.phantom import oracle_image, render_row
    from chexgenbench_plugins.phantom.split import read_rows

    listed = read_rows(SPLIT)[:rows]
    first = {row["annotated_prompt"]: row for row in reversed(listed)}
    number = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(_prompt, listed)))}
    prompts = _prompts(len(number))
    oracle = [Image.fromarray(oracle_image(_prompt(row), None, i)) for i, row in enumerate(listed)]
    blurred = [image.filter(ImageFilter.GaussianBlur(1)) for image in oracle]
    answers = np.array([number[_prompt(row)] for row in listed])
    _, one_each = np.unique(answers, return_index=True)

    encoder = "phantom-clip"
    patients = prompts.patient_codes()
    drawn = [Image.fromarray(render_row(first[prompt])) for prompt in number]
    outputs = encoded(encoder, {}, drawn)
    real = sample(outputs, np.arange(len(number)), np.arange(len(number)), patients)
    for images, label in ((blurred, f"{encoder}, blurred"), (oracle, f"{encoder}, oracle")):
        outputs = encoded(encoder, {}, images)
        every = sample(outputs, np.arange(len(listed)), answers, patients)
        yield from _demo_side(prompts, real, every, one_each, label)


def _demo_side(
    prompts: PromptTable, real: Sample, every: Sample, one_each: IntArray, label: str
) -> Iterator[Change]:
    fake = every.take(one_each)
    names = ("inception-score", "fid", "kid", "prdc")
    usual = {key: found for name in names for key, found in taken(name, real, fake).items()}

    pool = taken("inception-score", real, fake, legacy=True)["inception_score"].value
    score = usual["inception_score"].value
    yield Change("2: IS on features", "inception_score", label, score, pool)

    exact, one = usual["kid"], taken("kid", real, fake, legacy=True)["kid"]
    note = f"standard error {exact.standard_error or np.nan:.1g}; legacy has none"
    yield Change("3: KID, one subset of all", "kid", label, exact.value, one.value, note)

    note = f"{len(every)} generated instead of {len(fake)}, {len(real)} real"
    for name in ("fid", "kid", "prdc"):
        for key, found in taken(name, real, every).items():
            choice = "6: duplicates on the generated side"
            yield Change(choice, key, label, usual[key].value, found.value, note)

    for key in ("fid", "kid", "precision", "inception_score"):
        value = usual[key].value
        note = f"up to {_rounding(prompts, real, fake):.0%} for a finding" if key == "kid" else ""
        yield Change("rounded to 3 decimals", key, label, value, round(value, DECIMALS), note)

    for key, found in taken("prdc", real, fake, k=3).items():
        note = "to compare: standard and legacy have 5"
        yield Change("k = 3", key, label, usual[key].value, found.value, note)


def film(pairs: int, folder: Path) -> Iterator[Change]:
    """Squashing to 299 x 299 (defect 5), which needs large images that are not square."""
    from chexgenbench_plugins.phantom import oracle_image, render_row
    from chexgenbench_plugins.phantom.split import read_rows

    rows = read_rows(SPLIT)[:pairs]
    real = [_film(Image.fromarray(render_row(row, 512)), place) for place, row in enumerate(rows)]
    fake = [
        Image.fromarray(oracle_image(row["annotated_prompt"], None, place, 512))
        for place, row in enumerate(rows)
    ]
    patients = _prompts(len(rows)).patient_codes()
    weights = random_weights(folder, real[:8])
    places = np.arange(len(rows))
    for encoder, choice, metrics in (
        ("rad-dino", "5: 299 x 299 squash first", ("fid", "kid", "prdc")),
        ("inception-v3", "299 x 299 by antialiased bilinear", ("fid", "kid")),
    ):
        label = f"{encoder}, random"
        found: dict[bool, dict[str, Estimate]] = {}
        for legacy in (False, True):
            given = {"weights": str(weights[encoder])}
            outputs = encoded(encoder, given, [*real, *fake], legacy=legacy)
            sides = [sample(outputs, places + start, places, patients) for start in (0, len(rows))]
            found[legacy] = {k: v for name in metrics for k, v in taken(name, *sides).items()}
            if encoder == "inception-v3" and not legacy:
                usual = taken("inception-score", *sides)["inception_score"].value
                pool = taken("inception-score", *sides, legacy=True)["inception_score"].value
                yield Change("2: IS on features", "inception_score", label, usual, pool)
        for name, estimate in found[False].items():
            yield Change(choice, name, label, estimate.value, found[True][name].value)


def encoded(
    name: str, values: Mapping[str, Any], images: Images, *, legacy: bool = False
) -> Mapping[str, NDArray[np.float32]]:
    """The encoder's outputs, each [n, width], under one protocol's parameters."""
    import torch

    plugin = REGISTRY.find("encoders", name)
    protocol = plugin.spec.protocols.get("legacy", {}) if legacy else {}
    encoder = plugin.create(plugin.parse({**protocol, **values}), Context(home=ROOT, cache=ROOT))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), 8):
            batch = [encoder.preprocess(image) for image in images[start : start + 8]]
            parts.append(encoder.encode(torch.stack(batch)))
    return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}


def sample(
    outputs: Mapping[str, NDArray[np.float32]],
    rows: IntArray,
    prompts: IntArray,
    patients: IntArray | None,
) -> Sample:
    """Rows of the outputs as one side, in the order of their prompts."""
    return Sample(
        outputs={name: values[rows] for name, values in outputs.items()},
        text=None,
        prompts=prompts,
        patients=None if patients is None else patients[prompts],
    )


def taken(
    name: str, real: Sample, fake: Sample, *, legacy: bool = False, **values: Any
) -> Mapping[str, Estimate]:
    """The scores of a metric plugin under one protocol's parameters."""
    plugin = REGISTRY.find("metrics", name)
    protocol = plugin.spec.protocols.get("legacy", {}) if legacy else {}
    found: Mapping[str, Estimate] = plugin.create(plugin.parse({**protocol, **values}), 0).score(
        real, fake
    )
    return found


def random_weights(folder: Path, images: Images) -> dict[str, Path]:
    """Encoder to weights: random, the activations of Inception normalised on `images`."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    from chexgenbench_plugins.encoders.inception_v3 import _network

    torch.manual_seed(0)
    network = _network()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # running statistics become those of the one batch
    pixels = np.stack([np.array(image.convert("RGB").resize((299, 299))) for image in images])
    with torch.no_grad():
        network.train().trunk(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 128 - 1)
    torch.save(network.state_dict(), folder / "inception.pth")
    config = Dinov2Config(
        hidden_size=768,
        num_hidden_layers=1,
        num_attention_heads=12,
        image_size=518,
        patch_size=14,
        mlp_ratio=1,
        initializer_range=0.1,
    )
    Dinov2Model(config).save_pretrained(folder / "rad-dino")
    return {"inception-v3": folder / "inception.pth", "rad-dino": folder / "rad-dino"}


def _prompt(row: Mapping[str, str]) -> str:
    return row["annotated_prompt"]


def _prompts(count: int) -> PromptTable:
    return read_prompts(SPLIT, name="demo").limit(count)


def _rounding(prompts: PromptTable, real: Sample, fake: Sample) -> float:
    """The largest relative error that rounding makes in the KID of a finding."""
    errors = []
    for finding in FINDINGS:
        rows = np.flatnonzero(prompts.subset_mask(finding))
        if len(rows) > 1:
            value = taken("kid", real.take(rows), fake.take(rows))["kid"].value
            errors.append(abs(round(value, DECIMALS) - value) / abs(value))
    return max(errors)


def _film(image: Image.Image, place: int) -> Image.Image:
    """The middle of a square, 6 : 5, upright and lying in turn."""
    side = image.width
    cut = (side - round(side * 5 / 6)) // 2
    box = (cut, 0, side - cut, side) if place % 2 else (0, cut, side, side - cut)
    return image.crop(box)


if __name__ == "__main__":
    main()
