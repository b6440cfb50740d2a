"""The runs of another project taken into this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa

from chexgenbench.errors import UserError
from chexgenbench.store.records import RUN_TABLES
from chexgenbench.store.run_directory import (
    RECORD_NAME,
    read_record,
    read_table,
    run_folders,
    write_run,
)

_KEYS: dict[str, Sequence[str]] = {
    "images": ("image_id",),
    "scores": ("plugin", "metric", "encoder", "subset"),
}
_COMPARED: dict[str, Sequence[str]] = {
    "images": ("sha256", "status"),
    "scores": ("value", "standard_error", "ci_low", "ci_high", "n_real", "n_fake", "status"),
}
"""What a run with the same identity must have in common; times, for one, may differ."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What became of each run of the other project, by its identity.

    Attributes:
        taken: runs that are new here.
        same: runs that were here, with the same images and scores.
        conflicts: runs that were here with others, to what differs; ours are kept.
        left_out: folders that hold no finished run, to why.
    """

    taken: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    conflicts: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def merge_runs(source: Path, target: Path) -> Merged:
    """Takes the finished runs in one folder of run directories into another.

    A run's record and tables come along, its images do not. A run directory is complete or not
    there, whenever this is stopped.

    Args:
        source: the other project's folder, or its ``runs``.
        target: our ``runs``.

    Raises:
        UserError: there is no run directory in `source`, or it is `target`.
    """
    runs = source / "runs" if (source / "runs").is_dir() else source
    if runs.resolve() == target.resolve():
        raise UserError(f"{source} is this project.")
    folders = run_folders(runs)
    if not folders:
        raise UserError(
            f"{source} holds no runs.",
            hint="Name a project's folder, which has a folder runs; the store alone is an index of "
            "it and not enough.",
        )
    merged = Merged()
    for folder in folders:
        _merge(folder, target / folder.name, merged)
    return merged


def _merge(folder: Path, mine: Path, merged: Merged) -> None:
    if folder.is_symlink() or any(path.is_symlink() for path in folder.iterdir()):
        merged.left_out[folder.name] = "there is a symbolic link in it"
        return
    try:
        record = read_record(folder)
        if record.status != "finished":
            merged.left_out[folder.name] = f"it is {record.status}"
            return
        tables = {name: read_table(folder, name, record) for name in RUN_TABLES}
    except UserError as error:
        merged.left_out[folder.name] = error.message
        return
    if not (mine / RECORD_NAME).is_file():
        write_run(mine, record, tables)
        merged.taken.append(record.run_id)
        return
    own = read_record(mine)
    if own.status != "finished":
        merged.conflicts[record.run_id] = f"it is {own.status} here"
        return
    faults = [
        fault
        for name in _COMPARED
        if (fault := _difference(name, read_table(mine, name, own), tables[name]))
    ]
    if faults:
        merged.conflicts[record.run_id] = "; ".join(faults)
    else:
        merged.same.append(record.run_id)


def _difference(name: str, ours: pa.Table, theirs: pa.Table) -> str | None:
    """What differs between two tables, in words; None where nothing does."""
    key, compared = list(_KEYS[name]), list(_COMPARED[name])
    sides = [table.select([*key, *compared]).to_pandas().set_index(key) for table in (ours, theirs)]
    both = pd.concat(sides, axis=1, keys=["ours", "theirs"])
    a, b = both["ours"][compared], both["theirs"][compared]
    apart = ~((a == b) | (a.isna() & b.isna())).all(axis=1)
    if not apart.any():
        return None
    first = both[apart].index[0]
    words = ", ".join(map(str, first)) if isinstance(first, tuple) else str(first)
    column = compared[0]
    shown = f"{a.loc[first, column]} here, {b.loc[first, column]} there"
    return f"{int(apart.sum())} {name} differ, such as {words} ({column} {shown})"
