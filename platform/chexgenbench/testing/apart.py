"""The checks in a process of their own: a plugin that hangs or crashes is a failed check."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chexgenbench.errors import UserError
from chexgenbench.executors.launch import Process, exit_text, last_line
from chexgenbench.testing.child import EVENTS
from chexgenbench.testing.find import locate
from chexgenbench.testing.results import Result
from chexgenbench.testing.subject import Settings, child_command

_LOOK_AGAIN = 0.05
"""Seconds between two looks at what the process has noted."""


@dataclass
class Checked:
    """What was said of one plugin.

    Attributes:
        source: where it came from.
    """

    plugin: str
    kind: str
    source: str
    checks: Sequence[str]
    results: list[Result] = field(default_factory=list)


def check_apart(
    target: str | Path,
    settings: Settings | None = None,
    *,
    kind: str | None = None,
    name: str | None = None,
    told: Callable[[Result], None] = lambda _result: None,
) -> list[Checked]:
    """Takes all checks in a process of its own, each for at most `Settings.seconds`.

    Where the plugin hangs, crashes or ends the process, the check at work has failed and the later
    ones of that plugin are skipped.

    Args:
        target, kind, name: as for `check_plugin`; no descriptor.
        told: given each result as it comes.

    Raises:
        UserError: there is no such file, folder, plugin, parameter or check.
    """
    chosen = settings or Settings()
    origin = locate(target)
    with tempfile.TemporaryDirectory(prefix="chexgenbench-check-") as place:
        folder = Path(place)
        order = {
            "task": "check",
            "origin": vars(origin),
            "settings": chosen.as_json(),
            "kind": kind,
            "name": name,
            "folder": str(folder),
        }
        (folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
        process = Process(child_command(folder / "order.json"), folder / "log.txt")
        try:
            return _Watch(folder, chosen.seconds, told).follow(process)
        finally:
            process.stop()


class _Watch:
    """Reads what a child notes, and says what its end means."""

    def __init__(self, folder: Path, seconds: float, told: Callable[[Result], None]) -> None:
        self._file = folder / EVENTS
        self._log = folder / "log.txt"
        self._seconds = seconds
        self._told = told
        self._read = 0
        self._at = ""
        self._found: list[Checked] = []

    def follow(self, process: Process) -> list[Checked]:
        news = time.monotonic()
        while True:
            code = process.poll()
            events = self._new()
            for event in events:
                news = time.monotonic()
                if self._take(event):
                    return self._found
            if code is not None and not events:
                return self._ended(f"the process ended with {exit_text(code)}", code)
            if time.monotonic() - news > self._seconds:
                process.stop()
                for event in self._new():
                    if self._take(event):
                        return self._found
                return self._ended(f"it was not ready after {self._seconds:g} s", None)
            time.sleep(_LOOK_AGAIN)

    def _new(self) -> list[dict[str, Any]]:
        if not self._file.is_file():
            return []
        with self._file.open("rb") as file:
            file.seek(self._read)
            whole, _, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + bool(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _take(self, event: dict[str, Any]) -> bool:
        """Notes an event; whether it was the last."""
        kind = event.pop("event")
        if kind == "refused":
            raise UserError(event["message"], hint=event["hint"] or None)
        if kind == "plugin":
            self._found.append(Checked(**event))
            self._at = ""
        elif kind == "begin":
            self._at = event["check"]
        elif kind == "result":
            self._add(Result(**event))
            self._at = ""
        elif kind == "broken":
            self._found.append(Checked("", "plugin", "", ["import"]))
            self._add(_import_fault(event["message"], event["hint"]))
            return True
        return bool(kind == "end")

    def _add(self, result: Result) -> None:
        self._found[-1].results.append(result)
        self._told(result)

    def _ended(self, why: str, code: int | None) -> list[Checked]:
        said = last_line(self._log)
        detail = f"{why}: {said}" if code is not None and said else why
        if not self._found:
            self._found.append(Checked("", "plugin", "", ["import"]))
            self._add(_import_fault(detail, "importing a plugin must do nothing but define it"))
            return self._found
        last = self._found[-1]
        done = {result.check for result in last.results}
        # Between two checks, as after the import of a plugin, the next one is to blame.
        left = [name for name in last.checks if name not in done]
        at = self._at or (left[0] if left else "")
        hint = "a plugin may neither hang nor end the process; a longer wait: --timeout"
        for name in left:
            facts: dict[str, Any] = {"plugin": last.plugin, "kind": last.kind, "check": name}
            if name == at:
                self._add(Result(**facts, status="failed", detail=detail, hint=hint))
            else:
                self._add(Result(**facts, status="skipped", detail=f"not taken: {at} {why}"))
        return self._found


def _import_fault(detail: str, hint: str) -> Result:
    return Result(
        plugin="", kind="plugin", check="import", status="failed", detail=detail, hint=hint
    )
