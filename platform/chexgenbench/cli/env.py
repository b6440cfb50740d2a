"""`env`: environments of plugins that cannot share ours, as venvs made from their locks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Environments of plugins that cannot share this one.", no_args_is_help=True)


@app.command("build")
def build(
    name: str,
    python: Annotated[
        str | None,
        typer.Option("--python", help="The Python to make it with.", show_default="the lock's"),
    ] = None,
) -> None:
    """Makes the venv of one from its lock, or brings it up to date."""
    from chexgenbench import environments
    from chexgenbench.home import Home
    from chexgenbench.progress import Progress

    home = Home.find()
    found = environments.find(name, home)
    print(environments.build(found, home.cache, python, Progress().say))


@app.command("list")
def list_(
    json: Annotated[bool, typer.Option("--json", help="As JSON.", show_default="off")] = False,
) -> None:
    """All of them, and whether their venv is there."""
    from chexgenbench import environments
    from chexgenbench.home import Home

    home = Home.find()
    rows = [
        {
            "name": found.name,
            "venv": environments.state_of(found.name, home.cache, home),
            "python": found.python,
            "packages": found.packages,
            "container": found.dockerfile is not None,
            "folder": str(found.folder),
        }
        for found in environments.known_environments(home).values()
    ]
    if json:
        import json as json_

        print(json_.dumps(rows, indent=2))
        return
    table = [("environment", "venv", "Python", "packages", "container", "folder")]
    table += [
        (
            str(row["name"]),
            str(row["venv"]),
            str(row["python"] or "any"),
            str(row["packages"]),
            "Dockerfile" if row["container"] else "none",
            home.shown(Path(str(row["folder"]))),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


@app.command("remove")
def remove(name: str) -> None:
    """Removes the venv of one."""
    from chexgenbench import environments
    from chexgenbench.errors import UserError
    from chexgenbench.home import Home

    home = Home.find()
    if not environments.remove(name, home.cache):
        raise UserError(
            f"There is no venv of {name!r}.", hint="What there is: chexgenbench env list"
        )


@app.command("worker")
def worker(
    out: Annotated[Path, typer.Argument(help="A folder.")] = Path(),
) -> None:
    """Writes the wheel of chexgenbench-worker, for an environment made by hand."""
    from chexgenbench import environments

    print(environments.build_worker_wheel(out))
