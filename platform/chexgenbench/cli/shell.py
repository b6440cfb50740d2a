"""`sql`: a database shell that others maintain, on a copy of the store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chexgenbench.cli.output import HomeFolder


class Shell(StrEnum):
    """A program that is called on the copy."""

    harlequin = "harlequin"
    duckdb = "duckdb"


_READ_ONLY = {Shell.harlequin: "--read-only", Shell.duckdb: "-readonly"}


def sql(
    shell: Annotated[
        Shell | None,
        typer.Option(help="Which one.", show_default="the first that is installed"),
    ] = None,
    home: HomeFolder = None,
) -> None:
    """Open a database shell on a copy of the store, which changes nothing.

    harlequin (pip install harlequin) has panes and completion; duckdb (pip install duckdb-cli)
    takes statements from standard input as well.
    """
    from chexgenbench.errors import UserError
    from chexgenbench.home import Home
    from chexgenbench.store.store import Store

    place = Home.find(home)
    Store(place.store).query("SELECT 1")  # there, and of a version that this release reads
    program, path = _found(shell)
    with tempfile.TemporaryDirectory(prefix="chexgenbench-") as folder:
        copy = Path(folder) / place.store.name
        shutil.copyfile(place.store, copy)
        # Ctrl-C ends a statement in the shell, and not this process, which removes the copy.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            code = subprocess.run(
                [path, _READ_ONLY[program], str(copy)],
                preexec_fn=_take_ctrl_c if os.name == "posix" else None,
            ).returncode
        except OSError as error:
            raise UserError(f"{path} cannot be started: {error.strerror}.") from error
        finally:
            signal.signal(signal.SIGINT, before)
    sys.exit(code)


def _take_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _found(shell: Shell | None) -> tuple[Shell, str]:
    """A shell that is installed, beside this Python or anywhere on the path.

    Raises:
        UserError: none is.
    """
    from chexgenbench.errors import UserError

    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    for each in [shell] if shell is not None else Shell:
        path = shutil.which(each, path=places)
        # harlequin draws on the screen; statements from a pipe are for the other.
        if path is not None and (shell is not None or each is not Shell.harlequin or _is_screen()):
            return each, path
    wanted = shell or "harlequin or duckdb"
    raise UserError(
        f"There is no {wanted} here.",
        hint="pip install harlequin, or pip install duckdb-cli. Without them: "
        'chexgenbench query "select * from leaderboard"',
    )


def _is_screen() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
