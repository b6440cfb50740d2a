"""`convert`: a training checkpoint to a folder that a model plugin loads."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from chexgenbench.cli import complete
from chexgenbench.cli.output import AsJson, HomeFolder, print_json, print_text

Converter = Callable[..., Mapping[str, Any]]
"""``convert(checkpoint, out, base, context, *, settings...)``: fills the folder ``out`` and returns
JSON values for its record, such as which weights it took (``loaded_by``: the plugin that loads the
result, where it is another). Its keyword-only parameters are what ``--set`` sets: annotated, with
defaults."""


def convert(
    model: Annotated[
        str,
        typer.Argument(
            help="The model plugin that will load the result.", autocompletion=complete.models
        ),
    ],
    checkpoint: Annotated[Path, typer.Argument(help="The file that the training wrote.")],
    out: Annotated[Path, typer.Argument(help="The folder to make: new, or an empty one.")],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="A diffusers folder, or hub id in the local cache, that gives the other parts.",
            show_default="the published one",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting, name=value; repeat it.", show_default="none"),
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Load a checkpoint that can run code; only where you trust whoever made it.",
            show_default="off",
        ),
    ] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", help="A file with a plugin; repeat it.", show_default="none"),
    ] = None,
    home: HomeFolder = None,
    json: AsJson = False,
) -> None:
    """Make a folder that a model plugin loads from the checkpoint of the model's own trainer.

    The folder appears whole or not at all. Its conversion.json says what it was made from.
    """
    from chexgenbench.errors import UserError
    from chexgenbench.files import TEMPORARY, sha256_file, write_json
    from chexgenbench.home import Home
    from chexgenbench.provenance import now, versions
    from chexgenbench.types import Context
    from chexgenbench.workflow.options import Options
    from chexgenbench.workflow.plan import load_plugins

    found_home = Home.find(home)
    registry = load_plugins(Options(home=found_home, plugins=tuple(plugin or ())))
    found = registry.find("models", model)
    if found.spec.convert is None:
        able = sorted(name for name, each in registry.models.items() if each.spec.convert)
        raise UserError(
            f"The model {model!r} has no converter.",
            hint=f"Models that have one: {', '.join(able) or 'none'}.",
        )
    converter = found.resolve(found.spec.convert)
    values = _settings(found, converter, settings or [])
    if not checkpoint.is_file():
        raise UserError(f"The checkpoint {checkpoint} is not a file.")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError(
            f"{out} is there already, and is no empty folder.",
            hint="Name a new folder, or remove that one.",
        )
    context = Context(home=found_home.root, cache=found_home.cache, allow_pickle=allow_pickle)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{out.name}-", dir=out.parent))
    try:
        made = found.call(
            "cannot convert", lambda: converter(checkpoint, aside, base, context, **values)
        )
        record = {
            "model": model,
            "checkpoint": {"file": checkpoint.name, "sha256": sha256_file(checkpoint)},
            "settings": values,
            "plugin": found.identity(),
            "versions": versions(),
            "time": now(),
        }
        write_json(aside / "conversion.json", record | dict(made))
        # mkdtemp made it private; it shall be as open as its files are.
        aside.chmod((aside / "conversion.json").stat().st_mode | 0o111)
        aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if json:
        print_json({"folder": str(out)} | record | dict(made))
        return
    for name, value in made.items():
        print_text(f"{name}: {_text(value)}")
    print(f"{out} is ready: chexgenbench run --model {made.get('loaded_by', model)}:{out}")


def _settings(found: Any, converter: Converter, texts: list[str]) -> dict[str, Any]:
    """The values of ``--set`` by name, of the types that the converter's signature says."""
    import pydantic

    from chexgenbench.errors import UserError, unknown_name

    known = {
        name: parameter
        for name, parameter in inspect.signature(converter, eval_str=True).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        # As with a run, the plugin may stand before the name.
        name = name.strip().removeprefix(f"{found.name}.")
        if not equals:
            raise UserError(f"--set {text!r} is not name=value.")
        if name not in known:
            raise unknown_name(f"setting of the converter of {found.name!r}", name, known)
        try:
            values[name] = pydantic.TypeAdapter(known[name].annotation).validate_python(
                value.strip()
            )
        except pydantic.ValidationError as error:
            raise UserError(
                f"Wrong setting {name} = {value!r}: {error.errors()[0]['msg']}."
            ) from error
    return values


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(_text(each) for each in value.values())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
