"""Differences of two runs, with paired errors, from what their run directories keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from chexgenbench.errors import UserError
from chexgenbench.home import Home
from chexgenbench.scoring import MACRO, OVERALL, Score
from chexgenbench.statistics.difference import (
    UnitInfluence,
    difference,
    holm,
    images_needed,
    p_value,
)
from chexgenbench.store import questions
from chexgenbench.store.records import INFLUENCES, SCHEMAS, RunRecord
from chexgenbench.store.run_directory import read_record, read_table
from chexgenbench.store.store import Store

Key = tuple[str, str, str, str]
"""plugin, metric, encoder, subset"""


@dataclass(frozen=True)
class _Side:
    """A score as a difference needs it."""

    basis: str
    n_fake: int
    influence: UnitInfluence


def influence_table(run_id: str, scores: Sequence[Score]) -> pa.Table:
    """What each unit contributed to each score, as the run directory keeps it."""
    rows = []
    for item in scores:
        kept = item.influence
        if kept is None:
            continue
        rows.append(
            {
                "run_id": run_id,
                "metric": item.metric,
                "plugin": item.plugin,
                "encoder": item.encoder,
                "subset": item.subset,
                "value": kept.value,
                "units": kept.units.tolist(),
                "first": kept.first,
                "probes": kept.probes.ravel(),
                "keys": kept.keys,
                "curvature": kept.curvature,
                "extra": kept.extra,
                "least": kept.least,
                "degrees_of_freedom": kept.degrees_of_freedom,
                "scale": kept.scale,
                "reason": kept.reason,
            }
        )
    return pa.Table.from_pylist(rows, schema=INFLUENCES)


def settle(home: Home, record: RunRecord, scores: Sequence[Score]) -> pd.DataFrame:
    """The differences between a new run and the latest run of every other model of its suite."""
    store = Store(home.store)
    others: list[str] = []
    if home.store.is_file():
        others = (
            store.query(
                "SELECT DISTINCT run_id FROM leaderboard WHERE suite = ? AND protocol = ? "
                "AND model <> ? ORDER BY run_id",
                [record.suite, record.protocol, record.model],
            )
            .column(0)
            .to_pylist()
        )
    mine = {
        (item.plugin, item.metric, item.encoder, item.subset): _Side(
            item.basis, item.n_fake, item.influence
        )
        for item in scores
        if item.influence is not None
    }
    rows: list[dict[str, Any]] = []
    for other in others:
        try:
            theirs = _read(home.runs / other)
        except UserError:
            continue  # gone from the disk; `store rebuild` takes it off the leaderboard
        rows += [
            {"run_id": record.run_id, "other_run": other, **row} for row in compare(theirs, mine)
        ]
    return pd.DataFrame(rows, columns=SCHEMAS["differences"].names)


_PAIRED = ("standard_error", "ci_low", "ci_high", "p_value", "p_holm", "images_needed")


def compare_runs(home: Home, store: Store, first: str, second: str) -> pa.Table:
    """Two finished runs score by score, as the view `compare` has them, with the paired errors of
    what both run directories keep, whether or not the two were on the leaderboard together.

    Raises:
        UserError: no such runs, or a run directory is gone or damaged.
    """
    table = questions.compare(store, first, second)
    if not table.num_rows:
        return table
    rows = table.to_pylist()
    sides = [_read(home.runs / rows[0][run]) for run in ("run_a", "run_b")]
    found = {(row["metric"], row["encoder"], row["subset"]): row for row in compare(*sides)}
    for row in rows:
        paired = found.get((row["metric"], row["encoder"], row["subset"]), {})
        row |= {name: paired.get(name) for name in _PAIRED}
        row["settled"] = None if row["p_holm"] is None else row["p_holm"] < 0.05
    return pa.Table.from_pylist(rows, schema=table.schema)


def caveats(store: Store, table: pa.Table) -> list[str]:
    """Why scores of a comparison are not comparable, in words."""
    if not table.num_rows:
        return ["the runs have no score in common"]
    other = sum(not row for row in table["comparable"].to_pylist())
    if not other:
        return []
    facts = "split, protocol, seed, n_prompts, n_images, encoders, metrics, versions"
    a, b = (
        store.query(f"SELECT {facts} FROM runs WHERE run_id = ?", [run]).to_pylist()[0]  # noqa: S608
        for run in (table["run_a"][0].as_py(), table["run_b"][0].as_py())
    )
    differ = ", ".join(name for name in a if a[name] != b[name]) or "code or real images"
    return [f"{other} of {table.num_rows} scores do not compare: the runs differ in {differ}"]


def compare(first: Mapping[Key, _Side], second: Mapping[Key, _Side]) -> list[dict[str, Any]]:
    """Second less first for every score of one basis and as many images; Holm over the findings
    and the user's subsets of each score."""
    rows: list[dict[str, Any]] = []
    for key, b in second.items():
        a = first.get(key)
        if a is None or (a.basis, a.n_fake) != (b.basis, b.n_fake):
            continue
        found = difference(a.influence, b.influence)
        p = p_value(found)
        needed = images_needed(found, b.n_fake) if p is not None and p >= 0.05 else None
        plugin, metric, encoder, subset = key
        rows.append(
            {
                "metric": metric,
                "plugin": plugin,
                "encoder": encoder,
                "subset": subset,
                "difference": found.value,
                "standard_error": found.standard_error,
                "ci_low": found.ci_low,
                "ci_high": found.ci_high,
                "p_value": p,
                "p_holm": p,
                "images_needed": needed,
                "reason": found.reason,
            }
        )
    for family in _families(rows):
        for row, adjusted in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row["p_holm"] = adjusted
    return rows


def _families(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["subset"] not in (OVERALL, MACRO):
            families.setdefault((row["plugin"], row["metric"], row["encoder"]), []).append(row)
    yield from families.values()


def _read(folder: Path) -> dict[Key, _Side]:
    record = read_record(folder)
    scores = read_table(folder, "scores", record).to_pylist()
    kept = {
        _key(row): _influence(row) for row in read_table(folder, "influences", record).to_pylist()
    }
    return {
        _key(row): _Side(row["basis"], row["n_fake"], kept[_key(row)])
        for row in scores
        if row["basis"] and _key(row) in kept
    }


def _key(row: Mapping[str, Any]) -> Key:
    return row["plugin"], row["metric"], row["encoder"], row["subset"]


def _influence(row: Mapping[str, Any]) -> UnitInfluence:
    units = np.asarray(row["units"], dtype=np.str_)
    probes = np.asarray(row["probes"], dtype=np.float32)
    freedom = row["degrees_of_freedom"]
    return UnitInfluence(
        value=row["value"],
        units=units,
        first=np.asarray(row["first"], dtype=np.float64),
        probes=probes.reshape(units.size, -1) if units.size else np.zeros((0, 0), np.float32),
        keys=np.asarray(row["keys"], dtype=np.uint64),
        curvature=row["curvature"],
        extra=row["extra"],
        least=row["least"],
        degrees_of_freedom=float("inf") if freedom is None else freedom,
        scale=row["scale"],
        reason=row["reason"],
    )
