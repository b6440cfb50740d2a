"""Commands in processes of their own that need not import PyTorch and its kin each time.

A server has imported other authors' packages, nothing of this project, and forks for each command:
a new process, with its own folder, variables and streams, that imports this project's code and runs
the console script's function. What the imports read of the environment must be equal, or there is
no fork and the caller starts the real script.

Forks share the seed of text hashes, which no result may depend on: the demo, killed commands, the
whole that shards are compared with, and all workers are started anew.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PRELOADED = (
    "duckdb",
    "numpy",
    "pandas",
    "PIL.Image",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pydantic",
    "rich.console",
    "safetensors.torch",
    "scipy.stats",
    "torch",
    "typer",
    "open_clip",
    "sklearn.linear_model",
    "timm",
    "transformers",
    "accelerate",
    "peft",
    "diffusers.pipelines.stable_diffusion",
)
"""Modules of others that take long to import."""

FREE = ("CHEXGENBENCH_", "COLUMNS", "LINES", "NO_COLOR", "PYTEST_", "PYTHONPATH")
"""Beginnings of variables that no module of `PRELOADED` reads when it is imported."""

SET = ("KMP_", "TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR")
"""Beginnings of variables that those modules set."""

SCRIPT = Path(sysconfig.get_path("scripts")) / "chexgenbench"

# Before any test changes a variable.
_ENV = dict(os.environ) | {"HF_HUB_OFFLINE": "1"}

LONGEST = 1500.0
"""Seconds that a command may take."""


class Ended(NamedTuple):
    """How a process ended, and what it said; a signal is a negative code."""

    code: int
    out: str
    err: str


def run_forked(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], module: str = ""
) -> Ended | None:
    """The console script with these words; None where a fork would be another process than it.

    Args:
        module: what to run in place of the script, as ``python -m`` does.

    Raises:
        TimeoutError: it was not ready after `LONGEST`.
    """
    server = _server()
    if server is None or not server.same(env):
        return None
    return server.run({"module": module, "words": list(words), "cwd": str(cwd), "env": dict(env)})


class _Server:
    """The process that forks, and ends with this one."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            env=_ENV,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    @staticmethod
    def same(env: Mapping[str, str]) -> bool:
        names = {name for name in env.keys() | _ENV.keys() if not name.startswith(FREE + SET)}
        return all(env.get(name) == _ENV.get(name) for name in names)

    def run(self, what: Mapping[str, Any]) -> Ended:
        order = json.dumps(what).encode()
        answer, theirs = socket.socketpair()
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        head = len(order).to_bytes(8, "big")
        socket.send_fds(self._socket, [head], [to_out, to_err, theirs.fileno()])
        self._socket.sendall(order)
        for number in (to_out, to_err):
            os.close(number)
        theirs.close()
        with ThreadPoolExecutor(2) as readers, answer:
            said = [readers.submit(_all_of, number) for number in (out, err)]
            answer.settimeout(LONGEST)
            pid = int(_line(answer))
            try:
                code = int(_line(answer))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise
            texts = [each.result() for each in said]
        return Ended(code, *texts)


def _all_of(number: int) -> str:
    with open(number, encoding="utf-8", newline=None) as stream:
        return stream.read()


def _line(stream: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        more = stream.recv(1)
        if not more:
            raise EOFError("the server of forks has ended")
        found += more
    return found


@cache
def _server() -> _Server | None:
    return _Server() if hasattr(os, "fork") and sys.platform == "linux" else None


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Forks for each order; returns the order in the process that is to do it, None at the end."""
    import gc

    for name in PRELOADED:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    while True:
        head, numbers, _, _ = socket.recv_fds(control, 8, 3)
        if not head:
            return None
        left = int.from_bytes(head, "big")
        text = b""
        while len(text) < left:
            text += control.recv(left - len(text))
        pid = os.fork()
        if not pid:
            control.close()
            os.dup2(numbers[0], 1)
            os.dup2(numbers[1], 2)
            for number in numbers:
                os.close(number)
            order: dict[str, Any] = json.loads(text)
            return order
        os.close(numbers[0])
        os.close(numbers[1])
        with socket.socket(fileno=numbers[2]) as answer:
            answer.sendall(b"%d\n" % pid)
            _, status = os.waitpid(pid, 0)
            with suppress(OSError):
                answer.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(order: dict[str, Any]) -> None:
    """This process as a new one would be."""
    import io
    import random

    was = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv[:] = [str(SCRIPT), *order["words"]]
    own = [path for path in order["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [str(Path(sys.argv[0]).parent), *own, *(p for p in sys.path[1:] if p not in was)]
    importlib.invalidate_caches()
    plain = bool(order["env"].get("PYTHONUNBUFFERED"))
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = io.TextIOWrapper(
            os.fdopen(number, "wb", 0 if plain else -1, closefd=False),
            encoding="utf-8",
            errors="strict" if number == 1 else "backslashreplace",
            line_buffering=number == 2,
            write_through=plain,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    # As in a new process, nobody knows what these will draw.
    random.seed()
    sys.modules["numpy"].random.seed()


def _do(module: str) -> None:
    """Runs the command to its end, all but the freeing of memory, which takes long after a fork."""
    import atexit
    import traceback

    code: object = 0
    try:
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            from chexgenbench.cli.main import main

            main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1 if code else 0)


if __name__ == "__main__":
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is not None:
        _become(asked)
        _do(asked["module"])
