"""How often the 95 % intervals of chexgenbench.statistics hold what they are for.

    python benchmarks/coverage.py [--repeats 400] [--only fid] [--seed 0]

Each scenario draws both sides again and again. An interval is for the statistic's own expectation
at these sizes (the mean over all repeats), or for a known population value where one is named.
Printed for each score: the share of intervals that hold it, with the 95 % range that this number
of intervals leaves to a true 95 %; the share of all draws that gave a wrong interval; the share
whose interval was withheld; and the mean standard error over the standard deviation that it
estimates. Where most are withheld, the few that are given come from unusual draws and hold less
often: what counts there is the share of wrong ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chexgenbench.statistics import (
    Estimate,
    cmmd,
    frechet_distance,
    frechet_distance_infinite,
    inception_score,
    kernel_distance,
    mean_estimate,
    precision_recall_density_coverage,
)

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
        m = self.n if self.m is None else self.m
        spectrum = (1.0 + np.arange(self.d)) ** -self.decay
        direction = np.random.default_rng(1).normal(size=self.d)
        direction *= self.shift / np.linalg.norm(direction)
        real_patient = patients(rng, self.n, self.images)
        fake_patient = real_patient if self.paired else patients(rng, m, self.images)
        prompts = rng.normal(size=(self.n, self.d))

        def side(patient: IntArray, prompt: FloatArray) -> FloatArray:
            of_patient = rng.normal(size=(patient.max() + 1, self.d))[patient]
            return self._mix(rng, of_patient, prompt) * spectrum

        if self.paired:
            shared = rng.normal(size=(real_patient.max() + 1, self.d))[real_patient]
            x = self._mix(rng, shared, prompts) * spectrum
            y = self._mix(rng, shared, prompts) * spectrum
        else:
            x = side(real_patient, prompts)
            y = side(fake_patient, rng.normal(size=(m, self.d)))
        design: dict[str, object] = {}
        if self.paired:
            design["pairs"] = True
        if self.images > 1:
            design["groups_real"] = [f"p{i}" for i in real_patient]
            prefix = "p" if self.paired else "q"
            design["groups_fake"] = [f"{prefix}{i}" for i in fake_patient]
        return x, self.scale * y + direction, design

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


def _two_sided(world: World, statistic: Callable[..., object]) -> Draw:
    def draw(rng: np.random.Generator) -> Scores:
        x, y, design = world.draw(rng)
        result = statistic(x, y, **design)
        return result if isinstance(result, dict) else {"": result}

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


APART = {"shift": 1.0, "scale": 0.8}
CLUSTERED = {"images": 4.0, "patient": 0.4}
PAIRED = {"paired": True, "prompt": 0.6}


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
        truth = float(values.mean()) if scenario.truth is None else scenario.truth
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--only", default="", help="scenarios whose name holds this text")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{options.repeats} repeats, seed {options.seed}")
    header = ("cover %", "range %", "wrong %", "none %", "se/sd", "truth", "mean", "sd", "ms")
    print("{:<42}{:>8}{:>12}{:>8}{:>7}{:>7}{:>11}{:>11}{:>10}{:>7}".format("scenario", *header))
    for scenario in scenarios():
        if options.only not in scenario.name:
            continue
        start = time.perf_counter()
        rows = simulate(scenario, options.repeats, options.seed)
        each = (time.perf_counter() - start) / options.repeats * 1000
        for row in rows:
            low, high = binomial_range(row.intervals) if row.intervals else (np.nan, np.nan)
            wrong, given = row.intervals - row.held, row.intervals / row.repeats
            print(
                f"{row.name:<42}{100 * row.rate:>8.1f}{100 * low:>6.1f}-{100 * high:<5.1f}"
                f"{100 * wrong / row.repeats:>8.1f}{100 * (1 - given):>7.1f}"
                f"{row.error_ratio:>7.2f}{row.truth:>11.4g}{row.mean:>11.4g}"
                f"{row.deviation:>10.3g}{each:>7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
