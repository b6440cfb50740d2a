"""Scores of images that are known to get worse (benchmarks/known_answers.py, in small)."""

from __future__ import annotations

import itertools
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chexgenbench.registry import load_registry
from chexgenbench.statistics import Estimate
from chexgenbench.types import ScoreSpec

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
known: Any = import_module("known_answers")

SCORES = (
    "alignment",
    "cmmd",
    "coverage",
    "density",
    "fid",
    "fid_infinity",
    "inception_score",
    "kid",
    "precision",
    "recall",
    "vendi_score",
)


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], Any]:
    """300 prompts: with 150, one outlier's ball holds everything and precision is 1 throughout."""
    registry = load_registry()
    found = known.answers(known.encode(300, registry), registry)
    return {(answer.score.name, answer.corruption): answer for answer in found}


@pytest.mark.slow
@pytest.mark.parametrize("corruption", known.CORRUPTIONS)
@pytest.mark.parametrize("score", SCORES)
def test_worse_images_score_worse(
    answers: dict[tuple[str, str], Any], score: str, corruption: str
) -> None:
    answer = answers[score, corruption]
    assert answer.as_it_should_be(), (answer.values, answer.exemption)


@pytest.mark.slow
def test_the_fall_is_no_accident(answers: dict[tuple[str, str], Any]) -> None:
    """From none to all replaced by noise: intervals apart, where both ends have one."""
    compared = 0
    for score in SCORES:
        first, *_, last = answers[score, "noise"].estimates
        if None in (first.ci_low, last.ci_low):
            continue
        compared += 1
        if answers[score, "noise"].score.higher_is_better:
            assert last.ci_high < first.ci_low, score
        else:
            assert last.ci_low > first.ci_high, score
    assert compared >= 4


@pytest.mark.slow
def test_what_each_score_is_for(answers: dict[tuple[str, str], Any]) -> None:
    """Precision sees half of noise and recall does not; alignment sees that findings are missing,
    as precision does not."""
    half = known.SHARES.index(50)
    assert answers["precision", "noise"].values[half] < 0.6
    assert answers["recall", "noise"].values[half] > 0.9
    assert answers["precision", "findings removed"].values[-1] > 0.9
    assert answers["alignment", "findings removed"].values[-1] < 0.2


@pytest.mark.slow
def test_the_plot_shows_every_score(answers: dict[tuple[str, str], Any], tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    known.plot(list(answers.values()), path)
    text = path.read_text(encoding="utf-8")
    for score in SCORES:
        assert f">{score}</" in text, score
    assert text.count(">images replaced (%)</") == len({name for name, _ in answers})
    assert len(text) < 200_000


def made_up(score: str, corruption: str, *values: float) -> Any:
    spec = ScoreSpec(name=score, higher_is_better=score != "fid")
    return known.Answer(spec, corruption, tuple(Estimate(value) for value in values))


def test_a_score_that_looks_the_other_way_is_found() -> None:
    """What the tests above call good and bad."""
    assert made_up("fid", "noise", 0.0, 0.1, 0.3, 0.9).as_it_should_be()
    assert not made_up("fid", "noise", 0.9, 0.3, 0.1, 0.0).as_it_should_be()
    assert not made_up("fid", "noise", 0.0, 0.3, 0.3, 0.9).as_it_should_be()
    assert not made_up("density", "noise", 0.9, 0.3, 0.4, 0.0).as_it_should_be()
    assert made_up("recall", "noise", 0.9, 0.95, 0.9, 0.1).as_it_should_be()
    assert not made_up("recall", "noise", 0.9, 0.8, 0.7, 0.9).as_it_should_be()
    assert made_up("density", "findings removed", 0.9, 0.8, 0.7, 1.0).as_it_should_be()
    assert not made_up("density", "findings removed", 1.0, 0.9, 0.8, 0.7).as_it_should_be()


def test_a_larger_share_holds_the_smaller_one() -> None:
    rows = {"features": np.zeros((40, 1), np.float32)}
    bad = {"noise": {"features": np.ones((40, 1), np.float32)}}
    features = known.Features(rows, rows, bad, None, np.arange(40))
    masks = [features.mixed("noise", share).features[:, 0] for share in known.SHARES]
    assert [int(mask.sum()) for mask in masks] == [0, 10, 20, 40]
    assert all((low <= high).all() for low, high in itertools.pairwise(masks))
