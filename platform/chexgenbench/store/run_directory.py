"""A run on disk: ``run.json`` and a Parquet file a table, each whole or absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from chexgenbench.errors import UserError
from chexgenbench.files import atomic_path, digest, read_json, write_json
from chexgenbench.store.records import RECORD_VERSION, RUN_TABLES, RunRecord, absent, conform

if TYPE_CHECKING:
    import pandas as pd

RECORD_NAME = "run.json"

_AGAIN = (
    "`chexgenbench repair` makes it again from the store; else delete the directory and run again."
)

_SEAL = "sha256"
"""The key of the record's own hash; records up to version 4 have none."""


def write_run(
    folder: Path, record: RunRecord, tables: Mapping[str, pa.Table | pd.DataFrame]
) -> None:
    """Writes the tables and then the record, so that a finished record has all of its tables."""
    unknown = sorted(set(tables) - set(RUN_TABLES))
    if unknown:
        raise ValueError(f"a run has no tables named {unknown}")
    ready = {name: conform(name, table) for name, table in tables.items()}
    for name, table in ready.items():
        _check_owner(name, table, record)
    with _writing(folder):
        for name, table in ready.items():
            with atomic_path(folder / f"{name}.parquet") as temporary:
                pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        write_record(folder, record)


def write_record(folder: Path, record: RunRecord) -> None:
    """Writes ``run.json`` alone, atomically."""
    with _writing(folder):
        value = record.model_dump(mode="json")
        write_json(folder / RECORD_NAME, {**value, _SEAL: digest(value)})


def read_record(folder: Path) -> RunRecord:
    """The record of a run directory; `UserError` when it is missing, broken or too new."""
    path = folder / RECORD_NAME
    value = read_json(path)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > RECORD_VERSION:
        raise UserError(
            f"{path} has schema version {version}; this release reads up to {RECORD_VERSION}.",
            hint="Update chexgenbench, or move the run out of the runs folder.",
        )
    if isinstance(value, dict) and _SEAL in value:
        seal = value.pop(_SEAL)
        if seal != digest(value):
            raise UserError(
                f"{path} is damaged: its content is not what was written.",
                hint="`chexgenbench repair` makes it again from the store.",
            )
    try:
        record = RunRecord.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UserError(
            f"{path} is not the record of a run: {where}: {first['msg']}.",
            hint="Delete the directory and run again.",
        ) from error
    if record.run_id != folder.name:
        raise UserError(
            f"{path} is the record of the run {record.run_id!r}, not of its folder's.",
            hint="Give the folder the name of the run.",
        )
    return record


def read_table(folder: Path, name: str, record: RunRecord) -> pa.Table:
    """One table of a run; empty where an unfinished run has not written it yet."""
    path = folder / f"{name}.parquet"
    optional = absent(name, record.schema_version)
    if not path.is_file():
        if record.status == "finished" and not set(RUN_TABLES[name].names) <= optional:
            raise UserError(f"{path} is missing.", hint=_AGAIN)
        return RUN_TABLES[name].empty_table()
    try:
        read = pq.read_table(path, partitioning=None, page_checksum_verification=True)
        table = conform(name, read, optional)
        _check_owner(name, table, record)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.", hint=_AGAIN) from error
    return table


def run_folders(runs_folder: Path) -> list[Path]:
    """The directories right below `runs_folder` that hold a record, by name."""
    if not runs_folder.is_dir():
        return []
    return sorted(path for path in runs_folder.iterdir() if (path / RECORD_NAME).is_file())


def relabel(folder: Path, record: RunRecord) -> None:
    """Writes `record`, and its label into the scores as well."""
    scores = read_table(folder, "scores", record)
    labels = pa.array([record.extra_info] * scores.num_rows, pa.string())
    place = scores.schema.get_field_index("extra_info")
    write_run(folder, record, {"scores": scores.set_column(place, "extra_info", labels)})


def _check_owner(name: str, table: pa.Table, record: RunRecord) -> None:
    owners = set(table.column("run_id").unique().to_pylist())
    if owners - {record.run_id}:
        raise ValueError(f"table {name!r} has rows of runs {owners}, not of {record.run_id!r}")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The run cannot be written to {folder}: {error.strerror or error}.",
            hint="Free some disk space, or make the folder writable, and run again.",
        ) from error
