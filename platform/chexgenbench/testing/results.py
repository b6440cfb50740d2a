"""What a check says, and how it says it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one check said of one plugin.

    Attributes:
        plugin: the plugin's name.
        kind: ``model``, ``encoder``, ``metric``, ``split`` or ``judge``.
        check: the check's name, which ``--skip`` takes.
        status: ``passed``, ``failed``, or ``skipped`` where the check does not apply.
        detail: what was measured, what is wrong, or why the check does not apply.
        hint: what to do, where it failed; else empty.
        seconds: how long it took.
    """

    plugin: str
    kind: str
    check: str
    status: Status
    detail: str = ""
    hint: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


class Fault(Exception):
    """Raised by a check: the plugin does not keep the contract.

    Args:
        detail: what is wrong, with numbers.
        hint: what to do.
    """

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


class Skip(Exception):
    """Raised by a check that does not apply to this plugin, or not here; its text says why."""
