"""Whether 95 % intervals hold what they are for, from repeated draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from chexgenbench.statistics import Estimate


def check_intervals(found: Sequence[Estimate]) -> None:
    """Asserts that the intervals of many draws hold their mean as often as 95 % ones do.

    Bounds leave out one run in five hundred of an exact interval, and three standard deviations
    of the ratio of the mean standard error to the deviation between draws.
    """
    values = np.array([estimate.value for estimate in found])
    given = [e for e in found if e.ci_low is not None and e.ci_high is not None]
    assert len(given) >= 0.95 * len(found)
    held = sum(e.ci_low <= values.mean() <= e.ci_high for e in given)  # type: ignore[operator]
    low, high = binom.ppf([0.001, 0.999], len(given), 0.95)
    assert low <= held <= high, (held, len(given))
    errors = np.mean([e.standard_error for e in given])  # type: ignore[misc]
    slack = 3 / math.sqrt(2 * (len(found) - 1))
    ratio = float(errors / values.std(ddof=1))
    assert 1 - slack <= ratio <= 1 + slack, ratio
