"""`models`, `encoders`, `metrics`, `splits`: `list` and `show NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

KINDS = ("models", "encoders", "metrics", "splits")
Files = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A file with a plugin.", show_default="none")
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.", show_default="off")]
groups: dict[str, typer.Typer] = {}


def _group(kind: str) -> typer.Typer:
    group = typer.Typer(help=f"The {kind} that are there.", no_args_is_help=True)

    @group.command("list", help=f"All {kind}, a line each.")
    def list_(plugin: Files = None, json: AsJson = False) -> None:
        registry = _registry(plugin)
        specs = [item.spec for _, item in sorted(registry.of_kind(kind).items())]
        if json:
            from chexgenbench.registry import describe

            _print_json([describe(spec) for spec in specs])
        else:
            width = max((len(spec.name) for spec in specs), default=0)
            for spec in specs:
                print(f"{spec.name:<{width}}  {spec.summary}")
        for problem in registry.problems:
            typer.echo(f"Left out: {problem.source}: {problem.reason}", err=True)

    @group.command("show", help=f"One of the {kind}: parameters, needs, licence, references.")
    def show(name: str, plugin: Files = None, json: AsJson = False) -> None:
        from chexgenbench.registry import describe

        found = _registry(plugin).find(kind, name)
        described = describe(found.spec) | {"source": found.source}
        if json:
            _print_json(described)
            return
        parameters = described.pop("parameters")
        for key, value in described.items():
            if value not in ([], {}, ""):
                print(f"{key}: {_text(value)}")
        print("parameters:" if parameters else "parameters: none")
        for item in parameters:
            default = "required" if item["required"] else f"default {item['default']!r}"
            print(f"  {item['name']} ({item['type']}, {default}): {item['description']}")

    return group


def _registry(files: list[Path] | None) -> Any:
    from chexgenbench.home import Home
    from chexgenbench.workflow.plan import Options, load_plugins

    return load_plugins(Options(home=Home.find(), plugins=tuple(files or ())))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


groups.update({kind: _group(kind) for kind in KINDS})
