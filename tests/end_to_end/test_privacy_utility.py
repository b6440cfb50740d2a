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

from desk import Desk, Done

# Scores of privacy that have a control, and the direction of a leak.
LEAKS = {
    "replicated_rate_members": 1,
    "reid_rate": 1,
    "auc_distance": 1,
    "auc_domias": 1,
    "pixel_distance_mean": -1,
    "latent_distance_mean": -1,
}


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Done]:
    desk = Desk.new(tmp_path_factory.mktemp("quick"))
    done = desk.run("run", "--suite", "quick")
    print(f"the quick suite took {done.seconds:.0f} s", file=sys.stderr)
    return desk, done


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
    assert scores["memorizer", "auc_distance"]["value"] > 0.95
    assert scores["memorizer", "replicated_rate_members"]["value"] > 0.9
    assert scores["memorizer", "reid_rate"]["value"] > 0.9


@pytest.mark.parametrize("score", LEAKS)
def test_the_oracle_agrees_with_its_control(
    scores: dict[tuple[str, str], dict[str, float]], score: str
) -> None:
    found = scores["oracle", score]
    # Widened from 95 % to 99.2 %: as many scores are tested as LEAKS has (Bonferroni).
    middle = found["excess"]
    wide = 2.64 / 1.96
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
