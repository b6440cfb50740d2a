"""The SQL box: one question at a time to a store that nothing can change or leave."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
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
_BYTES = 20_000_000
"""Bytes of the cells on a page, and of a download."""

_PART = 1_000
_CELL = 2_000
"""Characters of a cell on a page."""

_NUMBERS = (
    "tinyint",
    "smallint",
    "integer",
    "bigint",
    "hugeint",
    "utinyint",
    "usmallint",
    "uinteger",
    "ubigint",
    "uhugeint",
    "decimal",
    "float",
    "double",
)
_NESTED = ("list", "array", "struct", "tuple", "map", "union", "variant")

_GRACE = 1.0
"""Seconds that a question which is to end is waited for."""

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

    Each is at work in a thread that ends with the process: what DuckDB does not interrupt keeps
    neither a reply nor Ctrl-C waiting.

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

    async def csv(self, sql: str, gone: Callable[[], Awaitable[bool]]) -> bytes:
        """All rows as CSV; the errors of `table`, and where there are too many."""
        found: bytes = await self._ask(sql, _csv, gone)
        return found

    @property
    def at_work(self) -> bool:
        """Whether a question has not ended; after `end_all`, one that DuckDB does not interrupt."""
        return bool(self._working)

    def end_all(self) -> None:
        """Ends every question at work, and each that comes: the server is stopping."""
        self._ended = True
        for running in list(self._working):
            running.interrupt()

    async def _ask(
        self,
        sql: str,
        form: Callable[[_Asked], Any],
        gone: Callable[[], Awaitable[bool]],
    ) -> Any:
        if len(self._working) >= self._at_once:
            raise Stopped(
                f"{self._at_once} questions are at work.", hint="Wait for one, or end it."
            )
        running = _Running()
        loop = asyncio.get_running_loop()
        # Holds (answer, error): an error that nobody takes would be logged, and the SQL with it.
        work: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

        def settle(found: tuple[Any, BaseException | None]) -> None:
            if not work.done():
                work.set_result(found)

        def run() -> None:
            found: tuple[Any, BaseException | None]
            try:
                found = self._answer(sql, form, running), None
            except BaseException as error:
                found = None, error
            self._working.discard(running)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, found)

        self._working.add(running)
        threading.Thread(target=run, daemon=True).start()
        why = await self._until_done(work, running, gone)
        answer, error = work.result() if work.done() else (None, None)
        if error is None and work.done():
            return answer
        if error is not None and not isinstance(error, duckdb.InterruptException):
            raise error
        if why == "slow":
            raise Stopped(
                f"The question was ended after {self._seconds:g} s.",
                hint="Ask for less, or in the terminal: chexgenbench query",
            ) from None
        raise Stopped("The question was cancelled.") from None

    async def _until_done(
        self,
        work: asyncio.Future[Any],
        running: _Running,
        gone: Callable[[], Awaitable[bool]],
    ) -> Literal["slow", "gone"] | None:
        """Waits for an answer, and says why it was ended; it may be at work still."""
        why: Literal["slow", "gone"] | None = None
        end = time.monotonic() + self._seconds
        try:
            while not (await asyncio.wait({work}, timeout=_LOOK))[0]:
                now = time.monotonic()
                if why is None and now > end:
                    why = "slow"
                elif why is None and (self._ended or await gone()):
                    why, end = "gone", now
                if why is not None:
                    running.interrupt()  # again and again: it may not have begun
                    if now > end + _GRACE:
                        break
        except asyncio.CancelledError:  # the server is stopping
            running.interrupt()
            raise
        return why

    def _answer(self, sql: str, form: Callable[[_Asked], Any], running: _Running) -> Any:
        """In a thread. No error that leaves it holds the statement, except for `UserError`, which
        is shown and never logged."""
        with self._reader.session() as session:
            with running.lock:
                running.connection = session.connection
            try:
                return form(_Asked(session.connection, check(sql, session.connection)))
            except (UserError, duckdb.InterruptException):
                raise
            except Exception as error:
                # Arrow tells of DuckDB's errors in its own.
                said = str(error).strip()
                if "INTERRUPT Error" in said:
                    raise duckdb.InterruptException("Interrupted") from None
                if isinstance(error, duckdb.Error) or " Error: " in said:
                    raise UserError(said) from None
                raise UserError(
                    f"The answer cannot be shown ({type(error).__name__}).",
                    hint="In the terminal: chexgenbench query",
                ) from None
            finally:
                with running.lock:
                    running.connection = None


class _Asked:
    """The answer to a statement, which DuckDB works out as its parts are read.

    Attributes:
        names: of the columns, as many times as there are.
        kinds: their types, as DuckDB calls them inside.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, sql: str) -> None:
        try:
            found = connection.sql(sql)
        except duckdb.Error:
            connection.execute(sql)  # fails as well, and says where in the text
            raise
        assert found is not None
        self._found = found
        self.names: list[str] = list(found.columns)
        self.kinds: list[str] = [kind.id for kind in found.types]

    def parts(
        self, cell: Callable[[str, str], str], bytes_: int, rows: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Its rows, with `cell(column, kind)` in SQL for each; text is made in DuckDB, since
        Python has no infinite dates, and none before Christ.

        Args:
            bytes_: the most that all parts may hold.
            rows: the first ones alone.
        """
        wanted = ", ".join(
            f"{cell(f'#{at}', kind)} AS c{at}" for at, kind in enumerate(self.kinds, 1)
        )
        found = self._found.project(wanted)
        try:
            reader = (found if rows is None else found.limit(rows)).to_arrow_reader(_PART)
            size = 0
            for part in reader:
                size += part.nbytes
                if size > bytes_:
                    raise UserError(
                        f"The answer is longer than {bytes_ // 10**6} MB.",
                        hint="Ask for less, or in the terminal: "
                        "chexgenbench query --format csv --out FILE",
                    )
                yield part
        except (duckdb.Error, OSError, pa.ArrowException) as error:
            # The statement stands inside another one here, two lines below its beginning.
            said = re.sub(r"\bLINE (\d+):", lambda at: f"LINE {int(at[1]) - 2}:", str(error))
            raise type(error)(said) from None


def check(sql: str, connection: duckdb.DuckDBPyConnection) -> str:
    """Refuses everything that is not one SELECT, and gives it without what follows it.

    The connection could neither write nor reach a file anyway; this says so in plain words, and
    keeps transactions, prepared statements and settings of the connection out.

    Raises:
        UserError: naming what it is instead.
    """
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(str(error).strip()) from None
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
    text = statements[0].query.encode()
    for at, part in duckdb.tokenize(text.decode()):  # places are bytes
        if part == duckdb.token_type.operator and text[at : at + 1] == b";":
            return text[:at].decode()
    return text.decode()


def schema(session: Session) -> list[dict[str, Any]]:
    """Tables and views with their columns, types and comments, for completion."""
    rows = session.rows(
        "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() "
        "WHERE NOT internal AND database_name = current_database() "
        "ORDER BY table_name, column_index"
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


def _table(asked: _Asked) -> Answer:
    begun = time.perf_counter()
    rows: list[list[str | None]] = []
    for part in asked.parts(_short, _BYTES, ROWS + 1):
        columns = [[_cell(value) for value in column.to_pylist()] for column in part.columns]
        rows.extend(map(list, zip(*columns, strict=True)))
    return Answer(
        columns=asked.names,
        numeric=[kind in _NUMBERS for kind in asked.kinds],
        rows=rows[:ROWS],
        cut=len(rows) > ROWS,
        seconds=time.perf_counter() - begun,
    )


def _short(column: str, kind: str) -> str:
    """The cell of a page: a number, or the beginning of a text."""
    if kind in _NUMBERS:
        return column
    if kind == "list":  # before it is text, which a long one takes its time for
        column = f"list_slice({column}, 1, {_CELL})"
    return f"left({column}::VARCHAR, {_CELL + 1})"


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _CELL else f"{text[:_CELL]}..."


def _csv(asked: _Asked) -> bytes:
    heads = pa.table([pa.nulls(0)] * len(asked.names), names=asked.names)
    texts, rows = [_lines(heads)], 0
    for part in asked.parts(_whole, _CSV_BYTES):
        rows += part.num_rows
        if rows > CSV_ROWS:
            raise UserError(
                f"The answer is longer than {CSV_ROWS:,} rows.",
                hint="In the terminal: chexgenbench query --format csv --out FILE",
            )
        texts.append(_lines(pa.Table.from_batches([part])).partition(b"\n")[2])
    return b"".join(texts)


def _lines(table: pa.Table) -> bytes:
    text = render(table, "csv")
    assert isinstance(text, str)
    return text.encode()


def _whole(column: str, kind: str) -> str:
    """The cell of a download."""
    if kind in _NUMBERS or kind in ("boolean", "varchar"):
        return column
    return f"to_json({column})::VARCHAR" if kind in _NESTED else f"{column}::VARCHAR"
