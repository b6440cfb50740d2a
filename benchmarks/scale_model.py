"""A sharded generation on paper: how long it takes on how many devices, and what gives way first.

    OMP_NUM_THREADS=1 python benchmarks/scale_model.py [--check] [--write]

The simulation is `executors.shards.run_shards` with a clock of its own: one process starts the
workers one after the other, looks at each of them every tenth of a second, takes in what is new,
counts the files of each now and then, and removes the job directory of one that has ended. Each
step takes as long as benchmarks/overheads.json says (`overheads.py` measured it); workers make an
image in `seconds`. ``--check`` runs the same on this machine, with real workers whose model sleeps,
and compares. ``--write`` puts the tables into docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import ROOT, machine, table, write_between

PAGE, NUMBERS = ROOT / "docs" / "scale.md", ROOT / "benchmarks" / "overheads.json"
LOOK_AGAIN = 0.1
MEASURE_AGAIN, MEASURE_SHARE = 2.0, 20.0
TOGETHER = 8


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be made, and where.

    Attributes:
        images: in one generation.
        devices: that work at a time, one worker each.
        seconds: of a device, an image, in a call of `batch`.
        size: pixels a side, of those that were measured.
        shards: a worker is started for each.
        start: seconds until a worker's first call; None is that of `phantom-diffusion`.
        start_each: seconds of the merging process until a worker has been started.
        end: seconds from its last image until its process is gone.
    """

    images: int
    devices: int
    seconds: float
    batch: int = 16
    size: int = 512
    shards: int | None = None
    start: float | None = None
    start_each: float | None = None
    end: float | None = None


@dataclass(frozen=True, kw_only=True)
class Took:
    """Seconds by the clock.

    Attributes:
        made: until the last image was made.
        taken: until the last image was in the generation.
        whole: until the generation was finished.
        used: share of the devices' time until `taken` in which they made images.
        merging: share of that time in which the merging process was busy.
        behind: images that were made and not taken in, at most.
    """

    made: float
    taken: float
    whole: float
    used: float
    merging: float
    behind: int


def border_of(size: int, costs: dict[str, float]) -> float:
    """Seconds of the merging process an image: its processor's, and its share of files that are
    synced to the disk at the same time (`executors.border` writes eight)."""
    return costs[f"border {size}"] + costs["file, safe"] / TOGETHER


def simulate(work: Work, costs: dict[str, float]) -> Took:
    """`run_shards`, loop by loop."""
    shards = work.shards or work.devices
    border = border_of(work.size, costs)
    start = costs["start phantom-diffusion"] if work.start is None else work.start
    launch = costs["launch"] if work.start_each is None else work.start_each
    end = costs["end phantom-diffusion"] if work.end is None else work.end
    batches = -(-work.images // work.batch)
    count = np.full(shards, batches // shards)
    count[: batches % shards] += 1
    sizes = count * work.batch  # the last batch counted as a full one
    waiting = list(range(shards))[::-1]
    places = min(work.devices, shards)
    shard = np.full(places, -1)
    ready, measure = np.zeros(places), np.zeros(places)
    taken = np.zeros(places, np.int64)
    clock = busy = made_at = 0.0
    behind = 0
    while True:
        begun = clock
        for place in np.flatnonzero(shard < 0):
            if not waiting:
                break
            shard[place] = waiting.pop()
            clock += launch + costs["job line"] * sizes[shard[place]]
            ready[place], taken[place] = clock + start, 0
            measure[place] = clock + MEASURE_AGAIN
        at = np.flatnonzero(shard >= 0)
        if not at.size:
            break
        busy += clock - begun
        clock += LOOK_AGAIN
        begun = clock
        goal = sizes[shard[at]]
        done = np.floor(np.maximum(0, clock - ready[at]) / (work.seconds * work.batch))
        made = np.minimum(goal, done.astype(np.int64) * work.batch)
        new = made - taken[at]
        behind = max(behind, int(new.sum()))
        taken[at] = made
        clock += costs["look"] * at.size + border * float(new.sum())
        due = clock > measure[at]
        counted = costs["usage"] * made[due]
        clock += float(counted.sum())
        measure[at[due]] = clock + np.maximum(MEASURE_AGAIN, MEASURE_SHARE * counted)
        finished = ready[at] + goal * work.seconds
        over = (made == goal) & (clock > finished + end)
        if over.any():
            made_at = max(made_at, float(finished[over].max()))
            clock += costs["remove"] * float(goal[over].sum())
            shard[at[over]] = -1
        busy += clock - begun
    n = work.images
    whole = clock + costs["finish"] * n + costs["pair"] * n**2
    used = n * work.seconds / (places * clock)
    return Took(
        made=made_at, taken=clock, whole=whole, used=used, merging=busy / clock, behind=behind
    )


def text_of(seconds: float) -> str:
    """
    >>> text_of(90), text_of(5400), text_of(200_000)
    ('90 s', '90 min', '56 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h" if seconds < 500_000 else f"{seconds / 86400:,.0f} days"


def large(costs: dict[str, float]) -> str:
    """One generation, larger and larger."""
    rows = []
    for images, devices, shards, size in [
        (20_000, 1, 1, 512),
        (20_000, 8, 8, 512),
        (1_000_000, 100, 100, 512),
        (1_000_000, 100, 1000, 512),
        (1_000_000, 1000, 1000, 512),
        (1_000_000, 1000, 1000, 1024),
        (10_000_000, 1000, 1000, 512),
        (10_000_000, 1000, 10_000, 512),
    ]:
        work = Work(images=images, devices=devices, seconds=2.0, size=size, shards=shards)
        took = simulate(work, costs)
        rows.append(
            [
                f"{images:,}",
                f"{devices:,}",
                f"{shards:,}",
                f"{size}",
                text_of(images * work.seconds / devices),
                text_of(took.taken),
                f"{took.used:.0%}",
                f"{took.merging:.0%}",
                f"{took.behind:,}",
                text_of(took.whole - took.taken),
            ]
        )
    header = ["images", "devices", "shards", "pixels", "images x 2 s / devices", "until merged"]
    header += ["devices used", "merging process busy", "images behind", "`finish`"]
    return table(header, rows)


def several(costs: dict[str, float]) -> str:
    """Ten million images in parts, each a generation with a merging process of its own."""
    rows = []
    for parts in (1, 10, 100, 500):
        own = Work(
            images=10_000_000 // parts,
            devices=1000 // parts,
            seconds=2.0,
            shards=10_000 // parts,
        )
        took = simulate(own, costs)
        rows.append(
            [
                f"{parts}",
                f"{own.images:,}",
                f"{own.devices:,}",
                text_of(took.taken),
                f"{took.used:.0%}",
                text_of(took.whole - took.taken),
                f"{own.images * costs['memory'] / 1e9:.2f}",
                f"{own.images * costs['line bytes'] / 1e9:.2f}",
            ]
        )
    header = ["generations", "images of each", "devices of each", "until merged", "devices used"]
    header += ["`finish`", "GB of memory each", "GB of manifest each"]
    return table(header, rows)


def limits(costs: dict[str, float]) -> str:
    """The size at which each part gives way, from its constant alone."""
    n = 10_000_000
    hour = 3600.0
    rows = []

    def add(part: str, limit: str, at: str) -> None:
        rows.append([part, limit, at])

    for size in (128, 512, 1024):
        rate = 1 / border_of(size, costs)
        add(
            f"merging process, {size} x {size}",
            f"{rate:,.0f} images a second",
            f"{rate * 2:,.0f} devices at 2 s an image, {rate * 0.5:,.0f} at 0.5 s",
        )
    add(
        "its loop over the workers",
        f"{1e3 * costs['look']:.2f} ms a worker a loop",
        f"a loop of {LOOK_AGAIN + 1000 * costs['look']:.2f} s at 1,000 workers: no limit",
    )
    add(
        "its count of the files in job directories",
        f"{1e6 * costs['usage']:.1f} us a file, every 2 s",
        f"takes all of its time from {MEASURE_AGAIN / costs['usage']:,.0f} files in the job "
        "directories of more than 20 workers: cut more shards",
    )
    add(
        "start of workers, one after the other",
        f"{1e3 * costs['launch']:.0f} ms each, and {1e3 * costs['job line']:.2f} ms a request",
        f"{1000 * costs['launch'] + n * costs['job line']:,.0f} s for 1,000 workers and 10,000,000 "
        "requests",
    )
    add(
        "`finish`: every pair of thumbnails",
        f"{1e9 * costs['pair']:.1f} ns a pair",
        f"an hour at {(hour / costs['pair']) ** 0.5:,.0f} images; {text_of(costs['pair'] * n**2)} "
        "at 10,000,000",
    )
    add(
        "manifest taken up again by each command",
        f"{1e3 * costs['resume']:.2f} ms and {costs['memory']:,.0f} bytes of memory a row",
        f"{text_of(costs['resume'] * n)} and {costs['memory'] * n / 1e9:.0f} GB at 10,000,000",
    )
    add(
        "features, an encoder of 768 numbers",
        f"{1e6 * costs['features write']:.0f} us a row written",
        f"{text_of(costs['features write'] * n)}, {n * 3072 / 1e9:.0f} GB at 10,000,000",
    )
    row = costs["ingest, store of 100,000 images"]
    add(
        "the store's one writer",
        f"{1e6 * row:.0f} us a row, two rows an image with one score",
        f"{text_of(row * 2 * n)} at 10,000,000, and each later run copies the file",
    )
    if "ray task" in costs:
        add(
            "Ray's scheduler, one driver",
            f"{1e3 * costs['ray task']:.2f} ms a task",
            f"{1 / costs['ray task']:,.0f} shards a second: no limit",
        )
    for size in (512, 1024):
        add(
            f"disk, {size} x {size} grey noise (twice while it is merged)",
            f"{costs[f'bytes {size}'] / 1e3:,.0f} kB an image",
            f"{n * costs[f'bytes {size}'] / 1e12:.1f} TB at 10,000,000; "
            f"{500 * costs[f'bytes {size}'] / 1e6:.0f} MB/s at 500 images a second",
        )
    return table(["part", "constant", "gives way"], rows)


# --- the same on this machine ---

SLEEPER = """
import time

import numpy as np
from chexgenbench import Model, ModelSpec, Parameters, hookimpl


class Settings(Parameters):
    seconds: float = 0.05
    size: int = 128


class Sleeper(Model):
    parameters: Settings

    def generate(self, requests):
        time.sleep(self.parameters.seconds * len(requests))
        for request in requests:
            random = np.random.default_rng(request.seed)
            yield random.integers(0, 256, (self.parameters.size,) * 2, np.uint8)


@hookimpl
def chexgenbench_models():
    yield ModelSpec(
        name="sleeper", summary="Sleeps", load=Sleeper, parameters=Settings, batch_size=16
    )
"""


def real(work: Work, folder: Path) -> float:
    """Seconds until the images of a sleeping model are merged and settled, by real workers."""
    from overheads import make_requests

    from chexgenbench.executors.launch import Processes
    from chexgenbench.generation.generation import ModelSource, plan_generation
    from chexgenbench.registry import load_registry
    from chexgenbench.types import Context

    file = folder / "sleeper.py"
    file.write_text(SLEEPER)
    plugin: Any = load_registry([file]).find("models", "sleeper")
    generation = plan_generation(
        plugin,
        plugin.parse({"seconds": work.seconds, "size": work.size}),
        Context(device="cpu", home=folder, cache=folder),
        make_requests(work.images, work.size),
        batch_size=work.batch,
        exact=False,
        root=folder / "generations",
        weights={},
    )
    begun = time.perf_counter()
    generation.run(
        launcher=Processes(["cpu"] * work.devices),
        shards=work.shards,
        source=ModelSource(files=[file]),
    )
    return time.perf_counter() - begun


CHECKS = {
    "2 workers, 0.1 s an image": Work(images=608, devices=2, seconds=0.1, size=128),
    "4 workers, 0.1 s an image": Work(images=608, devices=4, seconds=0.1, size=128),
    "2 workers, 6 shards": Work(images=608, devices=2, seconds=0.1, size=128, shards=6),
}


def check(costs: dict[str, float], turns: int) -> str:
    """Predicted and measured, with the start of a worker as it is at this hour."""
    from overheads import worker_start

    found = [worker_start("noise") for _ in range(turns)]
    start, end = (min(each[f"{name} noise"] for each in found) for name in ("start", "end"))
    rows = []
    for name, work in CHECKS.items():
        work = replace(work, start=start, end=end)
        predicted = simulate(work, costs).whole
        walls = []
        for _ in range(turns):
            with tempfile.TemporaryDirectory() as folder:
                walls.append(real(work, Path(folder)))
        rows.append(
            [
                name,
                f"{work.images}",
                f"{work.images * work.seconds / work.devices:.1f}",
                f"{predicted:.1f}",
                " / ".join(f"{wall:.1f}" for wall in sorted(walls)),
                f"{min(walls) / predicted - 1:+.0%}",
            ]
        )
    header = ["run", "images", "images x seconds / devices, s", "predicted, s", "measured, s"]
    return table([*header, "least against predicted"], rows)


def settled(costs: dict[str, float]) -> str:
    """`finish` of more images than its constants were measured with."""
    from overheads import fill, make_requests, seconds

    from chexgenbench.jobs.generate import finish

    count = 24_000
    requests = make_requests(count)
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), requests)
        took = seconds(lambda: finish(requests, Path(folder)))
    predicted = costs["finish"] * count + costs["pair"] * count**2
    row = [
        f"`finish` of {count:,}, processor time",
        f"{count:,}",
        "",
        f"{predicted:.1f}",
        f"{took:.1f}",
    ]
    return "| " + " | ".join([*row, f"{took / predicted - 1:+.0%}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="against real runs of this machine")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="into docs/scale.md")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    costs = json.loads(NUMBERS.read_text(encoding="utf-8"))
    texts = {"limits": limits(costs), "large": large(costs), "several": several(costs)}
    if chosen.check:
        where = machine()
        texts["checked"] = f"{where}; {chosen.turns} turns.\n\n" + check(costs, chosen.turns)
        texts["checked"] += "\n" + settled(costs)
    for name, text in texts.items():
        print(f"\n{text}")
        if chosen.write:
            write_between(PAGE, name, text)


if __name__ == "__main__":
    main()
