"""From sets of images to the reports that each training regime leads to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from chexgenbench import ImageSet, NotApplicable, Task
from chexgenbench.files import digest, read_json, sha256_bytes, sha256_file, write_json
from chexgenbench_plugins.reports.encoder_decoder import Sizes, Training, generate, train
from chexgenbench_plugins.reports.images import Chosen, grey_images

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from chexgenbench_plugins.reports.settings import Regime, ReportParameters

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


def reports_of(
    task: Task, regime: Regime, parameters: ReportParameters, folders: Mapping[str, Path]
) -> list[str]:
    """The reports that a generator trained in this regime writes for the images of ``test``.

    Images, trained weights and reports are kept in parts of the task, named by all that decides
    them: what was done is found, also by another model's run.

    Args:
        task: With the sets ``real``, ``synthetic`` and ``test``, each in the order of its ids.
        regime: What to train on.
        parameters: How the generator is made and trained.
        folders: ``encoder`` and ``decoder`` where they are loaded.

    Raises:
        NotApplicable: too few pairs.
        UserError: a part cannot be loaded.
    """
    pairs = compose(regime, task.sets["real"], task.sets["synthetic"], task.seed)
    sources = (task.sets["real"], task.sets["synthetic"])
    texts = [texts_of(images) for images in sources]
    size = parameters.size
    training = Training(
        epochs=parameters.epochs,
        batch_size=parameters.batch_size,
        learning_rate=parameters.learning_rate,
        tokens=parameters.tokens,
        seed=task.seed % 2**32,
        device=task.context.device,
    )
    sizes = Sizes(
        width=parameters.width,
        layers=parameters.layers,
        heads=parameters.heads,
        patch=parameters.patch,
    )
    parts = {name: folders[name] for name in ("encoder", "decoder") if name in folders}
    wanted = [texts[synthetic][at] for synthetic, at in pairs]
    facts = {
        "images": digest([sources[synthetic].keys[at] for synthetic, at in pairs]),
        "texts": sha256_bytes("\0".join(wanted).encode()),
        "size": size,
        "training": {**vars(training), "device": training.device.partition(":")[0]},
        "sizes": vars(sizes),
        "parts": {name: _hashes(folder) for name, folder in parts.items()},
    }
    folder = task.part("train", facts)
    kinds = sorted({synthetic for synthetic, _ in pairs})
    stores = {kind: pixels(task, sources[kind], size) for kind in kinds}
    images = Chosen(stores, pairs)
    with task.stage(f"train on {regime} reports", training.epochs, "epochs") as advance:
        trained = train(
            images,
            wanted,
            folder,
            training=training,
            sizes=sizes,
            encoder=parts.get("encoder"),
            decoder=parts.get("decoder"),
            advance=advance,
        )
    return _written(task, regime, trained, facts, size=size, training=training)


def pixels(task: Task, images: ImageSet, size: int) -> NDArray[np.uint8]:
    """The set's images at that size, decoded once for all runs: uint8 [n, size, size], mapped."""
    folder = task.part("images", digest(list(images.keys)), size)
    with task.stage("read images", len(images), "images") as advance:
        return grey_images(images.paths, folder, size=size, advance=advance)


def _written(
    task: Task, regime: Regime, trained: Path, facts: Any, *, size: int, training: Training
) -> list[str]:
    test = task.sets["test"]
    folder = task.part("write", facts, digest(list(test.keys)))
    file = folder / "reports.json"
    with FileLock(folder / "lock"):
        if not file.is_file():
            images = pixels(task, test, size)
            with task.stage(f"write reports after {regime}", len(test), "images") as advance:
                reports = generate(
                    images,
                    trained,
                    tokens=training.tokens,
                    batch_size=training.batch_size,
                    device=training.device,
                    advance=advance,
                )
            write_json(file, reports)
    found: list[str] = read_json(file)
    return found


def _hashes(folder: Path) -> dict[str, str]:
    from chexgenbench_plugins.weights import safe_weight_files

    files = safe_weight_files(folder, "report-generation")
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}
