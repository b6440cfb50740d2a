"""An exported dataset: its rows as a CSV file in the published schema, its images as files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexgenbench import FINDINGS, UserError
from chexgenbench.files import atomic_path, digest, inside, read_json, sha256_bytes

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("id", "path", "annotated_prompt", "chexpert_labels", "patientID", "view")
_PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class ExportedFolder:
    """A dataset on the disk.

    Attributes:
        csv: its rows in the schema of `COLUMNS`; no patient, and the request as ``id``.
        images: the folder that the paths of `csv` start from.
        prompt_ids: of its rows.
        files: id of a row of `csv` to the name of its image.
        parquet: the files that hold the images; none for an image folder.
    """

    path: Path
    csv: Path
    images: Path
    prompt_ids: frozenset[str]
    files: Mapping[str, str]
    parquet: tuple[Path, ...]

    @classmethod
    def open(cls, path: Path, cache: Path) -> ExportedFolder:
        """Reads the table (not the images), and writes the CSV file where it is not there yet.

        Raises:
            UserError: it is no exported dataset, or one without prompts.
        """
        facts = read_json(path / _PROVENANCE) if (path / _PROVENANCE).is_file() else None
        if not isinstance(facts, dict) or "run" not in facts:
            raise UserError(
                f"{path} is no dataset that `chexgenbench dataset export` made: it has no "
                f"{_PROVENANCE}.",
                hint="Name the folder that the export was told; a relative one is looked for in "
                "the project folder (--home), and not in the current one.",
            )
        if not facts.get("prompts_included"):
            raise UserError(
                f"The dataset {path} was exported without its prompts, which a split needs.",
                hint="Export it again with --include-credentialed.",
            )
        parquet = tuple(sorted((path / "data").glob("train-*.parquet")))
        rows = _parquet_rows(parquet) if parquet else _folder_rows(path / "train")
        name = digest([[row[key] for key in sorted(row)] for row in rows])[:24]
        folder = cache / "exported" / name
        table = folder / "annotations.csv"
        if not table.is_file():
            with (
                atomic_path(table) as temporary,
                temporary.open("w", encoding="utf-8", newline="") as file,
            ):
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(_annotation(row) for row in rows)
        images = folder / "images" if parquet else path / "train"
        images.mkdir(exist_ok=True)
        prompts = frozenset(row["prompt_id"] for row in rows)
        files = {_request(row): row["file_name"] for row in rows}
        return cls(path, table, images, prompts, files, parquet)

    def refuse_shared(self, other: Path) -> None:
        """Raises `UserError` where images were made for prompts of the split side in `other`.

        It names lines and not prompts, whose ids lead to patients where the split is credentialed.
        """
        with other.open(encoding="utf-8-sig", newline="") as file:
            read = csv.DictReader(file)
            shared = {row["id"]: read.line_num for row in read if row.get("id") in self.prompt_ids}
        if shared:
            lines = ", ".join(map(str, list(shared.values())[:5]))
            raise UserError(
                f"{len(shared)} prompts that images of {self.path} were made for are rows of "
                f"{other.name}, such as those that end on line {lines}: training and test side "
                "would share their labels.",
                hint="Export images of training prompts (--pool), or accept it: "
                "--set exported.shared_prompts=true",
            )

    def write_images(self, ids: Sequence[str]) -> None:
        """Writes those images of a Parquet dataset that are not there yet."""
        import pyarrow.parquet as pq

        wanted = {name for name in ids if not self._place(self.files[name]).is_file()}
        for path in self.parquet if wanted else ():
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(64, columns=["image", *_NAMES]):
                    for row in batch.to_pylist():
                        if _request(row) in wanted:
                            self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        data = row["image"]["bytes"]
        if sha256_bytes(data) != row["sha256"]:
            raise UserError(f"The image {row['file_name']} of {self.path} is damaged.")
        with atomic_path(self._place(row["file_name"])) as temporary:
            temporary.write_bytes(data)

    def _place(self, name: str) -> Path:
        try:
            return inside(self.images, name)
        except ValueError as error:
            raise UserError(f"A file name of {self.path} cannot be used: {error}.") from error


_NAMES = ("file_name", "prompt_id", "repeat", "sha256")


def _parquet_rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    columns = [*_NAMES, "prompt", *FINDINGS]

    def read(path: Path) -> list[dict[str, Any]]:
        table: pa.Table = pq.read_table(path, columns=columns, partitioning=None)
        return table.to_pylist()

    return [row for path in paths for row in _checked(path, partial(read, path))]


def _folder_rows(folder: Path) -> list[dict[str, Any]]:
    import json

    path = folder / "metadata.jsonl"

    def read() -> list[dict[str, Any]]:
        lines = path.read_text(encoding="utf-8").splitlines()
        columns = [*_NAMES, "prompt", *FINDINGS]
        return [{name: values[name] for name in columns} for values in map(json.loads, lines)]

    return _checked(path, read)


def _checked(path: Path, read: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    import pyarrow as pa

    try:
        rows = read()
        for row in rows:
            _check(row)
        return rows
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read as an exported dataset: {type(error).__name__}.",
            hint="Export it again.",
        ) from error


def _check(row: Mapping[str, Any]) -> None:
    """Raises `ValueError` where a cell is not of its column's kind; JSON does not keep to any."""
    texts = ("file_name", "prompt_id", "sha256", "prompt")
    repeat = row["repeat"]
    if (
        not all(isinstance(row[name], str) for name in texts)
        or not isinstance(repeat, int)
        or repeat < 0
        or not all(row[name] in (None, 0, 1, -1) for name in FINDINGS)
    ):
        raise ValueError("a cell of another kind")
    for name in texts:
        row[name].encode("utf-8")  # JSON may hold half of a pair of surrogates


def _annotation(row: dict[str, Any]) -> dict[str, str]:
    labels = {name: None if row[name] is None else float(row[name]) for name in FINDINGS}
    return {
        "id": _request(row),
        "path": row["file_name"],
        "annotated_prompt": row["prompt"],
        "chexpert_labels": repr(labels),
        "patientID": "",
        "view": "",
    }


def _request(row: dict[str, Any]) -> str:
    return row["prompt_id"] if not row["repeat"] else f"{row['prompt_id']}~{row['repeat']}"
