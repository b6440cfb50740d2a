"""A user's own images: ``prompt_INFO.csv`` and a folder, joined to a split by prompt text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chexgenbench.errors import UserError
from chexgenbench.files import inside
from chexgenbench.splits.csv_file import bad_rows, read_csv
from chexgenbench.splits.prompts import PromptTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS = ("prompt", "img_savename")


@dataclass(frozen=True, eq=False)
class UserImages:
    """Images that answer prompts of a split.

    Attributes:
        rows: int64 [n], the row of the prompts table that each image answers.
        paths: the n files; they may be missing or no images.
        unmatched: rows of the CSV whose prompt the split does not have; they are left out.
        ambiguous: images whose prompt stands in several rows of the split's file; they answer the
            first, which is the one that was kept.
        repeated: images beyond the first of a prompt.
    """

    rows: NDArray[np.int64]
    paths: Sequence[Path]
    unmatched: int
    ambiguous: int
    repeated: int


def read_image_list(csv: Path, folder: Path) -> list[tuple[str, Path]]:
    """Prompt and file of each row; the files may be missing or no images.

    Raises:
        UserError: a file or column that is missing, an empty cell, or a file name that leads out
            of the folder.
    """
    table = read_csv(csv)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise UserError(
            f"{csv} lacks the column {', '.join(map(repr, missing))}.",
            hint="It needs the columns prompt and img_savename.",
        )
    if not folder.is_dir():
        raise UserError(f"The folder of images {folder} does not exist.")
    listed: list[tuple[str, Path]] = []
    faults: list[tuple[int, str]] = []
    for line, prompt, name in zip(
        table["line"], table["prompt"], table["img_savename"].str.strip(), strict=True
    ):
        if not prompt.strip():
            faults.append((line, "the prompt is empty"))
        try:
            listed.append((prompt, inside(folder, name)))
        except ValueError as error:
            faults.append((line, f"img_savename: {error}"))
    if faults:
        raise bad_rows(csv, faults)
    return listed


def read_user_images(csv: Path, folder: Path, prompts: PromptTable) -> UserImages:
    """Reads the CSV and joins it to the split by the exact text of the prompt.

    Raises:
        UserError: as `read_image_list`; or no prompt is one of the split.
    """
    listed = read_image_list(csv, folder)
    row_of = {text: row for row, text in enumerate(prompts.table["prompt"])}
    joined = np.asarray([row_of.get(prompt, -1) for prompt, _ in listed], np.int64)
    found = np.flatnonzero(joined >= 0)
    if not len(found):
        raise UserError(
            f"None of the {len(listed)} prompts of {csv} is one of the split {prompts.name!r}.",
            hint="Prompts are joined by their exact text; name the split they come from: --split.",
        )
    rows = joined[found]
    copies = prompts.table["copies"].to_numpy()
    return UserImages(
        rows=rows,
        paths=[listed[i][1] for i in found],
        unmatched=len(listed) - len(found),
        ambiguous=int((copies[rows] > 1).sum()),
        repeated=len(rows) - len(np.unique(rows)),
    )
