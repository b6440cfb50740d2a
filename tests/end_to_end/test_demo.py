"""The demo run: what a newcomer sees, and the order that the known answers must have."""

from __future__ import annotations

import csv
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chexgenbench.types import FINDINGS
from desk import Desk, Done

pytestmark = pytest.mark.slow
Demo = tuple[Desk, Done]
LADDER = ("oracle", "phantom-diffusion", "noise")


def test_it_ends_with_leaderboard_places_and_what_to_try(demo: Demo) -> None:
    desk, done = demo
    for text in (*LADDER, "memorizer", "fid", "coverage", "alignment", " to "):
        assert text in done.out
    store, page = (re.search(rf"{name}: +(\S+)", done.out) for name in ("Store", "Page"))
    assert store and (desk.home / store.group(1)).is_file()
    assert page and (desk.home / page.group(1)).is_file()
    tries = done.out.split("Try next:\n")[1].strip().splitlines()
    assert len(tries) == 3
    assert max(map(len, done.out.split("Try next")[0].splitlines())) <= 80
    assert "generate phantom-diffusion: 544 of 544" in done.err


def ladder(desk: Desk, metric: str) -> list[dict[str, Any]]:
    rows = desk.rows(
        "select model, value, ci_low, ci_high from leaderboard "
        f"where metric='{metric}' and encoder='phantom-clip' and subset='overall' "
        "and model in ('oracle','phantom-diffusion','noise') order by value"
    )
    return [
        {"model": row["model"]}
        | {k: float(row[k] or "nan") for k in ("value", "ci_low", "ci_high")}
        for row in rows
    ]


@pytest.mark.parametrize(
    ("metric", "order"),
    [
        ("fid", LADDER),
        ("kid", LADDER),
        ("recall", LADDER[::-1]),
        ("coverage", LADDER[::-1]),
        ("alignment", LADDER[::-1]),
    ],
)
def test_known_answers_come_in_their_order(demo: Demo, metric: str, order: tuple[str, ...]) -> None:
    rows = ladder(demo[0], metric)
    assert tuple(row["model"] for row in rows) == order
    for lower, upper in pairwise(rows):
        # A model that reaches nothing (recall 0) shows no variation, so it has no interval.
        low_end = lower["ci_high"] if lower["ci_high"] == lower["ci_high"] else lower["value"]
        high_end = upper["ci_low"] if upper["ci_low"] == upper["ci_low"] else upper["value"]
        assert low_end < high_end, (lower, upper)


def test_overall_and_14_findings(demo: Demo) -> None:
    subsets = {row["subset"] for row in demo[0].rows("select distinct subset from scores")}
    assert subsets == {"overall", "macro", *FINDINGS}


def test_every_row_carries_its_provenance(demo: Demo) -> None:
    """Defect 24."""
    desk = demo[0]
    (run,) = desk.rows("select * from runs where model = 'phantom-diffusion'")
    assert json.loads(run["versions"])["torch"]
    assert len(json.loads(run["weights"])) >= 3
    assert json.loads(run["hardware"])["cores"]
    assert json.loads(run["encoders"])["phantom-clip"]["weights"]
    assert run["protocol"] == "standard"
    assert (run["n_images"], run["n_skipped_images"], run["n_flagged"]) == ("544", "0", "0")
    bad = desk.rows("select count(*) as n from scores where status = 'failed'")
    assert bad == [{"n": "0"}]
    wild = desk.rows(
        "select count(*) as n from scores where status = 'ok' and not isfinite(value) "
        "or status <> 'ok' and (value is not null or reason is null)"
    )
    assert wild == [{"n": "0"}]


def test_the_same_command_again_makes_nothing_new(demo: Demo) -> None:
    desk, first = demo
    before = desk.rows("select run_id, finished_at from runs order by run_id")
    again = desk.run("run")
    assert desk.rows("select run_id, finished_at from runs order by run_id") == before
    assert "generate" not in again.err
    assert "encode" not in again.err
    assert again.out.split("Store:")[0] == first.out.split("Store:")[0]


def test_the_published_tables_are_written(demo: Demo) -> None:
    results = demo[0].home / "Results"
    with (results / "image_generation_metrics.csv").open() as file:
        overall = list(csv.DictReader(file))
    with (results / "conditional_image_generation_metrics.csv").open() as file:
        by_finding = list(csv.DictReader(file))
    assert len(overall) == 4
    assert len(by_finding) == 4 * 14
    assert {"FID", "FID (RadDino)", "Caption Type", "FID (phantom-clip)"} <= set(overall[0])
    assert {row["Pathology"] for row in by_finding} == set(FINDINGS)


def test_questions(demo: Demo) -> None:
    desk = demo[0]
    board = desk.run("leaderboard", "--metric", "fid").out
    assert board.index("oracle") < board.index("phantom-diffusion") < board.index("noise")
    sorted_board = desk.run("leaderboard", "--metric", "fid", "--sort", "-value").out
    assert sorted_board.index("noise") < sorted_board.index("oracle")
    runs = {row["model"]: row["run_id"] for row in desk.rows("select model, run_id from runs")}
    compared = desk.run("compare", runs["oracle"][:8], runs["noise"][:8]).out
    assert "a: oracle" in compared
    assert "alignment" in compared
    shown = desk.run("runs", "show", runs["oracle"]).out
    assert "oracle" in shown
    assert "unknown_column" in desk.run("query", "select unknown_column from runs", code=2).err
    broken = desk.run("query", "select 1 +", code=2).err
    assert "^" in broken or "LINE 1" in broken


def test_a_store_is_made_again_from_the_run_directories(demo: Demo) -> None:
    desk = demo[0]
    sql = "select * exclude (created_at) from scores order by all"
    before = desk.rows(sql)
    (desk.home / "Results" / "chexgenbench.duckdb").unlink()
    assert "chexgenbench run" in desk.run("query", "select 1", code=2).err
    assert "4 runs" in desk.run("store", "rebuild").out
    assert desk.rows(sql) == before


def test_the_plan_tells_what_is_cached(demo: Demo) -> None:
    desk = demo[0]
    cached = desk.run("run", "--dry-run").out
    assert cached.count("544 of 544 images cached") == 4
    other = desk.run("run", "--dry-run", "--seed", "1", "--model", "phantom-diffusion").out
    assert "0 of 544" in other
    assert re.search(r"about \d+ s", other)


def test_another_metric_scores_the_same_images(demo: Demo) -> None:
    desk = demo[0]
    before = {p: p.stat().st_mtime_ns for p in desk.home.glob("runs/generations/*/images/*.png")}
    suite = desk.home / "kid-only.toml"
    suite.write_text(
        'split = "demo"\nmodels = ["noise"]\nencoders = ["phantom-clip"]\nmetrics = ["kid"]\n'
    )
    done = desk.run("run", "--suite", suite)
    assert "generate" not in done.err
    after = {p: p.stat().st_mtime_ns for p in desk.home.glob("runs/generations/*/images/*.png")}
    assert after == before
    assert len(desk.rows("select distinct suite from leaderboard")) == 2
    (run,) = desk.rows("select run_id from runs where suite = 'kid-only'")
    kept = Path(desk.home / "runs" / run["run_id"])
    assert desk.run("runs", "delete", run["run_id"], code=1).err  # asks, and nobody answers
    assert kept.exists()
    assert "deletes" in desk.run("runs", "delete", run["run_id"], "--yes").out
    assert not kept.exists()
    assert desk.rows("select count(*) as n from runs where suite = 'kid-only'") == [{"n": "0"}]
