"""The store against CSV files: taking in ten million scores of single images, and asking of them.

    python benchmarks/store_speed.py [--runs 20] [--prompts 18575] [--repeats 4] [--scores 7]
        [--turns 3] [--write]

Run directories are written once. From their Parquet files each side takes every run in, run by
run, as runs come: the store with all of a run's tables, checks of its keys and a sync of each
change; pandas by appending the scores of single images alone to a CSV file. Then the questions of
the cookbook are asked of the store, each by a connection of its own, and two of them of the CSV
file by pandas; both must give the same rows. ``--write`` puts the tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow.parquet as pq
from side_by_side import ROOT, machine, spread, table, write_between
from view_speed import fill, run_id

from chexgenbench.store.cookbook import saved_queries
from chexgenbench.store.run_directory import write_run
from chexgenbench.store.store import Store

if TYPE_CHECKING:
    import pandas as pd

PAGE = ROOT / "docs" / "performance.md"
ROWS = "sample_scores.parquet"


def write_runs(folder: Path, runs: int, prompts: int, repeats: int, scores: int) -> list[Path]:
    """Run directories with so many rows, made by way of a store that is thrown away."""
    made = folder / "made" / "store.duckdb"
    fill(made, runs, prompts, repeats, scores)
    # Some scores that the questions ask for, in place of made-up names.
    with duckdb.connect(str(made)) as connection:
        for at, name in enumerate(("kid", "fid", "precision", "alignment", "replicated_rate")):
            connection.execute(
                "UPDATE scores SET metric = ? WHERE metric = ?", [name, f"metric_{at}"]
            )
    store = Store(made)
    folders = []
    for number in range(runs):
        name = run_id(number)
        record, tables = store.run(name)
        write_run(folder / "runs" / name, record, tables)
        folders.append(folder / "runs" / name)
    shutil.rmtree(made.parent)
    return folders


def by_store(path: Path, folders: list[Path]) -> None:
    for folder in folders:
        Store(path).ingest([folder])


def at_once(path: Path, folders: list[Path]) -> None:
    Store(path).rebuild(folders[0].parent)


def by_pandas(path: Path, folders: list[Path]) -> None:
    for folder in folders:
        frame = pq.read_table(folder / ROWS).to_pandas()
        frame.to_csv(path, mode="a", header=not path.exists(), index=False)


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    begun, worked = time.perf_counter(), time.process_time()
    found = call()
    return time.perf_counter() - begun, time.process_time() - worked, found


def means(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.groupby(["run_id", "metric", "encoder"], as_index=False)["value"].mean()


def worst(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows[rows["metric"] == "alignment"].copy()
    rows["place"] = rows.groupby("run_id")["value"].rank(pct=True)
    highest = rows.groupby("prompt_id", as_index=False)["place"].max()
    return highest.sort_values(["place", "prompt_id"]).head(20)


QUESTIONS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "mean of each score of each run": (
        "SELECT run_id, metric, encoder, avg(value) AS value FROM sample_scores "
        "GROUP BY ALL ORDER BY ALL",
        means,
    ),
    "the 20 prompts that fare worst in all models": (
        "WITH placed AS (SELECT run_id, prompt_id, (rank() OVER own + "
        "(count(*) OVER (PARTITION BY run_id, value) - 1) / 2) / count(*) OVER "
        "(PARTITION BY run_id) AS place FROM sample_scores WHERE metric = 'alignment' "
        "WINDOW own AS (PARTITION BY run_id ORDER BY value)) "
        "SELECT prompt_id, max(place) AS place FROM placed GROUP BY 1 ORDER BY 2, 1 LIMIT 20",
        worst,
    ),
}
"""Words to the same question in SQL and in pandas."""


def ask_both(store: Store, csv: Path, turns: int) -> list[list[str]]:
    import pandas as pd

    rows = []
    for words, (sql, function) in QUESTIONS.items():
        ours, theirs = [], []
        for _ in range(turns):
            seconds, _, found = timed(lambda sql=sql: store.query(sql).to_pandas())
            ours.append(seconds)
            seconds, _, expected = timed(
                lambda function=function: function(pd.read_csv(csv, dtype={"run_id": str}))
            )
            theirs.append(seconds)
            pd.testing.assert_frame_equal(
                found.reset_index(drop=True), expected.reset_index(drop=True), rtol=1e-9
            )
        times = f"{min(theirs) / min(ours):.0f}"
        rows.append([words, spread(theirs), spread(ours), times])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=18_575)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--scores", type=int, default=7)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    size = (options.runs, options.prompts, options.repeats, options.scores)
    text = [f"{machine()}; {options.turns} turns a side."]
    with tempfile.TemporaryDirectory(prefix="store-speed-") as name:
        folder = Path(name)
        folders = write_runs(folder, *size)
        csv, path = folder / "scores.csv", folder / "store.duckdb"
        sides: dict[str, tuple[Callable[[Path, list[Path]], None], Path]] = {
            "pandas, appending to a CSV file": (by_pandas, csv),
            "the store, run by run": (by_store, path),
            "the store, made again from all": (at_once, path),
        }
        took: dict[str, list[tuple[float, float]]] = {each: [] for each in sides}
        for _ in range(options.turns):
            for side, (take, target) in sides.items():
                target.unlink(missing_ok=True)
                seconds, worked, _ = timed(lambda take=take, to=target: take(to, folders))
                took[side].append((seconds, worked))
                print(f"{side}: {seconds:.1f} s", file=sys.stderr, flush=True)
        first = min(wall for wall, _ in next(iter(took.values())))
        count = size[0] * size[1] * size[2] * size[3]
        rows = [
            [
                side,
                spread([wall for wall, _ in costs]),
                spread([worked for _, worked in costs]),
                f"{first / min(wall for wall, _ in costs):.1f}",
                f"{sides[side][1].stat().st_size / 1e6:,.0f}",
            ]
            for side, costs in took.items()
        ]
        header = ["", "seconds", "processor seconds", "times faster", "MB on the disk"]
        text += ["", f"### Taking in {count:,} scores of single images", "", table(header, rows)]

        store = Store(path)
        header = ["question", "pandas, from CSV, s", "the store, s", "times faster"]
        asked = table(header, ask_both(store, csv, options.turns))
        text += ["", "### Two questions of all rows", "", asked]
        rows = []
        for query in saved_queries().values():
            times = [timed(lambda sql=query.sql: store.query(sql))[0] for _ in range(options.turns)]
            rows.append([query.name, spread(times), f"{store.query(query.sql).num_rows:,}"])
            print(rows[-1], file=sys.stderr, flush=True)
        text += ["", "### The cookbook over the same store", ""]
        text.append(table(["question", "seconds", "rows of the answer"], rows))
    print("\n".join(text))
    if options.write:
        write_between(PAGE, "store-speed", "\n".join(text))


if __name__ == "__main__":
    main()
