"""The questions that commands ask of the store."""

from __future__ import annotations

import pyarrow as pa

from chexgenbench.errors import UserError, unknown_name
from chexgenbench.store.store import Store

_LEADERBOARD = (
    "suite",
    "metric",
    "encoder",
    "subset",
    "model",
    "value",
    "ci_low",
    "ci_high",
    "standard_error",
    "n_real",
    "n_fake",
    "higher_is_better",
    "status",
    "reason",
    "warning",
    "run_id",
)


def leaderboard(
    store: Store,
    *,
    metric: str | None = None,
    subset: str = "overall",
    sort: str | None = None,
    suite: str | None = None,
) -> pa.Table:
    """The latest finished run of each model, the best first within each metric and encoder.

    Args:
        sort: a column, with ``-`` before it for descending order.
    """
    conditions, values = [], []
    for column, wanted in (("metric", metric), ("subset", subset), ("suite", suite)):
        if wanted is None:
            continue
        known = store.query(f"SELECT DISTINCT {column} FROM leaderboard").column(0)  # noqa: S608
        if len(known) and wanted not in known.to_pylist():
            raise unknown_name(column, wanted, known.to_pylist())
        conditions.append(f"{column} = ?")
        values.append(wanted)
    order = (
        "suite, metric, encoder, "
        "CASE WHEN higher_is_better THEN -value ELSE value END NULLS LAST, model"
    )
    if sort is not None:
        name = sort.removeprefix("-")
        if name not in _LEADERBOARD:
            raise unknown_name("column", name, _LEADERBOARD)
        direction = "DESC" if sort.startswith("-") else "ASC"
        order = f"{name} {direction} NULLS LAST, {order}"
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    return store.query(
        f"SELECT {', '.join(_LEADERBOARD)} FROM leaderboard {where} ORDER BY {order}",  # noqa: S608
        values,
    )


def compare(store: Store, a: str, b: str) -> pa.Table:
    """Two finished runs score by score; each may be named by the beginning of its id."""
    first, second = resolve_run(store, a), resolve_run(store, b)
    if first == second:
        raise UserError(f"{a!r} and {b!r} are the same run, {first}.")
    for run in (first, second):
        status = store.query("SELECT status FROM runs WHERE run_id = ?", [run])[0][0].as_py()
        if status != "finished":
            raise UserError(f"Run {run} is {status}, so there is nothing to compare.")
    return store.query(
        "SELECT * FROM compare WHERE run_a = ? AND run_b = ? "
        "ORDER BY subset <> 'overall', subset, metric, encoder",
        [first, second],
    )


def list_runs(store: Store) -> pa.Table:
    """All runs, the newest first."""
    return store.query(
        "SELECT run_id, model, suite, split, status, n_images, n_skipped_images, created_at, "
        "extra_info, reason FROM runs ORDER BY created_at DESC, run_id"
    )


def show_run(store: Store, prefix: str) -> pa.Table:
    """Everything known of a run, as rows of field and value."""
    run = resolve_run(store, prefix)
    row = store.query("SELECT * FROM runs WHERE run_id = ?", [run])
    values = [column[0].as_py() for column in row.columns]
    return pa.table(
        {
            "field": pa.array(row.column_names, pa.string()),
            "value": pa.array([None if v is None else str(v) for v in values], pa.string()),
        }
    )


def resolve_run(store: Store, prefix: str) -> str:
    """The id of the run that `prefix` names: the whole id, or a beginning that only it has."""
    found: list[str] = (
        store.query(
            "SELECT run_id FROM runs WHERE starts_with(run_id, ?) ORDER BY created_at DESC, run_id",
            [prefix],
        )
        .column(0)
        .to_pylist()
    )
    if prefix in found:
        return prefix
    if prefix and len(found) == 1:
        return found[0]
    if prefix and found:
        shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise UserError(
            f"{prefix!r} is the beginning of {len(found)} runs.", hint=f"Say more of it: {shown}"
        )
    raise unknown_name("run", prefix, store.query("SELECT run_id FROM runs").column(0).to_pylist())
