"""What compiling the denoising network brings, and what it costs before the first image.

    python benchmarks/compiled.py [--model phantom-diffusion] [--set weights=DIR] [--images 8]
        [--turns 7] [--device cpu] [--write]

Both sides are the model's plugin, with and without its parameter ``compile``; each makes the same
images in one batch, once before anything is timed, then in turns that alternate who begins.
``--write`` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from engine import make_requests
from numpy.typing import NDArray
from side_by_side import ROOT, machine, spread, table, write_between

from chexgenbench.registry import Plugin, load_registry
from chexgenbench.types import Context, Request


def images(model: Any, requests: list[Request]) -> tuple[float, NDArray[Any]]:
    """Seconds, and the images [n, height, width, 3] in [0, 1]."""
    begun = time.perf_counter()
    made = np.stack([np.asarray(each.image) for each in model.generate(requests)])
    return time.perf_counter() - begun, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="phantom-diffusion")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()

    values: dict[str, Any] = dict(text.split("=", 1) for text in options.set)
    plugin: Plugin[Any] = load_registry().find("models", options.model)
    requests = make_requests(options.images, 1)
    with tempfile.TemporaryDirectory() as folder:
        # PyTorch keeps what it compiled; the wait is that of the first time.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        context = Context(device=options.device, home=ROOT, cache=Path(folder))
        sides = {
            name: plugin.create(plugin.parse(values | {"compile": name == "compiled"}), context)
            for name in ("eager", "compiled")
        }
        first = {name: images(model, requests) for name, model in sides.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(options.turns):
            for name in sorted(sides, reverse=bool(turn % 2)):
                seconds[name].append(images(sides[name], requests)[0])
    ratios = [c / e for c, e in zip(seconds["compiled"], seconds["eager"], strict=True)]
    found = f"{min(ratios):.3f} / {statistics.median(ratios):.3f} / {max(ratios):.3f}"
    saved = statistics.median(seconds["eager"]) - statistics.median(seconds["compiled"])
    waited = first["compiled"][0] - first["eager"][0]
    worth = f"{waited / saved * len(requests):,.0f}" if saved > 0 else "never"
    apart = np.abs(first["compiled"][1] - first["eager"][1]).max() * 255
    header = ["model", "images a batch", "eager, s", "compiled, s", "compiled / eager"]
    header += ["first batch later by, s", "pays from, images", "largest difference, grey levels"]
    row = [plugin.name, str(len(requests)), spread(seconds["eager"]), spread(seconds["compiled"])]
    row += [found, f"{waited:.0f}", worth, f"{apart:.5f}"]
    text = f"{machine()}.\n\n{table(header, [row])}"
    print(text)
    if options.write:
        write_between(ROOT / "docs" / "performance.md", "compiled", text)


if __name__ == "__main__":
    main()
