"""What the harness found in the product, each in short."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chexgenbench import Image, Model, Request
from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.files import file_lock
from chexgenbench.jobs.generate import call_model, hold
from chexgenbench.store.store import Store
from chexgenbench.workflow.run import Outcome, _attempt

ROOT = Path(__file__).resolve().parents[2]


class Leaving(Model):
    def generate(self, requests: Sequence[Request]) -> Sequence[Image]:
        sys.exit(0)


def test_a_model_that_calls_exit_is_a_model_that_failed() -> None:
    """The command ended with 0, as if all was done."""
    model = Leaving(None, None)  # type: ignore[arg-type]
    request = Request(id="a", prompt_id="a", prompt="", seed=1)
    with pytest.raises(ChexGenBenchError, match="Leaving failed on requests a to a: SystemExit: 0"):
        call_model(model, [request])


def test_a_plugin_that_calls_exit_when_it_is_loaded_has_failed() -> None:
    from chexgenbench.registry import Plugin

    plugin: Any = SimpleNamespace(spec=SimpleNamespace(kind="model"), name="leaving", source="here")
    with pytest.raises(ChexGenBenchError, match=r"'leaving' .* cannot be loaded: SystemExit: 0"):
        Plugin.call(plugin, "cannot be loaded", lambda: sys.exit(0))


def test_a_full_disk_stops_all_models_whoever_noticed_it() -> None:
    """Wrapped in another error it was one model's failure, and the next one began."""

    def full() -> None:
        raise UserError("The run cannot be written.") from OSError(28, "No space left on device")

    def other() -> None:
        raise UserError("The run cannot be written.") from OSError(13, "Permission denied")

    outcome = Outcome()
    with pytest.raises(UserError):
        _attempt(outcome, "first", full)
    _attempt(outcome, "second", other)
    assert list(outcome.failed) == ["second"]


def test_what_a_killed_writer_of_the_store_left_is_removed(tmp_path: Path) -> None:
    """DuckDB's log of the copy stayed for ever."""
    left = [tmp_path / name for name in (".tmp-a.duckdb", ".tmp-a.duckdb.wal")]
    for path in left:
        path.touch()
    Store(tmp_path / "s.duckdb").rebuild(tmp_path / "runs")
    assert not any(path.exists() for path in left)


def test_what_a_killed_generation_left_is_removed(tmp_path: Path) -> None:
    """A manifest and a summary that were not renamed stayed for ever."""
    (tmp_path / "images").mkdir()
    left = [tmp_path / name for name in (".tmp-a.jsonl", ".tmp-b.json", "images/.tmp-c.png")]
    for path in left:
        path.touch()
    with hold(tmp_path):
        assert not any(path.exists() for path in left)


def test_no_marker_stands_in_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves a marker, and whoever comes next would wait for a dead process."""

    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((OSError, NotImplementedError)), file_lock(tmp_path / "lock"):
            pass


def test_all_locks_are_those() -> None:
    for path in (*ROOT.glob("platform/**/*.py"), *ROOT.glob("plugins/**/*.py")):
        if path.name != "files.py":
            assert "FileLock" not in path.read_text(encoding="utf-8"), path
