"""Environments of their own: the thin worker, venvs from locks, and the folders for them."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from chexgenbench import environments
from chexgenbench.environments import FLOOR, find, state_of
from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.files import read_json, write_json
from chexgenbench.home import Home
from chexgenbench.jobs.job import GenerateJob, plain_context, write_generate_job
from chexgenbench.registry import load_registry
from chexgenbench.types import Context, Request
from desk import SCRIPT, Desk

ROOT = Path(__file__).resolve().parent.parent
CONTAINERS = ROOT / "containers"
FOLDERS = sorted(lock.parent.name for lock in CONTAINERS.glob("*/requirements.txt"))
PROJECT = tomllib.loads((CONTAINERS / "worker" / "pyproject.toml").read_text())["project"]
NEEDS = [Requirement(text) for text in PROJECT["dependencies"]]
MODULES = {"pillow": "PIL"}


# The thin distribution


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environments.build_worker_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_worker_and_not_the_application(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "chexgenbench/__init__.py",
        "chexgenbench/jobs/worker.py",
        "chexgenbench/jobs/generate.py",
        "chexgenbench/statistics/frechet.py",  # imported by a text
        "chexgenbench_plugins/models/llm_cxr.py",
        "chexgenbench_plugins/llm_cxr/vqgan.py",
        "chexgenbench_plugins/encoders/radiomics.py",
    ):
        assert wanted in names
    parts = {name.split("/")[1] for name in names if name.startswith("chexgenbench/")}
    assert not parts & {"cli", "workflow", "store", "report", "datasets", "executors", "scoring"}
    assert not [name for name in names if "/containers/" in name or "__pycache__" in name]


def test_two_builds_are_one_file(wheel: Path, tmp_path: Path) -> None:
    assert environments.build_worker_wheel(tmp_path).read_bytes() == wheel.read_bytes()


def _outside(path: Path) -> Iterator[str]:
    """Top modules that a source imports as it is imported itself, less our own and Python's."""
    waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
    while waiting:
        node = waiting.pop()
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
        tops = {name.partition(".")[0] for name in names}
        yield from tops - set(sys.stdlib_module_names) - {"chexgenbench", "chexgenbench_plugins"}


def test_the_jobs_and_the_models_need_what_is_declared() -> None:
    declared = {MODULES.get(need.name, need.name) for need in NEEDS}
    found = {
        name: set(_outside(path))
        for name, path in environments.worker_sources().items()
        if name.startswith(("chexgenbench/jobs/", "chexgenbench_plugins/models/"))
    }
    assert len(found) > 20
    assert {name: tops - declared for name, tops in found.items() if tops - declared} == {}


def test_it_runs_on_the_python_that_it_asks_for(wheel: Path, tmp_path: Path) -> None:
    """Nothing in it is newer than the floor, in syntax or in what it calls of the library."""
    floor = ".".join(map(str, FLOOR))
    assert PROJECT["requires-python"] == f">={floor}"
    zipfile.ZipFile(wheel).extractall(tmp_path)
    command = [SCRIPT.with_name("vermin"), f"-t={floor}-", "--eval-annotations", "--violations"]
    done = subprocess.run([*command, "--no-tips", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (tmp_path / "newer.py").write_text("from datetime import UTC\n")
    assert subprocess.run([*command, tmp_path], capture_output=True).returncode != 0


# Finding


def folder(place: Path, name: str, lock: str = "", smoke: str | None = None) -> Path:
    path = place / "containers" / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "requirements.txt").write_text(lock)
    if smoke is not None:
        (path / "smoke.py").write_text(smoke)
    return path


def test_the_users_own_comes_first(tmp_path: Path) -> None:
    assert find("radiomics", Home(tmp_path)).folder == CONTAINERS / "radiomics"
    mine = folder(tmp_path, "radiomics")
    found = find("radiomics", Home(tmp_path))
    assert (found.folder, found.dockerfile) == (mine, None)


def test_one_beside_a_plugins_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "theirs"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    info = tmp_path / "site" / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[chexgenbench]\ntheirs = theirs\n")
    theirs = folder(package, "old-torch")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert find("old-torch", Home(tmp_path)).folder == theirs


def test_an_unknown_name(desk: Desk) -> None:
    done = desk.run("env", "build", "radiomic", code=2)
    assert "Did you mean 'radiomics'?" in done.err
    assert "requirements.txt" in done.err
    for bad in ("../radiomics", "a/b", ".."):
        assert "Error" in desk.run("env", "remove", bad, code=2).err


# The folders


@pytest.mark.parametrize("name", FOLDERS)
def test_a_lock_is_whole(name: str) -> None:
    """Each package has a version and hashes, what a worker needs is there, no host is named."""
    text = (CONTAINERS / name / "requirements.txt").read_text()
    entries = re.findall(
        r"^([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", text, re.M
    )
    pins = {canonicalize_name(package): version for package, version, _ in entries}
    plain = [line for line in text.splitlines() if line and line[0] not in " #"]
    assert len(pins) == len(plain)
    assert not re.search(r"https?:|file:|--index|--find-links|/work/|/tmp/", text)
    for need in NEEDS:
        assert need.specifier.contains(pins[canonicalize_name(need.name)]), need
    for line in (CONTAINERS / name / "requirements.in").read_text().splitlines():
        if pin := line.partition("#")[0].strip():
            asked = Requirement(pin)
            assert asked.specifier.contains(pins[canonicalize_name(asked.name)], True), asked
    assert find(name).python == "3.11"
    assert find(name).packages == len(pins)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_dockerfile_keeps_the_rules(name: str) -> None:
    text = (CONTAINERS / name / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE=\S+\nFROM \$\{BASE\}( AS build)?$", text, re.M)
    assert "--require-hashes" in text
    assert "--no-index" in text
    assert re.search(r"^USER (?!root|0)\w+$", text, re.M)
    assert 'ENTRYPOINT ["chexgenbench-worker"]' in text
    assert (CONTAINERS / name / "smoke.py").is_file()


# Venvs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("home")
    shutil.copytree(CONTAINERS / "example", root / "containers" / "mine")
    return Home(root)


@pytest.fixture(scope="module")
def cache(home: Home) -> Path:
    """A cache with the environment `mine`: numpy 1.26.4 where we have numpy 2."""
    cache = home.root / "cache"
    try:
        environments.build(find("mine", home), cache)
    except ChexGenBenchError as error:
        if "does not answer" in (error.hint or ""):
            pytest.skip(f"NO ENVIRONMENT IS TESTED: no package index: {error.hint}")
        raise
    return cache


PROBE = """
import sys
import numpy
from chexgenbench import Model, ModelSpec, hookimpl

class Probe(Model):
    def generate(self, requests):
        assert numpy.__version__ == "1.26.4", numpy.__version__
        # pandas, where it is installed, is loaded by pyarrow itself.
        loaded = {"torch", "duckdb", "scipy", "chexgenbench.workflow"} & set(sys.modules)
        assert not loaded, loaded
        for request in requests:
            yield numpy.random.default_rng(request.seed).integers(0, 256, (64, 64), numpy.uint8)

@hookimpl
def chexgenbench_models():
    yield ModelSpec(name="probe", summary="a test", load=Probe, environment="mine")
"""


def write(place: Path, model: str) -> Path:
    place.mkdir()
    plugin = place / "probe.py"
    plugin.write_text(PROBE)
    wanted = [
        Request(id=f"s{i}", prompt_id=f"s{i}", prompt="Pleural effusion.", seed=i, size=64)
        for i in range(3)
    ]
    job = GenerateJob(
        model=model,
        source=load_registry([plugin]).models[model].source_hash(),
        plugins=(str(plugin),),
        parameters={},
        context=plain_context(Context(home=place, cache=place)),
        batch_size=2,
        n_requests=3,
    )
    write_generate_job(place, job, wanted)
    return place


@pytest.mark.slow
def test_a_worker_does_a_job_in_there(cache: Path, tmp_path: Path) -> None:
    """By its console script: the same images as here, though with another numpy."""
    there, here = write(tmp_path / "there", "noise"), write(tmp_path / "here", "noise")
    script = cache / "environments" / "mine" / "bin" / "chexgenbench-worker"
    done = subprocess.run([script, there], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = [sys.executable, "-P", "-m", "chexgenbench.jobs.worker", here]
    subprocess.run(ours, check=True, capture_output=True)
    made = sorted((there / "images").rglob("*.png"))
    assert len(made) == 3
    same = sorted((here / "images").rglob("*.png"))
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in same]
    (line,) = (there / "processes.jsonl").read_text().splitlines()
    versions = json.loads(line)["versions"]
    assert versions["numpy"] == "1.26.4"
    assert "chexgenbench-worker" in versions
    assert not {"torch", "duckdb", "chexgenbench"} & set(versions)


def test_a_plugins_file_works_in_there_and_nothing_heavy_is_loaded(
    cache: Path, tmp_path: Path
) -> None:
    jobs = write(tmp_path / "there", "probe")
    script = cache / "environments" / "mine" / "bin" / "chexgenbench-worker"
    done = subprocess.run([script, jobs], capture_output=True, text=True)
    assert done.returncode == 0, (jobs / "worker-0.error.json").read_text()
    assert len(list((jobs / "images").rglob("*.png"))) == 3


def test_a_model_works_in_its_environment_by_itself(home: Home, cache: Path) -> None:
    """`chexgenbench run` sends it there; where it is stale the command says so and what to do."""
    desk = Desk(home.root, cache)
    desk.run("env", "build", "mine")  # nothing to do, unless sources changed since the module began
    (home.root / "probe.py").write_text(PROBE)
    asked = ("--plugin", "probe.py", "--model", "probe", "--limit", "6")
    desk.run("generate", *asked)
    (line,) = {path.read_text() for path in home.generations.glob("*/processes.jsonl")}
    assert json.loads(line)["versions"]["numpy"] == "1.26.4"
    record = cache / "environments" / "mine" / "environment.json"
    known = read_json(record)
    try:
        write_json(record, known | {"worker": ""})
        said = desk.run("generate", *asked, code=2).err
        assert "The environment 'mine' was built from other files" in said
        assert "chexgenbench env build mine" in said
        (needs,) = json.loads(desk.run("models", "status", "probe", *asked[:2], "--json").out)
        assert needs["environment"] == "mine, stale"
        assert not needs["ready"]
    finally:
        write_json(record, known)


def test_a_job_of_another_release_is_refused_in_there(cache: Path, tmp_path: Path) -> None:
    jobs = write(tmp_path / "job", "noise")
    values = read_json(jobs / "job.json")
    write_json(jobs / "job.json", values | {"source": "0" * 64})
    script = cache / "environments" / "mine" / "bin" / "chexgenbench-worker"
    assert subprocess.run([script, jobs]).returncode == 1
    assert "has other code in the worker's environment" in str(
        read_json(jobs / "worker-0.error.json")["message"]
    )


def numpy_of(cache: Path) -> tuple[int, int]:
    (file,) = cache.glob("environments/mine/lib/python*/site-packages/numpy/__init__.py")
    return file.stat().st_ino, file.stat().st_mtime_ns


def test_a_stale_worker_is_noticed_and_alone_replaced(home: Home, cache: Path) -> None:
    record = cache / "environments" / "mine" / "environment.json"
    before = numpy_of(cache)
    assert state_of("mine", cache, home) == "ready"
    write_json(record, read_json(record) | {"worker": "of another release"})
    assert state_of("mine", cache, home) == "stale"
    with pytest.raises(UserError, match="built from other files") as caught:
        environments.python_of("mine", cache, home)
    assert caught.value.hint == "Build it again: chexgenbench env build mine"
    said: list[str] = []
    python = environments.build(find("mine", home), cache, say=said.append)
    assert "installing the worker of this release" in said[0]
    assert environments.python_of("mine", cache, home) == python
    assert numpy_of(cache) == before
    environments.build(find("mine", home), cache, say=said.append)
    assert said[-1] == "mine is ready"


def test_a_changed_lock_is_noticed_and_a_failed_build_leaves_the_old_one(
    home: Home, cache: Path
) -> None:
    mine = find("mine", home)
    lock = mine.lock.read_text()
    before = numpy_of(cache)
    try:
        mine.lock.write_text(lock.replace("--hash=sha256:", "--hash=sha256:" + "0" * 64 + " #"))
        assert state_of("mine", cache, home) == "stale"
        mine.lock.write_text(re.sub("sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, lock))
        with pytest.raises(ChexGenBenchError, match="pip failed") as caught:
            environments.build(mine, cache)
        assert "DO NOT MATCH THE HASHES" in (caught.value.hint or "")
    finally:
        mine.lock.write_text(lock)
    assert numpy_of(cache) == before
    assert state_of("mine", cache, home) == "ready"
    assert len(list((cache / "environments").glob(".mine-*"))) == 1


def test_a_failed_smoke_test_leaves_the_old_one(home: Home, cache: Path) -> None:
    mine = find("mine", home)
    smoke = mine.folder / "smoke.py"
    text = smoke.read_text()
    record = cache / "environments" / "mine" / "environment.json"
    known = read_json(record)
    try:
        smoke.write_text("raise SystemExit('the moon is full')")
        write_json(record, known | {"worker": ""})
        with pytest.raises(ChexGenBenchError, match=r"smoke test of 'mine' failed") as caught:
            environments.build(mine, cache)
        assert "the moon is full" in (caught.value.hint or "")
        assert state_of("mine", cache, home) == "stale"
    finally:
        smoke.write_text(text)
        write_json(record, known)


def test_what_the_worker_needs_must_be_in_the_lock(tmp_path: Path) -> None:
    """An empty lock: what is missing is named, nothing is brought from an index."""
    folder(tmp_path, "bare")
    with pytest.raises(ChexGenBenchError) as caught:
        environments.build(find("bare", Home(tmp_path)), tmp_path / "cache")
    assert "No matching distribution found for filelock" in (caught.value.hint or "")
    assert state_of("bare", tmp_path / "cache", Home(tmp_path)) == "missing"


def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, "far", "pluggy==1.5.0 --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ChexGenBenchError, match="pip failed") as caught:
        environments.build(find("far", Home(tmp_path)), tmp_path / "cache")
    assert "The package index does not answer" in (caught.value.hint or "")


def test_an_old_python_and_none(tmp_path: Path) -> None:
    folder(tmp_path, "bare")
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\necho 3.9.2\n")
    old.chmod(0o755)
    bare = find("bare", Home(tmp_path))
    with pytest.raises(UserError, match=r"is Python 3\.9\.2, and a worker needs 3\.10 or newer"):
        environments.build(bare, tmp_path / "cache", str(old))
    with pytest.raises(UserError, match="There is no Python 'python9'"):
        environments.build(bare, tmp_path / "cache", "python9")
    folder(tmp_path, "ancient", "# Locked for Python 3.4\n")
    with pytest.raises(UserError, match=r"is for Python 3\.4, which is not installed"):
        environments.build(find("ancient", Home(tmp_path)), tmp_path / "cache")


@pytest.mark.slow
def test_a_kill_leaves_nothing_half(desk: Desk, tmp_path: Path) -> None:
    """SIGKILL while the smoke test runs, when all is installed; the next command clears it away."""
    shutil.copytree(CONTAINERS / "example", desk.home / "containers" / "mine")
    smoke = desk.home / "containers" / "mine" / "smoke.py"
    note = tmp_path / "running"
    code = "import os, pathlib, time\n"
    code += f"pathlib.Path({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    smoke.write_text(code)
    process = desk.start("env", "build", "mine")
    deadline = time.monotonic() + 300
    while (
        not (note.exists() and note.read_text())
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    if process.poll() is not None:
        pytest.skip("NO KILL IS TESTED: the build ended by itself, so there is no package index")
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(int(note.read_text()), signal.SIGKILL)  # the smoke test itself, which outlives it
    environments_ = desk.cache / "environments"
    assert not (environments_ / "mine").exists()
    (half,) = environments_.glob(".mine-*")
    assert "mine         missing" in desk.run("env", "list", COLUMNS="200").out
    smoke.write_text("")
    built = desk.run("env", "build", "mine").out.strip()
    assert built == str(environments_ / "mine" / "bin" / "python")
    assert not half.exists()
    rows = {row["name"]: row for row in json.loads(desk.run("env", "list", "--json").out)}
    assert rows["mine"]["venv"] == "ready"
    desk.run("env", "remove", "mine")
    assert [path.name for path in environments_.iterdir()] == [".mine.lock"]
    assert "There is no venv of 'mine'" in desk.run("env", "remove", "mine", code=2).err
