"""Who makes which batch: locks on the bytes of one file, which the system frees when a holder dies.

POSIX locks belong to a process, so a claim outlives no worker, however it ends, and two threads of
one process do not exclude each other. They hold between processes of one machine, and over a
network file system as far as that has locks.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import TracebackType

CLAIMS = "claims"
_ALIVE = 0
"""The byte that every living worker shares; byte n + 1 belongs to batch n."""


class Claims:
    """A worker's claims on the batches of a generation, held until it ends."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / CLAIMS).open("r+b")
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _ALIVE)

    def take(self, batch: int) -> bool:
        """Whether the batch is this worker's now; False while another one holds it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, batch + 1)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._file.close()


def wait_for_workers(folder: Path) -> None:
    """Returns when no worker is alive in the folder: those of a killed command take a moment."""
    with (folder / CLAIMS).open("ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, _ALIVE)
