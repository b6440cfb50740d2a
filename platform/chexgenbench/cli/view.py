"""`view`: the local explorer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from chexgenbench.cli.output import HomeFolder

if TYPE_CHECKING:
    from chexgenbench.view.guard import Guard


def view(
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, metavar="N", help="Port on 127.0.0.1; 0 takes a free one."),
    ] = 0,
    no_browser: Annotated[
        bool,
        typer.Option(
            "--no-browser", help="Do not open it in the browser.", show_default="off: it is opened"
        ),
    ] = False,
    include_credentialed: Annotated[
        bool,
        typer.Option(
            "--include-credentialed",
            help="Show prompts and images of credentialed splits.",
            show_default="off",
        ),
    ] = False,
    home: HomeFolder = None,
) -> None:
    """Browse runs, images and progress, and ask in SQL; on this machine alone, read-only.

    Ctrl-C stops it.
    """
    from chexgenbench.home import Home
    from chexgenbench.view.server import serve

    place = Home.find(home)

    def ready(guard: Guard) -> None:
        print(f"Explorer of {place.shown(place.root)}:")
        print(f"  {guard.url}")
        print("The address holds the key: show it to nobody. Ctrl-C stops the explorer.")
        sys.stdout.flush()
        if not no_browser:
            import threading
            import webbrowser

            opened = guard.url_for_once()
            threading.Thread(target=webbrowser.open, args=[opened], daemon=True).start()

    serve(place, port=port, include_credentialed=include_credentialed, ready=ready)
    typer.echo("Stopped.", err=True)
