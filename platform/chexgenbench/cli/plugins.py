"""`models`, `encoders`, `metrics`, `splits`, `judges`: `list`, `show NAME`.

Of weights also `fetch NAME`; `models status` says what each model needs on this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from chexgenbench.errors import ChexGenBenchError

KINDS = ("models", "encoders", "metrics", "splits", "judges")
WITH_WEIGHTS = ("models", "encoders")
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
        from chexgenbench.downloads import summary
        from chexgenbench.home import Home
        from chexgenbench.registry import describe

        found = _registry(plugin).find(kind, name)
        described = describe(found.spec) | {"source": found.source}
        downloads = getattr(found.spec, "downloads", ())
        if kind in WITH_WEIGHTS:
            described["downloads"] = summary(downloads, Home.find().cache)
        if json:
            _print_json(described)
            return
        parameters = described.pop("parameters")
        files = described.pop("downloads", [])
        for key, value in described.items():
            if value not in ([], {}, "", None):
                print(f"{key}: {_text(value)}")
        print("parameters:" if parameters else "parameters: none")
        for item in parameters:
            default = "required" if item["required"] else f"default {item['default']!r}"
            print(f"  {item['name']} ({item['type']}, {default}): {item['description']}")
        if kind in WITH_WEIGHTS:
            _print_weights(kind, found, files)

    if kind in WITH_WEIGHTS:

        @group.command("fetch", help="Downloads the weights of one and checks them.")
        def fetch(name: str, plugin: Files = None) -> None:
            from chexgenbench.downloads import fetch as bring
            from chexgenbench.home import Home
            from chexgenbench.progress import Progress

            found = _registry(plugin).find(kind, name)
            for download in found.spec.downloads:
                setting = _setting(found.spec, download.source)
                for path in bring(download, Home.find().cache, Progress(), setting).values():
                    print(path)
            fault = _fault(found)
            if not found.spec.downloads:
                print(f"{name!r} has nothing to fetch.")
            if fault is not None:
                raise fault

    if kind == "models":
        group.command("status")(status)
    return group


def status(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", show_default="all")
    ] = None,
    plugin: Files = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda:0.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Precision of the memory.")] = "auto",
    json: AsJson = False,
) -> None:
    """What each model needs here and what is missing; with names, also what to do."""
    from chexgenbench.home import Home
    from chexgenbench.types import Context
    from chexgenbench.workflow.needs import likely_device, model_needs
    from chexgenbench.workflow.plan import resolve_devices

    registry, home = _registry(plugin), Home.find()
    # To ask torch takes seconds, so it is asked only for what the user named.
    named = likely_device() if device == "auto" else resolve_devices(device)[0]
    context = Context(device=named, home=home.root, cache=home.cache)
    chosen = names or sorted(registry.models)
    found = [model_needs(registry.find("models", name), {}, context, dtype) for name in chosen]
    if json:
        _print_json([needs.as_json() for needs in found])
        return
    _print_needs(found)
    for needs in found if names else ():
        for fault in needs.missing:
            print(f"{needs.name}: {fault.text}")


def _print_needs(found: list[Any]) -> None:
    from chexgenbench.downloads import size_text

    rows = [("model", "weights", "memory of the weights", "missing here", "licence")]
    rows += [
        (
            needs.name,
            size_text(needs.size) if needs.files else "-",
            needs.memory_text() if needs.memory else "-",
            "; ".join(fault.short for fault in needs.missing) or "nothing",
            needs.licence,
        )
        for needs in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _print_weights(kind: str, found: Any, files: list[dict[str, Any]]) -> None:
    from chexgenbench.downloads import size_text

    for download in found.spec.downloads:
        if download.gated:
            print(f"licence to accept: https://huggingface.co/{download.source}")
    for item in files:
        at = f" at {item['revision']}" if item["revision"] else ""
        state = item["path"] or f"missing, {size_text(item['size'])}"
        print(f"weights: {item['file']} from {item['source']}{at}: {state}")
    if any(item["path"] is None for item in files):
        print(f"fetch them: chexgenbench {kind} fetch {found.spec.name}")
    elif fault := _fault(found):
        print(f"weights: {fault.message} {fault.hint or ''}".rstrip())


def _setting(spec: Any, source: str) -> str | None:
    """The parameter that names `source` where the user does not, with its plugin."""
    fields = spec.parameters.model_fields.items()
    return next((f"{spec.name}.{name}" for name, info in fields if info.default == source), None)


def _fault(found: Any) -> ChexGenBenchError | None:
    """The error of a plugin that cannot run with its default parameters for want of weights.

    None where a parameter must be named first, as `show` says.
    """
    from chexgenbench.errors import ChexGenBenchError
    from chexgenbench.home import Home
    from chexgenbench.types import Context

    home = Home.find()
    fields = found.spec.parameters.model_fields
    if any(info.is_required() and name not in found.values for name, info in fields.items()):
        return None
    try:
        parameters = found.parse({})
        context = Context(home=home.root, cache=home.cache)
        loaded = found.load()
        found.call("cannot name its weights", lambda: loaded.weights(parameters, context))
    except ChexGenBenchError as error:
        return error
    return None


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
