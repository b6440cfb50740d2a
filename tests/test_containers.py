"""Workers in real containers: what they see, what holds them, and what is left of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chexgenbench import environments
from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.executors import ModelSource, containers
from chexgenbench.executors.containers import Containers, Runtime, find_runtime
from chexgenbench.executors.launch import Process
from chexgenbench.executors.workplace import folder_of_command, staged
from chexgenbench.generation import Generation, plan_generation, seed_of
from chexgenbench.jobs.job import GenerateJob, Job, Limits
from chexgenbench.jobs.manifest import read_manifest
from chexgenbench.registry import load_registry
from chexgenbench.types import Context, Request
from container_host import base_image, building, podman_environment
from desk import Desk
from image_sets import GAP

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "old_numpy.py"

PROBE = """
import json
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
from pydantic import Field

from chexgenbench import Model, ModelSpec, Parameters, hookimpl


class ProbeParameters(Parameters):
    act: str = Field("", description="What to do beside making images.")
    paths: str = Field("", description="Files to try to read, divided by |.")


def attempt(do):
    try:
        return do()
    except OSError as error:
        return f"{type(error).__name__} {error.errno}"


def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as here:
        here.settimeout(5)
        here.connect(address)
    return "connected"


def look(paths):
    seen = str(Path(sys.argv[1])) + ".images"  # where images are staged for it
    paths = [path.replace("SEEN", seen) for path in paths]
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    places = ["/", "/usr", "/etc", "/opt", "/root", "/var", str(Path(sys.argv[1]).parent)]
    return {
        "network": [
            attempt(lambda: connect(socket.AF_INET, ("192.0.2.1", 80))),
            attempt(lambda: connect(socket.AF_INET, ("10.0.2.2", 22))),
            attempt(lambda: socket.getaddrinfo("example.org", 80)),
        ],
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "write": {p: attempt(lambda: (Path(p) / "mark").write_text("x")) for p in places},
        "orders": attempt(lambda: Path(sys.argv[1], "job.json").write_text("{}")),
        "unlink": attempt(lambda: Path(sys.argv[1], "requests.parquet").unlink()),
        "uid": [os.getuid(), os.geteuid(), os.getgid(), os.getgroups()],
        "capabilities": {key: status[key].strip() for key in status if key.startswith("Cap")},
        "no_new_privileges": status["NoNewPrivs"].strip(),
        "read": {path: attempt(lambda: len(Path(path).read_bytes())) for path in paths},
        "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
        "first": attempt(lambda: open("/proc/1/mem", "r+b").close()),
        "home": os.environ.get("HOME"),
        "environment": sorted(os.environ),
    }


def act(name):
    if name == "memory":
        held = []
        while True:  # not by malloc, which the worker limits itself
            held.append(np.memmap(f"/dev/shm/{len(held)}", np.uint8, "w+", shape=2**24))
            held[-1][:] = 1
    if name == "threads":
        held = []
        stop = threading.Event()
        try:
            while len(held) < 5000:
                held.append(threading.Thread(target=stop.wait))
                held[-1].start()
        finally:
            stop.set()
            print("THREADS", len(held), flush=True)
    if name == "print":
        block = b"x" * 999_999 + b"\\n"
        for _ in range(1000):
            os.write(1, block)
        print("the end", flush=True)
    if name == "disk":
        with open(os.path.join(sys.argv[1], "junk"), "wb") as file:
            for _ in range(1000):
                file.write(bytes(2**20))
                file.flush()
        time.sleep(60)
    if name == "tmp":
        with open("/tmp/junk", "wb") as file:
            while True:
                file.write(bytes(2**20))
    if name == "die":
        os._exit(7)
    if name == "hang":
        manifest = Path(sys.argv[1], "manifest.jsonl")
        while BEFORE and manifest.read_text().count("\\n") < BEFORE:
            time.sleep(0.05)
        re.match("(a+)+$", "a" * 60 + "b")  # for ever, and no other thread gets a turn


BEFORE = 0  # images that this process has asked to be written


class Probe(Model):
    def generate(self, requests):
        global BEFORE
        own = self.parameters
        if own.act == "look":
            print("SAW", json.dumps(look(own.paths.split("|"))), flush=True)
        for request in requests:
            if request.id == "r2" or own.act != "hang":
                act(own.act)
            if own.act == "slow":
                time.sleep(0.5)
            BEFORE += 1
            yield np.random.default_rng(request.seed).integers(0, 255, (32, 32), dtype=np.uint8)


@hookimpl
def chexgenbench_models():
    yield ModelSpec(
        name="probe",
        summary="",
        load=Probe,
        parameters=ProbeParameters,
        environment="example",
        batch_size=1,
    )
"""


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """podman, with the image of containers/example built."""
    folder = tmp_path_factory.mktemp("podman")
    environment = podman_environment(folder)
    base = base_image(environment, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", building(folder)["CONTAINERS_CONF"])
        runtime = find_runtime("podman")
        containers.build("example", runtime, base=base, say=lambda line: print(line))
        patch.setenv("CONTAINERS_CONF", environment["CONTAINERS_CONF"])
        yield runtime


class Bench:
    """A folder with the probe's file, and generations by it in containers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "probe.py"
        self.file.write_text(PROBE)
        self.said: list[str] = []

    def plan(self, model: str = "probe", count: int = 4, **parameters: object) -> Generation:
        plugin = load_registry([self.file]).find("models", model)
        requests = [
            Request(id=f"r{i}", prompt_id=f"r{i}", prompt="", seed=seed_of(0, f"r{i}", 0))
            for i in range(count)
        ]
        return plan_generation(
            plugin,
            plugin.parse(parameters),
            Context(home=self.folder, cache=self.folder / "cache"),
            requests,
            batch_size=None,
            exact=False,
            root=self.folder / "generations",
            weights={},
        )

    def run(
        self, generation: Generation, *, limits: Limits | None = None, timeout: float = 300
    ) -> dict[str, Any]:
        return generation.run(
            say=self.said.append,
            source=ModelSource(files=(self.file,)),
            launcher=Containers(["cpu"], "example", "podman"),
            limits=limits,
            timeout=timeout,
        )

    def fail(self, generation: Generation, **options: Any) -> ChexGenBenchError:
        with pytest.raises(ChexGenBenchError) as caught:
            self.run(generation, **options)
        return caught.value


@pytest.fixture
def bench(podman: Runtime, tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that a worker must not see, readable by everybody who sees their folder."""
    folder = tmp_path_factory.mktemp("project")
    found = {
        "store": folder / "Results" / "chexgenbench.duckdb",
        "run": folder / "runs" / "another" / "run.json",
        "split": folder / "MIMIC_Splits" / "prompts.csv",
        "home": Path.home() / ".bashrc",
        "password": Path("/etc/shadow"),
        "socket": Path("/run/docker.sock"),
    }
    for name in ("store", "run", "split"):
        found[name].parent.mkdir(parents=True)
        found[name].write_text("secret")
        found[name].chmod(0o644)
    return found


@pytest.fixture(scope="module")
def saw(
    podman: Runtime, secrets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a plugin found when it looked around in its container."""
    bench = Bench(tmp_path_factory.mktemp("look"))
    (bench.folder / "beside.txt").write_text("secret")
    paths = [*secrets.values(), bench.folder / "beside.txt", bench.file]
    generation = bench.plan(count=1, act="look", paths="|".join(map(str, paths)))
    os.environ["CHEXGENBENCH_TEST_TOKEN"] = "secret"
    try:
        bench.run(generation)
    finally:
        del os.environ["CHEXGENBENCH_TEST_TOKEN"]
    log = (generation.folder / "worker-1.log").read_text()
    (line,) = [line for line in log.splitlines() if line.startswith("SAW ")]
    found: dict[str, Any] = json.loads(line[4:])
    return found


def left(folder: Path) -> list[str]:
    """Job directories below the folder whose container is there, ended ones too."""
    command = ["podman", "ps", "--all", "--filter", "label=chexgenbench.job", "--format"]
    shown = '{{index .Labels "chexgenbench.job"}}'
    done = subprocess.run([*command, shown], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith(f"{folder.resolve()}/")]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


# One run, two kinds of place


def test_an_environment_that_clashes_with_ours_on_the_leaderboard(
    podman: Runtime, desk: Desk
) -> None:
    assert np.__version__.startswith("2.")
    done = desk.run("run", "-m", "oracle", "--plugin", EXAMPLE, "-m", "old-numpy", "--limit", "24")
    rows = desk.rows(
        "select model, value from leaderboard "
        "where metric = 'kid' and subset = 'overall' and status = 'ok'"
    )
    assert {row["model"] for row in rows} == {"oracle", "old-numpy"}, done.out
    made = [
        folder
        for folder in (desk.home / "runs" / "generations").iterdir()
        if json.loads((folder / "generation.json").read_text())["model"]["name"] == "old-numpy"
    ]
    summary = json.loads((made[0] / "summary.json").read_text())
    assert summary["versions"]["numpy"] == "1.26.4"
    image = np.asarray(Image.open(next((made[0] / "images").glob("*.png"))))
    stripes = np.flatnonzero(np.diff((image[60] == 255).astype(int)) == 1)
    assert len(stripes) == 1  # the major version of the numpy that drew it


def test_a_task_metric_finds_the_same_in_a_container(
    podman: Runtime, desk: Desk, tmp_path: Path
) -> None:
    """By numpy 1, from images that are staged for it."""
    plugin = tmp_path / "gap.py"
    plugin.write_text(GAP.replace('metric="task",', 'metric="task", environment="example",'))
    scores = "select value, ci_low, floor, excess, n_real, n_fake from scores where metric = 'gap'"
    found = []
    for executor in ("here", "container"):
        command = ("run", "-m", "noise", "--plugin", plugin, "--metric", "gap", "--limit", "6")
        done = desk.run(*command, "--executor", f"gap={executor}", "--extra-info", executor)
        assert "gap: worked" in done.out
        found.append(desk.rows(f"{scores} and extra_info = '{executor}'"))
    assert found[0] == found[1] and len(found[0]) == 1
    assert left(desk.home) == []


def test_the_same_images_as_in_this_process(bench: Bench) -> None:
    here = bench.plan("noise", count=40)
    there = bench.plan("noise", count=40)
    there = Generation(**{**vars(there), "folder": bench.folder / "there"})
    mine = here.run()
    theirs = bench.run(there)
    assert [row.sha256 for row in theirs.values()] == [row.sha256 for row in mine.values()]
    assert [row.batch for row in theirs.values()] == [row.batch for row in mine.values()]
    for row in theirs.values():
        same = (there.folder / row.path).read_bytes() == (here.folder / row.path).read_bytes()
        assert same, row.id
    assert left(bench.folder) == []


# What a worker sees


def test_no_network(saw: dict[str, Any]) -> None:
    assert saw["interfaces"] == ["lo"]
    assert all("Error" in str(each) or "gaierror" in str(each) for each in saw["network"])


def test_its_root_is_read_only(saw: dict[str, Any]) -> None:
    assert set(saw["write"].values()) <= {"OSError 30", "PermissionError 13"}, saw["write"]
    assert saw["write"]["/usr"] == "OSError 30"


def test_its_orders_are_read_only(saw: dict[str, Any]) -> None:
    assert saw["orders"] in ("OSError 30", "PermissionError 13")
    assert saw["unlink"] == "OSError 16"  # busy: it is a mount of its own


def test_it_is_not_root(saw: dict[str, Any]) -> None:
    uid, effective, group, groups = saw["uid"]
    assert uid == effective != 0
    assert group != 0
    assert 0 not in groups


def test_it_has_no_capability(saw: dict[str, Any]) -> None:
    assert set(saw["capabilities"].values()) == {"0" * 16}, saw["capabilities"]
    assert len(saw["capabilities"]) >= 4
    assert saw["no_new_privileges"] == "1"


@pytest.mark.parametrize("what", ["store", "run", "split", "home", "password", "socket"])
def test_it_cannot_read(what: str, saw: dict[str, Any], secrets: dict[str, Path]) -> None:
    assert saw["read"][str(secrets[what])] in ("FileNotFoundError 2", "PermissionError 13")


def test_it_reads_its_plugin_and_nothing_beside_it(saw: dict[str, Any]) -> None:
    read = {Path(path).name: result for path, result in saw["read"].items()}
    assert read["probe.py"] == len(PROBE.encode())
    assert read["beside.txt"] == "FileNotFoundError 2"


def test_it_knows_no_variable_and_no_process_of_ours(saw: dict[str, Any]) -> None:
    assert "CHEXGENBENCH_TEST_TOKEN" not in saw["environment"]
    assert saw["home"] == "/tmp"
    assert saw["processes"] < 5


def test_it_cannot_change_the_first_process(saw: dict[str, Any]) -> None:
    assert saw["first"] == "PermissionError 13"  # the same check as for ptrace


class Staging(Containers):
    """Containers that are given images staged for their worker."""

    def __init__(self, images: list[Path]) -> None:
        super().__init__(["cpu"], "example", "podman")
        self._images = images

    def start(self, folder: Path, job: Job, device: str, log: Path) -> Process:
        place = folder.with_name(f"{folder.name}.images")
        self.staged = staged(place, self._images)
        files = (*job.files, str(place))
        return super().start(folder, job.model_copy(update={"files": files}), device, log)


def test_it_reads_staged_images_that_nobody_else_reads(bench: Bench) -> None:
    patients = bench.folder / "patients"
    patients.mkdir(mode=0o700)
    image, shown = patients / "private.png", patients / "shown.png"
    image.write_bytes(b"pixels")
    image.chmod(0o600)
    shown.write_bytes(b"many pixels")
    shown.chmod(0o644)
    generation = bench.plan(count=1, act="look", paths="SEEN/0000000.png|SEEN/0000001.png")
    launcher = Staging([image, shown])
    before = os.umask(0o077)  # whoever closes all files by custom runs containers too
    try:
        generation.run(source=ModelSource(files=(bench.file,)), launcher=launcher)
    finally:
        os.umask(before)
    log = (generation.folder / "worker-1.log").read_text()
    (line,) = [line for line in log.splitlines() if line.startswith("SAW ")]
    assert list(json.loads(line[4:])["read"].values()) == [6, 11]
    assert image.stat().st_uid == shown.stat().st_uid == os.getuid()
    assert patients.stat().st_uid == os.getuid()


# What holds a worker


def test_too_much_memory_is_named(bench: Bench) -> None:
    error = bench.fail(bench.plan(count=1, act="memory"), limits=Limits(memory=300_000_000))
    assert "limit of memory" in error.message, error
    assert "--memory" in error.message
    assert left(bench.folder) == []


def test_no_more_processes_than_it_may_have(bench: Bench) -> None:
    generation = bench.plan(count=1, act="threads")
    error = bench.fail(generation, limits=Limits(processes=60))
    assert "can't start new thread" in error.message
    log = (generation.folder / "worker-1.log").read_text()
    assert 10 < int(log.split("THREADS ")[1].split()[0]) < 60


def test_a_gigabyte_of_output(bench: Bench) -> None:
    generation = bench.plan(count=1, act="print")
    assert len(bench.run(generation)) == 1
    log = generation.folder / "worker-1.log"
    assert log.stat().st_size < 3_000_000
    assert "bytes left out" in (text := log.read_text())
    assert text.endswith("the end\n")


def test_a_worker_that_hangs_is_ended_and_what_it_made_is_kept(bench: Bench) -> None:
    generation = bench.plan(act="hang")
    error = bench.fail(generation, timeout=12)
    assert "returned nothing for 12 s" in error.message
    assert sorted(read_manifest(generation.folder)) == ["r0", "r1"]
    assert left(bench.folder) == []


def test_a_worker_that_fills_the_disk(bench: Bench) -> None:
    generation = bench.plan(count=1, act="disk")
    error = bench.fail(generation)
    assert "GB into its job directory" in error.message
    assert left(bench.folder) == []
    assert not list(generation.folder.rglob("junk"))


def test_a_worker_that_fills_its_tmp_is_no_full_disk(bench: Bench) -> None:
    error = bench.fail(bench.plan(count=1, act="tmp"))  # an OSError would end the whole run
    assert "No space left on device" in error.message
    assert "/tmp" in error.message


def ended(folder: Path, script: str) -> int | None:
    """The code of a container whose runtime is that shell script."""
    running = containers._Container(["sh", "-c", script], folder / "log", [], folder, "sh")
    try:
        until(lambda: Process.poll(running) is not None)
        return running.poll()
    finally:
        running.stop()


@pytest.mark.parametrize("code", [125, 126, 127])
def test_a_container_that_has_started_could_be_started(tmp_path: Path, code: int) -> None:
    begun = "printf 'Emulate Docker CLI using podman.\\n\\002\\n'"
    assert ended(tmp_path, f"{begun}; echo out of luck; exit {code}") == 1
    with pytest.raises(UserError, match="sh cannot start a container: out of luck"):
        ended(tmp_path, f"echo out of luck; exit {code}")


# What is left of a command


def test_killed_and_started_again(podman: Runtime, desk: Desk, tmp_path: Path) -> None:
    """SIGKILL leaves no container, even of a worker that hears nothing; then it goes on."""
    bench = Bench(tmp_path)
    command = ["generate", "--plugin", bench.file, "-m", "probe", "--limit", "6"]
    process = desk.start(*command, "--set", "probe.act=slow")
    manifests = desk.home / "runs" / "generations"
    until(lambda: any(p.stat().st_size for p in manifests.glob("*/manifest.jsonl")), 120)
    assert len(left(desk.home)) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: left(desk.home) == [])
    (folder,) = manifests.iterdir()
    before = {path: path.stat().st_mtime_ns for path in (folder / "images").glob("*.png")}
    assert before
    desk.run(*command, "--set", "probe.act=slow")
    rows = read_manifest(folder)
    assert len(rows) == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert left(desk.home) == []


def test_a_worker_deaf_to_everything_ends_with_its_command(podman: Runtime, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; import test_containers;"
        "bench = test_containers.Bench(Path(sys.argv[1]));"
        "bench.run(bench.plan(act='hang'))"
    )
    paths = [str(Path(__file__).parent)]
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), *paths])
    manifest = bench.plan(act="hang").folder / "manifest.jsonl"
    until(lambda: manifest.is_file() and len(manifest.read_text().splitlines()) == 2, 120)
    assert len(left(tmp_path)) == 1
    process.kill()
    process.wait()
    until(lambda: left(tmp_path) == [])


def test_the_rest_of_the_run_stands(podman: Runtime, desk: Desk, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    done = desk.run(
        *("run", "-m", "noise", "--plugin", bench.file, "-m", "probe", "--limit", "24"),
        *("--set", "probe.act=die"),
        code=1,
    )
    assert "probe" in done.err
    assert "ended with exit code 7" in done.err
    assert {row["model"] for row in desk.rows("select distinct model from leaderboard")} == {
        "noise"
    }


# Bad input


def test_no_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="docker, podman and apptainer"):
        Containers(["cpu"], "example", None)
    with pytest.raises(UserError, match="podman is installed here"):
        find_runtime("podman")
    assert not containers.is_built("example", None)


def test_a_runtime_of_another_name() -> None:
    with pytest.raises(UserError, match="podmann"):
        find_runtime("podmann")


def test_an_image_that_is_not_built(podman: Runtime, desk: Desk, tmp_path: Path) -> None:
    folder = desk.home / "containers" / "lonely"
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text("")
    (folder / "Dockerfile").write_text("FROM scratch\n")
    plugin = tmp_path / "probe.py"
    plugin.write_text(PROBE.replace('environment="example"', 'environment="lonely"'))
    done = desk.run(
        *("generate", "--plugin", plugin, "-m", "probe", "--limit", "6"),
        *("--executor", "container", "--runtime", "podman"),
        code=2,
    )
    assert "'lonely' is not built" in done.err
    assert "chexgenbench containers build lonely" in done.err


def test_an_image_built_from_other_files(podman: Runtime, tmp_path: Path) -> None:
    from chexgenbench.home import Home

    home = Home(tmp_path)
    theirs = environments.find("example").folder
    shutil.copytree(theirs, tmp_path / "containers" / "example")
    assert containers.is_built("example", "podman", home)  # the same files elsewhere
    with (tmp_path / "containers" / "example" / "requirements.txt").open("a") as file:
        file.write("# one more\n")
    assert not containers.is_built("example", "podman", home)
    with pytest.raises(UserError, match="built from other files") as caught:
        Containers(["cpu"], "example", "podman", home)
    assert "chexgenbench containers build example" in str(caught.value.hint)


def test_a_daemon_that_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("docker") is None:
        pytest.skip("NO DAEMON IS TESTED: docker is not installed")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    containers._runtime.cache_clear()
    with pytest.raises(UserError, match="docker is installed and does not answer") as caught:
        find_runtime("docker")
    assert "nobody.sock" in caught.value.message


def test_a_build_that_fails(podman: Runtime, desk: Desk) -> None:
    folder = desk.home / "containers" / "broken"
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text("")
    (folder / "Dockerfile").write_text("ARG BASE=x\nFROM ${BASE}\nRUN echo out of luck && exit 3\n")
    base = base_image(dict(os.environ), desk.home)
    done = desk.run(
        *("containers", "build", "broken", "--base", base, "--runtime", "podman"), code=1
    )
    assert "'broken' cannot be built" in done.err
    assert "out of luck" in done.err


# What is built


def test_list(podman: Runtime, desk: Desk) -> None:
    rows = json.loads(desk.run("containers", "list", "--runtime", "podman", "--json").out)
    ready = [row for row in rows if row["name"] == "example" and row["state"] == "ready"]
    assert ready
    assert 100 < ready[0]["megabytes"] < 2000
    shown = desk.run("containers", "list", "--runtime", "podman").out
    assert "example" in shown
    assert "ready" in shown


def test_docker_over_the_socket_of_podman(
    podman: Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if shutil.which("docker") is None:
        pytest.skip("NO DOCKER IS TESTED: its command is not installed")
    socket = tmp_path / "docker.sock"
    service = subprocess.Popen(
        ["podman", "system", "service", "--time", "0", f"unix://{socket}"],
        stderr=subprocess.DEVNULL,
    )
    try:
        until(socket.exists)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{socket}")
        containers._runtime.cache_clear()
        bench = Bench(tmp_path)
        generation = bench.plan(count=2)
        launcher = Containers(["cpu"], "example", "docker")
        assert launcher.name == "container, docker"
        source = ModelSource(files=(bench.file,))
        assert len(generation.run(source=source, launcher=launcher)) == 2
        until(lambda: left(tmp_path) == [])
    finally:
        containers._runtime.cache_clear()
        service.terminate()
        service.wait()


# Command lines and mounts, as text


def job_of(*files: Path) -> GenerateJob:
    return GenerateJob(
        model="probe",
        source="",
        parameters={},
        context={},
        batch_size=1,
        n_requests=1,
        files=tuple(map(str, files)),
        limits=Limits(memory=10**9, processes=50),
    )


def image(id: str) -> containers.Image:
    return containers.Image("example", id, "", "", "", 0, "", ("/data",))


@pytest.mark.parametrize("kind", ["apptainer", "docker", "podman"])
def test_the_options_of_each_runtime(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """apptainer is not tried by these tests: what it is told is."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    runtime = Runtime(kind, kind, rootless=False)
    folder = Path("/work/a,b")
    mounts = [(folder, folder, True), (Path("/real"), Path("/w"), False)]
    given = (runtime, image("IMAGE"), "NAME", job_of(), folder, "cuda:1", mounts, (5, 6), 2)
    text = containers.command_of(*given)
    flat = " ".join(text)
    assert "--memory=1000000000" in text
    assert "--pids-limit=50" in text
    assert "OMP_NUM_THREADS=3" in flat
    assert text[-2:] == ["--device", "cuda:1"]
    assert any('"src=/work/a,b","dst=/work/a,b"' in each for each in text)
    read_only = "ro" if kind == "apptainer" else "readonly"
    assert f"--mount=type=bind,src=/real,dst=/w,{read_only}" in text
    assert "--network=none" in text
    gpu = {"apptainer": "--nv", "docker": "--gpus=all", "podman": "--device=nvidia.com/gpu=all"}
    assert gpu[kind] in text
    if kind == "apptainer":
        assert {"--containall", "--cleanenv", "--no-home", "--net", "--no-privs"} <= set(text)
    else:
        options = {"--read-only", "--user=5:6", "--cap-drop=ALL", "--pull=never", "--rm"}
        assert options <= set(text)
        assert any(each.startswith("--tmpfs=/data:") for each in text)


def test_a_file_of_a_hub_is_mounted_under_the_names_of_its_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "abc").write_text("weights")
    (snapshot / "model.bin").symlink_to("../../blobs/abc")
    alone = containers.mounts_of(job_of(snapshot / "model.bin"))
    assert alone == [(blobs / "abc", snapshot / "model.bin")]
    folder = containers.mounts_of(job_of(snapshot))
    assert (blobs / "abc", blobs / "abc") in folder
    assert (snapshot, snapshot) in folder
    (tmp_path / "w").symlink_to(snapshot)
    through = dict(map(reversed, containers.mounts_of(job_of(tmp_path / "w"))))
    assert through[tmp_path / "w"] == snapshot
    assert blobs / "abc" in through.values()


def test_what_a_path_leads_to_that_is_a_link_itself(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "model.bin").write_text("weights")
    (disk / "same.bin").symlink_to("model.bin")
    (tmp_path / "w").symlink_to(disk)
    (tmp_path / "w.bin").symlink_to(disk / "model.bin")
    found = containers.mounts_of(job_of(tmp_path / "w", tmp_path / "w.bin"))
    assert found == [(disk, tmp_path / "w"), (disk / "model.bin", tmp_path / "w.bin")]


@pytest.mark.parametrize("where", ["w", "models--a--b/snapshots/1"])
@pytest.mark.parametrize("target", ["store", "store/x.txt", "/etc/passwd"])
def test_a_link_out_of_a_folder_of_weights(tmp_path: Path, where: str, target: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x.txt").write_text("secret")
    folder = tmp_path / where / "part"
    folder.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").symlink_to(tmp_path / target)
    told = rf"{folder}/model\.bin is a link that leads out of its folder, to .*{target}"
    with pytest.raises(UserError, match=told):
        containers.mounts_of(job_of(tmp_path / where))
    if where != "w":  # where a file's own name is a link of whoever filled the folder
        with pytest.raises(UserError, match=told):
            containers.mounts_of(job_of(folder / "model.bin"))


def test_a_hub_whose_blobs_are_elsewhere(tmp_path: Path) -> None:
    """A folder of weights from anywhere may look like a hub's."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x.txt").write_text("secret")
    snapshot = tmp_path / "got" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (tmp_path / "got" / "blobs").symlink_to(tmp_path / "store")
    (snapshot / "model.bin").symlink_to("../../blobs/x.txt")
    with pytest.raises(UserError, match="leads out of its folder"):
        containers.mounts_of(job_of(snapshot))


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.bin.* is missing"):
        containers.mounts_of(job_of(tmp_path / "nothing.bin"))


def test_a_file_that_another_user_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "private.bin"
    path.write_text("")
    path.chmod(0o600)
    with pytest.raises(UserError, match="by its owner only"):
        containers.mounts_of(job_of(path), reader=os.getuid() + 1)
    assert containers.mounts_of(job_of(path), reader=os.getuid()) == [(path, path)]


def test_no_other_user_reads_what_is_staged(tmp_path: Path) -> None:
    image = tmp_path / "p.png"
    image.write_bytes(b"pixels")
    image.chmod(0o600)
    with folder_of_command(tmp_path / "jobs") as root:
        (copy,) = staged(root / "e.images", [image])
        assert [path.stat().st_mode & 0o077 for path in (root, copy.parent, copy)] == [0, 0, 0]
        assert copy.read_bytes() == b"pixels"


# Ray, as far as planning goes

PLANNED = """
import sys
from pathlib import Path
from types import SimpleNamespace

from chexgenbench.errors import UserError
from chexgenbench.home import Home
from chexgenbench.registry import load_registry
from chexgenbench.workflow.places import check_places

folder = Path(sys.argv[1])
plugin = load_registry([]).find("models", "noise")
(folder / "file").write_text("")
for shared, memory, device in [
    ("nosuch://name:word@host/folder", None, "cpu"),
    (str(folder / "file" / "below"), None, "cpu"),
    (None, 10**15, "cpu"),
    (None, None, "cuda:0"),
    (str(folder / "shared"), 10**8, "cpu"),
]:
    options = SimpleNamespace(
        executors=("ray",), address="local", home=Home(folder), workers=1, runtime=None,
        shared=shared, memory=memory,
    )
    try:
        check_places(options, [plugin], [device])
    except UserError as error:
        print(error.message.replace("\\n", " "))
    else:
        print("planned", list((folder / "shared").iterdir()))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_what_a_cluster_lacks_is_said_while_planning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLANNED, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    said = done.stdout.splitlines()
    assert len(said) == 5, done
    assert "nosuch" in said[0] and "word" not in done.stdout
    assert said[1].startswith(f"Nothing can be written to {tmp_path}/file/below: ")
    assert "may use 1000000.0 GB" in said[2]
    assert "no GPU for a worker" in said[3]
    assert said[4] == "planned []"
