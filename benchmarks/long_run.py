"""Memory, open files and threads of `chexgenbench run` over many small images.

    OMP_NUM_THREADS=1 python benchmarks/long_run.py [--images 20000] [--write]

A split of that many prompts, each with a real image of 64 x 64 grey levels, is made in a temporary
folder, and another one of a tenth. The command itself runs on each of them in a process of its
own, and this one looks at it, and at the processes that it starts, every half second. What the
command says of its progress tells the stages apart. ``--write`` puts tables and plot into
docs/performance.md and docs/long_run.svg; ``--keep FILE`` keeps the samples as JSON, from which
``--from FILE`` makes tables and plot again.

Memory is that which the processes allocated (anonymous pages). Private memory (USS) would count a
page of a library as soon as no other process of the machine has it mapped, so that it moves with
what others do. Linux only.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray
from side_by_side import ROOT, machine, measure, table, write_between

PAGE, PLOT = ROOT / "docs" / "performance.md", ROOT / "docs" / "long_run.svg"

MODEL, ENCODER = "noise", "phantom-clip"
METRICS = ("fid", "kid", "prdc", "inception-score", "alignment")
SIZE = 64
SEED = 20250516
EVERY = 0.5
BLOCKS = 20
"""Parts of a stage. The first two are left out of a slope: libraries are still being loaded."""

MB = 1e6

T = TypeVar("T")
Features = NDArray[np.float32]
Groups = NDArray[np.int64]

_AFTER = {
    "encode real": "sync features",
    "encode prompts": "plan images",
    "generate": "hash images",
    "encode generated": "read features",
    "score": "differences, store, page",
}
"""What the command does after a stage and has no line for."""

_AT = re.compile(r"(encode|generate|score) (.*?): (\d+) of (\d+) \w+")
_END = re.compile(r" in ([0-9.]+) s \(")


@dataclass(frozen=True)
class Look:
    """The command and the processes that it started, at one time.

    Attributes:
        time: seconds since the command was started.
        allocated: bytes of anonymous memory: heap, arrays, stacks.
        resident: bytes in memory, with libraries and mapped files (RSS).
        files: open file descriptors.
        images: that stand in the manifest of the generation.
    """

    time: float
    allocated: int
    resident: int
    files: int
    threads: int
    processes: int
    images: int


@dataclass(frozen=True)
class Stage:
    """A part of the run, by the command's own lines.

    Attributes:
        marks: (seconds, steps done); the first is the begin, the last the end.
    """

    name: str
    marks: tuple[tuple[float, float], ...]

    @property
    def begin(self) -> float:
        return self.marks[0][0]

    @property
    def end(self) -> float:
        return self.marks[-1][0]


@dataclass
class Course:
    """What was seen of one run.

    Attributes:
        accounts: what each thing that the command keeps an image weighs, in bytes.
        rises: MB that work on all images at once needs, for as many images as `counts` says.
    """

    images: int
    where: str
    seconds: float = 0.0
    looks: list[Look] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    accounts: dict[str, float] = field(default_factory=dict)
    rises: dict[str, list[float]] = field(default_factory=dict)

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.images // 10, self.images, 2 * self.images

    def of(self, stage: Stage) -> list[Look]:
        return [look for look in self.looks if stage.begin <= look.time < stage.end]

    def stage(self, name: str) -> Stage | None:
        return next((stage for stage in self.stages if stage.name == name), None)


def make_split(count: int, folder: Path) -> list[str]:
    """A CSV file of prompts with an image each; returns the options of `run` that name it."""
    from PIL import Image

    from chexgenbench.types import FINDINGS

    random = np.random.default_rng(SEED)
    images = folder / "images"
    images.mkdir(parents=True)
    with (folder / "split.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "prompt", "path", "patient", "chexpert_labels"])
        for i in range(count):
            pixels = random.integers(0, 256, (SIZE, SIZE), np.uint8)
            Image.fromarray(pixels).save(images / f"{i}.png", compress_level=1)
            shown = [name for name in FINDINGS if random.random() < 0.05]
            said = ", ".join(shown) or "Nothing to report"
            labels = json.dumps(dict.fromkeys(shown, 1.0))
            rows.writerow([f"p{i}", f"Study {i}. {said}.", f"{i}.png", f"patient {i // 2}", labels])
    names = ("id=id", "prompt=prompt", "path=path", "patient=patient", "labels=chexpert_labels")
    columns = [word for name in names for word in ("--column", name)]
    return ["--split", str(folder / "split.csv"), "--images-root", str(images), *columns]


def watch(count: int, root: Path) -> Course:
    """Runs the command on a split of that many prompts and looks at it until it ends."""
    home = root / f"home-{count}"
    split = make_split(count, root / f"split-{count}")
    metrics = [word for name in METRICS for word in ("--metric", name)]
    words = [str(Path(sys.executable).parent / "chexgenbench"), "run", *split]
    words += ["--model", MODEL, "--set", f"{MODEL}.size={SIZE}", "--encoder", ENCODER]
    words += [*metrics, "--home", str(home)]
    course = Course(count, machine())
    lines: list[tuple[float, str]] = []
    # A cache of its own: nothing may be found in it, and what others keep there is not touched.
    environment = {**os.environ, "CHEXGENBENCH_CACHE": str(home / "cache")}
    begun = time.monotonic()
    child = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=environment,
    )
    assert child.stderr
    reader = threading.Thread(target=_listen, args=(child.stderr, begun, lines))
    reader.start()
    made = _Manifest(home / "runs" / "generations")
    process = psutil.Process(child.pid)
    due = begun
    while child.poll() is None:
        look = _look(process, begun, made)
        if look:
            course.looks.append(look)
        due = max(due + EVERY, time.monotonic())
        with suppress(subprocess.TimeoutExpired):
            child.wait(due - time.monotonic())
    course.seconds = time.monotonic() - begun
    reader.join()
    if child.returncode:
        raise SystemExit("\n".join([*(line for _, line in lines), f"ended {child.returncode}"]))
    course.stages = _stages(lines, course)
    arguments = [sys.executable, __file__, "--accounts", str(home), *split]
    weighed = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    course.accounts = json.loads(weighed.stdout)
    return course


def _listen(stream: IO[str], begun: float, lines: list[tuple[float, str]]) -> None:
    for line in stream:
        lines.append((time.monotonic() - begun, line.rstrip("\n")))
        print(line, end="", file=sys.stderr, flush=True)


class _Manifest:
    """Counts the lines of a generation's manifest as they come."""

    def __init__(self, generations: Path) -> None:
        self._generations = generations
        self._file: IO[bytes] | None = None
        self._lines = 0

    def images(self) -> int:
        if self._file is None:
            # The command puts another file of that name in its place when the generation is whole.
            found = next(self._generations.glob("*/manifest.jsonl"), None)
            if found is None:
                return 0
            self._file = found.open("rb")
        self._lines += self._file.read().count(b"\n")
        return self._lines


def _look(process: psutil.Process, begun: float, made: _Manifest) -> Look | None:
    allocated = resident = files = threads = processes = 0
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory = each.memory_info()
                opened, running = each.num_fds(), each.num_threads()
                resident += memory.rss
                allocated += memory.rss - memory.shared
                files, threads, processes = files + opened, threads + running, processes + 1
    if not resident:  # it has just ended
        return None
    now = time.monotonic() - begun
    return Look(now, allocated, resident, files, threads, processes, made.images())


def _stages(lines: Sequence[tuple[float, str]], course: Course) -> list[Stage]:
    """Each stage of the command, and what lies between them by a name of its own."""
    found: list[Stage] = []
    marks: list[tuple[float, float]] = []
    last = "plan and check"
    at = 0.0
    for now, line in lines:
        said = _AT.match(line)
        if said is None:
            continue
        name = said[1]
        if name == "encode":
            side = said[2].partition(" ")[0]
            name = f"encode {side if side in ('real', 'prompts') else 'generated'}"
        marks.append((now, float(said[3])))
        ended = _END.search(line, said.end())
        if ended is None:
            continue
        begin = max(now - float(ended[1]), at)
        found.append(Stage(last, ((at, 0.0), (begin, 0.0))))
        if name == "generate":
            seen = [(look.time, float(look.images)) for look in course.looks]
            marks = [mark for mark in seen if begin < mark[0] <= now and mark[1] < course.images]
            whole = next((t for t, count in seen if count >= course.images), now)
            found.append(Stage(name, ((begin, 0.0), *marks, (whole, float(course.images)))))
            found.append(Stage("search for duplicates", ((whole, 0.0), (now, 0.0))))
        else:
            found.append(Stage(name, ((begin, 0.0), *marks)))
        marks, at, last = [], now, _AFTER[name]
    found.append(Stage(last, ((at, 0.0), (course.seconds, 0.0))))
    return found


# --- what the command keeps of each image ---


def weigh(home: Path, split: Sequence[str]) -> dict[str, float]:
    """Bytes an image of what the command holds, built by its own functions from what a run left."""
    from chexgenbench.features.store import PARTS, FeatureStore
    from chexgenbench.generation import make_requests
    from chexgenbench.jobs.encode import ImageItem
    from chexgenbench.jobs.manifest import read_manifest
    from chexgenbench.registry import load_registry
    from chexgenbench.splits.prompts import read_prompts

    options = argparse.ArgumentParser()
    options.add_argument("--split", type=Path)
    options.add_argument("--images-root", type=Path)
    options.add_argument("--column", action="append")
    chosen = options.parse_args(split)
    columns = dict(name.split("=") for name in chosen.column)
    root = chosen.images_root
    outputs = load_registry().find("encoders", ENCODER).spec.outputs
    [generation] = (path.parent for path in home.glob("runs/generations/*/manifest.jsonl"))
    [store] = {path.parent for path in home.rglob(PARTS) if path.parent.name == "images"}
    table, prompts = _grown(
        lambda: read_prompts(chosen.split, name="csv", images_root=root, columns=columns)
    )
    count = len(prompts)
    requests, _ = _grown(lambda: make_requests(prompts, seed=0, repeats=1, size=None))
    rows, manifest = _grown(lambda: read_manifest(generation))
    items, _ = _grown(
        lambda: [
            ImageItem(row.sha256, generation / row.path, frozenset([ENCODER]))
            for row in manifest.values()
        ]
    )

    def index() -> FeatureStore:
        features = FeatureStore(store, outputs)
        features.refresh()
        return features

    indexed, _ = _grown(index)
    return {
        "row of the prompts table": table / count,
        "request": requests / count,
        "row of the manifest": rows / count,
        "image to encode": items / count,
        "entry of the features' index": indexed / (2 * count),
        "features": 4.0 * sum(outputs.values()),
    }


def _grown(make: Callable[[], T]) -> tuple[int, T]:
    """Bytes that are allocated after the call and were not before, and what it returned."""
    import pyarrow as pa

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()
    made = make()
    after = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()
    tracemalloc.stop()
    return after - before, made


# --- what looks at all images at once ---


def _frechet(x: Features, y: Features, patients: Groups) -> object:
    from chexgenbench.statistics import frechet_distance

    return frechet_distance(x, y, groups_real=patients, groups_fake=patients)


def _kernel(x: Features, y: Features, patients: Groups) -> object:
    from chexgenbench.statistics import kernel_distance

    return kernel_distance(x, y, groups_real=patients, groups_fake=patients)


def _manifold(x: Features, y: Features, patients: Groups) -> object:
    from chexgenbench.statistics import precision_recall_density_coverage

    return precision_recall_density_coverage(x, y, groups_real=patients, groups_fake=patients)


def _duplicates(x: Features, _y: Features, _patients: Groups) -> object:
    from chexgenbench.images import duplicates

    small = np.tile((x * 30 + 128).clip(0, 255).astype(np.uint8), 4).reshape(-1, 16, 16)
    return duplicates(small, [f"p{i}" for i in range(len(x))])


TOGETHER: dict[str, Callable[[Features, Features, Groups], object]] = {
    "search for duplicates": _duplicates,
    "`fid`": _frechet,
    "`kid`": _kernel,
    "`prdc`": _manifold,
}
"""Work on all images of a run, by name."""


def rise(name: str, count: int) -> float:
    """MB by which the peak of this process rises in that work on so many images a side."""
    random = np.random.default_rng(SEED)

    def call(rows: int) -> None:
        x, y = (random.standard_normal((rows, 64), np.float32) for _ in range(2))
        TOGETHER[name](x, y, np.arange(rows) // 2)

    call(200)  # what is loaded and kept on the first call is no part of it
    return measure(lambda: call(count)).memory


def rises(counts: Sequence[int]) -> dict[str, list[float]]:
    """`rise` of each work, each in a process of its own."""
    found: dict[str, list[float]] = {}
    for name in TOGETHER:
        for count in counts:
            words = [sys.executable, __file__, "--rise", name, str(count)]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            found.setdefault(name, []).append(float(done.stdout))
            print(f"{name}, {count:,}: {done.stdout.strip()} MB", file=sys.stderr, flush=True)
    return found


# --- tables and plot ---


def slope(course: Course, stage: Stage, of: Callable[[Look], float]) -> tuple[float, float]:
    """What is added a thousand images, by least squares, and the half width of its 95 % interval.

    Successive looks are alike, so the line goes through the means of `BLOCKS` equal parts of the
    stage, without the first two.
    """
    from scipy.stats import linregress, t

    looks = course.of(stage)
    times, done = zip(*stage.marks, strict=True)
    images = np.interp([look.time for look in looks], times, done) / 1000
    values = np.array([of(look) for look in looks], float)
    part = np.minimum((images / images.max() * BLOCKS).astype(int), BLOCKS - 1)
    kept = [i for i in range(2, BLOCKS) if (part == i).any()]
    if len(kept) < 5:
        return np.nan, np.nan
    x = np.array([images[part == i].mean() for i in kept])
    y = np.array([values[part == i].mean() for i in kept])
    if (y == y[0]).all():
        return 0.0, 0.0
    line = linregress(x, y)
    return float(line.slope), float(line.stderr * t.ppf(0.975, len(kept) - 2))


def _allocated(look: Look) -> float:
    return look.allocated / MB


QUANTITIES: dict[str, Callable[[Look], float]] = {
    "allocated memory, MB": _allocated,
    "resident memory, MB": lambda look: look.resident / MB,
    "open descriptors": lambda look: float(look.files),
    "threads": lambda look: float(look.threads),
}

GROWING = ("encode real", "generate", "encode generated")
"""Stages that go from image to image."""


def thirds(course: Course, stage: Stage, of: Callable[[Look], float]) -> str:
    """Medians of the first tenth of the stage, of its middle and of its last tenth; most."""
    looks = course.of(stage)
    if not looks:
        return "-"
    tenth = max(1, len(looks) // 10)
    middle = (len(looks) - tenth) // 2
    parts = (looks[:tenth], looks[middle : middle + tenth], looks[-tenth:])
    values = [f"{np.median([of(look) for look in part]):,.0f}" for part in parts]
    return " / ".join([*values, f"{max(of(look) for look in looks):,.0f}"])


def by_stage(course: Course) -> str:
    rows = []
    for stage in course.stages:
        if not course.of(stage):
            continue
        cells = [thirds(course, stage, of) for of in QUANTITIES.values()]
        rows.append([stage.name, f"{stage.end - stage.begin:,.0f}", *cells])
    every = Stage("whole run", ((0.0, 0.0), (course.seconds, 0.0)))
    most = [f"{max(map(of, course.looks)):,.0f}" for of in QUANTITIES.values()]
    rows.append([every.name, f"{course.seconds:,.0f}", *most])
    return table(["stage", "seconds", *QUANTITIES], rows)


def slopes(course: Course) -> str:
    kinds = {
        "allocated memory, MB": _allocated,
        "open descriptors": QUANTITIES["open descriptors"],
        "threads": QUANTITIES["threads"],
    }
    kept = course.accounts
    expected = {
        "generate": kept["row of the manifest"],
        "encode real": kept["entry of the features' index"],
        "encode generated": kept["entry of the features' index"],
    }
    rows = []
    for name in GROWING:
        stage = course.stage(name)
        assert stage
        cells = []
        for of in kinds.values():
            value, half = slope(course, stage, of)
            cells.append("-" if np.isnan(value) else f"{round(value, 2) + 0.0:.2f} ± {half:.2f}")
        rows.append([name, *cells, f"{expected[name] / 1000:.2f}"])
    return table(["a thousand images add in", *kinds, "of which rows kept, MB"], rows)


def against(small: Course, large: Course) -> str:
    """Peaks of both runs, stage by stage."""
    more = large.images - small.images
    rows = []
    for stage in large.stages:
        other = small.stage(stage.name)
        pair = [course.of(each) for course, each in ((small, other), (large, stage)) if each]
        if len(pair) < 2 or not all(pair):
            continue
        peaks = [max(_allocated(look) for look in looks) for looks in pair]
        grown = (peaks[1] - peaks[0]) * 1000 / more
        files, threads = (
            " / ".join(f"{max(map(QUANTITIES[name], looks)):.0f}" for looks in pair)
            for name in ("open descriptors", "threads")
        )
        rows.append([stage.name, *(f"{peak:,.0f}" for peak in peaks), f"{grown:.1f}"])
        rows[-1] += [files, threads]
    header = ["most in", *(f"MB, {course.images:,} images" for course in (small, large))]
    return table([*header, "kB more an image", "descriptors", "threads"], rows)


def accounts(course: Course) -> str:
    rows = [[name, f"{value:,.0f}"] for name, value in course.accounts.items()]
    return table(["kept an image", "bytes"], rows)


def together(course: Course) -> str:
    few, many = course.counts[1:]
    rows = []
    for name, values in course.rises.items():
        each = (values[2] - values[1]) * 1000 / (many - few)
        rows.append([name, *(f"{value:,.0f}" for value in values), f"{each:.1f}"])
    header = ["MB more at its peak", *(f"{count:,} images a side" for count in course.counts)]
    return table([*header, f"kB an image from {few:,} on"], rows)


def report(small: Course, large: Course) -> str:
    processes = max(look.processes for look in large.looks)
    return "\n\n".join(
        [
            f"{large.where}; model `{MODEL}`, encoder `{ENCODER}`, metrics "
            f"{', '.join(f'`{name}`' for name in METRICS)}; {len(large.looks):,} looks, "
            f"at most {processes} process{'es' if processes > 1 else ''} at a time.",
            f"### {large.images:,} images: first tenth / middle / last tenth / most",
            by_stage(large),
            f"### Growth within a stage, {large.images:,} images",
            slopes(large),
            f"### {small.images:,} images against {large.images:,}",
            against(small, large),
            "### What is kept of an image",
            accounts(large),
            "### What looks at all images at once",
            together(large),
        ]
    )


def plot(course: Course, path: Path) -> None:
    """Memory, descriptors and threads against time, one panel each; stages as grounds."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "long run", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(3, 1, figsize=(10, 7), sharex=True, layout="constrained")
    times: NDArray[np.float64] = np.array([look.time for look in course.looks])

    def line(axis: int, name: str, label: str, style: str) -> None:
        values = [QUANTITIES[name](look) for look in course.looks]
        axes[axis].plot(times, values, style, linewidth=1.2, label=label, color="black")

    line(0, "allocated memory, MB", "allocated (anonymous)", "-")
    line(0, "resident memory, MB", "resident (RSS: with libraries and files)", ":")
    line(1, "open descriptors", "open descriptors", "-")
    line(2, "threads", "threads", "-")
    for axis, name in zip(axes, ("memory, MB", "open descriptors", "threads"), strict=True):
        axis.set_ylabel(name)
        axis.set_ylim(0, axis.get_ylim()[1] * 1.05)
        axis.set_xlim(0, course.seconds)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="lower right")
    axes[2].set_xlabel("seconds since the command was started")
    grounds = {
        "encode real": "#cfe3f5",
        "encode prompts": "#dfeef0",
        "generate": "#fbe3c0",
        "search for duplicates": "#e6e6e6",
        "encode generated": "#d5ebd2",
        "score": "#e5d9ee",
    }
    for stage in course.stages:
        if stage.name not in grounds:
            continue
        for axis in axes:
            axis.axvspan(stage.begin, stage.end, color=grounds[stage.name], linewidth=0)
        if stage.end - stage.begin > course.seconds / 12:
            axes[0].annotate(
                stage.name,
                ((stage.begin + stage.end) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
            )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# --- to and from a file ---


def save(courses: Sequence[Course], path: Path) -> None:
    path.write_text(json.dumps([asdict(course) for course in courses]), encoding="utf-8")


def load(path: Path) -> list[Course]:
    courses = []
    for kept in json.loads(path.read_text(encoding="utf-8")):
        looks = [Look(**look) for look in kept.pop("looks")]
        stages = [
            Stage(stage["name"], tuple((time, done) for time, done in stage["marks"]))
            for stage in kept.pop("stages")
        ]
        courses.append(Course(**kept, looks=looks, stages=stages))
    return courses


def main() -> None:
    if sys.argv[1:2] == ["--accounts"]:
        print(json.dumps(weigh(Path(sys.argv[2]), sys.argv[3:])))
        return
    if sys.argv[1:2] == ["--rise"]:
        print(rise(sys.argv[2], int(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--keep", type=Path, help="the samples, to this JSON file")
    parser.add_argument("--from", type=Path, dest="source", help="samples that were kept")
    parser.add_argument("--plot", type=Path, help="the plot alone, to this file")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md and .svg")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if chosen.source:
        small, large = load(chosen.source)
    else:
        with tempfile.TemporaryDirectory(prefix="long-run-") as name:
            small, large = (watch(n, Path(name)) for n in (chosen.images // 10, chosen.images))
    large.rises = large.rises or rises(large.counts)
    if chosen.keep:
        save([small, large], chosen.keep)
    print(report(small, large))
    if chosen.plot:
        plot(large, chosen.plot)
    if chosen.write:
        plot(large, PLOT)
        write_between(PAGE, "long-run", report(small, large))


if __name__ == "__main__":
    main()
