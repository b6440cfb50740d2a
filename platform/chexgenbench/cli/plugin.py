"""`plugin new KIND NAME`, `plugin check PATH`: the path of a plugin's author."""

from __future__ import annotations

import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from chexgenbench.cli.output import AsJson, print_json
from chexgenbench.errors import harmless

if TYPE_CHECKING:
    from chexgenbench.testing import Result

app = typer.Typer(help="Write a plugin of your own, and check it.", no_args_is_help=True)

_WIDTH = 80


Kind = Literal["model", "metric", "encoder", "split", "judge"]


@app.command("new")
def new(
    kind: Annotated[Kind, typer.Argument(help="What it offers.")],
    name: Annotated[str, typer.Argument(help="Small letters, digits and hyphens: my-model.")],
    into: Annotated[
        Path, typer.Option(help="The folder to put it in.", show_default="the current one")
    ] = Path(),
    json: AsJson = False,
) -> None:
    """Write a package NAME/ with a plugin that works as it stands."""
    from chexgenbench.home import Home
    from chexgenbench.testing.scaffold import create, trial
    from chexgenbench.workflow.options import Options
    from chexgenbench.workflow.plan import load_plugins

    made = create(kind, name, into, load_plugins(Options(home=Home.find())))
    folder = into / name
    if json:
        print_json({"folder": str(folder.absolute()), "files": [str(p.absolute()) for p in made]})
        return
    for path in made:
        if "data" not in path.relative_to(folder).parts[:-2]:
            print(path)
    print(f"Change {folder / 'src' / name.replace('-', '_') / 'plugin.py'}. Try next:")
    shown = str(folder) if folder.is_absolute() else f"./{folder}"
    print(f"  chexgenbench plugin check {shlex.quote(str(folder))}")
    print(f"  pip install -e {shlex.quote(shown)}")
    print(f"  {trial(kind, name)}")


@app.command("check")
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PATH|NAME",
            help="A file, a package's folder (installed or not), or a plugin's name.",
        ),
    ],
    kind: Annotated[
        Kind | None, typer.Option(help="Only plugins of this kind.", show_default="all kinds")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Only the plugin of this name.", show_default="all of them")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A parameter, NAME=VALUE; repeat it.", show_default="defaults"),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Leave a check out; repeat it.", show_default="none"),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How far results may move with the batch: grey levels of a model's images, or a "
            "share of the length of an encoder's features.",
            show_default="1 grey level, 0.0001",
        ),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="The model's images do not depend on the seed.",
            show_default="off",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="Where it runs, such as cuda:0.")] = "cpu",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a check may take.")] = 600.0,
    json: AsJson = False,
) -> None:
    """Check that plugins keep their contract; exit code 1 where one does not.

    All data are drawn by the command itself. Each check has a line: passed,
    FAILED with what to do, or n/a with why. The plugin works in a process of
    its own, so one that hangs has failed.
    """
    from chexgenbench.testing import Settings, check_apart

    settings = Settings(
        values=_values(set_ or []),
        skip=tuple(skip or ()),
        tolerance=tolerance,
        deterministic=deterministic,
        device=device,
        seconds=timeout,
    )
    if json:
        found = check_apart(target, settings, kind=kind, name=name)
    else:
        shown = _Shown()
        found = check_apart(target, settings, kind=kind, name=name, told=shown.add)
    results = [result for each in found for result in each.results]
    count = {
        status: sum(result.status == status for result in results)
        for status in ("passed", "failed", "skipped")
    }
    if json:
        print_json({"target": target, "plugins": [_plain(each) for each in found], **count})
    else:
        print(
            f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} not applicable"
        )
    if count["failed"]:
        sys.exit(1)


class _Shown:
    """Results as lines, as they come."""

    def __init__(self) -> None:
        self._plugin: tuple[str, str] | None = None

    def add(self, result: Result) -> None:
        plugin = (result.kind, result.plugin)
        if plugin != self._plugin:
            print(" ".join(filter(None, plugin)))
            self._plugin = plugin
        word = {"passed": "passed", "failed": "FAILED", "skipped": "n/a"}[result.status]
        _print(f"  {word:<7} {result.check:<16} ", _safe(result.detail))
        if result.hint:
            _print(" " * 10 + "what to do: ", _safe(result.hint))


def _print(head: str, text: str) -> None:
    lines = textwrap.wrap(text, _WIDTH - len(head)) or [""]
    for number, line in enumerate(lines):
        print(f"{head if number == 0 else ' ' * len(head)}{line}".rstrip(), flush=True)


def _safe(text: str) -> str:
    """Without control characters: a plugin's text may hold a terminal's escapes."""
    return harmless(text).replace("\n", " ")


def _plain(checked: Any) -> dict[str, Any]:
    return {
        "plugin": checked.plugin,
        "kind": checked.kind,
        "source": checked.source,
        "results": [result.as_json() for result in checked.results],
    }


def _values(settings: list[str]) -> dict[str, str]:
    from chexgenbench.errors import UserError

    values: dict[str, str] = {}
    for each in settings:
        name, equals, value = each.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set {each!r} is no NAME=VALUE.", hint="For example --set steps=4")
        values[name.strip()] = value
    return values
