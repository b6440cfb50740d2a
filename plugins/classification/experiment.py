"""All trainings of the metric ``classification``: regimes and seeds, each found or made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from chexgenbench import ImageSet, Task

from .data import Pixels, Uncertain, by_id, decoded, seed_of, targets
from .regimes import REAL, SYNTHETIC, Part, compose, gathered, held_out
from .scores import Predictions, best_thresholds
from .training import Settings, Trained, predict, train

_TEST = 2
"""The source of the test images, after `REAL` and `SYNTHETIC`."""


def run_regimes(
    task: Task,
    settings: Settings,
    variants: Sequence[str],
    *,
    seeds: int,
    validation: float,
    uncertain: Uncertain,
) -> tuple[ImageSet, Mapping[str, Predictions]]:
    """Trains what is not there yet; the test set in the order of the predictions, and these.

    Training i of each regime has the same validation patients, whatever the model, so that regimes
    and models are compared training by training.
    """
    import numpy as np

    names = ("real", "synthetic", "test")
    real, synthetic, test = sets = [by_id(task.sets[name]) for name in names]
    pixels = Pixels(
        sources=[
            decoded(task, images, settings.size, name)
            for images, name in zip(sets, names, strict=True)
        ],
        keys=[images.keys for images in sets],
    )
    goals = [targets(images.labels, uncertain) for images in sets]
    test_rows = np.stack([np.full(len(test), _TEST), np.arange(len(test))], axis=1)
    # What another regime starts from comes before it, and need not be among the results.
    order = ["synthetic", *variants] if "pretrained" in variants else variants
    rounds: dict[str, list[_Round]] = {variant: [] for variant in order}
    for number in range(seeds):
        seed = seed_of("training", task.seed, number)
        held = held_out(real, validation, seed)
        for variant in rounds:
            part = compose(variant, real, synthetic, held, task.seed)
            name = f"train {variant}, {number + 1} of {seeds}"
            after = rounds[part.after][number].trained if part.after else None
            trained = train(task, settings, pixels, part, goals, seed, name=name, after=after)
            rounds[variant].append(_Round(part, trained))
    found = {}
    for variant in variants:
        chances, thresholds = [], []
        for each in rounds[variant]:
            chances.append(predict(task, settings, each.trained, pixels, test_rows))
            seen = predict(task, settings, each.trained, pixels, each.part.validation)
            thresholds.append(best_thresholds(seen, gathered(goals, each.part.validation)))
        part = rounds[variant][0].part
        before = rounds[part.after][0].part if part.after else part
        found[variant] = Predictions(
            probabilities=np.stack(chances),
            thresholds=np.stack(thresholds),
            n_real=part.count(REAL),
            n_fake=before.count(SYNTHETIC),
        )
    return test, found


class _Round(NamedTuple):
    """One training of a regime and what it was made of."""

    part: Part
    trained: Trained
