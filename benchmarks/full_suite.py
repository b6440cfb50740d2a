"""The figures of docs/privacy.md and docs/utility.md that come from the suite ``full`` (hours).

    chexgenbench run --suite full --home FOLDER
    python benchmarks/full_suite.py FOLDER... [--write]

Reads the stores of the folders, the last run of each model, and writes the tables into the pages.
Of a score that several have, the last folder's counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
from side_by_side import ROOT, table, write_between

MODELS = ["oracle", "phantom-diffusion", "half", "memorizer", "noise"]
PRIVACY = [
    "reid_rate",
    "pixel_distance_mean",
    "latent_distance_mean",
    "replicated_rate",
    "replicated_rate_members",
    "training_share_members",
    "near_duplicates",
    "nndr",
    "authenticity",
    "ct_score",
    "membership_auc_distance",
    "membership_auc_nearest",
    "membership_auc_domias",
]
REGIMES = ["real", "synthetic", "mixed", "augmented", "pretrained", "ratio-0.5"]


Row = Mapping[str, Any]
Scores = Mapping[tuple[str, str, str], Row]


def scores(store: Path) -> Scores:
    """The scores of the last run of the suite of each model, by model, metric and subset."""
    question = """
        SELECT s.* FROM scores s JOIN runs r USING (run_id)
        WHERE s.suite = 'full'
        QUALIFY r.created_at = max(r.created_at) OVER (PARTITION BY r.model)
    """
    with duckdb.connect(str(store), read_only=True) as connection:
        found = connection.execute(question).df()
    rows: list[dict[str, Any]] = found.to_dict("records")
    return {(row["model"], row["metric"], row["subset"]): row for row in rows}


def number(value: float) -> str:
    """Three decimals, or one where the number is large.

    >>> number(0.12345), number(34.71), number(0.0)
    ('0.123', '34.7', '0')
    """
    if value == 0:
        return "0"
    return f"{value:.1f}" if abs(value) >= 2 else f"{value:.3f}"


def span(low: Any, high: Any, mark: str = "()") -> str:
    if pd.isna(low) or pd.isna(high):
        return ", no interval"
    joint = " to " if mark == "()" else ", "
    return f" {mark[0]}{number(low)}{joint}{number(high)}{mark[1]}"


def with_control(found: Scores, model: str, metric: str) -> str:
    """Value (control) [excess]."""
    row = found.get((model, metric, "overall"))
    if row is None or pd.isna(row["value"]):
        return "-"
    control = "" if pd.isna(row["floor"]) else f" ({number(row['floor'])})"
    return number(row["value"]) + control + span(row["excess_low"], row["excess_high"], "[]")


def with_interval(found: Scores, model: str, metric: str, subset: str) -> str:
    row = found.get((model, metric, subset))
    if row is None or pd.isna(row["value"]):
        return "-"
    return number(row["value"]) + span(row["ci_low"], row["ci_high"])


def privacy(found: Scores) -> str:
    rows = [[f"`{m}`", *(with_control(found, model, m) for model in MODELS)] for m in PRIVACY]
    return table(["score", *(f"`{model}`" for model in MODELS)], rows)


def regimes(found: Scores, score: str, names: list[str], subset: str = "macro") -> str:
    """A score of each regime and model, and its difference from what was trained on real images."""
    rows = []
    for name in names:
        if name == "real":
            value = with_interval(found, MODELS[0], f"{score}_real", subset)
            rows.append(["`real`", *[value] * len(MODELS)])
            continue
        cells = [with_interval(found, model, f"{score}_{name}", subset) for model in MODELS]
        rows.append([f"`{name}`", *cells])
        less = f"{score}_difference_{name}_minus_real"
        cells = [with_interval(found, model, less, subset) for model in MODELS]
        rows.append(["... less `real`", *cells])
    rows = [row for row in rows if set(row[1:]) != {"-"}]
    return table(["trained on", *(f"`{model}`" for model in MODELS)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true", help="into docs/privacy.md and utility.md")
    chosen = parser.parse_args()
    found: dict[tuple[str, str, str], Row] = {}
    for home in chosen.home:
        found |= scores(home / "Results" / "chexgenbench.duckdb")
    pages = {
        ("privacy", "full privacy"): privacy(found),
        ("utility", "full probe"): regimes(found, "probe_auroc", REGIMES),
        ("utility", "full network"): regimes(found, "auroc", REGIMES),
        ("utility", "full reports"): regimes(found, "label_f1_micro", REGIMES[:3], "overall"),
    }
    for (page, marker), text in pages.items():
        print(f"{marker}\n{text}\n")
        if chosen.write:
            write_between(ROOT / "docs" / f"{page}.md", marker, text)


if __name__ == "__main__":
    main()
