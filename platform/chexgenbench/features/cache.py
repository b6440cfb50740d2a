"""What the feature cache holds, and how it is kept to a size."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chexgenbench.downloads import parse_size
from chexgenbench.errors import UserError
from chexgenbench.features.store import PARTS
from chexgenbench.files import Presence, alone

LIMIT = "CHEXGENBENCH_CACHE_LIMIT"
"""The environment variable that says how large the cache may grow."""

DEFAULT_LIMIT = 50 * 10**9
"""Features of about 15 million images under an encoder of 768 numbers an image."""

_DAYS = {"h": 1 / 24, "d": 1.0, "w": 7.0}


def parse_age(text: str) -> float:
    """Seconds of ``30d``, ``12h`` or ``2w``.

    Raises:
        UserError: it is no time.

    >>> parse_age("2d")
    172800.0
    """
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([hdw])", text.strip())
    if found is None:
        raise UserError(f"{text[:40]!r} is no time.", hint="Write it as in 30d, 12h or 2w.")
    return float(found[1]) * _DAYS[found[2]] * 86400


def limit() -> int | None:
    """The bytes that the cache may have; None: as many as it wants.

    Raises:
        UserError: the variable is neither a size nor ``none``.
    """
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return DEFAULT_LIMIT
    if text.lower() == "none":
        return None
    try:
        return parse_size(text)
    except UserError as error:
        raise UserError(
            f"{LIMIT}: {error.message}", hint="Write it as in 50GB, or none for no limit."
        ) from error


@dataclass(frozen=True)
class Entry:
    """What is kept of one encoder's images or texts, or of one task metric.

    Attributes:
        name: the encoder or metric with its identity, such as ``rad-dino-0123456789abcdef``.
        rows: vectors; None of a task metric.
        parts: files of features, or folders of a task metric's work.
        last_used: seconds since 1970 of the part that was used last.
        in_use: a living process holds it.
    """

    name: str
    kind: Literal["images", "texts", "task"]
    rows: int | None
    parts: int
    bytes: int
    last_used: float
    in_use: bool


@dataclass
class Pruned:
    """What `prune` removed, or would.

    Attributes:
        parts: how many of each encoder or metric, by its name.
        in_use: those of which nothing was removed because a process holds them.
        left: bytes that the cache then has.
    """

    parts: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    in_use: list[str] = field(default_factory=list)
    left: int = 0


@dataclass(frozen=True)
class _Part:
    path: Path
    group: Path
    name: str
    bytes: int
    last_used: float


def entries(cache: Path) -> list[Entry]:
    """What the cache holds, by name."""
    found = []
    for kind, name, group in _groups(cache):
        parts = list(_parts(kind, name, group))
        if parts:
            found.append(
                Entry(
                    name=name,
                    kind=kind,
                    rows=None if kind == "task" else sum(_rows(part.path) for part in parts),
                    parts=len(parts),
                    bytes=sum(part.bytes for part in parts),
                    last_used=max(part.last_used for part in parts),
                    in_use=_in_use(group),
                )
            )
    return found


def prune(
    cache: Path,
    *,
    to: int | None = None,
    older_than: float | None = None,
    name: str | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Removes parts, the least recently used first; never those of a folder that a process holds.

    Args:
        to: removes until the rest has no more bytes than that.
        older_than: removes what was not used for that many seconds.
        name: looks only at that encoder or task metric, with or without its identity; alone, it
            removes all of it.
        dry_run: only counts.

    Raises:
        UserError: nothing of that name is there.
    """
    chosen: list[_Part] = []
    total = 0
    for kind, full, group in _groups(cache):
        parts = list(_parts(kind, full, group))
        total += sum(part.bytes for part in parts)
        if name in (None, full, full.rpartition("-")[0]):
            chosen += parts
    if name is not None and not chosen:
        raise UserError(
            f"The cache holds nothing of {name!r}.", hint="See: chexgenbench cache list"
        )
    now = time.time()
    done = Pruned(left=total)
    # Of `to` with a name, it is that one's bytes that count.
    size = sum(part.bytes for part in chosen)
    doomed: list[_Part] = []
    for part in sorted(chosen, key=lambda part: part.last_used):
        old = older_than is not None and now - part.last_used > older_than
        large = to is not None and size > to
        if old or large or (to is None and older_than is None):
            doomed.append(part)
            size -= part.bytes
    by_group: dict[Path, list[_Part]] = {}
    for part in doomed:
        by_group.setdefault(part.group, []).append(part)
    for group, parts in by_group.items():
        with alone(group) as mine:
            if not mine:
                done.in_use.append(parts[0].name)
                continue
            for part in parts:
                if not dry_run:
                    _remove(part.path)
                done.parts[part.name] = done.parts.get(part.name, 0) + 1
                done.bytes += part.bytes
    done.left -= done.bytes
    return done


def _groups(cache: Path) -> Iterator[tuple[Literal["images", "texts", "task"], str, Path]]:
    for folder in _folders(cache / "features"):
        for kind in ("images", "texts"):
            if (folder / kind).is_dir():
                yield kind, folder.name, folder / kind
    for folder in _folders(cache / "tasks"):
        yield "task", folder.name, folder


def task_parts(group: Path) -> list[Path]:
    """The parts of a task metric's work, see `Task.part`."""
    return _folders(group)


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())


def _parts(kind: str, name: str, group: Path) -> Iterator[_Part]:
    if kind != "task":
        for path in group.glob(PARTS):
            stat = path.lstat()
            yield _Part(path, group, name, stat.st_size, stat.st_mtime)
        return
    for path in task_parts(group):
        stats = [path.lstat(), *(each.lstat() for each in path.rglob("*"))]
        size = sum(stat.st_size for stat in stats[1:])
        yield _Part(path, group, name, size, max(stat.st_mtime for stat in stats))


def _rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: int = pq.read_metadata(path).num_rows
    except (OSError, ValueError, pa.ArrowException):  # `verify` says so
        return 0
    return rows


def _in_use(group: Path) -> bool:
    if not (group / Presence.NAME).exists():  # nothing is made only to look
        return False
    with alone(group) as mine:
        return not mine


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
