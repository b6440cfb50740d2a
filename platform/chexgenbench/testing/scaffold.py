"""A new plugin as a whole package that works as it stands."""

from __future__ import annotations

import keyword
import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template

from chexgenbench import __version__
from chexgenbench.errors import UserError
from chexgenbench.registry import Registry, importable

KINDS = ("model", "metric", "encoder", "split", "judge")

_LONGEST = 40
"""Characters of a name, so that the lines of the package stay short."""

_TRY = {
    "model": "chexgenbench run --model {name} --model noise --limit 100",
    "metric": "chexgenbench run --model oracle --model noise --metric {name} --limit 100",
    "encoder": "chexgenbench run --model oracle --model noise --encoder {name} --metric kid "
    "--limit 100",
    "split": "chexgenbench run --split {name} --model noise --metric kid",
    "judge": "chexgenbench dataset export RUN DATASET --judge {name}",
}


def trial(kind: str, name: str) -> str:
    """The command that shows a new plugin at work."""
    return _TRY[kind].format(name=name)


def create(kind: str, name: str, into: Path, registry: Registry) -> list[Path]:
    """Writes the package NAME/ below `into`, whole or not at all.

    Returns:
        Its files, sorted.

    Raises:
        UserError: a name that cannot be one or is taken, or a folder that exists.
    """
    module = check_name(kind, name, registry)
    target = into / name
    if into.is_dir() and (target.exists() or target.is_symlink()):
        raise UserError(
            f"{target} exists.",
            hint="Choose another name, or another place: --into FOLDER.",
        )
    if not into.is_dir():
        fault = "is no folder" if into.exists() else "does not exist"
        raise UserError(f"{into} {fault}.", hint="--into takes a folder that is there.")
    facts = {
        "name": name,
        "module": module,
        "kind": kind,
        "version": ".".join(__version__.split(".")[:2]),
        "trial": trial(kind, name),
    }
    with tempfile.TemporaryDirectory(prefix=".new-plugin-", dir=into) as place:
        made = Path(place) / name
        code = made / "src" / module
        texts = {
            "pyproject.toml.txt": made / "pyproject.toml",
            "README.md.txt": made / "README.md",
            "LICENSE.txt": made / "LICENSE",
            "test_contract.py.txt": made / "tests" / "test_contract.py",
            "init.py.txt": code / "__init__.py",
            f"{kind}.py.txt": code / "plugin.py",
        }
        for template, path in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_filled(template, facts), encoding="utf-8")
        (code / "py.typed").touch()
        if kind == "split":
            _write_data(code / "data")
        made.chmod(0o755)
        shutil.move(made, target)
    return sorted(path for path in target.rglob("*") if path.is_file())


def _filled(template: str, facts: dict[str, str]) -> str:
    text = files("chexgenbench.testing").joinpath("templates", template).read_text("utf-8")
    return Template(text).substitute(facts)


def _write_data(folder: Path) -> None:
    """Eight test rows and sixteen training rows with pictures."""
    from chexgenbench.testing.world import cases, draw, write_split

    every = cases(24)
    for side, chosen, first in (("test", every[:8], 0), ("train", every[8:], 100)):
        write_split(folder, side, chosen, [draw(c, first + i) for i, c in enumerate(chosen)])


def check_name(kind: str, name: str, registry: Registry) -> str:
    """The name of the Python module of a plugin.

    Raises:
        UserError: it is no name of a package (PEP 503, in its normal form) and of a module, or it
            is taken.
    """
    if kind not in KINDS:
        raise UserError(f"There is no kind {kind!r}.", hint=f"There are: {', '.join(KINDS)}.")
    normal = re.sub(r"[-_.]+", "-", name).strip("-").lower()
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > _LONGEST:
        good = re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", normal) and len(normal) <= _LONGEST
        raise UserError(
            f"{name!r} cannot be the name of a plugin.",
            hint="Use small letters, digits and single hyphens, a letter first, at most "
            f"{_LONGEST} characters" + (f": {normal}" if good else "."),
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or keyword.issoftkeyword(module):
        raise UserError(f"{name!r} is a word of Python.", hint=f"Such as: my-{name}")
    for each, taken in registry.of_kind(f"{kind}s").items():
        if each.replace("_", "-").lower() == name:
            raise UserError(
                f"There is a {kind} named {each!r} already ({taken.source}).",
                hint=f"Choose another name, such as my-{name}",
            )
    if module in sys.stdlib_module_names or importable(module):
        raise UserError(
            f"There is a Python module {module!r} already.",
            hint=f"Choose another name, such as my-{name}",
        )
    return module
