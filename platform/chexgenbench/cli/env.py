"""`env`: environments of plugins that cannot share ours, as venvs made from their locks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chexgenbench.cli.output import AsJson, HomeFolder, Quiet, print_json, print_listing

Name = Annotated[str, typer.Argument(help="A folder of containers/ with a lock.")]

app = typer.Typer(help="Environments of plugins that cannot share this one.", no_args_is_help=True)


@app.command("build")
def build(
    name: Name,
    python: Annotated[
        str | None,
        typer.Option("--python", help="The Python to make it with.", show_default="the lock's"),
    ] = None,
    home: HomeFolder = None,
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make the venv of one from its lock, or bring it up to date."""
    from chexgenbench import environments
    from chexgenbench.home import Home
    from chexgenbench.progress import Progress

    place = Home.find(home)
    found = environments.find(name, place)
    built = environments.build(found, place.cache, python, Progress(quiet).say)
    if json:
        print_json({"name": name, "venv": str(built)})
    else:
        print(built)


@app.command("list")
def list_(home: HomeFolder = None, json: AsJson = False) -> None:
    """All of them, and whether their venv is there."""
    from chexgenbench import environments
    from chexgenbench.home import Home

    place = Home.find(home)
    rows = [
        {
            "name": found.name,
            "venv": environments.state_of(found.name, place.cache, place),
            "python": found.python,
            "packages": found.packages,
            "container": found.dockerfile is not None,
            "folder": str(found.folder),
        }
        for found in environments.known_environments(place).values()
    ]
    if json:
        print_json(rows)
        return
    heads = ("environment", "venv", "Python", "packages", "container", "folder")
    table = [
        (
            str(row["name"]),
            str(row["venv"]),
            str(row["python"] or "any"),
            str(row["packages"]),
            "Dockerfile" if row["container"] else "none",
            place.shown(Path(str(row["folder"]))),
        )
        for row in rows
    ]
    print_listing(heads, table)


@app.command("remove")
def remove(name: Name, home: HomeFolder = None) -> None:
    """Remove the venv of one."""
    from chexgenbench import environments
    from chexgenbench.errors import UserError
    from chexgenbench.home import Home

    if not environments.remove(name, Home.find(home).cache):
        raise UserError(
            f"There is no venv of {name!r}.", hint="What there is: chexgenbench env list"
        )


@app.command("worker")
def worker(
    out: Annotated[Path, typer.Argument(help="A folder.")] = Path(),
    json: AsJson = False,
) -> None:
    """Write the wheel of chexgenbench-worker, for an environment made by hand."""
    from chexgenbench import environments

    wheel = environments.build_worker_wheel(out)
    if json:
        print_json({"wheel": str(wheel.absolute())})
    else:
        print(wheel)
