"""The questions that commands ask of the store."""

from __future__ import annotations

import pyarrow as pa

from chexgenbench.errors import UserError, unknown_name
from chexgenbench.store.store import Store
from chexgenbench.types import OVERALL

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
    "rank",
    "n_real",
    "n_fake",
    "floor",
    "matched",
    "excess",
    "excess_low",
    "excess_high",
    "higher_is_better",
    "status",
    "reason",
    "warning",
    "warning_level",
    "split",
    "protocol",
    "encoder_id",
    "basis",
    "run_id",
)

_BOARD = "SELECT leaderboard.*, runs.split FROM leaderboard JOIN runs USING (run_id)"

_PUBLISHED = """
SELECT model || ' (published)' AS model, 'published' AS suite, metric, encoder, subset, value,
       higher_is_better, 'ok' AS status, note AS warning, split, protocol
FROM published WHERE encoder <> ''
"""


def leaderboard(
    store: Store,
    *,
    metric: str | None = None,
    subset: str = OVERALL,
    sort: str | None = None,
    suite: str | None = None,
    published: bool = False,
) -> pa.Table:
    """The latest finished run of each model, the best first within each metric and encoder.

    Args:
        sort: a column, with ``-`` before it for descending order.
        published: the paper's models too, where a run has the same score on the same encoder.
    """
    rows = _BOARD
    if published:
        same = "SELECT metric, encoder, subset FROM leaderboard"
        rows = (
            f"({_BOARD}) UNION ALL BY NAME ({_PUBLISHED} AND (metric, encoder, subset) IN ({same}))"
        )
    conditions, values = [], []
    for column, wanted in (("metric", metric), ("subset", subset), ("suite", suite)):
        if wanted is None:
            continue
        if column == "suite" and published:
            conditions.append("(suite = ? OR suite = 'published')")
            values.append(wanted)
            continue
        known = store.query(f"SELECT DISTINCT {column} FROM leaderboard").column(0)  # noqa: S608
        if len(known) and wanted not in known.to_pylist():
            raise unknown_name(column, wanted, known.to_pylist())
        conditions.append(f"{column} = ?")
        values.append(wanted)
    order = (
        f"{'' if published else 'suite, '}metric, encoder, "
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
        f"SELECT {', '.join(_LEADERBOARD)} FROM ({rows}) {where} ORDER BY {order}",  # noqa: S608
        values,
    )


def board_caveats(board: pa.Table) -> list[str]:
    """What a reader of a board must know: rows under one heading that do not compare."""
    bases: dict[tuple[str, str, str, str], set[tuple[str, int]]] = {}
    names = ["suite", "metric", "encoder", "subset", "status", "basis", "n_fake"]
    for row in board.select(names).to_pylist():
        if row["status"] == "ok" and row["basis"]:
            key = (row["suite"], row["metric"], row["encoder"], row["subset"])
            bases.setdefault(key, set()).add((row["basis"], row["n_fake"]))
    mixed = sum(len(found) > 1 for found in bases.values())
    if not mixed:
        return []
    return [
        "models of one suite here differ in real images, rows, protocol, encoder or code, or in "
        "the number of images, and do not compare; each is ranked among its like"
    ]


def published_caveats(board: pa.Table) -> list[str]:
    """Why the published rows of a board do not compare with the others."""
    rows = board.select(["model", "suite", "split", "protocol", "run_id"]).to_pylist()
    ours = [row for row in rows if row["suite"] != "published"]
    if len(ours) == len(rows):
        return ["no published number is of a score and an encoder of these runs"]
    theirs = next(row for row in rows if row["suite"] == "published")
    notes = {
        row["warning"]
        for row in board.select(["suite", "warning"]).to_pylist()
        if row["suite"] == "published" and row["warning"]
    }
    other = sorted(
        {
            f"{row['model']} ({row['split']}, {row['protocol']})"
            for row in ours
            if (row["split"], row["protocol"]) != (theirs["split"], theirs["protocol"])
        }
    )
    caveat = f"published numbers are of {theirs['split']} by the protocol {theirs['protocol']}"
    apart = [f"{caveat}; not comparable with {', '.join(other)}"] if other else []
    return [*apart, *sorted(notes)]


def compare_published(store: Store, run: str, model: str) -> pa.Table:
    """A finished run beside a model of the paper, where metric and encoder are the same.

    Raises:
        UserError: no such run or model, or no score of the run is on an encoder of the paper.
    """
    chosen = resolve_run(store, run)
    models = store.query("SELECT DISTINCT model FROM published ORDER BY model").column(0)
    if model not in models.to_pylist():
        raise unknown_name("published model", model, models.to_pylist())
    found = store.query(
        """
        SELECT s.metric, s.encoder, s.subset, s.value, s.ci_low, s.ci_high, s.n_fake,
               p.value AS published, s.value - p.value AS difference, s.higher_is_better,
               runs.split = p.split AND s.protocol = p.protocol AS comparable,
               runs.split, s.protocol, p.split AS published_split,
               p.protocol AS published_protocol, p.source, p.note
        FROM scores AS s JOIN runs USING (run_id)
        JOIN published AS p
          ON p.metric = s.metric AND p.encoder = s.encoder AND p.subset = s.subset
        WHERE s.run_id = ? AND p.model = ?
        ORDER BY s.subset <> 'overall', s.metric, s.encoder, s.subset
        """,
        [chosen, model],
    )
    if not found.num_rows:
        used = store.query(
            "SELECT DISTINCT encoder FROM scores WHERE run_id = ? ORDER BY encoder", [chosen]
        )
        theirs = store.query(
            "SELECT encoder, string_agg(DISTINCT metric, ', ' ORDER BY metric) AS metrics "
            "FROM published WHERE model = ? AND encoder <> '' GROUP BY encoder ORDER BY encoder",
            [model],
        ).to_pylist()
        listed = " and ".join(f"{row['encoder']} ({row['metrics']})" for row in theirs)
        raise UserError(
            f"Run {chosen} has no score that the paper has for {model!r}: it used "
            f"{', '.join(used.column(0).to_pylist())}; the paper's numbers are on {listed}.",
            hint="Score the same images on one of those: --encoder NAME --protocol legacy",
        )
    return found


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
        "ORDER BY subset <> 'overall', subset, metric, encoder, plugin",
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
