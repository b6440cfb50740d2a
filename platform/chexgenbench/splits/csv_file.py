"""A CSV file as a table of text with line numbers, its structure checked."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chexgenbench.errors import UserError
from chexgenbench.files import opened

if TYPE_CHECKING:
    import pandas as pd

LARGEST_FIELD = 2**24
MOST_COLUMNS = 2000
_LONGEST_LINE = 2**26
_BLOCK = 2**24
_SHOWN = 20
_SAVE = "Save it as UTF-8."


def read_csv(path: Path) -> pd.DataFrame:
    """All cells as text, and the number of each record's first line in a last column ``line``; one
    of the file with that name is left out.

    pandas knows no line numbers and fills short rows in silence, so a first pass looks at the
    structure alone.

    Raises:
        UserError: missing, no file, empty, not UTF-8, NUL bytes, an endless line, ragged or cut
            rows, repeated columns.
    """
    text = _text(path)
    header, lines = _structure(path, text)
    import pandas as pd

    table = pd.read_csv(
        io.StringIO(text), dtype=str, keep_default_na=False, na_filter=False, index_col=False
    )
    table.columns = pd.Index(header)
    if len(table) != len(lines):
        # pandas drops lines of white space alone, which the structure check counts as short rows.
        raise UserError(
            f"{path} cannot be read: {len(lines)} records, of which {len(table)} parse."
        )
    return table.drop(columns="line", errors="ignore").assign(line=lines)


def bad_rows(path: Path, faults: Sequence[tuple[int, str]], hint: str | None = None) -> UserError:
    """One error for all faulty rows of a file, by line, the first of them listed."""
    listed = [f"line {line}: {fault}" for line, fault in sorted(faults)[:_SHOWN]]
    more = f"\n... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    rows = "1 row" if len(faults) == 1 else f"{len(faults)} rows"
    return UserError(f"{rows} of {path} cannot be used:\n" + "\n".join(listed) + more, hint=hint)


def _text(path: Path) -> str:
    data = _bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line} is not UTF-8.", hint=_SAVE) from error
    if not text.strip():
        raise UserError(f"The file {path} is empty.")
    return text


def _bytes(path: Path) -> bytearray:
    """The content, given up at the first block that no CSV file has, however much follows."""
    data = bytearray()
    line, begin = 1, 0  # the line that the end of `data` is in, and where it begins
    with opened(path) as file:
        while block := file.read(_BLOCK):
            if not data and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError(f"{path} is UTF-16.", hint=_SAVE)
            if b"\0" in block:
                line += block[: block.index(b"\0")].count(b"\n")
                raise UserError(f"{path}, line {line} holds a NUL byte, so it is no CSV text.")
            data += block
            lines = block.count(b"\n")
            if lines:
                line, begin = line + lines, data.rindex(b"\n") + 1
            if len(data) - begin > _LONGEST_LINE:
                raise UserError(
                    f"{path}, line {line} has more than {_LONGEST_LINE >> 20} MiB, so it is no "
                    "CSV text."
                )
    return data


def _structure(path: Path, text: str) -> tuple[list[str], list[int]]:
    """The header, and the first line of each record."""
    limit = csv.field_size_limit(LARGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    lines: list[int] = []
    faults: list[tuple[int, str]] = []
    start = 1
    try:
        for record in reader:
            if record and not header:
                header = record
            elif record:
                lines.append(start)
                if len(record) != len(header):
                    faults.append((start, f"{len(record)} cells, the header has {len(header)}"))
            start = reader.line_num + 1
    except csv.Error as error:
        # The commonest cause is a file that was cut: its last quoted cell never ends.
        raise UserError(
            f"{path}, line {start}: {error}.",
            hint="The file may be cut off there, or a quotation mark is not closed.",
        ) from error
    finally:
        csv.field_size_limit(limit)
    if len(header) > MOST_COLUMNS:
        raise UserError(f"{path} has {len(header)} columns; at most {MOST_COLUMNS} are read.")
    repeated = sorted(name for name, times in Counter(header).items() if times > 1)
    if repeated:
        raise UserError(f"{path} has the column {', '.join(map(repr, repeated))} more than once.")
    if faults:
        raise bad_rows(path, faults, "The file may be cut off there, or a cell lacks quotes.")
    if not lines:
        raise UserError(f"The file {path} has a header and no rows.")
    return header, lines
