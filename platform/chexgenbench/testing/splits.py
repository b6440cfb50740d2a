"""Checks of a split: its files are whole, and no patient stands on both sides."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chexgenbench.errors import UserError
from chexgenbench.images import BadImage, read_image
from chexgenbench.splits.prompts import PromptTable, read_prompts
from chexgenbench.testing.common import shorten
from chexgenbench.testing.results import Fault, Skip
from chexgenbench.testing.subject import Subject
from chexgenbench.types import SplitSource

LOOKED_AT = 5000
"""Rows a side whose image file is looked for."""

DECODED = 16

_OPTION = re.compile(r"--column (\w+)=(\w*)")

_PATIENTS = re.compile(r"credential|physionet|data use|\bDUA\b|restricted|confidential", re.I)


def source(subject: Subject) -> str:
    """It names files that are there, and is cheap."""
    found = _source(subject)
    for name, path in (("test", found.test), ("train", found.train)):
        if path is not None and not Path(path).is_file():
            raise Fault(
                f"the {name} table is not there: {path}",
                "raise UserError(message, hint=...) in source() and say how to get it",
            )
    roots = {"images_root": found.images_root, "train_images_root": found.train_images_root}
    gone = [name for name, root in roots.items() if root is not None and not root.is_dir()]
    if gone and found.materialise is None:
        raise Fault(f"{shorten(gone)} is no folder: {roots[gone[0]]}")
    again = subject.create().source()
    if (again.test, again.train) != (found.test, found.train):
        raise Fault("source() names other files the second time")
    return f"{found.test.name}" + (f" and {found.train.name}" if found.train else "")


def _source(subject: Subject) -> SplitSource:
    if "source" not in subject.kept:
        try:
            found = subject.instance.source()
        except UserError as error:
            if not error.hint:
                raise Fault(f"source() refuses without a hint: {error.message}") from error
            raise Skip(f"not here: {error.message}") from error
        if not isinstance(found, SplitSource):
            raise Fault(f"source() returns a {type(found).__name__}, not a SplitSource")
        subject.kept["source"] = found
    kept: SplitSource = subject.kept["source"]
    return kept


def _tables(subject: Subject) -> dict[str, PromptTable]:
    found = _source(subject)
    root = found.images_root
    train_root = found.train_images_root or root
    places = {
        "test": (found.test, root),
        "training": (found.train, train_root),
    }
    tables: dict[str, PromptTable] = subject.kept.setdefault("tables", {})
    for side, (path, images) in places.items():
        if path is None or side in tables:
            continue
        try:
            tables[side] = read_prompts(
                path,
                name=subject.spec.name,
                images_root=images,
                columns=found.columns,
                materialise=found.materialise,
                labeller=found.labeller,
            )
        except UserError as error:
            # The author names columns in the plugin, where others type an option.
            hint = _OPTION.sub(r'SplitSource(columns={"\1": "\2"})', error.hint or "")
            raise Fault(
                error.message, f"{hint} Try: chexgenbench splits validate {shlex.quote(str(path))}"
            ) from error
    return tables


def table(subject: Subject) -> str:
    """Each side is a table of prompts with known labels."""
    said = []
    for side, prompts in _tables(subject).items():
        if not len(prompts):
            raise Fault(f"the {side} side has no prompt")
        said.append(f"{side}: {len(prompts)} prompts, {prompts.rows_read} rows")
    return "; ".join(said)


def images(subject: Subject) -> str:
    """Real images are found, and the first ones can be read."""
    said = []
    for side, prompts in _tables(subject).items():
        rows = prompts.has_image().nonzero()[0].tolist()
        if not rows:
            said.append(f"{side}: none named")
            continue
        head = rows[:DECODED]
        prompts.materialise_rows(head)
        procedural = prompts.materialise is not None
        bad = _unreadable(prompts, head, decode=True)
        if not procedural:
            bad += _unreadable(prompts, rows[DECODED:LOOKED_AT], decode=False)
        if bad:
            raise Fault(
                f"the {side} side: {bad[0]} ({len(bad)} rows without an image that can be used)",
                "image paths start from images_root, and none leads out of it",
            )
        drawn = ", drawn when they are needed" if procedural else ""
        said.append(f"{side}: {len(rows)}{drawn}")
    if all(each.endswith("none named") for each in said):
        raise Skip("it has no real images; only metrics that need none can be taken")
    return "; ".join(said)


def _unreadable(prompts: PromptTable, rows: Sequence[int], *, decode: bool) -> list[str]:
    bad = []
    for row in rows:
        line = prompts.table["line"].iloc[row]
        why = _why_unreadable(prompts, row, decode=decode)
        if why:
            bad.append(f"line {line} of {prompts.source_file.name}: {why}")
    return bad


def _why_unreadable(prompts: PromptTable, row: int, *, decode: bool) -> str:
    """Empty where nothing is wrong; without the path, which may name a patient."""
    try:
        path = prompts.path(row)
    except BadImage:
        return "the path leads out of the folder of the images"
    if not path.is_file():
        return "the image is missing"
    if decode:
        try:
            read_image(path)
        except BadImage:
            return "the file is no image that can be read"
    return ""


def patients(subject: Subject) -> str:
    """No patient and no image stands on both sides."""
    from chexgenbench.workflow.tasks import Tables, find_leakage

    tables = _tables(subject)
    if "training" not in tables:
        raise Skip("it has no training side")
    overlap = find_leakage(Tables(tables["test"], tables["training"], 0))
    if overlap:
        raise Fault(
            f"{len(overlap)} rows stand on both sides: {shorten(overlap, 2)}",
            "divide by patient; privacy and utility scores are refused otherwise",
        )
    known = [bool(each.table["patient_id"].notna().any()) for each in tables.values()]
    return "" if all(known) else "no patient is named on one side, so only images were compared"


def credentialed(subject: Subject) -> str:
    """A licence that restricts the data goes with the flag that keeps them off pages."""
    said = f"{subject.spec.licence} {subject.spec.summary}"
    restricted = subject.spec.credentialed
    with suppress(Skip, Fault):  # what is wrong with the source is said by its own check
        of_source = _source(subject).credentialed
        restricted = restricted if of_source is None else of_source
    if restricted:
        return "credentialed: texts and images stay off pages and exports"
    if _PATIENTS.search(said):
        raise Fault(
            f"the licence reads {subject.spec.licence!r} and credentialed is False",
            "set credentialed=True, or texts and images of patients go to pages and exports",
        )
    return "open: texts and images go to pages; patients' data need credentialed=True"
