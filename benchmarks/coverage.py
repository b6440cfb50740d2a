"""How often the 95 % intervals of chexgenbench.statistics hold what they are for.

    python benchmarks/coverage.py [--repeats 400] [--only fid] [--seed 0] [--jobs 2] [--write]

Each scenario draws both sides again and again. An interval is for the statistic's own expectation
at these sizes (the mean over all repeats), or for a known population value where one is named.
Printed for each score: the share of intervals that hold it, with the 95 % range that this number
of intervals leaves to a true 95 %; the share of all draws that gave a wrong interval; the share
whose interval was withheld; and the mean standard error over the standard deviation that it
estimates. Where most are withheld, the few that are given come from unusual draws and hold less
often: what counts there is the share of wrong ones.

Scenarios under ``table/`` are those of docs/uncertainty.md; ``--write`` runs them alone and puts
the table there. Dear ones take a share of the repeats.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench.statistics import (
    Estimate,
    UnitInfluence,
    cmmd,
    frechet_distance,
    frechet_distance_infinite,
    inception_score,
    kernel_distance,
    macro_average,
    mean_estimate,
    precision_recall_density_coverage,
)
from chexgenbench.statistics.difference import difference

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """Where features come from: patients, their prompts, and an image of each on both sides.

    A row is ``spectrum * (sqrt(patient) P + sqrt(prompt) Q + sqrt(1 - patient - prompt) E)`` with
    P one normal vector a patient (shared by the sides), Q one a prompt (shared where ``paired``).
    """

    n: int
    d: int
    m: int | None = None  # rows of the generated side, if not n
    shift: float = 0.0  # length of the difference of means, along a random direction
    scale: float = 1.0  # generated rows are scaled by this
    decay: float = 0.5  # spectrum (1 + j)^-decay
    skew: float = 0.0  # adds skew * (normal^2 - 1) before the spectrum
    patient: float = 0.0
    prompt: float = 0.0
    paired: bool = False
    images: float = 1.0  # mean number of rows a patient (geometric); 1: every row its own

    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, dict[str, object]]:
        x, (y,), design = self.draw_models(rng, [self])
        return x, y, design

    def draw_models(
        self, rng: np.random.Generator, models: Sequence[World]
    ) -> tuple[FloatArray, list[FloatArray], dict[str, object]]:
        """One real side and a generated side of each model, which differ in shift and scale.

        The design is that of any of them: patients of unpaired models have other names, which
        ``labels`` gives.
        """
        m = self.n if self.m is None else self.m
        spectrum = (1.0 + np.arange(self.d)) ** -self.decay
        direction = np.random.default_rng(1).normal(size=self.d)
        direction /= np.linalg.norm(direction)
        real_patient = patients(rng, self.n, self.images)
        fake_patient = real_patient if self.paired else patients(rng, m, self.images)
        prompts = rng.normal(size=(self.n, self.d))

        def side(patient: IntArray, prompt: FloatArray) -> FloatArray:
            of_patient = rng.normal(size=(patient.max() + 1, self.d))[patient]
            return self._mix(rng, of_patient, prompt) * spectrum

        if self.paired:
            shared = rng.normal(size=(real_patient.max() + 1, self.d))[real_patient]
            x = self._mix(rng, shared, prompts) * spectrum
            sides = [self._mix(rng, shared, prompts) * spectrum for _ in models]
        else:
            x = side(real_patient, prompts)
            sides = [side(fake_patient, rng.normal(size=(m, self.d))) for _ in models]
        design: dict[str, object] = {}
        if self.paired:
            design["pairs"] = True
        if self.images > 1:
            design["groups_real"] = [f"p{i}" for i in real_patient]
            prefix = "p" if self.paired else "q"
            design["groups_fake"] = [f"{prefix}{i}" for i in fake_patient]
        made = [
            model.scale * y + model.shift * direction
            for model, y in zip(models, sides, strict=True)
        ]
        return x, made, design

    def labels(self, design: dict[str, object], model: int) -> tuple[list[str], list[str]]:
        """Name of the unit of each row: of the real side, and of the model's images."""
        m = self.n if self.m is None else self.m
        real = design.get("groups_real", [f"p{i}" for i in range(self.n)])
        prefix = "p" if self.paired else "q"
        fake = design.get("groups_fake", [f"{prefix}{i}" for i in range(m)])
        assert isinstance(real, list)
        assert isinstance(fake, list)
        return real, fake if self.paired else [f"{model}{name}" for name in fake]

    def _mix(self, rng: np.random.Generator, patient: FloatArray, prompt: FloatArray) -> FloatArray:
        rest = 1.0 - self.patient - self.prompt
        rows = (
            np.sqrt(self.patient) * patient
            + np.sqrt(self.prompt) * prompt
            + np.sqrt(rest) * rng.normal(size=prompt.shape)
        )
        return rows + self.skew * (rows**2 - 1)

    def frechet(self) -> float:
        """Frechet distance of the two populations (without skew, which changes the mean)."""
        spectrum = (1.0 + np.arange(self.d)) ** -self.decay
        power = float((spectrum**2).sum()) * (1 + 2 * self.skew**2)
        return self.shift**2 + (1 - self.scale) ** 2 * power


def patients(rng: np.random.Generator, rows: int, images: float) -> IntArray:
    """The patient of each row; numbers of rows a patient are geometric with mean ``images``."""
    if images == 1.0:
        return np.arange(rows)
    sizes = rng.geometric(1.0 / images, size=rows)
    return np.repeat(np.arange(rows), sizes)[:rows]


Scores = Mapping[str, Estimate]
Draw = Callable[[np.random.Generator], Scores]


@dataclass(frozen=True)
class Scenario:
    name: str
    draw: Draw
    truth: float | None = None  # None: the statistic's own expectation
    share: float = 1.0  # of the repeats


def _two_sided(world: World, statistic: Callable[..., object]) -> Draw:
    def draw(rng: np.random.Generator) -> Scores:
        x, y, design = world.draw(rng)
        result = statistic(x, y, **design)
        return _named(result)

    return draw


def _mean(
    n: int, images: float = 1.0, patient: float = 0.0, kind: str = "normal", grouped: bool = True
) -> Draw:
    def draw(rng: np.random.Generator) -> Scores:
        groups = patients(rng, n, images)
        normal = np.sqrt(patient) * rng.normal(size=n)[groups] + np.sqrt(1 - patient) * rng.normal(
            size=n
        )
        values = {
            "normal": normal,
            "exponential": np.exp(normal) - np.exp(0.5),
        }[kind]
        return {"": mean_estimate(values, groups=groups if grouped else None)}

    return draw


def _inception(
    n: int,
    classes: int,
    splits: int,
    sharp: float = 2.0,
    images: float = 1.0,
    patient: float = 0.0,
) -> Draw:
    popular = np.random.default_rng(2).normal(size=classes)

    def draw(rng: np.random.Generator) -> Scores:
        groups = patients(rng, n, images)
        own = rng.normal(size=(n, classes))[groups]
        logits = popular + sharp * (
            np.sqrt(patient) * own + np.sqrt(1 - patient) * rng.normal(size=(n, classes))
        )
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = odds / odds.sum(axis=1, keepdims=True)
        return {"": inception_score(probabilities, splits=splits, groups=groups)}

    return draw


def _subsets(world: World, size: int, subsets: int) -> Draw:
    def draw(rng: np.random.Generator) -> Scores:
        x, y, design = world.draw(rng)
        seed = int(rng.integers(2**32))
        return {"": kernel_distance(x, y, subset_size=size, subsets=subsets, seed=seed, **design)}

    return draw


def _named(result: object) -> dict[str, Estimate]:
    if isinstance(result, dict):
        return result
    assert isinstance(result, Estimate)
    return {"": result}


def _compared(world: World, other: World, statistic: Callable[..., object]) -> Draw:
    """A model's scores, and what those of another are more."""

    def draw(rng: np.random.Generator) -> Scores:
        x, made, design = world.draw_models(rng, [world, other])
        found, kept = [], []
        for model, y in enumerate(made):
            real, fake = world.labels(design, model)
            found.append(_named(statistic(x, y, **design)))
            kept.append({k: UnitInfluence.of(one, fake, real) for k, one in found[-1].items()})
        more = {
            f"{name} difference".strip(): difference(kept[0][name], kept[1][name])
            for name in found[0]
        }
        return {**found[0], **more}

    return draw


def _macro(world: World, other: World, statistic: Callable[..., object]) -> Draw:
    """A score's mean over five overlapping subsets of the rows, and the difference of two."""
    chances = np.random.default_rng(3).random(world.n)
    starts = np.random.default_rng(4).random((5, world.n))
    subsets = [
        np.flatnonzero(0.5 * start + 0.5 * chances < share)
        for start, share in zip(starts, (0.6, 0.5, 0.4, 0.3, 0.25), strict=True)
    ]

    def draw(rng: np.random.Generator) -> Scores:
        x, made, design = world.draw_models(rng, [world, other])
        names = np.array(world.labels(design, 0)[0])
        means = []
        for y in made:
            parts = []
            for rows in subsets:
                groups = {"groups_real": names[rows], "groups_fake": names[rows]}
                one = statistic(x[rows], y[rows], **groups)
                parts.append(UnitInfluence.of(one, names[rows], names[rows]))
            means.append(macro_average(parts))
        return {"": means[0].estimate(), "difference": difference(*means)}

    return draw


def _means(n: int, images: float, patient: float, equal: bool) -> Draw:
    """Values of two models' images (an alignment, say): the mean, and the difference."""

    def draw(rng: np.random.Generator) -> Scores:
        groups = patients(rng, n, images)
        shared = np.sqrt(patient) * rng.normal(size=n)[groups] + 0.5 * rng.normal(size=n)
        first = np.exp(shared + 0.5 * rng.normal(size=n))
        second = np.exp(shared + 0.5 * rng.normal(size=n)) + (0.0 if equal else 0.3)
        one, two = mean_estimate(first, groups=groups), mean_estimate(second, groups=groups)
        return {"": one, "difference": difference(one, two)}

    return draw


def _inceptions(n: int, images: float, patient: float, equal: bool) -> Draw:
    """Inception scores of two models: class logits of which prompt and patient set a part."""
    popular = np.random.default_rng(2).normal(size=20)

    def draw(rng: np.random.Generator) -> Scores:
        groups = patients(rng, n, images)
        own = np.sqrt(patient) * rng.normal(size=(n, 20))[groups]
        own += np.sqrt(0.8 - patient) * rng.normal(size=(n, 20))
        found = []
        for sharp in (2.0, 2.0 if equal else 1.8):
            logits = popular + sharp * (own + np.sqrt(0.2) * rng.normal(size=(n, 20)))
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            chances = odds / odds.sum(axis=1, keepdims=True)
            found.append(inception_score(chances, groups=groups))
        return {"": found[0], "difference": difference(*found)}

    return draw


APART = {"shift": 1.0, "scale": 0.8}
CLOSER = {"shift": 0.6, "scale": 0.95, "decay": 0.8}
CLUSTERED = {"images": 4.0, "patient": 0.4}
PAIRED = {"paired": True, "prompt": 0.6}


DESIGNS: dict[str, dict[str, Any]] = {
    "independent": {},
    "paired": PAIRED,
    "patients": {"paired": True, "prompt": 0.3, **CLUSTERED},
}
SIZES = ((500, 64, 1.0), (2000, 64, 0.4), (500, 768, 1.0), (2000, 768, 0.4))

Statistic = Callable[..., object]
FAMILIES: dict[str, tuple[Statistic, dict[str, Any], dict[str, Any]]] = {
    "fid": (frechet_distance, APART, {"shift": 0.8, "scale": 0.85}),
    "kid": (kernel_distance, APART, {"shift": 0.8, "scale": 0.85}),
    "cmmd": (cmmd, APART, {"shift": 0.8, "scale": 0.85}),
    "prdc": (precision_recall_density_coverage, CLOSER, {**CLOSER, "shift": 0.45}),
}


LARGE = {
    ("fid", 64): {"independent", "paired", "patients"},
    ("fid", 768): {"independent", "paired", "patients"},
    ("kid", 64): {"independent", "patients"},
    ("kid", 768): {"patients"},
    ("cmmd", 64): {"patients"},
    ("cmmd", 768): set(),
    ("prdc", 64): {"independent", "patients"},
    ("prdc", 768): {"patients"},
}
"""Designs taken at N = 2,000, where a draw costs a second."""


def protocol() -> Iterator[Scenario]:
    """The scenarios of docs/uncertainty.md."""
    for name, (statistic, one, other) in FAMILIES.items():
        for n, d, share in SIZES:
            label = f"table/{name} N={n} d={d}"
            if name == "fid" and n <= d:
                draw = _two_sided(World(n, d, **one), statistic)
                yield Scenario(f"{label} independent", draw, share=0.05)
                continue
            for design, how in DESIGNS.items():
                if (n == 2000 and design not in LARGE[name, d]) or (name == "cmmd" and d == 768):
                    continue
                a, b = World(n, d, **{**one, **how}), World(n, d, **{**other, **how})
                if design == "independent":
                    draw = _two_sided(a, statistic)
                else:
                    draw = _compared(a, b, statistic)
                yield Scenario(f"{label} {design}", draw, share=share)
    for n, d, share in ((512, 64, 1.0), (2400, 64, 0.4)):
        for design, how in DESIGNS.items():
            if n == 512 and design == "patients":
                continue  # fewer than 8 d of them
            a = World(n, d, **APART, **how)
            b = World(n, d, shift=0.8, scale=0.85, **how)
            if design == "independent":
                draw = _two_sided(a, frechet_distance_infinite)
            else:
                draw = _compared(a, b, frechet_distance_infinite)
            yield Scenario(f"table/fid_infinity N={n} d={d} {design}", draw, a.frechet(), share)
    for n in (500, 2000):
        for design, images, patient in (("paired", 1.0, 0.4), ("patients", 4.0, 0.4)):
            yield Scenario(f"table/mean N={n} {design}", _means(n, images, patient, False))
            yield Scenario(
                f"table/inception_score N={n} {design}", _inceptions(n, images, patient, False)
            )
    everyone = DESIGNS["patients"]
    for name, d in (("fid", 16), ("kid", 64)):
        statistic, one, other = FAMILIES[name]
        worlds = [World(2000, d, **model, **everyone) for model in (one, other)]
        yield Scenario(
            f"table/macro {name} N=2000 d={d} patients", _macro(*worlds, statistic), share=0.4
        )

    # Two samples of one model: the difference is 0, the model is not the real side.
    for name, (statistic, one, _) in FAMILIES.items():
        for n, share in ((500, 1.0), (2000, 0.4)):
            world = World(n, 64, **{**one, **everyone})
            draw = _compared(world, world, statistic)
            yield Scenario(f"table/one model, {name} N={n} d=64 patients", draw, share=share)
    yield Scenario("table/one model, mean N=500 patients", _means(500, 4.0, 0.4, True))
    yield Scenario(
        "table/one model, inception_score N=500 patients", _inceptions(500, 4.0, 0.4, True)
    )

    # The null: generated like real.
    for name, (statistic, one, _) in FAMILIES.items():
        for n, d, share in ((500, 64, 1.0), (2000, 64, 0.4)):
            kept = {key: value for key, value in one.items() if key == "decay"}
            for design, how in DESIGNS.items():
                if n == 2000 and design == "paired":
                    continue
                world = World(n, d, **{**kept, **how})
                draw = _compared(world, world, statistic)
                if design == "independent":
                    draw = _two_sided(world, statistic)
                yield Scenario(f"table/null, {name} N={n} d={d} {design}", draw, share=share)


def scenarios() -> Iterator[Scenario]:
    """All scenarios, cheapest first within each family."""
    for n in (2, 3, 5, 20, 200):
        yield Scenario(f"mean/normal n={n}", _mean(n), 0.0)
    yield Scenario("mean/log-normal n=200", _mean(200, kind="exponential"), 0.0)
    yield Scenario("mean/patients n=200", _mean(200, 4.0, 0.5), 0.0)
    yield Scenario("mean/patients n=20", _mean(20, 3.0, 0.5), 0.0)

    for name, draw in {
        "n=500 c=10": _inception(500, 10, 10),
        "n=500 c=100": _inception(500, 100, 10),
        "n=500 c=10 one part": _inception(500, 10, 1),
        "n=100 c=10": _inception(100, 10, 10),
        "n=20 c=10": _inception(20, 10, 10),
        "n=500 c=10 unsure": _inception(500, 10, 10, sharp=0.2),
        "n=500 c=10 patients": _inception(500, 10, 10, 2.0, 4.0, 0.5),
    }.items():
        yield Scenario(f"is/{name}", draw)

    worlds = {
        "d=16 n=500 apart": World(500, 16, **APART),
        "d=16 n=500 near": World(500, 16, shift=0.1, scale=0.98),
        "d=16 n=500 equal": World(500, 16),
        "d=16 n=500 skewed": World(500, 16, **APART, skew=0.3),
        "d=16 n=500 m=2000": World(500, 16, 2000, **APART),
        "d=16 n=500 paired": World(500, 16, **APART, **PAIRED),
        "d=16 n=100 paired": World(100, 16, **APART, **PAIRED),
        "d=16 n=500 paired equal": World(500, 16, **PAIRED),
        "d=16 n=500 patients": World(500, 16, **APART, **CLUSTERED),
        "d=16 n=500 paired patients": World(500, 16, **APART, paired=True, prompt=0.3, **CLUSTERED),
        "d=16 n=500 patients equal": World(500, 16, **CLUSTERED),
        "d=64 n=500 apart": World(500, 64, **APART),
        "d=64 n=500 equal": World(500, 64),
        "d=64 n=500 paired": World(500, 64, **APART, **PAIRED),
        "d=64 n=100 apart": World(100, 64, **APART),
        "d=64 n=100 equal": World(100, 64),
        "d=64 n=70 apart": World(70, 64, **APART),
        "d=64 n=70 equal": World(70, 64),
        "d=64 n=200 patients": World(200, 64, **APART, **CLUSTERED),
        "d=64 n=200 patients alike": World(200, 64, **APART, images=4.0, patient=0.95),
        "d=2 n=4 apart": World(4, 2, **APART),
        "d=2 n=10 apart": World(10, 2, **APART),
    }
    for name, world in worlds.items():
        yield Scenario(f"fid/{name}", _two_sided(world, frechet_distance))

    for name, world in {
        "d=16 n=500 apart": World(500, 16, **APART),
        "d=16 n=500 equal": World(500, 16),
        "d=16 n=128 apart": World(128, 16, **APART),
        "d=16 n=128 equal": World(128, 16),
        "d=16 n=500 paired": World(500, 16, **APART, **PAIRED),
        "d=16 n=1000 patients": World(1000, 16, **APART, **CLUSTERED),
        "d=16 n=600 patients alike": World(600, 16, **APART, images=4.0, patient=0.95),
        "d=64 n=512 apart": World(512, 64, **APART),
        "d=64 n=512 equal": World(512, 64),
        "d=64 n=512 steep": World(512, 64, **APART, decay=1.5),
        "d=2 n=16 apart": World(16, 2, **APART),
    }.items():
        yield Scenario(
            f"fid-infinity/{name}", _two_sided(world, frechet_distance_infinite), world.frechet()
        )

    tiny = {
        "d=16 n=2 apart": World(2, 16, **APART),
        "d=16 n=3 apart": World(3, 16, **APART),
        "d=16 n=5 apart": World(5, 16, **APART),
        "d=16 n=5 equal": World(5, 16),
        "d=16 n=10 apart": World(10, 16, **APART),
        "d=16 n=10 equal": World(10, 16),
        "d=16 n=20 apart": World(20, 16, **APART),
        "d=16 n=20 equal": World(20, 16),
        "d=16 n=50 apart": World(50, 16, **APART),
        "d=16 n=50 equal": World(50, 16),
        "d=16 n=50 patients": World(50, 16, **APART, **CLUSTERED),
    }
    many = {name: world for name, world in worlds.items() if world.d > 2}
    for name, world in {**tiny, **many}.items():
        yield Scenario(f"kid/{name}", _two_sided(world, kernel_distance))
    yield Scenario("kid/d=16 n=500 subsets", _subsets(World(500, 16, **APART), 50, 20))
    for name in ("d=16 n=500 apart", "d=16 n=500 equal", "d=16 n=500 paired patients"):
        yield Scenario(f"cmmd/{name}", _two_sided(worlds[name], cmmd))
    for name in ("d=16 n=10 apart", "d=16 n=20 apart"):
        yield Scenario(f"cmmd/{name}", _two_sided(tiny[name], cmmd))

    for name, world in {
        "d=4 n=500 equal": World(500, 4),
        "d=16 n=500 equal": World(500, 16),
        "d=16 n=500 apart": World(500, 16, shift=1.5, scale=0.9),
        "d=16 n=500 further": World(500, 16, shift=2.0, scale=0.9),
        "d=16 n=500 far": World(500, 16, shift=2.5, scale=0.9),
        "d=16 n=500 very far": World(500, 16, shift=3.0, scale=0.9),
        "d=16 n=500 m=12": World(500, 16, 12, shift=1.0),
        "d=16 n=500 m=2000": World(500, 16, 2000, shift=1.5),
        "d=16 n=500 paired": World(500, 16, shift=1.5, **PAIRED),
        "d=16 n=500 patients": World(500, 16, shift=1.5, **CLUSTERED),
        "d=16 n=500 paired patients": World(
            500, 16, shift=1.5, paired=True, prompt=0.3, **CLUSTERED
        ),
        "d=64 n=500 apart": World(500, 64, shift=1.5, scale=0.9),
        "d=16 n=100 apart": World(100, 16, shift=1.5),
        "d=16 n=100 patients": World(100, 16, shift=1.5, **CLUSTERED),
        "d=16 n=50 equal": World(50, 16),
        "d=16 n=30 apart": World(30, 16, shift=1.5),
        "d=16 n=15 apart": World(15, 16, shift=1.5),
    }.items():
        yield Scenario(f"prdc/{name}", _two_sided(world, precision_recall_density_coverage))
    yield from protocol()


@dataclass(frozen=True)
class Coverage:
    """What a scenario gave for one score."""

    name: str
    repeats: int
    truth: float
    mean: float
    deviation: float
    error_ratio: float  # root mean square standard error over the standard deviation
    held: int
    intervals: int

    @property
    def rate(self) -> float:
        return self.held / self.intervals if self.intervals else float("nan")


def simulate(scenario: Scenario, repeats: int, seed: int = 0) -> list[Coverage]:
    """Draws the scenario ``repeats`` times and counts."""
    found: dict[str, list[Estimate]] = {}
    for stream in np.random.SeedSequence(seed).spawn(repeats):
        for name, one in scenario.draw(np.random.default_rng(stream)).items():
            found.setdefault(name, []).append(one)
    rows = []
    for name, estimates in found.items():
        values = np.array([one.value for one in estimates])
        own = scenario.truth is None or name.endswith("difference")
        truth = float(values.mean()) if own else float(scenario.truth)
        given = [one for one in estimates if one.ci_low is not None]
        errors = np.array([one.standard_error for one in given], dtype=float)
        deviation = float(values.std(ddof=1))
        rows.append(
            Coverage(
                f"{scenario.name} {name}".strip(),
                repeats,
                truth,
                float(values.mean()),
                deviation,
                float(np.sqrt((errors**2).mean())) / deviation if given and deviation else np.nan,
                sum(one.ci_low <= truth <= one.ci_high for one in given),
                len(given),
            )
        )
    return rows


def binomial_range(trials: int, rate: float = 0.95, level: float = 0.95) -> tuple[float, float]:
    """Shares between which a binomial count falls with probability ``level`` or more."""
    from scipy.stats import binom

    tail = (1 - level) / 2
    low, high = binom.ppf([tail, 1 - tail], trials, rate) / trials
    return float(low), float(high)


def run(name: str, repeats: int, seed: int) -> tuple[list[Coverage], float]:
    """The scenario of that name, and the seconds a draw took."""
    (scenario,) = (one for one in scenarios() if one.name == name)
    start = time.perf_counter()
    count = max(2, round(repeats * scenario.share))
    return simulate(scenario, count, seed), (time.perf_counter() - start) / count


def line(row: Coverage, seconds: float) -> str:
    low, high = binomial_range(row.intervals) if row.intervals else (np.nan, np.nan)
    wrong, given = row.intervals - row.held, row.intervals / row.repeats
    return (
        f"{row.name:<58}{row.repeats:>6}{100 * row.rate:>8.1f}{100 * low:>6.1f}-{100 * high:<5.1f}"
        f"{100 * wrong / row.repeats:>8.1f}{100 * (1 - given):>7.1f}"
        f"{row.error_ratio:>7.2f}{row.truth:>11.4g}{row.mean:>11.4g}"
        f"{row.deviation:>10.3g}{1000 * seconds:>7.1f}"
    )


def table(rows: Sequence[Coverage], repeats: int, seed: int) -> str:
    """The Markdown between the markers of docs/uncertainty.md."""
    command = f"python benchmarks/coverage.py --write --repeats {repeats} --seed {seed}"
    parts = [
        f"Measured by `{command}`. Coverage: the share of intervals that held their target, and in "
        "brackets where 95 % of such shares would lie if the true coverage were 95 % (the Monte "
        "Carlo error at this number of trials). se / sd: the root mean square standard error over "
        "the standard deviation between trials. Withheld: trials without an interval. A row "
        "`difference` is the second model less the first."
    ]
    sections = {
        "Away from the null": lambda name: "," not in name,
        "Two samples of one model, different from the real side": lambda name: "one model" in name,
        "The null: generated like real": lambda name: "null" in name,
    }
    for title, belongs in sections.items():
        parts.append(f"### {title}")
        lines = [
            "| interval | trials | coverage % | | se / sd | withheld % |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            name = row.name.removeprefix("table/")
            if not belongs(name):
                continue
            name = name.removeprefix("one model, ").removeprefix("null, ")
            withheld = f"{100 * (1 - row.intervals / row.repeats):.0f}"
            if row.intervals < 0.2 * row.repeats:
                # The few that are given come from unusual draws.
                measured = "| | | |"
            else:
                low, high = binomial_range(row.intervals)
                span = f"({100 * low:.0f} to {100 * high:.0f})"
                measured = f"| {100 * row.rate:.1f} | {span} | {row.error_ratio:.2f} |"
            lines.append(f"| {name} | {row.repeats} {measured} {withheld} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def write(text: str) -> None:
    """Puts ``text`` between the markers of docs/uncertainty.md."""
    from side_by_side import ROOT, write_between

    write_between(ROOT / "docs" / "uncertainty.md", "coverage", f"\n{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--only", default="", help="scenarios whose name matches this pattern")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--write", action="store_true", help="the table of docs/uncertainty.md")
    parser.add_argument(
        "--resume",
        type=Path,
        help="keep what is finished in this file and take from it what is there (delete it when "
        "the statistics have changed)",
    )
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write runs the whole table: leave --only out")
    only = re.compile("table/" if options.write else options.only)
    names = [scenario.name for scenario in scenarios() if only.search(scenario.name)]
    print(f"{options.repeats} repeats, seed {options.seed}")
    header = (
        *("trials", "cover %", "range %", "wrong %", "none %"),
        *("se/sd", "truth", "mean", "sd", "ms"),
    )
    widths = "{:<58}{:>6}{:>8}{:>12}{:>8}{:>7}{:>7}{:>11}{:>11}{:>10}{:>7}"
    print(widths.format("scenario", *header))
    found: list[Coverage] = []
    done: dict[str, tuple[list[Coverage], float]] = {}
    if options.resume and options.resume.exists():
        for entry in map(json.loads, options.resume.read_text(encoding="utf-8").splitlines()):
            if (entry["repeats"], entry["seed"]) == (options.repeats, options.seed):
                rows = [Coverage(**row) for row in entry["rows"]]
                done[entry["name"]] = rows, entry["seconds"]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = {
            name: pool.submit(run, name, options.repeats, options.seed)
            for name in names
            if name not in done
        }
        for name in names:
            rows, seconds = done[name] if name in done else jobs[name].result()
            if options.resume and name not in done:
                entry = {"name": name, "repeats": options.repeats, "seed": options.seed}
                entry |= {"rows": [asdict(row) for row in rows], "seconds": seconds}
                with options.resume.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            found += rows
            for row in rows:
                print(line(row, seconds), flush=True)
    if options.write:
        write(table(found, options.repeats, options.seed))


if __name__ == "__main__":
    main()
