"""How a command ends: its exit code, and the last lines of standard error.

0 well, 1 something failed while it ran, 2 bad input or a disk that cannot be written, 130 Ctrl-C,
141 nobody read the output to its end.
"""

from __future__ import annotations

import difflib
import errno
import io
import os
import shlex
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from types import FrameType
from typing import Any

import typer

from chexgenbench.cli.output import own_command, remark
from chexgenbench.errors import ChexGenBenchError

FAILED, BAD_INPUT, CTRL_C, NO_READER = 1, 2, 130, 141

EXIT_CODES = (
    "Exit codes: 0 well, 1 something failed while it ran, 2 bad input or a disk that cannot be "
    "written, 130 stopped with Ctrl-C."
)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

DEBUG = "CHEXGENBENCH_DEBUG"
"""The environment variable that, set to 1, shows where an unexpected error came from."""

_GOES_ON = (
    ("run",),
    ("generate",),
    ("evaluate",),
    ("worker",),
    ("merge",),
    ("reference", "build"),
)
"""Commands that, repeated, take up their work where it was left."""


def run_to_its_end(app: typer.Typer) -> int:
    """Runs the command of `sys.argv` and returns its exit code; what went wrong is said.

    The first Ctrl-C ends it in order, a second one at once.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of another encoding
    # A shell's background job ignores Ctrl-C, and goes on doing so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _first_ctrl_c)
    code = _code(app, nowhere=_is_nowhere())
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        code = NO_READER
    except OSError as error:
        remark(f"Error: standard output: {error.strerror}.")
        code = BAD_INPUT
    if code == NO_READER:
        # What is still in the buffer would fail again when Python ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _code(app: typer.Typer, *, nowhere: bool) -> int:
    try:
        ended = app(standalone_mode=False)
        code = ended if isinstance(ended, int) else 0
    except ChexGenBenchError as error:
        _say(error.message, error.hint)
        return error.exit_code
    except typer.TyperException as error:
        return _usage(error)
    except typer.Abort:
        remark("Nothing was changed.")
        return FAILED
    except OSError as error:
        return _of_the_system(error)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            # What draws the help turns its output away from a pipe that nobody reads.
            if _is_nowhere() and not nowhere:
                return NO_READER
            return _of_the_system(end.__context__)
        code = end.code if isinstance(end.code, int) else FAILED if end.code else 0
    except KeyboardInterrupt:
        code = CTRL_C
    except Exception as error:
        return _unexpected(error)
    if code == CTRL_C:
        _stopped()
    return code


def _say(message: str, hint: str | None) -> None:
    remark(f"Error: {message}")
    if hint:
        remark(hint)


def _usage(error: typer.TyperException) -> int:
    """Words or options that make no command, as any other error is shown."""
    message = error.format_message().strip()
    context: Any = getattr(error, "ctx", None)
    if not message:  # no words at all: the help was shown
        return error.exit_code
    hint = ""
    unknown = getattr(error, "option_name", None)
    if unknown is not None and context is not None and "No such option" in message:
        known = [name for each in context.command.get_params(context) for name in each.opts]
        message = f"No such option: {unknown}."
        close = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}? " if close else ""
    elif " Did you mean " in message:
        message, _, guess = message.partition(" Did you mean ")
        hint = f"Did you mean {guess} "
    if context is not None:
        hint += f"See: {context.command_path} --help"
    _say(message, hint)
    return error.exit_code


def _of_the_system(error: OSError) -> int:
    if isinstance(error, BrokenPipeError) and _is_unread():
        return NO_READER
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _NO_LOCKS:
        _say(
            f"{where}This file system has no file locks ({error.strerror}), without which two "
            "commands may write the same file.",
            "Put the project (--home) and the cache (CHEXGENBENCH_CACHE) where there are some.",
        )
        return BAD_INPUT
    _say(
        f"{where}{error.strerror or error}.",
        "What was made is kept: mend this and repeat the same command.",
    )
    return BAD_INPUT


def _is_unread() -> bool:
    """Whether it is our own output that nobody reads, as of ``chexgenbench ... | head``."""
    import select

    try:
        watched = select.poll()
        watched.register(1, 0)
        return any(event & select.POLLERR for _, event in watched.poll(0))
    except (OSError, AttributeError):  # closed; Windows
        return False


def _is_nowhere() -> bool:
    """Whether standard output goes to the null device."""
    with suppress(OSError):
        return os.fstat(1).st_rdev == os.stat(os.devnull).st_rdev != 0  # noqa: PTH116
    return False


def _unexpected(error: Exception) -> int:
    """A fault of the program: short for the user, whole in a file for who mends it."""
    text = "".join(traceback.format_exception(error))
    if os.environ.get(DEBUG) == "1":
        sys.stderr.write(text)
        return FAILED
    what = f"Unexpected {type(error).__name__}: {error}".rstrip(": ")
    try:
        # Readable for this user alone: the message may hold what the data hold.
        number, path = tempfile.mkstemp(prefix="chexgenbench-error-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError:
        _say(f"{what}.", f"{DEBUG}=1 shows where it came from.")
        return FAILED
    _say(f"{what}.", f"This is a fault of chexgenbench or a plugin. Where it came from: {path}")
    return FAILED


def _first_ctrl_c(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the next one ends the process
    with suppress(OSError):  # not by print: this may come in the middle of one
        os.write(2, b"\nStopping; Ctrl-C again ends it at once.\n")
    raise KeyboardInterrupt


def _stopped() -> None:
    """Says how to go on, exactly as it was typed."""
    words = sys.argv[1:]
    again = f"  {own_command()} {shlex.join(words)}"
    if not any(tuple(words[: len(begin)]) == begin for begin in _GOES_ON):
        remark("Stopped.")
    elif "--new" in words:
        remark("Stopped. Because of --new the same command begins anew; without it, it goes on")
        remark("with what an earlier one made.")
    else:
        remark(f"Stopped. The same command goes on where this one was:\n{again}")
