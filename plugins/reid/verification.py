"""Scores of images with their prompts' own real ones, and of real images with one another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench import (
    ImagePairs,
    ImageSet,
    ImageValues,
    NotApplicable,
    Task,
    TaskResult,
    TaskScore,
)
from chexgenbench.statistics import Estimate, mean_estimate
from chexgenbench.statistics.classification import Undefined, roc_auc
from chexgenbench_plugins.reid.excess import (
    Balance,
    mean_and_excess,
    share,
    share_excess,
    threshold_at,
)
from chexgenbench_plugins.reid.loading import Reidentifier, Vectors
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

WORKS = 0.8
"""Area under the ROC curve below which a network says little about who is on an image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """The images made for the prompts of one side, against the prompts' own real ones.

    Attributes:
        name: of the set.
        at: int64 [n], the images whose own real one is there.
        own: int64 [n], its position among the real ones.
        scores: float64 [n].
        mean, best: float64 [p], of the images of each prompt.
        patients: [p], whose prompt it is.
        labels: float64 [p, 14], the findings of the prompt's own image.
    """

    name: str
    at: Integers
    own: Integers
    scores: Floats
    mean: Floats
    best: Floats
    patients: NDArray[Any]
    labels: Floats

    @classmethod
    def of(
        cls, name: str, sets: tuple[ImageSet, ImageSet], vectors: tuple[Vectors, Vectors],
        network: Reidentifier,
    ) -> Side:  # fmt: skip
        """From the made and the real images of a side, and their embeddings."""
        made, real = sets
        own = own_images(made, real)
        at = np.flatnonzero(own >= 0)
        own = own[at]
        scores = network.scores(vectors[0][at], vectors[1][own])
        used, mean, _, best = by_prompt(own, scores)
        if len(used) < FEWEST:
            raise NotApplicable(f"{len(used)} prompts of {name} have images; {FEWEST} are needed")
        return cls(
            name=name,
            at=at,
            own=own,
            scores=scores,
            mean=mean,
            best=best,
            patients=real.patients[used],
            labels=real.labels[used],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """What the network says of pairs of real images.

    Attributes:
        same, other: scores of pairs of one patient, and of one pair of two for each image.
        same_patients, other_patients: the patient of each pair's first image.
        best: float64 [n], the best of R strangers with an image's labels.
    """

    same: Floats
    other: Floats
    same_patients: NDArray[Any]
    other_patients: NDArray[Any]
    best: Floats

    @classmethod
    def of(cls, pool: Real, vectors: Vectors, network: Reidentifier, repeats: int) -> Network:
        others = strangers(pool, repeats)
        if others.shape[1] < repeats:
            raise NotApplicable(f"fewer than {repeats} real images of other patients")
        scores = np.stack([network.scores(vectors, vectors[column]) for column in others.T])
        mates = siblings(pool)
        at = np.flatnonzero(mates >= 0)
        return cls(
            same=network.scores(vectors[at], vectors[mates[at]]),
            other=scores[0],
            same_patients=pool.patients[at],
            other_patients=pool.patients,
            best=scores.max(axis=0),
        )

    def auc(self) -> Estimate | str:
        """How well pairs of one patient are told from pairs of two with the same labels."""
        try:
            return roc_auc(
                np.r_[self.same, self.other],
                np.r_[np.ones(len(self.same)), np.zeros(len(self.other))],
                groups=np.r_[self.same_patients, self.other_patients],
            )
        except Undefined:
            return "no patient has two real images"


def reidentify(
    task: Task, network: Reidentifier, *, repeats: int, rate: float, pairs: int
) -> TaskResult:
    """All scores of the metric `reidentification`; see there.

    Raises:
        NotApplicable: too few prompts, or too few real images of other patients.
    """
    names = ("members", "held_out", "members_real", "held_out_real")
    sets = [task.sets[name] for name in names]
    vectors = network.embed_sets(task, sets)
    sides = [
        Side.of(names[i], (sets[i], sets[i + 2]), (vectors[i], vectors[i + 2]), network)
        for i in (0, 1)
    ]
    pool = Real.of(sets[2:], task.seed)
    real = Network.of(pool, np.concatenate(vectors[2:]), network, repeats)
    threshold, chance = threshold_at(real.best, rate)
    warning = _warning(real.auc(), chance, rate, len(real.best))
    balance = Balance.of(sides[0].labels, sides[1].labels, sides[1].patients)
    scores = _scores(sides[0], sides[1], real, threshold, balance)
    return TaskResult(
        scores=[
            replace(one, estimate=_warned(one.estimate, warning))
            if warning and isinstance(one.estimate, Estimate)
            else one
            for one in scores
        ],
        values=_values(sides[0], sets[0], threshold),
        pairs=[_pairs(sides[0], sets[0], threshold, pairs)] if pairs else [],
        notes=_notes(task, sides, threshold, chance, [warning, balance.warning, balance.fault]),
    )


def _scores(
    members: Side, held_out: Side, real: Network, threshold: float, balance: Balance
) -> list[TaskScore]:
    made, tested = len(members.at), len(members.best)
    shares = [
        replace(share(members.best > threshold, members.patients), warning=balance.warning),
        share(held_out.best > threshold, held_out.patients, balance.weights),
    ]
    mean, control, excess = mean_and_excess(
        members.mean, members.patients, held_out.mean, held_out.patients, balance
    )
    sizes = {"n_real": tested, "n_fake": made}
    largest = [Estimate(float(s.scores.max()), reason="a maximum has none") for s in
               (members, held_out)]  # fmt: skip
    scores = [
        TaskScore(
            name="reid_rate",
            estimate=shares[0],
            control=shares[1].value,
            excess=share_excess(*shares, balance.fault),
            **sizes,
        ),
        TaskScore(name="reid_mean", estimate=mean, control=control, excess=excess, **sizes),
        TaskScore(name="reid_max", estimate=largest[0], control=largest[1].value, **sizes),
        TaskScore(
            name="reid_count",
            estimate=Estimate(float((members.best > threshold).sum()), reason="see reid_rate"),
            control=shares[1].value * tested,
            **sizes,
        ),
        TaskScore(name="reid_network_auc", estimate=real.auc(), n_real=len(real.other)),
        TaskScore(
            name="reid_real",
            variant="other_patient",
            estimate=mean_estimate(real.other, groups=real.other_patients),
            n_real=len(real.other),
        ),
    ]
    if len(real.same):
        scores += [
            TaskScore(
                name="reid_real",
                variant="same_patient",
                estimate=mean_estimate(real.same, groups=real.same_patients),
                n_real=len(real.same),
            ),
            TaskScore(
                name="reid_network_recall",
                estimate=share(real.same > threshold, real.same_patients),
                n_real=len(real.same),
            ),
        ]
    return scores


def _values(members: Side, made: ImageSet, threshold: float) -> list[ImageValues]:
    """Whether an image shows its prompt's own patient: then it must not leave either."""
    matched = np.zeros(len(made))
    matched[members.at] = members.scores > threshold
    return [
        ImageValues(name=name, images="members", values=matched)
        for name in ("reid_match", "near_copy")
    ]


def _pairs(members: Side, made: ImageSet, threshold: float, count: int) -> ImagePairs:
    """The best image of each prompt, those most like the patient first."""
    ids = np.array(made.ids)[members.at]
    order = np.lexsort((ids, -members.scores))
    _, first = np.unique(members.own[order], return_index=True)
    best = order[np.sort(first)][:count]
    return ImagePairs(
        kind="reidentified",
        images="members",
        others="members_real",
        at=members.at[best],
        others_at=members.own[best],
        values=members.scores[best],
        flagged=members.scores[best] > threshold,
    )


def _warning(auc: Estimate | str, chance: float, rate: float, images: int) -> str | None:
    said = []
    if isinstance(auc, str):
        said.append(f"{auc}, so nothing shows that the network knows patients here")
    elif auc.value < WORKS:
        said.append(
            f"the network hardly tells patients apart here (AUC {auc.value:.2f}), so a low rate "
            "says nothing"
        )
    if chance > rate:
        said.append(f"{images} real images allow a false-match rate of {chance:.3f} only")
    return "; ".join(said) or None


def _warned(estimate: Estimate, warning: str) -> Estimate:
    own = [estimate.warning] if estimate.warning else []
    return replace(estimate, warning="; ".join([warning, *own]))


def _notes(
    task: Task, sides: list[Side], threshold: float, chance: float, warnings: list[str | None]
) -> list[str]:
    notes = [
        f"a score above {threshold:.4f} is a match; the best of as many real "
        f"images of other patients with the same labels passes it in {chance:.1%} of cases."
    ]
    for side in sides:
        made = task.sets[side.name]
        lost = len(made) - len(side.at)
        if lost:
            notes.append(
                f"{lost} images of {side.name} were left out, because the real "
                "image of their prompt cannot be read."
            )
    return [*notes, *filter(None, warnings)]
