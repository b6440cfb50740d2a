"""Inception Score of class probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from chexgenbench.statistics.arrays import FloatArray, matrix
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import Groups, Influence, estimate, units_of

__all__ = ["inception_score"]

_PROBES = 64
"""Random vectors for the second-order variance."""


def inception_score(
    probabilities: ArrayLike, splits: int = 10, *, groups: Groups = None
) -> Estimate:
    """Inception Score: mean over parts of exp(mean over the part's rows of KL(p || q)).

    q is the mean of the part's rows; the parts are the ``splits`` contiguous runs of rows
    n i // splits to n (i + 1) // splits, in the order given (so give a canonical order).

    Args:
        probabilities: Class probabilities [n, classes], n >= 2 splits; rows sum to 1 within 0.01
            (float16 does) and are scaled to sum to 1 exactly.
        splits: Number of parts. The score grows with n / splits towards its limit, so scores of
            different part sizes must not be compared.
        groups: A label a row (patient, prompt): rows of one label are not independent.

    Returns:
        Estimate in [1, classes]. The interval is for the score's own expectation at this n and
        these splits: what other images of the same model would give. Its standard error is taken
        from what each row contributes (KL(p || q) less its mean, times the part's score), with
        the second-order variance corrected, and is not the published "standard deviation over the
        parts", which is about sqrt(splits) times larger and no standard error of anything that
        is printed.

    Raises:
        ValueError: NaN or infinity, negative entries, rows that do not sum to 1 (logits, pool
            features), splits below 1, fewer than 2 rows a part, or labels that do not fit.

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 4.

    >>> import numpy as np
    >>> inception_score(np.tile(np.eye(4), (10, 1)), splits=2).value  # four sure, even classes
    4.0
    >>> inception_score(np.full((40, 4), 0.25), splits=2).value  # never sure
    1.0
    """
    rows = matrix("probabilities", probabilities)
    if isinstance(splits, bool) or splits != int(splits) or splits < 1:
        raise ValueError(f"splits must be a whole number of at least 1, got {splits}")
    splits = int(splits)
    n, classes = rows.shape
    if n < 2 * splits:
        raise ValueError(f"{splits} parts need at least {2 * splits} rows, got {n}")
    sums = rows.sum(axis=1)
    wrong = (rows < 0).any(axis=1) | (np.abs(sums - 1) > 0.01)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"probabilities: {int(wrong.sum())} row(s) are negative somewhere or do not sum to 1 "
            f"(class probabilities are needed, not logits or features), first row {first} with "
            f"sum {sums[first]:.4g}"
        )
    rows = rows / sums[:, None]
    units = units_of(0, n, groups_fake=groups)
    probes = units.probes(_PROBES)[units.fake]
    scores = np.empty(splits)
    first_order, second_order = np.empty(n), np.empty(probes.shape)
    for part in range(splits):
        span = slice(n * part // splits, n * (part + 1) // splits)
        scores[part], first_order[span], second_order[span] = _part(rows[span], probes[span])
    influence = Influence(
        units,
        np.zeros(0),
        first_order / splits,
        np.zeros((0, _PROBES)),
        second_order / splits,
    )
    return estimate(float(scores.mean()), influence, low=1.0, high=float(classes))


def _part(rows: FloatArray, probes: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """Score of one part, its derivative by row, and its second derivative times ``probes``."""
    size = len(rows)
    mean = rows.mean(axis=0)
    seen = mean > 0.0
    rows, mean = rows[:, seen], mean[seen]
    # x log x is 0 at 0.
    logs = np.log(rows, out=np.zeros_like(rows), where=rows > 0.0)
    divergence = np.einsum("ij,ij->i", rows, logs) - rows @ np.log(mean)
    score = float(np.exp(max(float(divergence.mean()), 0.0)))
    first = (divergence - divergence.mean()) / size
    off = rows - mean
    curve = -(off / mean) @ (off.T @ probes) / size**2
    second = curve + first[:, None] * (first @ probes)
    return score, score * first, score * second
