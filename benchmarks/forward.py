"""One forward pass of RAD-DINO on a CPU, done in different ways.

    OMP_NUM_THREADS=1 python benchmarks/forward.py [--images 8] [--turns 3] [--quick] [--write]

The network has RAD-DINO's architecture (twelve layers, 1,370 tokens at 518 x 518) and random
weights. Each way is a process of its own, gets the same pixels, and takes turns with the others;
weights are loaded, compiled or converted before the clock starts, which a column of its own shows.
The features of each are compared with those of transformers' plain attention. ONNX Runtime and
OpenVINO come with the extra ``bench``. ``--quick`` takes two layers and leaves out what compiles or
converts, in a minute, and is no measurement. ``--write`` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from side_by_side import ROOT, Cost, by_turns, machine, spread, table, write_between

SIZE = 518
TOLERANCE = 1e-4
"""Largest difference of a feature, as a share of the largest feature."""

Features = NDArray[np.float32]
Forward = Callable[[Features], Features]

sys.path.append(str(ROOT / "tests"))


def transformers(folder: Path, attention: str = "sdpa") -> Any:
    from transformers import Dinov2Model

    network = Dinov2Model.from_pretrained(folder, attn_implementation=attention)
    return network.eval().requires_grad_(False)


def pooled(network: Any) -> Forward:
    """Calls of a network of transformers, arrays in and out."""
    import torch

    def run(pixels: Features) -> Features:
        with torch.inference_mode():
            features: Features = network(torch.from_numpy(pixels)).pooler_output.numpy()
            return features

    return run


def plain(folder: Path, batch: int) -> Forward:
    return pooled(transformers(folder, "eager"))


def fused(folder: Path, batch: int) -> Forward:
    return pooled(transformers(folder))


def ours(folder: Path, batch: int) -> Forward:
    """The encoder `rad-dino` as a run loads it."""
    import torch

    from chexgenbench.registry import load_registry
    from chexgenbench.types import Context

    found = load_registry().encoders["rad-dino"]
    parameters = found.parse({"weights": str(folder)})
    encoder = found.create(parameters, Context(home=folder, cache=folder))

    def run(pixels: Features) -> Features:
        with torch.inference_mode():
            features: Features = encoder.encode(torch.from_numpy(pixels))["features"]
            return features

    return run


def channels_last(folder: Path, batch: int) -> Forward:
    import torch

    return pooled(transformers(folder).to(memory_format=torch.channels_last))


def compiled(folder: Path, batch: int) -> Forward:
    import torch

    return pooled(torch.compile(transformers(folder)))


def _wrapped(folder: Path) -> Any:
    import torch

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = transformers(folder)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.network(pixels).pooler_output
            return features

    return Pooled().eval()


def openvino(folder: Path, batch: int) -> Forward:
    import openvino as ov
    import torch

    with torch.no_grad():
        model = ov.convert_model(_wrapped(folder), example_input=torch.zeros(batch, 3, SIZE, SIZE))
    settings = {"INFERENCE_NUM_THREADS": _threads(), "INFERENCE_PRECISION_HINT": "f32"}
    network = ov.Core().compile_model(model, "CPU", settings)
    return lambda pixels: np.asarray(network(pixels)[0])


def onnx(folder: Path, batch: int) -> Forward:
    import onnxruntime
    import torch

    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "network.onnx"
        torch.onnx.export(
            _wrapped(folder), (torch.zeros(batch, 3, SIZE, SIZE),), file, dynamo=True, verbose=False
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _threads()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: np.asarray(session.run(None, {name: pixels})[0])


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


WAYS: dict[str, tuple[str, Callable[[Path, int], Forward], int]] = {
    "plain": ("transformers, plain attention", plain, 4),
    "fused": ("transformers, scaled dot product attention", fused, 4),
    "ours": ("the encoder `rad-dino`", ours, 4),
    "ours-1": ("the encoder `rad-dino`", ours, 1),
    "ours-8": ("the encoder `rad-dino`", ours, 8),
    "channels-last": ("scaled dot product attention, channels last", channels_last, 4),
    "compiled": ("scaled dot product attention, torch.compile", compiled, 4),
    "openvino": ("OpenVINO", openvino, 4),
    "onnx": ("ONNX Runtime", onnx, 4),
}
"""Name to label, what makes it, and images a batch."""

QUICK = ("plain", "fused", "ours")


def run_side(name: str, folder: Path, images: int) -> dict[str, Any]:
    _, make, batch = WAYS[name]
    pixels = np.random.default_rng(0).normal(size=(images, 3, SIZE, SIZE)).astype(np.float32)
    begun = time.perf_counter()
    forward = make(folder, batch)
    forward(pixels[:batch])
    ready = time.perf_counter() - begun
    begun, worked = time.perf_counter(), time.process_time()
    found = [forward(pixels[start : start + batch]) for start in range(0, images, batch)]
    wall, processor = time.perf_counter() - begun, time.process_time() - worked
    np.save(folder / f"{name}.npy", np.concatenate(found))
    return {"wall": wall / images, "processor": processor / images, "ready": ready}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8, help="a multiple of 8")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two layers: no measurement")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--side", choices=WAYS, help="one way in this process")
    parser.add_argument("--folder", type=Path, help="with the network, for --side")
    chosen = parser.parse_args()
    if chosen.side:
        print(json.dumps(run_side(chosen.side, chosen.folder, chosen.images)))
        return
    if chosen.quick and chosen.write:
        parser.error("--quick is no measurement and is not written")
    with tempfile.TemporaryDirectory() as place:
        text = compare(
            Path(place), chosen.images, 1 if chosen.quick else chosen.turns, chosen.quick
        )
    print(text)
    if chosen.write:
        write_between(ROOT / "docs" / "performance.md", "forward", text)


def compare(folder: Path, images: int, turns: int, quick: bool) -> str:
    """The table; an error where features differ.

    Raises:
        AssertionError: the features of some way are not those of plain attention.
    """
    from random_encoders import save_rad_dino

    where = machine()
    save_rad_dino(folder, num_hidden_layers=2 if quick else 12)
    ready: dict[str, list[float]] = {}
    names = {name: way for name, way in WAYS.items() if not quick or name in QUICK}

    def side(name: str) -> Callable[[], Cost]:
        command = [sys.executable, str(Path(__file__).resolve()), "--side", name]

        def run() -> Cost:
            done = subprocess.run(
                [*command, "--folder", str(folder), "--images", str(images)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            ready.setdefault(name, []).append(found.pop("ready"))
            return Cost(**found)

        return run

    costs = by_turns({name: side(name) for name in names}, turns)
    truth = np.load(folder / "plain.npy")
    base, rows = costs["plain"], []
    for name, (label, _, batch) in names.items():
        away = float(np.abs(np.load(folder / f"{name}.npy") - truth).max() / np.abs(truth).max())
        assert away < TOLERANCE, f"{label}: features differ by {away:.1e} of the largest"
        found = costs[name]
        rows.append(
            [
                label,
                str(batch),
                spread([cost.wall for cost in found]),
                spread([cost.processor for cost in found]),
                f"{min(c.wall for c in base) / min(c.wall for c in found):.2f}",
                f"{min(c.processor for c in base) / min(c.processor for c in found):.2f}",
                f"{away:.0e}",
                f"{min(ready[name]):.0f}",
            ]
        )
    header = [
        "way",
        "batch",
        "s an image",
        "processor s an image",
        "times faster",
        "by processor",
        "features differ by",
        "s until ready",
    ]
    return f"{where}; {images} images of {SIZE} x {SIZE}, {turns} turns.\n\n{table(header, rows)}"


if __name__ == "__main__":
    main()
