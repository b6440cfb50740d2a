"""Feature likelihood divergence: how likely unseen real rows are under a mixture at generated rows.

The mixture has one isotropic normal of weight 1 / m at each of m rows, whose m variances are
fitted to other real rows. Rows that copy training rows get tiny variances from them, and say
nothing about unseen rows: so copies cost as much as poor or one-sided images do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from chexgenbench.statistics.arrays import FloatArray, IntArray, blocks, two_sides
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.novelty import order_by_content
from chexgenbench.statistics.sampling import Groups, Pairs, estimate, linear, units_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["feature_likelihood_divergence"]

_STEPS = 50
_RATE = 0.5
_NUGGET = 1e-3
_TOWARDS_MEAN = 0.9
"""Optimiser and constants of the authors' implementation (github.com/marcojira/fld)."""

_LOG_VARIANCE = (-40.0, 20.0)
"""Range of the logarithm of a variance: equal rows would have none."""

_CACHE_BYTES = 512 * 2**20
"""Squared distances are kept up to that size, and made anew in each step beyond."""
