"""The file that the explorer opens: the store's own, or a copy that holds nothing of patients."""

from __future__ import annotations

import shutil
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from chexgenbench.errors import UserError
from chexgenbench.home import Home
from chexgenbench.store.exports import PRIVATE
from chexgenbench.store.schema import (
    REBUILD,
    SCHEMA_VERSION,
    TABLES,
    VIEWS,
    migrate,
    quoted,
    version_of,
    write_comments,
)
from chexgenbench.store.store import Store

CATALOG = "chexgenbench"
"""What the sessions call the store's database."""

_TRIES = 3


class NoStore(UserError):
    """No run has finished in this home yet."""


@dataclass(frozen=True)
class Version:
    """One version of the store's file.

    Attributes:
        key: differs from one version to the next.
        path: what to open, read-only.
        hidden: runs of credentialed splits of which `path` holds no text, number or path of a
            patient.
        folder: holds the copy; it is removed with the last reference to it.
    """

    key: tuple[int, int, int]
    path: Path
    hidden: frozenset[str]
    folder: TemporaryDirectory[str] | None


class Source:
    """Finds the newest store in a home and makes it fit to be shown; never changes it.

    Where a split is credentialed, tables are copied into a file of the explorer's own without the
    cells that are a patient's. SQL cannot be kept from a file that is open by looking at the
    statement: functions take names of tables as text, statistics quote values, and DuckDB lets a
    statement read the bytes of every file that is attached. What was never written cannot be read.
    A store of an older schema is brought to this release's in a copy as well.

    Args:
        include_credentialed: show what is a patient's too.
    """

    def __init__(self, home: Home, *, include_credentialed: bool = False) -> None:
        self._home, self._include = home, include_credentialed
        self._lock = threading.Lock()
        self._newest: Version | None = None

    def newest(self) -> Version:
        """The store as it is now.

        Raises:
            NoStore: no run has finished yet.
            UserError: the file is no store, one that this release cannot read, or there is no
                room for a copy.
        """
        with self._lock:
            for _ in range(_TRIES):  # it may be replaced while it is copied
                key = self._key()
                if self._newest is not None and self._newest.key == key:
                    return self._newest
                found = self._make(key)
                if self._key() == key:
                    break
            self._newest = found
            return found

    def close(self) -> None:
        """Removes the copy."""
        with self._lock:
            if self._newest is not None and self._newest.folder is not None:
                self._newest.folder.cleanup()
            self._newest = None

    def _key(self) -> tuple[int, int, int]:
        path = self._home.store
        try:
            status = path.stat()
        except OSError as error:
            raise NoStore(
                f"There is no store at {self._home.shown(path)} yet.",
                hint=f"chexgenbench run{self._home.option}",
            ) from error
        return (status.st_ino, status.st_mtime_ns, status.st_size)

    def _make(self, key: tuple[int, int, int]) -> Version:
        path = self._home.store
        Store(path).check()
        folder: TemporaryDirectory[str] | None = None
        try:
            current, hidden = self._look(path)
            if current and not hidden:
                return Version(key, path, hidden, None)
            folder = TemporaryDirectory(prefix="chexgenbench-view-", ignore_cleanup_errors=True)
            if not current:
                path = Path(folder.name) / "migrated.duckdb"
                shutil.copyfile(self._home.store, path)
                with closing(duckdb.connect(str(path))) as connection:
                    migrate(connection, self._home.store)
                _, hidden = self._look(path)
            if hidden:
                blank = Path(folder.name) / "store.duckdb"
                _copy(path, blank, hidden)
                if path != self._home.store:
                    path.unlink()
                path = blank
        except (duckdb.Error, OSError) as error:
            if folder is not None:
                folder.cleanup()
            if isinstance(error, OSError | duckdb.IOException):
                raise UserError(
                    f"{self._home.store} cannot be copied to be shown: {error}",
                    hint="Free some disk space, or set TMPDIR to a folder that has it.",
                ) from error
            raise UserError(f"{self._home.store} cannot be read: {error}", hint=REBUILD) from error
        return Version(key, path, hidden, folder)

    def _look(self, path: Path) -> tuple[bool, frozenset[str]]:
        """Whether the schema is this release's, and the runs whose patients are not shown."""
        # Attached, since a file that is open elsewhere in the process may be an older one.
        with closing(duckdb.connect(":memory:")) as connection:
            connection.execute(f"ATTACH {quoted(path)} AS {CATALOG} (READ_ONLY)")
            connection.execute(f"USE {CATALOG}")
            if version_of(connection, self._home.store) < SCHEMA_VERSION:
                return False, frozenset()
            if self._include:
                return True, frozenset()
            rows = connection.execute("SELECT run_id FROM runs WHERE credentialed").fetchall()
            return True, frozenset(str(row[0]) for row in rows)


def _copy(source: Path, target: Path, hidden: frozenset[str]) -> None:
    """Every table and view, with what is a patient's left empty in the hidden runs."""
    with closing(duckdb.connect(":memory:", config={"threads": 2})) as connection:
        connection.execute(f"SET temp_directory = {quoted(target.parent)}")
        connection.execute(f"ATTACH {quoted(source)} AS source (READ_ONLY)")
        connection.execute(f"ATTACH {quoted(target)} AS {CATALOG}")
        connection.execute(f"USE {CATALOG}")
        runs = ", ".join(quoted(run) for run in sorted(hidden))
        for name in TABLES:
            cells = ", ".join(
                f"CASE WHEN run_id IN ({runs}) THEN NULL ELSE {column} END AS {column}"
                for column in PRIVATE.get(name, ())
            )
            wanted = f"* REPLACE ({cells})" if cells else "*"
            connection.execute(
                f"CREATE TABLE {name} AS SELECT {wanted} FROM source.main.{name}"  # noqa: S608
            )
        for name, (_, sql) in VIEWS.items():
            connection.execute(f"CREATE VIEW {name} AS {sql}")
        write_comments(connection)
        connection.execute("USE memory")
        connection.execute(f"DETACH {CATALOG}")  # all of it is in the file then, and no log
