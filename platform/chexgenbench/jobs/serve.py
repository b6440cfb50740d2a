"""A process that does one job after another, so that a model is loaded once and not once a job.

It is asked and answers by files of a folder: ``ask-1.json`` names a job directory and a device,
``answer-1.json`` gives the exit code. It ends when its standard input is closed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from itertools import count
from pathlib import Path

from chexgenbench.files import read_json, write_json
from chexgenbench.jobs.worker import Kept, end_with_input, run_noting

SERVER = "chexgenbench.jobs.serve"
"""The module that the process runs."""

_ANSWER_BYTES = 1000
LOOK_AGAIN = 0.02
"""Seconds between two looks for the next job."""


def ask(desk: Path, number: int, folder: Path, device: str) -> None:
    """Asks the process at that folder to do a job; the first has number 1."""
    write_json(desk / f"ask-{number}.json", {"folder": str(folder), "device": device})


def answer(desk: Path, number: int) -> int | None:
    """The exit code of that job; None while it is at work.

    Raises:
        ValueError: what stands there is no answer; a plugin could write it too.
    """
    try:
        with (desk / f"answer-{number}.json").open("rb") as file:
            code = json.loads(file.read(_ANSWER_BYTES))["code"]
        if type(code) is int and 0 <= code < 256:
            return code
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ValueError("The answer of the worker's process is no exit code.")


def main() -> None:
    desk = Path(sys.argv[1])
    threading.Thread(target=end_with_input, daemon=True).start()
    kept = Kept()
    for number in count(1):
        asked = desk / f"ask-{number}.json"
        while not asked.exists():
            time.sleep(LOOK_AGAIN)
        values = read_json(asked)
        code = run_noting(Path(values["folder"]), 0, values["device"], kept)
        sys.stdout.flush()
        sys.stderr.flush()
        write_json(desk / f"answer-{number}.json", {"code": code})


if __name__ == "__main__":
    main()
