"""What commands print: JSON alone on standard output, and listings that fit the screen."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from chexgenbench.errors import harmless
from chexgenbench.files import escaped

AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="As JSON, alone on standard output; docs/using_the_cli.md has the keys.",
        show_default="off",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress and no remarks; results stay.", show_default="off"
    ),
]
HomeFolder = Annotated[
    Path | None,
    typer.Option("--home", help="Project folder.", show_default="CHEXGENBENCH_HOME, or here"),
]

_NARROW = 12
"""Cells of a folded column; where less is left, each row becomes a block of lines."""


def print_json(value: Any) -> None:
    """One JSON value with its keys in the order given; what JSON has no number for is null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False)
    print(escaped(text))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def remark(text: str) -> None:
    """A line beside the result, on standard error."""
    print(harmless(text), file=sys.stderr)


def screen_width() -> int | None:
    """Cells that a line may take: COLUMNS, else the terminal's; None where neither is known, as in
    a pipe, whose reader wants an entry on a line."""
    if os.environ.get("COLUMNS", "").isdecimal() or (sys.stdout and sys.stdout.isatty()):
        return max(20, shutil.get_terminal_size().columns)
    return None


def print_listing(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns under heads (none, if all are empty), folded at spaces to fit the screen.

    The first column, and any without a space, is never folded: names stay whole. Where the rest has
    no room, a row becomes a block of lines.
    """
    cells = [[harmless(str(cell)).replace("\n", " ") for cell in row] for row in rows]
    table = [list(heads), *cells] if any(heads) else cells
    if not table:
        return
    natural = [max(map(_cells, column)) for column in zip(*table, strict=True)]
    widths = _fitted(table, natural)
    if widths is None:
        _print_blocks(heads, cells)
        return
    for row in table:
        folded = [
            _fold(cell, width) if width < whole else [cell]
            for cell, width, whole in zip(row, widths, natural, strict=True)
        ]
        for at in range(max(map(len, folded))):
            line = [lines[at] if at < len(lines) else "" for lines in folded]
            padded = [
                f"{text}{' ' * (width - _cells(text))}"
                for text, width in zip(line, widths, strict=True)
            ]
            print("  ".join(padded).rstrip())


def _fitted(table: Sequence[Sequence[str]], natural: Sequence[int]) -> list[int] | None:
    """The widths of the columns; None where they do not fit side by side."""
    most = screen_width()
    gaps = 2 * (len(natural) - 1)
    if most is None or sum(natural) + gaps <= most:
        return list(natural)
    soft = [
        at > 0 and any(" " in cell for cell in column)
        for at, column in enumerate(zip(*table, strict=True))
    ]
    left = most - gaps - sum(w for w, folds in zip(natural, soft, strict=True) if not folds)
    widths = list(natural)
    # The narrow ones first: what they do not need goes to the others.
    waiting = sorted((at for at, folds in enumerate(soft) if folds), key=lambda at: natural[at])
    while waiting:
        share = left // len(waiting)
        at = waiting.pop(0)
        widths[at] = min(natural[at], share)
        left -= widths[at]
        if widths[at] < min(natural[at], _NARROW):
            return None
    return widths if left >= 0 else None


def _print_blocks(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    for row in cells:
        print_text(row[0])
        for head, cell in zip(heads[1:], row[1:], strict=True):
            if cell:
                print_text(f"{head}: {cell}" if head else cell, indent=2)


def print_text(text: str, *, indent: int = 0, hanging: int = 2) -> None:
    """A line of text, folded at spaces to fit the screen; a path is never broken.

    Args:
        indent: spaces before it.
        hanging: further spaces before its folded part.
    """
    text = harmless(text)
    most = screen_width()
    first = " " * indent
    if most is None or indent + _cells(text) <= most:
        print(first + text)
        return
    head, *others = _fold(text, most - indent, whole=True)
    print(first + head)
    lead = first + " " * hanging
    for line in _fold(text[len(head) + 1 :], most - len(lead), whole=True) if others else ():
        print(lead + line)


def _fold(text: str, width: int, *, whole: bool = False) -> list[str]:
    """Lines of at most `width` cells; a longer word is cut, or kept `whole` on a line of its own.

    >>> _fold("one two three", 7), _fold("\u80f8\u90e8\u30ec\u30f3\u30c8", 4)
    (['one two', 'three'], ['\u80f8\u90e8', '\u30ec\u30f3', '\u30c8'])
    """
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if _cells(longer) <= width or (whole and not line):
            line = longer
            continue
        if line:
            lines.append(line)
        while not whole and _cells(word) > width:
            cut = next(n for n in range(len(word), 0, -1) if n == 1 or _cells(word[:n]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return [*lines, line]


def _cells(text: str) -> int:
    """How wide a terminal shows it: ideographs take two cells."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def own_command() -> str:
    """What to type to call this program again: its path where it is not on the PATH."""
    own = Path(sys.argv[0])
    found = shutil.which(own.name)
    if found and Path(found).resolve() == own.resolve():
        return own.name
    try:
        return shlex.quote(str(own.absolute().relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(str(own))
