"""`models`, `encoders`, `metrics`, `splits`, `judges`: `list`, `show NAME`.

Of weights also `fetch NAME`; `models status` says what each model needs on this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chexgenbench.cli import complete
from chexgenbench.cli.output import (
    AsJson,
    HomeFolder,
    Quiet,
    print_json,
    print_listing,
    print_text,
    remark,
)

if TYPE_CHECKING:
    from chexgenbench.errors import ChexGenBenchError
    from chexgenbench.home import Home

KINDS = ("models", "encoders", "metrics", "splits", "judges")
WITH_WEIGHTS = ("models", "encoders")
Files = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A file with a plugin.", show_default="none")
]
Name = Annotated[str, typer.Argument(help="Its name.", autocompletion=complete.of_group)]
groups: dict[str, typer.Typer] = {}


def _group(kind: str) -> typer.Typer:
    group = typer.Typer(help=f"The {kind} that are there.", no_args_is_help=True)

    @group.command("list", help=f"All {kind}, a line each.")
    def list_(plugin: Files = None, home: HomeFolder = None, json: AsJson = False) -> None:
        registry = _registry(plugin, home)
        specs = [item.spec for _, item in sorted(registry.of_kind(kind).items())]
        if json:
            from chexgenbench.registry import describe

            print_json([describe(spec) for spec in specs])
        else:
            print_listing(("", ""), [(spec.name, spec.summary) for spec in specs])
        for problem in registry.problems:
            remark(f"Left out: {problem.source}: {problem.reason}")

    @group.command("show", help=f"One of the {kind}: parameters, needs, licence, references.")
    def show(
        name: Name,
        plugin: Files = None,
        home: HomeFolder = None,
        json: AsJson = False,
    ) -> None:
        from chexgenbench.downloads import summary
        from chexgenbench.home import Home
        from chexgenbench.registry import describe

        found = _registry(plugin, home).find(kind, name)
        described = describe(found.spec) | {"source": found.source}
        downloads = getattr(found.spec, "downloads", ())
        if kind in WITH_WEIGHTS:
            described["downloads"] = summary(downloads, Home.find(home).cache)
        if json:
            print_json(described)
            return
        parameters = described.pop("parameters")
        files = described.pop("downloads", [])
        lists = {
            "scores": [_score(each) for each in described.pop("scores", [])],
            "pitfalls": described.pop("pitfalls", []),
        }
        for key, value in described.items():
            if value not in ([], {}, "", None):
                print_text(f"{key}: {_text(value)}")
        for title, lines in lists.items():
            if lines:
                print(f"{title}:")
            for line in lines:
                print_text(line, indent=2)
        print("parameters:" if parameters else "parameters: none")
        for item in parameters:
            default = "required" if item["required"] else f"default {item['default']!r}"
            text = f"{item['name']} ({item['type']}, {default}): {item['description']}"
            print_text(text, indent=2)
        if kind in WITH_WEIGHTS:
            _print_weights(kind, found, files, Home.find(home))

    if kind in WITH_WEIGHTS:

        @group.command("fetch", help="Download the weights of one and check them.")
        def fetch(
            name: Name,
            plugin: Files = None,
            home: HomeFolder = None,
            json: AsJson = False,
            quiet: Quiet = False,
        ) -> None:
            from chexgenbench.downloads import fetch as bring
            from chexgenbench.home import Home
            from chexgenbench.progress import Progress

            place = Home.find(home)
            found = _registry(plugin, home).find(kind, name)
            paths: list[Path] = []
            for download in found.spec.downloads:
                setting = _setting(found.spec, download.source)
                brought = bring(download, place.cache, Progress(quiet), setting).values()
                if not json:
                    print(*brought, sep="\n")
                paths += brought
            if json:
                print_json({"name": found.name, "files": paths})
            elif not found.spec.downloads and not quiet:
                print(f"{name!r} has nothing to fetch.")
            fault = _fault(found, place)
            if fault is not None:
                raise fault

    if kind == "models":
        group.command("status")(status)
    return group


def status(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Models.",
            show_default="all",
            autocompletion=complete.models,
        ),
    ] = None,
    plugin: Files = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda:0.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Precision of the memory.")] = "auto",
    home: HomeFolder = None,
    json: AsJson = False,
) -> None:
    """What each model needs here and what is missing; with names, also what to do."""
    from chexgenbench.home import Home
    from chexgenbench.types import Context
    from chexgenbench.workflow.needs import likely_device, model_needs
    from chexgenbench.workflow.plan import resolve_devices

    registry, place = _registry(plugin, home), Home.find(home)
    # To ask torch takes seconds, so it is asked only for what the user named.
    named = likely_device() if device == "auto" else resolve_devices(device)[0]
    context = Context(device=named, home=place.root, cache=place.cache)
    chosen = names or sorted(registry.models)
    found = [model_needs(registry.find("models", name), {}, context, dtype) for name in chosen]
    if json:
        print_json([needs.as_json() for needs in found])
        return
    _print_needs(found)
    for needs in found if names else ():
        for fault in needs.missing:
            print_text(f"{needs.name}: {fault.text}")


def _print_needs(found: list[Any]) -> None:
    from chexgenbench.downloads import size_text

    heads = ("model", "weights", "memory of the weights", "missing here", "licence")
    rows = [
        (
            needs.name,
            size_text(needs.size) if needs.files else "-",
            needs.memory_text() if needs.memory else "-",
            "; ".join(fault.short for fault in needs.missing) or "nothing",
            needs.licence,
        )
        for needs in found
    ]
    print_listing(heads, rows)


def _print_weights(kind: str, found: Any, files: list[dict[str, Any]], home: Home) -> None:
    from chexgenbench.downloads import size_text

    for download in found.spec.downloads:
        if download.gated:
            print_text(f"licence to accept: https://huggingface.co/{download.source}")
    for item in files:
        at = f" at {item['revision']}" if item["revision"] else ""
        state = item["path"] or f"missing, {size_text(item['size'])}"
        print_text(f"weights: {item['file']} from {item['source']}{at}: {state}")
    if any(item["path"] is None for item in files):
        print(f"fetch them: chexgenbench {kind} fetch {found.spec.name}")
    elif fault := _fault(found, home):
        print_text(f"weights: {fault.message} {fault.hint or ''}".rstrip())


def _setting(spec: Any, source: str) -> str | None:
    """The parameter that names `source` where the user does not, with its plugin."""
    fields = spec.parameters.model_fields.items()
    return next((f"{spec.name}.{name}" for name, info in fields if info.default == source), None)


def _fault(found: Any, home: Home) -> ChexGenBenchError | None:
    """The error of a plugin that cannot run with its default parameters for want of weights.

    None where a parameter must be named first, as `show` says.
    """
    from chexgenbench.errors import ChexGenBenchError
    from chexgenbench.types import Context

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


def _registry(files: list[Path] | None, home: Path | None) -> Any:
    from chexgenbench.home import Home
    from chexgenbench.registry import load_registry

    # As the planner does, without what it imports to plan.
    return load_registry(tuple(files or ()), Home.user_folder() / "plugins", Home.find(home).root)


def _score(score: dict[str, Any]) -> str:
    """A score of a metric in a line."""
    better = "higher" if score["higher_is_better"] else "lower"
    ends = f"{score['lowest']:g} to {score['highest']:g}"
    said = "; ".join(each for each in (score["summary"], score["formula"]) if each)
    return f"{score['name']} ({better} is better, {ends}): {said}".rstrip(": ")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


groups.update({kind: _group(kind) for kind in KINDS})
