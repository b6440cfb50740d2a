"""Differences of two runs, with paired errors, from what their run directories keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chexgenbench.errors import UserError
from chexgenbench.home import Home
from chexgenbench.scoring import Score
from chexgenbench.statistics.difference import (
    UnitInfluence,
    difference,
    holm,
    images_needed,
    p_value,
)
from chexgenbench.store import questions
from chexgenbench.store.records import INFLUENCES, SCHEMAS
from chexgenbench.store.run_directory import read_record, read_table, write_run
from chexgenbench.store.store import Store
from chexgenbench.types import MACRO, OVERALL

Key = tuple[str, str, str, str]
_KEY = ("plugin", "metric", "encoder", "subset")


@dataclass(frozen=True)
class _Side:
    """A score as a difference needs it."""

    basis: str
    n_fake: int
    influence: UnitInfluence


class _Sides:
    """The scores of a run; what each unit contributed is unpacked for one score at a time."""

    def __init__(self, facts: Mapping[Key, tuple[str, int]], influences: pa.Table) -> None:
        self._facts = facts
        self._influences = influences
        columns = (influences[name].to_pylist() for name in _KEY)
        self._rows = {key: row for row, key in enumerate(zip(*columns, strict=True))}

    @classmethod
    def read(cls, folder: Path) -> _Sides:
        record = read_record(folder)
        scores = read_table(folder, "scores", record).select([*_KEY, "basis", "n_fake"])
        facts = {
            _key(row): (row["basis"], row["n_fake"]) for row in scores.to_pylist() if row["basis"]
        }
        return cls(facts, read_table(folder, "influences", record))

    def keys(self) -> list[Key]:
        return [key for key in self._facts if key in self._rows]

    def comparable(self, other: _Sides, key: Key) -> bool:
        """Whether both have the score, on one basis and as many generated images."""
        return key in other._rows and self._facts[key] == other._facts.get(key)

    def __getitem__(self, key: Key) -> _Side:
        basis, n_fake = self._facts[key]
        row = self._influences.slice(self._rows[key], 1)
        return _Side(basis, n_fake, _influence(row))


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


def settle(home: Home, store: Store, run: str) -> int:
    """Takes the differences between a run and the leaderboard's other runs of its suite and
    protocol that are not known yet, into the run's directory and the store.

    Returns:
        The number of pairs that were new.
    """
    lacking: list[str] = (
        store.query(
            """
            SELECT DISTINCT b.run_id FROM leaderboard AS a JOIN leaderboard AS b
              ON a.suite = b.suite AND a.protocol = b.protocol AND a.basis = b.basis
             AND a.n_fake = b.n_fake AND a.run_id <> b.run_id
            WHERE a.run_id = ? AND NOT EXISTS (
                FROM differences AS d
                WHERE (d.run_id = a.run_id AND d.other_run = b.run_id)
                   OR (d.run_id = b.run_id AND d.other_run = a.run_id))
            ORDER BY b.run_id
            """,
            [run],
        )
        .column(0)
        .to_pylist()
    )
    if not lacking:
        return 0
    folder = home.runs / run
    record, mine = read_record(folder), _Sides.read(folder)
    rows: list[dict[str, Any]] = []
    changed: list[Path] = []
    for other in lacking:
        elsewhere = home.runs / other
        try:
            of_other = read_table(elsewhere, "differences", read_record(elsewhere))
            theirs = _Sides.read(elsewhere)
        except UserError:
            continue  # gone from the disk; `store rebuild` takes it off the leaderboard
        if run in of_other.column("other_run").to_pylist():
            # Its command was killed before the store knew of them; the pair is there once.
            changed.append(elsewhere)
            continue
        rows += [{"run_id": run, "other_run": other, **row} for row in compare(theirs, mine)]
    if rows:
        known = read_table(folder, "differences", record).to_pylist()
        kept = [row for row in known if row["other_run"] not in lacking]
        table = pa.Table.from_pylist([*kept, *rows], schema=SCHEMAS["differences"])
        write_run(folder, record, {"differences": table})
        changed.append(folder)
    if changed:
        store.ingest(changed)
    return len({row["other_run"] for row in rows})


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
    first_side, second_side = (_Sides.read(home.runs / rows[0][run]) for run in ("run_a", "run_b"))
    found = {_key(row): row for row in compare(first_side, second_side)}
    for row in rows:
        paired = found.get(_key(row), {})
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


def compare(first: _Sides, second: _Sides) -> list[dict[str, Any]]:
    """Second less first for every score of one basis and as many images; Holm over the findings
    and the user's subsets of each score."""
    rows: list[dict[str, Any]] = []
    for key in second.keys():  # noqa: SIM118
        if not second.comparable(first, key):
            continue
        a, b = first[key], second[key]
        found = difference(a.influence, b.influence)
        p = p_value(found)
        needed = images_needed(found, b.n_fake)
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
    for row in rows:
        if row["p_holm"] is None or row["p_holm"] < 0.05:
            row["images_needed"] = None
    return rows


def _families(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["subset"] not in (OVERALL, MACRO):
            families.setdefault((row["plugin"], row["metric"], row["encoder"]), []).append(row)
    yield from families.values()


def _key(row: Mapping[str, Any]) -> Key:
    return row["plugin"], row["metric"], row["encoder"], row["subset"]


def _influence(table: pa.Table) -> UnitInfluence:
    """The one row of a table of influences."""
    lists = {
        name: table[name].combine_chunks().flatten()
        for name in ("units", "first", "probes", "keys")
    }
    row = table.drop_columns(list(lists)).to_pylist()[0]
    units = np.asarray(lists["units"].to_pylist(), dtype=np.str_)
    probes = lists["probes"].to_numpy()
    freedom = row["degrees_of_freedom"]
    return UnitInfluence(
        value=row["value"],
        units=units,
        first=lists["first"].to_numpy(),
        probes=probes.reshape(units.size, -1) if units.size else np.zeros((0, 0), np.float32),
        keys=lists["keys"].to_numpy(),
        curvature=row["curvature"],
        extra=row["extra"],
        least=row["least"],
        degrees_of_freedom=float("inf") if freedom is None else freedom,
        scale=row["scale"],
        reason=row["reason"],
    )
