"""What is being made just now, as far as its files tell.

A run writes ``run.json`` when it begins, a generation ``generation.json`` with the number of its
images, a line of ``manifest.jsonl`` for each image, and ``summary.json`` at the end. Reading them
disturbs nobody.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chexgenbench.home import Home
from chexgenbench.jobs.manifest import IDENTITY, MANIFEST, SUMMARY, parts
from chexgenbench.store.run_directory import RECORD_NAME

_RECENT = 256
"""Lines at the end of a manifest from which the rate is taken."""

_TAIL = 400_000
_SMALL = 1_000_000
_FRESH = 15.0
"""Seconds since the last file during which somebody is taken to be at work."""

_MAKING = "making images"

_SILENT = 600.0
"""Seconds without a change after which a run that makes no images is called silent."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """A set of images that is being made, or waits.

    Attributes:
        what: ``images``, or the name of a pool.
        rate: images a second, over the last ones; None where too few are there.
        left: seconds until the last one at that rate.
        at_work: whether some process holds the generation's folder.
        last: the last piece of work, in words.
        age: seconds since then.
    """

    what: str
    generation: str
    done: int
    total: int | None
    rate: float | None
    left: float | None
    at_work: bool
    last: str
    age: float | None


@dataclass(frozen=True, kw_only=True)
class Work:
    """A run that has begun and not ended, or images without a run.

    Attributes:
        run: its id; None for `generate`, which makes images alone.
        stage: what it does now, in words.
        alive: whether a file has changed lately; False after a kill.
    """

    run: str | None
    model: str
    suite: str
    stage: str
    alive: bool
    makes: tuple[Making, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Progress:
    """Follows the folders of a home; files are read from where the last look ended."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._counted: dict[Path, tuple[int, int, int]] = {}
        self._ended: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def look(self) -> list[Work]:
        """What is at work, the newest first."""
        with self._lock:
            return self._look()

    def _look(self) -> list[Work]:
        found: list[tuple[str, Work]] = []
        taken: set[str] = set()
        for record in self._running():
            pools = record.get("pools")
            sets = {"images": record.get("generation_id")}
            if isinstance(pools, dict):
                sets |= {
                    name: pool.get("generation")
                    for name, pool in pools.items()
                    if isinstance(pool, dict)
                }
            folders = {what: self._folder(name) for what, name in sets.items() if name}
            taken |= {folder.name for folder in folders.values() if folder is not None}
            makes = tuple(
                self._making(what, folder)
                for what, folder in folders.items()
                if folder is not None and folder.is_dir()
            )
            begun = str(record.get("created_at") or "")
            path = self._home.runs / record["run_id"] / RECORD_NAME
            stage, alive = _stage(makes, len(folders), _age(path))
            work = Work(
                run=record["run_id"],
                model=str(record.get("model")),
                suite=str(record.get("suite")),
                stage=stage,
                alive=alive,
                makes=makes,
            )
            found.append((begun, work))
        for folder in _folders(self._home.generations):
            if folder.name in taken or (folder / SUMMARY).exists():
                continue
            made = self._making("images", folder)
            if not made.at_work:
                continue
            identity = _json(folder / IDENTITY) or {}
            named = identity.get("model")
            model = str(named.get("name")) if isinstance(named, dict) else folder.name
            work = Work(run=None, model=model, suite="", stage=_MAKING, alive=True, makes=(made,))
            found.append(("", work))
        return [work for _, work in sorted(found, key=lambda each: each[0], reverse=True)]

    def _running(self) -> Iterator[dict[str, Any]]:
        """Records of those that have not ended; the others are read once, as long as the file is
        the same."""
        ended: dict[Path, tuple[int, int]] = {}
        for folder in _folders(self._home.runs):
            path = folder / RECORD_NAME
            try:
                status = path.stat()
            except OSError:
                continue
            key = (status.st_ino, status.st_mtime_ns)
            if self._ended.get(path) == key:
                ended[path] = key
                continue
            record = _json(path)
            if record is None or record.get("status") != "running":
                if time.time() - status.st_mtime > _FRESH:  # two changes may have one time
                    ended[path] = key
            elif record.get("run_id") == folder.name:
                yield record
        self._ended = ended

    def _folder(self, name: object) -> Path | None:
        """The generation of that name, which comes from a file and may be anything."""
        if not isinstance(name, str) or not name.isalnum():
            return None
        return self._home.generations / name

    def _making(self, what: str, folder: Path) -> Making:
        identity = _json(folder / IDENTITY) or {}
        total = identity.get("n_requests")
        total = total if isinstance(total, int) and total >= 0 else None
        files = parts(folder, MANIFEST)
        done = sum(self._count(path) for path in files)
        done = done if total is None else min(done, total)
        rows = [row for path in files for row in _recent(path)]
        rate = _rate(folder, rows)
        changes = [age for age in map(_age, files) if age is not None]
        age = min(changes, default=None)
        ended = (folder / SUMMARY).exists()
        at_work = not ended and (_held(folder) if age is None or age > _FRESH else True)
        left = None
        if rate and total is not None and at_work:
            left = (total - done) / rate
        return Making(
            what=what,
            generation=folder.name,
            done=done,
            total=total,
            rate=rate,
            left=left,
            at_work=at_work,
            last=_last(folder, rows),
            age=age,
        )

    def _count(self, path: Path) -> int:
        """Whole lines of a file; only what was added since the last look is read."""
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                inode, offset, lines = self._counted.get(path, (0, 0, 0))
                if inode != status.st_ino or status.st_size < offset:
                    offset = lines = 0
                file.seek(offset)
                while block := file.read(1 << 20):
                    offset, lines = offset + len(block), lines + block.count(b"\n")
        except OSError:
            return 0
        self._counted[path] = (status.st_ino, offset, lines)
        return lines


def _stage(makes: tuple[Making, ...], wanted: int, age: float | None) -> tuple[str, bool]:
    """What a run does, from its sets of images, and whether it is alive."""
    lacking = [each for each in makes if each.total is None or each.done < each.total]
    if any(each.at_work for each in makes):
        return _MAKING, True
    if lacking or len(makes) < wanted:
        if age is not None and age < 60:
            return "starting", True
        return "stopped; the same command goes on", False
    ages = [each.age for each in makes if each.age is not None]
    newest = min([*ages, *([age] if age is not None else [])], default=None)
    if newest is not None and newest > _SILENT:
        return "encoding and scoring, or killed: no file has changed for a while", False
    return "encoding and scoring", True


def _rate(folder: Path, rows: list[dict[str, Any]]) -> float | None:
    """Images a second over the recent rows, by the times of their files.

    The first call's images are not counted: they mark when the time begins.
    """
    times = []
    for row in rows:
        name = row.get("path")
        if isinstance(name, str) and name == f"images/{Path(name).name}":
            try:
                times.append(((folder / name).stat().st_mtime, row.get("batch")))
            except OSError:
                continue
    if not times:
        return None
    times.sort(key=lambda each: each[0])
    times = times[-_RECENT:]
    first = times[0][1]
    begun = max(moment for moment, batch in times if batch == first)
    later = [moment for moment, _ in times if moment > begun]
    if later and times[-1][0] > begun:
        return len(later) / (times[-1][0] - begun)
    seconds = [row["seconds"] for row in rows if isinstance(row.get("seconds"), int | float)]
    return len(seconds) / sum(seconds) if sum(seconds) > 0 else None


def _last(folder: Path, rows: list[dict[str, Any]]) -> str:
    """The last thing that a worker noted, else the last image; no prompt is in it."""
    newest: tuple[float, str] | None = None
    for path in [*folder.glob("events-*.jsonl"), *folder.glob("shards/*/events-*.jsonl")]:
        for event in _lines(path, 4_096)[-1:]:
            moment = event.get("time")
            if isinstance(moment, int | float) and (newest is None or moment > newest[0]):
                where = path.stem.removeprefix("events-")
                newest = (float(moment), f"worker {where[:20]}: {str(event.get('event'))[:80]}")
    if rows:
        row = rows[-1]
        device, seconds = str(row.get("device"))[:40], row.get("seconds")
        took = f", {seconds:.2f} s an image" if isinstance(seconds, int | float) else ""
        made = f"batch {row.get('batch')} on {device}{took}"
        return f"{made}; {newest[1]}" if newest else made
    return newest[1] if newest else ""


def _recent(path: Path) -> list[dict[str, Any]]:
    return _lines(path, _TAIL)[-_RECENT:]


def _lines(path: Path, most: int) -> list[dict[str, Any]]:
    """The whole JSON objects in the last `most` bytes of a file of lines."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            data = file.read(most)
    except OSError:
        return []
    lines = data.split(b"\n")
    whole = lines[1:-1] if size > most else lines[:-1]
    found = []
    for line in whole:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _json(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > _SMALL:
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as found:
            return sorted(Path(each.path) for each in found if each.is_dir())
    except OSError:
        return []


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _held(folder: Path) -> bool:
    """Whether a process holds the generation's lock; it is asked for a shared one for an instant,
    and only where no image came lately."""
    try:
        import fcntl
    except ImportError:  # no such locks there
        return False
    try:
        with (folder / ".lock").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
    except OSError:
        pass
    return False
