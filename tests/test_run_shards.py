"""Generations in shards: the images of one process, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.executors import ModelSource, Processes
from chexgenbench.generation import Generation, plan_generation, seed_of
from chexgenbench.jobs.job import Limits
from chexgenbench.jobs.manifest import read_calls, read_manifest
from chexgenbench.registry import load_registry
from chexgenbench.types import Context, Request

COUNT = 14

PLUGIN = '''
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from pydantic import Field

from chexgenbench import Model, ModelSpec, Parameters, UserError, hookimpl


class BatchyParameters(Parameters):
    folder: str = Field(description="Where a call leaves its mark.")
    fault: str = Field("", description="What goes wrong.")
    seconds: float = Field(0.0, description="How long a call takes.")


class Batchy(Model):
    def __init__(self, parameters, context):
        super().__init__(parameters, context)
        self.folder, self.fault = Path(parameters.folder), parameters.fault
        (self.folder / f"started-{time.time_ns()}-{os.getpid()}").touch()
        if self.fault == "unloadable":
            raise RuntimeError("no such weights")

    def generate(self, requests):
        ids = [request.id for request in requests]
        before = (self.folder / "died").exists()
        if self.fault == "short of memory" and not before and len(ids) > 2:
            raise MemoryError
        if self.fault == "hungry":
            self.kept = np.ones(4 * 10**8)
        if self.fault == "user" and "r5" in ids:
            raise UserError("The prompt is no prompt.", hint="Write one.")
        if self.fault == "daemon" and not before:
            self.leave_daemon()
        with (self.folder / "calls.txt").open("a") as file:
            file.write(" ".join(ids) + "\\n")
        time.sleep(self.parameters.seconds)
        if self.fault in ("short of memory", "dies") and "r2" in ids and not before:
            self.die()
        # As in a real pipeline, each image depends a little on its whole call.
        together = sum(request.seed for request in requests) % 50
        for request in requests:
            values = np.random.default_rng(request.seed).integers(0, 200, (32, 32), dtype=np.uint8)
            yield values + np.uint8(together)

    def die(self):
        """Once the images of an earlier call are there."""
        if self.fault == "short of memory":
            bench = self.folder.parent
            while not any(p.stat().st_size for p in bench.glob("*/*/shards/*/manifest.jsonl")):
                time.sleep(0.01)
        (self.folder / "died").touch()
        print("about to die", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def leave_daemon(self):
        """A process in a session of its own, whose parent has ended; then hangs."""
        (self.folder / "died").touch()
        code = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)", str(self.folder)]
        subprocess.run([sys.executable, "-c", code, *sleeper], start_new_session=True)
        time.sleep(600)


@hookimpl
def chexgenbench_models():
    yield ModelSpec(name="batchy", summary="", load=Batchy, parameters=BatchyParameters)
'''


def requests() -> list[Request]:
    return [
        Request(id=f"r{i}", prompt_id=f"r{i}", prompt=f"text {i}", seed=seed_of(0, f"r{i}", 0))
        for i in range(COUNT)
    ]


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "batchy.py"
        self.file.write_text(PLUGIN)
        self.said: list[str] = []

    def plan(self, name: str, **parameters: object) -> Generation:
        """The generation of that name, with a folder of its own."""
        marks = self.folder / f"marks-{name}"
        marks.mkdir(exist_ok=True)
        plugin = load_registry([self.file]).find("models", "batchy")
        return plan_generation(
            plugin,
            plugin.parse({"folder": str(marks), **parameters}),
            Context(home=self.folder, cache=self.folder / "cache"),
            requests(),
            batch_size=4,
            exact=False,
            root=self.folder / name,
            weights={},
        )

    def here(self, generation: Generation, **arguments: Any) -> dict[str, str]:
        source = ModelSource(files=(self.file,))
        rows = generation.run(say=self.said.append, source=source, **arguments)
        return {key: row.sha256 for key, row in rows.items()}

    def run(self, generation: Generation, places: int = 1, **arguments: Any) -> dict[str, str]:
        return self.here(generation, launcher=Processes(["cpu"] * places), **arguments)

    def whole(self) -> dict[str, str]:
        return self.here(self.plan("whole"))

    def lost(self) -> list[str]:
        """What was said of workers that were lost."""
        return [text for text in self.said if not text.startswith("nothing for")]

    def starts(self, name: str) -> int:
        """How often the model was made."""
        return len(list((self.folder / f"marks-{name}").glob("started-*")))

    def calls(self, name: str) -> list[str]:
        return (self.folder / f"marks-{name}" / "calls.txt").read_text().splitlines()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_any_number_of_shards_makes_what_one_process_makes(bench: Bench) -> None:
    whole = bench.whole()
    for shards in (1, 2, 7):
        generation = bench.plan(f"in-{shards}")
        seen: list[int] = []
        rows = generation.run(
            seen.append,
            source=ModelSource(files=(bench.file,)),
            launcher=Processes(["cpu", "cpu"]),
            shards=shards,
        )
        assert {key: row.sha256 for key, row in rows.items()} == whole
        assert list(rows) == [f"r{i}" for i in range(COUNT)]
        assert sum(seen) == COUNT
        # Four batches are no more than four shards.
        assert bench.starts(f"in-{shards}") == min(shards, 4)
        assert [row.batch for row in rows.values()] == [i // 4 for i in range(COUNT)]
        assert not (generation.folder / "shards").exists()
        assert generation.summary().n_images == COUNT


def test_cuts_of_a_worker_that_died_hold_for_the_next(bench: Bench) -> None:
    """The first runs out of memory and is killed; the second has enough and must cut as it did."""
    generation = bench.plan("cut", fault="short of memory")
    rows = bench.run(generation)
    assert bench.starts("cut") == 2
    (lost,) = bench.lost()
    assert "SIGKILL: about to die" in lost
    assert read_calls(generation.folder)[0] == (2, 2)
    assert bench.calls("cut").count("r2 r3") == 2
    halves = plan_halves(bench)
    assert {key: rows[key] for key in ("r0", "r1", "r2", "r3")} == halves


def plan_halves(bench: Bench) -> dict[str, str]:
    """The first four images, made in calls of two."""
    generation = replace(bench.plan("halves"), batch_size=2, requests=requests()[:4])
    return bench.here(generation)


def test_a_worker_that_dies_is_followed_by_another(bench: Bench) -> None:
    assert bench.run(bench.plan("dies", fault="dies"), 2) == bench.whole()
    assert bench.starts("dies") == 3
    (lost,) = bench.lost()
    assert "Another takes its part" in lost


def test_bad_input_ends_one_shard_and_keeps_the_others(bench: Bench) -> None:
    generation = bench.plan("user", fault="user")
    with pytest.raises(UserError, match="The prompt is no prompt") as caught:
        bench.run(generation, shards=4)
    assert caught.value.hint and caught.value.hint.startswith("Write one.\nThe end of its log")
    assert set(read_manifest(generation.folder)) == {f"r{i}" for i in range(COUNT)} - {
        "r4",
        "r5",
        "r6",
        "r7",
    }
    assert bench.starts("user") == 4


def test_a_model_that_cannot_be_loaded_is_not_started_for_every_shard(bench: Bench) -> None:
    with pytest.raises(ChexGenBenchError, match="no such weights"):
        bench.run(bench.plan("unloadable", fault="unloadable"), shards=4)
    assert bench.starts("unloadable") == 3


def command(bench: Bench) -> list[str]:
    """A program that makes the generation "long", as a command of ours would."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_run_shards import Bench
bench = Bench(Path({str(bench.folder)!r}))
bench.run(bench.plan("long", seconds=0.5), 2)
"""
    return [sys.executable, "-c", code]


def alive(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []  # none of a zombie
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(
            str(folder) in part for part in line[2:]
        ):
            found.append(process.pid)
    return found


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def lines(bench: Bench) -> int:
    """Images that workers have noted and nobody has removed."""
    paths = bench.folder.glob("long/*/shards/*/manifest.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in paths)


def test_what_a_killed_command_left_is_taken_in(bench: Bench) -> None:
    process = subprocess.Popen(command(bench))
    until(lambda: lines(bench) >= 4)
    # The command is stopped and its workers go on, so that they make what it has not taken.
    process.send_signal(signal.SIGSTOP)
    there = lines(bench)
    until(lambda: lines(bench) > there)
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not alive(bench.folder / "long"))
    there = lines(bench)
    made = bench.calls("long")
    # A worker could write into its directory: what that says of the job is not believed.
    for path in bench.folder.glob("long/*/shards/*/job.json"):
        path.unlink()
        os.mkfifo(path)
    generation = bench.plan("long", seconds=0.5)
    assert len(read_manifest(generation.folder)) < there
    assert bench.run(generation, 2) == bench.whole()
    # Batches that were there as a whole were not made again.
    again = bench.calls("long")[len(made) :]
    assert len(made) + len(again) <= 4 + 2
    assert there // 4 + len(again) <= 4


def test_an_interrupted_command_ends_its_workers(bench: Bench) -> None:
    process = subprocess.Popen(command(bench), stderr=subprocess.PIPE, text=True)
    until(lambda: lines(bench) >= 4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert not alive(bench.folder / "long")
    assert 0 < len(read_manifest(bench.plan("long", seconds=0.5).folder)) < COUNT


@pytest.mark.slow
def test_a_daemon_of_a_worker_ends_with_it(bench: Bench) -> None:
    """It has left the worker's group and session, and its parent has ended."""
    marks = bench.folder / "marks-daemon"
    assert bench.run(bench.plan("daemon", fault="daemon"), timeout=20.0) == bench.whole()
    (lost,) = bench.lost()
    assert "returned nothing for 20 s (--timeout) and was ended" in lost
    assert not alive(marks)


def test_a_worker_is_held_to_its_memory(bench: Bench) -> None:
    """3.2 GB are asked for, where 1.5 GB are allowed; all batch sizes are tried."""
    limits = Limits(memory=1_500_000_000)
    for name, arguments in (
        ("shards", {"launcher": Processes(["cpu"])}),
        ("workers", {"workers": 2}),
    ):
        generation = bench.plan(name, fault="hungry")
        with pytest.raises(
            ChexGenBenchError, match="out of memory on cpu with one image"
        ) as caught:
            bench.here(generation, limits=limits, **arguments)
        assert caught.value.hint
        assert "A worker may take 1.5 GB of memory (--memory)." in caught.value.hint
    bench.run(bench.plan("enough"), limits=limits)
    bench.said.clear()
    bench.here(bench.plan("here"), limits=limits)
    assert "held to no limit of memory" in bench.said[0]


@pytest.mark.slow
def test_a_pipeline_runs_within_a_limit(tmp_path: Path) -> None:
    plugin = load_registry().find("models", "phantom-diffusion")

    def run(name: str, **arguments: Any) -> dict[str, str]:
        generation = plan_generation(
            plugin,
            plugin.parse({"steps": 2}),
            Context(home=tmp_path, cache=tmp_path / "cache"),
            requests()[:2],
            batch_size=2,
            exact=False,
            root=tmp_path / name,
            weights={},
        )
        return {key: row.sha256 for key, row in generation.run(**arguments).items()}

    limits = Limits(memory=4_000_000_000)
    assert run("limited", launcher=Processes(["cpu"]), limits=limits) == run("here")
