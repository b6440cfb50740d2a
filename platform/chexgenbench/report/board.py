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
    warning: str | None
    warning_level: int | None
    floor: float | None
    matched: float | None
    excess: float | None
    excess_low: float | None
    excess_high: float | None
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
        "SELECT s.run_id, s.metric, s.encoder, s.subset, s.value, s.ci_low, s.ci_high, s.n_fake, "
        "s.higher_is_better, s.status, s.reason, s.warning, s.warning_level, s.floor, s.matched, "
        "s.excess, s.excess_low, s.excess_high, b.rank FROM scores AS s LEFT JOIN leaderboard AS b "
        "USING (run_id, plugin, metric, encoder, subset) "
        "WHERE list_contains(?, s.run_id) ORDER BY s.rowid",
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


def control(cell: Cell) -> str:
    """What the same procedure found where there is nothing to find, and the excess over it.

    Empty for a score whose floor was taken at other sizes than its value.
    """
    if cell.floor is None or cell.matched is None or cell.matched != cell.value:
        return ""
    text = f"control {number(cell.floor)}"
    if cell.excess_low is not None and cell.excess_high is not None:
        text += f", excess {number(cell.excess_low)} to {number(cell.excess_high)}"
    return text


def board_text(cells: Sequence[Cell]) -> str:
    """The overall scores for the terminal: a line a score and run, the best first.

    Runs that nothing sets apart share a rank.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    overall = [cell for cell in cells if cell.subset == "overall"]
    several = len({cell.encoder for cell in overall}) > 1
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("score", no_wrap=True)
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("model", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    for metric, encoder in dict.fromkeys((cell.metric, cell.encoder) for cell in overall):
        rows = [cell for cell in overall if (cell.metric, cell.encoder) == (metric, encoder)]
        better = "higher" if rows[0].higher_is_better else "lower"
        notes = [f"{better} is better", *([encoder] if several and encoder else [])]
        heads = [metric, *notes, *[""] * len(rows)]
        ranked = sorted(rows, key=_rank)
        for place in range(max(len(rows), 1 + len(notes))):
            cell = ranked[place] if place < len(ranked) else None
            table.add_row(
                f"  {heads[place]}" if 0 < place <= len(notes) else heads[place],
                str(cell.rank or "") if cell else "",
                cell.column if cell else "",
                number(cell.value) if cell else "",
                _range(cell) if cell else "",
            )
        table.add_section()
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _range(cell: Cell) -> str:
    text = interval(cell) or cell.status.replace("ok", "no interval")
    return f"{text}\n{control(cell)}" if control(cell) else text


def _rank(cell: Cell) -> float:
    if cell.value is None:
        return float("inf")
    return -cell.value if cell.higher_is_better else cell.value
