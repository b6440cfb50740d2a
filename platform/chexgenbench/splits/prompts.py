"""The prompts table: one row a distinct prompt, with labels, patient and real image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from chexgenbench.errors import ChexGenBenchError, UserError, unknown_name
from chexgenbench.files import digest, inside
from chexgenbench.images import BadImage, read_image
from chexgenbench.splits.condition import select_rows
from chexgenbench.splits.csv_file import bad_rows, read_csv
from chexgenbench.splits.labels import Uncertain, decide_uncertain, parse_label, parse_labels
from chexgenbench.types import FINDINGS, OVERALL

if TYPE_CHECKING:
    from numpy.typing import NDArray

Materialise = Callable[[Path, Sequence[str]], None]
Labeller = Callable[[Sequence[str]], "NDArray[np.float64]"]
LabelSource = Literal["column", "columns", "prompts", "nowhere"]

PUBLISHED_COLUMNS: Mapping[str, str] = {
    "id": "id",
    "prompt": "annotated_prompt",
    "path": "path",
    "labels": "chexpert_labels",
    "patient": "patientID",
    "view": "view",
}
"""Our name of each column that is used, and its name in the published annotation files."""

ROLES: tuple[str, ...] = (*PUBLISHED_COLUMNS, *FINDINGS)
"""What a column can be named for: those, or one finding's labels."""

_OPTIONAL = ("view",)


@dataclass(frozen=True, eq=False)
class PromptTable:
    """A validated split side, in the order of its file.

    Attributes:
        name: of the split.
        table: ``prompt_id``, ``prompt``, ``patient_id``, ``view``, ``image_path`` (text, missing
            where unknown), the 14 findings (float64: 1, 0, -1, NaN), ``line`` of the file, and
            ``copies``: how many rows of the file have this prompt.
        source_file: the CSV.
        images_root: the folder that image paths start from; None where there are no images.
        rows_read: rows of the file before de-duplication.
        uncertain: what -1 counts as in `subset_mask`; the table has it as it was read.
        conflicts: (line kept, line dropped) of rows of one prompt whose labels differ.
        materialise: draws the images of the given ids where they are missing.
        others: the file's other columns, row by row; numbers where all that is there is numbers,
            missing where a cell is empty.
        every: all rows of the file, also those that repeat a prompt; see `every_row`.
        labels_from: a column of dictionaries, columns of one finding each, the prompts (read by a
            labeller), or nowhere: no row has a label.
    """

    name: str
    table: pd.DataFrame
    source_file: Path
    images_root: Path | None
    rows_read: int
    uncertain: Uncertain = "keep"
    conflicts: Sequence[tuple[int, int]] = ()
    materialise: Materialise | None = None
    others: pd.DataFrame = field(default_factory=pd.DataFrame)
    every: pd.DataFrame | None = field(default=None, repr=False)
    labels_from: LabelSource = "nowhere"

    def __len__(self) -> int:
        return len(self.table)

    @property
    def duplicates(self) -> int:
        """Rows that repeat the prompt of an earlier one and are left out."""
        return int(self.table["copies"].sum()) - len(self)

    def every_row(self) -> PromptTable:
        """The table of all rows of the file, for what is about images and not about prompts."""
        if self.every is None:
            return self
        nothing = pd.DataFrame()
        return replace(self, table=self.every, conflicts=(), others=nothing, every=None)

    def limit(self, count: int) -> PromptTable:
        """The first `count` prompts."""
        return self.take(np.arange(min(count, len(self))))

    def take(self, rows: NDArray[np.int64]) -> PromptTable:
        """The rows at those positions, in that order."""
        table = self.table.iloc[rows].reset_index(drop=True)
        lines = set(table["line"])
        conflicts = [pair for pair in self.conflicts if pair[0] in lines]
        others = self.others.iloc[rows].reset_index(drop=True) if len(self.others) else self.others
        return replace(self, table=table, conflicts=conflicts, others=others)

    def subset_mask(self, name: str) -> NDArray[np.bool_]:
        """Bool [n]: the rows of ``overall``, or those where a finding's label is 1."""
        if name == OVERALL:
            return np.ones(len(self), np.bool_)
        if name not in FINDINGS:
            raise unknown_name("subset", name, (OVERALL, *FINDINGS))
        labels = self.table[name].to_numpy(np.float64)
        mask: NDArray[np.bool_] = decide_uncertain(labels, self.uncertain) == 1.0
        return mask

    def select(self, condition: str) -> NDArray[np.bool_]:
        """Bool [n]: the rows for which an SQL condition is true.

        Args:
            condition: over ``prompt_id, prompt, patient_id, view, image_path, line``, the findings
                (1, 0, -1 for uncertain, NULL) and every other column of the file, for example
                ``view = 'PA' and "Pleural Effusion" = 1``.

        Raises:
            UserError: it is no condition, names a column that is not there, or is not the same
                twice.
        """
        known = self.table.drop(columns=["copies"])
        # DuckDB's names have no case: the file's ViewPosition stands, a second "View" does not.
        taken = {name.lower() for name in known.columns}
        more = [name for name in self.others.columns if name.lower() not in taken]
        frame = pd.concat([known, self.others[more]], axis=1) if more else known
        return select_rows(frame, condition, "prompts")

    def patient_codes(self) -> NDArray[np.int64] | None:
        """int64 [n]: equal for rows of one patient; a row without one is a patient of its own.
        None where no row has one."""
        known = self.table["patient_id"].notna().to_numpy()
        if not known.any():
            return None
        codes, _ = pd.factorize(self.table["patient_id"])
        result = np.asarray(codes, np.int64)
        result[~known] = result.max() + 1 + np.arange(int((~known).sum()))
        return result

    @cached_property
    def _fingerprint(self) -> str:
        columns = ["prompt_id", "prompt", "patient_id", "view", "image_path", *FINDINGS]
        values = self.table[columns].astype(object).where(self.table[columns].notna(), None)
        return digest(values.to_numpy().tolist())

    def fingerprint(self) -> str:
        """SHA-256 of all that a result can depend on: ids, prompts, patients, labels, paths."""
        return self._fingerprint

    def has_image(self) -> NDArray[np.bool_]:
        """Bool [n]: whether the row names a real image."""
        if self.images_root is None:
            return np.zeros(len(self), np.bool_)
        named: NDArray[np.bool_] = self.table["image_path"].notna().to_numpy()
        return named

    def path(self, row: int) -> Path:
        """Where the real image of a row lies.

        Raises:
            BadImage: the path leads out of the images root.
        """
        if self.images_root is None:
            raise ValueError("the table has no images root")
        relative = str(self.table["image_path"].iloc[row])
        try:
            return inside(self.images_root, relative)
        except ValueError as error:
            raise BadImage(f"{error}.", hint="Image paths start from the images root.") from error

    def materialise_rows(self, rows: Sequence[int]) -> None:
        """Draws the images of these rows where the split is procedural and they are missing."""
        if self.materialise is not None:
            self.materialise(self.source_file, self.table["prompt_id"].iloc[list(rows)].tolist())


def read_prompts(
    path: Path,
    *,
    name: str,
    images_root: Path | None = None,
    columns: Mapping[str, str] | None = None,
    uncertain: Uncertain = "keep",
    materialise: Materialise | None = None,
    labeller: Labeller | None = None,
) -> PromptTable:
    """Reads and checks a CSV file of prompts.

    Rows of one prompt are one row: the first is kept, as published, and the same for both sides.

    Args:
        columns: our names of columns (see `ROLES`) to the file's, where they differ; an empty name
            says that the file has no such column. Without a column of labels, columns that bear the
            names of findings are taken.
        uncertain: what -1 counts as; kept apart by default.
        labeller: reads labels off the prompts, whatever the file has.

    Raises:
        UserError: a file that cannot be read, a missing column, or rows that cannot be used, each
            listed with its line.
    """
    raw = read_csv(path)
    given = dict(columns or {})
    names, labels_from = _label_columns(raw, given, labeller)
    chosen = _choose(path, raw, {**PUBLISHED_COLUMNS, **names}, given=names)
    cells = {role: raw[column].str.strip() for role, column in chosen.items() if role != "prompt"}
    prompts = raw[chosen["prompt"]]
    faults: list[tuple[int, str]] = [
        (int(line), "the prompt is empty") for line in raw["line"][prompts.str.strip() == ""]
    ]
    if labels_from == "columns":
        labels = _separate_labels(raw["line"], cells, faults)
    else:
        labels = _labels(raw["line"], cells.get("labels"), faults)
    if faults:
        raise bad_rows(path, faults)
    if labeller is not None:
        labels = _read_off(labeller, prompts.tolist())

    table = pd.DataFrame(
        {
            "prompt_id": cells["id"] if "id" in cells else raw["line"].map("row-{}".format),
            "prompt": prompts,
            "patient_id": _known(cells, "patient", raw.index),
            "view": _known(cells, "view", raw.index),
            "image_path": _known(cells, "path", raw.index),
            **dict(zip(FINDINGS, labels.T, strict=True)),
            "line": raw["line"],
        }
    )
    others = _others(raw, used={*chosen.values(), "line"})
    every = table.assign(copies=1)
    table, conflicts, kept = _distinct(table, labels)
    _check_ids(path, table)
    return PromptTable(
        name=name,
        table=table,
        source_file=path,
        images_root=images_root,
        rows_read=len(raw),
        uncertain=uncertain,
        conflicts=conflicts,
        materialise=materialise,
        others=others.iloc[kept].reset_index(drop=True),
        every=every if len(every) > len(table) else None,
        labels_from=labels_from,
    )


def _label_columns(
    raw: pd.DataFrame, given: Mapping[str, str], labeller: Labeller | None
) -> tuple[dict[str, str], LabelSource]:
    """The columns as they were given, with those of labels added, and where labels come from.

    Raises:
        UserError: labels are to come from two places.
    """
    separate = {role: column for role, column in given.items() if role in FINDINGS and column}
    one = given.get("labels", PUBLISHED_COLUMNS["labels"])
    said = [f"--column {role}={given[role]}" for role in ("labels", *separate) if given.get(role)]
    if labeller is not None:
        if said:
            raise UserError(f"The labels are read off the prompts, so {said[0]} has no use.")
        return {**given, "labels": ""}, "prompts"
    if separate and given.get("labels"):
        raise UserError(f"Labels come from {said[0]} or from {said[1]}: name one of them.")
    if not separate and "labels" not in given and one not in raw.columns:
        separate = {name: name for name in FINDINGS if name in raw.columns}
    if separate:
        return {**given, **separate, "labels": ""}, "columns"
    return dict(given), "column" if one else "nowhere"


def _others(raw: pd.DataFrame, used: set[str]) -> pd.DataFrame:
    columns: dict[str, pd.Series[Any]] = {}
    for name in raw.columns:
        if name not in used:
            column = raw[name].str.strip()
            there = column != ""
            numbers = pd.to_numeric(column.where(there), errors="coerce")
            numeric = there.any() and numbers[there].notna().all()
            columns[name] = numbers if numeric else column.where(there)
    return pd.DataFrame(columns, index=raw.index)


def check_images(prompts: PromptTable, *, decode: bool = False) -> list[tuple[int, BadImage]]:
    """The rows whose real image is missing or lies outside the root, with why.

    Missing images of a procedural split are drawn first.

    Args:
        decode: also decodes every image.
    """
    rows = np.flatnonzero(prompts.has_image()).tolist()
    prompts.materialise_rows(rows)
    bad: list[tuple[int, BadImage]] = []
    for row in rows:
        try:
            path = prompts.path(row)
            if decode:
                read_image(path)
            elif not path.is_file():
                raise BadImage(f"{path} is missing.")
        except BadImage as error:
            bad.append((row, error))
    return bad


def _choose(
    path: Path, raw: pd.DataFrame, names: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
    """Role to column of the file, for the roles that the file has."""
    there = [column for column in raw.columns if column != "line"]
    chosen: dict[str, str] = {}
    missing: list[str] = []
    for role, column in names.items():
        if column in there:
            chosen[role] = column
        elif (column or role == "prompt") and (role in given or role not in _OPTIONAL):
            missing.append(f"{column!r} ({role})")
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise UserError(
            f"{path} lacks the column{plural} {', '.join(missing)}; it has {', '.join(there)}.",
            hint="Name the file's own columns, for example --column prompt=caption; "
            "say that there is none with an empty name, for example --column labels=",
        )
    return chosen


def _labels(
    lines: pd.Series[int], texts: pd.Series[str] | None, faults: list[tuple[int, str]]
) -> NDArray[np.float64]:
    result = np.full((len(lines), len(FINDINGS)), np.nan)
    if texts is None:
        return result
    # Many rows have the same labels: each distinct text is parsed once.
    codes, distinct = pd.factorize(texts)
    parsed = np.full((len(distinct), len(FINDINGS)), np.nan)
    wrong: dict[int, str] = {}
    for number, text in enumerate(distinct):
        try:
            parsed[number] = parse_labels(text)
        except ValueError as error:
            wrong[number] = str(error)
    if wrong:
        faults += [
            (int(line), wrong[code])
            for line, code in zip(lines, codes.tolist(), strict=True)
            if code in wrong
        ]
    return parsed[codes]


def _separate_labels(
    lines: pd.Series[int], cells: Mapping[str, pd.Series[str]], faults: list[tuple[int, str]]
) -> NDArray[np.float64]:
    """Labels from a column a finding; a finding without a column is never mentioned."""
    result = np.full((len(lines), len(FINDINGS)), np.nan)
    for place, finding in enumerate(FINDINGS):
        if finding not in cells:
            continue
        codes, distinct = pd.factorize(cells[finding])
        parsed = np.full(len(distinct), np.nan)
        for number, text in enumerate(distinct):
            try:
                parsed[number] = parse_label(text)
            except ValueError as error:
                wrong = lines[codes == number]
                faults += [(int(line), f"the label of {finding} {error}") for line in wrong]
        result[:, place] = parsed[codes]
    return result


def _read_off(labeller: Labeller, prompts: Sequence[str]) -> NDArray[np.float64]:
    labels = np.asarray(labeller(prompts), np.float64)
    if labels.shape != (len(prompts), len(FINDINGS)):
        raise ChexGenBenchError(
            f"The split's labeller returned labels of shape {labels.shape} for {len(prompts)} "
            "prompts."
        )
    if not np.isin(labels[~np.isnan(labels)], (0.0, 1.0, -1.0)).all():
        raise ChexGenBenchError("The split's labeller returned something but 1, 0, -1 and NaN.")
    return labels


def _known(cells: Mapping[str, pd.Series[str]], role: str, index: pd.Index) -> pd.Series[str]:
    """The column with empty cells as missing ones; all missing where the file has none."""
    if role not in cells:
        return pd.Series([None] * len(index), index=index, dtype="str")
    return cells[role].where(cells[role] != "")


def _distinct(
    table: pd.DataFrame, labels: NDArray[np.float64]
) -> tuple[pd.DataFrame, list[tuple[int, int]], NDArray[np.int64]]:
    """One row a prompt, the lines of repeated ones with other labels, and the rows kept."""
    codes, _ = pd.factorize(table["prompt"])
    _, first, counts = np.unique(codes, return_index=True, return_counts=True)
    kept = first[codes]
    same = (labels == labels[kept]) | (np.isnan(labels) & np.isnan(labels[kept]))
    lines = table["line"].to_numpy()
    differing = np.flatnonzero(~same.all(axis=1))
    conflicts = [(int(lines[kept[row]]), int(lines[row])) for row in differing]
    distinct = table.iloc[first].assign(copies=counts).reset_index(drop=True)
    return distinct, conflicts, first


def _check_ids(path: Path, table: pd.DataFrame) -> None:
    faults = [(int(line), "the id is empty") for line in table["line"][table["prompt_id"] == ""]]
    first: dict[str, int] = {}
    for name, line in zip(table["prompt_id"], table["line"], strict=True):
        if name and first.setdefault(name, line) != line:
            faults.append((line, f"the id is that of line {first[name]}, with another prompt"))
    if faults:
        raise bad_rows(path, faults, "Mend the ids, or number the rows instead: --column id=")
