"""Nearest training rows of generated ones: time and memory beside what others use.

    OMP_NUM_THREADS=2 python benchmarks/neighbours.py [--queries 10000] [--targets 200000] [--write]

Each run is a process of its own with its own data in float32, as encoders store it; the sides take
turns. One query in a hundred is a copy of a target, and the table says how far each side finds it
from that. ``--write`` puts the table into docs/performance.md. Linux only (memory).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from side_by_side import ROOT, Cost, by_turns, machine, measure, spread, table, write_between

Features = NDArray[np.float32]
Found = tuple[NDArray[Any], NDArray[np.int64]]  # distances and numbers, both [n, k]

D, K = 768, 5


def features(queries: int, targets: int) -> tuple[Features, Features]:
    """Rows about 200 centres on a decaying spectrum, far from the origin as pool features are."""
    random = np.random.default_rng(0)
    scales = ((1 + np.arange(D)) ** -0.5).astype(np.float32)
    centres = random.standard_normal((200, D), np.float32)

    def side(count: int) -> Features:
        rows = np.empty((count, D), np.float32)
        for start in range(0, count, 2000):
            part = rows[start : start + 2000]
            part[:] = random.standard_normal(part.shape, np.float32)
            part += centres[random.integers(200, size=len(part))]
            part *= scales
            part += np.float32(1)
        return rows

    x, y = side(queries), side(targets)
    x[::100] = y[random.integers(targets, size=len(x[::100]))]
    return x, y


def ours(x: Features, y: Features) -> Found:
    from chexgenbench.statistics import nearest

    return nearest(x, y, K)


def approximate(x: Features, y: Features) -> Found:
    from chexgenbench.statistics import nearest_approximate

    return nearest_approximate(x, y, K, sample=1)[0]


def bare_faiss(x: Features, y: Features) -> Found:
    import faiss

    index = faiss.IndexFlatL2(D)
    index.add(y)
    squares, found = index.search(x, K)
    return np.sqrt(np.maximum(squares, 0)), found


def numpy_blocks(x: Features, y: Features) -> Found:
    norms = (y**2).sum(axis=1)
    distances, found = np.empty((len(x), K), np.float32), np.empty((len(x), K), np.int64)
    step = max(1, 48 * 2**20 // (4 * len(y)))
    for start in range(0, len(x), step):
        rows = x[start : start + step]
        squares = rows @ y.T
        squares *= -2
        squares += (rows**2).sum(axis=1)[:, None]
        squares += norms
        near = np.argpartition(squares, K - 1, axis=1)[:, :K]
        near = np.take_along_axis(
            near, np.argsort(np.take_along_axis(squares, near, axis=1), axis=1), axis=1
        )
        found[start : start + step] = near
        least = np.take_along_axis(squares, near, axis=1)
        distances[start : start + step] = np.sqrt(np.maximum(least, 0))
    return distances, found


def sklearn_brute(x: Features, y: Features) -> Found:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(y)
    distances, found = index.kneighbors(x)
    return distances, found


SIDES: dict[str, tuple[str, Callable[[Features, Features], Found]]] = {
    "faiss": ("faiss IndexFlatL2, bare", bare_faiss),
    "ours": ("nearest", ours),
    "numpy": ("numpy in blocks, float32", numpy_blocks),
    "sklearn": ("sklearn NearestNeighbors, brute", sklearn_brute),
    "approximate": ("nearest_approximate, 8 cells searched", approximate),
}


def run_side(name: str, queries: int, targets: int) -> dict[str, Any]:
    _, function = SIDES[name]
    x, y = features(queries, targets)
    # What is imported or set up on the first call is no part of the cost.
    function(x[:200], y[:2000])
    kept: list[Found] = []
    cost = measure(lambda: kept.append(function(x, y)))
    distances, found = kept[0]
    # Against the exact neighbours of some queries, by differences in float64.
    some = np.arange(1, len(x), max(1, len(x) // 100))
    hits = 0
    for row in some.tolist():
        squares = np.concatenate(
            [
                ((y[at : at + 5000].astype(np.float64) - x[row]) ** 2).sum(axis=1)
                for at in range(0, len(y), 5000)
            ]
        )
        hits += len(set(found[row].tolist()) & set(np.argsort(squares, kind="stable")[:K].tolist()))
    return dataclasses.asdict(cost) | {
        "copy": float(distances[::100, 0].max()),
        "recall": hits / (K * some.size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--targets", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help="one side in this process; prints its cost")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    chosen = parser.parse_args()
    sizes = chosen.queries, chosen.targets
    if chosen.side:
        print(json.dumps(run_side(chosen.side, *sizes)))
        return
    quality: dict[str, dict[str, float]] = {}
    where = machine()

    def apart(name: str) -> Callable[[], Cost]:
        def run() -> Cost:
            done = subprocess.run(
                [
                    *(sys.executable, str(Path(__file__).resolve()), "--side", name),
                    *("--queries", str(sizes[0]), "--targets", str(sizes[1])),
                ],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            quality[name] = {key: found.pop(key) for key in ("copy", "recall")}
            return Cost(**found)

        return run

    costs = by_turns({name: apart(name) for name in SIDES}, chosen.repeats)
    rows = [
        [
            label,
            spread([cost.wall for cost in costs[name]]),
            spread([cost.processor for cost in costs[name]]),
            f"{max(cost.memory for cost in costs[name]):,.0f}",
            f"{quality[name]['recall']:.3f}",
            f"{quality[name]['copy']:.2g}",
        ]
        for name, (label, _) in SIDES.items()
    ]
    header = ["", "seconds", "processor seconds", "MB", "recall", "a copy is found at"]
    text = (
        f"{where}; {chosen.repeats} run(s) a side, interleaved. Recall: share of the {K} exact "
        "neighbours of 100 queries.\n\n"
        f"### {K} nearest of {sizes[1]:,} rows for {sizes[0]:,}, d = {D}\n\n{table(header, rows)}"
    )
    print(text)
    if chosen.write:
        write_between(ROOT / "docs" / "performance.md", "neighbours", text)


if __name__ == "__main__":
    main()
