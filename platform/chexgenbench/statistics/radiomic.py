"""Frechet Radiomics Distance: the Frechet distance of features scaled by the real side, its log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench.statistics.arrays import BoolArray, FloatArray, two_sides
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.frechet import _Fit, _fit, _influence, _singular, _value
from chexgenbench.statistics.sampling import (
    Groups,
    Influence,
    Pairs,
    Units,
    estimate,
    units_of,
    withheld,
)

__all__ = ["frechet_radiomics_distance"]


_NOTHING = 1e-10
"""Share of the variance below which a distance is rounding: its logarithm would be noise."""


def frechet_radiomics_distance(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    pairs: Pairs = None,
    groups_real: Groups = None,
    groups_fake: Groups = None,
) -> Estimate:
    """Logarithm of the squared Frechet distance of z-scored features (FRD).

    Each feature has the real side's mean taken off and is divided by the real side's standard
    deviation (of n, not n - 1), on both sides; then log of :func:`frechet_distance`. Left out are
    rows without any finite feature; of the others, features that are NaN or infinite somewhere on
    either side; and features that are constant on the real side.

    Args:
        real: Features [n, d], n >= 2, any real dtype (computed in float64). NaN or infinity where a
            feature has no value.
        fake: Features [m, d], m >= 2.
        pairs: True when row i of ``fake`` answers row i of ``real``, or an integer array [m] with
            the real row that each fake row answers, -1 for none.
        groups_real: A label a row (patient): rows of one label are not independent.
        groups_fake: The same for ``fake``; a label known to both sides is the same patient.

    Returns:
        Estimate, any real number. The interval is for the plug-in's own expectation at this n and
        m, as for :func:`frechet_distance`: symmetric about the logarithm. Standard error by the
        delta method from the influence of the Frechet distance and of the real side's standard
        deviations; of second order are the distance and the logarithm, not the deviations.
        Withheld for n <= d or m <= d (features left out not counted), where the covariance is
        singular. A warning counts rows and features left out for want of a value.

    Raises:
        ValueError: fewer than 2 rows, different d, no feature left, both sides equal (the logarithm
            of zero), or pairs and groups that do not fit.

    Source: Konz, Osuala et al. 2024 (arXiv 2412.01496), eq. 3, with the squared distance inside
    the logarithm as in the authors' code, which is twice the equation's value.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(400, 3))
    >>> scale = rows.std(axis=0)
    >>> result = frechet_radiomics_distance(rows, rows + scale * [2.0, 1.0, 2.0])
    >>> round(float(np.exp(result.value)), 6)
    9.0
    """
    first, second = np.asarray(real), np.asarray(fake)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        two_sides(np.nan_to_num(first), np.nan_to_num(second))  # says what is wrong
    units = units_of(
        len(first), len(second), pairs=pairs, groups_real=groups_real, groups_fake=groups_fake
    )
    seen = np.isfinite(first).any(axis=1), np.isfinite(second).any(axis=1)
    x, y, notes = _scaled(first, second, *seen)
    if singular := _singular(x, y):
        notes.append(singular)
        distance, influence = _value(x, y), None
    else:
        fit = _fit(x, y)
        distance, influence = fit.value, _of_logarithm(fit, units, *seen)
    if distance <= _NOTHING * float(x.var(axis=0).sum() + y.var(axis=0).sum()):
        raise ValueError("both sides have the same features: the logarithm of zero is not defined")
    value, warning = float(np.log(distance)), "; ".join(notes) or None
    if influence is None:
        return withheld(value, singular or "", warning=warning)
    return estimate(value, influence, warning=warning)


def _scaled(
    real: NDArray[Any], fake: NDArray[Any], real_seen: BoolArray, fake_seen: BoolArray
) -> tuple[FloatArray, FloatArray, list[str]]:
    """Both sides z-scored without what has no value, and notes on what that was."""
    notes = []
    if not (real_seen.all() and fake_seen.all()):
        notes.append(
            f"{int((~real_seen).sum())} of {real_seen.size} real and {int((~fake_seen).sum())} of "
            f"{fake_seen.size} generated rows have no feature at all, and are left out"
        )
    if min(real_seen.sum(), fake_seen.sum()) < 2:
        raise ValueError("at least 2 rows a side with features are needed" + _after(notes))
    real, fake = real[real_seen], fake[fake_seen]
    defined = np.isfinite(real).all(axis=0) & np.isfinite(fake).all(axis=0)
    if not defined.all():
        notes.append(
            f"{int((~defined).sum())} of {defined.size} features have no value in some row, and "
            "are left out"
        )
    usable = defined & (real.max(axis=0) > real.min(axis=0))
    if not usable.any():
        raise ValueError("every feature is constant on the real side or undefined" + _after(notes))
    x, y = two_sides(real[:, usable], fake[:, usable])
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    return (x - mean) / deviation, (y - mean) / deviation, notes


def _after(notes: list[str]) -> str:
    return "".join(f"; {note}" for note in notes)


def _of_logarithm(fit: _Fit, units: Units, real_seen: BoolArray, fake_seen: BoolArray) -> Influence:
    """Influence of log F(x / s, y / s) where s, the deviations of x, are estimated as well.

    With A and B the two covariances and C = (A B)^(1/2), the distance is a sum over features,
    F = sum of f_j, f_j = gap_j^2 + A_jj + B_jj - 2 C_jj, and 2 f_j is its derivative by the
    logarithm of the feature's scale. A real row z moves that logarithm by -(z_j^2 - 1) / (2 n).
    """
    units_seen = replace(units, real=units.real[real_seen], fake=units.fake[fake_seen])
    plain = _influence(fit, units_seen)
    shared = np.einsum("k,kj,kj->j", fit.singular, fit.frame_fake, fit.frame_real)
    parts: FloatArray = (
        fit.gap**2 + fit.real.var(axis=0, ddof=1) + fit.fake.var(axis=0, ddof=1) - 2 * shared
    )
    real = plain.real - (fit.real**2 - (fit.real**2).mean(axis=0)) @ parts / len(fit.real)
    probes = units.probes(plain.probes_fake.shape[1])
    slope = real @ probes[units_seen.real] + plain.fake @ probes[units_seen.fake]

    def placed(seen: BoolArray, rows: FloatArray) -> FloatArray:
        everywhere = np.zeros((seen.size, *rows.shape[1:]))
        everywhere[seen] = rows
        return everywhere

    return replace(
        plain,
        units=units,
        real=placed(real_seen, real / fit.value),
        fake=placed(fake_seen, plain.fake / fit.value),
        probes_real=placed(
            real_seen, plain.probes_real / fit.value - np.outer(real, slope) / fit.value**2
        ),
        probes_fake=placed(
            fake_seen, plain.probes_fake / fit.value - np.outer(plain.fake, slope) / fit.value**2
        ),
    )
