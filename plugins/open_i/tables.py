"""From reports to the two sides of a split, in the schema of the published annotation files."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from chexgenbench import FINDINGS, UserError
from chexgenbench.files import atomic_path, digest, read_json, write_json
from chexgenbench_plugins.open_i.mesh import mesh_labels
from chexgenbench_plugins.open_i.reports import Collection, Report, image_key

Section = Literal["impression", "findings", "both"]
Labels = Literal["rules", "mesh", "none"]
Views = Literal["frontal", "first", "all"]

_COLUMNS = ("id", "path", "annotated_prompt", "chexpert_labels", "patientID", "view", "mesh")
_PICTURES = (".png", ".jpg", ".jpeg")
# A word of which something was taken out stands for nothing that could be drawn.
_MARKED = re.compile(r"\S*X{3,}[^\s.,;:]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which rows, with which prompts and labels.

    Attributes:
        words: fewest words of a prompt.
        test: share of the reports on the test side.
    """

    views: Views
    section: Section
    keep_marks: bool
    words: int
    labels: Labels
    test: float
    seed: int


@dataclass(frozen=True)
class Sides:
    """The CSV files of both sides (no training side without a row of it), and what was left out."""

    test: Path
    train: Path | None
    notes: tuple[str, ...]


def find_images(folder: Path) -> dict[str, str]:
    """Image key to the name of its file in `folder`.

    Raises:
        UserError: no folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(
            f"The folder of images is not there: {folder}.", hint="Name it: --set open-i.images=..."
        )
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.lower().endswith(_PICTURES))
    if not names:
        raise UserError(
            f"There is no image in {folder}.",
            hint="Unpack NLMCXR_png.tgz there, or name another folder: --set open-i.images=...",
        )
    return {image_key(name): name for name in reversed(names)}


def write_sides(
    collection: Collection, images: Mapping[str, str], choice: Choice, cache: Path
) -> Sides:
    """Writes the CSV files of both sides where they are not there yet.

    Raises:
        UserError: the views are not known, or no row is left.
    """
    if choice.views == "frontal" and not collection.views:
        raise UserError(
            "Nothing says which images are frontal: Open-I's reports do not.",
            hint="Name a table of views, --set open-i.projections=FILE (docs/open_i.md says where "
            "to get one), or take the first image of each report, of which some are lateral: "
            "--set open-i.views=first",
        )
    name = digest([collection.content, sorted(images.items()), vars(choice), _code()])[:24]
    folder = cache / "open_i" / name
    test, train, facts = folder / "test.csv", folder / "train.csv", folder / "facts.json"
    if not facts.is_file():
        rows, left_out = _rows(collection, images, choice)
        sides = {path: [row for row in rows if row[0] == (path is test)] for path in (test, train)}
        if not sides[test]:
            raise UserError(
                f"No report of the {len(collection.reports)} is left for the test side. "
                + " ".join(left_out),
                hint="Do the images belong to these reports? See --set open-i.images, views, "
                "prompt, words and test.",
            )
        for path, side in sides.items():
            _write(path, [row[1] for row in side])
        count = {path: len(side) for path, side in sides.items()}
        said = f"Open-I: {count[test]} images for the test side, {count[train]} for training."
        write_json(facts, {"train": count[train], "notes": [said, *left_out]})
    known = read_json(facts)
    return Sides(test, train if known["train"] else None, tuple(known["notes"]))


def is_test(uid: str, share: float, seed: int) -> bool:
    """Whether a report is of the test side; it depends on nothing but these."""
    drawn = hashlib.sha256(f"{seed}:{uid}".encode()).digest()[:8]
    return int.from_bytes(drawn, "big") < share * 2**64


def prompt_of(report: Report, section: Section, *, keep_marks: bool = False) -> str:
    """The text that is drawn, without what de-identification left of words that it took out.

    >>> prompt_of(Report("1", "", "No XXXX effusion. Normal chest x-XXXX.", (), ()), "impression")
    'No effusion. Normal chest.'
    """
    texts = {
        "impression": (report.impression,),
        "findings": (report.findings,),
        "both": (report.findings, report.impression),
    }[section]
    text = " ".join(text for text in texts if text)
    if keep_marks:
        return text
    text = re.sub(r"\s+([.,;:])", r"\1", " ".join(_MARKED.sub("", text).split()))
    text = re.sub(r"[,;:]+(?=[.,;:])", "", text)
    # What a sentence of marks alone leaves behind.
    return re.sub(r"(?:(?<=[.!?])\s*|^\s*)[.,;:]+", "", text).strip()


def _rows(
    collection: Collection, images: Mapping[str, str], choice: Choice
) -> tuple[list[tuple[bool, dict[str, str]]], list[str]]:
    """Whether of the test side, and the cells, of every row; and what was left out."""
    chosen: list[tuple[Report, str, str]] = []
    no_image, no_view, no_text, no_file = 0, 0, 0, 0
    for report in collection.reports:
        picked = _pick(report, collection.views, choice.views)
        there = [image for image in picked if image_key(image) in images]
        prompt = prompt_of(report, choice.section, keep_marks=choice.keep_marks)
        if not report.images:
            no_image += 1
        elif not picked:
            no_view += 1
        elif len(re.findall(r"\w+", prompt)) < choice.words:
            no_text += 1
        else:
            no_file += len(picked) - len(there)
            chosen += [(report, image, prompt) for image in there]
    labels = _labels(chosen, choice.labels)
    rows = [
        (
            is_test(report.uid, choice.test, choice.seed),
            {
                "id": image,
                "path": images[image_key(image)],
                "annotated_prompt": prompt,
                "chexpert_labels": _dictionary(values),
                "patientID": report.uid,
                "view": collection.views.get(image_key(image), ""),
                "mesh": "; ".join(report.mesh),
            },
        )
        for (report, image, prompt), values in zip(chosen, labels, strict=True)
    ]
    named = {image_key(image) for report in collection.reports for image in report.images}
    counts = (
        (no_image, "reports without an image are left out"),
        (no_view, "reports without a frontal image are left out"),
        (no_text, f"reports have fewer than {choice.words} words to draw and are left out"),
        (no_file, "images that reports name have no file and are left out"),
        (sum(key not in named for key in images), "image files belong to no report"),
    )
    return rows, [f"Open-I: {count} {what}." for count, what in counts if count]


def _pick(report: Report, views: Mapping[str, str], policy: Views) -> Sequence[str]:
    if policy == "first":
        return report.images[:1]
    if policy == "all":
        return report.images
    return [image for image in report.images if views.get(image_key(image)) == "Frontal"]


def _labels(
    rows: Sequence[tuple[Report, str, str]], source: Labels
) -> Iterable[NDArray[np.float64]]:
    if source == "mesh":
        return [mesh_labels(report.mesh) for report, _, _ in rows]
    if source == "none":
        return [np.full(len(FINDINGS), np.nan)] * len(rows)
    from chexgenbench_plugins.labelling.rules import RuleLabeller

    # Off what is drawn, not off the whole report: equal prompts then have equal labels, and no
    # model is asked for a finding that its prompt does not name.
    return RuleLabeller().label([prompt for _, _, prompt in rows])


def _dictionary(values: NDArray[np.float64]) -> str:
    return repr(
        {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(FINDINGS, values, strict=True)
        }
    )


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _code() -> str:
    """A hash of what reads and labels reports: tables of an older version are written anew."""
    import chexgenbench_plugins.labelling as labelling
    import chexgenbench_plugins.open_i as own

    code = hashlib.sha256()
    for package in (own, labelling):
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            code.update(path.read_bytes())
    return code.hexdigest()
