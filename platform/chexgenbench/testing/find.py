"""Which plugins a file, a package's folder or a name means."""

from __future__ import annotations

import atexit
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chexgenbench.errors import UserError, unknown_name
from chexgenbench.hookspecs import GROUP
from chexgenbench.registry import KINDS, Plugin, Registry, load_registry
from chexgenbench.testing.subject import Origin


def locate(target: str | Path) -> Origin:
    """Where the plugins of `target` come from; nothing of theirs is imported.

    Args:
        target: a file, the folder of a package (with a pyproject.toml, installed or not), or the
            name of a plugin that is installed or built in.

    Raises:
        UserError: no such file or folder, or a folder that declares no plugin.
    """
    text = str(target)
    if not text.strip() or not text.isprintable():
        raise UserError(f"{text!r} is no name of a plugin.")
    path = Path(target).expanduser()
    if path.is_file():
        return Origin(files=(str(path.resolve()),))
    if path.is_dir():
        return _package(path.resolve())
    if path.suffix == ".py" or (isinstance(target, Path) and ":" not in text):
        raise UserError(f"There is no file or folder {text}.")
    return Origin(name=text)


def _package(folder: Path) -> Origin:
    """A package by its ``pyproject.toml``, seen as if it were installed.

    A folder with its entry points as an installer would write them is put on the path before
    everything else, so that the plugins in `folder` are found, and not those of an older copy that
    is installed.
    """
    file = folder / "pyproject.toml"
    try:
        declared = tomllib.loads(file.read_text(encoding="utf-8"))
        project = declared["project"]
        name, points = project["name"], project["entry-points"][GROUP]
        found = dict(points)
    except FileNotFoundError as error:
        raise UserError(
            f"The folder {folder} has no pyproject.toml.",
            hint="Name a package's folder or a plugin's file. A new one: chexgenbench plugin new",
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} declares no plugin.",
            hint=f'It needs [project.entry-points.{GROUP}] with a line: mine = "mine.plugin"',
        ) from error
    texts = [name, *found, *found.values()]
    if not all(isinstance(text, str) and re.fullmatch(r"[\w.:-]+", text) for text in texts):
        raise UserError(f"{file} has a name or an entry point that is no plain name.")
    info = Path(tempfile.mkdtemp(prefix="chexgenbench-"))
    atexit.register(shutil.rmtree, info, ignore_errors=True)
    place = info / f"{re.sub(r'[-_.]+', '_', name)}-0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n", "utf-8")
    lines = [f"{key} = {value}" for key, value in found.items()]
    (place / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]), "utf-8")
    code = folder / "src" if (folder / "src").is_dir() else folder
    return Origin(paths=(str(info), str(code)), distribution=name)


def load(origin: Origin) -> Registry:
    """All plugins, those of the origin among them; their code is on the path from now on.

    Raises:
        UserError: a file that cannot be used.
    """
    onto_path(origin)
    try:
        return load_registry([Path(file) for file in origin.files], _users_folder())
    except UserError as error:
        if origin.files and error.message.startswith("Two "):
            error.hint = (
                "Is the file a part of a package that is installed? Check the package's folder, or "
                "the plugin by its name, in place of the file. Else rename one of them."
            )
        elif origin.files and not error.hint:
            error.hint = _how_to_mend(error.message)
        raise


def _how_to_mend(reason: str) -> str:
    """What to do about a plugin that cannot be imported."""
    if "ModuleNotFoundError" in reason:
        return (
            "Install the module, or import it inside the class that `load` names and say "
            'requires=("MODULE",).'
        )
    if "SyntaxError" in reason or "IndentationError" in reason:
        return "Mend the line that is named."
    return "Importing the module and calling its hooks must work by themselves."


def onto_path(origin: Origin) -> None:
    """Lets the origin's modules be imported."""
    for path in reversed(origin.paths):
        if path not in sys.path:
            sys.path.insert(0, path)


def _users_folder() -> Path:
    from chexgenbench.home import Home
    from chexgenbench.workflow.options import Options
    from chexgenbench.workflow.plan import plugin_source

    folder = plugin_source(Options(home=Home.find())).folder
    assert folder is not None
    return folder


def plugins_of(
    origin: Origin, registry: Registry, kind: str | None = None, name: str | None = None
) -> list[Plugin[Any]]:
    """The plugins that are meant, in the order of their kinds.

    Args:
        kind: ``model`` and so on; None: all of them.
        name: of the plugin, where a file or package has several.

    Raises:
        UserError: none is there, or why it could not be used.
    """
    kinds = KINDS if kind is None else (f"{kind}s",)
    if origin.name:
        return [_named(registry, kinds, origin.name)]
    found = [
        plugin
        for each in kinds
        for plugin in registry.of_kind(each).values()
        if _is_of(plugin.source, origin) and name in (None, plugin.name)
    ]
    if not found:
        problems = [p for p in registry.problems if _is_of(p.source, origin)]
        what = name or (f"{kind}" if kind else "plugin")
        reason = "; ".join(problem.reason for problem in problems)
        where = origin.distribution or Path(origin.files[0]).name
        raise UserError(
            f"There is no {what} in {where}." if not reason else f"{where}: {reason}",
            hint=_how_to_mend(reason)
            if reason
            else "Mark a function chexgenbench_models (or _encoders, _metrics, _splits, _judges) "
            "with @chexgenbench.hookimpl.",
        )
    return found


def _is_of(source: str, origin: Origin) -> bool:
    if origin.files:
        return source in origin.files
    return source.startswith(f"{origin.distribution}: ")


def _named(registry: Registry, kinds: Sequence[str], text: str) -> Plugin[Any]:
    having = [kind for kind in kinds if text in registry.of_kind(kind)]
    if not having and "models" in kinds and set(text) & set(":="):
        return registry.find("models", text)
    if len(having) > 1:
        raise UserError(
            f"{text!r} names a {' and a '.join(kind[:-1] for kind in having)}.",
            hint=f"Say which: --kind {having[0][:-1]}",
        )
    if not having:
        known = [name for kind in kinds for name in registry.of_kind(kind)]
        raise unknown_name("plugin, file or folder", text, known)
    return registry.find(having[0], text)
