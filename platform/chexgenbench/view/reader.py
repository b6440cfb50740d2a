"""The store as pages read it: the newest file, read-only, with nothing of patients unless asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import duckdb

from chexgenbench.errors import UserError
from chexgenbench.store.schema import REBUILD, quoted
from chexgenbench.view.source import CATALOG, Source, Version

T = TypeVar("T")

_THREADS = 2


@dataclass(frozen=True)
class _Open:
    """A version that is open.

    Attributes:
        cache: what was found in this version, by question.
    """

    connection: duckdb.DuckDBPyConnection
    version: Version
    cache: dict[object, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Session:
    """One request's connection.

    Attributes:
        hidden: runs of credentialed splits whose prompts and real images are not shown.
    """

    connection: duckdb.DuckDBPyConnection
    hidden: frozenset[str]
    _open: _Open

    @property
    def version(self) -> str:
        """Differs from one version of the store's file to the next."""
        return "-".join(map(str, self._open.version.key))

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
    """Connections to the newest store.

    The file is attached to a database in memory: DuckDB keeps one open database a path in a
    process, which would be the old file for as long as anybody reads it.

    Args:
        memory: the most that the answers may take, as DuckDB writes it.
        plain: run statements as they are written: DuckDB's optimizer works constants out before it
            begins, and heeds neither time nor memory in that.
    """

    def __init__(self, source: Source, *, memory: str = "1GB", plain: bool = False) -> None:
        self._source, self._memory, self._plain = source, memory, plain
        self._lock = threading.Lock()
        self._open: _Open | None = None

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A connection to the store as it is now; it keeps that version until it is closed.

        Raises:
            NoStore: no run has finished yet.
            UserError: as `Source.newest`.
        """
        found = self._newest()
        with closing(found.connection.cursor()) as cursor:
            cursor.execute(f"USE {CATALOG}")
            yield Session(cursor, found.version.hidden, found)

    def _newest(self) -> _Open:
        with self._lock:
            version = self._source.newest()
            while self._open is None or self._open.version is not version:
                try:
                    opened = self._attach(version)
                except duckdb.Error as error:
                    raise UserError(f"The store cannot be read: {error}", hint=REBUILD) from error
                # The store's own file may be another one by now, with runs that are not shown; a
                # copy of it stays what it is.
                newest = self._source.newest()
                if newest is version or version.folder is not None:
                    self._open = opened
                    break
                version = newest
            return self._open

    def _attach(self, version: Version) -> _Open:
        connection = duckdb.connect(
            ":memory:",
            config={
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
                "memory_limit": self._memory,
                "threads": _THREADS,
                "temp_directory": "",  # answers are never written to the disk
            },
        )
        connection.execute(f"ATTACH {quoted(version.path)} AS {CATALOG} (READ_ONLY)")
        if self._plain:
            connection.execute(
                "SET disabled_optimizers = 'expression_rewriter,statistics_propagation'"
            )
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        return _Open(connection, version)
