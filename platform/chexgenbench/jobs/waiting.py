"""What a command says while it waits: for workers that are stopped, or slow, or left behind."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

WORKER = "chexgenbench.jobs.worker"
"""The module that a worker process runs."""

FIRST = 5.0
"""Seconds without news after which something is said."""

AGAIN = 60.0
"""Seconds after which it is said again."""


class Silence:
    """The time since the last news, and when to say something about it."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._next = FIRST

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def due(self) -> bool:
        """Whether to say something now: after `FIRST` seconds once, then every `AGAIN`."""
        if self.seconds < self._next:
            return False
        self._next = self.seconds + AGAIN
        return True


def workers_of(folder: Path) -> list[tuple[int, int]]:
    """Number and process id of the workers in a generation's folder, as far as we may see them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []  # none of a zombie, or of another user's process
        if WORKER in line and str(folder.resolve()) in line and "--worker" in line[:-1]:
            found.append((int(line[line.index("--worker") + 1]), process.pid))
    return sorted(found)


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal, so that it does nothing until it is continued."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def describe(pid: int) -> str:
    """``process 123``, and whether it is stopped."""
    return f"process {pid}{', stopped' if is_stopped(pid) else ''}"
