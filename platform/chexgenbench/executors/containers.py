"""Workers in containers: nothing of the machine is theirs but the job directory.

docker, podman and apptainer are driven by their commands. What a host needs beyond that (another
OCI runtime, SELinux off for mounts, a proxy) belongs into the runtime's own configuration, such as
the file that CONTAINERS_CONF names.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from chexgenbench import environments
from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault, unknown_name
from chexgenbench.executors.launch import LITTLE, Process, disk_fault, last_line
from chexgenbench.files import digest, sha256_file
from chexgenbench.home import Home
from chexgenbench.jobs.job import DISK_FAULT, Job, stage_of
from chexgenbench.jobs.waiting import WORKER

RUNTIMES = ("docker", "podman", "apptainer", "singularity")

APP = "app"
"""The name of the application's own image, which holds what this environment holds."""

WORKER_UID = 64_198
"""Who a worker is where the command is root's: nobody's number on most machines."""

TMP_BYTES = 1_000_000_000
"""What a worker may hold in /tmp, which is memory."""

PROCESSES = 2048
"""Threads and processes of a worker, where the job does not say."""

_IMAGE = "localhost/chexgenbench-"
_LABEL = "chexgenbench."
_ANSWER = 60.0
"""Seconds that a runtime may take to answer a question."""

_BEFORE = 1_000_000
"""Bytes within which a runtime has said what it has to say before a container starts."""

_PASSED = (
    # The number of threads decides the last bit of some images; the others number the GPUs.
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
)

_BEGUN = b"\x02\n"
"""The first that a container says once it has started: a line that shows nothing."""

_SUPERVISOR = f"""\
import ctypes, os, subprocess, sys, threading
if ctypes.CDLL(None).prctl(4, 0, 0, 0, 0):  # PR_SET_DUMPABLE: what no other process looks into
    sys.exit("the container's first process cannot be closed to its worker")
os.write(1, {_BEGUN!r})
def watch():
    while os.read(0, 4096):
        pass
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
worker = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.DEVNULL)
pid = 0
while pid != worker.pid:
    pid, status = os.wait()
code = os.waitstatus_to_exitcode(status)
def killed_for_memory():
    for name in ("memory.events", "memory/memory.oom_control"):
        try:
            with open("/sys/fs/cgroup/" + name) as file:
                counts = dict(line.split() for line in file)
        except OSError:
            continue
        return int(counts.get("oom_kill", 0)) > 0
    return False
if code == -9 and killed_for_memory():
    print("killed, because it took more than its limit of memory; --memory gives more")
elif code - {DISK_FAULT} in (5, 28, 30, 122):
    what = os.strerror(code - {DISK_FAULT})
    print(f"{{what}}; its /tmp holds {TMP_BYTES // 10**6} MB of memory")
sys.stdout.flush()
os._exit(128 - code if code < 0 else 1 if 125 <= code <= 127 else code)
"""
"""The container's first process. The kernel ends all others with it, and none of them can kill or
change it, so a worker that hangs does not outlive the command, and no worker says what the codes
125 to 127 say, which are the runtime's own."""


@dataclass(frozen=True)
class Runtime:
    """A command that runs containers, and answers.

    Attributes:
        kind: whose options it has.
        rootless: whether its root is not the machine's.
    """

    command: str
    kind: Literal["docker", "podman", "apptainer"]
    rootless: bool

    def ask(self, *arguments: str) -> str:
        """What it prints.

        Raises:
            UserError: it fails; its last line says why.
        """
        return _ask([self.command, *arguments])


@dataclass(frozen=True)
class Image:
    """An image that `build` made.

    Attributes:
        id: how the runtime finds it: an image id, or a file.
        source: hash of the files that it was built from.
        base: the image that it was built on, as it was named, and its id then (empty: not known).
        size: in bytes.
        created: a date and time, ISO 8601.
        volumes: folders that the image would have an own writable place for.
    """

    environment: str
    id: str
    source: str
    base: str
    base_id: str
    size: int
    created: str
    volumes: tuple[str, ...] = ()


def find_runtime(named: str | None = None) -> Runtime:
    """The runtime of that name, or the first that is installed and answers.

    Raises:
        UserError: there is none, or it does not answer.
    """
    if named is not None and named not in RUNTIMES:
        raise unknown_name("container runtime", named, RUNTIMES)
    looked_for = RUNTIMES if named is None else (named,)
    installed = [command for command in looked_for if shutil.which(command) is not None]
    refusals = []
    for command in installed:
        try:
            return _runtime(command)
        except UserError as error:
            refusals.append(error)
    if refusals:
        said = "\n".join(error.message for error in refusals)
        raise UserError(said, hint="Start its service, or name another one: --runtime.")
    what = f"{named} is" if named else "None of docker, podman and apptainer is"
    raise UserError(
        f"{what} installed here, so no container can run.",
        hint="Install one; or use a venv: chexgenbench env build NAME",
    )


@cache
def _runtime(command: str) -> Runtime:
    version = _ask([command, "--version"]).lower()
    if command in ("apptainer", "singularity"):
        return Runtime(command, "apptainer", True)
    if "podman" in version:  # also where it goes by the name of docker
        rootless = _ask([command, "info", "--format", "{{.Host.Security.Rootless}}"])
        return Runtime(command, "podman", rootless.strip() == "true")
    said = _ask([command, "info", "--format", "{{json .SecurityOptions}}"])
    return Runtime(command, "docker", "name=rootless" in said)


def _ask(command: Sequence[str]) -> str:
    done = _run(command)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1] if lines else f"exit code {done.returncode}"
        raise UserError(f"{command[0]} is installed and does not answer: {said}")
    return done.stdout


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    fault = f"{command[0]} is installed and does not answer"
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{fault} within {_ANSWER:.0f} s.") from error
    except OSError as error:
        raise UserError(f"{fault}: {error.strerror}.") from error


# Images


def is_built(environment: str, runtime: str | None, home: Home | None = None) -> bool:
    """Whether a container of that environment could run now."""
    try:
        return _newest(find_runtime(runtime), environment, home) is not None
    except UserError:
        return False


def source_of(environment: str, home: Home | None = None) -> str:
    """Hash of the files that an image is built from.

    Raises:
        UserError: no such environment, or it has no Dockerfile.
    """
    if environment == APP:
        root = _checkout()
        return digest({name: sha256_file(root / name) for name in _app_files(root)})
    folder = _described(environment, home).folder
    files = {str(path.relative_to(folder)): sha256_file(path) for path in _context(folder)}
    return digest({"files": files, "worker": environments.worker_hash()})


def images(runtime: Runtime, environment: str | None = None) -> list[Image]:
    """What was built, of one environment or all; the newest first."""
    if runtime.kind == "apptainer":
        found = [_image_of_file(path) for path in _sif_folder().glob("*.sif")]
    else:
        label = f"label={_LABEL}environment" + (f"={environment}" if environment else "")
        ids = runtime.ask("images", "--filter", label, "--quiet", "--no-trunc").split()
        facts = json.loads(runtime.ask("image", "inspect", *dict.fromkeys(ids))) if ids else []
        found = [_image_of_facts(each) for each in facts]
    kept = [image for image in found if environment in (None, image.environment)]
    return sorted(kept, key=lambda image: image.created, reverse=True)


def is_current(runtime: Runtime, image: Image, home: Home | None = None) -> bool:
    """Whether the files and the base that an image was built from are those of now."""
    try:
        now = source_of(image.environment, home)
    except UserError:
        return False
    if runtime.kind == "apptainer":
        return now.startswith(image.source)
    if now != image.source:
        return False
    return not image.base_id or _image_id(runtime, image.base) in (None, image.base_id)


def build(
    environment: str,
    runtime: Runtime,
    *,
    base: str | None = None,
    arguments: Sequence[str] = (),
    home: Home | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Image:
    """Builds the image of an environment.

    Args:
        base: the image that it is built on; None is the one that its Dockerfile names.
        arguments: further ones of the build, ``KEY=VALUE``.
        say: told a line about each step.

    Raises:
        UserError: no such environment, or it has no Dockerfile.
        ChexGenBenchError: the build failed; its last lines say why.
    """
    source = source_of(environment, home)
    if runtime.kind == "apptainer":
        return _convert(environment, source, runtime, base, arguments, home, say)
    with tempfile.TemporaryDirectory(prefix="chexgenbench-") as name:
        if environment == APP:
            context = _checkout()
            dockerfile = context / "Dockerfile"
        else:
            context = Path(name)
            found = _described(environment, home)
            for path in _context(found.folder):
                target = context / path.relative_to(found.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            environments.build_worker_wheel(context / "worker")
            dockerfile = context / "Dockerfile"
        on = base or _default_base(dockerfile)
        base_id = _image_id(runtime, on) or ""
        tag = f"{_IMAGE}{environment}:{digest([source, on, base_id, *arguments])[:12]}"
        labels = {"environment": environment, "source": source, "base": on, "base-id": base_id}
        command = [runtime.command, "build", "--file", str(dockerfile), "--tag", tag]
        command += [f"--label={_LABEL}{key}={value}" for key, value in labels.items()]
        command += [f"--build-arg=BASE={base}"] if base else []
        command += [f"--build-arg={argument}" for argument in arguments]
        _do([*command, str(context)], f"The image of {environment!r} cannot be built", say)
    if environment != APP:
        _smoke(_described(environment, home), tag, runtime, say)
    (facts,) = json.loads(runtime.ask("image", "inspect", tag))
    return _image_of_facts(facts)


def _smoke(
    environment: environments.Environment,
    tag: str,
    runtime: Runtime,
    say: Callable[[str], None],
) -> None:
    """Runs the environment's smoke test in its image, which is removed where that fails."""
    if environment.smoke is None:
        return
    say(f"running {environment.smoke.name}")
    there = Path("/environment")
    command = [runtime.command, "run", "--rm", "--pull=never", "--network=none"]
    command += _mount_options([(environment.folder, there, False)], "readonly")
    command += [f"--workdir={there}", "--entrypoint=python", tag, "-I", environment.smoke.name]
    try:
        _do(command, f"The smoke test of {environment.name!r} failed", say)
    except ChexGenBenchError:
        _run([runtime.command, "rmi", tag])
        raise


def remove(environment: str, runtime: Runtime) -> int:
    """Removes the images of an environment, stale ones too; how many there were.

    Raises:
        UserError: one is in use.
    """
    found = images(runtime, environment)
    for image in found:
        if runtime.kind == "apptainer":
            Path(image.id).unlink()
        else:
            runtime.ask("rmi", image.id)
    return len(found)


def known(home: Home | None = None) -> list[str]:
    """The names that `build` takes."""
    found = environments.known_environments(home).values()
    names = [each.name for each in found if each.dockerfile is not None]
    with suppress(UserError):
        _checkout()
        names.append(APP)
    return sorted(names)


def _newest(runtime: Runtime, environment: str, home: Home | None) -> Image | None:
    found = images(runtime, environment)
    return next((image for image in found if is_current(runtime, image, home)), None)


def _needed(runtime: Runtime, environment: str, home: Home | None) -> Image:
    source_of(environment, home)
    found = _newest(runtime, environment, home)
    if found is not None:
        return found
    there = bool(images(runtime, environment))
    state = "was built from other files than those that are here now" if there else "is not built"
    raise UserError(
        f"The container image of {environment!r} {state} ({runtime.command}).",
        hint=f"Build it: chexgenbench containers build {environment}",
    )


def _described(name: str, home: Home | None) -> environments.Environment:
    found = environments.find(name, home)
    if found.dockerfile is None:
        raise UserError(
            f"The environment {name!r} has no Dockerfile in {found.folder}.",
            hint=f"Without a container: chexgenbench env build {name}",
        )
    return found


def _context(folder: Path) -> list[Path]:
    """The files that a build sees, less those for people."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if path.suffix not in (".md", ".in", ".pyc")]


def _checkout() -> Path:
    """The repository.

    Raises:
        UserError: this is an installed package without one.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / "Dockerfile").is_file():
        raise UserError(
            "The application's image is built from a checkout of the repository, and this is an "
            "installed package.",
            hint="Give the model an environment of its own, or let it work here: --executor here",
        )
    return root


def _app_files(root: Path) -> list[str]:
    parts = [root / "platform", root / "plugins"]
    found = [path for part in parts for path in part.rglob("*.py")]
    names = ["Dockerfile", "constraints.txt", "pyproject.toml"]
    return sorted([*(str(path.relative_to(root)) for path in found), *names])


def _default_base(dockerfile: Path) -> str:
    found = re.search(r"^ARG BASE=(\S+)", dockerfile.read_text("utf-8"), re.MULTILINE)
    return found[1] if found else ""


def _image_id(runtime: Runtime, name: str) -> str | None:
    """The id of an image of this machine; None where it is not here."""
    done = _run([runtime.command, "image", "inspect", "--format", "{{.Id}}", name])
    # podman writes the number alone, docker how it was hashed too.
    return None if done.returncode else done.stdout.strip().removeprefix("sha256:")


def _image_of_facts(facts: dict[str, Any]) -> Image:
    config = facts.get("Config") or {}
    labels = config.get("Labels") or {}
    return Image(
        environment=labels.get(f"{_LABEL}environment", ""),
        id=facts["Id"],
        source=labels.get(f"{_LABEL}source", ""),
        base=labels.get(f"{_LABEL}base", ""),
        base_id=labels.get(f"{_LABEL}base-id", ""),
        size=facts["Size"],
        created=facts["Created"],
        volumes=tuple(config.get("Volumes") or ()),
    )


def _sif_folder() -> Path:
    return Home.find().cache / "containers"


def _image_of_file(path: Path) -> Image:
    name, _, source = path.stem.rpartition("-")
    about = path.stat()
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(about.st_mtime))
    return Image(name, str(path), source, "", "", about.st_size, when)


def _convert(
    environment: str,
    source: str,
    runtime: Runtime,
    base: str | None,
    arguments: Sequence[str],
    home: Home | None,
    say: Callable[[str], None],
) -> Image:
    """Apptainer reads no Dockerfile: another runtime builds, and its image is made a file."""
    builder = next((each for each in ("docker", "podman") if shutil.which(each)), None)
    if builder is None:
        raise UserError(
            f"{runtime.command} cannot build from a Dockerfile by itself, and neither docker nor "
            "podman is installed here.",
            hint="Build where one is, and copy the .sif file of the cache folder's containers/.",
        )
    by = find_runtime(builder)
    image = build(environment, by, base=base, arguments=arguments, home=home, say=say)
    folder = _sif_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{environment}-{source[:12]}.sif"
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as name:
        archive, aside = Path(name, "image.tar"), Path(name, target.name)
        fault = f"The image of {environment!r} cannot be made a file"
        _do([by.command, "save", "--output", str(archive), image.id], fault, say)
        _do([runtime.command, "build", str(aside), f"docker-archive:{archive}"], fault, say)
        aside.replace(target)
    return _image_of_file(target)


def _do(command: Sequence[str], fault: str, say: Callable[[str], None]) -> None:
    """Runs a command that takes long, and tells of its steps."""
    code, lines = environments.follow(command, say)
    if code:
        told = [line for line in lines if line.strip()]
        raise ChexGenBenchError(f"{fault} (exit code {code}).", hint="\n".join(told[-8:]))


# Workers


class Containers:
    """Workers in containers, each of which sees its job directory and the job's files alone.

    Args:
        places: the device of each worker that may work at a time.
        environment: the image, by the name of its folder in ``containers/``; None is `APP`.
        runtime: one of `RUNTIMES`; None is the first that answers.

    Raises:
        UserError: no runtime, or the image is not built.
    """

    shards_a_place = 1

    def __init__(
        self,
        places: Sequence[str],
        environment: str | None,
        runtime: str | None,
        home: Home | None = None,
    ) -> None:
        self.places = places
        self._runtime = find_runtime(runtime)
        self._image = _needed(self._runtime, environment or APP, home)
        self.name = f"container, {self._runtime.command}"

    def start(self, folder: Path, job: Job, device: str, log: Path) -> Process:
        """See `Launcher.start`."""
        folder = folder.resolve()
        name = f"chexgenbench-{uuid.uuid4().hex[:12]}"
        user = user_of(self._runtime)
        # What lies there already is the worker's orders: no use to anybody once it can change them,
        # and some are hard links to files of the platform.
        orders = sorted(folder.iterdir())
        own = [(folder, folder, True), *((path, path, False) for path in orders)]
        if user is not None and os.getuid() == 0:
            # The images staged for it too, which nobody else is to read.
            stage = stage_of(folder)
            for path in (folder, *folder.rglob("*"), stage, *stage.rglob("*")):
                with suppress(FileNotFoundError):
                    if path.is_dir() or path.stat().st_nlink == 1:
                        os.chown(path, *user, follow_symlinks=False)
            # An image's own /root is closed, and root's files are to be found below it. What is
            # mounted there gets its place in this folder, which the worker cannot write to.
            open_root = folder.with_name(f".{folder.name}.root")
            open_root.mkdir()
            open_root.chmod(0o755)
            own.append((open_root, Path("/root"), True))
        another = user is not None and user[0] != os.getuid()
        mounts = mounts_of(job, reader=user[0] if user is not None and another else None)
        all_mounts = [*own, *((source, target, False) for source, target in mounts)]
        share = len(self.places)
        text = command_of(
            self._runtime, self._image, name, job, folder, device, all_mounts, user, share
        )
        ending: list[str] = []
        if self._runtime.kind != "apptainer":
            at_once = ["--time", "0"] if self._runtime.kind == "podman" else []
            ending = [self._runtime.command, "rm", "--force", *at_once, name]
        return _Container(text, log, ending, folder, self._runtime.command)

    def close(self) -> None:
        """Nothing is held."""


class _Container(Process):
    """A container by the client that is attached to it."""

    def __init__(
        self, command: Sequence[str], log: Path, ending: Sequence[str], folder: Path, runtime: str
    ) -> None:
        super().__init__(command, log, ending=ending)
        self._log, self._folder, self._command = log, folder, runtime

    def poll(self) -> int | None:
        """Its exit code.

        Raises:
            UserError: the runtime could not start it.
        """
        code = super().poll()
        if code is None:
            return None
        if 125 <= code <= 127:
            with suppress(OSError), self._log.open("rb") as log:
                if _BEGUN in log.read(_BEFORE):
                    return 1  # it was started, whatever became of it
            said = last_line(self._log) or f"exit code {code}"
            raise UserError(f"{self._command} cannot start a container: {said}")
        if is_disk_fault(disk_fault(code)) and _free_bytes(self._folder) > LITTLE:
            return 1  # the machine's disk has room: what is full is the worker's own /tmp
        return code

    def stop(self) -> None:
        code = super().poll()
        if code is not None and code >= 0:
            self._ending = ()  # it ended by itself, and was removed
        super().stop()


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def user_of(runtime: Runtime) -> tuple[int, int] | None:
    """User and group of a worker; None is whoever runs the command, whatever it is called inside.

    Raises:
        UserError: it would be root.
    """
    if runtime.kind == "apptainer":
        if os.getuid() == 0:
            raise UserError(
                f"{runtime.command} runs containers as whoever calls it, and that is root here.",
                hint="Run the command as another user.",
            )
        return None
    if os.getuid() == 0:
        return WORKER_UID, WORKER_UID
    if runtime.kind == "docker" and runtime.rootless:
        return 0, 0  # the caller outside, without a capability; another one could write no file
    return os.getuid(), os.getgid()


def mounts_of(job: Job, *, reader: int | None = None) -> list[tuple[Path, Path]]:
    """What a worker reads, as pairs: where it is here, and where it is in the container.

    A path that the job names may be a link: what it leads to is there under its name. Links below
    it may be anybody's who made the folder, and are followed within it alone. Hubs keep files as
    links into a folder beside, which counts as within.

    Args:
        reader: the user's number that must be able to read all of it; None: whoever asks.

    Raises:
        UserError: a file is not there, a link leads elsewhere, or the reader cannot read a file.
    """
    found: dict[Path, Path] = {}
    for name in job.files:
        path = Path(name)
        if not path.exists():
            raise UserError(f"{path}, which the worker needs, is missing.")
        found[path] = path.resolve()
        allowed = [found[path], *_hub_of(found[path])]
        named = _hub_of(path.parent.resolve() / path.name)
        below = path.rglob("*") if path.is_dir() else ()
        for each in (path, *below):
            inside = allowed if each != path else named
            if each.is_symlink() and inside and each.exists():
                place = each.resolve()
                if not any(place.is_relative_to(folder) for folder in inside):
                    raise UserError(
                        f"{each} is a link that leads out of its folder, to {place}, and a "
                        "container is not shown what lies elsewhere.",
                        hint="Where the worker should have that file, put it there, not a link.",
                    )
                target = Path(os.path.normpath(each.parent / each.readlink()))
                if each != path and not target.is_relative_to(path):
                    found[target] = place
            if reader is not None and not _reads(reader, each):
                raise UserError(
                    f"{each} can be read by its owner only, and a container works as another user.",
                    hint=f"chmod -R a+rX '{path}'",
                )
    return [(source, target) for target, source in found.items()]


def _hub_of(path: Path) -> list[Path]:
    """The folders of a hub's repository that a resolved path of its snapshots may lead into; none
    where it is no such path."""
    for above in path.parents:
        blobs = above.with_name("blobs") if above.name == "snapshots" else None
        if blobs is not None and blobs.is_dir() and not blobs.is_symlink():
            return [above, blobs]
    return []


def _reads(user: int, path: Path) -> bool:
    facts = path.stat()
    mode = facts.st_mode >> 6 if facts.st_uid == user else facts.st_mode
    return bool(mode & 0o4) and (not path.is_dir() or bool(mode & 0o1))


def command_of(
    runtime: Runtime,
    image: Image,
    name: str,
    job: Job,
    folder: Path,
    device: str,
    mounts: Sequence[tuple[Path, Path, bool]],
    user: tuple[int, int] | None,
    share: int,
) -> list[str]:
    """The command that runs a worker.

    Args:
        name: of the container.
        mounts: where it is here, where it is in there, whether it may be written to.
        share: how many containers share the machine.
    """
    import psutil

    memory = job.limits.memory or int(psutil.virtual_memory().total * 0.9 / share)
    cpus = max(1, (os.cpu_count() or 1) // share)
    pids = job.limits.processes or PROCESSES
    passed = {key: os.environ[key] for key in _PASSED if key in os.environ}
    # PyTorch asks for the user's name, which a number alone does not have.
    variables = {"HF_HUB_OFFLINE": "1", "USER": "worker", **passed}
    if share > 1:
        variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    limits = [f"--memory={memory}", f"--cpus={cpus}", f"--pids-limit={pids}"]
    worker = ["-I", "-c", _SUPERVISOR, "-I", "-m", WORKER, str(folder), "--device", device]
    gpu = device.startswith("cuda")
    if runtime.kind == "apptainer":
        return [
            *(runtime.command, "exec", "--containall", "--cleanenv", "--no-home", "--no-privs"),
            *("--net", "--network=none", "--pwd=/tmp", *limits),
            *(["--nv"] if gpu else []),
            *(f"--env={key}={value}" for key, value in variables.items()),
            *_mount_options(mounts, "ro"),
            *(image.id, "python", *worker),
        ]
    assert user is not None
    variables["HOME"] = "/tmp"  # noqa: S108
    podman = runtime.kind == "podman"
    keep = ["--userns=keep-id"] if podman and runtime.rootless else []
    keep += [] if podman else ["--userns=host"]
    tmpfs = f"rw,exec,nosuid,nodev,mode=1777,size={TMP_BYTES}"
    return [
        *(runtime.command, "run", "--rm", "--interactive", "--pull=never", f"--name={name}"),
        *(
            f"--label={_LABEL}job={folder}",
            "--log-driver=none",
            "--no-healthcheck",
            "--network=none",
        ),
        *("--read-only", *(["--read-only-tmpfs=false"] if podman else [])),
        *(f"--user={user[0]}:{user[1]}", *keep),
        *("--cap-drop=ALL", "--security-opt=no-new-privileges"),
        *(*limits, f"--memory-swap={memory}", f"--shm-size={TMP_BYTES}"),
        *(["--device=nvidia.com/gpu=all"] if gpu and podman else ["--gpus=all"] if gpu else []),
        *(f"--tmpfs={place}:{tmpfs}" for place in ("/tmp", *image.volumes)),  # noqa: S108
        *(f"--env={key}={value}" for key, value in variables.items()),
        *_mount_options(mounts, "readonly"),
        *("--workdir=/tmp", "--entrypoint=python", image.id, *worker),
    ]


def _mount_options(mounts: Sequence[tuple[Path, Path, bool]], read_only: str) -> Iterator[str]:
    for source, target, writable in mounts:
        fields = ["type=bind", f"src={source}", f"dst={target}"]
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(fields if writable else [*fields, read_only])
        yield f"--mount={line.getvalue()}"
