"""The scores of the metric `memorisation` from the sets that it asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    UserError,
)
from chexgenbench.statistics import (
    Estimate,
    authenticity,
    ct_score,
    excess_below,
    mean_estimate,
    members_excess,
    nearest,
    training_share,
)
from chexgenbench.statistics.copies import Excess
from chexgenbench.statistics.sampling import estimate, linear, units_of

from .duplicates import Duplicates, find_duplicates

Array = NDArray[np.float64]

_FEWEST_TRAINING, _FEWEST_HELD_OUT = 8, 2
"""Patients that cuts into equal sizes need."""


@dataclass(frozen=True, eq=False)
class _Side:
    """A set of images, its features as they are compared, and its patients."""

    images: ImageSet
    features: NDArray[np.float32] | Array
    patients: NDArray[np.str_]


def measure(task: Task, parameters: Any) -> TaskResult:
    """All scores; docs/privacy.md says what each tells."""
    sides = {name: _side(name, images, parameters.cosine) for name, images in task.sets.items()}
    generated, training, held_out = (sides[n] for n in ("generated", "training", "held_out"))
    _checked(training, held_out)
    scores: list[TaskScore] = []
    notes: list[str] = []

    def add(name: str, found: Excess | str, variant: str = "", fake: _Side = generated) -> None:
        scores.append(
            TaskScore(
                name=name,
                variant=variant,
                estimate=found.rate if isinstance(found, Excess) else found,
                control=found.control if isinstance(found, Excess) else None,
                excess=found.excess if isinstance(found, Excess) else None,
                n_real=len(training.images),
                n_fake=len(fake.images),
            )
        )
        if isinstance(found, Excess) and found.warning:
            notes.append(f"{name}: {found.warning}.")

    near, near_real = (
        nearest(
            side.features, training.features, 2, groups_targets=training.patients, distinct=True
        )
        for side in (generated, held_out)
    )
    replicated, threshold = excess_below(
        near.distances[:, 0],
        near_real.distances[:, 0],
        rate=parameters.false_match_rate,
        groups_fake=generated.patients,
        groups_held_out=held_out.patients,
    )
    add("replicated_rate", replicated)
    shared = {
        "groups_train": training.patients,
        "groups_held_out": held_out.patients,
        "rate": parameters.false_match_rate,
        "repeats": parameters.subsamples,
        "seed": task.seed,
    }
    equal = training_share(
        training.features,
        held_out.features,
        generated.features,
        groups_fake=generated.patients,
        **shared,
    )
    add("replicated_rate", equal.replicated, "equal_sizes")
    add("training_share", equal.share)
    if "members" in sides:
        members, own = _answered(sides["members"], training)
        others, own_others = _answered(sides["others"], held_out)
        asked = members_excess(
            training.features,
            held_out.features,
            members.features,
            others.features,
            own_members=own,
            own_others=own_others,
            **shared,
        )
        add("replicated_rate", asked.replicated, "members", members)
        add("training_share", asked.share, "members", members)
    add("nndr", _nndr(near.distances, near_real.distances, generated, held_out))
    add("authenticity", _authenticity(training, generated, held_out))
    add("ct_score", _ct(training, generated, held_out, task.seed))
    asked_sides = {
        name: sides[name] for name in ("generated", "members", "others") if name in sides
    }
    duplicates = find_duplicates(
        task,
        {name: side.images for name, side in asked_sides.items()},
        training.images,
        held_out.images,
    )
    add("near_duplicates", duplicates.rate)
    notes += _notes(duplicates)
    values, copies = [], {}
    for name, side in asked_sides.items():
        distances = (
            near if name == "generated" else nearest(side.features, training.features)
        ).distances[:, 0]
        copies[name] = (distances < threshold.distance) | duplicates.near[name]
        values += [
            ImageValues(name="nearest_training_distance", images=name, values=distances),
            ImageValues(name="near_copy", images=name, values=copies[name].astype(np.float64)),
        ]
    copy = copies["generated"]
    order = np.lexsort((np.arange(copy.size), near.distances[:, 0]))[: parameters.pairs]
    return TaskResult(
        scores=scores,
        values=values,
        pairs=[
            ImagePairs(
                kind="nearest_training",
                images="generated",
                others="training",
                at=order,
                others_at=near.indices[order, 0],
                values=near.distances[order, 0],
                flagged=copy[order],
            )
        ],
        notes=notes,
    )


def _side(name: str, images: ImageSet, cosine: bool) -> _Side:
    if not len(images):
        raise NotApplicable(f"no image of the {name.replace('_', ' ')} side can be read")
    features = images.features
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise UserError(
            f"The features of {bad.size} image(s) hold NaN or infinity, first of "
            f"{images.ids[int(bad[0])]} ({images.need.name}).",
            hint="Take another encoder or precision (--dtype float32).",
        )
    if cosine:
        lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        if not lengths.all():
            raise NotApplicable("a feature vector is zero and has no direction for cosine")
        return _Side(images, features / lengths, images.patients)
    return _Side(images, features, images.patients)


def _checked(training: _Side, held_out: _Side) -> None:
    trained, kept = set(training.patients.tolist()), set(held_out.patients.tolist())
    if both := trained & kept:
        raise NotApplicable(
            f"{len(both)} patient(s) of the held-out side are on the training side too, so it says "
            "nothing about rows that the model has not seen"
        )
    if len(trained) < _FEWEST_TRAINING or len(kept) < _FEWEST_HELD_OUT:
        raise NotApplicable(
            f"needs at least {_FEWEST_TRAINING} training and {_FEWEST_HELD_OUT} held-out patients, "
            f"has {len(trained)} and {len(kept)}"
        )


def _answered(made: _Side, real: _Side) -> tuple[_Side, NDArray[np.int64]]:
    """The images whose prompt's real image is there, and where it is."""
    at = {name: i for i, name in enumerate(real.images.ids)}
    ids = made.images.prompts.table["prompt_id"].to_numpy()[made.images.rows]
    own = np.array([at.get(str(one), -1) for one in ids], dtype=np.int64)
    kept = np.flatnonzero(own >= 0)
    if not kept.size:
        raise NotApplicable("no real image of the prompts that were asked can be read")
    return _Side(made.images.take(kept), made.features[kept], made.patients[kept]), own[kept]


def _nndr(near: Array, near_real: Array, generated: _Side, held_out: _Side) -> Excess:
    ratios = [d[:, 0] / np.where(d[:, 1] > 0, d[:, 1], 1.0) for d in (near, near_real)]
    return _against(
        mean_estimate(ratios[0], groups=generated.patients),
        mean_estimate(ratios[1], groups=held_out.patients),
        generated,
        held_out,
    )


def _authenticity(training: _Side, generated: _Side, held_out: _Side) -> Excess:
    found, control = (
        authenticity(
            training.features,
            side.features,
            groups_train=training.patients,
            groups_fake=side.patients,
        )
        for side in (generated, held_out)
    )
    return _against(found, control, generated, held_out)


def _ct(training: _Side, generated: _Side, held_out: _Side, seed: int) -> Excess:
    found = ct_score(
        training.features,
        held_out.features,
        generated.features,
        seed=seed,
        groups_test=held_out.patients,
        groups_fake=generated.patients,
    )
    return Excess(found, 0.0, found, found.warning)


def _against(found: Estimate, control: Estimate, generated: _Side, held_out: _Side) -> Excess:
    """A mean over generated images less that over held-out ones; a patient of both is one unit."""
    value = found.value - control.value
    if found.influence is None or control.influence is None:
        excess = Estimate(value, reason=found.reason or control.reason)
    else:
        units = units_of(
            len(held_out.images),
            len(generated.images),
            groups_real=held_out.patients,
            groups_fake=generated.patients,
        )
        excess = estimate(value, linear(units, found.influence.fake, -control.influence.fake))
    return Excess(found, control.value, excess)


def _notes(found: Duplicates) -> Iterator[str]:
    if found.exact:
        yield f"{found.exact} generated file(s) are training files, byte for byte."
    if found.leaked:
        yield (
            f"{found.leaked} held-out image(s) have the perceptual hash of a training image: look "
            "for the same image on both sides."
        )
    low, middle = np.percentile(found.bits, [1, 50])
    yield (
        f"Hashes of held-out images differ in {low:.0f} (1st percentile) and {middle:.0f} (median) "
        "of 256 bits from the nearest of another patient."
    )
