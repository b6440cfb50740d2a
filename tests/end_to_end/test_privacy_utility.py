"""The suite `quick`: every privacy and utility metric on models whose answer is known.

`memorizer` answers training prompts with their own images, `half` does so for half of them,
`oracle` draws a new patient, `noise` ignores the prompt.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import norm

from chexgenbench.store.cookbook import saved_query
from chexgenbench.store.store import Store
from desk import Desk, Done

pytestmark = pytest.mark.slow

# Scores of privacy that have a control, and the direction of a leak.
LEAKS = {
    "replicated_rate": 1,
    "replicated_rate_members": 1,
    "training_share_members": 1,
    "near_duplicates": 1,
    "nndr": -1,
    "authenticity": -1,
    "membership_auc_distance": 1,
    "membership_auc_nearest": 1,
    "membership_auc_domias": 1,
    "reid_rate": 1,
    "reid_mean": 1,
    "pixel_distance_mean": -1,
    "latent_distance_mean": -1,
}


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Done]:
    desk = Desk.new(tmp_path_factory.mktemp("quick"))
    done = desk.run("run", "--suite", "quick")
    print(f"the quick suite took {done.seconds:.0f} s", file=sys.stderr)
    return desk, done


@pytest.mark.parametrize("name", ["copies", "pareto-privacy", "privacy-excess", "utility"])
def test_a_saved_query_is_answered(quick: tuple[Desk, Done], name: str) -> None:
    desk, _ = quick
    rows = Store(desk.home / "Results" / "chexgenbench.duckdb").query(saved_query(name).sql)
    models = set(rows["model"].to_pylist())
    if name == "pareto-privacy":
        front = {row["model"]: row["on_the_front"] for row in rows.to_pylist()}
        assert front["oracle"] and not front["half"]
        assert len(front) == 5
    elif name == "utility":
        assert models == {"oracle", "phantom-diffusion", "memorizer", "half", "noise"}
    else:
        assert {"memorizer", "half"} <= models


@pytest.fixture(scope="session")
def scores(quick: tuple[Desk, Done]) -> dict[tuple[str, str], dict[str, float]]:
    """(model, score) to its numbers, overall or over the findings."""
    desk, _ = quick
    rows = desk.rows(
        "SELECT model, metric, value, ci_low, ci_high, floor, excess, excess_low, excess_high "
        "FROM leaderboard WHERE subset = 'overall' OR subset = 'macro' AND plugin = 'linear-probe'"
    )
    return {
        (row["model"], row["metric"]): {
            name: float(row[name]) if row[name] else math.nan
            for name in row
            if name not in ("model", "metric")
        }
        for row in rows
    }


def test_nothing_failed(quick: tuple[Desk, Done]) -> None:
    desk, _ = quick
    assert desk.rows("SELECT model, metric, reason FROM scores WHERE status = 'failed'") == []


@pytest.mark.parametrize("score", LEAKS)
def test_the_memorizer_is_flagged_by_every_privacy_score(
    scores: dict[tuple[str, str], dict[str, float]], score: str
) -> None:
    found = scores["memorizer", score]
    ends = LEAKS[score] * found["excess_low"], LEAKS[score] * found["excess_high"]
    assert min(ends) > 0, f"not beyond its control: {found}"


def test_how_strongly(scores: dict[tuple[str, str], dict[str, float]]) -> None:
    for attack in ("distance", "nearest", "domias"):
        assert scores["memorizer", f"membership_auc_{attack}"]["value"] > 0.95
    assert scores["memorizer", "replicated_rate_members"]["value"] > 0.9
    assert scores["memorizer", "reid_rate"]["value"] > 0.9


@pytest.mark.parametrize("score", LEAKS)
def test_the_oracle_agrees_with_its_control(
    scores: dict[tuple[str, str], dict[str, float]], score: str
) -> None:
    found = scores["oracle", score]
    # As many scores are tested as LEAKS has (Bonferroni).
    middle = found["excess"]
    wide = norm.isf(0.025 / len(LEAKS)) / norm.isf(0.025)
    low = middle - wide * (middle - found["excess_low"])
    high = middle + wide * (found["excess_high"] - middle)
    assert low <= 0 <= high, found


@pytest.mark.parametrize("score", LEAKS)
def test_a_mixture_lies_between(
    scores: dict[tuple[str, str], dict[str, float]], score: str
) -> None:
    whole, half, none = (scores[name, score]["value"] for name in ("memorizer", "half", "oracle"))
    assert sorted([whole, half, none]) in ([whole, half, none], [none, half, whole])
    assert whole != half != none


def test_utility_orders_the_models(scores: dict[tuple[str, str], dict[str, float]]) -> None:
    real = scores["oracle", "probe_auroc_real"]
    oracle = scores["oracle", "probe_auroc_synthetic"]
    noise = scores["noise", "probe_auroc_synthetic"]
    assert oracle["ci_low"] <= real["ci_high"] and real["ci_low"] <= oracle["ci_high"]
    assert noise["ci_high"] < oracle["ci_low"]
    # What was trained on real images is the same for every model.
    assert scores["noise", "probe_auroc_real"] == real


def test_networks_are_trained_and_tested(tmp_path: Path) -> None:
    """Classification and report generation through the planner, at sizes that show the way only."""
    desk = Desk.new(tmp_path)
    settings = (
        "classification.backbone=resnet10t",
        "classification.size=32",
        "classification.images=60",
        "classification.epochs=1",
        "classification.seeds=1",
        "classification.regimes=real,synthetic",
        "classification.ratios=0.5",
        "report-generation.encoder=scratch",
        "report-generation.decoder=scratch",
        "report-generation.labeller=phantom",
        "report-generation.size=32",
        "report-generation.patch=8",
        "report-generation.width=32",
        "report-generation.layers=1",
        "report-generation.heads=2",
        "report-generation.epochs=1",
        "report-generation.images=60",
        "report-generation.tokens=24",
        "report-generation.regimes=real,synthetic",
    )
    more = [part for setting in settings for part in ("--set", setting)]
    metrics = ("--metric", "classification", "--metric", "report-generation")
    desk.run("run", "-m", "oracle", "--limit", 60, "--device", "cpu", *metrics, *more)
    rows = desk.rows(
        "SELECT plugin, metric, subset, value, n_real, n_fake FROM scores WHERE status = 'ok'"
    )
    found = {(row["plugin"], row["metric"], row["subset"]): row for row in rows}
    for regime in ("real", "synthetic", "ratio-0.5"):
        row = found["classification", f"auroc_{regime}", "macro"]
        assert 0 < float(row["value"]) < 1
    assert found["classification", "auroc_synthetic", "macro"]["n_real"] != "0"
    for regime in ("real", "synthetic"):
        assert 0 <= float(found["report-generation", f"bleu4_{regime}", "overall"]["value"]) < 1
    failed = desk.rows("SELECT metric, reason FROM scores WHERE status = 'failed'")
    assert failed == []


def test_pairs_stand_in_the_report(quick: tuple[Desk, Done]) -> None:
    desk, _ = quick
    page = (desk.home / "Results" / "report.html").read_text()
    assert "memorizer: nearest training" in page and "pair flagged" in page
    rows = desk.rows(
        "SELECT model, avg(flagged::INT) AS flagged FROM neighbours JOIN runs USING (run_id) "
        "WHERE kind = 'nearest_training' AND rank <= 10 GROUP BY model"
    )
    flagged = {row["model"]: float(row["flagged"]) for row in rows}
    assert flagged["memorizer"] == 1


def test_an_export_leaves_out_copies_and_opens_elsewhere(
    quick: tuple[Desk, Done], tmp_path: Path
) -> None:
    desk, _ = quick
    done = desk.run("dataset", "export", "half", tmp_path / "half")
    assert "near-copies" in done.out
    code = (
        "import sys, datasets; d = datasets.load_dataset(sys.argv[1], split='train'); "
        "print(len(d), d[0]['image'].size)"
    )
    opened = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "half")],
        capture_output=True,
        text=True,
        check=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin"},
    )
    count, *size = opened.stdout.replace("(", "").replace(")", "").replace(",", "").split()
    assert size == ["128", "128"] and 0 < int(count) < 200
    card = (tmp_path / "half" / "README.md").read_text()
    assert "alignment" in card and "near-cop" in card
