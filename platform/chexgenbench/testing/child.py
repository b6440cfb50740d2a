"""What runs in a process of its own: ``python -m chexgenbench.testing.child ORDER.json``.

An order has a task: ``check`` takes the checks and notes each beginning and end as a line of
``events.jsonl``, so that the parent knows which one hung; ``modules`` says what importing the
plugins imports; ``make`` makes the kit's images or features again.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"


def main(order_file: str) -> None:
    """Does what the order says."""
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))
    folder = Path(order["folder"])
    if order["task"] == "modules":
        _answer(folder, _modules(order))
    elif order["task"] == "make":
        _answer(folder, _make(order, folder))
    else:
        # The parent holds our standard input; when it ends, so do we.
        threading.Thread(target=_end_with_input, daemon=True).start()
        _check(order, folder)


def _answer(folder: Path, value: Any) -> None:
    (folder / "answer.json").write_text(json.dumps(value), encoding="utf-8")


def _end_with_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


def _origin(order: Mapping[str, Any]) -> Any:
    from chexgenbench.testing.subject import Origin

    values: dict[str, Any] = order["origin"]
    return Origin(
        paths=tuple(values["paths"]),
        files=tuple(values["files"]),
        distribution=values["distribution"],
        name=values["name"],
    )


def _modules(order: Mapping[str, Any]) -> list[str]:
    """Top-level modules that are there after importing the plugin's module and calling its hooks.

    Of the platform only what finds plugins is imported before, which is light.
    """
    import importlib

    from chexgenbench.registry import KINDS, import_file
    from chexgenbench.testing.find import onto_path

    onto_path(_origin(order))
    source: str = order["source"]
    if Path(source).is_absolute():
        module = import_file(Path(source))
    else:
        # ``package: module`` of an installed one.
        module = importlib.import_module(source.rpartition(" ")[2].partition(":")[0])
    for kind in KINDS:
        hook = getattr(module, f"chexgenbench_{kind}", None)
        if hook is not None:
            list(hook())
    return sorted({name.partition(".")[0] for name in sys.modules})


def _plugin(order: Mapping[str, Any]) -> Any:
    from chexgenbench.testing.find import load

    registry = load(_origin(order))
    return registry.find(f"{order['kind']}s", order["name"])


def _make(order: Mapping[str, Any], folder: Path) -> str:
    import numpy as np

    from chexgenbench.testing import encoders, models
    from chexgenbench.testing.subject import Settings, Subject

    subject = Subject(
        _plugin(order), folder / "world", Settings.from_json(order["settings"]), _origin(order)
    )
    made = (models if order["kind"] == "model" else encoders).answer(subject)
    path = folder / "made.npz"
    np.savez(path, **{str(i): rows for i, rows in enumerate(made)})
    return str(path)


def _check(order: Mapping[str, Any], folder: Path) -> None:
    from chexgenbench.errors import ChexGenBenchError, UserError
    from chexgenbench.testing.checks import check_names, checks_of
    from chexgenbench.testing.find import load, plugins_of
    from chexgenbench.testing.subject import Settings

    with (folder / EVENTS).open("a", encoding="utf-8") as file:

        def note(event: str, **facts: Any) -> None:
            file.write(json.dumps({"event": event, **facts}) + "\n")
            file.flush()

        origin, settings = _origin(order), Settings.from_json(order["settings"])
        note("import")
        try:
            registry = load(origin)
            found = plugins_of(origin, registry, order["kind"], order["name"])
        except ChexGenBenchError as error:
            # What the user mistyped is refused; what cannot be imported is the plugin's fault.
            mistyped = origin.name or order["kind"] or order["name"]
            facts = {"message": error.message, "hint": error.hint or ""}
            note("refused" if mistyped else "broken", **facts)
            return
        try:
            every = [
                checks_of(plugin, folder / str(number), settings, origin)
                for number, plugin in enumerate(found)
            ]
        except UserError as error:
            note("refused", message=error.message, hint=error.hint or "")
            return
        for plugin, checks in zip(found, every, strict=True):
            spec = plugin.spec
            names = check_names(spec.kind)
            note("plugin", plugin=plugin.name, kind=spec.kind, source=plugin.source, checks=names)
            for check in checks:
                note("begin", check=check.name)
                note("result", **check.run().as_json())
        note("end")


if __name__ == "__main__":
    main(sys.argv[1])
