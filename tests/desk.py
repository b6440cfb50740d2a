"""The real console script, at work in a folder of its own."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(sysconfig.get_path("scripts")) / "chexgenbench"


@dataclass(frozen=True)
class Desk:
    """A project folder and a cache of its own, and the console script at work there."""

    home: Path
    cache: Path

    @classmethod
    def new(cls, folder: Path) -> Desk:
        home = folder / "home"
        home.mkdir(parents=True)
        return cls(home, folder / "cache")

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(SCRIPT), *map(str, arguments)],
            cwd=self.home,
            env=os.environ
            | {"CHEXGENBENCH_CACHE": str(self.cache), "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
            | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, code: int = 0, **environment: str) -> Done:
        begun = time.monotonic()
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=1500)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err, err
        return Done(out, err, time.monotonic() - begun)

    def rows(self, sql: str) -> list[dict[str, str]]:
        out = self.run("query", sql, "--format", "csv").out
        return list(csv.DictReader(io.StringIO(out)))


@dataclass(frozen=True)
class Done:
    """What a command printed, and how long it took."""

    out: str
    err: str
    seconds: float
