"""The leaderboard as rows of scores and columns of runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chexgenbench.store.store import Store


@dataclass(frozen=True)
class Cell:
    """One score of one run on one subset, as it stands in the store."""

    column: str
    metric: str
    encoder: str
    subset: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n_fake: int | None
    higher_is_better: bool
    status: str
    reason: str | None


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
        "SELECT run_id, metric, encoder, subset, value, ci_low, ci_high, n_fake, "
        "higher_is_better, status, reason FROM scores WHERE list_contains(?, run_id) "
        "ORDER BY rowid",
        [list(columns)],
    )
    rows = table.to_pylist()
    return [Cell(column=columns[row.pop("run_id")], **row) for row in rows]


def number(value: float | None) -> str:
    """Four significant digits.

    >>> number(0.123456), number(None), number(1234.5)
    ('0.1235', '-', '1234')
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def interval(cell: Cell) -> str:
    """The interval in words, or nothing where it was withheld."""
    if cell.ci_low is None or cell.ci_high is None:
        return ""
    return f"{number(cell.ci_low)} to {number(cell.ci_high)}"


def board_text(cells: Sequence[Cell], columns: Sequence[str], width: int = 80) -> str:
    """The overall scores as a table for the terminal: a row a score, a column a run."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Leaderboard, all prompts: value and 95 % interval", title_justify="left")
    table.add_column("score", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    overall = {
        (cell.metric, cell.encoder, cell.column): cell for cell in cells if cell.subset == "overall"
    }
    rows = list(dict.fromkeys((key[0], key[1]) for key in overall))
    several = len({encoder for _, encoder in rows}) > 1
    for metric, encoder in rows:
        row = [overall.get((metric, encoder, column)) for column in columns]
        first = next(cell for cell in row if cell)
        better = "higher" if first.higher_is_better else "lower"
        table.add_row(
            f"{metric}\n({encoder + ', ' if several else ''}{better} is better)",
            *("-" if cell is None else f"{number(cell.value)}\n{interval(cell)}" for cell in row),
        )
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue().rstrip("\n")
