"""Who makes which batch: locks on the bytes of one file, which the system frees when a holder dies.

POSIX locks belong to a process, so a claim outlives no worker, however it ends, and two threads of
one process do not exclude each other. They hold between processes of one machine, and over a
network file system as far as that has locks.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

from chexgenbench.jobs.waiting import Silence, describe, workers_of

CLAIMS = "claims"
_LOOK_AGAIN = 0.1
"""Seconds between two looks at whether the workers have ended."""
_ALIVE = 0
"""The byte that every living worker shares; byte n + 1 belongs to batch n."""


class Claims:
    """A worker's claims on the batches of a generation, held until it ends."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / CLAIMS).open("r+b")
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _ALIVE)

    def take(self, batch: int) -> bool:
        """Whether the batch is this worker's now; False while another one holds it."""
        return _take(self._file, batch + 1)

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._file.close()


def wait_for_workers(folder: Path, say: Callable[[str], None]) -> None:
    """Returns when no worker is alive in the folder; the caller has the folder's lock.

    Those of a killed command take a moment to end.

    Args:
        say: told a line about workers that do not, such as one that is stopped.
    """
    silence = Silence()
    with (folder / CLAIMS).open("ab") as file:
        while not _take(file, _ALIVE):
            if silence.due():
                say(_waiting(folder))
            time.sleep(_LOOK_AGAIN)


def are_alive(folder: Path) -> bool:
    """Whether a worker lives in a generation's folder; the caller has the folder's lock."""
    path = folder / CLAIMS
    if not path.is_file():
        return False
    with path.open("r+b") as file:
        return not _take(file, _ALIVE)


def _take(file: IO[bytes], byte: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _waiting(folder: Path) -> str:
    found = workers_of(folder)
    if not found:
        return f"waiting for a worker in {folder} that this user or machine does not see"
    named = ", ".join(f"worker {number} ({describe(pid)})" for number, pid in found)
    pids = " ".join(str(pid) for _, pid in found)
    return f"waiting for {named} of a command that has ended; to end it: kill -9 {pids}"
