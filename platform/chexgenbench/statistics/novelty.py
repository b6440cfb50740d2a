"""Whether generated rows are new or near copies of training rows: authenticity and C_T.

The training set is given: it is what the model has learnt from, and another one would have made
another model. So both intervals are about other generated (and test) rows against the same
training rows. Distances are made in blocks of rows and never kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from chexgenbench.statistics.arrays import (
    EDGE,
    FloatArray,
    IntArray,
    blocks,
    order_by_content,
    squared_distances,
    two_sides,
)
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import (
    ALL_AGREE,
    Groups,
    Pairs,
    estimate,
    linear,
    units_of,
    withheld,
)

__all__ = ["authenticity", "ct_score"]

_STARTS = 10
"""Starts of k-means, of which the best is kept."""


def authenticity(
    train: ArrayLike, fake: ArrayLike, *, groups_train: Groups = None, groups_fake: Groups = None
) -> Estimate:
    """Authenticity (AuthPct / 100): share of generated rows that are no copy of a training row.

    A generated row is authentic where its nearest training row has another training row nearer to
    it than the generated row is. Higher is better: 0 for copies, near 1/2 or above for rows that
    lie no nearer to the training rows than these lie to one another.

    Args:
        train: Features [n, d], n >= 2, any real dtype (computed in float64).
        fake: Features [m, d], m >= 1.
        groups_train: A label a row (patient). Another training row then means one of another
            patient: two studies of one patient are near for another reason, and would let a copy
            pass. None for the published definition.
        groups_fake: A label a row: generated rows of one label are not independent.

    Returns:
        Estimate in [0, 1], a share where other tools print percent. Equal distances (within 1e-12
        of the squared norms) are no evidence of being new; of several nearest training rows the
        one farthest from its own neighbour decides. The interval is for the share among all rows
        that the model could generate, against this training set. Symmetric on the logit; withheld
        for one independent generated row, and where the share is 0 or 1 (no variation is seen).

    Raises:
        ValueError: NaN or infinity, different d, fewer than 2 training rows, no generated row,
            labels that do not fit, or training rows of one group only.

    Source: Alaa et al. 2022 (arXiv 2102.08921), "How faithful is your synthetic data?".

    >>> authenticity([[0.0], [1.0], [5.0]], [[0.1], [1.1], [7.0], [9.5]]).value
    0.25
    """
    t, x = two_sides(train, fake, names=("train", "fake"))
    if len(t) < 2:
        raise ValueError(f"train: at least 2 row(s) needed, got {len(t)}")
    units = units_of(0, len(x), groups_fake=groups_fake)
    patients = units_of(len(t), 0, groups_real=groups_train).real
    if np.unique(patients).size < 2:
        raise ValueError("groups_train: rows of at least 2 groups needed, got 1")
    # The median: one outlier must not move all rows away from the origin.
    centre = np.median(t, axis=0)
    t, x = t - centre, x - centre
    norms = (t**2).sum(axis=1)
    near, slack = np.empty(len(x)), np.empty(len(x))
    found: list[IntArray] = []
    for rows in blocks(len(x), 2 * len(t)):
        squares = squared_distances(x[rows], t, norms)
        near[rows] = squares.min(axis=1)
        slack[rows] = EDGE * ((x[rows] ** 2).sum(axis=1) + norms[squares.argmin(axis=1)])
        at, of = np.nonzero(squares <= (near[rows] + slack[rows])[:, None])
        found.append(np.stack([at + rows.start, of]))
    of_fake, of_train = np.concatenate(found, axis=1)
    # Of the training rows those alone that are nearest to a generated one.
    asked, which = np.unique(of_train, return_inverse=True)
    apart = np.empty(len(asked))
    for rows in blocks(len(asked), 2 * len(t)):
        squares = squared_distances(t[asked[rows]], t, norms)
        squares[patients[asked[rows], None] == patients] = np.inf
        apart[rows] = squares.min(axis=1)
    farthest = np.full(len(x), -np.inf)
    np.maximum.at(farthest, of_fake, apart[which])
    new = farthest < near - slack
    value = float(new.mean())
    influence = linear(units, (new - value) / len(x))
    if not 0.0 < value < 1.0:
        return withheld(value, ALL_AGREE, influence=influence)
    return estimate(value, influence, scale="logit")


def ct_score(
    train: ArrayLike,
    test: ArrayLike,
    fake: ArrayLike,
    *,
    cells: int = 3,
    components: int | None = 64,
    seed: int = 0,
    pairs: Pairs = None,
    groups_test: Groups = None,
    groups_fake: Groups = None,
) -> Estimate:
    """C_T: whether generated rows lie nearer to the training rows than unseen real rows do.

    In each of the cells into which k-means divides the training rows, the distances of generated
    and of test rows to the nearest training row of the cell are compared by Mann and Whitney's
    U = sum over pairs of [fake farther] + [equal] / 2, as z = (U - n m / 2 + 1/2) / sd with
    sd^2 = n m (n + m + 1) / 12. C_T is the mean of z weighted by the cells' test rows, over cells
    of more than 20 generated rows. Below zero: nearer to the training rows than test rows are
    (copies); above: farther (underfitting); 0 is best, so neither direction is better.

    Args:
        train: Features [l, d], l >= 1, any real dtype (computed in float64).
        test: Features [n, d] of real rows that were not trained on, n >= 1.
        fake: Features [m, d], m >= 1.
        cells: Number of cells, at least 1; fewer where there are fewer different training rows.
        components: Rows are projected on that many principal components of ``train`` where l and
            d are larger; None leaves them as they are.
        seed: Starts k-means. The order of the rows plays no part.
        pairs: True when row i of ``fake`` answers row i of ``test``, or an integer array [m] with
            the test row that each fake row answers, -1 for none.
        groups_test: A label a row (patient): rows of one label are not independent.
        groups_fake: The same for ``fake``; a label known to both sides is the same patient.

    Returns:
        Estimate of any sign. It is a score of evidence: for a given difference it grows with the
        square root of the sizes. For equal distributions its standard deviation is 1 only where
        all rows are independent and there is one cell (with several about the root of the sum of
        the squared weights, so less); the standard error here is that of the score itself, by the
        placement of each row among the other side's and the cells' counts, with pairs and groups
        taken into account. The interval is for the score's own expectation at these sizes, given
        the training rows and cells; an interval without 0 is the test that knows of patients.
        Within 10 % of the true error in simulation, from 5 rows a side on. Withheld where every
        generated row of every cell is nearer (or farther) than every test row, and for one
        independent unit. Where no cell qualifies, all rows are one cell, and ``warning`` says so.

    Raises:
        ValueError: NaN or infinity, different d, no rows, fewer than 1 cell or component, or
            pairs and groups that do not fit.

    Sources: Meehan et al. 2020 (arXiv 2004.05675), "A non-parametric test to detect data-copying
    in generative models", with the cells, components and bound of 20 rows that evaluation tools
    take; DeLong et al. 1988, "Comparing the areas under two or more correlated receiver operating
    characteristic curves".

    >>> import numpy as np
    >>> train, test, fake = np.random.default_rng(0).normal(size=(3, 300, 4))
    >>> ct_score(train, test, train + 0.5 * fake).ci_high < 0  # near copies
    True
    """
    t, p = two_sides(train, test, names=("train", "test"))
    _, q = two_sides(t[:1], fake, names=("train", "fake"))
    for name, number in (("cells", cells), ("components", components)):
        if number is not None and (isinstance(number, bool) or number != int(number) or number < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {number}")
    units = units_of(len(p), len(q), pairs=pairs, groups_real=groups_test, groups_fake=groups_fake)
    order = order_by_content(t)
    t = t[order]
    t, p, q = _projected(t, p, q, components)
    centres = _k_means(t, int(cells), np.random.default_rng(seed))
    of_t, of_p, of_q = (_nearest(rows, centres)[1] for rows in (t, p, q))
    tested, made = (np.bincount(codes, minlength=len(centres)) for codes in (of_p, of_q))
    used = np.flatnonzero((made > 20) & (tested > 0))
    warning = None
    if not used.size:
        warning = "no cell has more than 20 generated rows and a test row: all rows are one cell"
        of_t, of_p, of_q, used = of_t * 0, of_p * 0, of_q * 0, np.zeros(1, dtype=np.int64)
    parts = []
    for cell in used.tolist():
        in_p, in_q, inside = (
            np.flatnonzero(of_p == cell),
            np.flatnonzero(of_q == cell),
            t[of_t == cell],
        )
        parts.append(
            _Cell.of(in_p, in_q, _nearest(p[in_p], inside)[0], _nearest(q[in_q], inside)[0])
        )
    value, influence_p, influence_q = _combined(parts, len(p), len(q))
    influence = linear(units, influence_q, influence_p)
    if all(part.share in (0.0, 1.0) for part in parts):
        reason = "every generated row is on one side of every test row, which shows no variation"
        return withheld(value, reason, warning=warning, influence=influence)
    return estimate(value, influence, warning=warning)


def _nearest(rows: FloatArray, targets: FloatArray) -> tuple[FloatArray, IntArray]:
    """Squared distance of each row to its nearest target (0 where equal), and its number."""
    norms = (targets**2).sum(axis=1)
    nearest = np.empty(len(rows))
    which = np.empty(len(rows), dtype=np.int64)
    for part in blocks(len(rows), len(targets)):
        squares = squared_distances(rows[part], targets, norms)
        which[part] = squares.argmin(axis=1)
        found = squares[np.arange(len(squares)), which[part]]
        slack = EDGE * ((rows[part] ** 2).sum(axis=1) + norms[which[part]])
        nearest[part] = np.where(found <= slack, 0.0, found)
    return nearest, which


def _projected(
    train: FloatArray, test: FloatArray, fake: FloatArray, components: int | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """All rows about the median of ``train``, and on its first principal components."""
    centre = np.median(train, axis=0)
    sides = train - centre, test - centre, fake - centre
    if components is None or min(train.shape) <= components:
        return sides
    spread = sides[0] - sides[0].mean(axis=0)
    axes = np.linalg.eigh(spread.T @ spread)[1][:, -int(components) :]
    return sides[0] @ axes, sides[1] @ axes, sides[2] @ axes


def _k_means(rows: FloatArray, count: int, random: np.random.Generator) -> FloatArray:
    """Centres [<= count, d] of the best of several runs of Lloyd's iteration from k-means++."""
    best, least = rows[:1], np.inf
    for _ in range(_STARTS if count > 1 else 1):
        centres = _spread_out(rows, count, random)
        squares, codes = _nearest(rows, centres)
        for _ in range(100):
            sizes = np.bincount(codes, minlength=len(centres))
            sums = np.zeros(centres.shape)
            np.add.at(sums, codes, rows)
            filled = sizes > 0
            centres = sums[filled] / sizes[filled, None]
            before = codes
            squares, codes = _nearest(rows, centres)
            if np.array_equal(codes, before):
                break
        if (total := float(squares.sum())) < least:
            best, least = centres, total
    return best


def _spread_out(rows: FloatArray, count: int, random: np.random.Generator) -> FloatArray:
    """k-means++: rows drawn one by one with odds of their squared distance to those drawn."""
    chosen = [int(random.integers(len(rows)))]
    squares = _nearest(rows, rows[chosen])[0]
    while len(chosen) < count and squares.any():
        chosen.append(int(random.choice(len(rows), p=squares / squares.sum())))
        squares = np.minimum(squares, _nearest(rows, rows[chosen[-1:]])[0])
    return rows[chosen]


@dataclass(frozen=True, slots=True)
class _Cell:
    """One cell's rows and, for each, the share of the other side's rows that is on one side."""

    test: IntArray  # numbers of its test rows [n]
    fake: IntArray  # and of its generated rows [m]
    below: FloatArray  # share of generated rows that are farther than each test row [n]
    above: FloatArray  # share of test rows that are nearer than each generated row [m]

    @classmethod
    def of(cls, test: IntArray, fake: IntArray, near: FloatArray, far: FloatArray) -> _Cell:
        """From the distances of test rows and of generated rows; equal ones count one half."""
        low, high = np.sort(near), np.sort(far)
        ends = [np.searchsorted(high, near, side) for side in ("left", "right")]
        starts = [np.searchsorted(low, far, side) for side in ("left", "right")]
        return cls(
            test,
            fake,
            1.0 - (ends[0] + ends[1]) / (2 * far.size),
            (starts[0] + starts[1]) / (2 * near.size),
        )

    @property
    def share(self) -> float:
        """Probability that a generated row is farther than a test row."""
        return float(self.below.mean())


def _combined(cells: list[_Cell], tested: int, made: int) -> tuple[float, FloatArray, FloatArray]:
    """C_T and what each test and generated row contributed, by the shares and by the counts."""
    total = sum(cell.test.size for cell in cells)
    scores = []
    for cell in cells:
        n, m = cell.test.size, cell.fake.size
        factor = np.sqrt(12 * n * m / (n + m + 1))
        scores.append((factor, factor * (cell.share - 0.5 + 1 / (2 * n * m))))
    value = sum(cell.test.size * z for cell, (_, z) in zip(cells, scores, strict=True)) / total
    of_test, of_fake = np.zeros(tested), np.zeros(made)
    for cell, (factor, z) in zip(cells, scores, strict=True):
        n, m, weight = cell.test.size, cell.fake.size, cell.test.size / total
        by_n, by_m = (
            z / 2 * (1 / own - 1 / (n + m + 1)) - factor / (2 * own * n * m) for own in (n, m)
        )
        of_test[cell.test] = weight * factor * (cell.below - cell.share) / n
        of_test[cell.test] += (z - value) / total + weight * by_n
        of_fake[cell.fake] = weight * factor * (cell.above - cell.share) / m + weight * by_m
    # The numbers of rows are given: one more in a cell is one less elsewhere.
    return float(value), of_test - of_test.mean(), of_fake - of_fake.mean()
