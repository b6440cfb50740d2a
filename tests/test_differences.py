"""Two runs against the same real images: paired differences, ranks, and what does not compare."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from chexgenbench.home import Home
from chexgenbench.scoring import Score
from chexgenbench.statistics import mean_estimate
from chexgenbench.statistics.difference import UnitInfluence, difference, holm, p_value
from chexgenbench.store.records import SCHEMAS, RunRecord
from chexgenbench.store.run_directory import read_record, read_table, relabel, write_run
from chexgenbench.store.store import Store
from chexgenbench.types import FINDINGS
from chexgenbench.workflow.differences import compare_runs, influence_table, settle
from store.test_store import record

N = 200


def scores(seed: int, shift: float, *, basis: str = "b", n: int = N) -> list[Score]:
    """A score that two models share most of the noise of, over all subsets."""
    hard = np.random.default_rng(1).normal(size=n)
    own = np.random.default_rng(seed).normal(size=n)
    found = []
    for place, subset in enumerate(("overall", *FINDINGS)):
        rows = np.arange(place % 3, n, 1 + place)
        estimate = mean_estimate((hard + 0.1 * own + shift)[rows])
        found.append(
            Score(
                metric="alignment",
                plugin="alignment",
                encoder="e",
                subset=subset,
                higher_is_better=True,
                n_real=0,
                n_fake=len(rows),
                status="ok",
                value=estimate.value,
                standard_error=estimate.standard_error,
                ci_low=estimate.ci_low,
                ci_high=estimate.ci_high,
                basis=f"{basis} {subset}",
                influence=UnitInfluence.of(estimate, [f"p{row}" for row in rows]),
            )
        )
    return found


def save(home: Home, run: RunRecord, made: list[Score]) -> pd.DataFrame:
    """The run as a workflow leaves it; its differences."""
    rows = [{k: v for k, v in vars(item).items() if k != "influence"} for item in made]
    facts = {name: getattr(run, name) for name in ("run_id", "model", "suite", "protocol", "seed")}
    tables = {
        "scores": pd.DataFrame(rows).assign(**facts, extra_info="", created_at=run.created_at),
        "influences": influence_table(run.run_id, made),
    }
    for name in SCHEMAS:
        tables.setdefault(name, SCHEMAS[name].empty_table())
    write_run(home.runs / run.run_id, run, tables)
    store = Store(home.store)
    store.ingest([home.runs / run.run_id])
    settle(home, store, run.run_id)
    sql = "SELECT * FROM differences WHERE run_id = ? ORDER BY ALL"
    return store.query(sql, [run.run_id]).to_pandas()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    save(home, record("aa", "plain", 1), scores(2, 0.0))
    save(home, record("bb", "better", 2), scores(3, 0.05))
    save(home, record("cc", "alike", 3), scores(4, 0.001))
    return home


def test_the_pair_settles_what_the_two_intervals_do_not(home: Home) -> None:
    store = Store(home.store)
    rows = {row["subset"]: row for row in compare_runs(home, store, "aa", "bb").to_pylist()}
    row = rows["overall"]
    assert row["ci_high_a"] > row["ci_low_b"]  # the intervals overlap
    assert row["settled"] and row["better"] == "b" and row["comparable"]
    expected = difference(scores(2, 0.0)[0].influence, scores(3, 0.05)[0].influence)
    assert row["difference"] == pytest.approx(expected.value, rel=1e-12)
    assert row["standard_error"] == pytest.approx(expected.standard_error, rel=1e-6)
    assert row["ci_low"] == pytest.approx(expected.ci_low, rel=1e-6)
    assert row["images_needed"] is None
    assert rows["overall"]["p_holm"] == rows["overall"]["p_value"]
    raw = [rows[finding]["p_value"] for finding in FINDINGS]
    assert [rows[finding]["p_holm"] for finding in FINDINGS] == pytest.approx(holm(raw))
    other_way = compare_runs(home, store, "bb", "aa").to_pylist()
    overall = next(item for item in other_way if item["subset"] == "overall")
    assert overall["difference"] == pytest.approx(-row["difference"])
    assert overall["ci_low"] == pytest.approx(-row["ci_high"])


def test_what_is_not_settled_says_how_many_images_would(home: Home) -> None:
    rows = compare_runs(home, Store(home.store), "aa", "cc").to_pylist()
    row = next(item for item in rows if item["subset"] == "overall")
    assert row["settled"] is False and row["images_needed"] > N
    reach = 2.8016 * row["standard_error"] / abs(row["difference"])
    assert row["images_needed"] == pytest.approx(N * reach**2, rel=1e-3)


def test_the_store_has_each_pair_of_the_leaderboard_and_ranks_by_it(home: Home) -> None:
    store = Store(home.store)
    pairs = store.query("SELECT run_id, other_run FROM differences WHERE subset = 'overall'")
    assert sorted(map(tuple, (row.values() for row in pairs.to_pylist()))) == [
        ("bb", "aa"),
        ("cc", "aa"),
        ("cc", "bb"),
    ]
    board = store.query("SELECT model, rank FROM leaderboard WHERE subset = 'overall'").to_pylist()
    assert {row["model"]: row["rank"] for row in board} == {"better": 1, "plain": 2, "alike": 2}
    view = store.query(
        "SELECT difference, ci_low, ci_high, settled FROM compare "
        "WHERE run_a = 'aa' AND run_b = 'bb' AND subset = 'overall'"
    ).to_pylist()[0]
    fresh = compare_runs(home, store, "aa", "bb").to_pylist()
    again = next(item for item in fresh if item["subset"] == "overall")
    assert view == pytest.approx({name: again[name] for name in view})
    rebuilt = Store(home.root / "other.duckdb")
    rebuilt.rebuild(home.runs)
    sql = "SELECT * FROM leaderboard ORDER BY ALL"
    assert rebuilt.query(sql).equals(store.query(sql))


def test_a_run_that_is_gone_takes_its_differences_along(home: Home) -> None:
    store = Store(home.store)
    store.delete(["aa"])
    left = store.query("SELECT DISTINCT run_id, other_run FROM differences").to_pylist()
    assert left == [{"run_id": "cc", "other_run": "bb"}]


def test_a_pair_whose_command_was_killed_before_the_store_knew_is_there_once(home: Home) -> None:
    """The store as it was between the run's directory and the store; the other run comes first."""
    store = Store(home.store)
    pairs = store.query("SELECT run_id, other_run FROM differences ORDER BY ALL").to_pandas()
    with duckdb.connect(str(home.store)) as connection:
        connection.execute("DELETE FROM differences")
    for run in ("aa", "bb", "cc"):
        settle(home, store, run)
        store.ingest([home.runs / run])
    found = store.query("SELECT run_id, other_run FROM differences ORDER BY ALL").to_pandas()
    pd.testing.assert_frame_equal(found, pairs)
    for run in ("aa", "bb", "cc"):
        folder = home.runs / run
        kept = read_table(folder, "differences", read_record(folder)).column("other_run")
        assert set(kept.to_pylist()) == set(pairs.other_run[pairs.run_id == run])


def test_a_run_that_comes_back_is_settled_against_those_of_now(home: Home) -> None:
    """Reused runs, and pairs that two processes left out or both took."""
    store = Store(home.store)
    again = record("aa2", "plain", 4)
    save(home, again, scores(6, 0.0))  # takes the place of aa on the board
    save(home, record("dd", "late", 5), scores(7, 0.02))  # has never met aa
    returned = record("aa", "plain", 1, used_at="2027-01-01T00:00:00+00:00")
    relabel(home.runs / "aa", returned)
    store.ingest([home.runs / "aa"])
    assert settle(home, store, "aa") == 1
    assert settle(home, store, "aa") == 0
    pairs = store.query("SELECT DISTINCT run_id, other_run FROM differences WHERE run_id = 'aa'")
    assert pairs.to_pylist() == [{"run_id": "aa", "other_run": "dd"}]
    # The same pair the other way round, as a second process would leave it.
    twin = read_table(home.runs / "aa", "differences", returned).to_pylist()
    for row in twin:
        row |= {"run_id": "dd", "other_run": "aa", "difference": -row["difference"]}
        row |= {"ci_low": -row["ci_high"], "ci_high": -row["ci_low"]} if row["ci_low"] else {}
    known = read_table(home.runs / "dd", "differences", record("dd")).to_pylist()
    table = pa.Table.from_pylist([*known, *twin], schema=SCHEMAS["differences"])
    write_run(home.runs / "dd", record("dd", "late", 5), {"differences": table})
    store.ingest([home.runs / "dd"])
    for a, b in (("aa", "dd"), ("dd", "aa")):
        assert len(compare_runs(home, store, a, b)) == 15
    # Deleted from the store, remembered by another run's directory: not on the board again.
    shutil.rmtree(home.runs / "bb")
    store.rebuild(home.runs)
    left = store.query("SELECT count(*) FROM differences WHERE 'bb' IN (run_id, other_run)")
    assert left[0][0].as_py() == 0


@pytest.mark.parametrize("change", [{"basis": "other"}, {"n": N - 50}])
def test_other_real_images_or_sizes_do_not_compare(home: Home, change: dict[str, object]) -> None:
    found = save(home, record("dd", "odd", 4), scores(5, 0.3, **change))  # type: ignore[arg-type]
    if "n" in change:
        found = found[found["subset"] == "overall"]
    assert found.empty
    rows = compare_runs(home, Store(home.store), "aa", "dd").to_pylist()
    row = next(item for item in rows if item["subset"] == "overall")
    assert not row["comparable"] and row["ci_low"] is None and row["settled"] is None
    assert row["difference"] is not None


def test_a_score_without_an_error_has_a_difference_without_an_interval(home: Home) -> None:
    made = [
        dataclasses.replace(item, influence=UnitInfluence.unknown(item.value or 0.0, "as a test"))
        for item in scores(5, 0.2)
    ]
    found = save(home, record("ee", "blind", 5), made)
    assert found["ci_low"].isna().all() and found["p_value"].isna().all()
    assert found["reason"].str.contains("as a test").all()


def test_p_values_of_equal_models_are_uniform() -> None:
    """The paired test holds its level: 5 % of equal models look different, not 20 %."""
    draws = 400
    rejected = 0
    for seed in range(draws):
        random = np.random.default_rng(seed)
        hard = random.normal(size=60)
        a, b = (mean_estimate(hard + random.normal(size=60)) for _ in range(2))
        p = p_value(difference(a, b))
        assert p is not None
        rejected += p < 0.05
    # 400 draws of 5 %: 20, standard deviation 4.4.
    assert 7 <= rejected <= 36
