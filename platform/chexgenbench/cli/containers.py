"""`containers`: environments of plugins that cannot share ours, as container images."""

from __future__ import annotations

from typing import Annotated

import typer

from chexgenbench.cli.output import AsJson, HomeFolder, Quiet, print_json, print_listing
from chexgenbench.cli.run import Runtime

app = typer.Typer(help="Container images that plugins work in.", no_args_is_help=True)


@app.command("build")
def build(
    name: Annotated[str, typer.Argument(help="A folder of containers/, or app.")],
    base: Annotated[
        str | None,
        typer.Option("--base", help="The image to build on.", show_default="the Dockerfile's"),
    ] = None,
    runtime: Runtime = None,
    build_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--build-arg", help="KEY=VALUE for the Dockerfile; repeat it.", show_default="none"
        ),
    ] = None,
    home: HomeFolder = None,
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build the image of one from its Dockerfile and lock."""
    from chexgenbench.executors import containers
    from chexgenbench.home import Home
    from chexgenbench.progress import Progress

    image = containers.build(
        name,
        containers.find_runtime(runtime),
        base=base,
        arguments=build_arg or (),
        home=Home.find(home),
        say=Progress(quiet).say,
    )
    if json:
        print_json({"name": name, "id": image.id, "megabytes": round(image.size / 1e6)})
        return
    print(f"{name}: {image.size / 1e6:.0f} MB, {image.id}")


@app.command("list")
def list_(
    runtime: Runtime = None,
    home: HomeFolder = None,
    json: AsJson = False,
) -> None:
    """All of them, which are built, how large they are, and whether they are stale."""
    from chexgenbench.executors import containers
    from chexgenbench.home import Home

    place = Home.find(home)
    by = containers.find_runtime(runtime)
    built = containers.images(by)
    rows = [
        {
            "name": image.environment,
            "state": "ready" if containers.is_current(by, image, place) else "stale",
            "megabytes": round(image.size / 1e6),
            "base": image.base,
            "created": image.created[:19],
            "id": image.id,
        }
        for image in built
    ]
    there = {image.environment for image in built}
    lacking = [name for name in containers.known(place) if name not in there]
    rows += [
        {"name": n, "state": "not built", "megabytes": 0, "base": "", "created": "", "id": ""}
        for n in lacking
    ]
    if json:
        print_json(rows)
        return
    heads = ("environment", f"image ({by.command})", "MB", "base", "created (UTC)")
    table = [
        (
            str(row["name"]),
            str(row["state"]),
            str(row["megabytes"] or ""),
            str(row["base"]),
            str(row["created"]),
        )
        for row in sorted(rows, key=lambda row: str(row["name"]))
    ]
    print_listing(heads, table)


@app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="A folder of containers/, or app.")],
    runtime: Runtime = None,
) -> None:
    """Remove the images of one, stale ones too."""
    from chexgenbench.errors import UserError
    from chexgenbench.executors import containers

    if not containers.remove(name, containers.find_runtime(runtime)):
        raise UserError(
            f"There is no image of {name!r}.", hint="What there is: chexgenbench containers list"
        )
