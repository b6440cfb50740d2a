"""What an image costs beside its model: each constant of the cost model in docs/scale.md, measured.

    OMP_NUM_THREADS=1 python benchmarks/overheads.py [--repeats 3] [--image LOCAL_IMAGE] [--write]

The platform's own functions are timed on the files that they read and write in a run: real workers,
job directories, manifests and stores. Images are noise, the PNG files of which are the largest that
there are. ``--write`` puts the table into docs/scale.md and the least of each constant into
benchmarks/overheads.json, which ``scale_model.py`` computes with.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import ROOT, machine, spread, table, write_between

from chexgenbench.executors.border import Intake, usage
from chexgenbench.executors.launch import Processes, tail_of
from chexgenbench.executors.shards import cut, write_shard
from chexgenbench.features.store import FeatureStore
from chexgenbench.files import atomic_path
from chexgenbench.images import duplicates
from chexgenbench.jobs.generate import finish, finished, generate, hold
from chexgenbench.jobs.job import GenerateJob, plain_context
from chexgenbench.jobs.manifest import (
    IMAGES,
    MANIFEST,
    PROCESSES,
    Appender,
    ManifestRow,
    Process,
    read_manifest,
    this_process,
)
from chexgenbench.registry import load_registry
from chexgenbench.store.records import RUN_TABLES, RunRecord
from chexgenbench.store.run_directory import write_run
from chexgenbench.store.store import Store
from chexgenbench.types import Context, Request

PAGE, NUMBERS = ROOT / "docs" / "scale.md", ROOT / "benchmarks" / "overheads.json"
SIZES = {128: 256, 512: 96, 1024: 32}
"""Pixels a side, and how many images of it are timed."""

Samples = dict[str, list[float]]


def make_requests(count: int, size: int | None = 128) -> list[Request]:
    prompt = "Heart size is normal. Small left pleural effusion. No pneumothorax. " * 4
    return [
        Request(id=f"p{i:08d}", prompt_id=f"p{i:08d}", prompt=prompt, seed=i, size=size)
        for i in range(count)
    ]


def job_of(model: str, requests: list[Request], batch_size: int, **parameters: Any) -> GenerateJob:
    plugin: Any = load_registry().find("models", model)
    return GenerateJob(
        model=model,
        source=plugin.source_hash(),
        parameters=plugin.parse(parameters).model_dump(mode="json"),
        context=plain_context(Context(device="cpu", home=ROOT, cache=ROOT)),
        batch_size=batch_size,
        n_requests=len(requests),
    )


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def seconds(function: Callable[[], Any]) -> float:
    """Of processor time, which other programs do not change."""
    begun = time.process_time()
    function()
    return time.process_time() - begun


def clock(function: Callable[[], Any]) -> float:
    """By the clock, for what waits for another process or the disk."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


@cache
def made_by() -> Process:
    return this_process("cpu")


def row_of(request: Request, number: int) -> ManifestRow:
    small = np.random.default_rng(number).integers(0, 256, 256, np.uint8).tobytes()
    return ManifestRow(
        id=request.id,
        prompt_id=request.prompt_id,
        repeat=0,
        seed=request.seed,
        path=f"{IMAGES}/SyntheticImg_{request.id}.png",
        sha256=f"{number:064x}",
        width=128,
        height=128,
        seconds=0.5,
        batch=number // 16,
        flags=(),
        call=16,
        thumbnail=base64.b64encode(small).decode(),
        worker=1,
        device="cpu",
        memory=10**9,
        process=made_by().id,
    )


def fill(folder: Path, requests: list[Request]) -> None:
    """A generation's folder as it stands when all images of it have been taken in."""
    (folder / IMAGES).mkdir(parents=True)
    with Appender(folder / PROCESSES) as processes:
        processes.add(made_by())
    with Appender(folder / MANIFEST) as manifest:
        for number, request in enumerate(requests):
            row = row_of(request, number)
            (folder / row.path).write_bytes(b"x")
            manifest.add(row)


# --- each measurement: its name to what one turn of it took ---


def worker_start(model: str) -> dict[str, float]:
    """From the launch of a process to its imports, its model, its first image and its end."""
    requests = make_requests(1, None)
    job = job_of(model, requests, 1)
    with scratch() as root:
        own = write_shard(root / "job", job, cut(requests, set(), 1, 1)[0])
        launcher = Processes(["cpu"])
        begun, launched = time.time(), time.perf_counter()
        running = launcher.start(root / "job", own, "cpu", root / "log")
        launched = time.perf_counter() - launched
        while running.poll() is None:
            time.sleep(0.005)
        ended = time.time()
        running.stop()
        lines = (root / "job" / "events-0.jsonl").read_text().splitlines()
        events = {each["event"]: each for each in map(json.loads, lines)}
        if "made" not in events:
            raise RuntimeError(tail_of(root / "log", 2000))
    return {
        "launch": launched,
        f"start {model}": events["loaded"]["time"] - begun,
        f"end {model}": ended - events["made"]["time"],
    }


def engine_and_border(size: int) -> dict[str, float]:
    """An image's way out of a worker, and through the border into the generation."""
    count = SIZES[size]
    requests = make_requests(count, size)
    job = job_of("noise", requests, 16, size=size)
    plugin: Any = load_registry().find("models", "noise")
    model = plugin.create(
        plugin.parse({"size": size}), Context(device="cpu", home=ROOT, cache=ROOT)
    )
    made = list(model.generate(requests))

    class Ready:
        """Images that are there: what remains is the engine."""

        def generate(self, asked: list[Request]) -> list[Any]:
            return [made[int(each.id[1:])] for each in asked]

    with scratch() as root:
        folder, target = root / "job", root / "generation"
        shard = cut(requests, set(), 16, 1)[0]
        write_shard(folder, job, shard)
        with hold(folder):
            written = seconds(
                lambda: generate(
                    lambda: Ready(),  # type: ignore[arg-type, return-value]
                    requests,
                    folder,
                    batch_size=16,
                    advance=lambda _count: None,
                )
            )
        (target / IMAGES).mkdir(parents=True)
        intake = Intake(folder, shard, target, set(), 1)
        taken = seconds(intake.take)
        assert intake.complete()
        size_on_disk = sum(path.stat().st_size for path in (target / IMAGES).iterdir()) / count
        removed = seconds(lambda: shutil.rmtree(folder))
    return {
        f"worker's image {size}": written / count,
        f"border {size}": taken / count,
        f"bytes {size}": size_on_disk,
        "remove": removed / count,
    }


def look() -> dict[str, float]:
    """What the merging process does for each worker in a loop, and now and then for each file."""
    requests = make_requests(4000, 128)
    job = job_of("noise", requests, 16)
    with scratch() as root:
        folder = root / "job"
        shard = cut(requests, set(), 16, 1)[0]
        wrote = seconds(lambda: write_shard(folder, job, shard))
        fill(folder / "x", requests)
        for name in (IMAGES, MANIFEST, PROCESSES):
            (folder / "x" / name).rename(folder / name)
        intake = Intake(folder, shard, root, {each.id for each in requests}, 1)
        intake.take()
        looked = seconds(lambda: [intake.take() for _ in range(200)]) / 200
        counted = seconds(lambda: usage(folder, 100_000))
    return {"job line": wrote / 4000, "look": looked, "usage": counted / 4000}


def manifest(count: int = 8000) -> dict[str, float]:
    """Each row of a generation: taken up again, read, and settled at the end."""
    requests = make_requests(count)
    with scratch() as root:
        fill(root, requests)

        def again() -> None:
            with hold(root):
                finished(requests, root)

        resumed = seconds(again)
        read = seconds(lambda: read_manifest(root))
        whole = seconds(lambda: finish(requests, root))
        size = (root / MANIFEST).stat().st_size / count
    small = np.random.default_rng(0).integers(0, 256, (count, 16, 16), np.uint8)
    pairs = seconds(lambda: duplicates(small, [each.id for each in requests]))
    return {
        "resume": resumed / count,
        "read": read / count,
        "finish": (whole - pairs) / count,
        "pair": pairs / count**2,
        "line bytes": size,
    }


def memory(count: int = 20_000) -> dict[str, float]:
    """Bytes of the merging process an image: its request and its row, in a process of its own."""
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import psutil, overheads as o\n"
        "from chexgenbench.jobs.manifest import read_manifest\n"
        "rss = lambda: psutil.Process().memory_info().rss\n"
        f"a = rss(); requests = o.make_requests({count}); b = rss()\n"
        "rows = read_manifest(pathlib.Path(sys.argv[2])); print(rss() - a)"
    )
    with scratch() as root:
        fill(root, make_requests(count))
        arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(root)]
        done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return {"memory": int(done.stdout) / count}


def files(count: int = 20_000) -> dict[str, float]:
    """A small file made in a folder that is empty, and in one that has many."""
    with scratch() as root:

        def some(begin: int, number: int) -> float:
            def make() -> None:
                for i in range(begin, begin + number):
                    (root / f"SyntheticImg_{i}.png").write_bytes(b"x")

            return seconds(make) / number

        first = some(0, 2000)
        some(2000, count)
        full = some(2000 + count, 2000)

        def safe() -> None:
            with atomic_path(root / "safe.png") as temporary:
                temporary.write_bytes(b"x" * 16_000)

        return {
            "file, folder empty": first,
            "file, folder full": full,
            "file, safe": sorted(clock(safe) for _ in range(100))[50],
        }


def features(count: int = 16_384, width: int = 768) -> dict[str, float]:
    """Vectors of an encoder, in parts of 1,024, written, indexed by a new process, and read."""
    keys = [f"{i:064x}" for i in range(count)]
    values = np.random.default_rng(0).standard_normal((count, width), np.float32)
    with scratch() as root:
        store = FeatureStore(root, {"features": width})

        def write() -> None:
            for start in range(0, count, 1024):
                part = slice(start, start + 1024)
                store.write(keys[part], {"features": values[part]})

        wrote = seconds(write)
        other = FeatureStore(root, {"features": width})
        indexed = seconds(other.refresh)
        read = seconds(lambda: other.read(keys))
    return {
        "features write": wrote / count,
        "features index": indexed / count,
        "features read": read / count,
    }


def ingest(count: int = 100_000) -> dict[str, float]:
    """A run of as many images with one score each, into an empty store and beside another run."""
    with scratch() as root:
        took = []
        for run in ("first", "second"):
            names = [f"{run}{i:08d}" for i in range(count)]
            data: dict[str, Any] = {
                name: schema.empty_table() for name, schema in RUN_TABLES.items()
            }
            data["images"] = _filled("images", run, count, image_id=names, prompt_id=names)
            data["sample_scores"] = _filled(
                *("sample_scores", run, count), image_id=names, prompt_id=names, metric="alignment"
            )
            record = RunRecord(
                run_id=run,
                suite="s",
                model=run,
                split="s",
                protocol="standard",
                seed=0,
                status="finished",
                created_at="2026-01-01T00:00:00+00:00",
            )
            write_run(root / run, record, data)
            store = Store(root / "store.duckdb")
            took.append(seconds(lambda: store.ingest([root / run])))  # noqa: B023
    rows = 2 * count
    return {"ingest": took[0] / rows, "ingest, store of 100,000 images": took[1] / rows}


def _filled(name: str, run: str, count: int, **columns: Any) -> Any:
    import pyarrow as pa

    schema = RUN_TABLES[name]
    columns = {"run_id": run, "status": "ok", "encoder": "e", **columns}
    arrays = []
    for field in schema:
        value = columns.get(field.name)
        if isinstance(value, str):
            value = [value] * count
        if value is None and pa.types.is_floating(field.type):
            value = np.random.default_rng(0).standard_normal(count)
        if value is None and pa.types.is_integer(field.type):
            value = list(range(count))
        arrays.append(pa.nulls(count, field.type) if value is None else pa.array(value, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def container(runtime: str, image: str) -> dict[str, float]:
    """An empty program in a container that is held as a worker's is."""
    flags = "--rm --network none --read-only --user 1000:1000 --cap-drop ALL --memory 1g"
    flags += " --security-opt no-new-privileges --pids-limit 100 --entrypoint true"
    command = [runtime, "run", *flags.split(), image]
    return {"container": clock(lambda: subprocess.run(command, check=True, capture_output=True))}


class Cluster:
    """A Ray of this machine, started once."""

    def __init__(self) -> None:
        import ray

        self._ray = ray
        self.started = clock(
            lambda: ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        )
        self._empty = ray.remote(_nothing)
        ray.get([self._empty.remote() for _ in range(20)])  # its processes are there

    def tasks(self, count: int = 500) -> dict[str, float]:
        took = clock(lambda: self._ray.get([self._empty.remote() for _ in range(count)]))
        return {"ray task": took / count}

    def close(self) -> None:
        self._ray.shutdown()


def _nothing() -> None:
    return None


SHOWN = {
    "launch": ("a worker's process launched", 1, "s, clock"),
    "start noise": ("... until it can make images: Python, imports, `noise`", 1, "s, clock"),
    "start phantom-diffusion": (
        "... the same with `phantom-diffusion`, PyTorch and its weights",
        1,
        "s, clock",
    ),
    "end noise": ("from its last image to its end, `noise`", 1, "s, clock"),
    "end phantom-diffusion": ("the same, `phantom-diffusion`", 1, "s, clock"),
    "container": ("a confined container around it", 1, "s, clock"),
    "ray": ("Ray on this machine started", 1, "s, clock"),
    "ray task": ("an empty Ray task", 1e3, "ms, clock"),
    "job line": ("a request into a job directory", 1e3, "ms"),
    **{
        f"worker's image {size}": (
            f"an image of {size} x {size} out of the worker: PNG, hash, files",
            1e3,
            "ms",
        )
        for size in SIZES
    },
    **{
        f"border {size}": (
            f"an image of {size} x {size} through the border: decoded, hashed, written again",
            1e3,
            "ms",
        )
        for size in SIZES
    },
    **{f"bytes {size}": (f"its file, {size} x {size}", 1e-3, "kB") for size in SIZES},
    "remove": ("a file of a job directory removed", 1e3, "ms"),
    "look": ("a look at a worker that has made nothing new", 1e3, "ms"),
    "usage": ("a file of a job directory counted", 1e6, "us"),
    "file, folder empty": ("a small file made, folder empty", 1e6, "us"),
    "file, folder full": ("the same, beside 20,000 others", 1e6, "us"),
    "file, safe": ("a file of 16 kB written, synced to the disk and renamed", 1e3, "ms, clock"),
    "resume": ("a manifest row and its file taken up again", 1e3, "ms"),
    "read": ("a manifest row read", 1e3, "ms"),
    "finish": ("a manifest row settled at the end", 1e3, "ms"),
    "pair": ("two thumbnails compared (search for duplicates)", 1e9, "ns"),
    "line bytes": ("a manifest row on the disk", 1, "bytes"),
    "memory": ("a request and its row in memory", 1e-3, "kB"),
    "features write": ("a vector of 768 written", 1e6, "us"),
    "features index": ("... its key indexed by the next command", 1e6, "us"),
    "features read": ("... read", 1e6, "us"),
    "ingest": ("a row into an empty store", 1e6, "us"),
    "ingest, store of 100,000 images": ("a row into a store with 200,000 rows", 1e6, "us"),
}
"""Name of a constant: what it is, and how it is shown."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runtime", default="podman")
    parser.add_argument("--image", help="a local image, for the start of a container")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument(
        "--write", action="store_true", help="into docs/scale.md and overheads.json"
    )
    chosen = parser.parse_args()
    where = machine()
    cluster = None
    turns: list[Callable[[], dict[str, float]]] = [
        lambda: worker_start("noise"),
        lambda: worker_start("phantom-diffusion"),
        *(lambda size=size: engine_and_border(size) for size in SIZES),
        look,
        manifest,
        memory,
        files,
        features,
        ingest,
    ]
    found: Samples = {}
    if chosen.image:
        turns.append(lambda: container(chosen.runtime, chosen.image))
    if not chosen.no_ray:
        cluster = Cluster()
        found["ray"] = [cluster.started]
        turns.append(cluster.tasks)
    try:
        for _ in range(chosen.repeats):
            for turn in turns:
                for name, value in turn().items():
                    found.setdefault(name, []).append(value)
                    print(f"{name}: {value:.6g}", file=sys.stderr, flush=True)
    finally:
        if cluster is not None:
            cluster.close()
    text = table_of(found, where, chosen.repeats)
    print(text)
    if chosen.write:
        write(found, text)


def table_of(found: Samples, where: str, turns: int) -> str:
    rows = [
        [label, _shown(found[name], scale), unit]
        for name, (label, scale, unit) in SHOWN.items()
        if name in found
    ]
    told = f"{where}; {turns} turns, least / median / largest. Processor time, but where "
    return f"{told}it says clock.\n\n{table(['constant', 'measured', 'unit'], rows)}"


def write(found: Samples, text: str) -> None:
    write_between(PAGE, "overheads", text)
    # The least: what it takes where nothing else is in the way.
    least = {name: float(f"{min(values):.4g}") for name, values in found.items()}
    NUMBERS.write_text(json.dumps(least, indent=1) + "\n", encoding="utf-8")


def _shown(values: list[float], scale: float) -> str:
    return spread([value * scale for value in values])


if __name__ == "__main__":
    main()
