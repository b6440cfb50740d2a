"""Encoding and task metrics by workers: the same numbers as here, and nothing of a liar's."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.executors import ModelSource, Processes, Workplace, run_task
from chexgenbench.executors.border import Refused
from chexgenbench.executors.encoding import _Encoding, _Returned
from chexgenbench.executors.launch import Process
from chexgenbench.executors.task_metrics import TaskFailed, parse_result
from chexgenbench.executors.workplace import folder_of_command, staged
from chexgenbench.features import extract, plan_encoder
from chexgenbench.features.extract import EncoderPlan, read_texts
from chexgenbench.files import sha256_file
from chexgenbench.home import Home
from chexgenbench.jobs import features
from chexgenbench.jobs.job import (
    EncodeJob,
    EncoderWork,
    GenerateJob,
    Job,
    Limits,
    TaskJob,
    facts_of,
    plain_context,
    read_generate_job,
    write_json,
)
from chexgenbench.jobs.tasks import (
    plain_result,
    read_sets,
    set_facts,
    table_facts,
    write_task_job,
)
from chexgenbench.registry import Plugin, load_registry
from chexgenbench.types import (
    FINDINGS,
    Context,
    ImageSet,
    MetricSpec,
    NotApplicable,
    Task,
    TaskResult,
)
from chexgenbench.workflow.options import Options
from chexgenbench.workflow.places import check_executors, check_places, place_of, workplace_of
from desk import Desk
from image_sets import GAP, image_set, task

IMAGES = 70
BATCH = 4

PLUGINS = """
import os, signal
import numpy as np
import torch
from chexgenbench import (
    Encoder, EncoderSpec, ImageNeed, ImageValues, MetricSpec, NotApplicable, Parameters, ScoreSpec,
    TaskMetric, TaskResult, TaskScore, hookimpl,
)
from chexgenbench.statistics import Estimate


class Small(Encoder):
    \"\"\"Its output depends a little on the shape of the batch, as kernels do.\"\"\"

    calls = 0

    def preprocess(self, image):
        return torch.from_numpy(np.asarray(image.resize((8, 8)), np.float32))

    def encode(self, batch):
        type(self).calls += 1
        trap = self.context.home / "trap"
        if type(self).calls == 3 and trap.exists():
            trap.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return {
            "features": batch.flatten(1).numpy() + len(batch) * 1e-3,
            "more": batch.flatten(1).numpy()[:, :3],
        }

    def encode_text(self, texts):
        return np.stack([np.full(64, float(len(text)), np.float32) for text in texts])


class OddParameters(Parameters):
    fault: str = ""


class Odd(TaskMetric):
    @classmethod
    def needs(cls, parameters):
        return {"own": ImageNeed(side="test", source="model")}

    def run(self, task):
        part = task.part("checkpoint") / "done"
        fault = self.parameters.fault
        if fault == "raise":
            raise RuntimeError("broken inside")
        if fault == "skip":
            raise NotApplicable("not today")
        if fault == "killed" and not part.exists():
            part.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "nothing":
            return None
        own = task.sets["own"]
        with task.stage("count", len(own), "images") as advance:
            for _ in range(len(own)):
                advance(1)
        task.say("counted \\x1b[2J them")
        values = own.features.sum(1).astype(float)
        values[0] = np.nan
        value = float(np.float32(values[1:].mean() / 3))
        note = part.read_text() if part.exists() else "whole"
        return TaskResult(
            scores=[
                TaskScore(
                    name="odd",
                    estimate=Estimate(value, 0.1, value - 1, value + 1, degrees_of_freedom=np.inf),
                    n_fake=np.int64(len(own)), control=np.float32(0.1),
                ),
                TaskScore(name="odd", variant="b", subset="Edema", estimate="no such rows"),
            ],
            values=[ImageValues(name="sum", images="own", values=values)],
            notes=[note, os.path.basename(str(task.folder))],
        )


@hookimpl
def chexgenbench_encoders():
    yield EncoderSpec(
        name="small", summary="", load=Small, outputs={"features": 64, "more": 3},
        preprocessing="8 x 8", text=True,
    )


@hookimpl
def chexgenbench_metrics():
    yield MetricSpec(
        name="odd", summary="", load=Odd, metric="task", parameters=OddParameters,
        scores=(ScoreSpec(name="odd", higher_is_better=True),),
    )
"""


@dataclass(eq=False)
class Bench:
    """Images, a plugin file, and what is done with them."""

    folder: Path
    images: list[tuple[str, Path]]
    said: list[str] = field(default_factory=list)

    def registry(self) -> Any:
        return load_registry([self.folder / "plugins.py"])

    def plan(self, name: str, root: str) -> EncoderPlan:
        plugin = self.registry().encoders[name]
        context = Context(home=self.folder, cache=self.folder / "cache")
        return plan_encoder(plugin, plugin.parse({}), context, root=self.folder / root, weights={})

    def workplace(self, launcher: Any = None, places: int = 1, **changes: Any) -> Workplace:
        keywords: dict[str, Any] = {
            "open": lambda: launcher or Processes(["cpu"] * places),
            "name": "here",
            "root": self.folder / "jobs",
            "source": ModelSource(files=[self.folder / "plugins.py"]),
            "timeout": 120.0,
        }
        return Workplace(**(keywords | changes))

    def encode(
        self,
        plans: Sequence[EncoderPlan],
        workplace: Workplace | None = None,
        texts: Sequence[str] = (),
    ) -> Any:
        places = {plan.name: workplace for plan in plans} if workplace else {}
        return extract(
            self.images,
            texts,
            plans,
            batch_size=BATCH,
            text_encoders=frozenset({"small"}),
            workplaces=places,
            say=self.said.append,
        )

    def read(self, plan: EncoderPlan) -> dict[str, NDArray[np.float32]]:
        return plan.images.read([key for key, _ in self.images if key in plan.images])


def make_bench(folder: Path, count: int = IMAGES) -> Bench:
    random = np.random.default_rng(0)
    listed = []
    (folder / "patients").mkdir(parents=True)
    for number in range(count):
        path = folder / "patients" / f"{number}.png"
        Image.fromarray(random.integers(0, 255, (40, 32), dtype=np.uint8)).save(path)
        listed.append((sha256_file(path), path))
    (folder / "plugins.py").write_text(PLUGINS)
    return Bench(folder, listed)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


# --- features -------------------------------------------------------------------------------


@pytest.mark.slow
def test_features_of_any_number_of_shards_are_those_of_one_process(bench: Bench) -> None:
    """Bit for bit, by a network of this project and by one that depends on its batch's shape."""
    both = ("small", "phantom-clip")
    here = [bench.plan(name, "here") for name in both]
    assert bench.encode(here).encoded == IMAGES
    expected = [bench.read(plan) for plan in here]
    for shards, names in ((1, both[:1]), (2, both), (7, both[:1])):
        plans = [bench.plan(name, f"by-{shards}") for name in names]
        done = bench.encode(plans, bench.workplace(places=2, shards=shards))
        assert done.encoded == IMAGES and not done.bad
        for plan, values in zip(plans, expected, strict=False):
            found = bench.read(plan)
            assert found.keys() == values.keys()
            for name in values:
                assert found[name].tobytes() == values[name].tobytes()
        # Stored: nothing is asked of a worker again.
        never = bench.workplace(open=lambda: pytest.fail("a worker was started"))
        assert bench.encode(plans, never).encoded == 0
    assert not list((bench.folder / "jobs").iterdir())


@pytest.mark.slow
def test_what_is_stored_in_part_is_encoded_in_the_same_batches(bench: Bench) -> None:
    whole, part = bench.plan("small", "whole"), bench.plan("small", "part")
    bench.encode([whole])
    everything = bench.images
    bench.images = everything[:30]
    bench.encode([part], bench.workplace())
    bench.images = everything
    assert bench.encode([part], bench.workplace(shards=3)).encoded == IMAGES - 30
    assert bench.read(part)["features"].tobytes() == bench.read(whole)["features"].tobytes()


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(bench: Bench) -> None:
    here, there = bench.plan("small", "here"), bench.plan("small", "there")
    bench.encode([here])
    (bench.folder / "trap").touch()
    assert bench.encode([there], bench.workplace(shards=2)).encoded == IMAGES
    assert bench.read(there)["more"].tobytes() == bench.read(here)["more"].tobytes()
    assert any("SIGKILL" in line and "Another takes its part" in line for line in bench.said)


def test_unreadable_images_are_named_by_their_own_path(bench: Bench) -> None:
    for number in (2, 41):
        path = bench.images[number][1]
        path.write_bytes(b"\x89PNG" + bytes([number]))
        bench.images[number] = (sha256_file(path), path)
    here, there = bench.plan("small", "here"), bench.plan("small", "there")
    ours = bench.encode([here])
    theirs = bench.encode([there], bench.workplace(shards=2, sees_files=False))
    assert {key: error.message for key, error in ours.bad.items()} == {
        key: error.message for key, error in theirs.bad.items()
    }
    assert len(theirs.bad) == 2 and theirs.encoded == IMAGES - 2
    assert bench.read(there)["features"].tobytes() == bench.read(here)["features"].tobytes()


def test_texts_are_encoded_where_the_packages_are(bench: Bench) -> None:
    bench.images = []
    plan = bench.plan("small", "texts")
    bench.encode([plan], bench.workplace(foreign=True), texts=["a", "bb", "a", "ccc"])
    assert read_texts(plan, ["bb", "ccc", "a"])[:, 0].tolist() == [2.0, 3.0, 1.0]


def encode_job(bench: Bench, folder: Path) -> EncodeJob:
    plan = bench.plan("small", "unused")
    work = EncoderWork(
        name="small", source=plan.plugin.source_hash(), parameters={},
        outputs=dict(plan.plugin.spec.outputs),
    )  # fmt: skip
    job = EncodeJob(
        encoders=(work,), context=plain_context(plan.context), batch_size=BATCH, n_items=IMAGES
    )
    folder.mkdir()
    features.write_encode_job(folder, job, [(key, str(path)) for key, path in bench.images])
    return job


def test_a_worker_that_is_started_again_goes_on_behind_its_last_part(bench: Bench) -> None:
    folder = bench.folder / "job"
    encode_job(bench, folder)
    bench.images[1][1].write_bytes(b"no image")
    plan = bench.plan("small", "unused")
    encoder = plan.load()
    calls = 0

    def encode(batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return type(encoder).encode(encoder, batch)

    encoder.encode = encode  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        features.work(folder, lambda _number: (plan.plugin.spec, encoder), lambda _count: None)
    assert (folder / features.part_name(0, 1)).is_file()
    calls = 10
    features.work(folder, lambda _number: (plan.plugin.spec, encoder), lambda _count: None)
    assert calls == 10 + -(-(IMAGES - 1 - 5 * BATCH) // BATCH)
    listed = [json.loads(line)["key"] for line in (folder / features.BAD).open()]
    assert listed == [bench.images[1][0]]


# --- a worker that lies ---------------------------------------------------------------------

HOSTILE = """
import json, os, sys, time
from pathlib import Path
import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import save, save_file

folder, secret = Path(sys.argv[1]), Path(sys.argv[2])
name = folder / "features-0-0001.safetensors"
table = pq.read_table(folder / "items.parquet") if (folder / "items.parquet").exists() else None
keys = table.column("key").to_pylist() if table is not None else []

def good(keys, **changes):
    tensors = {"features": np.ones((len(keys), 64), np.float32),
               "more": np.ones((len(keys), 3), np.float32)} | changes
    return {k: v for k, v in tensors.items() if v is not None}

def write(keys, path=name, **changes):
    save_file(good(keys, **changes), path, metadata={"keys": json.dumps(keys)})
"""


@dataclass
class Liar:
    """A launcher whose first worker runs a hostile script, and whose others do as they should."""

    script: str
    secret: Path
    name: str = "liar"
    places: Sequence[str] = ("cpu", "cpu")
    shards_a_place: int = 1

    def start(self, folder: Path, job: Job, device: str, log: Path) -> Process:
        lie = folder.name.endswith("-0001")
        code = HOSTILE + textwrap.dedent(self.script if lie else "write(keys)")
        return Process([sys.executable, "-c", code, str(folder), str(self.secret)], log)

    def close(self) -> None:
        """Nothing is held."""


LIES = {
    "nan": ("write(keys, more=np.full((len(keys), 3), np.nan, np.float32))", "NaN or infinity"),
    "width": ("write(keys, more=np.ones((len(keys), 4), np.float32))", r"\[36, 4\]"),
    "rows": ("write(keys, more=np.ones((2, 3), np.float32))", r"\[2, 3\]"),
    "dtype": ("write(keys, more=np.ones((len(keys), 3), np.float64))", "F64"),
    "lacking": ("write(keys, more=None)", "'features' where"),
    "more": ("write(keys, third=np.ones(1, np.float32))", "third"),
    "not asked": ("write([*keys[1:], 'f' * 64])", "not asked for: 'ffff"),
    "twice": ("write([*keys[1:], keys[1]])", "a key twice"),
    "again": (
        "write(keys[:5]); write(keys[4:], folder / 'features-0-0002.safetensors')",
        "has a key again",
    ),
    "too few": ("write(keys[:5])", "a part of its work is missing"),
    "nothing": ("print('I am\\x1b[2J done')", "(?s)is missing.*I am\\ufffd.*done"),
    "no keys": ("save_file(good(keys), name)", "no safetensors file with keys"),
    "keys are no list": (
        "save_file(good(keys), name, metadata={'keys': '5'})",
        "has no keys, or a key twice",
    ),
    "pickle": ("import pickle; name.write_bytes(pickle.dumps(keys))", "no safetensors"),
    "empty": ("name.touch()", "no safetensors"),
    "huge": ("write(keys); os.truncate(name, 10_000_000_000)", "more than [0-9]+ bytes"),
    "truncated": ("write(keys); os.truncate(name, 900)", "no safetensors"),
    "link": ("name.symlink_to(secret)", "symbolic link"),
    "fifo": ("os.mkfifo(name); time.sleep(60)", "no plain file"),
    "directory": ("name.mkdir(); time.sleep(60)", "no plain file"),
    "deep": (
        "save_file(good(keys), name, metadata={'keys': '[' * 100000})",
        "no safetensors file with keys",
    ),
    "good as bad": (
        "(folder / 'bad.jsonl').write_text(json.dumps({'key': keys[0], 'message': 'x'}) + '\\n')",
        "cannot be decoded, and here it can",
    ),
    "other as bad": ("(folder / 'bad.jsonl').write_text('{\"key\": \"a\"}\\n')", "not asked for"),
    "bad is a link": ("(folder / 'bad.jsonl').symlink_to(secret)", "symbolic link"),
    "error is a link": ("(folder / 'worker-0.error.json').symlink_to(secret); 1 / 0", "symbolic"),
    "error is no note": (
        "(folder / 'worker-0.error.json').write_text('[]'); 1 / 0",
        "json has a fault",
    ),
    "dies": ("os.kill(os.getpid(), 11)", "SIGSEGV"),
    "says that the disk is full": ("os._exit(64 + 28)", "fault of its disk"),
    "fills the disk": (
        "[(folder / str(i)).touch() for i in range(12000)]; time.sleep(60)",
        "written more than 10036 files",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES)
def test_a_liar_loses_its_part_only(bench: Bench, lie: str) -> None:
    script, message = LIES[lie]
    secret = bench.folder / "secret.txt"
    secret.write_text("a patient's name\n")
    liar = Liar(script, secret)
    plan = bench.plan("small", "store")
    if lie in ("dies", "says that the disk is full"):
        assert bench.encode([plan], bench.workplace(liar)).encoded == IMAGES
        assert any(message in line for line in bench.said)
        return
    with pytest.raises(ChexGenBenchError) as caught:
        bench.encode([plan], bench.workplace(liar))
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert re.search(message, text), text
    assert "patient" not in text and "\x1b" not in text
    # The other's features are there, and none of what the liar said after its first lie.
    stored = [key for key, _ in bench.images if key in plan.images]
    assert stored[-34:] == [key for key, _ in bench.images[36:]]
    assert len(stored) == {"again": 39, "too few": 39}.get(lie, 34)
    assert np.isfinite(bench.read(plan)["more"]).all()


def test_a_part_that_could_not_be_stored_is_taken_again(tmp_path: Path) -> None:
    """Where our disk was full for a moment, because of another worker."""
    work = EncoderWork(name="small", source="", parameters={}, outputs={"features": 3})
    job = EncodeJob(context={}, encoders=(work,), batch_size=2, n_items=2)
    stored: list[Sequence[str]] = []
    full = [OSError(28, "No space left on device")]

    def sink(_encoder: str, keys: Sequence[str], _values: Any) -> None:
        if full:
            raise full.pop()
        stored.append(keys)

    keys = {"keys": json.dumps(["a", "b"])}
    values = {"features": np.ones((2, 3), np.float32)}
    save_file(values, tmp_path / features.part_name(0, 1), metadata=keys)
    returned = _Returned(sink, lambda *_: None, lambda _count: None, [set()])
    errand = _Encoding(job, [("a", "a.png"), ("b", "b.png")], returned, stage=False)
    with pytest.raises(OSError, match="No space"):
        errand.take(tmp_path)
    assert (errand.taken, errand.complete()) == (0, False)
    errand.take(tmp_path)
    assert (errand.taken, errand.complete(), stored) == (2, True, [["a", "b"]])


def test_a_long_error_is_shown_in_part(bench: Bench) -> None:
    note = {"format": 2, "user": False, "message": "The weights lack " + "x" * 20_000, "hint": None}
    script = f"(folder / 'worker-0.error.json').write_text({json.dumps(note)!r}); os._exit(1)"
    liar = Liar(script, bench.folder)
    assert bench.encode([bench.plan("small", "store")], bench.workplace(liar)).encoded == IMAGES
    (line,) = [line for line in bench.said if line.startswith("The weights lack xxx")]
    assert "Another takes its part" in line
    assert len(line) < 10_000


def test_a_worker_that_hangs_is_given_up(bench: Bench) -> None:
    liar = Liar("time.sleep(600)", bench.folder, places=("cpu",))
    plan = bench.plan("small", "store")
    with pytest.raises(ChexGenBenchError, match=r"returned nothing for 1 s") as caught:
        always = replace(liar)
        always.start = lambda *rest: Process(["sleep", "600"], rest[-1])  # type: ignore[method-assign]
        bench.encode([plan], bench.workplace(always, timeout=1.0))
    assert "The end of its log" in str(caught.value.hint)


def test_a_worker_that_is_done_and_stays_is_ended(bench: Bench) -> None:
    plan = bench.plan("small", "store")
    liar = Liar("write(keys); time.sleep(600)", bench.folder)
    # Its output is whole, so that nobody else is asked, and the time without news is no fault.
    assert bench.encode([plan], bench.workplace(liar, timeout=3.0)).encoded == IMAGES
    assert not any("returned nothing" in line for line in bench.said)


def test_only_the_images_themselves_are_staged(tmp_path: Path) -> None:
    (tmp_path / "patients").mkdir()
    public, private, gone = (tmp_path / "patients" / name for name in ("a.PNG", "b.png", "c.png"))
    public.write_bytes(b"a")
    private.write_bytes(b"b")
    public.chmod(0o644)
    private.chmod(0o600)
    (tmp_path / "link.png").symlink_to(public)
    paths = staged(tmp_path / "stage", [public, private, gone, tmp_path / "link.png"])
    assert [path.name for path in paths] == [f"{n:07d}.png" for n in range(4)]
    assert [path.exists() for path in paths] == [True, True, False, True]
    assert paths[0].samefile(public) and not paths[1].samefile(private)
    assert paths[1].stat().st_mode & 0o777 == 0o600 and private.stat().st_mode & 0o077 == 0
    assert not paths[3].is_symlink() and paths[3].samefile(public)


def test_what_a_killed_command_left_is_removed_and_a_living_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "left" / "encode-images-0001").mkdir(parents=True)
    with folder_of_command(tmp_path) as one, folder_of_command(tmp_path) as two:
        assert {path.name for path in tmp_path.iterdir()} == {one.name, two.name}
    assert not list(tmp_path.iterdir())


# --- task metrics ---------------------------------------------------------------------------


def pictures(n: int, seed: int) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    return list(random.integers(0, 255, (n, 40, 40), dtype=np.uint8))


def study_sets(folder: Path, names: Mapping[str, str], n: int = 40) -> dict[str, ImageSet]:
    """Sets with features and images of `n` training rows, two a patient, and as many test rows."""
    random = np.random.default_rng(1)
    labels = np.full((n, len(FINDINGS)), np.nan)
    labels[:, 1] = np.arange(n) % 2
    labels[:, 3] = np.arange(n) % 3 - 1.0
    table: dict[str, Any] = {}
    sets: dict[str, ImageSet] = {}
    for number, (name, kind) in enumerate(names.items()):
        side, source = kind.split()
        vectors = random.normal(size=(n, 12)) + labels[:, [1]]
        sets[name] = image_set(
            features=vectors,
            images=pictures(n, number),
            folder=folder / name,
            side=side,  # type: ignore[arg-type]
            source=source,  # type: ignore[arg-type]
            patients=[f"{side}-{i // 2}" for i in range(n)],
            labels=labels,
            table=table.get(side),
        )
        table[side] = sets[name].prompts
    return sets


TASKS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "memorisation": (
        {"subsamples": 3, "members": False},
        {"generated": "test model", "training": "training real", "held_out": "test real"},
    ),
    "linear-probe": (
        {"halvings": 2},
        {"real": "training real", "synthetic": "training model", "test": "test real"},
    ),
    "classification": (
        {
            "backbone": "mobilenetv3_small_050",
            "size": 32,
            "epochs": 1,
            "batch_size": 16,
            "seeds": 1,
            "regimes": ["real", "synthetic"],
        },
        {"real": "training real", "synthetic": "training model", "test": "test real"},
    ),
}


def job_of(plugin: Plugin[MetricSpec], parameters: Any, work: Task, **changes: Any) -> TaskJob:
    keywords: dict[str, Any] = {
        "metric": plugin.name,
        "source": plugin.source_hash(),
        "parameters": parameters.model_dump(mode="json"),
        "encoder": work.encoder,
        "model": work.model,
        "seed": work.seed,
        "folder": str(work.folder),
        "sets": (),
        "tables": (),
        "context": plain_context(work.context),
    }
    return TaskJob(**(keywords | changes))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_task_metric_finds_the_same_in_a_worker(tmp_path: Path, name: str) -> None:
    values, needed = TASKS[name]
    bench = make_bench(tmp_path, 1)
    plugin = bench.registry().metrics[name]
    parameters = plugin.parse(values)
    sets = study_sets(tmp_path, needed)
    here = task(sets, tmp_path / "here", seed=5)
    expected = plugin.create(parameters, here.context).run(here)
    assert len(expected.scores) > 2
    for sees_files in (True, False):
        there = task(sets, tmp_path / f"there-{sees_files}", seed=5)
        job = job_of(plugin, parameters, there)
        if not sees_files:
            job = job.model_copy(update={"folder": None})
        found = run_task(job, there, bench.workplace(sees_files=sees_files))
        # As text: NaN is not equal to itself.
        assert json.dumps(plain_result(found)) == json.dumps(plain_result(expected))
        assert there.folder.exists() == sees_files


def odd(
    bench: Bench, fault: str = "", workplace: Workplace | None = None, **changes: Any
) -> tuple[TaskResult, list[str]]:
    plugin = bench.registry().metrics["odd"]
    parameters = plugin.parse({"fault": fault})
    said: list[str] = []

    @contextmanager
    def stage(name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        done = [0]

        def advance(count: int) -> None:
            done[0] += count

        yield advance
        said.append(f"{name}: {done[0]} of {total} {unit}")

    sets = study_sets(bench.folder / "sets", {"own": "test model"}, n=10)
    work = replace(task(sets, bench.folder, said=said), stage=stage)
    workplace = workplace or bench.workplace()
    told = workplace.source.told()
    job = job_of(plugin, parameters, work, **(told | changes))
    found = run_task(job, work, workplace)
    return found, said


def test_progress_and_numbers_come_back(bench: Bench) -> None:
    found, said = odd(bench)
    # A busy machine may let the command say that it waits.
    said = [line for line in said if not line.startswith("nothing for")]
    assert said == ["count: 10 of 10 images", "counted \N{REPLACEMENT CHARACTER}[2J them"]
    first, second = found.scores
    assert first.estimate.degrees_of_freedom == np.inf  # type: ignore[union-attr]
    assert first.n_fake == 10 and first.control == float(np.float32(0.1))
    assert second.estimate == "no such rows"
    assert np.isnan(found.values[0].values[0]) and found.values[0].values.dtype == np.float64
    assert found.notes == ["whole", "task"]


@pytest.mark.slow
def test_a_metric_that_fails_or_cannot_be_taken_says_so(bench: Bench) -> None:
    with pytest.raises(TaskFailed) as caught:
        odd(bench, "raise")
    assert caught.value.message == "RuntimeError: broken inside"
    with pytest.raises(TaskFailed, match="ValueError: it returned a NoneType, not a TaskResult"):
        odd(bench, "nothing")
    with pytest.raises(NotApplicable, match="not today"):
        odd(bench, "skip")


def test_a_killed_metric_goes_on_from_its_checkpoint(bench: Bench) -> None:
    found, said = odd(bench, "killed")
    assert found.notes[0] == "half"
    assert any("SIGKILL" in line for line in said)


def test_checkpoints_of_a_place_of_its_own_are_given_to_no_other_worker(bench: Bench) -> None:
    """A link among them would lead wherever it says."""
    with pytest.raises(ChexGenBenchError, match="SIGKILL"):
        odd(bench, "killed", folder=None)


RESULT_LIES = {
    "not JSON": ("out.write_text('{')", "is not JSON"),
    "pickle": ("import pickle; out.write_bytes(pickle.dumps([1]))", "is not JSON"),
    "link": ("out.symlink_to(secret)", "symbolic link"),
    "huge": ("out.touch(); os.truncate(out, 10**10)", "more than [0-9]+ bytes"),
    "unknown set": ("say(values=[{'name': 'a', 'images': 'x', 'values': []}])", "set that is not"),
    "infinite": ("say(scores=[score | {'control': float('inf')}])", "scores.0.control"),
    "text": ("say(scores=[score | {'n_fake': '5'}])", "scores.0.n_fake"),
    "more": ("say(secret=1)", "secret"),
    "escape": ("say(scores=[score | {'variant': '../x'}])", "variant"),
    "lengths": ("say(pairs=[pairs | {'at': [1, 2]}])", "several lengths"),
    "nan pair": ("say(pairs=[pairs | {'values': [float('nan')]}])", "no number"),
    "status": ('out.write_text(\'{"status": "fine", "reason": null}\')', "status"),
    "nothing": ("pass", "a part of its work is missing"),
}

RESULT = """
out = folder / "result.json"
score = {"name": "odd", "estimate": "none", "variant": "", "subset": "overall", "control": None,
         "excess": None, "n_real": 0, "n_fake": 0}
pairs = {"kind": "a", "images": "own", "others": "own", "at": [0], "others_at": [0],
         "values": [0.0], "flagged": [True]}

def say(**what):
    text = json.dumps({"status": "ok", "reason": None, **what})
    (folder / ".tmp").write_text(text)
    (folder / ".tmp").rename(out)
"""


@pytest.mark.parametrize("lie", RESULT_LIES)
def test_a_result_that_is_none_is_refused(bench: Bench, lie: str) -> None:
    script, message = RESULT_LIES[lie]
    secret = bench.folder / "secret.txt"
    secret.write_text('{"status": "ok", "reason": null}')
    liar = Liar(RESULT + script, secret)
    with pytest.raises(Refused, match=message):
        odd(bench, workplace=bench.workplace(liar))


@pytest.mark.slow
def test_what_says_nothing_is_no_sign_of_progress(bench: Bench) -> None:
    script = """
    while True:
        with (folder / "events-0.jsonl").open("a") as file:
            file.write('{}\\n{"event": "say", "text": "soon"}\\n')
            file.write('{"event": "advance", "count": 1}\\n')
        time.sleep(0.2)
    """
    liar = Liar(script, bench.folder, places=("cpu",))
    liar.start = lambda *rest: Process(  # type: ignore[method-assign]
        [sys.executable, "-c", HOSTILE + textwrap.dedent(script), str(rest[0]), "x"], rest[-1]
    )
    with pytest.raises(ChexGenBenchError, match="returned nothing for 3 s"):
        odd(bench, workplace=bench.workplace(liar, timeout=3.0))


def test_texts_of_a_result_are_harmless() -> None:
    data = json.dumps({"status": "failed", "reason": "a\x1b[2Jb"}).encode()
    assert parse_result(data, {}).reason == "a\N{REPLACEMENT CHARACTER}[2Jb"


# --- jobs and places ------------------------------------------------------------------------


def test_a_job_of_another_kind_is_no_generation(bench: Bench) -> None:
    folder = bench.folder / "job"
    job = encode_job(bench, folder)
    assert facts_of(folder, EncodeJob) == job
    with pytest.raises(UserError, match="'encode', not the one expected"):
        read_generate_job(folder)
    with pytest.raises(UserError, match="'encode', not the one expected"):
        facts_of(folder, GenerateJob)
    write_json(folder / "job.json", job.model_dump(mode="json") | {"kind": "cook"})
    with pytest.raises(UserError, match="kind 'cook'"):
        facts_of(folder, EncodeJob)


def test_a_list_that_lost_rows_is_refused(bench: Bench) -> None:
    folder = bench.folder / "job"
    encode_job(bench, folder)
    plan = bench.plan("small", "unused")
    path = folder / features.ITEMS
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(UserError, match=f"items.parquet has {IMAGES - 1} rows, and its job has"):
        features.work(folder, lambda _number: (plan.plugin.spec, plan.load()), lambda _count: None)
    assert not list(folder.glob("*.safetensors"))


def test_a_set_that_lost_rows_is_refused(bench: Bench, tmp_path: Path) -> None:
    name, (values, needed) = next(iter(TASKS.items()))
    plugin = bench.registry().metrics[name]
    sets = study_sets(tmp_path, needed, n=4)
    images = sets["generated"]
    job = job_of(
        plugin,
        plugin.parse(values),
        task(sets, tmp_path / "parts", seed=5),
        sets=(set_facts("generated", images, 0),),
        tables=(table_facts(images.prompts),),
    )
    folder = tmp_path / "job"
    folder.mkdir()
    write_task_job(folder, job, [(images, images.paths)], [images.prompts])
    assert len(read_sets(folder, job)["generated"]) == 4
    path = folder / "set-0.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(UserError, match=r"set-0.parquet has 3 rows, and its job has 4"):
        read_sets(folder, job)
    path = folder / "table-0.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(UserError, match=r"table-0.parquet has 3 rows, and its job has 4"):
        read_sets(folder, job)


def test_where_a_plugin_works_is_what_the_user_says(tmp_path: Path) -> None:
    registry = load_registry()
    clip, probe = registry.encoders["phantom-clip"], registry.metrics["linear-probe"]

    def kinds(*executors: str) -> list[str]:
        options = Options(home=Home(tmp_path), executors=executors)
        return [place_of(options, plugin).kind for plugin in (clip, probe)]

    assert kinds() == ["here", "here"]
    assert kinds("process") == ["process", "process"]
    assert kinds("process", "linear-probe=here") == ["process", "here"]
    assert kinds("phantom-clip=ray") == ["ray", "here"]
    # Only what has an environment has a container, unless the user says otherwise.
    assert kinds("container", "linear-probe=container") == ["here", "container"]
    assert workplace_of(Options(home=Home(tmp_path)), clip, ModelSource(), ["cpu"]) is None
    with pytest.raises(UserError, match="--executor"):
        check_executors(["phantom-clipp=ray"], ["phantom-clip"])


def test_a_place_that_a_plugin_cannot_have_is_refused(tmp_path: Path) -> None:
    registry = load_registry()
    memorizer, noise = registry.models["memorizer"], registry.models["noise"]
    llm_cxr = registry.models["llm-cxr"]

    def options(*executors: str, **changes: Any) -> Options:
        home = Home(tmp_path)
        home.__dict__["cache"] = tmp_path / "cache"
        return Options(home=home, executors=executors, **changes)

    # It reads the training side, which no job directory holds.
    assert place_of(options("process"), memorizer).kind == "here"
    with pytest.raises(UserError, match="reads the split's training side"):
        place_of(options("memorizer=process"), memorizer)
    # Nobody leaves a container by what its own descriptor says.
    with pytest.raises(UserError, match="reads the split's training side"):
        place_of(options("container"), memorizer)
    assert place_of(options("container", "memorizer=here"), memorizer).kind == "here"
    with pytest.raises(UserError, match=r"environment llm-cxr of the model 'llm-cxr' is not built"):
        place_of(options("process"), llm_cxr)
    for word in ("address", "shared"):
        with pytest.raises(UserError, match=f"--{word} is for the executor ray"):
            check_places(options(**{word: "auto"}), [noise], ["cpu"])
    with pytest.raises(UserError, match="--shards is for the executors"):
        check_places(options(shards=3), [noise], ["cpu"])
    check_places(options("process", shards=3), [noise], ["cpu"])


def test_an_encoder_with_a_venv_of_its_own_works_in_that(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a model does: here too, without a word of the user."""
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(bench.folder / "cache"))
    python = bench.folder / "cache" / "environments" / "own" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # The interpreter of these tests under another name: it has the packages.
    python.write_text(
        f'#!/bin/sh\necho started >> {bench.folder}/log\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    plan = bench.plan("small", "own")
    spec = replace(plan.plugin.spec, environment="own", requires=("no_such_module",))
    plugin = replace(plan.plugin, spec=spec)
    options = Options(home=Home(bench.folder), plugins=(bench.folder / "plugins.py",))
    source = ModelSource(files=options.plugins)
    workplace = workplace_of(options, plugin, source, ["cpu"])
    assert workplace is not None and workplace.foreign
    done = bench.encode([replace(plan, plugin=plugin)], workplace, texts=["abc"])
    assert done.encoded == IMAGES
    assert (bench.folder / "log").read_text() == "started\n" * 2  # images and texts


def test_a_worker_is_held_to_the_memory_that_was_named(bench: Bench) -> None:
    plan = bench.plan("small", "store")
    limits = Limits(memory=60_000_000)
    with pytest.raises(ChexGenBenchError):
        bench.encode([plan], bench.workplace(limits=limits, shards=1))
    assert not [key for key, _ in bench.images if key in plan.images]


# --- the whole ------------------------------------------------------------------------------


def tables(desk: Desk) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for name in ("scores", "sample_scores", "neighbours"):
        rows = desk.rows(f"SELECT * FROM {name}")
        drop = ("run_id", "created_at", "path", "other_path")
        kept = [{k: v for k, v in row.items() if k not in drop} for row in rows]
        found[name] = sorted(kept, key=lambda row: json.dumps(row, sort_keys=True))
    return found


@pytest.mark.slow
def test_a_run_by_processes_has_the_scores_of_one_here(tmp_path: Path) -> None:
    desks = [Desk.new(tmp_path / name) for name in ("here", "there")]
    plugin = tmp_path / "gap.py"  # one place: a plugin file's identity has its path
    plugin.write_text(GAP)
    for desk, more in zip(desks, ((), ("--executor", "process", "--workers", "2")), strict=True):
        done = desk.run(
            "run", "--plugin", plugin, "-m", "oracle", "--metric", "gap", "--metric", "alignment",
            "--limit", 6, "--device", "cpu", *more,
            OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
        )  # fmt: skip
        assert "gap: worked" in done.out
    here, there = map(tables, desks)
    assert here == there
    assert len(here["scores"]) > 3 and here["sample_scores"] and here["neighbours"]
    assert not list((desks[1].home / "runs" / "jobs").iterdir())
    assert not (desks[0].home / "runs" / "jobs").exists()
    # What a worker's plugin raises is recorded as it is here.
    desks[1].run(
        "run", "--plugin", plugin, "-m", "oracle", "--metric", "gap", "--limit", 6,
        "--device", "cpu", "--set", "gap.fault=raise", "--extra-info", "faulty",
        "--executor", "gap=process",
    )  # fmt: skip
    (row,) = desks[1].rows("SELECT status, reason FROM scores WHERE extra_info = 'faulty'")
    assert row == {"status": "failed", "reason": "RuntimeError: broken inside"}
