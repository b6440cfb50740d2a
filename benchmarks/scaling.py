"""How much faster two Ray workers are than one: ``python benchmarks/scaling.py``.

A cluster of two raylets on this machine, of one processor each, makes the images of a plugin that
sleeps: the sleep stands for a GPU at work, so that two workers on one machine do not share what
they compute with. What is measured is the generation as `run` does it: shards, job directories, the
border, the manifest. Workers are started and have loaded the model before the clock runs (a first,
small generation in which each waits for the others), and again with that start counted in.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from chexgenbench.executors import ModelSource
from chexgenbench.generation import plan_generation, seed_of
from chexgenbench.registry import load_registry
from chexgenbench.types import Context, Request
from ray_host import SETTINGS, ray_cluster

PLUGIN = """
import os
import time
from pathlib import Path
import numpy as np
from pydantic import Field
from chexgenbench import Model, ModelSpec, Parameters, hookimpl

class SleepsParameters(Parameters):
    seconds: float = Field(0.5, description="How long an image takes.")
    folder: str = Field(description="Where each process leaves its mark.")
    together: int = Field(1, description="Processes that wait for each other in their first call.")

class Sleeps(Model):
    def generate(self, requests):
        folder = Path(self.parameters.folder)
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < self.parameters.together:
            time.sleep(0.01)
        for request in requests:
            time.sleep(self.parameters.seconds)
            yield np.random.default_rng(request.seed).integers(0, 255, (256, 256), dtype=np.uint8)

@hookimpl
def chexgenbench_models():
    yield ModelSpec(name="sleeps", summary="", load=Sleeps, parameters=SleepsParameters)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=0.25, help="An image takes so long.")
    options = parser.parse_args()
    os.environ.update(SETTINGS)
    os.environ["OMP_NUM_THREADS"] = "1"
    from chexgenbench.executors.cluster import Ray

    with tempfile.TemporaryDirectory(prefix="r") as name, ray_cluster(Path(name), 2) as cluster:
        file = Path(name) / "sleeps.py"
        file.write_text(PLUGIN)
        plugin = load_registry([file]).find("models", "sleeps")
        ideal = options.images * options.seconds
        cold: dict[int, float] = {}
        warm: dict[int, float] = {}
        images: dict[int, dict[str, str]] = {}
        for workers in (1, 2):
            marks = Path(name) / f"marks-{workers}"
            marks.mkdir()
            facts = {"seconds": options.seconds, "folder": str(marks), "together": workers}
            Ray(cluster.address).close()  # joining the cluster is no part of it
            begun = time.perf_counter()
            with closing(Ray(cluster.address, workers=workers)) as launcher:
                for part, count in (("first", 8), ("all", options.images)):
                    asked = [
                        Request(
                            id=f"r{i}", prompt_id=f"r{i}", prompt="", seed=seed_of(0, f"r{i}", 0)
                        )
                        for i in range(count)
                    ]
                    generation = plan_generation(
                        plugin,
                        plugin.parse(facts),
                        Context(home=Path(name), cache=Path(name) / "cache"),
                        asked,
                        batch_size=4,
                        exact=False,
                        root=Path(name) / f"{part}-{workers}",
                        weights={},
                    )
                    clock = time.perf_counter()
                    rows = generation.run(source=ModelSource(files=(file,)), launcher=launcher)
                    warm[workers] = time.perf_counter() - clock
                cold[workers] = time.perf_counter() - begun
            images[workers] = {key: row.sha256 for key, row in rows.items()}
            print(
                f"{workers} workers: {warm[workers]:.1f} s for {options.images} images of "
                f"{options.seconds} s ({ideal / workers:.1f} s of sleep); "
                f"with the start of the workers {cold[workers]:.1f} s",
                flush=True,
            )
        print(f"speed-up {warm[1] / warm[2]:.2f}")
        print(f"same images: {images[1] == images[2]}")


if __name__ == "__main__":
    main()
