"""The DuckDB file: an index over run directories, replaced as a whole at every change.

A writer works on a copy and renames it over the store, so that readers in other processes keep
what they opened and a crash or a full disk leaves the old store.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from filelock import Timeout

from chexgenbench.errors import UserError, stoppable
from chexgenbench.files import (
    answer,
    atomic_path,
    digest,
    file_lock,
    is_free,
    remove_leftovers,
    sign,
    signs,
)
from chexgenbench.store.records import SCHEMAS, RunRecord
from chexgenbench.store.run_directory import RECORD_NAME, read_record, read_table, run_folders
from chexgenbench.store.schema import REBUILD, SCHEMA_VERSION, TABLES, migrate, version_of

_ROWS = 100_000
"""Of a part of a streamed answer."""

_STORAGE: dict[str, str | bool | int | float | list[str]] = {
    "storage_compatibility_version": "v1.0.0",
    "threads": 1,
}
"""Of a file that is written: other programs (R, a database shell) often have an older DuckDB than
this one.

Several threads write a big table in pieces of their own, which the checkpoint then writes again as
whole row groups: twice the work, and a file half as large again.
"""

_LOCK_SECONDS = 600

_WAITING = ".ingest"
"""The end of the name of the file that tells of a run which waits to be taken in."""

_MOST_ROWS = 2_000_000
"""Of other processes' runs that one takes in with its own: they are held in memory together."""

_Change = Callable[[duckdb.DuckDBPyConnection], None]
_JSON = (
    "model_parameters",
    "subsets",
    "remarks",
    "versions",
    "weights",
    "hardware",
    "encoders",
    "metrics",
    "pools",
)


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild took in, and which directories it could not read with the reason."""

    run_ids: list[str]
    skipped: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Run:
    """A run directory as it was read.

    Attributes:
        stamp: of its record then, which every change of the directory writes anew.
    """

    folder: Path
    stamp: tuple[int, int]
    record: RunRecord
    tables: dict[str, pa.Table]


class Store:
    """The store at `path`; it need not exist until something is asked of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Raises `UserError` for a store that this release cannot use; an absent one is well."""
        if self.path.is_file():
            connection = self._connect()
            try:
                self._version(connection)
            finally:
                connection.close()

    def ingest(self, folders: Iterable[Path]) -> list[str]:
        """Takes run directories in, in place of what the store had of the same runs.

        Of several processes that wait for it, the first takes in the runs of all whose directories
        lie beside its own: a change of the store takes about as long for one run as for eight.
        """
        runs = {folder.name: _read(folder) for folder in folders}  # the last of each counts
        if not runs:
            return []
        with self._writing(), ExitStack() as stack:
            here = self.path.parent
            answered = [stack.enter_context(sign(here, name, _WAITING)) for name in runs]
            stack.enter_context(self._alone())
            if not all(each() for each in answered):
                self._take_in(runs)
        return list(runs)

    def _take_in(self, runs: Mapping[str, _Run]) -> None:
        """Runs of this process, and of those that wait for the lock, which this one holds."""
        others: dict[str, _Run] = {}
        # Before the runs are looked at: who asks later may have written one of them since.
        waiting = signs(self.path.parent, _WAITING)
        own = {name: _newest(run) for name, run in runs.items()}
        runs_folder, rows = next(iter(own.values())).folder.parent, 0
        for path, name in waiting.items():
            if name in own or name in others or rows > _MOST_ROWS:
                continue
            try:
                run = _read(runs_folder / name)
                if run.record.status == "running":
                    raise UserError(f"{name} was begun again since.")
                others[name] = run
                rows += sum(table.num_rows for table in run.tables.values())
            except (UserError, OSError):  # of another project, or gone: who waits for it will see
                if is_free(path):
                    path.unlink(missing_ok=True)
        taken = {**others, **own}
        try:
            self._load_locked(taken)
        except (UserError, duckdb.OutOfMemoryException):
            if not others:
                raise
            taken = dict(own)  # what is wrong with the others' runs is for them to hear
            self._load_locked(taken)
        for path, name in waiting.items():
            if name in taken:
                answer(path)

    def _load_locked(self, runs: Mapping[str, _Run]) -> None:
        self._change_locked(lambda connection: _load(connection, list(runs.values())), fresh=False)

    def delete(self, run_ids: Iterable[str]) -> None:
        """Removes runs from the store; their directories stay."""
        names = list(run_ids)
        self._require()

        def change(connection: duckdb.DuckDBPyConnection) -> None:
            _remove(connection, names)
            connection.execute(
                "DELETE FROM differences WHERE other_run IN (SELECT unnest(?::VARCHAR[]))", [names]
            )

        self._change(change)

    def rebuild(self, runs_folder: Path) -> Rebuilt:
        """Makes the store again from the directories in `runs_folder`, whatever stood there."""
        runs: dict[str, _Run] = {}
        skipped: dict[Path, str] = {}
        with self._writing(), self._alone():
            # Under the lock, or a run that is taken in meanwhile would be lost again.
            for folder in run_folders(runs_folder):
                try:
                    run = _read(folder)
                except UserError as error:
                    skipped[folder] = error.message
                else:
                    runs[run.record.run_id] = run
            self._change_locked(
                lambda connection: _load(connection, list(runs.values())), fresh=True
            )
        return Rebuilt(list(runs), skipped)

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> pa.Table:
        """The answer to one SQL statement, which can neither write nor reach other files.

        Raises:
            UserError: when there is no store yet, or with DuckDB's message and the position.
        """
        self._require()
        with self._reading() as connection:
            try:
                statements = connection.extract_statements(sql)
                if len(statements) != 1:
                    raise UserError(
                        f"The query holds {len(statements)} statements, not one.",
                        hint="Give one SELECT.",
                    )
                # Only execute() says where in the text an error is; that its Arrow result is a
                # copy, of which DuckDB warns, costs little beside the query.
                result = connection.execute(sql, list(parameters))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    return result.to_arrow_table()
            except duckdb.Error as error:
                if _is_damage(error):
                    raise self._unreadable(error) from error
                raise UserError(
                    str(error).strip(),
                    hint="Tables and columns: chexgenbench query "
                    '"select table_name, column_name, comment from duckdb_columns() '
                    'where not internal"',
                ) from error

    @contextmanager
    def stream(self, sql: str) -> Iterator[pa.RecordBatchReader]:
        """The answer to one of the platform's own statements, a part at a time."""
        self._require()
        with self._reading() as connection:
            try:
                yield connection.cursor().sql(sql).to_arrow_reader(_ROWS)
            except duckdb.Error as error:
                if _is_damage(error):
                    raise self._unreadable(error) from error
                raise

    def copy_of(self, version: int) -> Path:
        """Where a store of that older schema is kept when it is brought to this release's."""
        return self.path.with_name(f"{self.path.stem}-schema-{version}{self.path.suffix}")

    def run_ids(self) -> list[str]:
        """The runs that it has, by name; none where there is no store."""
        if not self.path.is_file():
            return []
        ids: list[str] = self.query("SELECT run_id FROM runs ORDER BY 1").column(0).to_pylist()
        return ids

    def run(self, run_id: str) -> tuple[RunRecord, dict[str, pa.Table]]:
        """The record and the tables of a run as its directory has them, from what was taken in."""
        rows = self.rows(run_id)
        (row,) = rows.pop("runs").to_pylist()
        del row["model_id"]
        row |= {name: json.loads(row[name]) for name in _JSON if row[name] is not None}
        row |= {
            name: value.replace(tzinfo=UTC).isoformat()
            for name, value in row.items()
            if isinstance(value, datetime)
        }
        known = {name: value for name, value in row.items() if value is not None}
        tables = {name: _as_text(table) for name, table in rows.items()}
        return RunRecord.model_validate(known), tables

    def rows(self, run_id: str) -> dict[str, pa.Table]:
        """The rows of a run by table, as it was taken in; of ``runs`` as well."""
        return {
            name: self.query(
                f"SELECT {_columns(name)} FROM {name} WHERE run_id = ?",  # noqa: S608
                [run_id],
            )
            for name in ("runs", *SCHEMAS)
        }

    def differing(self, folders: Iterable[Path]) -> Iterator[tuple[Path, list[str] | UserError]]:
        """Of each run directory, the tables that have other rows here, or why the store could not
        take it in.

        Raises:
            UserError: the store cannot be read.
        """
        there = set(self.run_ids())
        with stoppable(), duckdb.connect() as connection:
            migrate(connection, self.path)
            for folder in folders:
                try:
                    run = _read(folder)
                    with _fitting():
                        _load(connection, [run], others=there)
                except UserError as error:
                    yield folder, error
                else:
                    stored = self.rows(folder.name)
                    unequal = partial(_unequal, connection)
                    yield folder, [name for name, rows in stored.items() if unequal(name, rows)]
                _remove(connection, [folder.name])

    def _require(self) -> None:
        if not self.path.is_file():
            raise UserError(
                f"There is no store at {self.path}.", hint="run `chexgenbench run` first"
            )

    @contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with stoppable():
            connection = self._connect()
            try:
                if self._version(connection) < SCHEMA_VERSION:
                    connection.close()
                    self._change(lambda _connection: None)
                    connection = self._connect()
                yield connection
            finally:
                connection.close()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        try:
            return duckdb.connect(
                str(self.path),
                read_only=True,
                config={
                    "enable_external_access": False,
                    "python_enable_replacements": False,
                    "lock_configuration": True,
                },
            )
        except duckdb.Error as error:
            raise self._unreadable(error) from error

    def _version(self, connection: duckdb.DuckDBPyConnection) -> int:
        try:
            return version_of(connection, self.path)
        except duckdb.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: duckdb.Error) -> UserError:
        text = str(error)
        if re.search(r"\block\b", text, re.IGNORECASE) and not _is_damage(error):
            return UserError(
                f"{self.path} is open for writing in another program: {text}",
                hint="Close it there, or open it read-only.",
            )
        return UserError(f"{self.path} cannot be read: {text}", hint=REBUILD)

    def _change(self, change: _Change, *, fresh: bool = False) -> None:
        """Applies `change` to a copy of the store, or to an empty one, and puts it in place.

        A store of an older schema is kept beside it, as `copy_of` names it.
        """
        with self._writing(), self._alone():
            self._change_locked(change, fresh=fresh)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with file_lock(f"{self.path}.lock", timeout=_LOCK_SECONDS):
                yield
        except Timeout as error:
            raise UserError(
                f"Another process has held {self.path}.lock for {_LOCK_SECONDS} s.",
                hint="Wait for it or end it, then try again.",
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Says of errors in the block that the store cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with stoppable():
                yield
        except (
            OSError,
            duckdb.IOException,
            duckdb.OutOfMemoryException,
            duckdb.FatalException,  # a checkpoint on a full disk
            duckdb.TransactionException,  # a commit there
        ) as error:
            if isinstance(error, duckdb.Error) and _is_damage(error):
                raise self._unreadable(error) from error
            raise UserError(
                f"{self.path} cannot be written: {error}. What was there before is unchanged.",
                hint="Free some disk space or make the folder writable; then "
                "`chexgenbench store rebuild` takes in what is missing.",
            ) from error
        except duckdb.Error as error:
            if _is_damage(error):
                raise self._unreadable(error) from error
            raise

    def _change_locked(self, change: _Change, *, fresh: bool) -> None:
        remove_leftovers(self.path.parent, self.path.suffix)
        remove_leftovers(self.path.parent, f"{self.path.suffix}.wal")
        with atomic_path(self.path) as temporary:
            log = Path(f"{temporary}.wal")
            try:
                if self.path.exists() and not fresh:
                    shutil.copyfile(self.path, temporary)
                else:
                    temporary.unlink()  # DuckDB refuses an empty file
                try:
                    connection = duckdb.connect(str(temporary), config=_STORAGE)
                    try:
                        before = version_of(connection, self.path)
                        if 0 < before < SCHEMA_VERSION:
                            with atomic_path(self.copy_of(before)) as kept:
                                shutil.copyfile(self.path, kept)
                        migrate(connection, self.path)
                    except BaseException:
                        connection.close()
                        raise
                except duckdb.Error as error:
                    if fresh or not self.path.exists():
                        raise
                    raise self._unreadable(error) from error
                try:
                    with _fitting():
                        change(connection)
                    connection.execute("CHECKPOINT")
                finally:
                    connection.close()
                # A log left by another program belongs to the file that is about to go.
                Path(f"{self.path}.wal").unlink(missing_ok=True)
            finally:
                log.unlink(missing_ok=True)
        _sync_folder(self.path.parent)


def _is_damage(error: duckdb.Error) -> bool:
    """Whether DuckDB found that a file is not what was written.

    Its errors have no kind for that; the words are those of its storage layer.
    """
    text = str(error).lower()
    words = ("corrupt", "checksum", "deserialize", "serialization error", "not read enough bytes")
    return any(word in text for word in words)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _fitting() -> Iterator[None]:
    try:
        yield
    except (duckdb.ConstraintException, duckdb.ConversionException) as error:
        raise UserError(
            f"The run does not fit the store: {error}",
            hint="Delete its directory and run again.",
        ) from error


def _newest(run: _Run) -> _Run:
    """The run, read again if another process has written it since."""
    return run if _stamp(run.folder) == run.stamp else _read(run.folder)


def _stamp(folder: Path) -> tuple[int, int]:
    with suppress(OSError):
        stat = (folder / RECORD_NAME).stat()
        return stat.st_ino, stat.st_mtime_ns
    return 0, 0  # what it means is said by whoever reads it


def _read(folder: Path) -> _Run:
    stamp = _stamp(folder)
    record = read_record(folder)
    tables = {name: read_table(folder, name, record) for name in SCHEMAS}
    for name, table in tables.items():
        key = list(TABLES[name].key)
        if _repeats(table.select(key)):
            raise UserError(
                f"{folder / name}.parquet has rows that repeat {', '.join(key)}.",
                hint="Delete the directory and run again.",
            )
    return _Run(folder, stamp, record, tables)


def _repeats(table: pa.Table) -> bool:
    """Whether a row is there twice.

    Each column's values are numbered, and a row's numbers made one: sorting those takes a quarter
    of the time of grouping rows of texts.
    """
    codes = np.zeros(table.num_rows, np.int64)
    kinds = 1
    for column in table.columns:
        numbered = column.dictionary_encode("encode").combine_chunks()
        kinds *= max(1, len(numbered.dictionary))
        if kinds > 2**62:
            codes = np.unique(codes, return_inverse=True)[1]
            kinds = table.num_rows * max(1, len(numbered.dictionary))
        codes = codes * max(1, len(numbered.dictionary)) + numbered.indices.to_numpy()
    codes.sort()
    return bool((codes[1:] == codes[:-1]).any())


def _unequal(connection: duckdb.DuckDBPyConnection, name: str, stored: pa.Table) -> bool:
    """Whether a table has other rows than these, in whatever order."""
    ours = f"(SELECT {_columns(name)} FROM {name})"  # noqa: S608
    connection.register("stored", stored)
    try:
        apart = connection.execute(
            f"SELECT count(*) FROM (({ours} EXCEPT ALL FROM stored) "  # noqa: S608
            f"UNION ALL (FROM stored EXCEPT ALL {ours}))"
        ).fetchall()
    finally:
        connection.unregister("stored")
    return apart != [(0,)]


def _as_text(table: pa.Table) -> pa.Table:
    """The table with its times as run directories have them."""
    for at, column in enumerate(table.schema):
        if pa.types.is_timestamp(column.type):
            times = [
                None if time is None else time.replace(tzinfo=UTC).isoformat()
                for time in table.column(at).to_pylist()
            ]
            table = table.set_column(at, column.name, pa.array(times, pa.string()))
    return table


def _columns(table: str) -> str:
    """All of them, in one order: a store of an older schema has later ones at the end."""
    return ", ".join(f'"{column}"' for column, _, _ in TABLES[table].columns)


def _remove(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> None:
    for table in ("runs", *SCHEMAS):
        connection.execute(
            f"DELETE FROM {table} WHERE run_id IN (SELECT unnest(?::VARCHAR[]))",  # noqa: S608
            [list(run_ids)],
        )
    connection.execute("DELETE FROM models WHERE model_id NOT IN (SELECT model_id FROM runs)")


def _load(
    connection: duckdb.DuckDBPyConnection, runs: Sequence[_Run], others: Iterable[str] = ()
) -> None:
    """Puts runs in.

    Args:
        others: runs that count as known beside those that are there.
    """
    if not runs:
        return
    _remove(connection, [run.record.run_id for run in runs])
    rows = [_run_row(run.record) for run in runs]
    models = {
        row["model_id"]: {
            "model_id": row["model_id"],
            "model": row["model"],
            "parameters": row["model_parameters"],
            "weights": row["weights"],
        }
        for row in rows
    }
    names = [column for column, _, _ in TABLES["runs"].columns]
    _insert(connection, "runs", pa.table({name: [row[name] for row in rows] for name in names}))
    _insert(connection, "models", pa.Table.from_pylist(list(models.values())), "OR IGNORE")
    for name in SCHEMAS:
        _insert(connection, name, pa.concat_tables([run.tables[name] for run in runs]))
    # A run directory may remember a run that was deleted since.
    connection.execute(
        "DELETE FROM differences WHERE other_run NOT IN "
        "(SELECT run_id FROM runs UNION ALL SELECT unnest(?::VARCHAR[]))",
        [list(others)],
    )


def _insert(
    connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table, mode: str = ""
) -> None:
    connection.register("incoming", table)
    try:
        connection.execute(
            f"INSERT {mode} INTO {name} BY NAME SELECT * FROM incoming"  # noqa: S608
        )
    finally:
        connection.unregister("incoming")


def _run_row(record: RunRecord) -> dict[str, Any]:
    row = record.model_dump(mode="json", exclude={"schema_version"})
    row["model_id"] = digest([record.model, row["model_parameters"], row["weights"]])
    for name in _JSON:
        row[name] = json.dumps(row[name], sort_keys=True, ensure_ascii=False)
    return row
