"""The console script, at work in a folder of its own."""

from __future__ import annotations

import atexit
import csv
import io
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from chexgenbench.report.charts import program
from forked import LONGEST, SCRIPT, Ended, run_forked


def script(words: Sequence[str], cwd: Path, env: Mapping[str, str], whole: bool = False) -> Ended:
    """A command to its end, in a process of its own.

    Args:
        whole: by the script itself, and not by a fork that has others' packages imported.
    """
    done = None if whole else run_forked(words, cwd=cwd, env=env)
    if done is not None:
        return done
    process = _start(words, cwd, env)
    out, err = process.communicate(timeout=LONGEST)
    return Ended(process.returncode, out, err)


def _start(words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(SCRIPT), *words],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@cache
def _charts() -> Path:
    """A cache that holds the program of the charts, which takes seconds to make."""
    folder = Path(tempfile.mkdtemp(prefix="chexgenbench-test-charts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program(folder)
    return folder


@dataclass(frozen=True)
class Desk:
    """A project folder and a cache of its own, and the console script at work there."""

    home: Path
    cache: Path

    @classmethod
    def new(cls, folder: Path) -> Desk:
        home = folder / "home"
        home.mkdir(parents=True)
        shutil.copytree(_charts(), folder / "cache")
        return cls(home, folder / "cache")

    def _env(self, changes: dict[str, str]) -> dict[str, str]:
        own = {"CHEXGENBENCH_CACHE": str(self.cache), "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
        return os.environ | own | changes

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return _start(list(map(str, arguments)), self.home, self._env(environment))

    def run(
        self, *arguments: object, code: int = 0, whole: bool = False, **environment: str
    ) -> Done:
        """A command to its end.

        Args:
            code: its exit code.
            whole: as for `script`.
        """
        begun = time.monotonic()
        done = script(list(map(str, arguments)), self.home, self._env(environment), whole)
        assert done.code == code, f"exit {done.code}\n{done.out}\n{done.err}"
        assert "Traceback" not in done.err, done.err
        return Done(done.out, done.err, time.monotonic() - begun)

    def rows(self, sql: str) -> list[dict[str, str]]:
        out = self.run("query", sql, "--format", "csv").out
        return list(csv.DictReader(io.StringIO(out)))


@dataclass(frozen=True)
class Done:
    """What a command printed, and how long it took."""

    out: str
    err: str
    seconds: float
