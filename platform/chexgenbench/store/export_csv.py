"""The two CSV files of the published benchmark, with its column names and ours after them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from chexgenbench.errors import UserError
from chexgenbench.files import atomic_path, file_lock
from chexgenbench.store.records import RunRecord
from chexgenbench.types import FINDINGS, OVERALL

OVERALL_NAME = "image_generation_metrics.csv"
CONDITIONAL_NAME = "conditional_image_generation_metrics.csv"

PUBLISHED_COLUMNS: tuple[str, ...] = (
    "FID",
    "FID (RadDino)",
    "Inception Score",
    "KID",
    "KID (RadDino)",
    "Precision",
    "Recall",
    "Density",
    "Coverage",
    "Extra Info",
    "Caption Type",
)
OWN_COLUMNS: tuple[str, ...] = ("Model", "Run", "Encoder")

_PUBLISHED = {
    ("fid", "inception-v3"): "FID",
    ("fid", "rad-dino"): "FID (RadDino)",
    ("inception_score", "inception-v3"): "Inception Score",
    ("kid", "inception-v3"): "KID",
    ("kid", "rad-dino"): "KID (RadDino)",
    ("precision", "rad-dino"): "Precision",
    ("recall", "rad-dino"): "Recall",
    ("density", "rad-dino"): "Density",
    ("coverage", "rad-dino"): "Coverage",
}
_LABELS = {"fid": "FID", "kid": "KID", "inception_score": "Inception Score"}

Row = dict[str, str]


def export_run(results_folder: Path, record: RunRecord, scores: pd.DataFrame) -> None:
    """Writes a run's scores into both files, in place of what they had of the same run.

    At full precision; under the protocol ``legacy`` to three decimals, as the published code does.
    Rows of other runs, and columns that others added, stay as they are. A score without a value
    leaves its cell empty.
    """
    rows = [{str(k): v for k, v in row.items()} for row in scores.to_dict("records")]
    overall = _row(record, [row for row in rows if row["subset"] == OVERALL])
    conditional = []
    for finding in FINDINGS:
        chosen = [row for row in rows if row["subset"] == finding]
        if chosen:
            conditional.append({**_row(record, chosen), "Pathology": finding})
    paths = results_folder / OVERALL_NAME, results_folder / CONDITIONAL_NAME
    try:
        results_folder.mkdir(parents=True, exist_ok=True)
        with file_lock(str(results_folder / ".metrics-csv.lock"), timeout=600):
            _merge(paths[0], PUBLISHED_COLUMNS, record.run_id, [overall])
            _merge(paths[1], (*PUBLISHED_COLUMNS, "Pathology"), record.run_id, conditional)
    except OSError as error:  # a lock that is never released is one too
        raise UserError(
            f"The metrics cannot be written to {results_folder}: {error}. "
            "What was there before is unchanged.",
            hint="Free some disk space or make the folder writable, and run again.",
        ) from error


def _row(record: RunRecord, scores: Sequence[Mapping[str, Any]]) -> Row:
    row = {
        "Extra Info": record.extra_info,
        "Caption Type": record.caption_type,
        "Model": record.model,
        "Run": record.run_id,
        "Encoder": "; ".join(sorted({str(score["encoder"]) for score in scores} - {""})),
    }
    for score in scores:
        metric, encoder, value = str(score["metric"]), str(score["encoder"]), score["value"]
        name = _PUBLISHED.get((metric, encoder))
        if name is None:
            label = _LABELS.get(metric, metric.replace("_", " ").capitalize())
            name = f"{label} ({encoder})" if encoder else label
        known = score["status"] == "ok" and value is not None and math.isfinite(value)
        digits = 3 if record.protocol == "legacy" else None
        row[name] = _text(float(value), digits) if known else ""
    return row


def _text(value: float, digits: int | None) -> str:
    return repr(value if digits is None else round(value, digits))


def _merge(path: Path, first: Sequence[str], run_id: str, rows: Sequence[Row]) -> None:
    old_columns, old_rows = _read(path)
    kept = [row for row in old_rows if row.get("Run") != run_id]
    columns = list(
        dict.fromkeys(
            [*first, *OWN_COLUMNS, *old_columns, *sorted({name for row in rows for name in row})]
        )
    )
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


def _read(path: Path) -> tuple[list[str], list[Row]]:
    if not path.exists():
        return [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = list(reader.fieldnames or [])
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise _broken(path, str(error)) from error
    if columns and "FID" not in columns:
        raise _broken(path, "it has no column 'FID'")
    if len(set(columns)) != len(columns):
        raise _broken(path, "a column name stands twice")
    for number, row in enumerate(rows, start=1):
        if any(name is None or value is None for name, value in row.items()):
            raise _broken(path, f"row {number} does not have {len(columns)} cells")
    return columns, rows


def _broken(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is not a file of metrics: {what}.",
        hint="Mend it, or move it away; the store has the scores.",
    )
