"""Suites: a named choice of split, models, encoders, metrics and protocol, in a TOML file."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from chexgenbench.errors import UserError, unknown_name
from chexgenbench.files import opened
from chexgenbench.home import Home
from chexgenbench.registry import BUILT_IN
from chexgenbench.types import FINDINGS, MACRO, OVERALL

Scalar = str | int | float | bool
_LARGEST = 2**20


class Suite(BaseModel):
    """What to run and how; every field can be set in the file or on the command line.

    Attributes:
        metrics: metric names; ``metric@encoder`` takes it on that encoder alone.
        protocol: ``standard``, or ``legacy`` for the published code's choices.
        subsets: name to SQL condition of further subsets, see `PromptTable.select`.
        parameters: plugin name or model label to parameter values.
        listed: what the file names as split, models, encoders and metrics, whatever the command
            line says; a command may leave any of it out, and its parameters with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str = ""
    split: str
    models: tuple[str, ...] = Field(min_length=1)
    encoders: tuple[str, ...] = Field(min_length=1)
    metrics: tuple[str, ...] = Field(min_length=1)
    protocol: Literal["standard", "legacy"] = "standard"
    subsets: Mapping[str, str] = {}
    uncertain: Literal["keep", "positive", "negative"] = "keep"
    seed: int = Field(0, ge=0, lt=2**63)
    repeats: int = Field(1, ge=1, le=1000)
    limit: int | None = Field(None, ge=1)
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] | None = None
    exact: bool = False
    parameters: Mapping[str, Mapping[str, Any]] = {}
    listed: tuple[str, ...] = Field((), exclude=True)

    @field_validator("models", "encoders", "metrics")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names))

    @field_validator("subsets")
    @classmethod
    def _new_names(cls, subsets: Mapping[str, str]) -> Mapping[str, str]:
        taken = {name.lower() for name in (OVERALL, MACRO, *FINDINGS)}
        for name, condition in subsets.items():
            if not name.isprintable() or not name or name != name.strip() or len(name) > 60:
                raise ValueError(
                    f"{name!r} is no name: 1 to 60 printable characters, no space at the ends"
                )
            if name.lower() in taken:
                raise ValueError(f"the name {name!r} is taken")
            if not condition.strip():
                raise ValueError(f"the subset {name!r} has no condition")
        return dict(subsets)


def suite_folders(home: Home) -> list[Path]:
    """Where suites are looked for: the project's ``suites`` folder, then those that ship."""
    shipped = [Path(base) / "suites" for base in importlib.import_module(BUILT_IN).__path__]
    return [home.root / "suites", *shipped]


def list_suites(home: Home) -> dict[str, Path]:
    """Name to file; a file of the project stands before a shipped one of its name."""
    found: dict[str, Path] = {}
    for folder in suite_folders(home):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def read_suite(name: str, home: Home, changes: Mapping[str, Any]) -> Suite:
    """A suite by name, or by the path of a TOML file.

    Args:
        changes: fields that the command line sets; None means not set.

    Raises:
        UserError: no such suite, a broken file, an unknown field or a value that does not fit.
    """
    path = Path(name)
    if path.suffix != ".toml":
        known = list_suites(home)
        if name not in known:
            raise unknown_name("suite", name, known)
        path = known[name]
    values = _values(path)
    values = {"name": path.stem} | values
    listed: list[Any] = [values.get("split")]
    for field in ("models", "encoders", "metrics"):
        named = values.get(field)
        listed += named if isinstance(named, list) else []
    values |= {field: value for field, value in changes.items() if value is not None}
    for field in values:
        if field not in Suite.model_fields or field == "listed":
            raise unknown_name(f"field of a suite ({path})", field, Suite.model_fields)
    try:
        return Suite.model_validate({**values, "listed": [each for each in listed if each]})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise UserError(f"The suite {name!r} ({path}) does not fit: {faults}.") from error


def _values(path: Path) -> dict[str, Any]:
    """What a TOML file says; of any that is no suite, a `UserError`."""
    if not path.exists():
        raise UserError(f"The suite file {path} does not exist.")
    with opened(path) as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise UserError(
            f"The suite file {path} has more than {_LARGEST >> 20} MiB: it is no suite."
        )
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise UserError(f"The suite file {path} is nested too deeply.") from error
    except ValueError as error:  # also of numbers with thousands of digits
        raise UserError(f"The suite file {path} is not valid TOML: {error}.") from error


def parse_subsets(given: Sequence[str]) -> dict[str, str]:
    """``--subset`` values, ``name: SQL condition``, to name and condition.

    Raises:
        UserError: not of that form, or a name twice.

    >>> parse_subsets(["frontal: view = 'PA'"])
    {'frontal': "view = 'PA'"}
    """
    result: dict[str, str] = {}
    for text in given:
        name, colon, condition = (part.strip() for part in text.partition(":"))
        if not (name and colon and condition):
            raise UserError(
                f"--subset {text!r} is not of the form name: condition.",
                hint="Example: --subset \"frontal: view = 'PA'\"",
            )
        if name in result:
            raise UserError(f"--subset {name!r} stands twice.")
        result[name] = condition
    return result


def parse_settings(
    settings: list[str],
    kinds: Mapping[str, str],
    has: Mapping[str, set[str]],
    plugins: Mapping[str, str],
) -> dict[str, dict[str, Scalar]]:
    """``--set`` values to label and parameter.

    Args:
        settings: ``parameter=value`` for every chosen model that has it, then
            ``plugin.parameter=value`` for all labels that a plugin runs under, then
            ``label.parameter=value`` for one: the narrower one wins.
        kinds: the chosen plugins' labels to their kinds.
        has: the chosen plugins' labels to the names of their parameters.
        plugins: the labels to the names of the plugins.

    Raises:
        UserError: not of that form, or nothing chosen has such a parameter.

    >>> parse_settings(["steps=5"], {"mine": "model"}, {"mine": {"steps"}}, {"mine": "sana"})
    {'mine': {'steps': '5'}}
    """
    every: dict[str, dict[str, Scalar]] = {}
    plugin: dict[str, dict[str, Scalar]] = {}
    label: dict[str, dict[str, Scalar]] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        # The name of a label may hold an equals sign of its own: one of a folder.
        owners = [name for name in {*kinds, *plugins.values()} if setting.startswith(f"{name}.")]
        owner = max(owners, key=len, default=None)
        if owner is not None:
            key, equals, value = setting[len(owner) + 1 :].partition("=")
        if not equals or not key:
            raise UserError(
                f"--set {setting!r} is not of the form name=value.", hint="Example: --set steps=20"
            )
        if owner is None:
            targets, level = [name for name in _models(kinds) if key in has[name]], every
        elif owner in plugins.values():
            # A label that is the plugin's own name is one of those that it runs under.
            targets, level = [each for each, name in plugins.items() if name == owner], plugin
        else:
            targets, level = [owner], label
        if not targets:
            known = sorted({item for name in _models(kinds) for item in has[name]})
            raise unknown_name("parameter of the chosen models", key, known)
        for target in targets:
            level.setdefault(target, {})[key] = value
    return {
        name: every.get(name, {}) | plugin.get(name, {}) | label.get(name, {})
        for name in {**every, **plugin, **label}
    }


def _models(names: Mapping[str, str]) -> Iterator[str]:
    return (name for name, kind in names.items() if kind == "model")
