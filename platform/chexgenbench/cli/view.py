"""`view`: the local explorer."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from chexgenbench.cli.output import HomeFolder

if TYPE_CHECKING:
    import webbrowser

    from chexgenbench.view.guard import Guard


def view(
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, metavar="N", help="Port on 127.0.0.1; 0 takes a free one."),
    ] = 0,
    no_browser: Annotated[
        bool,
        typer.Option(
            "--no-browser",
            help="Do not open it in the browser.",
            show_default="off: it is opened where there is a display",
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
        browser = None if no_browser else browser_in_a_window()
        if browser is not None:
            import threading

            opened = guard.url_for_once()
            threading.Thread(target=browser.open, args=[opened], daemon=True).start()

    ended = serve(place, port=port, include_credentialed=include_credentialed, ready=ready)
    typer.echo("Stopped.", err=True)
    if not ended:
        sys.stderr.flush()
        os._exit(0)


def browser_in_a_window() -> webbrowser.BaseBrowser | None:
    """The user's browser; None where there is no display, or a browser of the terminal alone,
    which would take the terminal that the explorer is ended from."""
    import webbrowser

    elsewhere = sys.platform in ("win32", "darwin")
    if not (elsewhere or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return None
    # The module has that class itself for browsers of the terminal, and its children for others.
    return None if type(found) is webbrowser.GenericBrowser else found
