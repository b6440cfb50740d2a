"""What a metric says of real against real images: the floor that a subset's size sets.

A distance of a few images is large for any model. So the real images of a subset are halved by
patient: one half against the other is the floor, and one half against the generated images that
answer the other half's prompts is the model's value at the very same sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from chexgenbench.files import digest
from chexgenbench.statistics.difference import UnitInfluence, difference, macro_average
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import ALL_AGREE, NO_VARIATION
from chexgenbench.types import NotApplicable, Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

Floors: TypeAlias = dict[str, "list[dict[str, UnitInfluence]]"]
Compare: TypeAlias = Callable[[Sample, Sample], Mapping[str, Estimate]]

_ROWS = 2000
"""Rows that are compared in all: a small subset is halved several times, a large one once."""

_MOST_HALVINGS = 8


def take_floor(
    compare: Compare,
    real: Sample,
    fake: Sample,
    names: NDArray[np.str_],
    known: Floors,
    basis: str,
    *,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Score name to ``floor, matched, excess, excess_low, excess_high, n_floor``.

    Only rows whose prompt has a generated image count, and of the images of one prompt the first;
    so both comparisons have the same sizes. Each halving is used both ways. Nothing where the
    metric cannot be taken on halves.

    Args:
        compare: the metric.
        names: of each independent unit, by its code.
        known: floors by basis and rows; what is found is added.
        seed: chooses the halves.
    """
    answers = real.answers(fake)
    answered = np.flatnonzero(answers >= 0)
    pairs = list(_halvings(real.units[answered], seed))
    if not pairs:
        return {}
    key = digest([basis, real.prompts[answered].tolist()])
    floors = known.get(key)
    matched: list[dict[str, UnitInfluence]] = []
    new: list[dict[str, UnitInfluence]] = []
    try:
        for one, other in pairs:
            left = real.take(answered[one])
            if floors is None:
                right = real.take(answered[other])
                new.append(_keep(compare(left, right), left, right, names))
            made = fake.take(answers[answered[other]])
            matched.append(_keep(compare(left, made), left, made, names))
    except NotApplicable:  # the halves are too small
        return {}
    floors = known.setdefault(key, new) if floors is None else floors
    result: dict[str, dict[str, Any]] = {}
    for name in matched[0]:
        if not all(name in part for part in (*floors, *matched)):
            continue
        low = _average([part[name] for part in floors])
        high = _average([part[name] for part in matched])
        excess = difference(low, high)
        result[name] = {
            "floor": low.value,
            "matched": high.value,
            "excess": excess.value,
            "excess_low": excess.ci_low,
            "excess_high": excess.ci_high,
            "n_floor": len(pairs[0][0]),
        }
    return result


def _average(parts: Sequence[UnitInfluence]) -> UnitInfluence:
    """The mean over halvings of the same rows."""
    # A share of exactly 1 or 0 in one halving says nothing of its error; the others do.
    quiet = [part.reason in (NO_VARIATION, ALL_AGREE) for part in parts]
    if any(quiet) and not all(quiet):
        parts = [
            replace(part, reason=None, degrees_of_freedom=math.inf) if silent else part
            for part, silent in zip(parts, quiet, strict=True)
        ]
    mean = macro_average(parts)
    # Halvings of one subset are no independent samples: together they know their error no better.
    return replace(mean, degrees_of_freedom=min(part.degrees_of_freedom for part in parts))


def keep_influence(
    estimate: Estimate, fake: NDArray[np.str_], real: NDArray[np.str_] | None = None
) -> UnitInfluence:
    """What to keep of an estimate, given the unit's name of each row, whichever sides it used.

    Args:
        real: None where the metric sees no real images.
    """
    influence = estimate.influence
    try:
        if influence is None or influence.units.real.size == 0 or real is None:
            return UnitInfluence.of(estimate, fake)
        return UnitInfluence.of(estimate, fake, real)
    except (ValueError, AttributeError, TypeError):  # a plugin's own influence may be anything
        return UnitInfluence.unknown(estimate.value, "its influence does not fit the rows")


def _keep(
    found: Mapping[str, Estimate], real: Sample, fake: Sample, names: NDArray[np.str_]
) -> dict[str, UnitInfluence]:
    return {
        name: keep_influence(estimate, names[fake.units], names[real.units])
        for name, estimate in found.items()
    }


def _halvings(
    units: NDArray[np.int64], seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of two halves of equal size without a common unit, each pair in both orders."""
    codes, at, sizes = np.unique(units, return_inverse=True, return_counts=True)
    if codes.size < 2:
        return
    random = np.random.default_rng([seed, units.size])
    for _ in range(int(np.clip(_ROWS // units.size, 1, _MOST_HALVINGS))):
        order = random.permutation(codes.size)
        before = np.cumsum(sizes[order]) - sizes[order]
        chosen = np.zeros(codes.size, dtype=bool)
        chosen[order[before < units.size / 2]] = True
        one, other = np.flatnonzero(chosen[at]), np.flatnonzero(~chosen[at])
        size = min(one.size, other.size)
        if size < 2:
            continue
        one, other = one[:size], other[:size]
        yield one, other
        yield other, one
