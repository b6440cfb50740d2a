"""Equal definitions give equal numbers (benchmarks/parity.py, in small)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chexgenbench.statistics import Estimate

Array = NDArray[np.float64]

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
parity: Any = import_module("parity")


@pytest.mark.parametrize("family", parity.FAMILIES, ids=lambda family: family.__name__)
def test_equal_definitions_agree(family: Callable[[Any], Iterator[Any]]) -> None:
    """A reason is no excuse: where one is given, the numbers do differ (or it is out of date)."""
    found = list(family(parity.SMALL))
    assert any(one.equal for one in found)
    for one in found:
        if one.equal:
            assert one.difference <= parity.BOUND, one
        else:
            assert one.difference > 1e-9, one
            # Only one thing differs: a comparison with that made equal stands beside it.
            assert any(other.equal for other in found if other.metric == one.metric)


def test_a_statistic_that_is_slightly_wrong_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means that are off by one part in a hundred thousand."""
    right = parity.frechet_distance

    def off(x: Array, y: Array, **options: bool) -> Estimate:
        found: Estimate = right(x, y + 1e-5 * y.mean(axis=0), **options)
        return found

    monkeypatch.setattr(parity, "frechet_distance", off)
    assert all(one.difference > parity.BOUND for one in parity.frechet(parity.SMALL))


def test_the_cases_are_no_trivial_ones() -> None:
    """The distances are far from zero and of ordinary size."""
    for n, m, d in parity.SMALL.enough:
        x, y = parity.sides(n, m, d)
        assert 0.01 < parity.by_sqrtm(x, y) < 10
        assert parity.by_sqrtm(x, x) < 1e-9 * parity.by_sqrtm(x, y)
