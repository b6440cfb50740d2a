"""The radiomics encoder and FRD against the frd-score package, on the same images.

    python benchmarks/frd.py [--images 40] [--size 512] [--workers 2]
    python benchmarks/frd.py --coverage 400

Real and generated images are phantoms of the demo split's prompts, the generated ones blurred a
little. Both tools read the same PNG files at their own resolution with as many processes. Printed:
seconds an image by the clock and of all processors together (the one to trust where other work
runs beside), and their ratios; the relative difference of the FRD, of what float32 storage moves
it by, and of the largest a feature is moved by; and the share of features that hold rounding alone.

With --coverage: how often the 95 % interval of FRD holds the mean of so many draws of skewed
features, paired by prompt, and its standard error over the standard deviation of those draws.
"""

from __future__ import annotations

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from chexgenbench.images import read_image
from chexgenbench.statistics import frechet_radiomics_distance
from chexgenbench.types import Context
from chexgenbench_plugins.encoders.radiomics import NAMES, Radiomics, RadiomicsParameters, extract
from chexgenbench_plugins.phantom import oracle_image

SPLIT = Path(__file__).parents[1] / "MIMIC_Splits/demo/DEMO_ANNOTATIONS_TEST.csv"
THEIRS = """
import resource, sys, time
import frd_score
def used():
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in both)
start, before = time.perf_counter(), used()
value = frd_score.compute_frd(sys.argv[1:3], num_workers=int(sys.argv[3]))
print("RESULT", repr(float(value)), time.perf_counter() - start, used() - before)
"""
ROUNDING = tuple(f"wavelet-{band}_firstorder_Mean" for band in ("LH", "HL", "HH"))
"""Zero but for rounding: a band without the lowest frequency has the mean 0."""


def write_images(folder: Path, images: int, size: int) -> tuple[list[Path], list[Path]]:
    with SPLIT.open(newline="", encoding="utf-8") as file:
        prompts = [row["annotated_prompt"] for row in csv.DictReader(file)]
    sides: tuple[list[Path], list[Path]] = ([], [])
    for number in range(images):
        for side, blur in ((0, 0.0), (1, 0.4)):
            pixels = oracle_image(prompts[number % len(prompts)], None, 2 * number + side, size)
            path = folder / "ab"[side] / f"{number:05d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)).save(path)
            sides[side].append(path)
    return sides


def processor_seconds() -> float:
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in both)


def ours(
    sides: tuple[list[Path], list[Path]], size: int, workers: int, batch: int = 32
) -> tuple[float, float, list[NDArray[np.float32]]]:
    import torch

    context = Context(home=Path(), cache=Path())
    encoder = Radiomics(RadiomicsParameters(size=size, workers=workers), context)
    start, before = time.perf_counter(), processor_seconds()
    features = []
    for paths in sides:
        parts = []
        for first in range(0, len(paths), batch):
            tensors = [encoder.preprocess(read_image(p)) for p in paths[first : first + batch]]
            parts.append(encoder.encode(torch.stack(tensors))["radiomics"])
        features.append(np.concatenate(parts))
    assert encoder.pool is not None
    encoder.pool.shutdown()
    return time.perf_counter() - start, processor_seconds() - before, features


def coverage(repeats: int) -> None:
    print("   n    d  shift   mean     sd   se/sd  holds %")
    for n, d, shift in ((500, 16, 0.3), (500, 64, 0.3), (500, 64, 0.0), (500, 394, 0.3)):
        random = np.random.default_rng(d)
        spectrum = (1 + np.arange(d)) ** -0.5
        found = []
        for _ in range(repeats):
            prompt, one, other = random.normal(size=(3, n, d))
            real = prompt + one + 0.3 * (one**2 - 1)
            fake = prompt + (1.2 if shift else 1.0) * (other + 0.3 * (other**2 - 1)) + shift
            found.append(frechet_radiomics_distance(real * spectrum, fake * spectrum, pairs=True))
        values = np.array([item.value for item in found])
        errors = np.array([item.standard_error for item in found], dtype=float)
        ends = np.array([(item.ci_low, item.ci_high) for item in found], dtype=float)
        holds = (ends[:, 0] <= values.mean()) & (values.mean() <= ends[:, 1])
        spread = values.std(ddof=1)
        print(
            f"{n:4} {d:4} {shift:6} {values.mean():6.3f} {spread:6.4f} "
            f"{errors.mean() / spread:7.3f} {100 * holds.mean():8.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=40, help="a side")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--coverage", type=int, default=0, help="draws")
    options = parser.parse_args()
    if options.coverage:
        coverage(options.coverage)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = write_images(folder, options.images, options.size)
        command = [sys.executable, "-c", THEIRS, str(folder / "a"), str(folder / "b")]
        done = subprocess.run(
            [*command, str(options.workers)], capture_output=True, text=True, check=True
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        their_value, their_clock, their_work = (float(word) for word in line.split()[1:])
        clock, work, (real, fake) = ours(sides, options.size, options.workers)
        exact = [
            np.array([extract(np.asarray(read_image(path), np.float32)) for path in paths])
            for paths in sides
        ]

    value = frechet_radiomics_distance(real, fake).value
    double = frechet_radiomics_distance(*exact).value
    stored = np.abs(real - exact[0]) / np.maximum(np.abs(exact[0]), 1e-300)
    kept = ~np.isin(NAMES, ROUNDING)
    without = frechet_radiomics_distance(real[:, kept], fake[:, kept]).value
    count = 2 * options.images
    print(f"{options.images} images a side, {options.size} x {options.size}, {options.workers=}")
    for tool, value_of, clock_of, work_of in (
        ("frd-score", their_value, their_clock, their_work),
        ("chexgenbench", value, clock, work),
    ):
        print(
            f"{tool:13} {clock_of / count:8.3f} s an image, {work_of / count:.3f} s of processors, "
            f"FRD {value_of:.9f}"
        )
    print(f"times as fast {their_clock / clock:8.2f}, by processors {their_work / work:.2f}")
    print(f"FRD, relative difference to frd-score      {abs(value / their_value - 1):.1e}")
    print(f"FRD, relative difference float32 - float64 {abs(value / double - 1):.1e}")
    print(f"features, the same for the largest         {stored.max():.1e}")
    share = 1 - np.exp(without - value)
    print(f"share of the distance from {len(ROUNDING)} features of rounding alone {share:.2%}")


if __name__ == "__main__":
    main()
