"""The leaderboard as rows of scores and columns of models."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chexgenbench.store.store import Store


@dataclass(frozen=True)
class Cell:
    """One score of one model on one subset, as it stands in the store."""

    model: str
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


def read_cells(store: Store, runs: Sequence[str]) -> list[Cell]:
    """The scores of the named runs."""
    table = store.query(
        "SELECT model, metric, encoder, subset, value, ci_low, ci_high, n_fake, "
        "higher_is_better, status, reason FROM scores WHERE list_contains(?, run_id)",
        [list(runs)],
    )
    return [Cell(**row) for row in table.to_pylist()]


def models_of(store: Store, runs: Sequence[str]) -> list[str]:
    """The models of the runs, in the order given."""
    rows: list[dict[str, Any]] = store.query("SELECT run_id, model FROM runs").to_pylist()
    names = {row["run_id"]: row["model"] for row in rows}
    return list(dict.fromkeys(names[run] for run in runs if run in names))


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


def board_text(cells: Sequence[Cell], models: Sequence[str], width: int = 80) -> str:
    """The overall scores as a table for the terminal: a row a score, a column a model."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Leaderboard, all prompts: value and 95 % interval", title_justify="left")
    table.add_column("score", no_wrap=True)
    for model in models:
        table.add_column(model, justify="right")
    overall = {
        (cell.metric, cell.encoder, cell.model): cell for cell in cells if cell.subset == "overall"
    }
    rows = list(dict.fromkeys((key[0], key[1]) for key in overall))
    several = len({encoder for _, encoder in rows}) > 1
    for metric, encoder in rows:
        row = [overall.get((metric, encoder, model)) for model in models]
        first = next(cell for cell in row if cell)
        better = "higher" if first.higher_is_better else "lower"
        table.add_row(
            f"{metric}\n({encoder + ', ' if several else ''}{better} is better)",
            *("-" if cell is None else f"{number(cell.value)}\n{interval(cell)}" for cell in row),
        )
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue().rstrip("\n")
