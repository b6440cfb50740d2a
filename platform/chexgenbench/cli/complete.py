"""What the shell completes: names of plugins, suites, runs and saved queries.

To ask every plugin for its names takes a second, so they are kept in the cache folder until a
plugin's file, or what is installed, changes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chexgenbench.home import Home

_KEPT = "completion.json"


def models(incomplete: str) -> list[str]:
    """Models, as ``--model`` takes them; after a label and an equals sign too."""
    label, equals, _ = incomplete.rpartition("=")
    return [f"{label}{equals}{name}" for name in _names("models")]


def encoders() -> list[str]:
    """Encoders."""
    return _names("encoders")


def metrics(incomplete: str) -> list[str]:
    """Metrics; after an @, their encoders."""
    metric, at, _ = incomplete.partition("@")
    return [f"{metric}@{name}" for name in _names("encoders")] if at else _names("metrics")


def splits() -> list[str]:
    """Splits."""
    return _names("splits")


def of_group(ctx: Any) -> list[str]:
    """The plugins of the kind whose command it is, such as ``metrics show``."""
    return _names(ctx.parent.info_name)


def suites() -> list[str]:
    """Suites."""
    return _names("suites")


def queries() -> list[str]:
    """Saved queries."""
    return _names("queries")


def runs(ctx: Any) -> list[str]:
    """Runs of the project folder, by their ids."""
    with contextlib.suppress(Exception):
        named = ctx.params.get("home")
        home = Home.find(Path(named) if named else None)
        return sorted(path.parent.name for path in home.runs.glob("*/run.json"))
    return []


def _names(kind: str) -> list[str]:
    """The names of a kind; none where anything goes wrong, for a shell waits for the answer."""
    try:
        home = Home.find()
        stamp = _stamp(home)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads((home.cache / _KEPT).read_text(encoding="utf-8"))
            if known["stamp"] == stamp:
                return [str(name) for name in known["names"][kind]]
        # What a plugin prints while it is imported would be taken for names.
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            names = _ask(home)
        with contextlib.suppress(OSError):
            from chexgenbench.files import write_json

            write_json(home.cache / _KEPT, {"stamp": stamp, "names": names})
        return list(names[kind])
    except Exception:
        return []


def _ask(home: Home) -> dict[str, Sequence[str]]:
    from chexgenbench.registry import KINDS
    from chexgenbench.store.cookbook import saved_queries
    from chexgenbench.workflow.options import Options
    from chexgenbench.workflow.plan import load_plugins
    from chexgenbench.workflow.suite import list_suites

    registry = load_plugins(Options(home=home))
    found: dict[str, Sequence[str]] = {kind: sorted(registry.of_kind(kind)) for kind in KINDS}
    return found | {"suites": sorted(list_suites(home)), "queries": sorted(saved_queries())}


def _stamp(home: Home) -> list[Any]:
    """What changes when a plugin, a suite or an installed package comes, goes or changes."""
    from chexgenbench import __file__ as platform
    from chexgenbench import __version__

    own = Home.user_folder()
    folders = [Path(sysconfig.get_path("purelib")), own / "plugins", own, home.root / "suites"]
    newest = [_changed(folder) for folder in folders]
    files = 0
    last = 0
    for path in _plugin_files(Path(platform).parent.parent, own):
        files += 1
        last = max(last, _changed(path))
    return [__version__, str(home.root), newest, files, last]


def _plugin_files(platform: Path, own: Path) -> Iterator[str]:
    # The registry's BUILT_IN: to import the registry would take longer than all this.
    built_in = importlib.import_module("chexgenbench_plugins").__path__
    for top in map(str, (*built_in, own / "plugins", platform / "chexgenbench/store")):
        for folder, _, names in os.walk(top):
            for name in names:
                if name.endswith((".py", ".toml", ".sql")):
                    yield os.path.join(folder, name)  # noqa: PTH118


def _changed(path: str | Path) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0
