"""Membership inference from features: can one tell the records that a model was trained on?

An attack gives each record (a real image) a score from generated images alone or with reference
images; its AUC over members and non-members is 1/2 for a model that tells nothing. Three things
move it although nothing was memorised, and each has its remedy here:

- An image that follows its prompt is near to that prompt's real image. So non-members are prompted
  too, by the very same procedure, and own images stand against own images.
- Members and non-members differ in their findings, and some findings are easier to draw. So
  non-members are weighted until their labels have the members' means.
- Members come from another population than non-members (other years, another site). So each attack
  has a control: itself, with the model taken away. In place of each generated image there is a real
  one of another training patient with the findings of the prompt, which is what a perfect model
  that remembers nobody would draw. What the attack finds above its control is the model's doing.

Sources: the control attack is the principle of Giomi et al. 2023 (arXiv 2211.10459), and the need
for attacks that never see the model is shown by Das et al. 2024 (arXiv 2406.16201).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench.statistics.arrays import (
    EDGE,
    FloatArray,
    IntArray,
    blocks,
    matrix,
    squared_distances,
)
from chexgenbench.statistics.classification import Undefined, roc_auc, tpr_at_fpr
from chexgenbench.statistics.difference import UnitInfluence, difference
from chexgenbench.statistics.estimate import Estimate

__all__ = [
    "ATTACKS",
    "Attack",
    "Pool",
    "Prompted",
    "balancing_weights",
    "membership_attacks",
    "membership_scores",
    "stand_ins",
]

ATTACKS = ("distance", "nearest", "domias")
"""Names of the attacks; see `membership_scores`."""

_FEWEST_POSITIVE = 5
"""Rows of a side with a label below which its mean is not a thing to balance."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompted:
    """Real images whose prompts a model was given, and what it made of them.

    Attributes:
        real: Features [n, d] of the real images, one a prompt.
        groups: The patient of each [n].
        labels: 0 or 1 [n, k], such as the findings.
        images: Features [m, d] of the images made for these prompts.
        of: The row of `real` that each image [m] was made for; every row has at least one image.
    """

    real: FloatArray
    groups: NDArray[np.str_]
    labels: FloatArray
    images: FloatArray
    of: IntArray

    @classmethod
    def checked(
        cls, name: str, real: ArrayLike, groups: ArrayLike, labels: ArrayLike, images: ArrayLike,
        of: ArrayLike,
    ) -> Prompted:  # fmt: skip
        """The same with every array checked.

        Raises:
            ValueError: NaN or infinity, lengths that do not fit, a record without image, or labels
                other than 0 and 1.
        """
        records, made = matrix(f"{name}: real", real), matrix(f"{name}: images", images)
        who, marks = _described(name, len(records), groups, labels)
        rows = np.asarray(of)
        if records.shape[1] != made.shape[1]:
            raise ValueError(
                f"{name}: real has {records.shape[1]} features a row and images {made.shape[1]}"
            )
        if rows.shape != (len(made),) or rows.dtype.kind not in "iu":
            raise ValueError(f"{name}: of names the real row of each image")
        if not np.array_equal(np.unique(rows), np.arange(len(records))):
            raise ValueError(f"{name}: every real row needs an image made for it, and no other")
        return cls(records, who, marks, made, rows.astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Real training images that stand in for generated ones; the members may be among them.

    Attributes:
        real: Features [l, d].
        groups: Their patients [l].
        labels: 0 or 1 [l, k], as of the records.
    """

    real: FloatArray
    groups: NDArray[np.str_]
    labels: FloatArray

    @classmethod
    def checked(cls, real: ArrayLike, groups: ArrayLike, labels: ArrayLike) -> Pool:
        """The same with every array checked.

        Raises:
            ValueError: NaN or infinity, lengths that do not fit, or labels other than 0 and 1.
        """
        rows = matrix("pool", real)
        return cls(rows, *_described("pool", len(rows), groups, labels))

    def half(self, number: int) -> Pool:
        """The images of the patients of that half; see `_halves`."""
        rows = _halves(self.groups) == number
        return Pool(self.real[rows], self.groups[rows], self.labels[rows])


def _described(
    name: str, rows: int, groups: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.str_], FloatArray]:
    who, marks = np.asarray(groups).astype(np.str_), np.asarray(labels, np.float64)
    if who.shape != (rows,) or marks.ndim != 2 or len(marks) != rows:
        raise ValueError(f"{name}: a group and a row of labels for each real row expected")
    if not np.isin(marks, (0.0, 1.0)).all():
        raise ValueError(f"{name}: labels are 0 or 1")
    return who, marks


@dataclass(frozen=True, slots=True)
class Attack:
    """How well an attack tells members from non-members.

    Attributes:
        auc: Chance that a member scores above a non-member; 1/2 by guessing.
        control_auc: The same of the control attack.
        excess_auc: Attack less control, with the error of the pair.
        tpr: By false-positive rate: the share of members recognised at it, or why it is not known.
        control_tpr: The same of the control attack.
        excess_tpr: Attack less control.
    """

    auc: Estimate
    control_auc: Estimate
    excess_auc: Estimate
    tpr: Mapping[float, Estimate | str]
    control_tpr: Mapping[float, Estimate | str]
    excess_tpr: Mapping[float, Estimate | str]


def membership_attacks(
    members: Prompted,
    held_out: Prompted,
    pool: Pool,
    *,
    rates: Sequence[float] = (0.01, 0.001),
    neighbours: int = 1,
) -> dict[str, Attack]:
    """All attacks on a model, each beside its control.

    Args:
        members: Real images that the model was trained on, and its images for their prompts.
        held_out: Real images of other patients, and its images for their prompts.
        pool: The training images from which the controls' stand-ins come.
        rates: False-positive rates.
        neighbours: See `membership_scores`.

    Returns:
        By name. Intervals are for other members, non-members and images of the same model, given
        the reference and the pool; patients are the independent units on both sides. AUC and TPR
        are weighted (`balancing_weights`); a warning says where weights leave fewer than half of
        the non-members' number.

    Raises:
        Undefined: a patient is on both sides, too few held-out patients for two halves, or no
            other patient in the pool.
        ValueError: arrays that do not fit.
    """
    if common := set(members.groups.tolist()) & set(held_out.groups.tolist()):
        raise Undefined(f"{len(common)} patient(s) are among the members and the non-members")
    weights = balancing_weights(held_out.labels, members.labels)
    attack, control = (
        membership_scores(members, held_out, pool=one, neighbours=neighbours)
        for one in (None, pool)
    )
    left = float(weights.sum() ** 2 / (weights**2).sum())
    warning = None
    if left < len(weights) / 2:
        warning = (
            f"members and non-members differ in their labels: weights leave {left:.0f} of "
            f"{len(weights)} non-members"
        )
    found = {}
    for name in attack:
        parts = [
            _Part.of(*scores[name], members, held_out, weights, rates)
            for scores in (attack, control)
        ]
        found[name] = Attack(
            replace(parts[0].auc, warning=warning),
            parts[1].auc,
            difference(parts[1].named(parts[1].auc), parts[0].named(parts[0].auc)),
            parts[0].tpr,
            parts[1].tpr,
            {rate: _excess(parts, rate) for rate in rates},
        )
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """An attack or its control."""

    auc: Estimate
    tpr: Mapping[float, Estimate | str]
    members: NDArray[np.str_]
    held_out: NDArray[np.str_]

    @classmethod
    def of(
        cls, high: FloatArray, low: FloatArray, members: Prompted, held_out: Prompted,
        weights: FloatArray, rates: Sequence[float],
    ) -> _Part:  # fmt: skip
        auc = roc_auc(
            np.concatenate([high, low]),
            np.repeat([1.0, 0.0], [high.size, low.size]),
            groups=np.concatenate([members.groups, held_out.groups]),
            weights=np.concatenate([np.ones(high.size), weights]),
        )
        tpr: dict[float, Estimate | str] = {}
        for rate in rates:
            try:
                tpr[rate] = tpr_at_fpr(
                    high,
                    low,
                    rate,
                    groups_positive=members.groups,
                    groups_negative=held_out.groups,
                    weights_negative=weights,
                )
            except Undefined as error:
                tpr[rate] = str(error)
        return cls(auc, tpr, members.groups, held_out.groups)

    def named(self, one: Estimate) -> UnitInfluence:
        return UnitInfluence.of(one, self.members, self.held_out)


def _excess(parts: list[_Part], rate: float) -> Estimate | str:
    attack, control = (part.tpr[rate] for part in parts)
    if isinstance(attack, str) or isinstance(control, str):
        return attack if isinstance(attack, str) else str(control)
    return difference(parts[1].named(control), parts[0].named(attack))


def membership_scores(
    members: Prompted,
    held_out: Prompted,
    *,
    pool: Pool | None = None,
    neighbours: int = 1,
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Each attack's score of the members [n] and of the non-members [m], higher for membership.

    - ``distance``: minus the Euclidean distance to the nearest image made for the record's prompt.
    - ``nearest``: minus the distance to the nearest image of all that were made. Images made for
      other prompts of the record's patient do not count: patients have unequally many.
    - ``domias``: log p_made(x) - log p_reference(x), with the same images. Both densities are
      k-nearest-neighbour estimates, log k / n - d log r_k but for a constant, so the score is
      log r_reference - log r_made (and the numbers of images). The reference is the real images of
      one half of the held-out patients for the records of the other half, and likewise for the
      members: no record is judged by a reference that holds its patient.

    Args:
        members: Real images that the model was trained on.
        held_out: Real images of other patients.
        pool: For the control attack: training images, of which those of one half of the patients
            stand in for all generated ones (`stand_ins`) when the records of the other half are
            judged, so that none is compared with an image of its own patient. None: the attack.
        neighbours: k of the densities, at least 1. One sees a single copy; more are steadier.

    Raises:
        Undefined: too few held-out patients for two halves, or fewer than `neighbours` images to
            compare a record with.
        ValueError: different numbers of features, or neighbours below 1.

    Sources: van Breugel et al. 2023 (arXiv 2302.12580), "Membership inference attacks against
    synthetic data through overfitting detection", for the ratio; Loftsgaarden and Quesenberry
    1965, "A nonparametric estimate of a multivariate density function".
    """
    if members.real.shape[1] != held_out.real.shape[1]:
        raise ValueError(
            f"members have {members.real.shape[1]} features a row and held-out rows "
            f"{held_out.real.shape[1]}"
        )
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    sides = (members, held_out)
    scores = [{name: np.empty(len(side.real)) for name in ATTACKS} for side in sides]
    of_members, of_held_out = (_halves(side.groups) for side in sides)
    for number in (0, 1):
        other = of_held_out != number
        if other.all() or not other.any():
            raise Undefined("too few held-out patients for two halves")
        shown = (
            sides if pool is None else [stand_ins(side, pool.half(1 - number)) for side in sides]
        )
        made = _Made.of_sides(*shown)
        reference = held_out.real[other]
        for side, half, first, found in zip(
            sides, (of_members, of_held_out), (0, len(members.real)), scores, strict=True
        ):
            rows = np.flatnonzero(half == number)
            for name, values in made.scores(side.real[rows], first + rows, reference, neighbours):
                found[name][rows] = values
    return {name: (scores[0][name], scores[1][name]) for name in ATTACKS}


def stand_ins(side: Prompted, pool: Pool) -> Prompted:
    """The side with a real image of another patient in place of each image that was made.

    Each record's prompt gets as many different rows of the pool as it had images (or all there
    are): those whose labels differ from its own in the fewest places, equal ones by a hash of both
    images, so that the order of rows plays no part.

    Args:
        side: Records and the images made for them.
        pool: Real images.

    Raises:
        Undefined: no other patient in the pool.
        ValueError: arrays that do not fit.
    """
    if pool.labels.shape[1] != side.labels.shape[1] or pool.real.shape[1] != side.real.shape[1]:
        raise ValueError("pool: other features or labels than those of the records")
    wanted = np.bincount(side.of, minlength=len(side.real))
    keys, own_keys = _keys(pool.real), _keys(side.real)
    ones = pool.labels.sum(axis=1)
    chosen: list[IntArray] = []
    for rows in blocks(len(side.real), 4 * len(pool.real)):
        mine = side.labels[rows]
        differing = ones + mine.sum(axis=1)[:, None] - 2 * (mine @ pool.labels.T)
        with np.errstate(over="ignore"):
            ties = _mixed(own_keys[rows, None] + keys).astype(np.float64) * 2.0**-64
        rank = differing + 0.999 * ties
        rank[side.groups[rows, None] == pool.groups] = np.inf
        for distances, count in zip(rank, wanted[rows].tolist(), strict=True):
            count = min(count, int(np.isfinite(distances).sum()))
            if not count:
                raise Undefined("the training images show no other patient to compare with")
            chosen.append(np.argsort(distances, kind="stable")[:count])
    picked = np.concatenate(chosen)
    of = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen])
    return replace(side, images=pool.real[picked], of=of)


def balancing_weights(own: FloatArray, wanted: FloatArray) -> FloatArray:
    """Weights of rows such that their labels have the means of other rows: entropy balancing.

    Args:
        own: Labels, 0 or 1 [n, k], of the rows to weight.
        wanted: Labels [m, k] whose means they should have.

    Returns:
        float64 [n], positive, with mean 1: of all that give these means, those nearest to equal
        weights in entropy (a ridge of 0.01 / n keeps them finite where none do). Labels with fewer
        than 5 rows, or all but fewer than 5, on a side are left out.

    Source: Hainmueller 2012, "Entropy balancing for causal effects".

    >>> own = np.repeat([[0.0], [1.0]], [30, 10], axis=0)
    >>> wanted = np.repeat([[0.0], [1.0]], [50, 50], axis=0)
    >>> weights = balancing_weights(own, wanted)
    >>> round(float(np.average(own[:, 0], weights=weights)), 2)
    0.5
    """
    counts = [np.minimum(side.sum(axis=0), len(side) - side.sum(axis=0)) for side in (own, wanted)]
    used = np.minimum(*counts) >= _FEWEST_POSITIVE
    if not used.any():
        return np.ones(len(own))
    spread = own[:, used].std(axis=0)
    rows = (own[:, used] - wanted[:, used].mean(axis=0)) / spread
    ridge = 0.01 / len(own)
    slope = np.zeros(rows.shape[1])

    def loss(at: FloatArray) -> float:
        powers = rows @ at
        top = float(powers.max())
        return top + float(np.log(np.exp(powers - top).mean())) + ridge / 2 * float(at @ at)

    # Convex: Newton's steps, halved while they do not descend.
    for _ in range(100):
        powers = rows @ slope
        shares = np.exp(powers - powers.max())
        shares /= shares.sum()
        mean = shares @ rows
        gradient = mean + ridge * slope
        curve = (rows * shares[:, None]).T @ rows - np.outer(mean, mean)
        step = np.linalg.solve(curve + ridge * np.eye(len(slope)), gradient)
        if float(gradient @ step) < 1e-20:
            break
        length = 1.0
        while loss(slope - length * step) > loss(slope) and length > 1e-6:
            length /= 2
        slope = slope - length * step
    weights: FloatArray = shares * len(own)
    return weights


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """All images that were made for the records of both sides, members first."""

    images: FloatArray  # about their centre
    centre: FloatArray
    of: IntArray  # the record of each image
    patient: IntArray  # of each record

    @classmethod
    def of_sides(cls, members: Prompted, held_out: Prompted) -> _Made:
        groups = np.concatenate([members.groups, held_out.groups])
        images = np.concatenate([members.images, held_out.images])
        centre = images.mean(axis=0)
        images -= centre
        return cls(
            images,
            centre,
            np.concatenate([members.of, held_out.of + len(members.real)]),
            np.unique(groups, return_inverse=True)[1],
        )

    def scores(
        self, records: FloatArray, numbers: IntArray, reference: FloatArray, neighbours: int
    ) -> Iterator[tuple[str, FloatArray]]:
        """Each attack's scores of the records [n] with these numbers."""
        at, images, known = records - self.centre, self.images, reference - self.centre
        norms, norms_known = ((side**2).sum(axis=1) for side in (images, known))
        own, nearest, made, seen = np.empty((4, len(records)))
        for part in blocks(len(records), 8 * max(len(images), len(known))):
            rows = numbers[part, None]
            mine = self.of == rows
            related = (self.patient[self.of] == self.patient[rows]) & ~mine
            squares = squared_distances(at[part], images, norms)
            own[part] = _kth(np.where(mine, squares, np.inf), 1, at[part], images)
            squares[related] = np.inf
            nearest[part] = _kth(squares, 1, at[part], images)
            made[part] = _kth(squares, neighbours, at[part], images)
            squares = squared_distances(at[part], known, norms_known)
            seen[part] = _kth(squares, neighbours, at[part], known)
        # Two copies are as far apart as rounding leaves them, and no less.
        least = np.sqrt(EDGE * (at**2).sum(axis=1)) + np.finfo(np.float64).tiny
        ratio = np.log(np.maximum(seen, least)) - np.log(np.maximum(made, least))
        yield "distance", -own
        yield "nearest", -nearest
        yield "domias", ratio + np.log(len(known) / len(images)) / records.shape[1]


def _kth(squares: FloatArray, k: int, at: FloatArray, points: FloatArray) -> FloatArray:
    """Distance of each row [n] to its k-th nearest point, by squared distances [n, m]."""
    if k > squares.shape[1]:
        raise Undefined(f"{squares.shape[1]} images to compare a record with, {k} needed")
    which = squares.argmin(axis=1) if k == 1 else np.argpartition(squares, k - 1, axis=1)[:, k - 1]
    if not np.isfinite(squares[np.arange(len(which)), which]).all():
        raise Undefined(f"fewer than {k} images of others to compare a record with")
    # Again, without the rounding of the expanded square.
    gaps = points[which] - at
    found: FloatArray = np.sqrt(np.einsum("ij,ij->i", gaps, gaps))
    return found


def _halves(groups: NDArray[np.str_]) -> IntArray:
    """The half, 0 or 1, of each row's patient: a bit of the hash of its name."""
    names, inverse = np.unique(groups, return_inverse=True)
    bits = [blake2b(name.encode(), digest_size=8).digest()[-1] & 1 for name in names.tolist()]
    return np.array(bits, dtype=np.int64)[inverse]


def _keys(rows: FloatArray) -> NDArray[np.uint64]:
    """A number [n] made from the content of each row."""
    digests = (blake2b((row + 0.0).tobytes(), digest_size=8).digest() for row in rows)
    return np.array([int.from_bytes(one, "big") for one in digests], dtype=np.uint64)


def _mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The bits of each key mixed as in SplitMix64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    return keys ^ (keys >> np.uint64(31))
