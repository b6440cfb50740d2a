"""How plugins are found, listed and loaded."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, get_args, get_origin

import pluggy
import pydantic

from chexgenbench import hookspecs
from chexgenbench.errors import (
    PLUGIN_FAULTS,
    ChexGenBenchError,
    UserError,
    is_disk_fault,
    unknown_name,
)
from chexgenbench.types import (
    Context,
    Encoder,
    EncoderSpec,
    Judge,
    JudgeSpec,
    MetricSpec,
    Model,
    ModelSpec,
    Parameters,
    SampleMetric,
    SetMetric,
    Spec,
    Split,
    SplitSpec,
    TaskMetric,
)

BUILT_IN = "chexgenbench_plugins"
KINDS = ("models", "encoders", "metrics", "splits", "judges")
_SPECS: dict[str, type[Spec]] = {
    "models": ModelSpec,
    "encoders": EncoderSpec,
    "metrics": MetricSpec,
    "splits": SplitSpec,
    "judges": JudgeSpec,
}
_BASES: dict[type[Spec], tuple[type, ...]] = {
    ModelSpec: (Model,),
    EncoderSpec: (Encoder,),
    MetricSpec: (SetMetric, SampleMetric, TaskMetric),
    SplitSpec: (Split,),
    JudgeSpec: (Judge,),
}

T = TypeVar("T")
S = TypeVar("S", ModelSpec, EncoderSpec, MetricSpec, SplitSpec, JudgeSpec)


@dataclass(frozen=True)
class Problem:
    """A plugin that could not be used: where it is, and why."""

    source: str
    reason: str


def _items(kind: Any, value: Any) -> Any:
    """What ``--set NAME=a,b`` means where the parameter holds several values.

    >>> _items(tuple[float, ...], "0.5, 2"), _items(str, "a,b"), _items(tuple[int, ...], [1])
    (['0.5', '2'], 'a,b', [1])
    """
    kinds = {get_origin(each) for each in (kind, *get_args(kind))}
    if not isinstance(value, str) or not kinds & {tuple, list}:
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


@dataclass(frozen=True)
class Plugin(Generic[S]):
    """A descriptor and where it came from.

    Attributes:
        label: what it is called in results, where that is not the descriptor's name.
        text: what the user typed for it, by which `Registry.find` finds it again.
        values: parameter values that belong to that text.
    """

    spec: S
    source: str
    label: str = ""
    text: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.label or self.spec.name

    def load(self, *, here: bool = True) -> Any:
        """The class behind the descriptor.

        Args:
            here: whether it is going to work in this process, and so needs its modules here.

        Raises:
            ChexGenBenchError: a module is not installed, or it is not the class it should be.
        """
        spec = self.spec
        missing = [name for name in spec.requires if here and not importable(name)]
        if missing:
            raise UserError(
                f"The {spec.kind} {spec.name!r} needs {', '.join(missing)}, not installed here.",
                hint=f"Install it: pip install {' '.join(missing)}",
            )
        target: Any = self.resolve(spec.load)
        bases = _BASES[type(spec)]
        if not (inspect.isclass(target) and issubclass(target, bases)):
            wanted = " or ".join(base.__name__ for base in bases)
            raise ChexGenBenchError(
                f"The {spec.kind} {spec.name!r} ({self.source}) loads {target!r}, "
                f"which is not a subclass of {wanted}."
            )
        return target

    def resolve(self, target: Any) -> Any:
        """What a descriptor names by ``"module:attribute"``; anything but a text is returned as is.

        Raises:
            ChexGenBenchError: it cannot be imported.
        """
        if not isinstance(target, str):
            return target
        module_name, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except PLUGIN_FAULTS as error:
            raise ChexGenBenchError(
                f"The {self.spec.kind} {self.spec.name!r} ({self.source}) cannot be loaded from "
                f"{target!r}: {type(error).__name__}: {error}."
            ) from error

    def identity(self) -> dict[str, str]:
        """Name, version and hash of the defining source: what a result depends on."""
        version: str = getattr(self.spec, "version", "")
        return {"name": self.spec.name, "version": version, "source": self.source_hash()}

    def source_hash(self) -> str:
        """SHA-256 of the module that `load` names and of what it imports from its own package when
        it runs; empty where there is no source file."""
        target = self.spec.load
        name = target.partition(":")[0] if isinstance(target, str) else target.__module__
        return _source_hash(name)

    def parse(self, values: Mapping[str, Any]) -> Parameters:
        """The typed parameters from what the user wrote, strings or TOML values.

        Raises:
            UserError: an unknown name (the nearest is suggested) or a value of the wrong type.
        """
        fields = self.spec.parameters.model_fields
        for name in values:
            if name not in fields:
                raise unknown_name(f"parameter of {self.spec.kind} {self.name!r}", name, fields)
        split = {name: _items(fields[name].annotation, value) for name, value in values.items()}
        try:
            return self.spec.parameters.model_validate({**self.values, **split})
        except pydantic.ValidationError as error:
            lacking = [str(e["loc"][0]) for e in error.errors() if e["type"] == "missing"]
            if lacking:
                forms = [f"--set {self.name}.{name}=..." for name in lacking]
                if lacking == [getattr(self.spec, "argument", None)]:
                    forms.insert(0, f"--model {self.spec.name}:...")
                raise UserError(
                    f"The {self.spec.kind} {self.name!r} must be told its {', '.join(lacking)}.",
                    hint=f"Say {' or '.join(forms)}. See: chexgenbench {self.spec.kind}s show "
                    f"{self.spec.name}",
                ) from error
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg']}"
                for fault in error.errors()
            )
            raise UserError(
                f"Wrong parameter of {self.spec.kind} {self.name!r}: {faults}.",
                hint=f"See: chexgenbench {self.spec.kind}s show {self.spec.name}",
            ) from error

    def create(self, parameters: Parameters, argument: Context | int) -> Any:
        """An instance of the class behind the descriptor; `call` says how it fails."""
        found = self.load()
        return self.call("cannot be loaded", lambda: found(parameters, argument))

    def call(self, fault: str, function: Callable[[], T]) -> T:
        """The result of a plugin's code.

        Raises:
            ChexGenBenchError: whatever it raised, as an error that names the plugin. The user's
                own faults and those of the disk go up as they are.
        """
        try:
            return function()
        except ChexGenBenchError:
            raise
        except PLUGIN_FAULTS as error:
            if is_disk_fault(error):
                raise
            raise ChexGenBenchError(
                f"The {self.spec.kind} {self.name!r} ({self.source}) {fault}: "
                f"{type(error).__name__}: {error}"
            ) from error


@cache
def _source_hash(name: str) -> str:
    top = name.partition(".")[0]
    # A file by itself has no package: what it imports from beside it, or from a folder on the path,
    # is its own too, and what is installed is not.
    alone = top.startswith(_FILE)
    files: dict[str, bytes] = {}
    waiting = [name]
    while waiting:
        module = waiting.pop()
        path = _source_file(module)
        if module in files or path is None or (alone and module != name and _installed(path)):
            continue
        files[module] = path.read_bytes()
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = imports_of(files[module], package)
        waiting += [each for each in found if each.partition(".")[0] == top or alone]
    if not files:
        return ""
    code = hashlib.sha256()
    for module, content in sorted(files.items()):
        # The made-up name of a file holds its place, on which no result depends.
        known = module[len(_FILE) + _KEY + 1 :] if module.startswith(_FILE) else module
        code.update(f"{known}\n{len(content)}\n".encode() + content)
    return code.hexdigest()


def imports_of(source: bytes, package: str) -> Iterator[str]:
    """The modules, and what could be modules, that a source imports when it runs.

    >>> list(imports_of(b"import numpy; from . import canvas", "phantom"))
    ['phantom', 'phantom.canvas', 'numpy']
    """
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            base = importlib.util.resolve_name(f"{dots}{node.module or ''}", package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            waiting += ast.iter_child_nodes(node)


def _installed(path: Path) -> bool:
    """Whether a source belongs to Python, to an installed package or to this one."""
    paths = {Path(each).resolve() for each in sysconfig.get_paths().values()}
    paths |= {Path(__file__).resolve().parent}
    paths |= {Path(each).resolve() for each in importlib.import_module(BUILT_IN).__path__}
    return any(path.resolve().is_relative_to(each) for each in paths)


def _source_file(module: str) -> Path | None:
    loaded = sys.modules.get(module)
    # A plugin file was imported under a made-up name, which find_spec cannot resolve.
    file = getattr(loaded, "__file__", None)
    if file is None:
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
        file = found.origin if found else None
    path = Path(file) if file else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


@cache
def importable(name: str) -> bool:
    """Whether a module of that name is installed; nothing is imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@dataclass(frozen=True)
class Registry:
    """All plugins by name, and those that could not be used.

    Attributes:
        home: the folder that relative paths in the text of a model start from.
    """

    models: Mapping[str, Plugin[ModelSpec]]
    encoders: Mapping[str, Plugin[EncoderSpec]]
    metrics: Mapping[str, Plugin[MetricSpec]]
    splits: Mapping[str, Plugin[SplitSpec]]
    judges: Mapping[str, Plugin[JudgeSpec]]
    problems: Sequence[Problem] = field(default=())
    home: Path = Path()

    def of_kind(self, kind: str) -> Mapping[str, Plugin[Any]]:
        """The plugins of ``models``, ``encoders``, ``metrics``, ``splits`` or ``judges``."""
        plugins: Mapping[str, Plugin[Any]] = getattr(self, kind)
        return plugins

    def find(self, kind: str, name: str) -> Plugin[Any]:
        """The plugin of that name; of a model also ``NAME:TEXT`` and ``LABEL=NAME:TEXT``.

        TEXT goes to the parameter `ModelSpec.argument`; LABEL is what results call the model, so
        that one plugin can run several times with other parameters.

        Raises:
            UserError: an unknown name, with the nearest one, or why that plugin failed to load.
        """
        plugins = self.of_kind(kind)
        if kind == "models":
            label, name, text = split_model(name)
            if name in plugins:
                return _specialise(plugins[name], label, text, self.home)
        elif name in plugins:
            return plugins[name]
        error = unknown_name(kind[:-1], name, plugins)
        if self.problems:
            failed = "; ".join(f"{problem.source}: {problem.reason}" for problem in self.problems)
            error.hint = f"{error.hint} Plugins that could not be used: {failed}"
        raise error


_FILE = "chexgenbench_file_"
"""How the module of a plugin file is called, before the hash of its path and its stem."""

_KEY = 12
"""Hexadecimal digits of that hash."""

_LABEL = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})=(.*)", re.DOTALL)


def split_model(text: str) -> tuple[str, str, str | None]:
    """The label (empty: none), the plugin's name and its text of what ``--model`` was given.

    >>> split_model("sana"), split_model("mine=sana:/a=b:c")
    (('', 'sana', None), ('mine', 'sana', '/a=b:c'))
    """
    label = ""
    found = _LABEL.fullmatch(text)
    if found:
        label, text = found.groups()
    name, colon, argument = text.partition(":")
    return label, name, argument if colon else None


def _specialise(
    plugin: Plugin[ModelSpec], label: str, text: str | None, home: Path
) -> Plugin[ModelSpec]:
    spec = plugin.spec
    name = spec.name
    place: Path | None = None
    if text is not None:
        if not text.strip() or not text.isprintable():
            raise UserError(f"The model {name!r} was given {text!r} after its colon: no name.")
        if spec.argument is None and spec.expand is None:
            raise UserError(
                f"The model {name!r} takes no text after its name, but was given {text!r}.",
                hint=f"Its parameters: chexgenbench models show {name}",
            )
        place = _place(text, home)
    given = text if place is None else str(place)
    shown = text if place is None else place.name
    if spec.expand is not None and given is not None:
        expand = plugin.resolve(spec.expand)
        spec = plugin.call("cannot be made from its text", lambda: expand(given, home))
        fault = _fault(spec, ModelSpec)
        if fault:
            raise ChexGenBenchError(f"The model {name!r} ({plugin.source}) {fault}.")
        shown = shown if spec.name == name else spec.name
    written = name if given is None else f"{name}:{given}"
    return dataclasses.replace(
        plugin,
        spec=spec,
        label=label or (name if text is None else f"{name}:{shown}"),
        text=f"{label}={written}" if label else written,
        values={spec.argument: given} if spec.argument and given is not None else {},
    )


def _place(text: str, home: Path) -> Path | None:
    """The file or folder that `text` names, if one: what lies where the command is typed comes
    before what lies in the project folder."""
    for base in (Path.cwd(), home):
        # No such user (`~name`), or a text too long for a path.
        with suppress(RuntimeError, OSError, ValueError):
            path = base / Path(text).expanduser()
            if path.exists():
                return path.resolve()
    return None


def load_registry(
    files: Sequence[Path] = (), folder: Path | None = None, home: Path = Path()
) -> Registry:
    """Finds all plugins: built in, installed, in `folder`, and in the named `files`.

    Args:
        files: what ``--plugin`` named; each must exist and import, else `UserError`.
        folder: every ``*.py`` in it is a plugin; one that fails is a problem, not an error.
        home: see `Registry`.

    Raises:
        UserError: two plugins of one kind share a name (both are named).
    """
    # What a plugin prints while it is imported is no part of an answer such as that of --json.
    with redirect_stdout(sys.stderr):
        return _load_registry(files, folder, home)


def _load_registry(files: Sequence[Path], folder: Path | None, home: Path) -> Registry:
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    problems: list[Problem] = []

    for module_name in _built_in_modules():
        _register(manager, problems, module_name, partial(importlib.import_module, module_name))
    for entry in importlib.metadata.entry_points(group=hookspecs.GROUP):
        source = f"{entry.dist.name if entry.dist else 'package'}: {entry.value}"
        _register(manager, problems, source, entry.load)
    for path in sorted(folder.glob("*.py")) if folder and folder.is_dir() else ():
        _register(manager, problems, str(path), lambda path=path: import_file(path))
    for path in files:
        if not path.is_file():
            raise UserError(f"The plugin file {path} does not exist.")
        _register(manager, problems, str(path), lambda path=path: import_file(path))
        module = manager.get_plugin(str(path))
        if module is not None and not manager.get_hookcallers(module):
            raise UserError(
                f"The plugin file {path} has no hook.",
                hint="Mark a function chexgenbench_models (or _encoders, _metrics, _splits, "
                "_judges) with @chexgenbench.hookimpl.",
            )

    found: dict[str, dict[str, Plugin[Any]]] = {kind: {} for kind in KINDS}
    named = {str(path) for path in files}
    for kind in KINDS:
        for plugin in _call(manager, kind, problems):
            other = found[kind].get(plugin.name)
            if other is not None:
                raise UserError(
                    f"Two {kind} are named {plugin.name!r}: one in {other.source}, "
                    f"one in {plugin.source}.",
                    hint="Rename or remove one of them.",
                )
            found[kind][plugin.name] = plugin
    for problem in problems:
        if problem.source in named:
            raise UserError(f"The plugin file {problem.source} cannot be used: {problem.reason}")
    return Registry(**found, problems=tuple(problems), home=home)


def _built_in_modules() -> Iterator[str]:
    package = importlib.import_module(BUILT_IN)
    for kind in KINDS:
        for base in package.__path__:
            for info in pkgutil.iter_modules([str(Path(base) / kind)]):
                yield f"{BUILT_IN}.{kind}.{info.name}"


def import_file(path: Path) -> ModuleType:
    """The module in `path`, under a name of its own; whatever importing it raises."""
    # The name carries the path's hash: two files of one name do not replace each other.
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:_KEY]
    name = f"{_FILE}{key}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _register(
    manager: pluggy.PluginManager, problems: list[Problem], source: str, load: Any
) -> None:
    try:
        manager.register(load(), name=source)
    except PLUGIN_FAULTS as error:
        problems.append(Problem(source, f"{type(error).__name__}: {error}"))


def _call(
    manager: pluggy.PluginManager, kind: str, problems: list[Problem]
) -> Iterator[Plugin[Any]]:
    wanted = _SPECS[kind]
    hook = getattr(manager.hook, f"chexgenbench_{kind}")
    # One call an implementation, not hook(): a fault is then known by its plugin's name.
    for implementation in hook.get_hookimpls():
        source = implementation.plugin_name
        try:
            specs = list(implementation.function())
            for spec in specs:
                fault = _fault(spec, wanted)
                if fault:
                    raise TypeError(fault)
        except PLUGIN_FAULTS as error:
            problems.append(
                Problem(source, f"chexgenbench_{kind}: {type(error).__name__}: {error}")
            )
            continue
        for spec in specs:
            yield Plugin(spec, source)


def _fault(spec: object, wanted: type[Spec]) -> str | None:
    if not isinstance(spec, wanted):
        return f"yielded a {type(spec).__name__}, not a {wanted.__name__}"
    if (
        not isinstance(spec.name, str)
        or not spec.name.isprintable()
        or not spec.name
        or set(spec.name) & set("/\\@:= ")
    ):
        return f"{spec.name!r} is not a plugin name"
    if not (inspect.isclass(spec.parameters) and issubclass(spec.parameters, Parameters)):
        return f"parameters of {spec.name!r} is not a subclass of chexgenbench.Parameters"
    return None


def describe(spec: Spec) -> dict[str, Any]:
    """A descriptor as plain values, for `show` and ``--json``."""
    described: dict[str, Any] = {}
    for item in dataclasses.fields(spec):
        value = getattr(spec, item.name)
        if item.name == "parameters":
            value = [
                {
                    "name": name,
                    "type": _type_name(info.annotation),
                    "default": None
                    if info.is_required()
                    else info.get_default(call_default_factory=True),
                    "required": info.is_required(),
                    "description": info.description or "",
                }
                for name, info in spec.parameters.model_fields.items()
            ]
        elif item.name in ("load", "expand", "convert") and callable(value):
            value = f"{value.__module__}:{value.__qualname__}"
        elif item.name in ("scores", "downloads"):
            value = [dataclasses.asdict(each) for each in value]
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        described[item.name] = value
    return described


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)
