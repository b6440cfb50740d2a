"""SHA-256 of files, remembered by path, size and modification time."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from chexgenbench.files import sha256_file

_STATEMENT = """
create table if not exists hashes (
    path text primary key, size integer not null, mtime_ns integer not null, sha256 text not null
)
"""


class HashCache:
    """Hashes of large files without reading them again; SQLite makes it safe for processes.

    It only saves time: where it is damaged or cannot be written, files are hashed again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def sha256(self, paths: Sequence[Path]) -> list[str | None]:
        """The hash of each file, None for one that cannot be read."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=60)) as database:
                database.execute("pragma journal_mode = wal")
                database.execute(_STATEMENT)
                return self._known(database, paths)
        except (sqlite3.Error, OSError):
            return [_hash(path) for path in paths]

    def _known(self, database: sqlite3.Connection, paths: Sequence[Path]) -> list[str | None]:
        result: list[str | None] = []
        new: list[tuple[str, int, int, str]] = []
        for path in paths:
            try:
                stat = path.stat()
            except OSError:
                result.append(None)
                continue
            state = (str(path), stat.st_size, stat.st_mtime_ns)
            known = database.execute(
                "select sha256 from hashes where path = ? and size = ? and mtime_ns = ?", state
            ).fetchone()
            value = known[0] if known else _hash(path)
            if value is not None and not known:
                new.append((*state, value))
            result.append(value)
        with database:
            database.executemany("insert or replace into hashes values (?, ?, ?, ?)", new)
        return result


def _hash(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except OSError:
        return None
