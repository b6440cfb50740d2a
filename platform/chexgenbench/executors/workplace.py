"""Where encoders and task metrics work if not in this process, and the folders they are given."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from chexgenbench.executors.border import remove
from chexgenbench.executors.launch import Launcher
from chexgenbench.executors.processes import ModelSource
from chexgenbench.jobs.job import Limits


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where errands are done.

    Attributes:
        open: gives what starts workers; `UserError` where the place is not there.
        name: what tells it from others.
        root: the folder for job directories, each command's in one of its own.
        source: where a worker finds plugins.
        limits: what a worker may use.
        timeout: seconds without progress after which a worker is given up.
        shards: into how many errands a list is cut; None is one for each place.
        sees_files: whether workers see this file system; else images are staged for them.
        foreign: whether they have packages of their own, which need not be installed here.
        elsewhere: the place that holds copies of the job directories, if they travel through one.
        forget: removes what lies there of a killed command's folder, by its path here.
    """

    open: Callable[[], Launcher] = field(compare=False)
    name: str
    root: Path
    source: ModelSource
    limits: Limits = field(default_factory=Limits)
    timeout: float = 1800.0
    shards: int | None = None
    sees_files: bool = True
    foreign: bool = False
    elsewhere: str | None = None
    forget: Callable[[Path], None] = field(default=lambda _folder: None, compare=False)


ELSEWHERE = "elsewhere"
"""The file in a command's folder that says which place holds a copy of it."""


@contextmanager
def folder_of_command(
    root: Path,
    forget: Callable[[Path], None] = lambda _folder: None,
    elsewhere: str | None = None,
) -> Iterator[Path]:
    """A folder for this command's job directories, which no other user reads: some hold patients'
    images. Removed at the end, and by the next command where this one is killed.

    Args:
        forget: told of the folder of a killed command before it is removed.
        elsewhere: the place that `forget` reaches. Folders with a copy in another one are left to a
            command that reaches that: without them, nobody would know of the copies.
    """
    root.mkdir(parents=True, exist_ok=True)
    root = root.resolve()  # one name for all that is told of it, wherever links lead
    for left in root.iterdir():
        with suppress(OSError), (left / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mark = left / ELSEWHERE
            if mark.exists() and mark.read_text(encoding="utf-8") != elsewhere:
                continue
            forget(left)
            remove(left)
    own = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(4).hex()}"
    own.mkdir(mode=0o700)
    with (own / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if elsewhere is not None:
            (own / ELSEWHERE).write_text(elsewhere, encoding="utf-8")
        try:
            yield own
        finally:
            remove(own)


def staged(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """The files under names of their own in the folder: those alone, for a worker that must not
    see the folders that they come from, and for nobody else. Hard links where that is possible,
    else copies."""
    folder.mkdir(mode=0o700)
    result: list[Path] = []
    for number, path in enumerate(paths):
        target = folder / f"{number:07d}{path.suffix.lower()}"
        try:
            source = path.resolve(strict=True)
            # A worker that is another user is given the copies; a link has its file's permissions.
            if source.stat().st_mode & 0o004:
                os.link(source, target)
            else:
                raise PermissionError
        except OSError:
            with suppress(FileNotFoundError):  # the worker finds it missing, as one here would
                shutil.copyfile(path, target)
                target.chmod(0o600)
        result.append(target)
    return result
