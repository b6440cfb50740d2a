"""The 95 % intervals hold what they are for in 95 % of draws (benchmarks/coverage.py, in small)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from chexgenbench.statistics import Estimate

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_coverage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


coverage = _load()
SCENARIOS = {scenario.name: scenario for scenario in coverage.scenarios()}

REPEATS = 150

HONEST = (
    "mean/normal n=5",
    "mean/patients n=200",
    "is/n=500 c=10",
    "is/n=100 c=10",
    "is/n=500 c=10 patients",
    "fid/d=16 n=500 apart",
    "fid/d=16 n=100 paired",
    "fid/d=16 n=500 patients",
    "fid/d=16 n=500 paired patients",
    "fid/d=64 n=100 apart",
    "fid-infinity/d=16 n=128 apart",
    "kid/d=16 n=20 apart",
    "kid/d=16 n=100 paired",
    "kid/d=64 n=200 patients",
    "kid/d=16 n=50 patients",
    "prdc/d=16 n=500 equal",
    "prdc/d=16 n=100 apart",
    "prdc/d=16 n=500 paired patients",
    "prdc/d=16 n=100 patients",
    "table/prdc N=500 d=64 patients",
    "table/fid N=500 d=64 patients",
    "table/kid N=500 d=64 paired",
    "table/mean N=500 patients",
    "table/inception_score N=500 patients",
    "table/one model, fid N=500 d=64 patients",
    "table/one model, kid N=500 d=64 patients",
)
"""Those of the table have a difference of two models beside the score."""

WIDE = ("fid/d=16 n=500 equal", "fid/d=64 n=70 equal", "kid/d=16 n=50 equal")
"""Documented to be too wide: equal distributions, or hardly more rows than features."""


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_intervals_hold(name: str) -> None:
    for row in coverage.simulate(SCENARIOS[name], REPEATS, seed=1):
        # The range that a true coverage between 90 % and 98 % leaves to this many draws, with one
        # false alarm in a thousand at each end.
        low, _ = coverage.binomial_range(row.intervals, 0.90, 0.998)
        _, high = coverage.binomial_range(row.intervals, 0.98, 0.998)
        assert low <= row.rate <= high, row
        assert row.intervals >= 0.8 * REPEATS
        # Documented: standard errors 10 % too small to 20 % too large. A standard deviation over
        # these draws is itself known to 1 / sqrt(2 (REPEATS - 1)), three times which is allowed.
        slack = 3 / (2 * (REPEATS - 1)) ** 0.5
        assert 0.9 * (1 - slack) <= row.error_ratio <= 1.2 * (1 + slack), row


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_intervals_near_zero_are_wide_rather_than_wrong(name: str) -> None:
    for row in coverage.simulate(SCENARIOS[name], REPEATS, seed=1):
        low, _ = coverage.binomial_range(row.intervals, 0.95, 0.998)
        assert low <= row.rate, row
        assert row.error_ratio < 2


@pytest.mark.slow
def test_an_interval_of_the_plug_in_does_not_hold_the_distance_of_the_distributions() -> None:
    # The simulation can see an interval that is for something else.
    scenario = SCENARIOS["fid/d=64 n=500 apart"]
    wrong = coverage.Scenario(
        "wrong", scenario.draw, coverage.World(500, 64, **coverage.APART).frechet()
    )
    (row,) = coverage.simulate(wrong, 40, seed=1)
    assert row.rate < 0.2


@pytest.mark.slow
def test_ignoring_patients_or_pairs_is_seen() -> None:
    scenario = coverage.Scenario("ignored", coverage._mean(200, 4.0, 0.5, grouped=False), 0.0)
    (row,) = coverage.simulate(scenario, REPEATS, seed=1)
    low, _ = coverage.binomial_range(row.intervals, 0.90, 0.998)
    assert row.rate < low


@pytest.mark.slow
def test_independent_errors_are_seen_to_be_wrong_for_a_difference() -> None:
    # What is seen above is not that any interval would do: errors added as if the two models'
    # prompts had nothing in common are far too large.
    world = coverage.World(500, 16, **coverage.APART, **coverage.DESIGNS["patients"])

    def draw(rng: np.random.Generator) -> dict[str, Estimate]:
        x, made, design = world.draw_models(rng, [world, world])
        a, b = (coverage.kernel_distance(x, y, **design) for y in made)
        error = float(np.hypot(a.standard_error, b.standard_error))
        value = b.value - a.value
        return {"": Estimate(value, error, value - 1.96 * error, value + 1.96 * error)}

    (row,) = coverage.simulate(coverage.Scenario("independent", draw), REPEATS, seed=1)
    assert row.error_ratio > 1.4, row


def test_the_table_has_every_scenario_once() -> None:
    names = [scenario.name for scenario in coverage.protocol()]
    assert len(names) == len(set(names))
    rows = [
        coverage.Coverage(name, 100, 0.0, 0.0, 1.0, 1.0, held, given)
        for name, held, given in zip(
            names, [95, 10] * len(names), [100, 10] * len(names), strict=False
        )
    ]
    text = coverage.table(rows, 100, 0)
    assert text.count("| 100 |") == len(names)
    # Where nine in ten are withheld no rate is given.
    assert text.count("| 95.0 |") == (len(names) + 1) // 2


def test_the_command_prints_a_table() -> None:
    command = [sys.executable, str(SCRIPT), "--repeats", "20", "--only", "^mean/normal"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["mean/normal"] * 5
