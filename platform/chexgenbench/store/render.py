"""A table as people or programs want it: aligned text, CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from chexgenbench.errors import UserError, harmless, unknown_name
from chexgenbench.files import atomic_path, escaped

Format = Literal["table", "csv", "json", "parquet"]
FORMATS: tuple[Format, ...] = ("table", "csv", "json", "parquet")

_NARROW = 9  # columns of text below this width are not worth reading
_ONE_WORD = 24  # names and ids up to this width are not folded


def render(table: pa.Table, format: Format = "table", out: Path | None = None) -> str | bytes:
    """`table` in a format; also written to `out`, atomically, where that is given.

    Numbers have full precision in CSV, JSON and Parquet, and four digits in a table. The result is
    text, except for Parquet.
    """
    content: str | bytes
    if format == "table":
        content = _text(table)
    elif format == "csv":
        content = _csv(table)
    elif format == "json":
        content = _json(table)
    elif format == "parquet":
        sink = io.BytesIO()
        pq.write_table(table, sink)
        content = sink.getvalue()
    else:
        raise unknown_name("format", format, FORMATS)
    if out is not None:
        data = content if isinstance(content, bytes) else content.encode("utf-8")
        try:
            with atomic_path(out) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error.strerror or error}.") from error
    return content


def _columns(table: pa.Table) -> list[list[Any]]:
    return [table.column(index).to_pylist() for index in range(table.num_columns)]


def _plain(value: Any) -> Any:
    """`value` as JSON has it; what is not a number there is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple | dict):
        return json.dumps(_plain(value), ensure_ascii=False)
    return str(_plain(value))


def _csv(table: pa.Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in zip(*_columns(table), strict=True):
        writer.writerow([_cell(value) for value in row])
    return buffer.getvalue()


def _json(table: pa.Table) -> str:
    names: list[str] = []
    for name in table.column_names:
        unique, number = name, 1
        while unique in names:
            unique, number = f"{name}_{number}", number + 1
        names.append(unique)
    rows = [
        dict(zip(names, map(_plain, row), strict=True))
        for row in zip(*_columns(table), strict=True)
    ]
    return escaped(json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return harmless(_cell(value))


def _text(table: pa.Table) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if table.num_columns == 0:
        return "\n"
    width = shutil.get_terminal_size((120, 40)).columns
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, force_terminal=False)
    cells = [[_shown(value) for value in column] for column in _columns(table)]
    numeric = [
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        for kind in table.schema.types
    ]
    stiff = [  # numbers and names never fold, text may
        number or all(len(cell) <= _ONE_WORD and " " not in cell for cell in column)
        for number, column in zip(numeric, cells, strict=True)
    ]
    needed = 0
    for name, column, whole in zip(table.column_names, cells, stiff, strict=True):
        widest = max([len(name), *map(len, column)])
        needed += 2 + (widest if whole else min(widest, _NARROW))
    if needed <= width:
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name, number, whole in zip(table.column_names, numeric, stiff, strict=True):
            grid.add_column(
                Text(name),
                justify="right" if number else "left",
                no_wrap=whole,
                overflow="fold",
            )
        for row in zip(*cells, strict=True):
            grid.add_row(*map(Text, row))
        console.print(grid)
    else:  # too wide for the terminal: a row becomes a block of lines
        for row in zip(*cells, strict=True):
            block = Table(box=None, show_header=False, pad_edge=False)
            block.add_column(no_wrap=True)
            block.add_column(overflow="fold")
            for name, value in zip(table.column_names, row, strict=True):
                block.add_row(Text(name), Text(value))
            console.print(block)
            console.print()
    rows = "1 row" if table.num_rows == 1 else f"{table.num_rows} rows"
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join([*lines, f"({rows})"]) + "\n"
