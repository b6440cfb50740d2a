"""Workers on a Ray cluster: real raylets on this machine, each as a machine of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.executors import ModelSource
from chexgenbench.executors.border import Refused
from chexgenbench.executors.cluster import Ray, _Mirror
from chexgenbench.executors.mirror import Fetcher, Remote, Sender, place_at
from chexgenbench.executors.workplace import ELSEWHERE, folder_of_command
from chexgenbench.generation import Generation, plan_generation, seed_of
from chexgenbench.home import Home
from chexgenbench.jobs.manifest import MANIFEST, parts, read_manifest
from chexgenbench.registry import load_registry
from chexgenbench.types import Context, Request
from chexgenbench.workflow import leftovers
from chexgenbench.workflow.options import Options
from chexgenbench.workflow.places import workplace_of
from desk import Desk
from image_sets import GAP
from ray_host import SETTINGS, RayCluster, kill, ray_cluster, wait_for

# Ray itself is not imported before it is set up: it reads how to authenticate only once.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]

COUNT = 26
SCORES = "select * exclude (created_at) from scores order by all"

PLUGIN = """
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from pydantic import Field

from chexgenbench import Model, ModelSpec, Parameters, hookimpl


class SleepyParameters(Parameters):
    folder: str = Field(description="Where a process leaves its mark.")
    seconds: float = Field(0.05, description="How long a call takes.")
    together: int = Field(1, description="Processes that wait for each other in their first call.")
    fault: str = Field("", description="What the call with request r9 does.")
    until: str = Field("", description="A file that a process waits for in its fifth call.")


class Sleepy(Model):
    def load(self):
        pass

    def generate(self, requests):
        folder = Path(self.parameters.folder)
        if not getattr(self, "begun", False):
            self.begun = True
            (folder / f"loaded-{os.getpid()}-{time.time_ns()}").touch()
        while len(list(folder.glob("loaded-*"))) < self.parameters.together:
            time.sleep(0.01)
        (folder / "threads").write_text(os.environ["OMP_NUM_THREADS"])
        time.sleep(self.parameters.seconds)
        self.calls = getattr(self, "calls", 0) + 1
        while self.parameters.until and self.calls > 4 and not Path(self.parameters.until).exists():
            time.sleep(0.01)
        if "r9" in [request.id for request in requests]:
            if self.parameters.fault == "error":
                print("the plugin says why")
                raise RuntimeError("out of luck")
            if self.parameters.fault == "die once" and not (folder / "died").exists():
                (folder / "died").touch()
                print("about to die", flush=True)
                os.kill(os.getpid(), 9)
            if self.parameters.fault in ("answer", "deep"):
                asked = Path(sys.argv[1]).glob("ask-*.json")
                ask = max(asked, key=lambda path: int(path.stem[4:]))
                if self.parameters.fault == "answer":
                    ask.with_name(ask.name.replace("ask", "answer")).write_text("{")
                else:
                    deep = Path(json.loads(ask.read_text())["folder"]) / "a/b/c/d"
                    deep.mkdir(parents=True)
                    (deep / "e").touch()
                time.sleep(600)
        # As in a real pipeline, each image depends a little on its whole batch.
        together = sum(request.seed for request in requests) % 50
        for request in requests:
            values = np.random.default_rng(request.seed).integers(0, 200, (32, 32), dtype=np.uint8)
            yield values + np.uint8(together)


@hookimpl
def chexgenbench_models():
    yield ModelSpec(name="sleepy", summary="", load=Sleepy, parameters=SleepyParameters)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head and two machines of one processor each."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="r") as name:
        for key, value in {**SETTINGS, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(key, value)
        with ray_cluster(Path(name), 2) as found:
            yield found
            import ray

            ray.shutdown()


class Bench:
    """A folder with the plugin's file, and generations by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "sleepy.py"
        self.file.write_text(PLUGIN)
        self.said: list[str] = []

    def marks(self, name: str) -> Path:
        return self.folder / f"marks-{name}"

    def plan(self, name: str, **parameters: object) -> Generation:
        self.marks(name).mkdir(exist_ok=True)
        plugin = load_registry([self.file]).find("models", "sleepy")
        requests = [
            Request(id=f"r{i}", prompt_id=f"r{i}", prompt=f"text {i}", seed=seed_of(0, f"r{i}", 0))
            for i in range(COUNT)
        ]
        return plan_generation(
            plugin,
            plugin.parse({"folder": str(self.marks(name)), **parameters}),
            Context(home=self.folder, cache=self.folder / "cache"),
            requests,
            batch_size=2,
            exact=False,
            root=self.folder / name,
            weights={},
        )

    def run(self, generation: Generation, **arguments: Any) -> dict[str, str]:
        source = ModelSource(files=(self.file,))
        rows = generation.run(say=self.said.append, source=source, **arguments)
        return {key: row.sha256 for key, row in rows.items()}

    def whole(self) -> dict[str, str]:
        return self.run(self.plan("whole"))

    def loaded(self, name: str) -> set[int]:
        """Processes that have loaded the model; each has once."""
        marks = [path.name.split("-")[1] for path in self.marks(name).glob("loaded-*")]
        assert len(marks) == len(set(marks))
        return set(map(int, marks))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def in_order(generation: Generation) -> None:
    """One manifest with one row a request, in order, and nothing left over."""
    assert [path.name for path in parts(generation.folder, MANIFEST)] == [MANIFEST]
    lines = (generation.folder / MANIFEST).read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"r{i}" for i in range(COUNT)]
    assert not list(generation.folder.rglob(".tmp-*"))
    assert not (generation.folder / "shards").exists()


def servers(plugin: Path) -> list[int]:
    """Workers of this machine that have not ended, of jobs that name the plugin's file."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if "chexgenbench.jobs.serve" in (process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def test_two_machines_make_what_one_process_makes(cluster: RayCluster, bench: Bench) -> None:
    generation = bench.plan("ray", together=2)
    seen: list[int] = []
    with closing(Ray(cluster.address)) as launcher:
        assert launcher.places == ["cpu", "cpu"]
        made = bench.run(generation, launcher=launcher, advance=seen.append)
    assert made == bench.whole()
    assert sum(seen) == COUNT
    in_order(generation)
    # Eight shards, and each of two processes has loaded the model once.
    assert len({row.worker for row in read_manifest(generation.folder).values()}) == 8
    assert len(bench.loaded("ray")) == 2
    assert (bench.marks("ray") / "threads").read_text() == "1"
    wait_for(lambda: not servers(bench.file))


def test_scores_are_those_of_one_process(cluster: RayCluster, tmp_path: Path, ftp: str) -> None:
    """By the console script, which says nothing of Ray's own. Job directories travel, and with them
    the images that encoders and the task metric read."""
    plugin = tmp_path / "gap.py"
    plugin.write_text(GAP)
    options = ("run", "--plugin", plugin, "--limit", 24, "--model", "phantom-diffusion")
    options = (*options, "--set", "phantom-diffusion.steps=2", "--metric", "kid", "--metric", "gap")
    here, there = Desk.new(tmp_path / "here"), Desk.new(tmp_path / "there")
    here.run(*options, "--executor", "here")
    ray = ("--executor", "ray", "--address", cluster.address, "--shared", ftp)
    done = there.run(*options, *ray)
    assert "gap: worked" in done.out
    assert there.rows(SCORES) == here.rows(SCORES)
    assert not [path for path in (tmp_path / "ftp").rglob("*") if path.is_file()]

    def images(desk: Desk) -> dict[str, str]:
        found = desk.home.glob("runs/generations/*/manifest.jsonl")
        rows = [json.loads(line) for path in found for line in path.read_text().splitlines()]
        return {f"{row['prompt_id']} {row['sha256']}": row["path"] for row in rows}

    assert images(there) == images(here)
    assert len(images(there)) == 24 + 12  # its own, and those of the pool
    for word in ("raylet", "INFO", "WARNING", "dashboard", "[20"):
        assert word not in done.err + done.out, done.err


class PowerCut:
    """Ends a machine once six images are there; no process ends its work before."""

    def __init__(self, machine: subprocess.Popen[bytes], mark: Path) -> None:
        self.machine, self.mark, self.done = machine, mark, 0

    def advance(self, count: int) -> None:
        self.done += count
        if self.done >= 6 and self.machine.poll() is None:
            kill(self.machine.pid)
            self.mark.touch()


def test_a_machine_that_is_lost(cluster: RayCluster, bench: Bench) -> None:
    """Everything on it is killed at once, in the middle; what it made is kept."""
    victim = cluster.add()
    mark = bench.folder / "cut"
    generation = bench.plan("lost", together=3, seconds=0.4, until=str(mark))
    power_cut = PowerCut(victim, mark)
    with closing(Ray(cluster.address, workers=3)) as launcher:
        assert len(launcher.places) == 3
        made = bench.run(generation, launcher=launcher, advance=power_cut.advance)
    assert victim.wait() == -signal.SIGKILL
    assert made == bench.whole()
    assert power_cut.done == COUNT
    in_order(generation)
    assert any("lost" in text and "Another takes its part" in text for text in bench.said)


def test_the_last_machine_that_fits_is_lost(
    cluster: RayCluster, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would wait for another for ever."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr("chexgenbench.executors.cluster._GONE", 3.0)
    victim = cluster.add(cpus=3)
    mark = bench.folder / "cut"
    generation = bench.plan("alone", seconds=0.4, until=str(mark))
    power_cut = PowerCut(victim, mark)
    with (
        closing(Ray(cluster.address)) as launcher,
        pytest.raises(UserError, match="No machine of the Ray cluster that a worker fits on"),
    ):
        bench.run(generation, launcher=launcher, advance=power_cut.advance)
    assert len(read_manifest(generation.folder)) == power_cut.done >= 6


@pytest.mark.parametrize("whom", ["host", "process"])
def test_a_worker_that_is_killed(cluster: RayCluster, bench: Bench, whom: str) -> None:
    """The actor that Ray started, or the process that the actor started: another goes on."""
    generation = bench.plan("killed", together=2, seconds=0.3)
    done = 0
    killed: list[int] = []

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done >= 4 and not killed:
            pid = sorted(bench.loaded("killed"))[0]
            killed.append(psutil.Process(pid).ppid() if whom == "host" else pid)
            os.kill(killed[0], signal.SIGKILL)

    with closing(Ray(cluster.address)) as launcher:
        made = bench.run(generation, launcher=launcher, advance=advance)
    assert killed
    assert made == bench.whole()
    assert done == COUNT
    in_order(generation)
    lost = [text for text in bench.said if "SIGKILL" in text]
    assert len(lost) == 1
    assert "Another takes its part" in lost[0]
    # The process of a host that was killed does not outlive it.
    wait_for(lambda: not servers(bench.file))


def test_a_plugin_that_fails_shows_the_end_of_its_log(cluster: RayCluster, bench: Bench) -> None:
    generation = bench.plan("failing", fault="error")
    with (
        closing(Ray(cluster.address)) as launcher,
        pytest.raises(
            ChexGenBenchError, match=r"failed on requests r8 to r9.*out of luck"
        ) as error,
    ):
        bench.run(generation, launcher=launcher)
    assert "the plugin says why" in str(error.value.hint)
    # Its shard alone is lost: of 13 batches in 8 shards the third has r8 to r11.
    assert len(read_manifest(generation.folder)) == COUNT - 4


@pytest.mark.parametrize(
    ("fault", "said"), [("answer", "is no exit code"), ("deep", "is refused.*a/b/c/d/e")]
)
def test_a_worker_that_lies_loses_its_shard_alone(
    cluster: RayCluster, bench: Bench, fault: str, said: str
) -> None:
    """An answer that is none, and a file that no worker writes."""
    generation = bench.plan(fault, fault=fault)
    shared = str(bench.folder / "shared") if fault == "deep" else None
    with (
        closing(Ray(cluster.address, shared=shared)) as launcher,
        pytest.raises(ChexGenBenchError, match=said) as error,
    ):
        bench.run(generation, launcher=launcher)
    assert not isinstance(error.value, UserError)
    assert len(read_manifest(generation.folder)) == COUNT - 4


def test_an_interpreter_of_its_own(cluster: RayCluster, bench: Bench) -> None:
    other = bench.folder / "python"
    other.write_text(f'#!/bin/sh\ntouch "{bench.folder}/asked"\nexec "{sys.executable}" "$@"\n')
    other.chmod(0o755)
    with closing(Ray(cluster.address, interpreter=other)) as launcher:
        assert bench.run(bench.plan("other"), launcher=launcher) == bench.whole()
    assert (bench.folder / "asked").exists()
    nowhere = bench.folder / "nowhere"
    with (
        closing(Ray(cluster.address, interpreter=nowhere)) as launcher,
        pytest.raises(UserError, match=r"On the machine .*nowhere is not there"),
    ):
        bench.run(bench.plan("none"), launcher=launcher)


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[str]:
    """The URL of a real FTP server, which a name and a word open."""
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import ThreadedFTPServer

    (tmp_path / "ftp").mkdir()
    authorizer = DummyAuthorizer()
    authorizer.add_user("name", "word", str(tmp_path / "ftp"), perm="elradfmwMT")
    authorizer.add_user("guest", "secret", str(tmp_path / "ftp"), perm="el")
    handler = type("Handler", (FTPHandler,), {"authorizer": authorizer})
    server = ThreadedFTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"timeout": 0.1}, daemon=True)
    thread.start()
    yield f"ftp://name:word@127.0.0.1:{server.address[1]}/bench"
    server.close_all()
    thread.join()


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="no file system can be mounted here for one machine alone (unshare --mount)",
)
def test_a_machine_that_does_not_see_the_folder(
    cluster: RayCluster, bench: Bench, ftp: str
) -> None:
    """It says so; by a URL, or a folder that it sees, job directories reach it."""
    (bench.folder / "far").mkdir()
    hide = f'mount -t tmpfs none "{bench.folder}/far" && exec "$@"'
    blind = cluster.add("unshare", "--mount", "sh", "-c", hide, "sh")
    try:
        generation = bench.plan("far", together=3)
        with (
            closing(Ray(cluster.address, workers=3)) as launcher,
            pytest.raises(UserError, match="is not seen by the worker") as error,
        ):
            bench.run(generation, launcher=launcher)
        assert "--shared" in str(error.value.hint)
        shutil.rmtree(generation.folder)
        for shared in (ftp, str(bench.folder / "shared")):
            for mark in bench.marks("far").iterdir():
                mark.unlink()
            with closing(Ray(cluster.address, workers=3, shared=shared)) as launcher:
                assert bench.run(generation, launcher=launcher) == bench.whole()
            assert len(bench.loaded("far")) == 3
            in_order(generation)
            shutil.rmtree(generation.folder)
        # Nothing is left on the way.
        left = [path for name in ("ftp", "shared") for path in (bench.folder / name).rglob("*")]
        assert not [path for path in left if path.is_file()]
    finally:
        kill(blind.pid)


def test_interrupted_the_workers_end(cluster: RayCluster, bench: Bench, tmp_path: Path) -> None:
    desk = Desk.new(tmp_path / "desk")
    bench.marks("cli").mkdir()
    options = ["generate", "--plugin", bench.file, "--model", "sleepy", "--limit", 40]
    options += ["--set", f"folder={bench.marks('cli')}", "--set", "seconds=1", "--batch-size", 1]
    options += ["--executor", "ray", "--address", cluster.address]
    process = desk.start(*options)
    wait_for(lambda: len(bench.loaded("cli")) == 2 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    working = bench.loaded("cli")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    wait_for(lambda: not any(map(psutil.pid_exists, working)))


def test_an_address_that_does_not_answer(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chexgenbench.executors.cluster._HEALTHY", 5.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(UserError, match=f"No Ray cluster answers at {closed}: .*refused"):
            Ray(closed)
        mute.listen()
        begun = time.monotonic()
        with pytest.raises(UserError, match=f"No Ray cluster answers at {closed}"):
            Ray(closed)
        # Ray itself gives up after two minutes.
        assert time.monotonic() - begun < 60
    with pytest.raises(UserError, match="is no address of a Ray cluster"):
        Ray("somewhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("import ray; ray.__version__ = '1.0'", "has other versions.*Ray: 1.0"),
        ("import os; os.environ['RAY_AUTH_TOKEN'] = 'a' * 64", "asks for a token"),
        ("import sys; sys.modules['ray'] = None", "pip install 'chexgenbench\\[ray\\]'"),
    ],
)
def test_a_cluster_that_this_environment_cannot_join(
    cluster: RayCluster, change: str, said: str
) -> None:
    code = f"""
{change}
from chexgenbench.errors import UserError
from chexgenbench.executors.border import Refused
from chexgenbench.executors.cluster import Ray, _Mirror
try:
    Ray("{cluster.address}")
except UserError as error:
    print(error, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.search(said, done.stdout), done


def test_a_worker_that_needs_more_than_any_machine_has(cluster: RayCluster, bench: Bench) -> None:
    from chexgenbench.jobs.job import Limits

    with (
        closing(Ray(cluster.address)) as launcher,
        pytest.raises(UserError, match=r"may use 9000\.0 GB, and no machine"),
    ):
        bench.run(bench.plan("large"), launcher=launcher, limits=Limits(memory=9 * 10**12))
    with pytest.raises(UserError, match="no GPU for a worker"):
        Ray(cluster.address, device="cuda")


def test_lines_come_after_the_files_that_they_name(tmp_path: Path, ftp: str) -> None:
    """A reader that looks at any moment finds every file that a line names."""
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "images").mkdir(parents=True)
    here.mkdir()
    stop = threading.Event()

    def write() -> None:
        sender = Sender(there, Remote(ftp))
        for number in range(40):
            (there / "images" / f"{number}.png").write_bytes(bytes([number]) * 5000)
            with (there / "manifest.jsonl").open("a") as file:
                file.write(f"{number}\n")
            sender.send()
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    fetcher = Fetcher(Remote(ftp), here)
    looks = 0
    ended = False
    while not ended:
        ended = stop.is_set()
        fetcher.fetch()
        looks += 1
        manifest = here / "manifest.jsonl"
        text = manifest.read_text() if manifest.exists() else ""
        for line in text[: text.rfind("\n") + 1].split():
            assert (here / "images" / f"{line}.png").read_bytes() == bytes([int(line)]) * 5000
    thread.join()
    assert looks > 3
    assert len((here / "manifest.jsonl").read_text().split()) == 40


@pytest.mark.parametrize("kind", ["ftp", "folder"])
def test_a_file_is_seen_whole(tmp_path: Path, ftp: str, kind: str) -> None:
    """A reader that looks at any moment finds no part of a file, there or here."""
    made, there, here = tmp_path / "made", tmp_path / "ftp" / "bench", tmp_path / "here"
    made.mkdir()
    here.mkdir()
    size = 60_000_000
    (made / "features-0-0001.safetensors").write_bytes(b"x" * size)
    url = ftp if kind == "ftp" else str(there)
    seen: dict[Path, set[int]] = {there: set(), here: set()}

    def copy() -> None:
        sender = Sender(made, Remote(url))
        sender.send()
        os.utime(made / "features-0-0001.safetensors", (0, 0))
        sender.send()  # again, over the one that is there
        Fetcher(Remote(url), here).fetch()

    thread = threading.Thread(target=copy)
    thread.start()
    while thread.is_alive():
        for folder, sizes in seen.items():
            with suppress(FileNotFoundError):
                sizes.add((folder / "features-0-0001.safetensors").stat().st_size)
    thread.join()
    assert (here / "features-0-0001.safetensors").stat().st_size == size
    assert seen[there] == {size}
    assert seen[here] <= {size}
    assert [path.name for path in there.iterdir()] == ["features-0-0001.safetensors"]


def test_what_is_too_much_is_not_fetched(tmp_path: Path) -> None:
    """Files that say how large they are, and take no disk."""
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    with (there / "events-0.jsonl").open("wb") as file:
        file.truncate(1_200_000_000)
    with pytest.raises(Refused, match=r"events-0\.jsonl has more than 1000000000 bytes"):
        Fetcher(Remote(str(there)), here).fetch()
    (there / "events-0.jsonl").unlink()
    with (there / "large").open("wb") as file:
        file.truncate(shutil.disk_usage(here).free + 10**9)
    with pytest.raises(ChexGenBenchError, match="the disk of this command has"):
        Fetcher(Remote(str(there)), here).fetch()
    assert not list(here.iterdir())


def test_a_store_that_refuses(cluster: RayCluster, bench: Bench, ftp: str) -> None:
    """Its own errors are said, with what to do, and without the password."""
    wrong, guest = (ftp.replace("name:word", f"{user}:secret") for user in ("name", "guest"))
    with pytest.raises(UserError, match="cannot be used: 530") as used:
        Remote(wrong)
    with (
        closing(Ray(cluster.address, shared=guest)) as launcher,
        pytest.raises(UserError, match=r"Nothing can be written to ftp://127.*: 550") as written,
    ):
        bench.run(bench.plan("guest"), launcher=launcher)
    Remote(ftp).write("image.png", b"1")
    mirror = _Mirror(guest, bench.folder)
    mirror.start()
    with pytest.raises(ChexGenBenchError, match="cannot be read: 550") as read:
        mirror.close()
    for error in (used, written, read):
        assert "secret" not in f"{error.value} {error.value.hint}"


def test_what_a_killed_command_left_in_a_shared_place_goes(tmp_path: Path, ftp: str) -> None:
    """Images of patients, for an encoder; those of a command that is at work stay."""
    options = Options(home=Home(tmp_path), executors=("ray",), shared=f"{ftp}/")
    encoder = load_registry().find("encoders", "phantom-clip")
    workplace = workplace_of(options, encoder, ModelSource(), ["cpu"])
    assert workplace is not None and not workplace.sees_files
    dead = workplace.root / "20260101-000000-dead"
    with folder_of_command(workplace.root) as alive:
        dead.mkdir()
        (dead / ELSEWHERE).write_text(ftp)
        (dead / "lock").touch()
        for folder in (dead, alive):
            place = Remote(place_at(ftp, folder))
            place.write("session/encode-images-0001.images/0000000.png", b"1")
        # One who does not reach the place leaves what tells of it.
        assert leftovers.find(options.home) == []
        with folder_of_command(workplace.root):
            assert dead.exists()
        assert workplace.elsewhere == ftp
        with folder_of_command(workplace.root, workplace.forget, workplace.elsewhere) as mine:
            assert (mine / ELSEWHERE).read_text() == ftp
            assert not dead.exists()
            assert not Remote(place_at(ftp, dead)).sizes()
            assert Remote(place_at(ftp, alive)).sizes()
    Remote(place_at(ftp, alive)).remove_empty()
    assert Remote(place_at(ftp, alive)).sizes()
    Remote(f"{place_at(ftp, alive)}/session").remove()
    Remote(place_at(ftp, alive)).remove_empty()
    assert not list((tmp_path / "ftp" / "bench").iterdir())
