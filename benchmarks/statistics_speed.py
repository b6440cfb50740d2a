"""Time and memory of chexgenbench.statistics beside the packages that others use.

    OMP_NUM_THREADS=1 python benchmarks/statistics_speed.py [--repeats 5] [--write] [--quick]

Each run is a process of its own, with its own data in float32 as encoders store it; the sides take
turns. ``--quick`` takes a quarter of the rows, once, and is no measurement. ``--write`` puts the
tables into docs/performance.md. Linux only (memory).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from side_by_side import ROOT, Cost, apart, by_turns, machine, measure, spread, table, write_between

Features = NDArray[np.float32]


def features(n: int, d: int, shift: float, seed: int) -> Features:
    """Non-negative and of very different scales, like pool features; made in blocks."""
    random = np.random.default_rng(seed)
    rows = np.empty((n, d), np.float32)
    scales = ((1 + np.arange(d)) ** -0.5).astype(np.float32)
    for start in range(0, n, 500):
        part = rows[start : start + 500]
        part[:] = np.abs(random.standard_normal(part.shape, np.float32) + np.float32(shift))
        part *= scales
    return rows


def by_sqrtm(real: Features, fake: Features) -> float:
    from scipy.linalg import sqrtm

    x, y = real.astype(np.float64), fake.astype(np.float64)
    gap = x.mean(axis=0) - y.mean(axis=0)
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.trace(sqrtm(first @ second)).real
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * root)


def covariances(real: Features, fake: Features) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.cov(rows.astype(np.float64), rowvar=False) for rows in (real, fake))


def root_by_sqrtm(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    from scipy.linalg import sqrtm

    return float(np.trace(sqrtm(first @ second)).real)


def root(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    from chexgenbench.statistics.frechet import _cross

    return _cross(first, second)


def frechet(interval: bool) -> Callable[[Features, Features], Any]:
    def run(real: Features, fake: Features) -> Any:
        from chexgenbench.statistics import frechet_distance

        return frechet_distance(real, fake, pairs=True, interval=interval)

    return run


def by_prdc(real: Features, fake: Features) -> Any:
    from prdc import compute_prdc

    return compute_prdc(real, fake, 5)


def neighbours(real: Features, fake: Features) -> Any:
    from chexgenbench.statistics import precision_recall_density_coverage

    return precision_recall_density_coverage(real, fake, k=5, pairs=True)


def kernel(real: Features, fake: Features) -> Any:
    from chexgenbench.statistics import kernel_distance

    return kernel_distance(real, fake, pairs=True)


def products(dtype: type[np.floating[Any]]) -> Callable[[Features, Features], Any]:
    """The inner products of all pairs, each once, and nothing else: what no exact sum over pairs
    of a cubic kernel can do without."""

    def run(real: Features, fake: Features) -> Any:
        from chexgenbench.statistics.arrays import blocks

        rows = np.concatenate([real, fake]).astype(dtype)
        for part in blocks(len(rows), len(rows)):
            rows[part] @ rows[part.start :].T

    return run


def by_torchmetrics(real: Features, fake: Features) -> Any:
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    class Given(torch.nn.Module):
        num_features = real.shape[1]

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows

    metric = KernelInceptionDistance(feature=Given(), subsets=100, subset_size=1000)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    return metric.compute()


@dataclasses.dataclass(frozen=True)
class Side:
    label: str
    n: int
    d: int
    run: Callable[[Any, Any], Any]
    prepare: Callable[[Features, Features], tuple[Any, ...]] = lambda real, fake: (real, fake)


@dataclasses.dataclass(frozen=True)
class Comparison:
    title: str
    base: str
    ours: tuple[str, ...]


SIDES = {
    "sqrtm": Side("scipy.linalg.sqrtm", 4000, 2048, by_sqrtm),
    "frechet": Side("frechet_distance, value only", 4000, 2048, frechet(interval=False)),
    "frechet-error": Side("frechet_distance with its error", 4000, 2048, frechet(interval=True)),
    "root-sqrtm": Side(
        "scipy.linalg.sqrtm, from the covariances", 4000, 2048, root_by_sqrtm, covariances
    ),
    "root": Side("the same of frechet_distance", 4000, 2048, root, covariances),
    "prdc": Side("prdc.compute_prdc", 20_000, 768, by_prdc),
    "neighbours": Side("precision_recall_density_coverage", 20_000, 768, neighbours),
    "torchmetrics": Side("torchmetrics, 100 subsets of 1,000", 20_000, 2048, by_torchmetrics),
    "kernel": Side("kernel_distance, all pairs, with its error", 20_000, 2048, kernel),
    "double": Side(
        "inner products of all pairs alone, float64", 20_000, 2048, products(np.float64)
    ),
    "single": Side(
        "inner products of all pairs alone, float32", 20_000, 2048, products(np.float32)
    ),
}

COMPARISONS = (
    Comparison("Frechet distance", "sqrtm", ("frechet", "frechet-error")),
    Comparison("Trace of the matrix root alone", "root-sqrtm", ("root",)),
    Comparison("Precision, recall, density, coverage", "prdc", ("neighbours",)),
    Comparison("Kernel distance", "torchmetrics", ("kernel", "double", "single")),
)


def run_side(name: str, part: int) -> Cost:
    side = SIDES[name]
    rows = side.n // part
    real, fake = features(rows, side.d, 0.0, 1), features(rows, side.d, 0.3, 2)
    # What is imported or set up on the first call is no part of the cost.
    side.run(*side.prepare(real[:1100, :64], fake[:1100, :64]))
    given = side.prepare(real, fake)
    return measure(lambda: side.run(*given))


def report(comparison: Comparison, repeats: int, part: int) -> str:
    names = (comparison.base, *comparison.ours)
    script = Path(__file__).resolve()
    sides = {name: apart(script, name, "--part", str(part)) for name in names}
    costs = by_turns(sides, repeats)
    base = costs[comparison.base]
    rows = []
    for name in names:
        found = costs[name]
        rows.append(
            [
                SIDES[name].label,
                spread([cost.wall for cost in found]),
                f"{min(c.wall for c in base) / min(c.wall for c in found):.1f}",
                spread([cost.processor for cost in found]),
                f"{min(c.processor for c in base) / min(c.processor for c in found):.1f}",
                f"{max(cost.memory for cost in found):,.0f}",
            ]
        )
    side = SIDES[comparison.base]
    header = ["", "seconds", "times faster", "processor seconds", "times faster", "MB"]
    return f"### {comparison.title}, {side.n // part:,} x {side.d} a side\n\n{table(header, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help="one side in this process; prints its cost")
    parser.add_argument("--only", choices=[comparison.base for comparison in COMPARISONS])
    parser.add_argument("--part", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the rows: no measurement"
    )
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    chosen = parser.parse_args()
    if chosen.side:
        print(json.dumps(dataclasses.asdict(run_side(chosen.side, chosen.part))))
        return
    if chosen.quick and chosen.write:
        parser.error("--quick is no measurement and is not written")
    repeats, part = (1, 4) if chosen.quick else (chosen.repeats, 1)
    for comparison in COMPARISONS:
        if chosen.only in (None, comparison.base):
            text = f"{machine()}; {repeats} runs a side, interleaved.\n\n"
            text += report(comparison, repeats, part)
            print(text)
            if chosen.write:
                page = ROOT / "docs" / "performance.md"
                write_between(page, f"speed-{comparison.base}", text)


if __name__ == "__main__":
    main()
