"""The demo split: CSV files in the published schema, and the images that belong to their rows.

The files are made from fixed seeds. An image needs nothing but its row: the anatomy is drawn from
`patientID`, pose and grain from `id`, and the findings are read back from prompt and labels.
"""

from __future__ import annotations

import ast
import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .anatomy import draw_anatomy
from .canvas import one_thread
from .findings import (
    FINDINGS,
    SHAPES,
    Finding,
    Labels,
    State,
    Study,
    View,
    generator,
    labels_of,
    make_study,
    random_finding,
    reconcile,
    seed_of,
)
from .render import render
from .report import compose, parse, tokens

COLUMNS: tuple[str, ...] = (
    "id",
    "path",
    "generate_method",
    "reason",
    "impression",
    "indication",
    "history",
    "view",
    "orientation",
    "chexpert_labels",
    "conversations",
    "annotated_prompt",
    "patientID",
    "File_Exists",
    "chexpert_labels_len",
    "Contains_Uncertainity",
)
"""The 16 columns of the published annotation files, spelt and ordered as there."""

SplitName = Literal["train", "test"]
Row = dict[str, str]
FILE_NAMES: dict[SplitName, str] = {
    "train": "DEMO_ANNOTATIONS_TRAIN.csv",
    "test": "DEMO_ANNOTATIONS_TEST.csv",
}
TRAIN_ROWS = 4000
TEST_DISTINCT = 544
TEST_REPEATS = 24

_PREVALENCE: dict[str, float] = {
    "Atelectasis": 0.17,
    "Cardiomegaly": 0.19,
    "Consolidation": 0.10,
    "Edema": 0.13,
    "Enlarged Cardiomediastinum": 0.055,
    "Fracture": 0.04,
    "Lung Lesion": 0.055,
    "Lung Opacity": 0.17,
    "Pleural Effusion": 0.22,
    "Pleural Other": 0.04,
    "Pneumonia": 0.10,
    "Pneumothorax": 0.085,
    "Support Devices": 0.22,
}
_DENIED = {"Pneumothorax": 0.45, "Pleural Effusion": 0.40, "Consolidation": 0.25, "Edema": 0.18,
           "Cardiomegaly": 0.22, "Enlarged Cardiomediastinum": 0.12, "Pneumonia": 0.12,
           "Fracture": 0.06, "Lung Lesion": 0.03, "Lung Opacity": 0.06, "Atelectasis": 0.03,
           "Pleural Other": 0.01}  # fmt: skip
_REASONS = ("shortness of breath", "fever and cough", "chest pain", "line placement",
            "pre operative", "trauma", "follow up", "hypoxia")  # fmt: skip


def make_rows(split: SplitName) -> list[Row]:
    """The rows of one split, always the same: 4,000 for training, 568 for testing.

    The test rows hold 544 distinct prompts and 24 rows that repeat one of them, half of those
    with labels that differ from the first row's.
    """
    train = split == "train"
    wanted = TRAIN_ROWS if train else TEST_DISTINCT
    patients = generator("patients", split)
    rows: list[Row] = []
    prompts: set[str] = set()
    number = 10_000_000 if train else 19_000_000
    study_number = 50_000_000 if train else 59_000_000
    while len(rows) < wanted:
        number += int(patients.integers(3, 900))
        patient = f"p{number}"
        rng = generator("course", patient)
        before: Study | None = None
        for _ in range(int(rng.choice([1, 2, 3, 4, 5], p=[0.30, 0.28, 0.20, 0.13, 0.09]))):
            if len(rows) == wanted:
                break
            study_number += int(rng.integers(1, 40))
            study = _draw_study(rng, before)
            prompt = compose(study, rng)
            while len(tokens(prompt)) > 56 or (not train and prompt in prompts):
                prompt = compose(study, rng)
                if rng.random() < 0.1:
                    study = _draw_study(rng, before)
            before = study
            prompts.add(prompt)
            rows.append(_row(patient, f"s{study_number}", study, labels_of(study), prompt, rng))
    if not train:
        rows += _repeats(rows, study_number)
    return rows


def csv_text(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as the text of a CSV file with a header and Unix line ends."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def read_labels(text: str) -> Labels:
    """The labels of a row from the Python-dict string of its `chexpert_labels`.

    Raises:
        ValueError: when the text is not a dictionary of the 14 findings to None, 0, 1 or -1.
    """
    value: object = ast.literal_eval(text)
    if not isinstance(value, dict):
        raise ValueError("chexpert_labels is not a dictionary")
    labels: Labels = dict.fromkeys(FINDINGS)
    for name, label in value.items():  # pyright: ignore[reportUnknownVariableType]
        if name not in labels or label not in (None, 0.0, 1.0, -1.0):
            raise ValueError(f"not a label: {name!r}: {label!r}")
        labels[str(name)] = None if label is None else float(label)  # pyright: ignore[reportUnknownArgumentType]
    return labels


def study_of(prompt: str, labels: Mapping[str, float | None] | None, seed: int) -> Study:
    """The study a prompt and its labels describe. Where both are given and disagree the labels
    win, with details drawn from the seed; labels alone serve when the prompt is not understood."""
    parsed = parse(prompt)
    if labels is None or (parsed.complete and dict(labels) == parsed.labels):
        return parsed.study
    return reconcile(parsed.study, labels, generator("details", seed))


def render_row(row: Mapping[str, str], size: int = 128) -> NDArray[np.uint8]:
    """The radiograph of a row of the demo split (or of any row of the same schema): uint8
    [size, size]. The same row always gives the same image."""
    seed = seed_of("study", row["id"])
    study = study_of(row["annotated_prompt"], read_labels(row["chexpert_labels"]), seed)
    view = row.get("view", "")
    if view in ("PA", "AP"):
        study = replace(study, view=view)
    return render(draw_anatomy(seed_of("patient", row["patientID"])), study, seed, size)


def oracle_image(
    prompt: str, labels: Mapping[str, float | None] | None, seed: int, size: int = 128
) -> NDArray[np.uint8]:
    """A fresh patient with what the prompt describes: uint8 [size, size].

    The findings come from the prompt when its every sentence is in the grammar, else from the
    labels (when there are none, from what was understood). No patient of the demo split recurs.
    """
    parsed = parse(prompt)
    if parsed.complete or labels is None:
        study = parsed.study
    else:
        study = reconcile(parsed.study, labels, generator("oracle details", seed))
    return render(
        draw_anatomy(seed_of("oracle patient", seed)), study, seed_of("oracle", seed), size
    )


@dataclass(frozen=True)
class Rendered:
    """How many images `render_images` wrote, and how many were there already."""

    written: int
    kept: int


def render_images(rows: Sequence[Row], root: Path, *, size: int = 128) -> Rendered:
    """Write the PNG of every row below `root`, at the row's `path`.

    Existing images that open and have the right size are kept. Each file is written aside and
    renamed, so a killed call leaves no half image and another may run at the same time.

    Args:
        rows: of the demo split, see `read_rows`.
        root: the image root; folders are made as needed.
        size: pixels a side.
    """
    from PIL import Image

    base = root.resolve()
    for row in rows:
        if not (base / row["path"]).resolve().is_relative_to(base):
            raise ValueError(f"the path of {row['id']} leaves the image root")
    todo = [row for row in rows if not _good(root / row["path"], size)]
    with one_thread():
        for row in todo:
            path = root / row["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
            Image.fromarray(render_row(row, size)).save(aside, format="PNG")
            aside.replace(path)
    return Rendered(len(todo), len(rows) - len(todo))


def _good(path: Path, size: int) -> bool:
    from PIL import Image

    if not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            image.load()
            return image.size == (size, size) and image.mode == "L"
    except (OSError, SyntaxError, ValueError):
        return False


def _draw_study(rng: np.random.Generator, before: Study | None) -> Study:
    """A patient's next study: some of what was there persists, the rest is drawn anew."""
    found: dict[str, Finding] = {}
    healthy = rng.random() < 0.17
    for name in SHAPES:
        old = before.get(name) if before is not None else None
        chance = _PREVALENCE[name]
        if old is not None and rng.random() < 0.45:
            found[name] = old
        elif rng.random() < chance * (0.0 if healthy and name != "Support Devices" else 1.0):
            state: State = "uncertain" if rng.random() < 0.13 else "present"
            if name == "Support Devices" and rng.random() < 0.8:
                state = "present"
            found[name] = random_finding(name, rng, state)
    while len(found) > 4:
        names = list(found)
        common = [n for n in names if _PREVALENCE[n] > 0.12] or names
        del found[common[int(rng.integers(len(common)))]]
    denials = [n for n in _DENIED if n not in found and rng.random() < _DENIED[n]]
    keep = min(len(denials), int(rng.integers(0, 5)))
    for at in rng.permutation(len(denials))[:keep]:
        found[denials[int(at)]] = Finding(denials[int(at)], "absent")
    views: tuple[View | None, ...] = (None, None, "PA", "AP")
    return make_study(found, views[int(rng.integers(len(views)))])


def _repeats(rows: Sequence[Row], study_number: int) -> list[Row]:
    """Rows of other patients that repeat a prompt; every second one with other labels."""
    rng = generator("repeats")
    more: list[Row] = []
    for k, at in enumerate(rng.choice(len(rows), size=TEST_REPEATS, replace=False)):
        prompt = rows[int(at)]["annotated_prompt"]
        study = parse(prompt).study
        labels = labels_of(study)
        if k % 2:
            name = "Lung Opacity" if labels["Lung Opacity"] != 1.0 else "Pleural Effusion"
            labels[name] = 1.0 if labels[name] is None else None
            labels["No Finding"] = None
        patient = f"p{19_900_000 + 7 * k}"
        study_number += 11
        more.append(_row(patient, f"s{study_number}", study, labels, prompt, rng))
    return more


def _row(
    patient: str, study_id: str, study: Study, labels: Labels, prompt: str, rng: np.random.Generator
) -> Row:
    drawn: View = "PA" if rng.random() < 0.55 else "AP"
    view = study.view or drawn
    reason = _REASONS[int(rng.integers(len(_REASONS)))]
    return {
        "id": study_id,
        "path": f"files/{patient[:3]}/{patient}/{study_id}.png",
        "generate_method": "phantom",
        "reason": reason,
        "impression": "",
        "indication": "",
        "history": "",
        "view": view,
        "orientation": "Erect" if view == "PA" else "Recumbent",
        "chexpert_labels": str(labels),
        "conversations": "[]",
        "annotated_prompt": prompt,
        "patientID": patient,
        "File_Exists": "True",
        "chexpert_labels_len": str(sum(v is not None for v in labels.values())),
        "Contains_Uncertainity": str(-1.0 in labels.values()),
    }
