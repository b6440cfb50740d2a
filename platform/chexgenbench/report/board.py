"""The leaderboard as rows of scores and columns of runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chexgenbench.store.store import Store
from chexgenbench.types import MACRO, OVERALL


@dataclass(frozen=True)
class Cell:
    """One score of one run on one subset, as it stands in the store."""

    column: str
    run_id: str
    plugin: str
    metric: str
    encoder: str
    subset: str
    value: float | None
    standard_error: float | None
    ci_low: float | None
    ci_high: float | None
    n_real: int | None
    n_fake: int | None
    n_floor: int | None
    higher_is_better: bool
    status: str
    reason: str | None
    warning: str | None
    warning_level: int | None
    floor: float | None
    matched: float | None
    excess: float | None
    excess_low: float | None
    excess_high: float | None
    basis: str | None
    rank: int | None


def columns_of(store: Store, runs: Sequence[str]) -> dict[str, str]:
    """Run to the head of its column: the model's name, with suite and run where names repeat."""
    rows: list[dict[str, Any]] = store.query("SELECT run_id, model, suite FROM runs").to_pylist()
    facts = {row["run_id"]: row for row in rows if row["run_id"] in runs}
    names = [fact["model"] for fact in facts.values()]

    def head(run: str) -> str:
        model: str = facts[run]["model"]
        if names.count(model) == 1:
            return model
        return f"{model} ({facts[run]['suite']}, {run[:8]})"

    return {run: head(run) for run in dict.fromkeys(runs) if run in facts}


def read_cells(store: Store, columns: Mapping[str, str]) -> list[Cell]:
    """The scores of the runs that have a column, in a fixed order."""
    table = store.query(
        """
        SELECT s.run_id, s.plugin, s.metric, s.encoder, s.subset, s.value, s.standard_error,
               s.ci_low, s.ci_high, s.n_real, s.n_fake, s.n_floor, s.higher_is_better, s.status,
               s.reason, s.warning, s.warning_level, s.floor, s.matched, s.excess, s.excess_low,
               s.excess_high, s.basis, b.rank
        FROM scores AS s
        LEFT JOIN leaderboard AS b USING (run_id, plugin, metric, encoder, subset)
        WHERE list_contains(?, s.run_id) ORDER BY s.rowid
        """,
        [list(columns)],
    )
    rows = table.to_pylist()
    return [Cell(column=columns[row["run_id"]], **row) for row in rows]


def number(value: float | None, digits: int = 4) -> str:
    """Some significant digits.

    >>> number(0.123456), number(None), number(1234.5), number(-0.0)
    ('0.1235', '-', '1234', '0')
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value + 0.0:.{digits}g}"


def interval(cell: Cell) -> str:
    """The interval in words, or nothing where it was withheld."""
    if cell.ci_low is None or cell.ci_high is None:
        return ""
    return f"{number(cell.ci_low)} to {number(cell.ci_high)}"


def control(cell: Cell) -> str:
    """What the same procedure found where there is nothing to find, and the excess over it.

    Empty for a score whose floor was taken at other sizes than its value.
    """
    if cell.floor is None or cell.n_floor != cell.n_fake or cell.matched != cell.value:
        return ""
    text = f"control {number(cell.floor)}"
    if cell.excess_low is not None and cell.excess_high is not None:
        text += f", excess {number(cell.excess_low)} to {number(cell.excess_high)}"
    return text


def board_cells(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a leaderboard: overall, and the mean over the findings of a score that has no
    overall value, such as that of a classifier."""
    known = {(cell.metric, cell.encoder) for cell in cells if cell.subset == OVERALL}
    return [
        cell
        for cell in cells
        if cell.subset == OVERALL
        or (cell.subset == MACRO and (cell.metric, cell.encoder) not in known)
    ]


def board_text(cells: Sequence[Cell]) -> str:
    """The overall scores for the terminal: a line a score and run, the best first.

    Runs that nothing sets apart share a rank. Scores with a control stand in a table of their own.
    """
    from rich import box
    from rich.table import Table

    chosen = board_cells(cells)
    several = len({cell.encoder for cell in chosen if cell.encoder}) > 1
    names = list(dict.fromkeys((cell.metric, cell.encoder) for cell in chosen))
    taken = {(cell.metric, cell.encoder) for cell in chosen if cell.value is not None}
    checked = {(cell.metric, cell.encoder) for cell in chosen if control(cell)}
    tables = []
    for controlled in (False, True):
        heads = ("model", "value", "control", "excess, 95 %")
        if not controlled:
            heads = ("rank", "model", "value", "95 % interval")
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column("score", overflow="fold", min_width=22 if controlled else None)
        for head in heads:
            if head == "model":
                table.add_column(head, overflow="fold")
            else:
                right = head in ("rank", "value", "control")
                table.add_column(head, justify="right" if right else "left", no_wrap=True)
        for name in names:
            if (name in checked) != controlled or name not in taken:
                continue
            rows = sorted((c for c in chosen if (c.metric, c.encoder) == name), key=_rank)
            better = "higher" if rows[0].higher_is_better else "lower"
            notes = [f"{better} is better", *([name[1]] if several and name[1] else [])]
            notes += ["mean over findings"] if rows[0].subset == MACRO else []
            if len(rows) > 1 and all(
                row.n_fake == 0 and row.value == rows[0].value for row in rows
            ):
                rows = [replace(rows[0], column="(real images)", rank=None)]
            labels = [name[0], *(f"  {note}" for note in notes)]
            for place in range(max(len(rows), len(labels))):
                label = labels[place] if place < len(labels) else ""
                cell = rows[place] if place < len(rows) else None
                values = _line(cell, controlled) if cell else [""] * len(heads)
                table.add_row(label, *values)
            table.add_section()
        tables.append(table)
    parts = [_shown(table) for table in tables if table.row_count]
    lacking = [name for name in names if name not in taken]
    if lacking:
        scores = ", ".join(dict.fromkeys(metric for metric, _ in lacking))
        parts.append(f"Not taken (the page says why): {scores}.")
    return "\n\n".join(parts)


def _line(cell: Cell, controlled: bool) -> list[str]:
    said = interval(cell) or cell.status.replace("ok", "no interval")
    if not controlled:
        return [str(cell.rank or ""), cell.column, number(cell.value), said]
    if cell.value is None:
        return [cell.column, "-", "-", cell.status]
    excess = "no interval"
    if cell.excess_low is not None and cell.excess_high is not None:
        excess = f"{number(cell.excess_low, 3)} to {number(cell.excess_high, 3)}"
    return [cell.column, number(cell.value, 3), number(cell.floor, 3), excess]


def _shown(table: Any) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=80).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _rank(cell: Cell) -> float:
    if cell.value is None:
        return float("inf")
    return -cell.value if cell.higher_is_better else cell.value
