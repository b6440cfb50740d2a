"""What killed commands leave behind, and how it is removed without touching what is at work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import Timeout

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.executors.border import remove
from chexgenbench.executors.shards import SHARDS
from chexgenbench.executors.workplace import ELSEWHERE
from chexgenbench.features.cache import task_parts
from chexgenbench.files import TEMPORARY, Presence, alone, file_lock, unheld
from chexgenbench.generation import is_concluded
from chexgenbench.home import Home
from chexgenbench.jobs.generate import hold_if_quiet
from chexgenbench.jobs.manifest import IDENTITY, IMAGES, manifest_tail
from chexgenbench.store.run_directory import read_record, run_folders
from chexgenbench.store.store import Store

Guard = Callable[[], AbstractContextManager[bool]]


@dataclass(frozen=True)
class Leftover:
    """Something that a dead command left.

    Attributes:
        kind: what it is, in words.
        path: the file or folder.
        why: how it is known that nobody needs it, or what it is still good for.
        bytes: what removing it frees.
        unfinished: work that the same command would go on with, removed only if that is asked for.
        guard: holds it, and yields whether nobody else does.
        stands: whether the reason still holds, asked under the guard.
        run: the run whose record it is.
    """

    kind: str
    path: Path
    why: str
    bytes: int
    unfinished: bool = False
    guard: Guard = field(repr=False, compare=False, kw_only=True)
    stands: Callable[[], bool] = field(
        default=lambda: True, repr=False, compare=False, kw_only=True
    )
    run: str | None = None


def find(home: Home) -> list[Leftover]:
    """All leftovers in the project and in the cache, without changing anything."""
    found: list[Leftover] = []
    for search in (_jobs, _generations, _runs, _temporary, _tasks, _environments):
        found += search(home)
    return found


def clean(home: Home, found: Iterable[Leftover], *, unfinished: bool = False) -> int:
    """Removes leftovers, each only where nobody holds it at that moment and it is one still.

    Args:
        unfinished: also work that the same command would go on with.

    Returns:
        Bytes freed.
    """
    freed = 0
    for left in found:
        if left.unfinished and not unfinished:
            continue
        with left.guard() as free:
            if not free or not left.path.exists() or not left.stands():
                continue
            size = _size(left.path)  # less what was removed of it before
            if left.path.is_dir() and not left.path.is_symlink():
                remove(left.path)
            else:
                left.path.unlink(missing_ok=True)
            if left.run is not None and home.store.is_file():
                Store(home.store).delete([left.run])
        if not left.path.exists():
            freed += size
    return freed


def _size(path: Path) -> int:
    """What a file or folder takes; a hard link that has another name frees nothing."""
    total = 0
    for each in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
        with suppress(OSError):
            stat = each.lstat()
            if not each.is_dir() and stat.st_nlink < 2:
                total += stat.st_size
    return total


def _jobs(home: Home) -> Iterator[Leftover]:
    """The folders of `executors.workplace.folder_of_command`, which its lock guards.

    Those with a copy in a shared place are left to a command that reaches it.
    """
    root = home.runs / "jobs"
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if (path / ELSEWHERE).exists():
            continue
        # A command that is just beginning has no lock yet, and is not free either.
        guard = partial(unheld, path / "lock")
        with guard() as free:
            if free:
                why = "the command that wrote them has ended"
                yield Leftover("job directories", path, why, _size(path), guard=guard)


def _generations(home: Home) -> Iterator[Leftover]:
    for identity in sorted(home.generations.glob(f"*/{IDENTITY}")):
        folder = identity.parent

        guard = _generation(folder)
        with guard() as mine:
            if not mine:
                continue
            whole = is_concluded(folder)
            if (folder / SHARDS).is_dir():
                shards = folder / SHARDS
                why = (
                    "the generation is finished"
                    if whole
                    else "what its workers made is taken in by the command that began it"
                )
                yield Leftover(
                    "job directories",
                    shards,
                    why,
                    _size(shards),
                    unfinished=not whole,
                    guard=guard,
                    stands=partial(_is_concluded, folder, whole),
                )
            try:
                named = _named(folder)
            except ChexGenBenchError:  # damage is what `verify` is for
                continue
            for path in sorted((folder / IMAGES).glob("*")):
                if path not in named and not path.name.startswith(TEMPORARY):
                    why = "the manifest does not name it: its writer was killed before it did"
                    yield Leftover(
                        "image",
                        path,
                        why,
                        _size(path),
                        guard=guard,
                        stands=partial(_is_unnamed, folder, path),
                    )
            if not whole:
                why = f"{len(named)} images: the command that began it goes on with it"
                yield Leftover(
                    "half generation",
                    folder,
                    why,
                    _size(folder),
                    unfinished=True,
                    guard=guard,
                    stands=partial(_is_concluded, folder, False),
                )


def _is_concluded(folder: Path, whole: bool) -> bool:
    return is_concluded(folder) is whole


def _named(folder: Path) -> set[Path]:
    return {folder / row.path for row in manifest_tail(folder).new()}


def _is_unnamed(folder: Path, path: Path) -> bool:
    try:
        return path not in _named(folder)
    except ChexGenBenchError:
        return False


def _runs(home: Home) -> Iterator[Leftover]:
    """Records of runs that were killed; only where no command is at work in the project."""

    def guard() -> AbstractContextManager[bool]:
        return alone(home.results)

    # Every command that works in the project makes that folder.
    if not home.results.is_dir():
        return
    with guard() as mine:
        if not mine:
            return
        for folder in run_folders(home.runs):
            try:
                record = read_record(folder)
            except UserError:
                continue
            if record.status == "running":
                why = f"{record.model} under {record.suite} was killed: the same command goes on"
                yield Leftover(
                    "record of a run",
                    folder,
                    why,
                    _size(folder),
                    unfinished=True,
                    guard=guard,
                    run=record.run_id,
                    stands=partial(_is_running, folder),
                )


def _is_running(folder: Path) -> bool:
    try:
        return read_record(folder).status == "running"
    except UserError:
        return False


def _temporary(home: Home) -> Iterator[Leftover]:
    """Files of `files.atomic_path`, which are locked while they are written."""
    places = [
        home.results,
        *_below(home.runs),
        *_below(home.generations),
        *(folder / IMAGES for folder in _below(home.generations)),
        home.cache,
        *(folder for each in _below(home.features) for folder in _below(each)),
        *(folder for each in _below(home.cache / "tasks") for folder in [each, *_below(each)]),
        *_tree(home.cache / "weights"),
    ]
    for place in places:
        for path in sorted(place.glob(f"{TEMPORARY}*")):
            # DuckDB makes its file anew, so that the store's own lock tells.
            store = path.parent == home.results and ".duckdb" in path.name
            guard = _store_lock(home) if store else partial(unheld, path)
            with guard() as free:
                if free and not path.is_dir():
                    why = "its writer has ended"
                    yield Leftover("temporary file", path, why, _size(path), guard=guard)


def _tasks(home: Home) -> Iterator[Leftover]:
    """Parts of task metrics in which nothing was finished."""
    for folder in _below(home.cache / "tasks"):

        def guard(folder: Path = folder) -> AbstractContextManager[bool]:
            return alone(folder)

        if (folder / Presence.NAME).exists():
            with guard() as mine:
                if not mine:
                    continue
        for part in task_parts(folder):
            if _is_empty(part):
                why = "nothing in it was finished"
                yield Leftover(
                    "part of a task",
                    part,
                    why,
                    _size(part),
                    guard=guard,
                    stands=partial(_is_empty, part),
                )


def _is_empty(part: Path) -> bool:
    names = {path.name for path in part.iterdir() if not path.name.startswith(TEMPORARY)}
    return not names - {"lock", ".lock"}


def _environments(home: Home) -> Iterator[Leftover]:
    """Half-built environments, which the lock of their name guards."""
    root = home.cache / "environments"
    for path in _below(root):
        name, dash, _ = path.name.removeprefix(".").rpartition("-")
        if not path.name.startswith(".") or not dash:
            continue
        guard = _file_lock(root / f".{name}.lock")
        with guard() as free:
            if free:
                why = "the command that built it has ended"
                yield Leftover("half environment", path, why, _size(path), guard=guard)


def _below(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())


def _tree(root: Path) -> list[Path]:
    return [Path(folder) for folder, _, _ in os.walk(root)]


def _store_lock(home: Home) -> Guard:
    return _file_lock(Path(f"{home.store}.lock"))


def _generation(folder: Path) -> Guard:
    @contextmanager
    def guard() -> Iterator[bool]:
        with ExitStack() as stack:
            try:
                mine = stack.enter_context(hold_if_quiet(folder))
            except OSError:  # it may only be read
                mine = False
            yield mine

    return guard


def _file_lock(path: Path) -> Guard:
    @contextmanager
    def guard() -> Iterator[bool]:
        lock = file_lock(path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    return guard
