"""How time and memory grow with rows, and with the shards of a generation.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--turns 3] [--most 120] [--write] [--quick]

Each work runs on 1,000 to 100,000 rows a side, each size in a process of its own: the statistics of
an overall evaluation, with their errors and two images a patient; the feature cache, written and
read; the store, a run taken in and two questions asked. Features have 768 numbers, class
probabilities 1,008. Sizes take turns; a run below ten seconds is made ``--turns`` times, and the
least counts. What grows with the square is left out where a run would take more than ``--most``
seconds. Exponents are slopes of least squares on logarithms over the four largest sizes.

Features lie in a memory-mapped file all pages of which are in memory before the clock starts. So
the rise of the process's peak, less what was mapped meanwhile, is memory that the work allocated.

Then one generation by the model `noise` in 1 to 16 shards, two workers at a time, and in one
process without shards; the script ends with an error where an image differs. ``--quick`` takes a
few small sizes, in a minute, and is no measurement. ``--write`` puts tables and plot into
docs/performance.md, docs/scale.md and docs/growth.svg. Linux only (memory).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from side_by_side import ROOT, Cost, machine, measure, table, write_between
from statistics_speed import features

PAGE, SHARDS_PAGE = ROOT / "docs" / "performance.md", ROOT / "docs" / "scale.md"
PLOT = ROOT / "docs" / "growth.svg"

SIZES = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
WIDTH, CLASSES = 768, 1_008
QUERIES, K = 1_000, 5
PART = 1_024
"""Rows that `jobs.encode` writes at a time."""

FITTED = 4
"""Sizes, the largest, that an exponent is made of."""

SHORT = 10.0
"""Seconds below which a run is made again."""

SHARDS, IMAGES, BATCH, PLACES = (1, 2, 4, 8, 16), 1_024, 16, 2
LEAST_MB = 1.0
"""Below it memory is not told from what a process allocates by itself, and has no exponent."""

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Given:
    """What a work is given: rows of the mapped files, and a place for what it writes.

    Attributes:
        kept: the arrays, by the name of their file.
    """

    count: int
    place: Path
    kept: Mapping[str, Features]

    @classmethod
    def of(cls, folder: Path, names: Sequence[str], count: int) -> Given:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r")[:count] for name in names}
        for rows in arrays.values():
            rows.max()  # every page is in memory
        return cls(count, folder / str(count), arrays)

    def small(self, place: Path) -> Given:
        """A few short rows, on which a work imports and sets up what it needs."""
        rows = {name: np.array(array[:400, :64]) for name, array in self.kept.items()}
        if "chances" in rows:
            rows["chances"] /= rows["chances"].sum(axis=1, keepdims=True)
        return Given(400, place, rows)

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """Two images a patient."""
        return np.arange(self.count) // 2

    @cached_property
    def keys(self) -> list[str]:
        return [f"{number:064x}" for number in range(self.count)]

    @cached_property
    def outputs(self) -> dict[str, int]:
        return {"features": self.kept["real"].shape[1]}


# --- the works --------------------------------------------------------------------------------


def frechet(given: Given) -> object:
    from chexgenbench.statistics import frechet_distance

    units = given.units
    return frechet_distance(
        given.kept["real"], given.kept["fake"], groups_real=units, groups_fake=units
    )


def kernel(given: Given) -> object:
    from chexgenbench.statistics import kernel_distance

    units = given.units
    return kernel_distance(
        given.kept["real"], given.kept["fake"], groups_real=units, groups_fake=units
    )


def neighbours(given: Given) -> object:
    from chexgenbench.statistics import precision_recall_density_coverage

    units = given.units
    return precision_recall_density_coverage(
        given.kept["real"], given.kept["fake"], k=K, groups_real=units, groups_fake=units
    )


def nearest_rows(given: Given) -> object:
    from chexgenbench.statistics import nearest

    return nearest(given.kept["fake"][:QUERIES], given.kept["real"], K)


def classes(given: Given) -> object:
    from chexgenbench.statistics import inception_score

    return inception_score(given.kept["chances"], groups=given.units)


def write_cache(given: Given) -> object:
    from chexgenbench.features.store import FeatureStore

    store = FeatureStore(given.place / "features", given.outputs)
    for start in range(0, given.count, PART):
        part = slice(start, start + PART)
        store.write(given.keys[part], {"features": given.kept["real"][part]})
    store.close()
    return store


def read_cache(given: Given) -> object:
    """As the next command does: the index made, the parts checked against their hashes, read."""
    from chexgenbench.features.store import FeatureStore

    store = FeatureStore(given.place / "features", given.outputs)
    store.refresh()
    if lacking := store.without(given.keys):
        raise SystemExit(f"the cache lacks {len(lacking)} of {given.count} rows")
    rows = store.read(given.keys)
    store.close()
    return rows


def take_in(given: Given) -> object:
    from chexgenbench.store.store import Store

    return Store(given.place / "store.duckdb").ingest((given.place / "runs").iterdir())


def ask(given: Given) -> object:
    from store_speed import QUESTIONS

    from chexgenbench.store.store import Store

    store = Store(given.place / "store.duckdb")
    return [store.query(sql) for sql, _ in QUESTIONS.values()]


@dataclass(frozen=True)
class Work:
    """What is run at each size.

    Attributes:
        reads: the mapped files that it is given.
        power: of the rows that its time is expected to grow with.
        writes: what it makes in its place, removed before.
        after: the work that leaves what it reads there.
    """

    label: str
    run: Callable[[Given], object]
    reads: tuple[str, ...]
    power: int = 1
    writes: str = ""
    after: str = ""


BOTH = ("real", "fake")
WORKS = {
    "frechet": Work("`frechet_distance` with its error", frechet, BOTH),
    "kernel": Work("`kernel_distance` with its error", kernel, BOTH, power=2),
    "neighbours": Work("`precision_recall_density_coverage`", neighbours, BOTH, power=2),
    "nearest": Work(f"`nearest` of {QUERIES:,} queries", nearest_rows, BOTH),
    "classes": Work("`inception_score`", classes, ("chances",)),
    "write": Work("features into the cache", write_cache, ("real",), writes="features"),
    "read": Work("features out of the cache", read_cache, ("real",), after="write"),
    "ingest": Work("a run into an empty store", take_in, (), writes="store.duckdb"),
    "ask": Work("two questions to that store", ask, (), after="ingest"),
}


def run_side(name: str, count: int, folder: Path) -> Cost:
    """One work on so many rows, in this process."""
    import psutil

    work = WORKS[name]
    given = Given.of(folder, work.reads, count)
    # What is imported or set up on the first call is no part of the cost.
    with tempfile.TemporaryDirectory(dir=folder) as other:
        few = given.small(Path(other))
        if not work.reads:  # a store of its own, from the smallest run
            shutil.copytree(folder / str(smallest(folder)) / "runs", few.place / "runs")
        if work.after:
            WORKS[work.after].run(few)
        work.run(few)
    place = given.place / work.writes
    if place.is_dir() and work.writes:
        shutil.rmtree(place)
    elif work.writes:
        place.unlink(missing_ok=True)
    _ = given.units, given.keys
    process = psutil.Process()
    mapped = process.memory_info().shared
    cost = measure(lambda: work.run(given))
    more = process.memory_info().shared - mapped
    if more < -mapped // 50:
        raise SystemExit("pages of the mapped files left memory: there is too little of it")
    return replace(cost, memory=max(cost.memory - max(more, 0) / 2**20, 0.0))


def smallest(folder: Path) -> int:
    return min(int(each.name) for each in folder.iterdir() if each.name.isdigit())


def prepare(folder: Path, sizes: Sequence[int]) -> None:
    """The mapped files, and run directories of each size for the store."""
    from store_speed import write_runs

    most = max(sizes)
    np.save(folder / "real.npy", features(most, WIDTH, 0.0, 1))
    np.save(folder / "fake.npy", features(most, WIDTH, 0.3, 2))
    chances = features(most, CLASSES, 0.0, 3)
    chances /= chances.sum(axis=1, keepdims=True)
    np.save(folder / "chances.npy", chances)
    for count in sizes:
        write_runs(folder / str(count), 1, count, 1, 1)


# --- a generation in shards -------------------------------------------------------------------


@dataclass(frozen=True)
class Generated:
    """A generation in so many shards; 0 is one process without any.

    Attributes:
        cost: of the merging process; its memory is the rise of its peak.
        workers: processor seconds of the others.
        images: hash of the hashes of all images.
    """

    shards: int
    cost: Cost
    workers: float
    images: str


def run_shards(shards: int, images: int, folder: Path) -> Generated:
    """The generation in this process as the merging one."""
    from overheads import make_requests

    from chexgenbench.executors.launch import Processes
    from chexgenbench.files import digest
    from chexgenbench.generation import plan_generation
    from chexgenbench.jobs.manifest import ManifestRow
    from chexgenbench.registry import load_registry
    from chexgenbench.types import Context

    plugin = load_registry().find("models", "noise")

    def make(count: int, place: str) -> dict[str, ManifestRow]:
        generation = plan_generation(
            plugin,
            plugin.parse({}),
            Context(home=folder, cache=folder),
            make_requests(count),
            batch_size=BATCH,
            exact=False,
            root=folder / place,
            weights={},
        )
        launcher = Processes(["cpu"] * min(PLACES, shards)) if shards else None
        return generation.run(launcher=launcher, shards=shards or None)

    make(BATCH, "first")  # imports, as above
    made: list[dict[str, ManifestRow]] = []
    before = os.times()
    cost = measure(lambda: made.append(make(images, "all")))
    after = os.times()
    workers = sum(after[2:4]) - sum(before[2:4])
    found = digest(sorted((key, row.sha256) for key, row in made[0].items()))
    return Generated(shards, cost, workers, found)


def shards_table(found: Sequence[Generated], images: int) -> str:
    """What shards cost; ends the script where their images differ."""
    alone = next(each for each in found if not each.shards)
    if other := [each.shards for each in found if each.images != alone.images]:
        raise SystemExit(f"images in {other} shards differ from those of one process")
    rows, more = [], []
    for each in found:
        overhead = each.cost.processor + each.workers - alone.cost.processor
        if each.shards:
            more.append(overhead)
        rows.append(
            [
                f"{each.shards}" if each.shards else "none, one process",
                f"{min(PLACES, each.shards)}",
                f"{each.cost.wall:.2f}",
                f"{each.cost.processor:.2f}",
                f"{each.workers:.2f}",
                f"{overhead:.2f}" if each.shards else "",
                f"{each.cost.memory:.1f}",
                "identical" if each.shards else "",
            ]
        )
    counts = [each.shards for each in found if each.shards]
    header = ["shards", "workers at a time", "seconds", "processor seconds, merging process"]
    header += ["... its workers", "overhead, processor seconds", "MB, merging process", "images"]
    return (
        f"{images:,} images of 128 x 128, batches of {BATCH}. Overhead: the processor seconds of "
        "all processes less those of one without shards.\n\n"
        f"{table(header, rows)}\n\n"
        f"Overhead grows with the shards to the power of {exponent(counts, more, len(counts))}; "
        f"a shard more costs {straight(counts, more)} processor seconds."
    )


# --- tables and plot --------------------------------------------------------------------------


def exponent(sizes: Sequence[int], values: Sequence[float], last: int = FITTED) -> str:
    """Slope of least squares on logarithms over the last sizes, and its standard error."""
    if len(sizes) < 3 or min(values[-last:]) <= 0:
        return "-"
    return straight(np.log(sizes[-last:]), np.log(values[-last:]))


def straight(
    x: Sequence[float] | NDArray[np.float64], y: Sequence[float] | NDArray[np.float64]
) -> str:
    """Slope of least squares and its standard error."""
    from scipy.stats import linregress

    if len(x) < 3:
        return "-"
    line = linregress(x, y)
    return f"{round(line.slope, 2) + 0.0:.2f} ± {line.stderr:.2f}"


Costs = Mapping[str, Mapping[int, Cost]]


def numbers(name: str) -> int:
    """Numbers of float32 that a work is given a row, of both sides."""
    reads = WORKS[name].reads
    return sum(CLASSES if each == "chances" else WIDTH for each in reads)


def tables(costs: Costs, sizes: Sequence[int]) -> str:
    def line(name: str, cell: Callable[[Cost], str]) -> list[str]:
        done = costs[name]
        return [WORKS[name].label, *(cell(done[n]) if n in done else "-" for n in sizes)]

    seconds = [line(name, lambda cost: f"{cost.processor:.2f} ({cost.wall:.2f})") for name in costs]
    memory = [line(name, lambda cost: f"{cost.memory:,.0f}") for name in costs]
    fitted = []
    for name, done in costs.items():
        counts = sorted(done)
        last = [done[count] for count in counts][-FITTED:]
        memories = [cost.memory for cost in last]
        flat = min(memories) < LEAST_MB
        few, many = counts[-2:]
        more = (done[many].memory - done[few].memory) * 2**20 / (many - few)
        given = 4 * numbers(name)
        fitted.append(
            [
                WORKS[name].label,
                " to ".join(f"{count:,}" for count in (counts[-len(last)], many)),
                exponent(counts, [done[count].processor for count in counts]),
                exponent(counts, [done[count].wall for count in counts]),
                "-" if flat else exponent(counts, [done[count].memory for count in counts]),
                f"{round(more / 1000, 1) + 0.0:.1f}",
                f"{given / 1000:.1f}" if given else "-",
            ]
        )
    header = [f"{count:,}" for count in sizes]
    names = ["", "rows", "processor seconds", "seconds", "MB", "kB a row, of the last two"]
    return "\n\n".join(
        [
            "### Processor seconds (seconds by the clock), by rows a side",
            table(["", *header], seconds),
            "### MB allocated at the peak above what the process held, by rows a side",
            table(["", *header], memory),
            "### Exponents, and how much memory a row adds",
            table([*names, "kB a row given"], fitted),
        ]
    )


COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7")
"""Told apart by most eyes, on white."""


def plot(costs: Costs, path: Path) -> None:
    """Seconds and memory against rows, both axes logarithmic; slopes 1 and 2 as grey lines."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    mpl.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.2), layout="constrained")
    values: tuple[Callable[[Cost], float], ...] = (
        lambda cost: cost.processor,
        lambda cost: max(cost.memory, LEAST_MB),
    )
    titles = ("processor seconds", f"MB allocated at the peak (at least {LEAST_MB:.0f} is shown)")
    for axis, value, title in zip(axes, values, titles, strict=True):
        axis.set_xscale("log")
        axis.set_yscale("log")
        for place, (name, done) in enumerate(costs.items()):
            counts = sorted(done)
            axis.plot(
                counts,
                [value(done[count]) for count in counts],
                color=COLOURS[place % len(COLOURS)],
                linestyle="-" if place < len(COLOURS) else "--",
                marker="osD^v"[place % len(COLOURS)],
                markersize=4,
                linewidth=1.2,
                label=WORKS[name].label.replace("`", ""),
            )
        (first, last), (low, high) = axis.get_xlim(), axis.get_ylim()
        for power in (1, 2):
            ends = low, low * (last / first) ** power
            axis.plot([first, last], ends, color="#bbbbbb", linewidth=0.8, zorder=0)
        axis.set_xlim(first, last)
        axis.set_ylim(low, high)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("rows a side")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
        axis.spines[["top", "right"]].set_visible(False)
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# --- the turns --------------------------------------------------------------------------------


def apart(*arguments: object) -> dict[str, object]:
    """This script in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def least(costs: Sequence[Cost]) -> Cost:
    """The least of the times, and the most memory."""
    return Cost(
        min(cost.wall for cost in costs),
        min(cost.processor for cost in costs),
        max(cost.memory for cost in costs),
    )


def by_rows(
    folder: Path, sizes: Sequence[int], turns: int, most: float
) -> dict[str, dict[int, Cost]]:
    """Each work at each size, sizes by turns."""
    prepare(folder, sizes)
    costs: dict[str, dict[int, list[Cost]]] = {name: {} for name in WORKS}
    for turn in range(turns):
        for count in sizes:
            for name, work in WORKS.items():
                done = costs[name]
                if turn and (count not in done or done[count][0].wall >= SHORT):
                    continue
                if done and count not in done:
                    last = max(done)
                    if done[last][-1].wall * (count / last) ** work.power > most:
                        continue
                side = apart("--side", name, "--rows", count, "--folder", folder)
                cost = Cost(**side)  # type: ignore[arg-type]
                done.setdefault(count, []).append(cost)
                print(f"{name}, {count:,}: {cost}", file=sys.stderr, flush=True)
    return {
        name: {count: least(each) for count, each in done.items()} for name, done in costs.items()
    }


def by_shards(folder: Path, counts: Sequence[int], images: int, turns: int) -> list[Generated]:
    """The generation in each number of shards, by turns."""
    found: dict[int, list[Generated]] = {}
    for turn in range(turns):
        for shards in (0, *counts):
            place = folder / f"shards-{shards}-{turn}"
            place.mkdir()
            side = apart("--shards", shards, "--images", images, "--folder", place)
            cost = Cost(**side.pop("cost"))  # type: ignore[arg-type]
            each = Generated(**side, cost=cost)  # type: ignore[arg-type]
            found.setdefault(shards, []).append(each)
            print(each, file=sys.stderr, flush=True)
            shutil.rmtree(place)
    for shards, all_of in found.items():
        if len({each.images for each in all_of}) > 1:
            raise SystemExit(f"images in {shards} shards differ from turn to turn")
    return [
        replace(
            all_of[0],
            cost=least([each.cost for each in all_of]),
            workers=min(each.workers for each in all_of),
        )
        for all_of in found.values()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--most", type=float, default=120, help="seconds that a run may take")
    parser.add_argument("--quick", action="store_true", help="small sizes: no measurement")
    parser.add_argument("--write", action="store_true", help="into docs/")
    parser.add_argument("--plot", type=Path, help="the plot alone, to this file")
    parser.add_argument("--side", choices=WORKS, help="one work in this process; prints its cost")
    parser.add_argument("--rows", type=int, help="of --side")
    parser.add_argument("--shards", type=int, help="one generation in this process; prints it")
    parser.add_argument("--images", type=int, default=IMAGES, help="of a generation")
    parser.add_argument("--folder", type=Path, help="of --side and --shards")
    chosen = parser.parse_args()
    if chosen.side:
        print(json.dumps(asdict(run_side(chosen.side, chosen.rows, chosen.folder))))
        return
    if chosen.shards is not None:
        print(json.dumps(asdict(run_shards(chosen.shards, chosen.images, chosen.folder))))
        return
    sizes: Sequence[int] = SIZES
    counts: Sequence[int] = SHARDS
    images, turns = chosen.images, chosen.turns
    if chosen.quick:
        if chosen.write:
            parser.error("--quick is no measurement and is not written")
        sizes, counts, images, turns = (1_000, 2_000, 4_000), (1, 2, 4), 128, 1
        print("--quick: small sizes, once; this is no measurement.\n", flush=True)
    where = machine()
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        costs = by_rows(Path(name), sizes, turns, chosen.most)
        found = by_shards(Path(name), counts, images, turns)
    told = f"{where}, {os.getloadavg()[0]:.1f} at the end"
    rows_text = (
        f"{told}; least of {turns} turns, of one from {SHORT:.0f} s on; no run longer than "
        f"{chosen.most:.0f} s.\n\n{tables(costs, sizes)}"
    )
    shards_text = f"{told}; least of {turns} turns. {shards_table(found, images)}"
    print(f"{rows_text}\n\n{shards_text}")
    if chosen.plot:
        plot(costs, chosen.plot)
    if chosen.write:
        plot(costs, PLOT)
        write_between(PAGE, "growth", rows_text)
        write_between(SHARDS_PAGE, "growth-shards", shards_text)


if __name__ == "__main__":
    main()
