"""The Frechet distance on Inception-v3 and nothing else, beside what others use for it.

    OMP_NUM_THREADS=1 python benchmarks/fid_only.py [--images 48] [--rounds 3] [--write]
        [--peers DIR] [--quick]

Two folders of PNG images of 512 x 512, grey phantoms as real ones and blurred phantoms in colour as
a model's, and one network with random weights for all. Each side is a process of its own, and they
take turns, with the same batch size and the same number of threads for the network:

* ``network``: the network alone over all images, as tensors that are there already.
* ``ours``: ``chexgenbench evaluate --metric fid@inception-v3`` in the process with nothing cached.
  It hashes the images and the weights, takes the findings and the floor as well (no option leaves
  them out), writes the features, the run, the store and the page.
* ``torch-fidelity``: ``calculate_metrics``; the worker processes are those that it takes by itself.
* ``clean-fid``: ``compute_fid`` with two worker processes, in its three modes.
* ``pytorch-fid``: ``calculate_fid_given_paths`` with two worker processes, as its command takes
  on a machine of two cores. It is installed from PyPI into a folder of its own, ``--peers``.

Imports are outside of the time on every side, loading the network is inside. Processor time counts
the worker processes. How much of it goes to the distance, from features to the value, is noted by
itself: the peers take the roots of 2048 eigenvalues or a root of a matrix, which cost the same for
few images and for many. Ours takes singular values of a matrix with a row and a column for each
image where there are fewer images than features; its part is of all subsets and the floor. Where a
package would fetch the published weights it is given the file of this benchmark. For clean-fid's
modes with a TorchScript file, such a file is made of the network before.

What is resized how decides which values must be equal. To 299 x 299 squash

* by bilinear of TensorFlow 1 without antialiasing, inside of the network: ours under the protocol
  ``standard``, torch-fidelity, and clean-fid's ``legacy_tensorflow``, whose file resizes by
  torch-fidelity's function here;
* by bilinear of PyTorch without antialiasing, whose pixels have their centres half a pixel on:
  pytorch-fid, clean-fid's ``legacy_pytorch``;
* by antialiased bicubic of Pillow: clean-fid's ``clean``, its default; no other side has it.

The script ends with an error where two of one kind differ by more than a ten-thousandth of the
value. ``--quick`` takes four images a side and leaves out clean-fid and pytorch-fid, whose roots
of a matrix take longest, and is no measurement. ``--write`` puts the table into
docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import ROOT, Cost, by_turns, machine, spread, table, write_between

SIZE = 512
BATCH = 12
WORKERS = 2
"""Processes that decode, of those peers that ask; ours has two threads."""

TOLERANCE = 1e-4
"""Relative, of equal definitions."""

TORCHSCRIPT = "inception-2015-12-05.pt"
"""What clean-fid calls the file of its network."""

sys.path.append(str(ROOT / "tests"))


# --- images and networks ----------------------------------------------------------------------


def make_desk(folder: Path, images: int) -> None:
    """Tables, images and weights of all sides."""
    from PIL import Image, ImageFilter

    from chexgenbench_plugins.phantom import oracle_image
    from random_encoders import save_inception

    with (ROOT / "MIMIC_Splits/demo/DEMO_ANNOTATIONS_TEST.csv").open(encoding="utf-8") as file:
        rows = {row["annotated_prompt"]: row for row in csv.DictReader(file)}
    chosen = list(rows.values())[:images]
    for place, (name, blur) in enumerate((("real", 0.0), ("made", 1.5))):
        (folder / name).mkdir(parents=True)
        for number, row in enumerate(chosen):
            prompt, seed = row["annotated_prompt"], 1000 * place + number
            pixels = oracle_image(prompt, {}, seed, size=SIZE // 2)
            image = Image.fromarray(np.asarray(pixels)).resize((SIZE, SIZE))
            if place:  # as the pipelines give them
                image = image.filter(ImageFilter.GaussianBlur(blur)).convert("RGB")
            image.save(folder / name / f"{number:03}.png")
    names = ("id", "path", "view", "chexpert_labels", "annotated_prompt", "patientID")
    real = [
        {**{name: row[name] for name in names}, "path": f"real/{number:03}.png"}
        for number, row in enumerate(chosen)
    ]
    made = [
        {"prompt": row["annotated_prompt"], "img_savename": f"{number:03}.png"}
        for number, row in enumerate(chosen)
    ]
    for name, table_rows in (("split.csv", real), ("made.csv", made)):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table_rows[0]))
            writer.writeheader()
            writer.writerows(table_rows)
    some = [*sorted((folder / "made").iterdir())[:6], *sorted((folder / "real").iterdir())[:6]]
    save_inception(folder / "inception.pth", some)


def save_torchscript(folder: Path) -> None:
    """The network as the file that clean-fid reads: ``layers``, and those after the resizing."""
    import torch
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x,
    )

    from chexgenbench_plugins.encoders.inception_v3 import _network

    network = _network()
    network.load_state_dict(torch.load(folder / "inception.pth", weights_only=True))
    network.eval().requires_grad_(False)

    class Trunk(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = self.network.trunk(images)
            return pooled

    def resize(images: torch.Tensor) -> torch.Tensor:
        squashed: torch.Tensor = interpolate_bilinear_2d_like_tensorflow1x(
            images, size=(299, 299), align_corners=False
        )
        return squashed

    class Whole(torch.nn.Module):
        def __init__(self, layers: Any, squash: Any) -> None:
            super().__init__()
            self.layers, self.squash = layers, squash

        def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            assert return_features
            squashed = self.squash(images.to(torch.float32))
            return self.layers((squashed - 128) / 128)  # type: ignore[no-any-return]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and clean-fid needs it
        layers = torch.jit.trace(Trunk().eval(), torch.zeros(2, 3, 299, 299))
        squash = torch.jit.trace(resize, torch.zeros(2, 3, SIZE, SIZE))
        torch.jit.script(Whole(layers, squash).eval()).save(folder / TORCHSCRIPT)


# --- the sides --------------------------------------------------------------------------------


@contextlib.contextmanager
def timed(costs: list[Cost]) -> Iterator[None]:
    """Adds the cost of what is done meanwhile, processes that it waited for included."""
    begun, before = time.perf_counter(), os.times()
    yield
    after = os.times()
    worked = sum(after[:4]) - sum(before[:4])
    costs.append(Cost(time.perf_counter() - begun, worked))


def count(owner: Any, name: str, spent: list[float]) -> None:
    """Adds the processor seconds of each call of ``owner.name`` to ``spent``."""
    plain = getattr(owner, name)

    def counted(*given: Any, **named: Any) -> Any:
        begun = time.process_time()
        try:
            return plain(*given, **named)
        finally:
            spent.append(time.process_time() - begun)

    setattr(owner, name, counted)


@dataclass(frozen=True)
class Found:
    """What one process of a side found.

    Attributes:
        distance: processor seconds from features to the value.
    """

    cost: Cost
    value: float | None = None
    distance: float = 0.0


def bare(folder: Path, batch: int) -> Found:
    import torch
    from PIL import Image

    from chexgenbench.registry import load_registry
    from chexgenbench.types import Context

    costs: list[Cost] = []
    plugin = load_registry().find("encoders", "inception-v3")
    parameters = plugin.parse({"weights": str(folder / "inception.pth")})
    encoder: Any = plugin.create(parameters, Context(home=folder, cache=folder))
    paths = [path for name in ("real", "made") for path in sorted((folder / name).iterdir())]
    tensors = torch.stack([encoder.preprocess(Image.open(path)) for path in paths])
    with timed(costs), torch.inference_mode():
        for part in tensors.split(batch):
            encoder.network.trunk(part)
    return Found(costs[0])


def ours(folder: Path, batch: int) -> Found:
    import duckdb
    import jinja2.compiler  # noqa: F401
    import pandas  # noqa: F401  (pyarrow takes it when it first makes a table)
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401
    from torch_fidelity import feature_extractor_inceptionv3  # noqa: F401

    from chexgenbench.cli.main import app
    from chexgenbench.registry import load_registry
    from chexgenbench.report import page  # noqa: F401
    from chexgenbench.report.charts import program
    from chexgenbench.statistics import frechet  # noqa: F401
    from chexgenbench.workflow import run

    load_registry()  # imports the plugins
    costs: list[Cost] = []
    spent: list[float] = []
    count(run, "score", spent)
    with tempfile.TemporaryDirectory() as place:
        os.environ["CHEXGENBENCH_CACHE"] = str(Path(place, "cache"))
        home = Path(place, "home")
        home.mkdir()
        program(Path(place, "cache"))
        words = ["evaluate", "--split", folder / "split.csv", "--images-root", folder]
        words += ["--images-csv", folder / "made.csv", "--images-dir", folder / "made"]
        words += ["--name", "made", "--home", home, "--device", "cpu"]
        words += ["--encoder", "inception-v3", "--metric", "fid@inception-v3"]
        words += ["--set", f"inception-v3.weights={folder / 'inception.pth'}"]
        words += ["--encode-batch-size", batch, "--json", "--quiet"]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), timed(costs):
            app([*map(str, words)], standalone_mode=False)
        store = json.loads(printed.getvalue())["store"]
        with duckdb.connect(store, read_only=True) as connection:
            question = "SELECT value FROM scores WHERE metric = 'fid' AND subset = 'overall'"
            ((value,),) = connection.execute(question).fetchall()
    return Found(costs[0], float(value), sum(spent))


def torch_fidelity(folder: Path, batch: int) -> Found:
    import torch_fidelity as package
    from torch_fidelity import metric_fid

    costs: list[Cost] = []
    spent: list[float] = []
    count(metric_fid, "fid_features_to_statistics", spent)
    count(metric_fid, "fid_statistics_to_metric", spent)
    with timed(costs):
        found = package.calculate_metrics(
            input1=str(folder / "made"),
            input2=str(folder / "real"),
            fid=True,
            cuda=False,
            batch_size=batch,
            feature_extractor_weights_path=str(folder / "inception.pth"),
            verbose=False,
        )
    return Found(costs[0], float(found["frechet_inception_distance"]), sum(spent))


def clean_fid(mode: str) -> Callable[[Path, int], Found]:
    def side(folder: Path, batch: int) -> Found:
        import torch
        from cleanfid import features, fid, inception_pytorch
        from cleanfid.inception_torchscript import InceptionV3W

        def scripted(_path: str, download: bool, resize_inside: bool) -> torch.nn.Module:
            network: torch.nn.Module = InceptionV3W(
                str(folder), download=False, resize_inside=resize_inside
            )
            return network

        features.InceptionV3W = scripted
        inception_pytorch.load_state_dict_from_url = local_weights(folder)
        costs: list[Cost] = []
        spent: list[float] = []
        count(fid, "frechet_distance", spent)
        with timed(costs):
            found = fid.compute_fid(
                str(folder / "made"),
                str(folder / "real"),
                mode=mode,
                num_workers=WORKERS,
                batch_size=batch,
                device=torch.device("cpu"),
                verbose=False,
                use_dataparallel=False,
            )
        return Found(costs[0], float(found), sum(spent))

    return side


def pytorch_fid(folder: Path, batch: int) -> Found:
    from pytorch_fid import fid_score, inception

    inception.load_state_dict_from_url = local_weights(folder)
    fid_score.tqdm = lambda loader: loader
    costs: list[Cost] = []
    spent: list[float] = []
    count(fid_score, "calculate_frechet_distance", spent)
    with timed(costs):
        found = fid_score.calculate_fid_given_paths(
            [str(folder / "made"), str(folder / "real")], batch, "cpu", 2048, WORKERS
        )
    return Found(costs[0], float(np.real(found)), sum(spent))


def local_weights(folder: Path) -> Callable[..., Any]:
    def load(_url: str, progress: bool = True) -> Any:
        import torch

        return torch.load(folder / "inception.pth", weights_only=True)

    return load


@dataclass(frozen=True)
class Side:
    """One row of the table.

    Attributes:
        resize: how images come to 299 x 299; sides with the same have the same value.
    """

    label: str
    resize: str
    run: Callable[[Path, int], Found]


TENSORFLOW, PYTORCH = "TensorFlow 1 bilinear", "PyTorch bilinear"
SIDES = {
    "network": Side("the network alone", "", bare),
    "ours": Side("`chexgenbench evaluate`, FID alone", TENSORFLOW, ours),
    "torch-fidelity": Side("torch-fidelity", TENSORFLOW, torch_fidelity),
    "clean-fid-tensorflow": Side(
        "clean-fid, `legacy_tensorflow`", TENSORFLOW, clean_fid("legacy_tensorflow")
    ),
    "clean-fid": Side("clean-fid, `clean`", "Pillow bicubic, antialiased", clean_fid("clean")),
    "clean-fid-pytorch": Side("clean-fid, `legacy_pytorch`", PYTORCH, clean_fid("legacy_pytorch")),
    "pytorch-fid": Side("pytorch-fid", PYTORCH, pytorch_fid),
}
QUICK = ("network", "ours", "torch-fidelity")


def installed(folder: Path) -> Path:
    """A folder with pytorch-fid and nothing that it needs: that is here already."""
    if not (folder / "pytorch_fid").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), "pytorch-fid"], check=True)
    return folder


# --- the tables -------------------------------------------------------------------------------


def agreement(values: Mapping[str, float]) -> str:
    """How far equal definitions are apart; raises where that is too far."""
    gaps: dict[str, float] = {}
    for kind in {side.resize for side in SIDES.values()}:
        found = {name: value for name, value in values.items() if SIDES[name].resize == kind}
        if len(found) > 1:
            low, high = min(found.values()), max(found.values())
            gaps[kind] = (high - low) / abs(low)
            if not gaps[kind] <= TOLERANCE:
                raise SystemExit(f"{kind} differs by {gaps[kind]:.1e}: {found}")
    return "; ".join(f"{kind}: {gap:.0e}" for kind, gap in sorted(gaps.items()))


def costs_table(
    costs: Mapping[str, Sequence[Cost]],
    values: Mapping[str, float],
    distances: Mapping[str, Sequence[float]],
) -> str:
    mine = costs["ours"]
    rows = []
    for name, found in costs.items():
        wall, worked = [c.wall for c in found], [c.processor for c in found]
        rows.append(
            [
                SIDES[name].label,
                SIDES[name].resize,
                f"{values[name]:.8g}" if name in values else "",
                spread(wall),
                spread(worked),
                f"{min(distances[name]):.2f}" if name in distances else "",
                f"{min(wall) / min(c.wall for c in mine):.2f}",
                f"{min(worked) / min(c.processor for c in mine):.2f}",
            ]
        )
    header = ["", "to 299 x 299 by", "FID", "seconds", "processor seconds", "of which the distance"]
    ratios = ["times ours, by the clock", "times ours, by processor time"]
    return table([*header, *ratios], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=48, help="a side")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "fid-peers")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--side", choices=SIDES, help="one side in this process")
    parser.add_argument("--folder", type=Path, help="of --side")
    chosen = parser.parse_args()
    if chosen.side:
        sys.path.append(str(chosen.peers))
        warnings.simplefilter("ignore", DeprecationWarning)
        print(json.dumps(dataclasses.asdict(SIDES[chosen.side].run(chosen.folder, chosen.batch))))
        return
    if chosen.quick:
        chosen.images, chosen.batch, chosen.rounds = 4, 2, 1
        if chosen.write:
            parser.error("--quick is no measurement: it is not written")
    if chosen.images % chosen.batch:
        parser.error("images must fill whole batches: ours fills the last one up")
    names = QUICK if chosen.quick else tuple(SIDES)
    values: dict[str, float] = {}
    distances: dict[str, list[float]] = {}
    begin = machine()

    def apart(name: str, folder: Path) -> Callable[[], Cost]:
        def run() -> Cost:
            words = ["--side", name, "--folder", folder, "--batch", chosen.batch]
            words += ["--peers", chosen.peers]
            done = subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), *map(str, words)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            if found["value"] is not None:
                values[name] = found["value"]
                distances.setdefault(name, []).append(found["distance"])
            return Cost(**found["cost"])

        return run

    packages = ["torch", "torch-fidelity"]
    if not chosen.quick:
        packages += ["clean-fid", "pytorch-fid"]
        sys.path.append(str(installed(chosen.peers)))
    with tempfile.TemporaryDirectory() as place:
        make_desk(Path(place), chosen.images)
        if not chosen.quick:
            save_torchscript(Path(place))
        costs = by_turns({name: apart(name, Path(place)) for name in names}, chosen.rounds)
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    text = (
        f"{begin}; {chosen.rounds} turns a side, interleaved; {chosen.images} images of {SIZE} x "
        f"{SIZE} a side, batches of {chosen.batch}; {versions}. Largest relative difference of "
        f"equal definitions: {agreement(values)}.\n\n{costs_table(costs, values, distances)}"
    )
    print(text)
    if chosen.quick:
        print("\nNo measurement: one turn, few images, not all sides.")
    if chosen.write:
        write_between(ROOT / "docs" / "performance.md", "fid-only", text)


if __name__ == "__main__":
    main()
