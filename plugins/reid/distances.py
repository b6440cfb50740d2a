"""Distances of images to their prompts' own real ones, with the controls that give them meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench import ImageSet, NotApplicable, Task, TaskResult, TaskScore
from chexgenbench.statistics import mean_estimate
from chexgenbench_plugins.reid.excess import Balance, mean_and_excess
from chexgenbench_plugins.reid.pairs import (
    FEWEST,
    Floats,
    Integers,
    Real,
    by_prompt,
    own_images,
    siblings,
    strangers,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """All pairs whose distance is wanted.

    Attributes:
        sides: of members and held-out prompts, the made images [n] that have an own real one, and
            its position [n] in the pool.
        others: int64 [p, R], for each real image in `anchors` R of other patients.
        mates: int64 [s, 2], real images of one patient.
    """

    pool: Real
    sides: tuple[tuple[Integers, Integers], tuple[Integers, Integers]]
    anchors: Integers
    others: Integers
    mates: Integers

    @classmethod
    def of(cls, task: Task, repeats: int) -> Pairs:
        """Real images are those of the prompts alone.

        Raises:
            NotApplicable: too few prompts with images, or real images of other patients.
        """
        reals, sides, offset = [], [], 0
        for name in ("members", "held_out"):
            made, real = task.sets[name], task.sets[f"{name}_real"]
            own = own_images(made, real)
            at = np.flatnonzero(own >= 0)
            used, position = np.unique(own[at], return_inverse=True)
            if len(used) < FEWEST:
                raise NotApplicable(
                    f"{len(used)} prompts of {name} have images; {FEWEST} are needed"
                )
            reals.append(real.take(used))
            sides.append((at, position.astype(np.int64) + offset))
            offset += len(used)
        pool = Real.of(reals, task.seed)
        others = strangers(pool, repeats)
        if others.shape[1] < repeats:
            raise NotApplicable(f"fewer than {repeats} real images of other patients")
        mate = siblings(pool)
        at = np.flatnonzero(mate >= 0)
        return cls(
            pool=pool,
            sides=(sides[0], sides[1]),
            anchors=np.arange(len(pool), dtype=np.int64),
            others=others,
            mates=np.stack([at, mate[at]], axis=1),
        )


MadeDistance = Callable[[ImageSet, Integers, Integers], Floats]
"""Made images at positions, and positions of real ones in the pool, to distances."""

RealDistance = Callable[[Integers, Integers], Floats]
"""Two equally long lists of positions in the pool, to distances."""


def distance_scores(
    task: Task, pairs: Pairs, prefix: str, made: MadeDistance, real: RealDistance
) -> TaskResult:
    """The scores ``PREFIX_mean``, ``PREFIX_min`` and ``PREFIX_real``."""
    means, leasts, patients, labels = [], [], [], []
    for name, (at, own) in zip(("members", "held_out"), pairs.sides, strict=True):
        used, mean, least, _ = by_prompt(own, made(task.sets[name], at, own))
        means.append(mean)
        leasts.append(least)
        patients.append(pairs.pool.patients[used])
        labels.append(pairs.pool.labels[used])
    balance = Balance.of(labels[0], labels[1], patients[1])
    sizes = {"n_real": len(means[0]), "n_fake": len(pairs.sides[0][0])}
    scores = []
    for name, (members, held_out) in (("mean", means), ("min", leasts)):
        estimate, control, excess = mean_and_excess(
            members, patients[0], held_out, patients[1], balance
        )
        scores.append(
            TaskScore(
                name=f"{prefix}_{name}", estimate=estimate, control=control, excess=excess, **sizes
            )
        )
    count = pairs.others.shape[1]
    apart = real(pairs.anchors.repeat(count), pairs.others.ravel()).reshape(-1, count)
    one = real(pairs.mates[:, 0], pairs.mates[:, 1])
    for variant, values, anchors in (
        ("other_patient", apart.mean(axis=1), pairs.anchors),
        ("other_patient_min", apart.min(axis=1), pairs.anchors),
        ("same_patient", one, pairs.mates[:, 0]),
    ):
        if len(values):
            scores.append(
                TaskScore(
                    name=f"{prefix}_real",
                    variant=variant,
                    estimate=mean_estimate(values, groups=pairs.pool.patients[anchors]),
                    n_real=len(values),
                )
            )
    notes = [*_repeated(task), *filter(None, (balance.warning, balance.fault))]
    return TaskResult(scores=scores, notes=notes)


def _repeated(task: Task) -> list[str]:
    """Says where images of one prompt are one and the same: seeds that do nothing."""
    keys: dict[int, list[Any]] = {}
    made = task.sets["members"]
    for row, key in zip(made.rows.tolist(), made.keys, strict=True):
        keys.setdefault(row, []).append(key)
    same = sum(len(set(found)) < len(found) for found in keys.values())
    if not same:
        return []
    return [f"{same} of {len(keys)} training prompts gave one image for several seeds."]


def root_mean_square(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """Distance of row i of both sides: |a - b| / sqrt(d), in float64, so that bytes do not wrap.

    >>> root_mean_square(np.array([[0, 255]], np.uint8), np.array([[255, 0]], np.uint8))
    array([255.])
    """
    difference = first.astype(np.float64) - second
    distances: Floats = np.sqrt((difference**2).mean(axis=1))
    return distances
