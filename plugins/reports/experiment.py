"""From sets of images to the reports that each training regime leads to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexgenbench import ImageSet, NotApplicable, Task
from chexgenbench.files import digest, file_lock, read_json, sha256_bytes, write_json

if TYPE_CHECKING:
    from chexgenbench_plugins.reports.generators import Generator
    from chexgenbench_plugins.reports.settings import Regime

FEWEST = 2
"""Pairs that a training needs."""


def texts_of(images: ImageSet) -> list[str]:
    """The report of each image's row: what was written for a real image, and what the model was
    asked for."""
    prompts = images.prompts.table["prompt"].astype(str).tolist()
    return [prompts[row] for row in images.rows.tolist()]


def row_ids(images: ImageSet) -> list[str]:
    """The ``prompt_id`` of each image's row."""
    names = images.prompts.table["prompt_id"].astype(str).tolist()
    return [names[row] for row in images.rows.tolist()]


def compose(
    regime: Regime, real: ImageSet, synthetic: ImageSet, seed: int
) -> list[tuple[bool, int]]:
    """The pairs of a training: whether the image is synthetic, and its position in its set.

    ``real`` and ``synthetic`` take every image of their set. ``mixed`` takes each row once: a half
    of them, chosen by a hash of seed and row, with the synthetic image, the others with the real
    one.

    Raises:
        NotApplicable: fewer than `FEWEST` pairs.
    """
    mine, theirs = row_ids(real), row_ids(synthetic)
    if regime == "real":
        pairs = [(False, at) for at in range(len(mine))]
    elif regime == "synthetic":
        pairs = [(True, at) for at in range(len(theirs))]
    else:
        names = sorted({*mine, *theirs}, key=lambda name: digest(["mixed", seed, name]))
        swapped = set(names[: len(names) // 2])
        pairs = [(False, at) for at, name in enumerate(mine) if name not in swapped]
        pairs += [(True, at) for at, name in enumerate(theirs) if name in swapped]
    if len(pairs) < FEWEST:
        raise NotApplicable(f"{regime}: {len(pairs)} pairs of an image and a report, 2 needed")
    return pairs


def reports_of(task: Task, regime: Regime, generator: Generator[Any]) -> list[str]:
    """The reports that a generator trained in this regime writes for the images of ``test``.

    Images, trained weights and reports are kept in parts of the task, named by all that decides
    them: what was done is found, also by another model's run.

    Args:
        task: With the sets ``real``, ``synthetic`` and ``test``, each in the order of its ids.
        regime: What to train on.
        generator: What is trained.

    Raises:
        NotApplicable: too few pairs.
        UserError: a part cannot be loaded.
    """
    pairs = compose(regime, task.sets["real"], task.sets["synthetic"], task.seed)
    sources = (task.sets["real"], task.sets["synthetic"])
    texts = [texts_of(images) for images in sources]
    wanted = [texts[synthetic][at] for synthetic, at in pairs]
    facts = {
        "images": digest([sources[synthetic].keys[at] for synthetic, at in pairs]),
        "texts": sha256_bytes("\0".join(wanted).encode()),
        **generator.facts,
    }
    folder = task.part("train", facts)
    images = generator.read(task, sources, pairs)
    epochs = generator.training.epochs
    with task.stage(f"train on {regime} reports", epochs, "epochs") as advance:
        trained = generator.train(images, wanted, folder, advance)
    return _written(task, regime, generator, trained, facts)


def _written(
    task: Task, regime: Regime, generator: Generator[Any], trained: Path, facts: Any
) -> list[str]:
    test = task.sets["test"]
    folder = task.part("write", facts, digest(list(test.keys)))
    file = folder / "reports.json"
    with file_lock(folder / "lock"):
        if not file.is_file():
            images = generator.read(task, (test,), [(0, at) for at in range(len(test))])
            with task.stage(f"write reports after {regime}", len(test), "images") as advance:
                reports = generator.write(images, trained, advance)
            write_json(file, reports)
    found: list[str] = read_json(file)
    return found
