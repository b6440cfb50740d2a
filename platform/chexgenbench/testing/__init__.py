"""The contract tests that plugin authors run, on the command line and in their own test suites.

``chexgenbench plugin check PATH`` runs them; in a test file of yours, one test a check::

    from pathlib import Path

    from chexgenbench.testing import Check, contract

    @contract(Path(__file__).parents[1])
    def test_contract(check: Check) -> None:
        check.verify()

All data are drawn by the kit itself: simple pictures and random features with a known answer. No
network and no GPU is needed, and nothing is written outside a temporary folder, unless the plugin
itself does so. Importing this module imports neither pytest nor anything heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chexgenbench.testing.apart import check_apart
    from chexgenbench.testing.checks import (
        Check,
        assert_contract,
        check_plugin,
        checks_of,
        contract,
    )
    from chexgenbench.testing.results import Result
    from chexgenbench.testing.subject import Settings

__all__ = [
    "Check",
    "Result",
    "Settings",
    "assert_contract",
    "check_apart",
    "check_plugin",
    "checks_of",
    "contract",
]

_HOME = {"Result": "results", "Settings": "subject", "check_apart": "apart"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'checks')}"), name)
