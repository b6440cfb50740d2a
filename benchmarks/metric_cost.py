"""What each metric costs beside images and encoding, in processor seconds of one thread.

    OMP_NUM_THREADS=1 python benchmarks/metric_cost.py [--write]

Set and sample metrics are asked as the platform asks them, on features of two sizes whose spectrum
falls as an encoder's does. Task metrics are timed inside a run of the suite ``quick`` with the
oracle, at the sizes of that suite. ``--write`` puts the table into docs/metrics.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import machine, table, write_between

from chexgenbench.registry import load_registry
from chexgenbench.types import NotApplicable, Sample

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
SIZES = ((544, 64), (2000, 768))
WIDTHS = {"probabilities": 14, "radiomics": 385}
"""Of an output that does not grow with the encoder."""


def side(random: np.random.Generator, n: int, width: int, output: str, shift: float) -> Sample:
    """As many rows, each of a prompt of its own, two to a patient."""
    rows = random.normal(size=(n, width)) / np.sqrt(1 + np.arange(width)) + shift
    if output == "probabilities":
        rows = np.exp(rows - rows.max(axis=1, keepdims=True))
        rows /= rows.sum(axis=1, keepdims=True)
    index = np.arange(n)
    outputs = {output: rows.astype(np.float32)}
    if output == "radiomics":
        outputs["undefined"] = np.zeros_like(outputs[output])
    text = random.normal(size=(n, width)).astype(np.float32)
    return Sample(outputs=outputs, text=text, prompts=index, patients=index // 2)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of the faster of two calls."""
    found = []
    for _ in range(2):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


def on_features() -> Iterator[tuple[str, list[str]]]:
    random = np.random.default_rng(0)
    for name, plugin in sorted(load_registry().metrics.items()):
        spec = plugin.spec
        if spec.metric == "task":
            continue
        metric = plugin.create(plugin.parse({}), 0)
        cells = []
        for n, width in SIZES:
            wide = WIDTHS.get(spec.output, width)
            real, fake = (side(random, n, wide, spec.output, shift) for shift in (0.0, 0.05))
            score = metric.values if spec.metric == "sample" else metric.score
            asked = (fake,) if spec.metric == "sample" else (real, fake)
            try:
                cells.append(f"{seconds(lambda s=score, a=asked: s(*a)):.2f}")
            except NotApplicable as reason:
                cells.append(f"none: {reason}")
        yield name, cells


@contextmanager
def timed_tasks(found: dict[str, float]) -> Iterator[None]:
    """Notes the processor seconds of every task metric that runs meanwhile."""
    kept: list[tuple[Any, Any]] = []
    for name, plugin in load_registry().metrics.items():
        if plugin.spec.metric != "task":
            continue
        kind = plugin.load(here=False)
        kept.append((kind, kind.run))

        def run(self: Any, task: Any, name: str = name, own: Any = kind.run) -> Any:
            begun = time.process_time()
            try:
                return own(self, task)
            finally:
                found[name] = time.process_time() - begun

        kind.run = run
    try:
        yield
    finally:
        for kind, own in kept:
            kind.run = own


def in_a_run() -> dict[str, float]:
    """Task metric to its processor seconds in the suite ``quick``."""
    from chexgenbench.cli.main import app

    found: dict[str, float] = {}
    home = Path(tempfile.mkdtemp())
    os.environ["CHEXGENBENCH_CACHE"] = str(home / "cache")
    with timed_tasks(found):
        app(
            ["run", "--suite", "quick", "--model", "oracle", "--home", str(home), "--quiet"],
            standalone_mode=False,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/metrics.md")
    options = parser.parse_args()
    tasks = (
        "Task metrics at the sizes of the suite `quick` (160 prompts of its own, 100 a side for "
        "privacy, 200 for the probe; images of 128 x 128):"
    )
    begin = f"{machine()}. Features are n x d a side; classes and radiomics have their own width."
    header = ["metric", *(f"{n:,} x {d}, s" for n, d in SIZES)]
    lines = [begin, "", table(header, [[f"`{name}`", *cells] for name, cells in on_features()])]
    spent = [[f"`{name}`", f"{found:.1f}"] for name, found in sorted(in_a_run().items())]
    lines += ["", tasks, "", table(["metric", "s"], spent)]
    print("\n".join(lines))
    if options.write:
        write_between(PAGE, "cost", "\n".join(lines))


if __name__ == "__main__":
    main()
