"""A Ray cluster of several raylets on this machine, each as a machine of its own would be."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A token of these clusters' own: Ray would use, or make, one in the user's folder.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
}


class RayCluster:
    """A head without processors, and machines that come and go.

    Args:
        folder: short, because Ray's sockets lie below it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._machines: list[subprocess.Popen[bytes]] = []
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.rpartition(":")[2]
        self._start("--head", "--port", port, "--num-cpus", "0", "--temp-dir", str(folder))

    def add(self, *prefix: str, cpus: int = 1) -> subprocess.Popen[bytes]:
        """A machine that joins; `prefix` is a command that runs it in a setting of its own."""
        return self._start("--address", self.address, "--num-cpus", str(cpus), prefix=prefix)

    def close(self) -> None:
        for machine in reversed(self._machines):
            kill(machine.pid)
            machine.wait()

    def _start(self, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        common = ["start", "--block", "--disable-usage-stats", "--object-store-memory", "80000000"]
        if "--head" in arguments:
            common += ["--include-dashboard", "false"]
        said = self._folder / f"start-{len(self._machines)}.log"
        with said.open("wb") as log:
            machine = subprocess.Popen(
                [*prefix, *RAY, *common, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | SETTINGS,
                start_new_session=True,
            )
        self._machines.append(machine)
        wait_for(lambda: "Ray runtime started" in said.read_text())
        return machine


@contextmanager
def ray_cluster(folder: Path, machines: int) -> Iterator[RayCluster]:
    """A cluster with that many machines of one processor each."""
    cluster = RayCluster(folder)
    try:
        for _ in range(machines):
            cluster.add()
        yield cluster
    finally:
        cluster.close()


def kill(pid: int) -> None:
    """Kills a machine as a power cut would: everything that runs on it, at once."""
    with_children = []
    try:
        top = psutil.Process(pid)
        with_children = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in with_children:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Waits until something holds; far longer than it takes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.1)
