"""Phantoms to train on: the demo's training side, and fresh patients that no split contains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chexgenbench_plugins.data import data_folder
from chexgenbench_plugins.phantom import compose, draw_anatomy, labels_of, render
from chexgenbench_plugins.phantom.findings import FINDINGS, generator, seed_of
from chexgenbench_plugins.phantom.split import FILE_NAMES, _draw_study, read_rows, render_row

Images = NDArray[np.uint8]


def training_side(cache: Path) -> tuple[Images, list[str]]:
    """Images uint8 [4000, 128, 128] and prompts of the demo's training side."""
    rows = read_rows(data_folder("demo_split") / FILE_NAMES["train"])
    return _cached(cache / "train.npy", render_row, rows), [row["annotated_prompt"] for row in rows]


def fresh_pairs(
    count: int, name: str, cache: Path
) -> tuple[Images, list[str], NDArray[np.float64]]:
    """Images, prompts and labels [count, 14] of patients drawn from the seeds that `name` opens."""
    studies = []
    for number in range(count):
        rng = generator("fresh", name, str(number))
        study = _draw_study(rng, None)
        studies.append((name, number, study, compose(study, rng)))
    images = _cached(cache / f"{name}.npy", _draw, studies)
    labels = [[labels_of(item[2])[finding] or 0.0 for finding in FINDINGS] for item in studies]
    return images, [item[3] for item in studies], np.asarray(labels)


def _draw(item: tuple) -> Images:  # type: ignore[type-arg]
    name, number, study, _ = item
    anatomy = draw_anatomy(seed_of("fresh patient", name, number))
    return render(anatomy, study, seed_of("fresh study", name, number))


def _cached(path: Path, draw, items: list) -> Images:  # type: ignore[no-untyped-def, type-arg]
    if path.exists():
        return np.load(path)
    images = np.stack([draw(item) for item in items])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, images)
    return images
