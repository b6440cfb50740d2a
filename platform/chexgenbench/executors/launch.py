"""What starts workers on job directories: the protocol, and local processes as its first kind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Protocol

import psutil

from chexgenbench.errors import UserError, harmless
from chexgenbench.files import atomic_path
from chexgenbench.jobs.job import DISK_FAULT, Job, Limits
from chexgenbench.jobs.waiting import WORKER

LOG_BYTES = 1_000_000
"""How much of a worker's output is kept, from its beginning and again from its end."""

_LOG_SHOWN = 600


class Running(Protocol):
    """A worker at work on one job directory.

    Attributes:
        waiting: whether it has no place to work at yet, as on a busy cluster.
    """

    waiting: bool

    def poll(self) -> int | None:
        """Its exit code; None while it works."""

    def stop(self) -> None:
        """Ends it and all that it started, and waits until they have ended."""


class Launcher(Protocol):
    """Starts workers somewhere: a process, a container, a machine of a cluster.

    Attributes:
        name: what messages call the kind of place.
        places: the device of each worker that may work at a time.
        shards_a_place: parts that work is cut into for each place; several, where a worker is
            cheap to start, even out places of different speed and lose less with one of them.
    """

    name: str
    places: Sequence[str]
    shards_a_place: int

    def start(self, folder: Path, job: Job, device: str, log: Path) -> Running:
        """Starts a worker on a job directory.

        Args:
            folder: the job directory, which the worker alone writes to from now on.
            job: what stands in it.
            device: one of `places`.
            log: takes what the worker prints, at most 2 x `LOG_BYTES`.

        Raises:
            UserError: this place cannot start any worker.
        """

    def close(self) -> None:
        """Gives back what the launcher itself holds, such as a connection."""


class Process:
    """A local process in a group of its own, whose output goes to a log of bounded size.

    Args:
        command: what to run; its standard input stays open until `stop`, as a lifeline.
        ending: a further command that ends what the process stands for, such as a container.
    """

    waiting = False

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: dict[str, str] | None = None,
        ending: Sequence[str] = (),
    ) -> None:
        self._ending = ending
        self._stopped = False
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=keep_ends, args=(self._process.stdout, log), daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        """The number of the process, and of its group."""
        return self._process.pid

    def poll(self) -> int | None:
        code = self._process.poll() if self._stopped else _exit_code(self._process)
        if code is not None:
            # What a leftover child still prints is not waited for.
            self._reader.join(timeout=1.0)
        return code

    def stop(self) -> None:
        if self._ending:
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run(self._ending, capture_output=True, timeout=30)
        if not self._stopped:
            # Also where it has ended: what it started may be there still. Its number is not
            # another's before `wait`.
            _kill_tree(self._process.pid)
            self._process.wait()
            self._stopped = True
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._reader.join(timeout=1.0)


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Its exit code, where it has ended; its number stays its own, so that its group can be killed
    without meeting another."""
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return process.poll()
    found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _kill_tree(pid: int) -> None:
    """Kills a process, its group, and what it started that left the group.

    Each is stopped before its children are listed, so that none escapes by starting another. A
    process that left the group and whose parents have all ended before is not found: the worker
    takes orphans for its own children while it lives (`jobs.worker.limit`).
    """
    found: list[psutil.Process] = []
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        new = [top]
        while new:
            for process in new:
                with suppress(psutil.Error):
                    process.suspend()
            found += new
            new = [each for each in top.children(recursive=True) if each not in found]
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class Processes:
    """Workers as processes of this machine, in any interpreter, as the user who runs the command.

    They are held to the job's limits and confined in nothing else.

    Args:
        places: the device of each worker that may work at a time.
        interpreter: the Python that has the plugin's packages; None is this one.
    """

    name = "process"
    shards_a_place = 1

    def __init__(self, places: Sequence[str], interpreter: Path | None = None) -> None:
        self.places = places
        self._python = interpreter or Path(sys.executable)
        if not self._python.is_file():
            raise UserError(f"The interpreter {self._python} does not exist.")

    def start(self, folder: Path, job: Job, device: str, log: Path) -> Process:
        command = [str(self._python), isolation(self._python), "-m", WORKER, str(folder.resolve())]
        return Process([*command, "--device", device, "--lifeline"], log)

    def close(self) -> None:
        """Nothing is held."""


def isolation(python: Path) -> str:
    """The option that keeps the current folder off a worker's path.

    Another Python is not given our PYTHONPATH either, and need not be 3.11, which brought ``-P``.
    """
    return "-P" if python == Path(sys.executable) else "-I"


def keep_ends(stream: IO[bytes], log: Path, most: int = LOG_BYTES) -> None:
    """Copies a stream to `log`: its first `most` bytes as they come, its last ones at its end."""
    kept, left_out = 0, 0
    tail = bytearray()
    with ExitStack() as stack:
        file: IO[bytes] | None = None
        with suppress(OSError):
            file = stack.enter_context(log.open("wb", buffering=0))
        # read1: what is there, without waiting for more
        while block := stream.read1(65536):  # type: ignore[attr-defined]
            head, block = block[: most - kept], block[most - kept :]
            kept += len(head)
            tail += block
            if len(tail) > 2 * most:
                left_out += len(tail) - most
                del tail[:-most]
            if file is not None and head:
                with suppress(OSError):  # a full disk; the worker must not wait for its output
                    file.write(head)
        left_out += max(0, len(tail) - most)
        with suppress(OSError):
            if file is not None and left_out:
                file.write(f"\n... {left_out} bytes left out ...\n".encode())
            if file is not None:
                file.write(tail[-most:])


def last_line(log: Path) -> str:
    """The last line of a log that says something, for a message; empty where there is none.

    Control characters, such as a terminal's escapes, are left out.
    """
    lines = tail_of(log, 4096).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def tail_of(log: Path, most: int) -> str:
    """The last `most` bytes of a log, as printable text."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - most))
            text = file.read(most).decode("utf-8", "replace")
    except OSError:
        return ""
    return harmless(text)


def log_end(log: Path) -> str:
    """The end of a worker's log, indented, for a message."""
    tail = tail_of(log, _LOG_SHOWN).strip()
    return "\n".join(f"    {line}" for line in tail.split("\n")) if tail else "    (nothing)"


def exit_text(code: int) -> str:
    """What an exit code says: a signal's name, or the number.

    >>> exit_text(-9), exit_text(3)
    ('signal SIGKILL', 'exit code 3')
    """
    if code < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def memory_hint(limits: Limits, message: str) -> str | None:
    """Names the limit of memory where a worker may have died of it, by what is said of its end.

    >>> memory_hint(Limits(memory=2 * 10**9), "worker 1 ended with signal SIGKILL: at work")
    'A worker may take 2.0 GB of memory (--memory).'
    """
    killed = f"{exit_text(-signal.SIGKILL)}:" in message or f"{exit_text(137)}:" in message
    if limits.memory is None or not (killed or re.search("memory|bad_alloc", message, re.I)):
        return None
    return f"A worker may take {limits.memory / 1e9:.1f} GB of memory (--memory)."


def disk_fault(code: int) -> OSError:
    """The error that an exit code of a worker stands for; see `jobs.job.DISK_FAULT`."""
    return OSError(code - DISK_FAULT, os.strerror(code - DISK_FAULT))


LITTLE = 64_000_000
"""Bytes that are free on a disk that is as good as full."""


def check_disk(folder: Path, fault: OSError) -> None:
    """Raises the fault where the folder's disk is full, or what writing there raises.

    A worker's word does not end a command, and its disk need not be this one.
    """
    with atomic_path(folder / "disk.check") as temporary:
        temporary.write_bytes(b"0" * 65536)
    (folder / "disk.check").unlink()
    if shutil.disk_usage(folder).free < LITTLE:
        raise fault
