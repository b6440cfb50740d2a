"""Workers: one or several processes, alive or killed, make the same images."""

from __future__ import annotations

import json
import os
import re
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chexgenbench import provenance
from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.executors import ModelSource, processes
from chexgenbench.generation import Generation, plan_generation, seed_of
from chexgenbench.jobs import waiting
from chexgenbench.jobs.job import GenerateJob, plain_context, read_generate_job, write_generate_job
from chexgenbench.jobs.manifest import MANIFEST, gather, parts, read_manifest
from chexgenbench.registry import load_registry
from chexgenbench.types import Context, Request

COUNT = 26

PLUGIN = """
import os
import signal
import time
from pathlib import Path

import numpy as np
from pydantic import Field

from chexgenbench import Model, ModelSpec, Parameters, UserError, hookimpl


class BatchyParameters(Parameters):
    folder: str = Field(description="Where a call leaves its mark.")
    fault: str = Field("", description="How the call with request r9 fails.")
    seconds: float = Field(0.02, description="How long a call takes.")
    together: int = Field(1, description="Processes that wait for each other in their first call.")


class Batchy(Model):
    def generate(self, requests):
        folder = Path(self.parameters.folder)
        time.sleep(self.parameters.seconds)
        (folder / f"began-{os.getpid()}").touch()
        while len(list(folder.glob("began-*"))) < self.parameters.together:
            time.sleep(0.01)
        if "r9" in [request.id for request in requests]:
            before = len(list(folder.glob("tried-*")))
            (folder / f"tried-{os.getpid()}").touch()
            self.fail(self.parameters.fault, before)
        # As in a real pipeline, each image depends a little on its whole batch.
        together = sum(request.seed for request in requests) % 50
        for request in requests:
            values = np.random.default_rng(request.seed).integers(0, 200, (32, 32), dtype=np.uint8)
            yield values + np.uint8(together)

    def fail(self, fault, before):
        if fault == "user":
            raise UserError("The prompt is no prompt.", hint="Write one.")
        if fault == "error":
            raise RuntimeError("out of luck")
        if fault == "disk":
            raise OSError(28, "No space left on device")
        if fault == "killed" or (fault == "killed once" and not before):
            # Files are written a call behind; some are to be there.
            bench = Path(self.parameters.folder).parent
            while not any(p.stat().st_size for p in bench.glob("*/*/manifest-*.jsonl")):
                time.sleep(0.01)
            print("about to die", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


@hookimpl
def chexgenbench_models():
    yield ModelSpec(name="batchy", summary="", load=Batchy, parameters=BatchyParameters)
"""


def requests(count: int = COUNT) -> list[Request]:
    return [
        Request(id=f"r{i}", prompt_id=f"r{i}", prompt=f"text {i}", seed=seed_of(0, f"r{i}", 0))
        for i in range(count)
    ]


class Bench:
    """A folder with the plugin's file, and generations by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "batchy.py"
        self.file.write_text(PLUGIN)
        self.source = ModelSource(files=(self.file,))
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

    def run(self, generation: Generation, **arguments: Any) -> dict[str, str]:
        rows = generation.run(say=self.said.append, source=self.source, **arguments)
        return {key: row.sha256 for key, row in rows.items()}

    def whole(self) -> dict[str, str]:
        return self.run(self.plan("whole"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def in_order(generation: Generation) -> None:
    """One manifest with one row a request, in order, and nothing left over."""
    assert [path.name for path in parts(generation.folder, MANIFEST)] == [MANIFEST]
    lines = (generation.folder / MANIFEST).read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"r{i}" for i in range(COUNT)]
    assert not list(generation.folder.rglob(".tmp-*"))


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_make_what_one_process_makes(bench: Bench, workers: int) -> None:
    generation = bench.plan("many", together=workers)
    seen: list[int] = []
    assert bench.run(generation, workers=workers, advance=seen.append) == bench.whole()
    assert sum(seen) == COUNT
    in_order(generation)
    rows = read_manifest(generation.folder).values()
    # Each has made a batch at least, because the first calls wait for each other.
    assert len({row.worker for row in rows}) == workers == generation.summary().workers
    for batch in range(7):
        assert len({row.worker for row in rows if row.batch == batch}) == 1


@pytest.mark.slow
def test_a_pipeline_by_two_workers_is_that_of_one_process(tmp_path: Path) -> None:
    """Also with prompts that repeat, whose text some worker has encoded before and another not."""
    plugin = load_registry().find("models", "phantom-diffusion")
    texts = ["Large left pleural effusion.", "No acute process."]
    asked = [
        Request(id=f"r{i}", prompt_id=f"r{i % 2}", prompt=texts[i % 2], seed=seed_of(0, "r", i))
        for i in range(5)
    ]

    def run(name: str, workers: int) -> dict[str, str]:
        generation = plan_generation(
            plugin,
            plugin.parse({"steps": 2}),
            Context(home=tmp_path, cache=tmp_path / "cache"),
            asked,
            batch_size=2,
            exact=False,
            root=tmp_path / name,
            weights={},
        )
        return {key: row.sha256 for key, row in generation.run(workers=workers).items()}

    assert run("one", 1) == run("two", 2)


def test_another_interpreter_is_used_and_one_worker_is_enough(bench: Bench) -> None:
    """A script that stands for the Python of another environment, and says that it was asked."""
    other = bench.folder / "python"
    other.write_text(f'#!/bin/sh\ntouch "{bench.folder}/asked"\nexec "{sys.executable}" "$@"\n')
    other.chmod(0o755)
    generation = bench.plan("other")
    assert bench.run(generation, interpreter=other) == bench.whole()
    assert (bench.folder / "asked").exists()
    assert {row.worker for row in read_manifest(generation.folder).values()} == {1}


def test_an_interpreter_that_is_not_there(bench: Bench) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        bench.run(bench.plan("none"), interpreter=bench.folder / "nowhere")


def test_an_interpreter_without_our_package_is_said(bench: Bench) -> None:
    other = bench.folder / "python"
    other.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" -I -S "$@"\n')
    other.chmod(0o755)
    with pytest.raises(ChexGenBenchError, match="No module named 'chexgenbench'"):
        bench.run(bench.plan("none"), interpreter=other)


def test_the_batch_of_a_killed_worker_is_taken_over(bench: Bench) -> None:
    generation = bench.plan("killed", fault="killed once")
    assert bench.run(generation, workers=2) == bench.whole()
    in_order(generation)
    died = [text for text in bench.said if "SIGKILL" in text]
    assert len(died) == 1
    assert "worker" in died[0] and "about to die" in died[0] and "1 more" in died[0]


def test_all_workers_dead_is_an_error_and_what_they_made_stays(bench: Bench) -> None:
    generation = bench.plan("dead", fault="killed")
    with pytest.raises(ChexGenBenchError, match="SIGKILL: about to die") as caught:
        bench.run(generation, workers=2)
    assert not isinstance(caught.value, UserError)
    assert 0 < len(read_manifest(generation.folder)) < COUNT


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("user", UserError, "The prompt is no prompt"),
        ("error", ChexGenBenchError, "Batchy failed on requests r8 to r11: RuntimeError"),
        ("disk", OSError, "No space left"),
    ],
)
def test_the_error_of_a_worker_is_that_of_one_process(
    bench: Bench, fault: str, kind: type[Exception], message: str
) -> None:
    caught = []
    for name, workers in (("one", 1), ("two", 2)):
        with pytest.raises(kind, match=message) as error:
            bench.run(bench.plan(name, fault=fault), workers=workers)
        caught.append((type(error.value), str(error.value), getattr(error.value, "hint", None)))
    assert caught[0] == caught[1]


def command(bench: Bench, workers: int) -> str:
    """A program that makes the generation "long", as a command of ours would."""
    return f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_workers import Bench
bench = Bench(Path({str(bench.folder)!r}))
bench.run(bench.plan("long", seconds=0.3), workers={workers})
"""


def children(folder: Path) -> list[int]:
    """Processes that work in the folder, by what the system says of their arguments."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []  # none of a zombie
        if "chexgenbench.jobs.worker" in line and any(str(folder) in part for part in line):
            found.append(process.pid)
    return found


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def images(bench: Bench) -> int:
    return len(list(bench.folder.glob("long/*/images/Synthetic*.png")))


def test_killed_command_takes_its_workers_with_it_and_goes_on(bench: Bench) -> None:
    for _ in range(2):
        before = images(bench)
        process = subprocess.Popen([sys.executable, "-c", command(bench, 2)])
        until(lambda before=before: images(bench) > before)  # type: ignore[misc]
        assert len(children(bench.folder)) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(lambda: not children(bench.folder))
        assert images(bench) < COUNT
    generation = bench.plan("long", seconds=0.3)
    assert bench.run(generation, workers=2) == bench.whole()
    in_order(generation)


def test_worker_and_command_killed_then_one_process_goes_on(bench: Bench) -> None:
    process = subprocess.Popen([sys.executable, "-c", command(bench, 2)])
    until(lambda: images(bench) >= 4)
    os.kill(children(bench.folder)[0], signal.SIGKILL)
    made = images(bench)
    until(lambda: images(bench) > made)
    process.send_signal(signal.SIGKILL)
    process.wait()
    generation = bench.plan("long", seconds=0.3)
    assert generation.made() < COUNT
    assert bench.run(generation) == bench.whole()
    in_order(generation)


@pytest.mark.slow
def test_a_new_command_waits_for_the_workers_of_a_killed_one(bench: Bench) -> None:
    """They end by themselves within moments; here one is stopped, so that it cannot."""
    process = subprocess.Popen([sys.executable, "-c", command(bench, 2)])
    until(lambda: images(bench) >= 4)
    orphan = children(bench.folder)[0]
    os.kill(orphan, signal.SIGSTOP)
    process.send_signal(signal.SIGKILL)
    process.wait()
    second = subprocess.Popen([sys.executable, "-c", command(bench, 2)])
    time.sleep(1.5)
    made = images(bench)
    time.sleep(0.5)
    assert images(bench) == made < COUNT
    os.kill(orphan, signal.SIGCONT)
    assert second.wait(timeout=60) == 0
    assert bench.run(bench.plan("long", seconds=0.3)) == bench.whole()


def test_what_a_command_waits_for_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is stopped cannot end with its command."""
    monkeypatch.setattr(waiting, "FIRST", 0.5)
    process = subprocess.Popen([sys.executable, "-c", command(bench, 2)])
    until(lambda: images(bench) >= 4)
    orphan = children(bench.folder)[0]
    os.kill(orphan, signal.SIGSTOP)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        os.kill(orphan, signal.SIGKILL)

    rows = bench.plan("long", seconds=0.3).run(say=say, source=bench.source, workers=2)
    assert {key: row.sha256 for key, row in rows.items()} == bench.whole()
    assert re.fullmatch(
        rf"waiting for worker [12] \(process {orphan}, stopped\) of a command that has ended; "
        rf"to end it: kill -9 {orphan}",
        said[0],
    )


def test_a_stopped_worker_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST", 0.5)
    generation = bench.plan("stopped", seconds=0.1)
    stopped: list[int] = []
    said: list[str] = []

    def advance(count: int) -> None:
        if count and not stopped:
            stopped.extend(children(generation.folder)[:1])
            os.kill(stopped[0], signal.SIGSTOP)

    def say(text: str) -> None:
        # Before it was stopped, nothing was said of a slow start.
        said.append(text)
        os.kill(stopped[0], signal.SIGCONT)

    rows = generation.run(advance, say, source=bench.source, workers=2)
    assert {key: row.sha256 for key, row in rows.items()} == bench.whole()
    assert re.fullmatch(
        rf"waiting for worker [12] on cpu \(process {stopped[0]}, stopped\); "
        rf"to let it go on: kill -CONT {stopped[0]}",
        said[0],
    )


def test_a_call_that_is_long_for_the_model_is_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "FIRST", 0.2)
    monkeypatch.setattr(processes, "AGAIN", 0.2)
    generation = bench.plan("long", together=2)

    def say(text: str) -> None:
        bench.said.append(text)
        (bench.folder / "marks-long" / "began-other").touch()

    rows = generation.run(say=say, source=bench.source, workers=1, interpreter=Path(sys.executable))
    assert len(rows) == COUNT
    assert re.fullmatch(
        r"no image for \d+ s; waiting for worker 1 on cpu \(process \d+\)", bench.said[0]
    )


def test_versions_are_those_of_the_workers(bench: Bench) -> None:
    """Another environment has others: here a package that is not installed in ours."""
    extra = bench.folder / "extra" / "diffusers-0.0.1.dist-info"
    extra.mkdir(parents=True)
    (extra / "METADATA").write_text("Metadata-Version: 2.1\nName: diffusers\nVersion: 0.0.1\n")
    other = bench.folder / "python"
    other.write_text(
        # Its first argument is -I, which would keep the extra package out.
        f'#!/bin/sh\nshift\nPYTHONPATH="{extra.parent}" exec "{sys.executable}" -P "$@"\n'
    )
    other.chmod(0o755)
    generation = bench.plan("other")
    bench.run(generation, workers=2, interpreter=other)
    assert generation.summary().versions == {**provenance.versions(), "diffusers": "0.0.1"}


def test_interrupted_it_ends_its_workers(bench: Bench) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", command(bench, 2)], stderr=subprocess.PIPE, text=True
    )
    until(lambda: images(bench) >= 4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert not children(bench.folder)


def test_a_model_that_reads_the_training_side_stays_in_this_process(bench: Bench) -> None:
    generation = bench.plan("trained")
    spec = replace(generation.plugin.spec, uses_training=True)
    generation = replace(generation, plugin=replace(generation.plugin, spec=spec))
    assert bench.run(generation, workers=2) == bench.whole()
    assert {row.worker for row in read_manifest(generation.folder).values()} == {0}
    assert "one process" in bench.said[0]


def test_other_code_in_the_environment_is_refused(bench: Bench) -> None:
    generation = bench.plan("changed")
    bench.file.write_text(PLUGIN.replace("0, 200", "0, 100"))
    with pytest.raises(ChexGenBenchError, match="has other code"):
        bench.run(generation, workers=2)


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(TEXTS, max_size=5),
    size=st.none() | st.integers(16, 2048),
    values=st.dictionaries(TEXTS, st.integers() | st.booleans() | TEXTS | st.none(), max_size=3),
)
def test_a_job_comes_back_as_it_was_written(
    tmp_path: Path, texts: list[str], size: int | None, values: dict[str, Any]
) -> None:
    asked = [
        Request(
            id=str(i), prompt_id=text, prompt=text, seed=2**63 - 1, size=size, labels={"a": 0.1}
        )
        for i, text in enumerate(texts)
    ]
    context = Context(dtype="bfloat16", allow_pickle=True, home=tmp_path, cache=tmp_path / "c")
    job = GenerateJob(
        model="batchy",
        source="",
        parameters=values,
        context=plain_context(context),
        batch_size=4,
        n_requests=len(asked),
    )
    write_generate_job(tmp_path, job, asked)
    assert read_generate_job(tmp_path) == (job, asked)
    assert job.context_on("cuda:1") == replace(context, device="cuda:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "format None"),
        ('{"format": 99}', "format 99"),
        ('{"format": 2, "kind": "generate", "model": "batchy"}', "cannot be read"),
        ("[1]", "format None"),
        ("{", "cannot be read"),
    ],
)
def test_a_job_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_generate_job(tmp_path)


def test_parts_are_gathered_whole_lines_only(bench: Bench) -> None:
    """A killed worker's part: its rows count, its cut line and rows of lost images do not."""
    generation = bench.plan("whole")
    whole = bench.whole()
    folder = generation.folder
    lines = (folder / MANIFEST).read_bytes().splitlines(keepends=True)
    (folder / MANIFEST).write_bytes(b"".join(lines[:5]))
    (folder / "manifest-1.jsonl").write_bytes(b"".join(lines[5:9]) + lines[9][:-20])
    (folder / "manifest-2.jsonl").write_bytes(b"".join(lines[8:20]))
    (folder / "images" / "SyntheticImg_r3.png").unlink()
    gather(folder)
    assert list(read_manifest(folder)) == [f"r{i}" for i in [0, 1, 2, *range(4, 20)]]
    assert [path.name for path in parts(folder, MANIFEST)] == [MANIFEST]
    assert bench.run(generation) == whole
    in_order(generation)
