"""Workers on the machines of a Ray cluster.

A *host* is a Ray actor that holds a GPU, or processors, as long as the launcher is open. It keeps a
process that does one job directory after another (`jobs.serve`), so that a model is loaded once a
host, whatever interpreter it needs. Ray tasks would not do: Ray ends a task's process to free its
GPU, and a large model would be loaded for every shard.

Ray restarts nothing here. A shard whose machine is lost is cut again from what is missing
(`shards.run_shards`), and goes to another host; a repeat by Ray would begin at the shard's start,
in a folder that the lost worker may still be writing to.

Ray moves Python objects between machines: whoever can reach a cluster's ports can run code on it.
It is trusted like the user's own processes. What workers return passes `border` all the same.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.executors.border import Refused
from chexgenbench.executors.launch import Process, tail_of
from chexgenbench.executors.mirror import (
    Fetcher,
    Remote,
    Sender,
    place_at,
    told,
    without_secret,
)
from chexgenbench.files import sha256_bytes
from chexgenbench.jobs.job import JOB, Job, stage_of
from chexgenbench.jobs.serve import SERVER, answer, ask

if TYPE_CHECKING:
    from types import ModuleType

_ANSWERS = 5.0
"""Seconds that a cluster's address has to take a connection."""

_HEALTHY = 20.0
"""Seconds that a cluster has to say that it is one."""

_APPEARS = 15.0
"""Seconds until a folder that another machine made is seen: network file systems lag behind."""

_GONE = 300.0
"""Seconds for which no machine of a cluster may be there that a worker fits on."""

_ENDS = 15.0
"""Seconds that a host has to end its process before Ray ends the host."""

_BETWEEN = 1.0
"""Seconds between two copies of what is new, where job directories travel by a URL."""

_LOOK_AGAIN = 0.05
_LOOK_FOR_MACHINES = 2.0
_LOG_BYTES = 100_000
_FAILED_STARTS = 5

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class _Order:
    """A job directory that a host is to do.

    Attributes:
        id: what `_Host.stop` knows it by.
        sha256: of ``job.json``: a folder of the same name on another machine is another one.
        files: what the worker reads beside it.
        url: where the job directory is, if not at `folder`.
    """

    id: str
    folder: str
    device: str
    sha256: str
    files: tuple[str, ...]
    url: str | None


@dataclass(frozen=True, kw_only=True)
class _Result:
    """How it went: an exit code, or what the user has to mend."""

    code: int = 0
    log: str = ""
    fault: str | None = None
    hint: str | None = None


class _Host:
    """The actor: a place on one machine, and the process that works there.

    Args:
        interpreter: the Python of the process; None is the one that Ray runs by.
        variables: of the process's environment; None removes one.
    """

    def __init__(self, interpreter: str | None, variables: dict[str, str | None]) -> None:
        self._python = Path(interpreter or sys.executable)
        self._variables = variables
        self._root = Path(tempfile.mkdtemp(prefix="chexgenbench-host-"))
        self._process: Process | None = None
        self._processes = 0
        self._asked = 0
        self._stopped: set[str] = set()

    def ready(self) -> int:
        """Answers once the host is there: the number of its process."""
        return os.getpid()

    def work(self, order: _Order) -> _Result:
        """Does a job; ends when the job does, or by `stop`."""
        machine = socket.gethostname()
        try:
            if not self._python.is_file():
                raise UserError(
                    f"The interpreter {self._python} is not there.",
                    hint="Build the plugin's environment on each machine, in the same place.",
                )
            lacking = [name for name in order.files if not Path(name).exists()]
            if lacking:
                raise UserError(
                    f"The file {lacking[0]} is not there, and {len(lacking) - 1} more."
                    if len(lacking) > 1
                    else f"The file {lacking[0]} is not there.",
                    hint="Weights and plugins must be on each machine, in the same place.",
                )
            if order.url is None:
                _await(lambda: (Path(order.folder) / JOB).read_bytes(), order)
                return self._do(Path(order.folder), order)
            return self._do_remote(order, order.url)
        except UserError as error:
            return _Result(fault=f"On the machine {machine}: {error.message}", hint=error.hint)

    def stop(self, order: str) -> None:
        """Ends an order, and the process that does it."""
        self._stopped.add(order)

    def close(self) -> None:
        """Ends the process, and removes what the host has on its machine."""
        self._end()
        shutil.rmtree(self._root, ignore_errors=True)

    def _do_remote(self, order: _Order, url: str) -> _Result:
        place = Path(tempfile.mkdtemp(prefix="job-", dir=self._root))
        try:
            folder = place / Path(order.folder).name
            remote = Remote(url)
            _await(lambda: remote.read(JOB), order)
            for path, there in ((stage_of(folder), Remote(_stage_at(url))), (folder, remote)):
                for name in there.sizes():
                    there.fetch(name, path / name)
            return self._do(folder, order, Sender(folder, remote))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _do(self, folder: Path, order: _Order, sender: Sender | None = None) -> _Result:
        process = self._process or self._start()
        desk, log = self._desk, self._log
        self._asked += 1
        ask(desk, self._asked, folder, order.device)
        sent = time.monotonic()
        code, fault = None, ""
        while code is None:
            time.sleep(_LOOK_AGAIN)
            if order.id in self._stopped:
                code = -9
                break
            ended = process.poll()  # before its answer: it may do both between two looks
            try:
                code = answer(desk, self._asked)
            except ValueError as error:
                code, fault = 1, f"{error}\n"
            code = ended if code is None else code
            if sender is not None and time.monotonic() - sent > _BETWEEN:
                sender.send()
                sent = time.monotonic()
        if code:
            self._end()  # what a failure left behind in it would be the next job's
        if sender is not None:
            sender.send()
        return _Result(code=code, log=tail_of(log, _LOG_BYTES) + fault)

    def _start(self) -> Process:
        self._processes += 1
        self._asked = 0
        self._desk = self._root / f"desk-{self._processes}"
        self._desk.mkdir()
        self._log = self._root / f"process-{self._processes}.log"
        environment = dict(os.environ)
        for name, value in self._variables.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        command = [str(self._python), "-P", "-m", SERVER, str(self._desk)]
        self._process = Process(command, self._log, environment)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


def _await(read: Callable[[], bytes], order: _Order) -> None:
    """Waits until a machine sees the job that the command has written.

    Raises:
        UserError: it does not.
    """
    end = time.monotonic() + _APPEARS
    while True:
        with suppress(OSError):
            if sha256_bytes(read()) == order.sha256:
                return
        if time.monotonic() > end:
            place = without_secret(order.url) if order.url else order.folder
            raise UserError(
                f"The folder {place} of this command is not seen by the worker.",
                hint="Name a folder, or a URL such as s3://bucket/folder, that all machines see: "
                "--shared PLACE",
            )
        time.sleep(0.2)


@dataclass(eq=False)
class _Handle:
    """A host as the command sees it."""

    actor: Any
    ready: Any


class Ray:
    """Workers on a Ray cluster.

    A worker has a GPU of its own where the work is for one; else as many processors as it computes
    with threads, or fewer where `workers` asks for more workers than there would be.

    Args:
        address: ``HOST:PORT`` of a cluster that this machine belongs to; ``auto`` for the one that
            was started here; ``local`` starts one of this machine alone, for this command.
        workers: at most so many at a time; None is as many as the cluster has room for.
        device: of the work; of a GPU its kind plays a part and not its number.
        interpreter: the Python that has the plugin's packages, the same path on each machine; None
            is the one that Ray was started with there.
        shared: a folder or fsspec URL by which job directories travel; None: they are seen where
            they are.

    Raises:
        UserError: Ray is not installed, no cluster answers, or it has no place for a worker.
    """

    name = "ray"
    shards_a_place = 4

    def __init__(
        self,
        address: str,
        workers: int | None = None,
        device: str = "cpu",
        interpreter: Path | None = None,
        shared: str | None = None,
    ) -> None:
        from chexgenbench.provenance import threads

        self._ray = connect(address)
        kind = device.partition(":")[0]
        count = int(os.environ.get("OMP_NUM_THREADS") or threads())
        machines = [dict(node["Resources"]) for node in self._ray.nodes() if node["Alive"]]
        places, self._resources = _room(machines, kind, count, workers)
        # Inside a worker the one GPU that it sees has number 0.
        self.places: Sequence[str] = ["cuda:0" if kind == "cuda" else kind] * places
        self._machines = machines
        self._seen = self._looked = time.monotonic()
        self._interpreter = str(interpreter) if interpreter else None
        # The count of threads can change the last bit of an image on a CPU.
        self._variables = {name: os.environ.get(name) for name in _THREADS}
        self._variables |= {"OMP_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE"}
        self._shared = shared.rstrip("/") if shared else None
        self._session = uuid.uuid4().hex[:12]
        self._used: dict[str, str] = {}
        self._idle: list[_Handle] = []
        self._coming: list[_Handle] = []
        self._busy: list[_Handle] = []
        self._waiting: list[_Task] = []
        self._failed = 0

    def start(self, folder: Path, job: Job, device: str, log: Path) -> _Task:
        """See `Launcher.start`."""
        self.check_memory(job.limits.memory)
        folder = folder.resolve()
        url = self._send(folder)
        order = _Order(
            id=uuid.uuid4().hex,
            folder=str(folder),
            device=device,
            sha256=sha256_bytes((folder / JOB).read_bytes()),
            files=tuple(name for name in job.files if Path(name) != stage_of(folder)),
            url=url,
        )
        task = _Task(self, order, log)
        self._waiting.append(task)
        return task

    def close(self) -> None:
        """Ends the hosts; the connection stays for the command's next model."""
        handles = [*self._idle, *self._busy, *self._coming]
        ends = [each.actor.close.remote() for each in (*self._idle, *self._busy)]
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=_ENDS)
        for handle in handles:
            self._ray.kill(handle.actor)
        self._idle, self._busy, self._coming = [], [], []
        for base in self._used.values():
            with suppress(Exception):  # each store has errors of its own
                Remote(f"{base}/{self._session}").remove()
                Remote(base).remove_empty()

    def take(self, task: _Task) -> _Handle | None:
        """A host for a task that waits for one; None where none is free yet.

        Raises:
            UserError: the platform cannot be imported on a machine of the cluster.
            ChexGenBenchError: hosts end as soon as they are started.
        """
        for handle in list(self._coming):
            if self._ray.wait([handle.ready], timeout=0)[0]:
                self._coming.remove(handle)
                try:
                    self._ray.get(handle.ready)
                except self._ray.exceptions.RayError as error:
                    self._failed += 1
                    _explain(error, self._failed)
                else:
                    self._failed = 0
                    self._idle.append(handle)
        if self._idle:
            handle = self._idle.pop()
            self._busy.append(handle)
            self._waiting.remove(task)
            return handle
        self._check_machines()
        there = len(self._coming) + len(self._busy)
        if there < len(self.places) and len(self._coming) < len(self._waiting):
            self._coming.append(self._host())
        return None

    def give_back(self, handle: _Handle, *, lost: bool) -> None:
        """A host whose task has ended; `lost` where it answers no more."""
        self._busy.remove(handle)
        if lost:
            self._ray.kill(handle.actor)
        else:
            self._idle.append(handle)

    def forget(self, task: _Task) -> None:
        """A task that was stopped while it waited."""
        self._waiting.remove(task)

    def _host(self) -> _Handle:
        actor = (
            self._ray.remote(_Host)
            .options(max_restarts=0, max_task_retries=0, max_concurrency=4, **self._resources)
            .remote(self._interpreter, self._variables)
        )
        return _Handle(actor, actor.ready.remote())

    def check_memory(self, most: int | None) -> None:
        if most is None:
            return
        largest = max((each.get("memory", 0) for each in self._machines), default=0)
        if most > largest:
            raise UserError(
                f"A worker may use {most / 1e9:.1f} GB, and no machine of the cluster offers more "
                f"than {largest / 1e9:.1f} GB.",
                hint="Lower --memory, or start Ray with more there (ray start --memory).",
            )
        self._resources["memory"] = most

    def _check_machines(self) -> None:
        """Raises `UserError` where the cluster has had no machine for a worker for long: Ray itself
        would wait for one for ever."""
        now = time.monotonic()
        if now - self._looked < _LOOK_FOR_MACHINES:
            return
        if now - self._looked > 10 * _LOOK_FOR_MACHINES:  # nobody waited for one meanwhile
            self._seen = now
        self._looked = now
        names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
        needed = {kind: self._resources.get(name, 0) for kind, name in names.items()}
        there = [dict(node["Resources"]) for node in self._ray.nodes() if node["Alive"]]
        if any(all(each.get(k, 0) >= n for k, n in needed.items()) for each in there):
            self._seen = now
        elif now - self._seen > _GONE:
            raise UserError(
                f"No machine of the Ray cluster that a worker fits on has been there for "
                f"{now - self._seen:.0f} s.",
                hint="Start machines (ray start --address ...) and repeat the same command: what "
                "was made is kept.",
            )

    def _send(self, folder: Path) -> str | None:
        """Sends a job directory; where to, or None where it is seen as it is.

        Raises:
            UserError: it cannot be sent.
        """
        if self._shared is None:
            return None
        above = str(folder.parent)
        try:
            if above not in self._used:
                # Whoever is here holds the folder: what stands there is of a command that was
                # killed.
                self._used[above] = place_at(self._shared, folder.parent)
                Remote(self._used[above]).remove()
            url = f"{self._used[above]}/{self._session}/{folder.name}"
            for source, there in ((stage_of(folder), _stage_at(url)), (folder, url)):
                remote = Remote(there)
                for path in sorted(source.rglob("*")):
                    if path.is_file():
                        remote.send(path, path.relative_to(source).as_posix())
        except UserError:
            raise
        except Exception as error:  # each store has errors of its own, such as ftplib's
            raise UserError(
                f"Nothing can be written to {without_secret(self._shared)}: "
                f"{told(error, self._shared)}",
                hint="Name another place with --shared, which this machine may write to.",
            ) from error
        return url


class _Task:
    """A job directory that waits for a host, or is at work on one; see `launch.Running`."""

    def __init__(self, launcher: Ray, order: _Order, log: Path) -> None:
        self._launcher, self._order, self._log = launcher, order, log
        self._ray = launcher._ray
        self._handle: _Handle | None = None
        self._reply: Any = None
        self._code: int | None = None
        self._mirror = _Mirror(order.url, Path(order.folder)) if order.url else None
        self.waiting = True

    def poll(self) -> int | None:
        """Its exit code; None while it waits or works.

        Raises:
            UserError: its machine does not see the folder, or lacks what the plugin needs.
            Refused: it left what no worker writes.
            ChexGenBenchError: what it made cannot be copied to here.
            OSError: the disk of this command is full or broken.
        """
        if self._code is not None:
            return self._code
        if self._handle is None:
            self._handle = self._launcher.take(self)
            if self._handle is None:
                return None
            self.waiting = False
            self._reply = self._handle.actor.work.remote(self._order)
            if self._mirror is not None:
                self._mirror.start()
            return None
        if self._ray.wait([self._reply], timeout=0)[0]:
            return self._settle(self._handle)
        if self._mirror is not None:
            self._mirror.check()
        return None

    def stop(self) -> None:
        if self._code is not None:
            return
        if self._handle is None:
            self._launcher.forget(self)
            self._code = -9
            return
        asked = self._handle.actor.stop.remote(self._order.id)
        self._ray.wait([asked, self._reply], num_returns=2, timeout=_ENDS)
        with suppress(ChexGenBenchError, OSError):
            self._settle(self._handle)

    def _settle(self, handle: _Handle) -> int:
        """Takes a host's result, or notes that there will be none."""
        lost = True
        try:
            result: _Result = self._ray.get(self._reply, timeout=0)
            lost = False
        except self._ray.exceptions.GetTimeoutError:
            result = _Result(code=-9, log="The worker did not end when it was told to.\n")
        except self._ray.exceptions.RayActorError as error:
            result = _Result(code=-9, log=f"The machine or its worker was lost: {_short(error)}\n")
        except self._ray.exceptions.RayError as error:
            result = _Result(code=1, log=f"{error}\n")
        self._code = result.code
        self._launcher.give_back(handle, lost=lost)
        if self._mirror is not None:
            self._mirror.close()
        with suppress(OSError):
            self._log.write_text(result.log, encoding="utf-8")
        if result.fault is not None:
            raise UserError(result.fault, hint=result.hint)
        return result.code


class _Mirror(threading.Thread):
    """Copies what a worker has made so far from a URL into the job directory of this machine."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(daemon=True)
        self._url, self._folder = url, folder
        self._done = threading.Event()
        self._fault: Exception | None = None

    def run(self) -> None:
        try:
            fetcher = Fetcher(Remote(self._url), self._folder)
            while not self._done.wait(_BETWEEN):
                fetcher.fetch()
            fetcher.fetch()
            for url in (self._url, _stage_at(self._url)):
                Remote(url).remove()
        except Exception as error:  # whatever it is, `check` says it
            self._fault = error

    def check(self) -> None:
        """Raises what went wrong."""
        if self._fault is None:
            return
        if isinstance(self._fault, Refused) or is_disk_fault(self._fault):
            raise self._fault
        # No bad input, whoever says so: the job was sent there a moment ago.
        raise ChexGenBenchError(
            f"{without_secret(self._url)} cannot be read: {told(self._fault, self._url)}",
            hint="Repeat the same command to go on.",
        ) from self._fault

    def close(self) -> None:
        """Copies what is left, once the worker has ended."""
        self._done.set()
        if self.is_alive():
            self.join()
        self.check()


def _stage_at(url: str) -> str:
    """Where the images travel that a job directory names."""
    return f"{url}.images"


def _room(
    machines: Sequence[dict[str, float]], kind: str, threads: int, workers: int | None
) -> tuple[int, dict[str, float]]:
    """How many workers fit at a time, and what Ray is to reserve for each.

    >>> _room([{"CPU": 8.0}, {"CPU": 4.0}], "cpu", 4, None)
    (3, {'num_cpus': 4})
    >>> _room([{"CPU": 2.0}], "cpu", 2, 2), _room([{"CPU": 8.0, "GPU": 4.0}], "cuda", 8, 3)
    ((2, {'num_cpus': 1}), (3, {'num_cpus': 1, 'num_gpus': 1}))
    """
    if kind == "cuda":
        count = sum(int(each.get("GPU", 0)) for each in machines)
        reserved: dict[str, float] = {"num_cpus": 1, "num_gpus": 1}
        share = 1
    else:
        for share in range(threads, 0, -1):
            count = sum(int(each.get("CPU", 0)) // share for each in machines)
            if count >= (workers or 1):
                break
        reserved = {"num_cpus": share}
    if count == 0:
        what = "GPU" if kind == "cuda" else "processor"
        raise UserError(
            f"The Ray cluster has no {what} for a worker.",
            hint="Start machines that offer some (ray start), or choose another --device.",
        )
    return min(count, workers or count), reserved


def _explain(error: Exception, times: int) -> None:
    """Raises why hosts cannot be started; nothing where another try may do."""
    text = str(error)
    if "ModuleNotFoundError" in text or "ImportError" in text:
        raise UserError(
            f"The worker cannot be imported on a machine of the cluster: {_short(error)}",
            hint="Install the same release of chexgenbench, with its extra ray, on each machine.",
        ) from error
    if times >= _FAILED_STARTS:
        raise ChexGenBenchError(
            f"{times} workers of the cluster have ended as soon as they were started: "
            f"{_short(error)}"
        ) from error


def _short(error: Exception) -> str:
    """The line of Ray's error that says most."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    told = [line for line in lines if "Error:" in line or " died " in line or "killed" in line]
    return (told or lines or [type(error).__name__])[-1][:300]


_address: str | None = None
"""Of the cluster that this process is connected to."""


def connect(address: str) -> ModuleType:
    """Ray, connected; a connection is kept for the command's next model.

    Raises:
        UserError: Ray is not installed, or nothing answers at the address.
    """
    global _address
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "The executor ray needs Ray, which is not installed.",
            hint="pip install 'chexgenbench[ray]'",
        ) from error
    if ray.is_initialized() and _address == address:
        return ray
    if ray.is_initialized() and _address is not None:
        ray.shutdown()
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if address == "local":
        # Nothing large passes through Ray: its memory for objects is as small as it may be.
        settings |= {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    else:
        _probe(address)
    try:
        if not ray.is_initialized():
            ray.init(address, **settings)
    except (RuntimeError, ConnectionError, ValueError, OSError) as error:
        if "ersion mismatch" in str(error):
            raise UserError(
                f"The Ray cluster at {address} has other versions than this environment: "
                f"{' '.join(str(error).split())}",
                hint="Use one release of Python and of Ray on every machine.",
            ) from error
        raise UserError(
            f"This process cannot join the Ray cluster at {address}: {_short(error)}",
            hint="The command must run on a machine of the cluster: ray start --address "
            f"{address} --num-cpus 0 makes this one part of it, without work.",
        ) from error
    _address = address
    return ray


def _probe(address: str) -> None:
    """Raises `UserError` where no Ray cluster answers; Ray itself would try for minutes."""
    place = "on this machine (--address auto)" if address == "auto" else f"at {address}"

    def no_cluster(why: str = "") -> UserError:
        return UserError(
            f"No Ray cluster answers {place}{why}.",
            hint="Start one (ray start --head), name the address that it says, such as "
            "10.0.0.5:6379, or use --address local.",
        )

    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(
                f"{address!r} is no address of a Ray cluster.",
                hint="HOST:PORT, such as 10.0.0.5:6379; auto; or local.",
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS).close()
        except OSError as error:
            raise no_cluster(f": {error.strerror or error}") from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check"]
    if address != "auto":
        command += ["--address", address]
    try:
        found = subprocess.run(command, capture_output=True, timeout=_HEALTHY)
    except subprocess.TimeoutExpired as error:
        raise no_cluster() from error
    if b"AuthenticationError" in found.stderr:
        raise UserError(
            f"The Ray cluster that answers {place} asks for a token.",
            hint="Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.",
        )
    if found.returncode:
        raise no_cluster()
