"""Means of a value a row, and the row-wise cosine that alignment averages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from chexgenbench.statistics.arrays import FloatArray, two_sides, unit_rows, vector
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import Groups, estimate, linear, units_of

__all__ = ["alignment", "cosine_similarity", "mean_estimate"]


def mean_estimate(values: ArrayLike, *, groups: Groups = None) -> Estimate:
    """Mean of one value a row, with an error that knows which rows belong together.

    mean = sum(v) / n; variance = u / (u - 1) * sum over groups of (sum of (v - mean) / n)^2 for u
    groups (the cluster-robust estimate; without groups it is s^2 / n).

    Args:
        values: A number a row [n], n >= 1, any real dtype (computed in float64).
        groups: A label a row (patient, prompt): rows of one label are not independent. None when
            every row is a draw of its own.

    Returns:
        Estimate whose 95 % t interval is for the mean over all rows that could have been drawn.
        Its degrees of freedom are n^2 / sum(group sizes^2) - 1, which is u - 1 for groups of one
        size. Withheld for one row, one group or one group that outweighs the rest (fewer than one
        degree of freedom), and where no group differs from another.

    Raises:
        ValueError: not one value a row, no rows, NaN or infinity, or labels that do not fit.

    Source: Liang and Zeger 1986, "Longitudinal data analysis using generalized linear models".

    >>> mean_estimate([1.0, 2.0, 3.0, 4.0]).standard_error  # sqrt(5 / 3 / 4)
    0.6454972243679028
    >>> mean_estimate([1.0, 1.0, 3.0, 3.0], groups=["a", "a", "b", "b"]).standard_error
    1.0
    >>> mean_estimate([0.5]).reason
    'one independent unit only'
    """
    rows = vector("values", values)
    units = units_of(0, rows.size, groups_fake=groups)
    # About the first value, so that a large common offset does not cost digits.
    shifted = rows - rows[0]
    mean = float(shifted.mean())
    return estimate(float(rows[0]) + mean, linear(units, (shifted - mean) / rows.size))


def cosine_similarity(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Cosine of the angle between row i of ``a`` and row i of ``b``: a'b / (|a| |b|).

    Args:
        a: Vectors [n, d], n >= 1, any real dtype (computed in float64).
        b: Vectors [n, d].

    Returns:
        float64 [n] in [-1, 1].

    Raises:
        ValueError: NaN or infinity, different shapes, or a row of zeros, which has no direction.

    >>> cosine_similarity([[1, 0], [1, 1]], [[0, 2], [3, 3]]).round(12).tolist()
    [0.0, 1.0]
    """
    return _cosines(a, b, ("a", "b"))


def alignment(
    image_features: ArrayLike, text_features: ArrayLike, *, groups: Groups = None
) -> Estimate:
    """Image-text alignment: mean cosine between an image's embedding and its own text's.

    Args:
        image_features: Embeddings [n, d], n >= 1, any real dtype (computed in float64).
        text_features: Embeddings [n, d]; row i is the text of image i.
        groups: A label a row (patient, prompt): rows of one label are not independent.

    Returns:
        Estimate in [-1, 1]. The interval is for the mean cosine of all images that could have been
        drawn, as in :func:`mean_estimate`, cut at the ends of the range.

    Raises:
        ValueError: NaN or infinity, different shapes, a row of zeros, no rows, or labels that do
            not fit.

    Source: Hessel et al. 2021 (arXiv 2104.08718), without the factor and the cut at 0 of
    CLIPScore.

    >>> alignment([[1, 0], [0, 2], [3, 4]], [[5, 0], [0, 1], [-3, -4]]).value
    0.33333333333333337
    """
    cosines = _cosines(image_features, text_features, ("image_features", "text_features"))
    result = mean_estimate(cosines, groups=groups)
    if result.ci_low is None or result.ci_high is None:
        return result
    return replace(result, ci_low=max(result.ci_low, -1.0), ci_high=min(result.ci_high, 1.0))


def _cosines(a: ArrayLike, b: ArrayLike, names: tuple[str, str]) -> FloatArray:
    first, second = two_sides(a, b, names=names)
    if len(first) != len(second):
        raise ValueError(
            f"{names[0]} has {len(first)} rows and {names[1]} {len(second)}: row i belongs to row i"
        )
    directions = unit_rows(names[0], first), unit_rows(names[1], second)
    clipped: FloatArray = np.clip(np.einsum("ij,ij->i", *directions), -1.0, 1.0)
    return clipped
