"""A class in a file of yours as a model, without a hook: for a quick experiment."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from chexgenbench import Model, ModelSpec, Parameters, UserError, hookimpl
from chexgenbench.registry import import_file


def expand(text: str, home: Path) -> ModelSpec:
    """The descriptor of ``FILE:CLASS``; a class attribute ``Parameters`` is its parameters.

    Raises:
        UserError: no such file or class, or a class that is no `Model`.
    """
    file, _, name = text.rpartition(":")
    if not file or not name:
        raise UserError(
            "The model 'py' needs a file and a class.", hint="Write --model py:FILE:CLASS"
        )
    places = [base / Path(file).expanduser() for base in (Path.cwd(), home)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"The file {file} of the model 'py:{text}' does not exist.")
    try:
        module = import_file(path)
    except Exception as error:
        raise UserError(
            f"The file {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    models = {
        key: value
        for key, value in classes.items()
        if issubclass(value, Model) and value.__module__ == module.__name__
    }
    if name not in models:
        there = ", ".join(models) or "none"
        raise UserError(
            f"The file {path} has no model class {name!r}.",
            hint=f"Derive it from chexgenbench.Model. Such classes in the file: {there}.",
        )
    found = models[name]
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise UserError(f"The model class {name!r} in {path} does not define {lacking}.")
    parameters = getattr(found, "Parameters", Parameters)
    summary = (inspect.getdoc(found) or name).splitlines()[0]
    return ModelSpec(name=name, summary=summary, load=found, parameters=parameters)


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="py",
        summary="A class in a file of yours, without a hook: py:FILE:CLASS",
        load=Model,
        expand=expand,
        licence="that of the file",
    )
