"""Environments of plugins that cannot share ours: ``containers/NAME``, and a venv of its lock.

A worker works in there with a distribution of its own, ``chexgenbench-worker``: the modules of this
one that a worker imports, and the built-in plugins. It is built from the files that run here, so
that both sides are of one release.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from chexgenbench.errors import ChexGenBenchError, UserError, unknown_name
from chexgenbench.files import file_lock, read_json, sha256_file, write_json
from chexgenbench.home import Home, interpreter
from chexgenbench.registry import imports_of

LOCK = "requirements.txt"
RECORD = "environment.json"
FORMAT = 1
SECONDS_BETWEEN_LINES = 10.0

FLOOR = (3, 10)
"""The oldest Python of a worker: 3.9 has no keyword-only dataclasses, and its support has ended."""

State = Literal["missing", "ready", "stale", "by hand"]

_PLATFORM, _PLUGINS = "chexgenbench", "chexgenbench_plugins"
_WORKER = f"{_PLATFORM}.jobs.worker"
_SERVER = f"{_PLATFORM}.jobs.serve"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Environment:
    """A folder that says what a plugin's environment holds.

    Attributes:
        lock: its packages, each with version and hashes, as pip reads them.
        dockerfile: None where it is made as a venv only.
    """

    name: str
    folder: Path
    lock: Path
    dockerfile: Path | None

    @property
    def smoke(self) -> Path | None:
        """The script that shows, run in there, that its packages work."""
        path = self.folder / "smoke.py"
        return path if path.is_file() else None

    @property
    def packages(self) -> int:
        """How many packages the lock holds."""
        return len(re.findall(r"^[A-Za-z0-9].*==", self.lock.read_text("utf-8"), re.MULTILINE))

    @property
    def python(self) -> str | None:
        """The Python that the lock is for, such as ``3.11``; None where it does not say."""
        head = self.lock.read_text("utf-8")[:2000]
        found = re.search(r"^#.*Python (\d+\.\d+)", head, re.MULTILINE)
        return found[1] if found else None


def find(name: str, home: Home | None = None) -> Environment:
    """The environment of that name: the user's own before one that came with a plugin.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    known = known_environments(home)
    if name not in known:
        error = unknown_name("environment", name, known)
        places = ", ".join(str(place) for place in _places(home or Home.find()))
        error.hint = f"{error.hint} One is a folder with a {LOCK}, in: {places}"
        raise error
    return known[name]


def known_environments(home: Home | None = None) -> dict[str, Environment]:
    """All environments by name: in ``<home>/containers``, beside plugins' packages, built in."""
    found: dict[str, Environment] = {}
    for place in _places(home or Home.find()):
        for lock in sorted(place.glob(f"*/{LOCK}")):
            folder, dockerfile = lock.parent, lock.parent / "Dockerfile"
            if _NAME.fullmatch(folder.name):
                has = dockerfile if dockerfile.is_file() else None
                found.setdefault(
                    folder.name, Environment(folder.name, folder.resolve(), lock.resolve(), has)
                )
    return dict(sorted(found.items()))


def _places(home: Home) -> list[Path]:
    places = [home.root / "containers"]
    for entry in entry_points(group=_PLATFORM):
        with suppress(ImportError, ValueError):
            spec = find_spec(entry.module.partition(".")[0])
            if spec is not None and spec.origin is not None:
                places.append(Path(spec.origin).parent / "containers")
    places.append(_built_in())
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def _built_in() -> Path:
    here = Path(__file__).resolve()
    inside_wheel = here.parents[1] / _PLUGINS / "containers"
    return inside_wheel if inside_wheel.is_dir() else here.parents[2] / "containers"


# The thin distribution


def build_worker_wheel(out: Path) -> Path:
    """Builds the wheel of ``chexgenbench-worker`` into the folder `out`.

    Raises:
        ChexGenBenchError: it could not be built.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="chexgenbench-worker-") as name:
        stage, wheel = Path(name, "source"), Path(name, "wheel")
        for relative, path in worker_sources().items():
            target = stage / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        _call(
            [sys.executable, "-P", "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheel)],
            "The worker's wheel cannot be built",
            folder=stage,
        )
        (built,) = wheel.glob("*.whl")
        return Path(shutil.copyfile(built, out / built.name))


@cache
def worker_hash() -> str:
    """SHA-256 of the sources of ``chexgenbench-worker``: with others, what was built is stale."""
    code = hashlib.sha256()
    for relative, path in sorted(worker_sources().items()):
        content = path.read_bytes()
        code.update(f"{relative}\n{len(content)}\n".encode() + content)
    return code.hexdigest()


@cache
def worker_sources() -> dict[str, Path]:
    """The files of ``chexgenbench-worker``: path in its source to the file here.

    They are the built-in plugins, the worker, and what both import of the platform, inside
    functions too, with all statistics, which are imported by texts; what is imported for the type
    checker only is left out.
    """
    files: dict[str, Path] = {}
    for folder in _plugin_folders():
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(folder).as_posix()
            if not relative.startswith("containers/"):  # there in a wheel
                files.setdefault(f"{_PLUGINS}/{relative}", path)
    waiting = [_WORKER, _SERVER]
    waiting += [name for path in files.values() for name in imports_of(path.read_bytes(), _PLUGINS)]
    statistics = Path(__file__).parent.glob("statistics/*.py")
    waiting += [f"{_PLATFORM}.statistics.{path.stem}" for path in statistics]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name.partition(".")[0] != _PLATFORM:
            continue
        seen.add(name)
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # Python imports the packages around it first
        file = _module_file(name)
        if file is not None:
            files[f"{_PLATFORM}/{file.relative_to(Path(__file__).parent).as_posix()}"] = file
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting += imports_of(file.read_bytes(), package)
    return files | {"pyproject.toml": _built_in() / "worker" / "pyproject.toml"}


def _plugin_folders() -> list[Path]:
    paths: Sequence[str] = importlib.import_module(_PLUGINS).__path__
    return [Path(path) for path in paths if Path(path).is_dir()]


def _module_file(name: str) -> Path | None:
    base = Path(__file__).parent.joinpath(*name.split(".")[1:])
    found = [path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()]
    return found[0] if found else None


# Virtual environments


def state_of(name: str, cache: Path, home: Home | None = None) -> State:
    """Whether the venv of that name is there and made from the files that are here now.

    One without a record was made by hand: whoever made it looks after it.
    """
    if interpreter(cache, name) is None:
        return "missing"
    record = _record(_venv(cache, name))
    if record is None:
        return "by hand"
    known = known_environments(home).get(name)
    lock = sha256_file(known.lock) if known is not None else record.get("lock")
    now = {"format": FORMAT, "lock": lock, "worker": worker_hash()}
    return "ready" if record | now == record else "stale"


def python_of(name: str | None, cache: Path, home: Home | None = None) -> Path | None:
    """The Python of an environment's venv; None where there is no venv, or no environment.

    Raises:
        UserError: it is stale.
    """
    if name is None:
        return None
    if state_of(name, cache, home) == "stale":
        raise UserError(
            f"The environment {name!r} was built from other files than those that are here now.",
            hint=f"Build it again: chexgenbench env build {name}",
        )
    return interpreter(cache, name)


def build(
    environment: Environment,
    cache: Path,
    python: str | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Path:
    """Makes the venv of an environment, and returns its Python.

    It is made beside the one that is there and takes its place when its smoke test has passed, so
    that a kill leaves the old one. Where the worker alone is stale, it alone is replaced.

    Args:
        python: the Python that it is made with; None looks for the one that the lock is for.
        say: told a line about each step.

    Raises:
        UserError: no such Python.
        ChexGenBenchError: pip failed, for want of network or else, or the smoke test did.
    """
    from filelock import Timeout

    base = _python(environment, python)
    version = _version(base)
    folder = cache / "environments"
    folder.mkdir(parents=True, exist_ok=True)
    lock = file_lock(folder / f".{environment.name}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        say("another command builds it; waiting")
        held = lock.acquire()
    with held:
        current = _venv(cache, environment.name)
        wanted = {
            "format": FORMAT,
            "lock": sha256_file(environment.lock),
            "worker": worker_hash(),
            "python": version,
        }
        found = _record(current)
        if found == wanted:
            say(f"{environment.name} is ready")
        elif found is not None and found | {"worker": wanted["worker"]} == wanted:
            say("its packages are there; installing the worker of this release")
            write_json(current / RECORD, wanted | {"worker": ""})
            _install_worker(current / "bin" / "python")
            _smoke(environment, current / "bin" / "python", say)
            write_json(current / RECORD, wanted)
        else:
            _build_aside(environment, current, base, wanted, say)
    return current / "bin" / "python"


def remove(name: str, cache: Path) -> bool:
    """Removes the venv of that name; whether there was one.

    Raises:
        UserError: that is no name of an environment.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name of an environment.")
    current = _venv(cache, name)
    there = current.is_symlink() or current.exists()
    _discard(current)
    for leftover in _asides(current):
        shutil.rmtree(leftover)
    return there


def _venv(cache: Path, name: str) -> Path:
    return cache / "environments" / name


def _asides(current: Path) -> list[Path]:
    """Folders that hold, or were to hold, what the link `current` names."""
    ours = re.compile(rf"\.{re.escape(current.name)}-[a-z0-9_]{{8}}")
    found = current.parent.glob(f".{current.name}-*")
    return [path for path in found if ours.fullmatch(path.name)]


def _record(folder: Path) -> dict[str, object] | None:
    try:
        record = read_json(folder / RECORD)
    except UserError:
        return None
    return record if isinstance(record, dict) else None


def _build_aside(
    environment: Environment,
    current: Path,
    base: str,
    record: dict[str, object],
    say: Callable[[str], None],
) -> None:
    """A venv cannot be moved (its scripts name it), so the name is a link to its folder."""
    for leftover in _asides(current):
        if leftover != current.resolve():
            shutil.rmtree(leftover)
    aside = Path(tempfile.mkdtemp(prefix=f".{current.name}-", dir=current.parent))
    aside.chmod(0o755)
    try:
        say(f"making a venv with Python {record['python']}")
        _call([base, "-I", "-m", "venv", str(aside)], "The venv cannot be made")
        python = aside / "bin" / "python"
        say(f"installing {environment.packages} packages of {environment.lock}")
        _pip(python, ["--require-hashes", "-r", str(environment.lock)], say)
        _install_worker(python)
        _smoke(environment, python, say)
        write_json(aside / RECORD, record)
        link = aside / "link"
        link.symlink_to(aside.name)  # as seen from beside it, where it is put
        old = current.resolve() if current.is_symlink() else None
        if old is None:
            _discard(current)
        link.replace(current)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _discard(current: Path) -> None:
    """Removes a venv: the name first, so that a kill leaves nothing half under it."""
    if current.is_symlink():
        folder = current.resolve()
        current.unlink()
        if folder.parent == current.parent.resolve():
            shutil.rmtree(folder, ignore_errors=True)
    elif current.exists():
        away = Path(tempfile.mkdtemp(prefix=f".{current.name}-", dir=current.parent))
        current.rename(away / current.name)
        shutil.rmtree(away)


def _install_worker(python: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="chexgenbench-") as name:
        wheel = build_worker_wheel(Path(name))
        # Without an index: what the worker needs must be in the lock, or it is named here.
        _pip(python, ["--no-index", "--force-reinstall", "--no-deps", str(wheel)])
        _pip(python, ["--no-index", str(wheel)])


def _smoke(environment: Environment, python: Path, say: Callable[[str], None]) -> None:
    if environment.smoke is None:
        return
    say(f"running {environment.smoke.name}")
    _call(
        [str(python), "-I", str(environment.smoke)],
        f"The smoke test of {environment.name!r} failed",
        folder=environment.folder,
    )


def _python(environment: Environment, named: str | None) -> str:
    if named is not None:
        found = shutil.which(named)
        if found is None:
            raise UserError(f"There is no Python {named!r}.", hint="Name its file: --python FILE.")
        return found
    wanted = environment.python
    if wanted is None or wanted == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    found = shutil.which(f"python{wanted}")
    if found is None:
        raise UserError(
            f"The lock of {environment.name!r} is for Python {wanted}, which is not installed.",
            hint=f"Install it and name it by --python, or, in a container: "
            f"chexgenbench containers build {environment.name}",
        )
    return found


def _version(python: str) -> str:
    code = "import sys; print('.'.join(map(str, sys.version_info[:3])))"
    version = _call([python, "-I", "-c", code], f"{python} is no Python").strip()
    if tuple(map(int, version.split(".")[:2])) < FLOOR:
        raise UserError(
            f"{python} is Python {version}, and a worker needs {FLOOR[0]}.{FLOOR[1]} or newer.",
            hint="Name another one by --python.",
        )
    return version


_NO_NETWORK = re.compile(
    "Failed to establish a new connection|Temporary failure in name resolution|"
    "Name or service not known|Network is unreachable|Could not fetch URL|timed out|"
    r"\(from versions: none\)$"
)


def _pip(
    python: Path, arguments: Sequence[str], say: Callable[[str], None] = lambda _text: None
) -> None:
    command = [str(python), "-I", "-m", "pip", "install", "--no-input", "--progress-bar=off"]
    options = ["--disable-pip-version-check", "--no-warn-script-location"]
    _call([*command, *options, *arguments], "pip failed", say=say)


def _call(
    command: Sequence[str],
    fault: str,
    *,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> str:
    """What a command prints.

    Raises:
        ChexGenBenchError: it failed; its last lines say why.
    """
    environment = {key: os.environ[key] for key in os.environ if not key.startswith("PYTHON")}
    code, lines = follow(command, say, folder=folder, environment=environment)
    if code == 0:
        return "\n".join(lines)
    told = [line for line in lines if line.strip()]
    errors = [line for line in told if line.startswith("ERROR:")] or told
    hint = "\n".join(errors[-5:])
    if "--no-index" not in command and any(_NO_NETWORK.search(line) for line in told):
        hint += (
            "\nThe package index does not answer, or has none of it: build where there is network, "
            "or from a folder of wheels, PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER."
        )
    raise ChexGenBenchError(f"{fault} (exit code {code}).", hint=hint)


def follow(
    command: Sequence[str],
    say: Callable[[str], None],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Runs a command that takes long, and tells of its steps; its exit code and its lines.

    It is killed when this process is interrupted. Told are lines that begin with STEP, as a build
    of an image prints them, and of the others one now and then.
    """
    lines: list[str] = []
    last = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                news = bool(line.strip()) and not line.startswith("WARNING")
                due = time.monotonic() - last > SECONDS_BETWEEN_LINES
                if news and (due or line.upper().startswith("STEP ")):
                    say(line.strip()[:200])
                    last = time.monotonic()
        except BaseException:
            process.kill()
            raise
    return process.returncode, lines
