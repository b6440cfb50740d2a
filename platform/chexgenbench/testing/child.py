"""What runs in a process of its own: ``python -m chexgenbench.testing.child ORDER.json``.

An order has a task: ``check`` takes the checks and notes each beginning and end as a line of
``events.jsonl``, so that the parent knows which one hung; ``modules`` says what importing the
plugins imports and does; ``make`` makes the kit's images or features again.
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
    if order["task"] in ("modules", "make"):
        task = _modules if order["task"] == "modules" else _make
        answer = task(order, folder)
        (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")
        # A thread or an exit function of the plugin's would keep an ordinary end waiting.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)
    else:
        # The parent holds our standard input; when it ends, so do we.
        threading.Thread(target=_end_with_input, daemon=True).start()
        _check(order, folder)


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


def _modules(order: Mapping[str, Any], folder: Path) -> dict[str, list[str]]:
    """Top-level modules that are there after importing the plugin's module and calling its hooks,
    and what that did besides.

    Of the platform only what finds plugins is imported before, which is light.
    """
    import importlib

    from chexgenbench.registry import KINDS, import_file
    from chexgenbench.testing.find import onto_path

    onto_path(_origin(order))
    sys.dont_write_bytecode = True  # that would be a file that importing writes
    watch = _Watch(folder / "printed")
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
    did = watch.end()
    return {"modules": sorted({name.partition(".")[0] for name in sys.modules}), "did": did}


class _Watch:
    """What code does beside defining things: prints, files, connections, processes, threads."""

    def __init__(self, printed: Path) -> None:
        self._did: dict[str, None] = {}
        self._on = True
        self._printed = printed
        self._threads = set(threading.enumerate())
        # The file and not `sys.stdout`, so that what C code and processes print counts as well.
        with printed.open("wb") as file:
            os.dup2(file.fileno(), 1)
        sys.addaudithook(self._hear)

    def end(self) -> list[str]:
        self._on = False
        sys.stdout.flush()
        if self._printed.stat().st_size:
            self._did["prints"] = None
        for thread in set(threading.enumerate()) - self._threads:
            self._did[f"starts the thread {thread.name!r}"] = None
        return list(self._did)

    def _hear(self, event: str, facts: tuple[Any, ...]) -> None:
        said = _deed(event, facts) if self._on else ""
        if said:
            self._did[said] = None


_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod")


def _deed(event: str, facts: tuple[Any, ...]) -> str:
    """What an audit event of Python's says was done, in words; empty where it is of no account.

    >>> _deed("open", ("/tmp/x", "w", os.O_WRONLY)), _deed("open", ("/tmp/x", "r", os.O_RDONLY))
    ("writes to '/tmp/x'", '')
    >>> _deed("socket.bind", (None, ("::1", 0, 0, 0)))  # how urllib3 asks whether there is IPv6
    ''
    """
    if event == "open":
        path, _, flags = facts
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        text = _path(path)
        return f"writes to {text!r}" if writes and text and not text.startswith("/dev/") else ""
    if event in _CHANGES:
        return f"changes files ({event} of {_path(facts[0])!r})"
    if event in _STARTS:
        return "starts a process"
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        return "uses the network"
    if event == "socket.bind":
        address = facts[1]
        return "opens a socket" if not isinstance(address, tuple) or address[1] else ""
    return ""


def _path(place: object) -> str:
    """Empty where it is the number of an open file."""
    return os.fsdecode(place) if isinstance(place, str | bytes | os.PathLike) else ""


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
