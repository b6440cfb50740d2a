"""Job directories for any scheduler: the images and scores are those of one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from chexgenbench.errors import UserError
from chexgenbench.files import sha256_file
from chexgenbench.home import Home
from chexgenbench.jobs.generate import hold
from chexgenbench.jobs.job import JOB, REQUESTS, heartbeat_path, read_generate_job
from chexgenbench.jobs.manifest import CALLS, MANIFEST, image_name, read_manifest
from chexgenbench.progress import Progress
from chexgenbench.workflow import shards
from chexgenbench.workflow.options import Options
from desk import Desk, script

PLUGIN = """
import os
import time
from pathlib import Path

import numpy as np
from pydantic import Field

from chexgenbench import (
    ImageNeed, MetricSpec, Model, ModelSpec, Parameters, ScoreSpec, TaskMetric, TaskResult,
    TaskScore, UserError, hookimpl,
)
from chexgenbench.statistics import Estimate


class BatchyParameters(Parameters):
    seconds: float = Field(0.0, description="How long a call takes.")
    fault: str = Field("", description="What every call fails with.")


class Batchy(Model):
    def generate(self, requests):
        time.sleep(self.parameters.seconds)
        if self.parameters.fault == "user":
            raise UserError("The prompt is no prompt.", hint="Write one.")
        if self.parameters.fault:
            raise RuntimeError("out of \\x1b[2J luck")
        # As in a real pipeline, each image depends a little on its whole batch.
        together = sum(request.seed for request in requests) % 50
        for request in requests:
            values = np.random.default_rng(request.seed).integers(0, 200, (32, 32), dtype=np.uint8)
            yield values + np.uint8(together)


class SpreadParameters(Parameters):
    pass


class Spread(TaskMetric):
    @classmethod
    def needs(cls, parameters):
        return {"made": ImageNeed(side="training", source="model", prompts=8)}

    def run(self, task):
        made = task.sets["made"]
        value = float(made.features.std(0).mean())
        return TaskResult(scores=[
            TaskScore(name="spread", estimate=Estimate(value, reason="none derived"),
                      n_real=0, n_fake=len(made))
        ])


@hookimpl
def chexgenbench_models():
    yield ModelSpec(name="batchy", summary="", load=Batchy, parameters=BatchyParameters)
    yield ModelSpec(
        name="apart", summary="", load=Batchy, parameters=BatchyParameters, environment="apart"
    )


@hookimpl
def chexgenbench_metrics():
    yield MetricSpec(
        name="spread", summary="", load=Spread, metric="task", parameters=SpreadParameters,
        scores=(ScoreSpec(name="spread", higher_is_better=True),),
    )
"""

LIMIT = 14
BATCH = 2
ALL = ("batchy", "phantom-diffusion")
SCORES = """
    SELECT r.model, s.* EXCLUDE (run_id, created_at) FROM scores s JOIN runs r USING (run_id)
    ORDER BY r.model, s.metric, s.encoder, s.subset
"""


def models(*names: str) -> list[str]:
    return [word for name in names for word in ("-m", name)]


class Bench(Desk):
    """A project folder with the plugin's file beside it."""

    @property
    def plugin(self) -> Path:
        return self.cache.parent / "batchy.py"

    def options(self, *names: str) -> list[object]:
        wanted = [*models(*names), "--plugin", self.plugin, "--limit", LIMIT]
        few = ["--metric", "kid", "--metric", "spread", "--set", "phantom-diffusion.steps=2"]
        return [*wanted, *(few if "phantom-diffusion" in names else few[:4]), "--batch-size", BATCH]

    def images(self) -> dict[str, dict[str, str]]:
        """Generation to the SHA-256 of each of its images, of files and manifests alike."""
        found = {}
        for folder in sorted((self.home / "runs" / "generations").iterdir()):
            rows = read_manifest(folder)
            found[folder.name] = {key: sha256_file(folder / r.path) for key, r in rows.items()}
            assert found[folder.name] == {key: row.sha256 for key, row in rows.items()}
        return found

    def array(self, number: int, code: int = 0, **environment: str) -> str:
        done = subprocess.run(
            ["bash", "out/array.sh", str(number)],
            cwd=self.home,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr


def new_bench(folder: Path, cache: Path | None = None) -> Bench:
    desk = Desk.new(folder)
    bench = Bench(desk.home, cache or desk.cache)
    if not bench.plugin.exists():
        bench.plugin.write_text(PLUGIN)
    return bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = new_bench(tmp_path)
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(bench.cache))
    return bench


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Any, Any]:
    """What one process makes: the project, its images and its scores."""
    bench = new_bench(tmp_path_factory.mktemp("whole"))
    bench.run("run", *bench.options(*ALL), whole=True)
    return bench, bench.images(), bench.rows(SCORES)


def few(bench: Bench) -> list[object]:
    """The same as `options` says in this process."""
    wanted = ["--plugin", bench.plugin, "--device", "cpu"]
    return [*models("batchy"), *wanted, "--limit", LIMIT, "--batch-size", BATCH]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A project in which one process made the images of the plugin's model."""
    bench = new_bench(tmp_path_factory.mktemp("alone"))
    assert "generate batchy: 14 of 14" in bench.run("generate", *few(bench)).err
    return bench


def options(bench: Bench, *names: str, **changes: Any) -> Options:
    wanted = {"models": names or ("batchy",), "metrics": ("kid",), "limit": LIMIT}
    return Options(
        home=Home(bench.home),
        plugins=(bench.plugin,),
        changes=wanted | {"batch_size": BATCH} | changes,
        device="cpu",
    )


def cut(bench: Bench, count: int = 3, out: str = "out", *names: str, **changes: Any) -> Any:
    return shards.shard(options(bench, *names, **changes), bench.home / out, count, "typed")


def merge(bench: Bench, out: str = "out") -> list[shards.Merged]:
    return shards.merge(Home(bench.home), bench.home / out, Progress(quiet=True))


def work(folder: Path, code: int = 0) -> str:
    """The worker's command, on one job directory."""
    done = script(["worker", str(folder)], Path.cwd(), os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.code == code, done.out + done.err
    assert "Traceback" not in done.err
    return done.err


@pytest.mark.slow
@pytest.mark.parametrize(("count", "names"), [(1, ("batchy",)), (2, ALL), (7, ("batchy",))])
def test_shards_give_the_images_and_scores_of_one_process(
    whole: tuple[Bench, Any, Any], tmp_path: Path, count: int, names: tuple[str, ...]
) -> None:
    first, images, scores = whole
    bench = new_bench(tmp_path, first.cache)
    said = bench.run("shard", "out", "--shards", count, *bench.options(*names))
    lines = (bench.home / "out" / "jobs.txt").read_text().splitlines()
    # Seven batches of own images, four of the pool.
    assert len(lines) == len(names) * (count + min(count, 4))
    assert f"{len(lines)} job directories for {len(names) * (LIMIT + 8)} images in out" in said.out
    for line in lines:
        work(bench.home / "out" / line)
    assert "All images are there" in bench.run("merge", "out").out
    merged = bench.images()
    assert len(merged) == 2 * len(names)
    assert merged == {key: images[key] for key in merged}
    done = bench.run("run", *bench.options(*names))
    for name in names:
        assert f"generate {name}:" not in done.err
    assert bench.images() == merged
    expected = [row for row in scores if row["model"] in names]
    assert bench.rows(SCORES) == expected
    assert any(row["metric"] == "spread" and row["value"] for row in expected)


@pytest.mark.slow
def test_a_merge_ends_as_one_process_does_and_writes_nothing_twice(
    bench: Bench, alone: Bench
) -> None:
    (asked,) = cut(bench).sharded.generations
    folder = bench.home / "runs" / "generations" / asked.generation
    (twin,) = (alone.home / "runs" / "generations").iterdir()
    work(bench.home / "out" / asked.parts[0].folder)
    (merged,) = merge(bench)
    assert (merged.made, merged.whole) == (6, False)
    assert [part.complete for part in merged.parts] == [True, False, False]
    assert not (folder / "summary.json").exists()
    for part in asked.parts[1:]:
        work(bench.home / "out" / part.folder)

    def state() -> dict[str, tuple[int, int]]:
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}

    before = state()
    assert merge(bench)[0].whole
    after = state()
    images = [name for name in before if name.endswith(".png")]
    assert len(images) == 6
    assert all(before[name] == after[name] for name in images)
    assert merge(bench)[0].whole
    assert state() == after
    # The command that would make the images makes none.
    assert "generate batchy" not in bench.run("generate", *few(bench)).err
    assert {k: v for k, v in state().items() if k.endswith(".png")} == {
        k: v for k, v in after.items() if k.endswith(".png")
    }

    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in twin.iterdir())
    name = "generations_with_metadata.csv"
    assert (folder / name).read_bytes() == (twin / name).read_bytes()
    own, theirs = (json.loads((each / "generation.json").read_text()) for each in (folder, twin))
    assert own == theirs
    own, theirs = (json.loads((each / "summary.json").read_text()) for each in (folder, twin))
    measured = ("seconds", "images_per_second", "peak_memory", "workers", "threads")
    assert (own["workers"], theirs["workers"]) == (3, 1)
    assert all(own[key] == theirs[key] for key in own.keys() - set(measured))
    same = ("id", "sha256", "batch", "call", "flags", "path", "seed", "thumbnail", "prompt_id")
    rows, others = (list(read_manifest(each).values()) for each in (folder, twin))
    assert [[getattr(row, key) for key in same] for row in rows] == [
        [getattr(row, key) for key in same] for row in others
    ]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_worker_that_was_killed_goes_on(bench: Bench, alone: Bench) -> None:
    out = bench.home / "out"
    arguments = ("--set", "batchy.seconds=0.5")
    bench.run("shard", "out", "--shards", 2, *few(bench), *arguments)
    first = out / "batchy" / "own" / "shard-0001"
    process = bench.start("worker", first)
    until(lambda: (first / MANIFEST).exists() and len(read_manifest(first)) >= 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    made = len(read_manifest(first))
    assert 2 <= made < 8

    shown = bench.run("jobs", "out").out.splitlines()
    assert f"{made}/8  working, " in shown[0]
    assert "0/6  not started" in shown[1]
    old = time.time() - 600
    os.utime(heartbeat_path(first, 0), (old, old))
    assert f"{made}/8  no sign for 10 min" in bench.run("jobs", "out").out

    done = bench.run("merge", "out", code=1)
    assert f"batchy, own: {made} of 14 images; 0 of 2 shards complete" in done.out
    assert "2 job directories lack images: sbatch --array=1,2 array.sh" in done.out
    before = {path.name: path.stat().st_mtime_ns for path in (first / "images").iterdir()}
    bench.run("worker", first)
    after = {path.name: path.stat().st_mtime_ns for path in (first / "images").iterdir()}
    assert {name: after[name] for name in before if name in after} == {
        name: time for name, time in before.items() if not name.startswith(".tmp-")
    }
    assert "sbatch --array=2 array.sh" in bench.run("merge", "out", code=1).out
    # What is still missing is made here, by the command that would have made all.
    rest = bench.run("generate", *few(bench), *arguments)
    assert "6 images made" in rest.out
    assert bench.run("merge", "out").out.count("2 of 2 shards complete") == 1
    (images,), (wanted,) = bench.images().values(), alone.images().values()
    assert images == wanted


def link(folder: Path, first: str) -> str:
    image = folder / "images" / first
    image.rename(folder / "elsewhere.png")
    image.symlink_to(folder / "elsewhere.png")
    return "a symbolic link"


def invent(folder: Path, first: str) -> str:
    lines = (folder / MANIFEST).read_text().splitlines()
    row = json.loads(lines[0]) | {"id": "../../secret"}
    (folder / MANIFEST).write_text("\n".join([json.dumps(row), *lines]) + "\n")
    return "not asked for: '../../secret'"


def change(folder: Path, first: str) -> str:
    Image.new("L", (32, 32), 7).save(folder / "images" / first)
    return "not what its manifest says (SHA-256)"


def resize(folder: Path, first: str) -> str:
    image = folder / "images" / first
    Image.open(image).resize((64, 64)).save(image)
    text = (folder / MANIFEST).read_text()
    row = json.loads(text.splitlines()[0])
    (folder / MANIFEST).write_text(text.replace(row["sha256"], sha256_file(image)))
    return "64 x 64 pixels and not 32 x 32, as its manifest says"


def other_job(folder: Path, _first: str) -> str:
    values = json.loads((folder / JOB).read_text()) | {"batch_size": 1}
    (folder / JOB).write_text(json.dumps(values))
    return "Its job.json is not the one that was written"


def other_requests(folder: Path, _first: str) -> str:
    data = (folder / REQUESTS).read_bytes()
    (folder / REQUESTS).write_bytes(data[:-1] + b"x")
    return "Its requests.parquet is not the one that was written"


@pytest.mark.slow
def test_a_bad_shard_loses_itself_only(bench: Bench, alone: Bench) -> None:
    spoilers = (link, invent, change, resize, other_job, other_requests)
    (asked,) = cut(bench, 7).sharded.generations
    out = bench.home / "out"
    expected: dict[int, str] = {}
    for number, part in enumerate(asked.parts, start=1):
        work(out / part.folder)
        if number <= len(spoilers):
            request = read_generate_job(out / part.folder)[1][0]
            expected[number] = spoilers[number - 1](out / part.folder, image_name(request))
    done = bench.run("merge", "out", code=1)
    assert "batchy, own: 2 of 14 images; 1 of 7 shards complete" in done.out
    assert "sbatch --array=1,2,3,4,5,6 array.sh" in done.out
    for number, message in expected.items():
        (line,) = [line for line in done.out.splitlines() if f"shard-{number:04d}: " in line]
        assert "refused, 0 of 2 images: " in line
        assert message in line
    # Again, in this process: nothing of it got in.
    assert [part.made for part in merge(bench)[0].parts] == [0] * 6 + [2]

    for part in asked.parts[:6]:
        shutil.rmtree(out / part.folder)
    assert {each.state for each in shards.look(out)} == {"gone", "done"}
    assert "is not there" in str(merge(bench)[0].parts[0].fault)
    renewed = cut(bench, 7).renewed
    assert renewed == [part.folder for part in asked.parts[:6]]
    assert cut(bench, 7).renewed == []
    for part in asked.parts[:6]:
        work(out / part.folder)
    assert merge(bench)[0].whole
    (images,), (wanted,) = bench.images().values(), alone.images().values()
    assert images == wanted
    # Nothing is missing any more, so that a new folder is not written.
    assert cut(bench, 3, "more").sharded is None
    assert not (bench.home / "more").exists()
    assert [path.name for path in bench.home.iterdir() if path.name.startswith(".")] == []


def test_a_job_directory_that_cannot_be_opened_is_refused(bench: Bench) -> None:
    (asked,) = cut(bench).sharded.generations
    one, two, three = (bench.home / "out" / part.folder for part in asked.parts)
    work(three)
    shutil.rmtree(one)
    one.symlink_to(three)
    (two / JOB).unlink()
    os.mkfifo(two / JOB)
    faults = [part.fault for part in merge(bench)[0].parts]
    assert "cannot be opened: no folder, or a symbolic link" in str(faults[0])
    assert "job.json is no plain file" in str(faults[1])
    assert faults[2] is None


def test_what_a_worker_notes_is_shown(bench: Bench) -> None:
    bench.run("shard", "out", "--shards", 2, *few(bench), "--set", "batchy.fault=odd")
    first = bench.home / "out" / "batchy" / "own" / "shard-0001"
    said = work(first, code=1)
    assert "Error: Batchy failed on requests" in said
    assert "\x1b" not in said
    shown = bench.run("jobs", "out").out
    assert "0/8  failed: Batchy failed on requests" in shown
    done = bench.run("merge", "out", code=1)
    assert "shard-0001: 0 of 8 images: Batchy failed on requests" in done.out
    assert "refused" not in done.out
    assert "\x1b" not in shown + done.out


@pytest.mark.slow
def test_exit_codes_of_the_worker(bench: Bench) -> None:
    assert "it has no job.json" in work(bench.home, code=2)
    bench.run("shard", "out", "--shards", 1, *few(bench), "--set", "batchy.fault=user")
    folder = bench.home / "out" / "batchy" / "own" / "shard-0001"
    said = work(folder, code=2)
    assert said == "Error: The prompt is no prompt.\nWrite one.\n"
    bench.plugin.write_text(PLUGIN.replace("% 50", "% 40"))
    assert "has other code" in work(folder, code=1)
    (folder / REQUESTS).unlink()
    assert work(folder, code=2)


def test_models_that_a_job_directory_cannot_hold_are_left_to_run(bench: Bench) -> None:
    written = cut(bench, 2, "out", "memorizer", "batchy")
    assert [each.model for each in written.sharded.generations] == ["batchy"]
    (note,) = written.notes
    assert note.startswith("memorizer reads the split's training side")
    with pytest.raises(UserError, match="memorizer reads the split's training side"):
        cut(bench, 2, "other", "memorizer")
    assert not (bench.home / "other").exists()


def test_two_models_with_one_generation_are_cut_once(bench: Bench) -> None:
    written = cut(bench, 2, "out", "batchy", "twin=batchy")
    assert [part.folder for part in written.sharded.parts] == [
        "batchy/own/shard-0001",
        "batchy/own/shard-0002",
    ]


def test_a_folder_with_something_else_is_refused(bench: Bench) -> None:
    out = bench.home / "out"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"holds no shards\.json"):
        cut(bench)
    assert [path.name for path in out.iterdir()] == ["letter.txt"]
    (out / "letter.txt").unlink()
    cut(bench)  # an empty folder is taken
    with pytest.raises(UserError, match="3 shards, not 4"):
        cut(bench, 4)
    with pytest.raises(UserError, match="not the same images of batchy, own"):
        cut(bench, seed=1)
    with pytest.raises(UserError, match="not the same images of batchy, own"):
        cut(bench, batch_size=1)
    with pytest.raises(UserError, match="measures on this machine"):
        cut(bench, batch_size="auto")


def test_shards_of_another_project_or_changed_are_not_merged(bench: Bench) -> None:
    cut(bench)
    out = bench.home / "out"
    other = new_bench(bench.home.parent / "other", bench.cache)
    with pytest.raises(UserError, match="is not what this project") as error:
        shards.merge(Home(other.home), out, Progress(quiet=True))
    assert "It was made by: typed" in str(error.value.hint)
    values = json.loads((out / "shards.json").read_text())
    moved = json.loads(json.dumps(values))
    moved["generations"][0]["parts"][0]["batches"] = [5, 6]
    for changed, message in (
        (moved, "is not what this project"),
        (values | {"format": 9}, "has format 9, and this release reads format 1"),
        (values | {"count": "many"}, "is damaged: count"),
        ([], "has format None"),
    ):
        (out / "shards.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            merge(bench)
    (out / "shards.json").unlink()
    with pytest.raises(UserError, match=r"shards.json is missing"):
        merge(bench)
    assert "shards.json is missing" in bench.run("jobs", "out", code=2).err


def test_a_folder_of_jobs_that_names_others_is_not_followed(bench: Bench) -> None:
    cut(bench, 1)
    out = bench.home / "out"
    (bench.home / MANIFEST).write_text("{}\n")
    values = json.loads((out / "shards.json").read_text())
    values["generations"][0]["parts"][0]["folder"] = ".."
    (out / "shards.json").write_text(json.dumps(values))
    (shown,) = shards.look(out)
    assert shown.made == 0
    assert "leads out of its folder" in shown.state


def test_a_merge_waits_for_a_command_that_makes_the_images(bench: Bench) -> None:
    (asked,) = cut(bench, 1).sharded.generations
    work(bench.home / "out" / asked.parts[0].folder)
    folder = bench.home / "runs" / "generations" / asked.generation
    with hold(folder):
        process = bench.start("merge", "out")
        assert process.stderr is not None
        assert "another process makes these images" in process.stderr.readline()
        assert not (folder / MANIFEST).stat().st_size
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "14 of 14 images" in out


def test_a_device_of_other_machines(bench: Bench) -> None:
    written = shards.shard(
        Options(**{**vars(options(bench)), "device": "cuda"}), bench.home / "out", 1, "typed"
    )
    (part,) = written.sharded.parts  # type: ignore[union-attr]
    job, _ = read_generate_job(bench.home / "out" / part.folder)
    assert job.device == "cuda"
    script = (bench.home / "out" / "array.sh").read_text()
    assert "\n#SBATCH --gres=gpu:1\n" in script
    assert "\n#SBATCH --array=1-1\n" in script
    with pytest.raises(UserError, match="'cudda' is not there"):
        shards.shard(
            Options(**{**vars(options(bench)), "device": "cudda"}), bench.home / "no", 1, ""
        )


def test_the_array_script(bench: Bench) -> None:
    """By Slurm's variables, moved, from a copy, with an environment's own Python."""
    own = bench.cache / "environments" / "apart" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.write_text(f'#!/bin/sh\necho own >&2\nexec {sys.executable} "$@"\n')
    own.chmod(0o755)
    written = cut(bench, 2, "out", "batchy", "apart")
    folders = [part.folder for part in written.sharded.parts]
    assert len(folders) == 4
    out = bench.home / "out"
    script = out / "array.sh"
    assert os.access(script, os.X_OK)
    assert f"#SBATCH --array=1-{len(folders)}\n" in script.read_text()
    assert "own" not in bench.array(1)
    assert "own\n" in bench.array(3)
    assert "has no line 5" in bench.array(5, code=2)
    bench.array("", code=1)  # type: ignore[arg-type]

    moved = bench.home / "moved"
    out.rename(moved)
    spool = bench.home / "spool" / "slurm_script"
    spool.parent.mkdir()
    shutil.copy(moved / "array.sh", spool)
    slurm = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_SUBMIT_DIR": str(moved)}
    for number in ("2", "4"):
        slurm["SLURM_ARRAY_TASK_ID"] = number
        subprocess.run(["bash", str(spool)], env=os.environ | slurm, check=True, timeout=600)
    assert [each.state for each in shards.look(moved)] == ["done"] * 4
    assert [each.whole for each in merge(bench, "moved")] == [True, True]


def test_batches_that_were_cut_for_memory_are_cut_alike_in_shards(bench: Bench) -> None:
    (asked,) = cut(bench, 1, batch_size=4).sharded.generations
    folder = bench.home / "runs" / "generations" / asked.generation
    folder.mkdir(parents=True)
    (folder / CALLS).write_text('{"batch": 1, "calls": [2, 2]}\n')
    shutil.rmtree(bench.home / "out")
    (part,) = cut(bench, 1, batch_size=4).sharded.parts
    work(bench.home / "out" / part.folder)
    assert merge(bench)[0].whole
    calls = [row.call for row in read_manifest(folder).values()]
    assert calls == [4] * 4 + [2] * 4 + [4] * 4 + [2] * 2
