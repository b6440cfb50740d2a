"""The files of a dataset: Parquet shards or an image folder, in the layout that ``datasets`` opens.

Neither needs code of its own: the Parquet files say in their metadata which column is an image, and
an image folder has its table in ``metadata.jsonl``. That table is not CSV: it keeps types and
missing values, and no spreadsheet takes a prompt that begins with ``=`` for a formula.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import Timeout

from chexgenbench.datasets.plain import JPEG, PNG, plain_image
from chexgenbench.datasets.rows import Rows
from chexgenbench.downloads import size_text
from chexgenbench.errors import UserError
from chexgenbench.files import TEMPORARY, file_lock, sha256_bytes
from chexgenbench.types import FINDINGS

if TYPE_CHECKING:
    from chexgenbench.progress import Advance

Format = Literal["parquet", "imagefolder"]

SHARD_BYTES = 500_000_000
"""Image bytes in a Parquet file; Hugging Face's own size."""

_GROUP_BYTES = 32_000_000
"""Image bytes in memory at a time, and in a row group."""

_FOLDER_FILES = 1000
"""Files of a folder: the hub takes no folder of more than 10,000."""


def features(rows: Rows) -> dict[str, str]:
    """Column to type, as ``datasets`` names types."""
    types = dict.fromkeys(FINDINGS, "int8") | dict.fromkeys(rows.scores, "float64")
    types |= {"seed": "int64", "repeat": "int64"}
    return {"image": "image"} | {name: types.get(name, "string") for name in rows.columns}


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, which takes its place when the block ends without an error.

    What a killed export left beside `out` goes when the next one begins.

    Raises:
        UserError: `out` is there and not empty, or another export writes it.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError(
            f"{out} is there already, and is no empty folder.",
            hint="Name a new folder, or remove that one.",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.parent / f"{TEMPORARY}{out.name}"
    lock = Path(f"{aside}.lock")
    try:
        with file_lock(lock, timeout=0):
            try:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                yield aside
                _sync(aside)
                aside.replace(out)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(f"Another export is writing {out}.", hint="Wait for it.") from error


def check_space(folder: Path, rows: Rows) -> None:
    """Raises `UserError` where the disk of `folder` is too small, or an image is gone."""
    needed = sum(_sizes(rows)) + 2000 * len(rows) + 1_000_000
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"The disk of {folder.parent} has {size_text(free)} free, and the dataset needs "
            f"{size_text(needed)}.",
            hint="Free some, or name a folder on another disk.",
        )


def write_files(folder: Path, rows: Rows, format: Format, advance: Advance) -> int:
    """Writes the images and their table; returns how many files lost metadata.

    Raises:
        UserError: an image is gone or not what the run scored.
    """
    files = _Files(rows)
    if format == "parquet":
        _write_parquet(folder / "data", rows, files, advance)
    else:
        _write_images(folder / "train", rows, files, advance)
    return files.changed


def data_files(format: Format) -> str:
    """The pattern of the files of the split ``train``, from the dataset's folder."""
    return "data/train-*.parquet" if format == "parquet" else "train/**"


class _Files:
    """The files of the images as they leave, see `plain_image`.

    Attributes:
        changed: how many are not, byte for byte, what the run scored.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._names = {name.lower() for name in rows.table["file_name"]}
        self.changed = 0

    def get(self, i: int) -> tuple[bytes, str, str]:
        """Content, name and SHA-256 of the file of row `i`."""
        data, path = _read(self._rows, i), self._rows.paths[i]
        name, sha256 = (str(self._rows.table[column].iloc[i]) for column in ("file_name", "sha256"))
        plain = plain_image(path, data)
        if plain == data:
            return data, name, sha256
        self.changed += 1
        if plain.startswith(PNG) and not data.startswith(PNG):
            name = self._as_png(name)
        return plain, name, sha256_bytes(plain)

    def _as_png(self, name: str) -> str:
        """`name` with the suffix of PNG, unlike the names of all others."""
        stem, number = PurePosixPath(name).stem, 1
        name = f"{stem}.png"
        while name.lower() in self._names:
            number += 1
            name = f"{stem}.{number}.png"
        self._names.add(name.lower())
        return name


def _write_parquet(folder: Path, rows: Rows, files: _Files, advance: Advance) -> None:
    folder.mkdir()
    types = features(rows)
    schema = _schema(types)
    values = rows.table[[name for name in types if name != "image"]]
    sizes = _sizes(rows)
    shards = _cut(sizes, SHARD_BYTES)
    for number, shard in enumerate(shards):
        path = folder / f"train-{number:05d}-of-{len(shards):05d}.parquet"
        # A dictionary of images would be the images once more.
        plain = [name for name in types if name != "image"]
        with pq.ParquetWriter(path, schema, use_dictionary=plain, write_page_index=True) as writer:
            for part in _cut(sizes[shard], _GROUP_BYTES):
                chosen = range(len(rows))[shard][part]
                contents, names, hashes = zip(*map(files.get, chosen), strict=True)
                images = [
                    {"bytes": data, "path": name}
                    for data, name in zip(contents, names, strict=True)
                ]
                written = values.iloc[chosen.start : chosen.stop]
                table = pa.Table.from_pandas(
                    written.assign(file_name=names, sha256=hashes),
                    schema=pa.schema([f for f in schema if f.name != "image"]),
                    preserve_index=False,
                )
                column = pa.array(images, schema.field("image").type)
                table = table.add_column(0, schema.field("image"), column)
                writer.write_table(table.replace_schema_metadata(schema.metadata))
                advance(len(images))


def _schema(types: dict[str, str]) -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrow = {"image": image, "string": pa.string(), "float64": pa.float64()}
    arrow |= {"int8": pa.int8(), "int64": pa.int64()}
    described = {
        name: {"_type": "Image"} if kind == "image" else {"dtype": kind, "_type": "Value"}
        for name, kind in types.items()
    }
    return pa.schema(
        [pa.field(name, arrow[kind]) for name, kind in types.items()],
        metadata={"huggingface": json.dumps({"info": {"features": described}})},
    )


def _write_images(folder: Path, rows: Rows, files: _Files, advance: Callable[[int], None]) -> None:
    folder.mkdir()
    columns = [name for name in features(rows) if name != "image"]
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for i, record in enumerate(rows.table[columns].to_dict("records")):
            data, own_name, sha256 = files.get(i)
            name = f"{i // _FOLDER_FILES:03d}/{own_name}"
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            line = {str(key): _json(value) for key, value in record.items()}
            line |= {"file_name": name, "sha256": sha256}
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            advance(1)


def _json(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _read(rows: Rows, i: int) -> bytes:
    path = rows.paths[i]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise missing_image(path) from error
    if sha256_bytes(data) != rows.table["sha256"].iloc[i]:
        raise changed_image(path)
    return data


def _sizes(rows: Rows) -> list[int]:
    """Bytes of each image as it will be written, about, and not too few."""
    return [_size(path) for path in rows.paths]


def _size(path: Path) -> int:
    from PIL import Image

    try:
        with path.open("rb") as file:
            if file.read(8).startswith((PNG, JPEG)):
                return path.stat().st_size
        with Image.open(path) as image:  # it becomes PNG
            return max(path.stat().st_size, 3 * image.width * image.height)
    except FileNotFoundError as error:
        raise missing_image(path) from error
    except OSError:
        return path.stat().st_size  # no image: `_read` says what it is


def changed_image(path: Path) -> UserError:
    """The error for a file with other content than the run's."""
    return UserError(
        f"{path} is not the image that the run scored: its content has changed.",
        hint="Delete it and repeat the run's command, which makes it again.",
    )


def missing_image(path: Path) -> UserError:
    """The error for a file that is not there."""
    return UserError(
        f"{path} is missing.", hint="Repeat the run's command, which makes it again; then export."
    )


def _cut(sizes: Sequence[int], most: int) -> list[slice]:
    """Consecutive parts of at most `most` bytes, or of one item that is larger."""
    parts, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > most:
            parts.append(slice(start, i))
            start, total = i, 0
        total += size
    return [*parts, slice(start, len(sizes))]


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
