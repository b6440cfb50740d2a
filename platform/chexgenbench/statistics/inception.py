"""Inception Score of class probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from chexgenbench.statistics.arrays import FloatArray, IntArray, matrix
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import Groups, Influence, estimate, units_of, withheld

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
        these splits: what other images of the same model would give. Its standard error comes
        from leaving out each independent unit (delete-a-group jackknife), with the second-order
        variance corrected (see ``chexgenbench.statistics.sampling``). It is not the published
        "standard deviation over the parts", which is the spread of one part, some sqrt(splits)
        times larger, and no error of the mean that is printed. Withheld where a part holds rows
        of one unit only, and where no unit differs from another.

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
    rows /= sums[:, None]  # a copy of the argument
    units = units_of(0, n, groups_fake=groups)
    probes = units.probes(_PROBES)[units.fake]
    scores = np.empty(splits)
    left_out, curved = np.zeros(n), np.empty(probes.shape)
    fewest = n
    for part in range(splits):
        span = slice(n * part // splits, n * (part + 1) // splits)
        scores[part] = _score(rows[span])
        changes, at = _left_out(rows[span], units.fake[span])
        left_out[span.start + at] = changes
        curved[span] = _curvature(rows[span], probes[span])
        fewest = min(fewest, at.size)
    value = float(scores.mean())
    if fewest < 2:
        return withheld(value, "a part holds one independent unit only")
    none = np.zeros((0, _PROBES))
    influence = Influence(units, none[:, 0], left_out / splits, none, curved / splits)
    return estimate(value, influence, low=1.0, high=float(classes))


def _score(rows: FloatArray) -> float:
    return float(_scores(rows.sum(axis=0)[None], _entropies(rows).sum()[None], len(rows))[0])


def _entropies(rows: FloatArray) -> FloatArray:
    """Sum of p log p of each row, which is 0 at p = 0."""
    logs = np.log(rows, out=np.zeros_like(rows), where=rows > 0.0)
    entropies: FloatArray = np.einsum("ij,ij->i", rows, logs)
    return entropies


def _scores(sums: FloatArray, entropies: FloatArray, rows: IntArray | int) -> FloatArray:
    """exp(mean KL) of sets of rows given by their sums [sets, classes], entropies and sizes."""
    means = np.clip(sums, 0.0, None) / np.asarray(rows).reshape(-1, 1)
    scores: FloatArray = np.exp(np.maximum(entropies / rows - _entropies(means), 0.0))
    return scores


def _left_out(rows: FloatArray, codes: IntArray) -> tuple[FloatArray, IntArray]:
    """Change of the part's score by each of its units, and the unit's first row.

    By leaving the unit out, exactly: the derivative at the sample, in which a row draws the mean
    towards itself, is a quarter too small for parts of ten rows.
    """
    _, at, unit, sizes = np.unique(
        codes, return_index=True, return_inverse=True, return_counts=True
    )
    count = sizes.size
    if count < 2:
        return np.zeros(count), at
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, unit, rows)
    entropies = _entropies(rows)
    of_units = np.bincount(unit, weights=entropies, minlength=count)
    without = _scores(rows.sum(axis=0) - sums, entropies.sum() - of_units, len(rows) - sizes)
    changes = np.sqrt((count - 1) / count) * (without.mean() - without)
    return changes, at


def _curvature(rows: FloatArray, probes: FloatArray) -> FloatArray:
    """Second derivative of the part's score times ``probes``."""
    size = len(rows)
    mean = rows.mean(axis=0)
    seen = mean > 0.0
    rows, mean = rows[:, seen], mean[seen]
    divergence = _entropies(rows) - rows @ np.log(mean)
    first = (divergence - divergence.mean()) / size
    off = rows - mean
    curve = -(off / mean) @ (off.T @ probes) / size**2
    second: FloatArray = curve + first[:, None] * (first @ probes)
    return float(np.exp(divergence.mean())) * second
