"""The errors that people see: what was wrong, where, and what to do next."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

PLUGIN_FAULTS = (Exception, SystemExit)
"""What a plugin's code may raise; a ``sys.exit(0)`` in it must not pass for a success."""


class ChexGenBenchError(Exception):
    """Something failed while it ran; the command ends with exit code 1.

    Args:
        message: what went wrong, naming the file, row or plugin.
        hint: what to do next, shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(ChexGenBenchError):
    """Bad input that the user can mend; the command ends with exit code 2."""

    exit_code = 2


def is_disk_fault(error: BaseException) -> bool:
    """Whether the disk is full, read-only or broken, which ends a command, whoever noticed it.

    Other kinds of `OSError` are raised for many things: a missing weight file, a lost connection,
    a file that is no image.
    """
    faults = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
    return isinstance(error, OSError) and error.errno in faults


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that nobody registered, with the nearest one suggested.

    >>> print(unknown_name("model", "orcale", ["oracle", "noise"]).hint)
    Did you mean 'oracle'? Known: noise, oracle.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return UserError(
        f"There is no {kind} named {name!r}.",
        hint=f"{guess}Known: {', '.join(names) or 'none'}.",
    )


def harmless(text: str) -> str:
    """The text without what would move the cursor of a terminal or turn its direction of writing,
    such as a worker's message or a file's name may hold; its lines stay.

    >>> harmless("a\\x1b[2Jb\\tc\\nd")
    'a\ufffd[2Jb c\\nd'
    """
    return "".join(
        c if c.isprintable() or c == "\n" else (" " if c.isspace() else "\N{REPLACEMENT CHARACTER}")
        for c in text
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a sentence: without a terminal's colours and the full
    stop at its end; the error's kind where it is empty.

    >>> first_line(ValueError("\\x1b[1mno\\x1b[0m header.\\nand so on"))
    'no header'
    >>> first_line(EOFError("..."))
    'EOFError'
    """
    text = re.sub("\x1b\\[[0-9;]*m", "", str(error)).strip()
    return text.partition("\n")[0].strip().rstrip(".") or type(error).__name__


@contextmanager
def stoppable() -> Iterator[None]:
    """For work by DuckDB, which hears of Ctrl-C and raises a `RuntimeError` in its place.

    Raises:
        KeyboardInterrupt: in the place of that.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error) == "Query interrupted":
            raise KeyboardInterrupt from error
        raise
