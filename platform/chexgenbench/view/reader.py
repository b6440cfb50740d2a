"""The store as pages read it: the newest file, read-only, with nothing of patients unless asked."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import duckdb

from chexgenbench.errors import UserError
from chexgenbench.home import Home
from chexgenbench.store.exports import PRIVATE
from chexgenbench.store.schema import REBUILD, TABLES, VIEWS
from chexgenbench.store.store import Store

T = TypeVar("T")

_CATALOG = "chexgenbench"
_THREADS = 2


class NoStore(UserError):
    """No run has finished in this home yet."""


@dataclass(frozen=True)
class _Open:
    """One version of the store's file.

    Attributes:
        catalog: what a connection must `USE` to see the tables by their names.
        private: the attached file's name where `catalog` holds views that leave columns empty.
        cache: what was found in this version, by question.
    """

    connection: duckdb.DuckDBPyConnection
    key: tuple[int, int, int]
    catalog: str
    private: str | None
    hidden: frozenset[str]
    cache: dict[object, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Session:
    """One request's connection.

    Attributes:
        hidden: runs of credentialed splits whose prompts and real images are not shown.
        private: a name that no statement of the user may hold, see `Reader`.
    """

    connection: duckdb.DuckDBPyConnection
    hidden: frozenset[str]
    private: str | None
    _open: _Open

    @property
    def version(self) -> str:
        """Differs from one version of the store's file to the next."""
        return "-".join(map(str, self._open.key))

    def rows(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[dict[str, Any]]:
        """The answer, a dictionary a row."""
        given = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)
        found = self.connection.execute(sql, given)
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def once(self, key: object, find: Callable[[], T]) -> T:
        """`find()`, remembered as long as the store's file is the same."""
        cache = self._open.cache
        if key not in cache:
            found = find()
            with self._open.lock:
                if len(cache) >= 2_000:
                    cache.clear()
                cache[key] = found
            return found
        value: T = cache[key]
        return value


class Reader:
    """Connections to the newest store in a home.

    The file is attached to a database in memory: DuckDB keeps one open database a path in a
    process, which would be the old file for as long as anybody reads it. What belongs to patients
    of a credentialed split is empty: the catalogue that pages and the SQL box see then holds views
    that leave those columns out, and the file itself is attached by a random name.

    Args:
        include_credentialed: show prompts and paths of real images of credentialed splits too.
        memory: the most that the answers may take, as DuckDB writes it.
    """

    def __init__(
        self, home: Home, *, include_credentialed: bool = False, memory: str = "1GB"
    ) -> None:
        self._home, self._include, self._memory = home, include_credentialed, memory
        self._lock = threading.Lock()
        self._open: _Open | None = None

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A connection to the store as it is now; it keeps that version until it is closed.

        Raises:
            NoStore: no run has finished yet.
            UserError: the file is no store, or one that this release cannot read.
        """
        found = self._newest()
        with closing(found.connection.cursor()) as cursor:
            cursor.execute(f"USE {found.catalog}")
            yield Session(cursor, found.hidden, found.private, found)

    def _newest(self) -> _Open:
        path = self._home.store
        with self._lock:
            try:
                status = path.stat()
            except OSError as error:
                raise NoStore(
                    f"There is no store at {self._home.shown(path)} yet.",
                    hint=f"chexgenbench run{self._home.option}",
                ) from error
            key = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._open is None or self._open.key != key:
                Store(path).query("SELECT 1")  # of a version that this release reads
                try:
                    self._open = self._attach(key)
                except duckdb.Error as error:
                    raise UserError(f"{path} cannot be read: {error}", hint=REBUILD) from error
            return self._open

    def _attach(self, key: tuple[int, int, int]) -> _Open:
        connection = duckdb.connect(
            ":memory:",
            config={
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
                "memory_limit": self._memory,
                "threads": _THREADS,
                "temp_directory": "",  # nothing is written to the disk
            },
        )
        path = str(self._home.store).replace("'", "''")
        connection.execute(f"ATTACH '{path}' AS {_CATALOG} (READ_ONLY)")
        connection.execute(f"USE {_CATALOG}")
        rows = connection.execute("SELECT run_id FROM runs WHERE credentialed").fetchall()
        hidden = frozenset() if self._include else frozenset(str(row[0]) for row in rows)
        catalog, private = _CATALOG, None
        if hidden:
            private = f"file_{secrets.token_hex(8)}"
            connection.execute("USE memory")
            connection.execute(f"DETACH {_CATALOG}")
            connection.execute(f"ATTACH '{path}' AS {private} (READ_ONLY)")
            connection.execute(f"ATTACH ':memory:' AS {_CATALOG}")
            connection.execute(f"USE {_CATALOG}")
            for name in (*TABLES, *VIEWS):
                connection.execute(_view(name, private, hidden))
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        return _Open(connection, key, catalog, private, hidden)


def _view(name: str, source: str, hidden: frozenset[str]) -> str:
    """A view of a table that leaves what is a patient's empty in the hidden runs."""
    runs = ", ".join("'" + run.replace("'", "''") + "'" for run in sorted(hidden))
    cells = ", ".join(
        f"CASE WHEN run_id IN ({runs}) THEN NULL ELSE {column} END AS {column}"
        for column in PRIVATE.get(name, ())
    )
    wanted = f"* REPLACE ({cells})" if cells else "*"
    return f"CREATE VIEW {name} AS SELECT {wanted} FROM {source}.main.{name}"  # noqa: S608
