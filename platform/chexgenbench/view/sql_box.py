"""The SQL box: one question at a time to a store that nothing can change or leave."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import duckdb
import pyarrow as pa

from chexgenbench.errors import UserError
from chexgenbench.store.render import render
from chexgenbench.view.reader import Reader, Session

ROWS = 1_000
"""Rows of a table on a page."""

CSV_ROWS = 1_000_000
"""Rows of a download; a longer one is refused rather than cut."""

_CSV_BYTES = 200_000_000
_PART = 10_000
_CELL = 2_000
"""Characters of a cell on a page."""

_NUMBERS = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UINTEGER",
    "UBIGINT",
    "DECIMAL",
    "FLOAT",
    "DOUBLE",
)

_LOOK = 0.1
"""Seconds between two looks at whether the question is still wanted."""


class Stopped(UserError):
    """A question that was ended before its answer was there."""


@dataclass(frozen=True)
class Answer:
    """The head of an answer.

    Attributes:
        numeric: whether a column holds numbers.
        rows: cells as text; None for null.
        cut: whether there are more rows.
    """

    columns: list[str]
    numeric: list[bool]
    rows: list[list[str | None]]
    cut: bool
    seconds: float


@dataclass(eq=False)
class _Running:
    """A question at work in a thread."""

    connection: duckdb.DuckDBPyConnection | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def interrupt(self) -> None:
        with self.lock:
            if self.connection is not None:
                self.connection.interrupt()


class SqlBox:
    """Answers statements of the user.

    Args:
        seconds: after which a question is ended.
        at_once: questions that may be at work; a further one is refused.
    """

    def __init__(self, reader: Reader, *, seconds: float = 30.0, at_once: int = 2) -> None:
        self._reader, self._seconds, self._at_once = reader, seconds, at_once
        self._working: set[_Running] = set()
        self._ended = False

    async def table(self, sql: str, gone: Callable[[], Awaitable[bool]]) -> Answer:
        """The first `ROWS` rows.

        Args:
            gone: whether nobody waits for the answer any more, which ends the question.

        Raises:
            Stopped: it took too long, was cancelled, or too many are at work.
            UserError: no single SELECT, or with DuckDB's message and the position.
        """
        found: Answer = await self._ask(sql, _table, gone)
        return found

    async def csv(self, sql: str, gone: Callable[[], Awaitable[bool]]) -> str:
        """All rows as CSV; the errors of `table`, and where there are too many."""
        found: str = await self._ask(sql, _csv, gone)
        return found

    def end_all(self) -> None:
        """Ends every question at work, and each that comes: the server is stopping."""
        self._ended = True
        for running in list(self._working):
            running.interrupt()

    async def _ask(
        self,
        sql: str,
        form: Callable[[duckdb.DuckDBPyConnection, str], Any],
        gone: Callable[[], Awaitable[bool]],
    ) -> Any:
        if len(self._working) >= self._at_once:
            raise Stopped(
                f"{self._at_once} questions are at work.", hint="Wait for one, or end it."
            )
        running = _Running()
        self._working.add(running)
        why: Literal["slow", "gone"] | None = None
        work = asyncio.create_task(asyncio.to_thread(self._answer, sql, form, running))
        work.add_done_callback(lambda _done: self._working.discard(running))
        end = time.monotonic() + self._seconds
        try:
            while not (await asyncio.wait({work}, timeout=_LOOK))[0]:
                if time.monotonic() > end:
                    why = "slow"
                elif self._ended or await gone():
                    why = "gone"
                if why is not None:
                    running.interrupt()  # again and again: it may not have begun
        except asyncio.CancelledError:  # the server is stopping
            running.interrupt()
            raise
        try:
            return work.result()
        except duckdb.InterruptException as error:
            if why == "slow":
                raise Stopped(
                    f"The question was ended after {self._seconds:g} s.",
                    hint="Ask for less, or in the terminal: chexgenbench query",
                ) from error
            raise Stopped("The question was cancelled.") from error

    def _answer(
        self, sql: str, form: Callable[[duckdb.DuckDBPyConnection, str], Any], running: _Running
    ) -> Any:
        with self._reader.session() as session:
            check(sql, session)
            with running.lock:
                running.connection = session.connection
            try:
                return form(session.connection, sql)
            except duckdb.InterruptException:
                raise
            except duckdb.Error as error:
                raise UserError(_shown(str(error).strip(), session)) from error
            finally:
                with running.lock:
                    running.connection = None


def check(sql: str, session: Session) -> None:
    """Refuses everything that is not one SELECT.

    The connection could neither write nor reach a file anyway; this says so in plain words, and
    keeps transactions, prepared statements and settings of the connection out.

    Raises:
        UserError: naming what it is instead.
    """
    if session.private is not None and session.private in sql.lower():
        raise UserError("The file itself is not open here: ask its tables by their names.")
    try:
        statements = session.connection.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(_shown(str(error).strip(), session)) from error
    if len(statements) != 1:
        many = f"{len(statements)} statements" if statements else "nothing"
        raise UserError(f"That is {many}, not one SELECT.")
    kind = statements[0].type.name
    if kind != "SELECT":
        more = "; a PIVOT needs its values named: PIVOT ... ON column IN (...)"
        raise UserError(
            f"That is {kind}; the store is read-only here, and takes one SELECT "
            f"(or FROM, WITH, VALUES, DESCRIBE, SUMMARIZE){more if kind == 'MULTI' else ''}."
        )


def schema(session: Session) -> list[dict[str, Any]]:
    """Tables and views with their columns, types and comments, for completion."""
    rows = session.rows(
        "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() "
        "WHERE NOT internal AND database_name = coalesce(?, current_database()) "
        "ORDER BY table_name, column_index",
        [session.private],
    )
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        table = found.setdefault(row["table_name"], {"name": row["table_name"], "columns": []})
        table["columns"].append(
            {
                "name": row["column_name"],
                "type": row["data_type"],
                "comment": row["comment"] or "",
            }
        )
    return list(found.values())


def _shown(message: str, session: Session) -> str:
    """A message of DuckDB without the name that the file has here."""
    return message.replace(f"{session.private}.main.", "") if session.private else message


def _table(connection: duckdb.DuckDBPyConnection, sql: str) -> Answer:
    begun = time.perf_counter()
    result = connection.execute(sql)
    description = result.description or []
    rows = result.fetchmany(ROWS + 1)
    return Answer(
        columns=[str(column[0]) for column in description],
        numeric=[str(column[1]).startswith(_NUMBERS) for column in description],
        rows=[[_cell(value) for value in row] for row in rows[:ROWS]],
        cut=len(rows) > ROWS,
        seconds=time.perf_counter() - begun,
    )


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _CELL else f"{text[:_CELL]}..."


def _csv(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    reader = connection.execute(sql).to_arrow_reader(_PART)
    assert reader is not None
    parts, rows, size = [], 0, 0
    for part in reader:
        rows, size = rows + part.num_rows, size + part.nbytes
        if rows > CSV_ROWS or size > _CSV_BYTES:
            raise UserError(
                f"The answer is longer than {CSV_ROWS:,} rows or {_CSV_BYTES // 10**6} MB.",
                hint="In the terminal: chexgenbench query --format csv --out FILE",
            )
        parts.append(part)
    text = render(pa.Table.from_batches(parts, reader.schema), "csv")
    assert isinstance(text, str)
    return text
