"""Subsets, differences, protocols, published numbers and reference bundles by the real command."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from chexgenbench.types import FINDINGS
from desk import Desk

pytestmark = pytest.mark.slow

SUBSET = "portable men: view = 'AP' and \"Support Devices\" = 1"
MODELS = ("--model", "oracle", "--model", "memorizer", "--model", "noise")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = Desk.new(tmp_path_factory.mktemp("numbers"))
    desk.run("run", *MODELS, "--limit", 200, "--subset", SUBSET)
    return desk


def run_of(desk: Desk, model: str, protocol: str = "standard") -> str:
    sql = "select run_id from runs where model = '{}' and protocol = '{}'"
    return desk.rows(sql.format(model, protocol))[0]["run_id"]


def test_every_row_says_how_many_images_by_which_encoder_and_how_sure(shop: Desk) -> None:
    rows = shop.rows("select * from scores")
    subsets = {"overall", "macro", "portable men", *FINDINGS}
    assert {row["subset"] for row in rows} == subsets
    assert all(row["n_real"] and row["n_fake"] and row["encoder_id"] for row in rows)
    assert all(row["warning_level"] in "0123" for row in rows)
    small = [row for row in rows if row["metric"] == "fid" and row["subset"] == "Fracture"]
    assert {row["warning_level"] for row in small} == {"3"}
    assert all("n <= d" in row["warning"] and row["floor"] for row in small)
    chosen = shop.rows(
        "select count(*) as n from prompts where view = 'AP' and \"Support Devices\" = 1 "
        "group by run_id"
    )
    mine = [row for row in rows if row["subset"] == "portable men"]
    assert {row["n_fake"] for row in mine} == {chosen[0]["n"]}


def test_a_rare_finding_is_not_called_bad_for_being_rare(shop: Desk) -> None:
    """The oracle's plug-in distance is large on a few images; so is real against real."""
    rows = shop.rows(
        "select b.subset, b.value, b.floor, b.matched, o.value as overall "
        "from leaderboard as b join leaderboard as o using (run_id, metric) "
        "where b.model = 'oracle' and b.metric = 'fid' and o.subset = 'overall' "
        f"and b.subset in ({', '.join(repr(name) for name in FINDINGS)}) and b.n_fake < 40"
    )
    assert len(rows) >= 4
    for row in rows:
        assert float(row["value"]) > 3 * float(row["overall"])
        assert float(row["matched"]) < 1.5 * float(row["floor"])


def test_ranks_are_shared_by_what_nothing_sets_apart(shop: Desk) -> None:
    rows = shop.rows("select model, rank from leaderboard where metric='kid' and subset='overall'")
    ranks = {row["model"]: row["rank"] for row in rows}
    assert ranks == {"oracle": "1", "memorizer": "1", "noise": "3"}
    shown = shop.run("leaderboard", "--metric", "kid").out
    assert shown.splitlines()[0].split()[:3] == ["rank", "model", "value"]


def test_two_runs_are_compared_in_pairs(shop: Desk) -> None:
    a, b = run_of(shop, "oracle"), run_of(shop, "memorizer")
    out = shop.run("compare", a, b, "--format", "csv").out
    rows = {(row["metric"], row["subset"]): row for row in csv.DictReader(io.StringIO(out))}
    row = rows["alignment", "overall"]
    assert row["settled"] == "true" and row["better"] == "a" and row["comparable"] == "true"
    assert float(row["ci_high"]) < 0
    # Both answer the same prompts of the same patients: the pair knows more than two intervals.
    independent = shop.rows(
        "select sqrt(sum(standard_error ** 2)) as error from scores where metric = 'fid' "
        f"and subset = 'overall' and run_id in ('{a}', '{b}')"
    )[0]["error"]
    assert float(rows["fid", "overall"]["standard_error"]) < 1.05 * float(independent)
    assert rows["fid", "Fracture"]["ci_low"] == ""
    assert any(int(float(row["images_needed"] or 0)) > 200 for row in rows.values())
    one = shop.run("compare", a, b, "--subset", "macro", "--format", "csv").out
    assert {row["subset"] for row in csv.DictReader(io.StringIO(one))} == {"macro"}
    assert "macro" in shop.run("compare", a, b, "--subset", "marco", code=2).err
    shown = shop.run("compare", a, b).out
    assert "a: oracle" in shown and "b: memorizer" in shown
    assert shop.run("compare", a, a, code=2).err.startswith("Error: ")


def test_the_legacy_protocol_stays_by_itself(shop: Desk) -> None:
    shop.run("run", "--model", "noise", "--limit", 200, "--protocol", "legacy")
    a, b = run_of(shop, "noise"), run_of(shop, "noise", "legacy")
    done = shop.run("compare", a, b, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert rows and all(row["comparable"] == "false" and not row["ci_low"] for row in rows)
    assert "do not compare" in done.err and "protocol" in done.err
    exported = (shop.home / "Results" / "image_generation_metrics.csv").read_text()
    rounded = {row["Run"]: row for row in csv.DictReader(io.StringIO(exported))}[b]
    assert all(
        len(rounded[name].partition(".")[2]) <= 3
        for name in rounded
        if name.partition(" ")[0] in ("FID", "KID", "Precision", "Recall", "Density", "Coverage")
    )
    stored = shop.rows(f"select value from scores where run_id='{b}' and metric='kid'")
    assert any(len(row["value"]) > 8 for row in stored)  # the store rounds nothing


def test_published_numbers_on_other_encoders_are_refused(shop: Desk) -> None:
    done = shop.run("leaderboard", "--published")
    assert "no published number is of a score and an encoder of these runs" in done.err
    refused = shop.run("compare", run_of(shop, "oracle"), "sana", "--published", code=2)
    assert "phantom-clip" in refused.err and "rad-dino" in refused.err
    assert (
        "sd-v1-4"
        in shop.run("compare", run_of(shop, "oracle"), "sd-v1-44", "--published", code=2).err
    )


def test_published_numbers_are_shown_where_the_encoder_is_theirs(
    desk: Desk, rad_dino: Path
) -> None:
    options = ("--encoder", "rad-dino", "--set", f"rad-dino.weights={rad_dino}")
    done = desk.run("run", "--model", "noise", "--limit", 40, "--protocol", "legacy", *options)
    assert "left out: The metric 'alignment' needs an encoder with a text side" in done.err
    board = desk.run("leaderboard", "--published", "--metric", "fid")
    assert "sana (published)" in board.out and "noise" in board.out
    assert "published numbers are of mimic-cxr by the protocol legacy" in board.err
    assert "not comparable with noise (demo, legacy)" in board.err
    run = desk.rows("select run_id from runs")[0]["run_id"]
    beside = desk.run("compare", run, "sd-v1-5", "--published", "--format", "csv")
    rows = {(row["metric"], row["subset"]): row for row in csv.DictReader(io.StringIO(beside.out))}
    assert float(rows["fid", "overall"]["published"]) == 118.932
    assert rows["fid", "overall"]["source"] == "fidelity.csv"
    assert {row["comparable"] for row in rows.values()} == {"false"}
    assert "not comparable" in beside.err and "shifted by a column" in beside.err


def test_a_bundle_stands_for_the_real_images(shop: Desk, tmp_path: Path) -> None:
    bundle = shop.home / "demo.safetensors"
    built = shop.run("reference", "build", "demo", bundle)
    assert "544 real images of demo by phantom-clip" in built.out and "SHA-256: " in built.out
    shown = shop.run("reference", "show", bundle).out
    assert "split: demo, 544 rows" in shown and "credentialed: no" in shown
    member = Desk.new(tmp_path)
    member.run("run", "--model", "noise", "--limit", 200, "--reference", bundle)
    assert not (member.cache / "phantom").exists()
    sql = "select value from scores where metric = 'kid' and subset = 'overall' and model = 'noise'"
    ours = shop.rows(f"{sql} and protocol = 'standard'")[0]["value"]
    theirs = member.rows(sql)[0]["value"]
    assert float(theirs) == pytest.approx(float(ours), rel=1e-9)
    bundle.write_bytes(bundle.read_bytes()[:-5])
    assert "damaged" in member.run("run", "--model", "noise", "--reference", bundle, code=2).err


def test_other_values_of_a_column_are_another_run(desk: Desk) -> None:
    """A subset is its rows, not the words that chose them."""
    table = desk.home / "mine.csv"
    desk.run("generate", "--model", "noise", "--limit", 1)
    ids = range(40)

    def write(ages: list[int]) -> None:
        lines = [f"s{i},Prompt {i},{age}" for i, age in zip(ids, ages, strict=True)]
        table.write_text("\n".join(["id,text,age", *lines]) + "\n")

    options = ("run", "--split", table, "--model", "noise", "--metric", "vendi")
    options += ("--subset", "old: age > 50", "--column", "prompt=text", "--column", "labels=")
    options += ("--column", "patient=", "--column", "path=")
    sql = "select n_fake from leaderboard where subset = 'old'"
    write([60] * 10 + [40] * 30)
    desk.run(*options)
    assert desk.rows(sql) == [{"n_fake": "10"}]
    write([60] * 25 + [40] * 15)
    desk.run(*options)
    assert desk.rows(sql) == [{"n_fake": "25"}]
    conditions = desk.rows("select distinct subsets from runs where subsets <> '{}'")
    assert conditions == [{"subsets": '{"old": "age > 50"}'}]


def test_two_metrics_with_one_score_are_refused(desk: Desk, tmp_path: Path) -> None:
    plugin = tmp_path / "again.py"
    plugin.write_text(
        "from chexgenbench import MetricSpec, ScoreSpec, SetMetric, hookimpl\n"
        "class Again(SetMetric):\n"
        "    def score(self, real, fake):\n"
        "        raise NotImplementedError\n"
        "@hookimpl\n"
        "def chexgenbench_metrics():\n"
        "    yield MetricSpec(name='again', summary='kid once more', load=Again, metric='set',\n"
        "                     scores=(ScoreSpec(name='kid', higher_is_better=False),))\n"
    )
    options = ("run", "--plugin", plugin, "--model", "noise", "--metric", "kid")
    done = desk.run(*options, "--metric", "again", code=2)
    assert "'kid' and 'again' both report the score 'kid'" in done.err


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ("frontal", "not of the form name: condition"),
        ("overall: view = 'PA'", "'overall' is taken"),
        ("macro: view = 'PA'", "'macro' is taken"),
        ("x: veiw = 'PA'", "veiw"),
        ("x: view = ", "syntax error"),
        ("x: max(line) > 3", "cannot be used"),
        ("x: random() < 0.5", "other rows each time"),
    ],
)
def test_a_subset_that_cannot_be_used(desk: Desk, subset: str, message: str) -> None:
    done = desk.run("run", "--model", "noise", "--subset", subset, code=2)
    assert message in done.err
    assert not (desk.home / "runs" / "generations").exists()
