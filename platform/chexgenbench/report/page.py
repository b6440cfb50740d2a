"""One self-contained HTML page of some runs: no network, no script, all text escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chexgenbench.files import write_text
from chexgenbench.home import Home
from chexgenbench.images import BadImage, webp
from chexgenbench.report.board import (
    Cell,
    board_cells,
    columns_of,
    control,
    interval,
    number,
    read_cells,
)
from chexgenbench.store.store import Store
from chexgenbench.types import FINDINGS

GALLERY = 16
PAIRS = 6
THUMBNAIL = 160


def write_report(
    store: Store, home: Home, runs: Sequence[str], *, include_credentialed: bool = False
) -> Path:
    """Writes ``Results/report.html`` and returns its path.

    Args:
        runs: ids of runs in the store, in the order of the columns.
        include_credentialed: show prompts and real images although the split is credentialed.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    columns = columns_of(store, runs)
    cells = read_cells(store, columns)
    records = [
        row | {"column": column}
        for run, column in columns.items()
        for row in store.query("SELECT * FROM runs WHERE run_id = ?", [run]).to_pylist()
    ]
    models = list(columns.values())
    hidden = any(record["credentialed"] for record in records) and not include_credentialed
    environment = Environment(
        loader=PackageLoader("chexgenbench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html.j2").render(
        models=models,
        board=_board(cells, models),
        heat=_heat(cells, models),
        gallery=[] if hidden else _gallery(store, home, records),
        pairs=[] if hidden else _pairs(store, records),
        hidden=hidden,
        records=records,
        remarks=[
            f"{record['column']}: {remark}"
            for record in records
            for remark in json.loads(record["remarks"] or "[]")
        ],
        notes=sorted({(c.metric, c.subset, c.reason) for c in cells if c.status != "ok"}),
    )
    path = home.results / "report.html"
    write_text(path, html)
    return path


def _board(cells: Sequence[Cell], models: Sequence[str]) -> list[dict[str, Any]]:
    """A row a score: its cells, and where value and interval lie on the row's own axis."""
    rows = []
    overall = board_cells(cells)
    for metric, encoder in dict.fromkeys((cell.metric, cell.encoder) for cell in overall):
        by_model = {c.column: c for c in overall if (c.metric, c.encoder) == (metric, encoder)}
        first = next(iter(by_model.values()))
        ends = [
            end
            for cell in by_model.values()
            for end in (cell.value, cell.ci_low, cell.ci_high)
            if end is not None
        ]
        low, high = (min([0.0, *ends]), max(ends)) if ends else (0.0, 1.0)
        span = (high - low) or 1.0
        entries: list[dict[str, Any]] = []
        for model in models:
            cell = by_model.get(model)
            if cell is None or cell.value is None:
                why = cell.reason if cell else "not taken"
                entries.append({"text": "-", "interval": why, "marks": None, "rank": None})
                continue
            left = cell.value if cell.ci_low is None else cell.ci_low
            right = cell.value if cell.ci_high is None else cell.ci_high
            marks = {
                "value": 100 * (cell.value - low) / span,
                "left": 100 * (left - low) / span,
                "width": max(100 * (right - left) / span, 0.5),
            }
            text = number(cell.value)
            said = "; ".join(filter(None, (interval(cell) or "no interval", control(cell))))
            entries.append({"text": text, "interval": said, "marks": marks, "rank": cell.rank})
        rows.append(
            {
                "metric": metric,
                "encoder": encoder,
                "better": "higher" if first.higher_is_better else "lower",
                "cells": entries,
            }
        )
    return rows


def _heat(cells: Sequence[Cell], models: Sequence[str]) -> list[dict[str, Any]]:
    """A table a score: findings down, models across, shaded from the worst to the best."""
    tables = []
    for metric, encoder in dict.fromkeys((cell.metric, cell.encoder) for cell in cells):
        chosen = {
            (cell.subset, cell.column): cell
            for cell in cells
            if (cell.metric, cell.encoder) == (metric, encoder) and cell.subset != "overall"
        }
        values = [cell.value for cell in chosen.values() if cell.value is not None]
        if not values:
            continue
        low, span = min(values), (max(values) - min(values)) or 1.0
        higher = next(iter(chosen.values())).higher_is_better
        rows = []
        for finding in FINDINGS:
            row: list[dict[str, Any]] = []
            for model in models:
                cell = chosen.get((finding, model))
                if cell is None or cell.value is None:
                    why = cell.reason if cell else ""
                    row.append({"text": "-", "good": None, "title": why, "weak": False})
                    continue
                good = (cell.value - low) / span
                row.append(
                    {
                        "text": number(cell.value),
                        "good": round(100 * (good if higher else 1 - good)),
                        "title": _title(cell),
                        "weak": (cell.warning_level or 0) >= 2,
                    }
                )
            counts = [chosen[key].n_fake for key in chosen if key[0] == finding]
            rows.append(
                {"finding": finding, "n": max((n or 0 for n in counts), default=0), "cells": row}
            )
        tables.append(
            {
                "metric": metric,
                "encoder": encoder,
                "better": "higher" if higher else "lower",
                "rows": rows,
            }
        )
    return tables


def _title(cell: Cell) -> str:
    """What stands behind a number: interval, images, floor and warning."""
    parts = [interval(cell) or "no interval", f"n = {cell.n_fake}"]
    if cell.floor is not None and cell.matched is not None:
        parts.append(
            f"at half the size real against real {number(cell.floor)}, "
            f"against generated {number(cell.matched)}"
        )
    return "; ".join([*parts, cell.warning] if cell.warning else parts)


def _gallery(store: Store, home: Home, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prompts spread over the split, with the real image and each model's."""
    if not records:
        return []
    base = records[0]
    prompts = store.query(
        "SELECT prompt_id, prompt, image_path FROM prompts WHERE run_id = ? ORDER BY line",
        [base["run_id"]],
    ).to_pylist()
    step = max(1, len(prompts) // GALLERY)
    images: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        for row in store.query(
            "SELECT prompt_id, path, flags FROM images WHERE run_id = ? AND repeat = 0",
            [record["run_id"]],
        ).to_pylist():
            folder = home.generations / str(record["generation_id"])
            images[record["column"], row["prompt_id"]] = {**row, "path": folder / row["path"]}
    shown = []
    for prompt in prompts[::step][:GALLERY]:
        real = None
        if base["images_root"] and prompt["image_path"]:
            real = _thumbnail(Path(base["images_root"]) / prompt["image_path"])
        made = []
        for record in records:
            row = images.get((record["column"], prompt["prompt_id"]))
            made.append(
                {
                    "model": record["column"],
                    "image": _thumbnail(row["path"]) if row else None,
                    "flags": ", ".join(row["flags"] or []) if row else "",
                }
            )
        shown.append({"prompt": prompt["prompt"], "real": real, "made": made})
    return shown


def _pairs(store: Store, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each run and kind of pair the most telling ones, side by side."""
    groups: list[dict[str, Any]] = []
    for record in records:
        rows = store.query(
            "SELECT plugin, encoder, kind, rank, value, flagged, path, other_path, other_real, "
            "other_side FROM neighbours WHERE run_id = ? AND rank <= ? "
            "ORDER BY plugin, encoder, kind, rank",
            [record["run_id"], PAIRS],
        ).to_pylist()
        for key in dict.fromkeys((row["plugin"], row["encoder"], row["kind"]) for row in rows):
            chosen = [row for row in rows if (row["plugin"], row["encoder"], row["kind"]) == key]
            groups.append(
                {
                    "model": record["column"],
                    "plugin": key[0],
                    "encoder": key[1],
                    "kind": key[2].replace("_", " "),
                    "pairs": [
                        {
                            "value": number(row["value"]),
                            "flagged": row["flagged"],
                            "image": _thumbnail(Path(row["path"])),
                            "other": _thumbnail(Path(row["other_path"])),
                            "what": f"{row['other_side']} image"
                            if row["other_real"]
                            else "generated image",
                        }
                        for row in chosen
                    ],
                }
            )
    return groups


def _thumbnail(path: Path) -> str | None:
    """A data address of a WebP thumbnail; None for an image that cannot be read."""
    try:
        data = webp(path, THUMBNAIL)
    except BadImage:
        return None
    return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")
