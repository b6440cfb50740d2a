"""Faults in a child process at named points, without a hook in the product.

Python imports this module at its start where its folder is on PYTHONPATH. It does nothing unless
the variable CHEXGENBENCH_FAULT holds a plan, the JSON of `bench.Plan`. An *event* is something that
the process does to a file below the plan's roots: it opens it for writing (``open``), is about to
rename it (``rename``), has renamed it (``renamed``), syncs it (``sync``), removes it (``remove``),
locks it (``lock``), copies over it (``copy``), opens it with SQLite (``connect``), or works on it
in SQL (``sql``). Workers inherit the variable.
"""

from __future__ import annotations

import json
import os
import sys

_TEXT = os.environ.get("CHEXGENBENCH_FAULT", "")

if _TEXT:
    import ctypes
    import errno
    import fcntl
    import importlib.util
    import itertools
    import re
    import signal
    import threading
    import time
    from collections.abc import Callable
    from typing import Any

    _PLAN: dict[str, Any] = json.loads(_TEXT)
    _ROOTS = tuple(_PLAN["roots"])
    _WORKER = "chexgenbench.jobs.worker" in sys.orig_argv
    _HERE = _PLAN["where"] in ("", "worker" if _WORKER else "command")
    _MATCH = re.compile(_PLAN["match"])
    _ALL, _MATCHING = itertools.count(1), itertools.count(1)
    _NOTE = os.open(_PLAN["note"], os.O_WRONLY | os.O_CREAT, 0o666) if _PLAN["note"] else -1
    _IS = threading.local()

    def _event(kind: str, path: object) -> None:
        """Counts an event; where it is the plan's, the fault comes."""
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str | os.PathLike) or getattr(_IS, "inside", False):
            return
        name = str(path) if kind == "sql" else os.path.abspath(path)  # noqa: PTH100 - links stay
        if not name.startswith(_ROOTS):
            return
        number = next(_ALL)
        if _NOTE >= 0 and not _WORKER:
            os.pwrite(_NOTE, f"{number:8d} {kind} {name}".ljust(600)[:600].encode(), 0)
        if not _HERE or kind != (_PLAN["event"] or kind) or not _MATCH.search(name):
            return
        if next(_MATCHING) == _PLAN["nth"] or _PLAN["always"]:
            _IS.inside = True
            try:
                _strike(name)
            finally:
                _IS.inside = False

    def _strike(name: str) -> None:
        act = _PLAN["act"]
        if act == "clock":
            ctypes.CDLL(None).step_back(ctypes.c_long(int(_PLAN["amount"])))  # of clock.c
        elif act in ("ENOSPC", "EIO", "EACCES", "EDQUOT", "EROFS", "ENOMEM"):
            number = getattr(errno, act)
            raise OSError(number, os.strerror(number), name)
        elif act == "torn":
            size = os.stat(name).st_size  # noqa: PTH116
            # Of lines the last one is cut, of any other file the half.
            os.truncate(name, max(0, size - 40) if name.endswith(".jsonl") else size // 2)
            _end(signal.SIGKILL)
        elif act == "late":
            timer = threading.Timer(_PLAN["amount"], _end, [signal.SIGKILL])
            timer.daemon = True
            timer.start()
        else:
            _end(signal.Signals[act])

    def _end(number: signal.Signals) -> None:
        os.kill(os.getpid(), number)
        if number == signal.SIGKILL:
            time.sleep(60)  # it is on its way

    def _of(descriptor: Any) -> str:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        return os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115

    _WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def _audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if (mode and set(mode) & set("wax+")) or flags & _WRITES:
                _event("open", path)
        elif event == "os.rename":
            _event("rename", arguments[1])
        elif event == "os.remove":
            _event("remove", arguments[0])
        elif event == "shutil.copyfile":
            _event("copy", arguments[1])
        elif event == "sqlite3.connect":
            _event("connect", arguments[0])

    sys.addaudithook(_audit)

    def _around(
        module: Any, name: str, before: Callable[..., None], after: Callable[..., None]
    ) -> None:
        plain = getattr(module, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            before(*arguments)
            result = plain(*arguments, **options)
            after(*arguments)
            return result

        setattr(module, name, wrapped)

    def _nothing(*_arguments: Any) -> None:
        return None

    _around(os, "fsync", lambda fd: _event("sync", _of(fd)), _nothing)
    _around(os, "replace", _nothing, lambda _old, new: _event("renamed", new))

    # --- locks: none, or how long each was waited for ------------------------------------------

    _flock, _lockf = fcntl.flock, fcntl.lockf
    _SINCE: dict[str, float] = {}

    def _locking(plain: Callable[..., Any]) -> Callable[..., Any]:
        def lock(descriptor: Any, operation: int, *more: Any) -> Any:
            path = _of(descriptor)
            if operation & fcntl.LOCK_UN or not path.startswith(_ROOTS):
                return plain(descriptor, operation, *more)
            if _PLAN["locks"]:
                number = getattr(errno, _PLAN["locks"])
                raise OSError(number, os.strerror(number))
            _event("lock", path)
            begun = _SINCE.setdefault(path, time.monotonic())
            result = plain(descriptor, operation, *more)  # raises where another has it
            del _SINCE[path]
            if _PLAN["waits"]:
                line = f"{time.monotonic() - begun:.4f} {path}\n".encode()
                log = os.open(_PLAN["waits"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                os.write(log, line)
                os.close(log)
            return result

        return lock

    fcntl.flock, fcntl.lockf = _locking(_flock), _locking(_lockf)

    # --- DuckDB, once it is imported -----------------------------------------------------------

    class _Connection:
        """A connection that can write, whose statements are events."""

        def __init__(self, connection: Any, path: str) -> None:
            self._connection, self._path = connection, path

        def execute(self, sql: str, *arguments: Any) -> Any:
            _event("sql", f"{self._path} {' '.join(sql.split()[:3])}")
            return self._connection.execute(sql, *arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

    class _Finder:
        @staticmethod
        def find_spec(name: str, _path: object = None, _target: object = None) -> Any:
            if name != "duckdb":
                return None
            sys.meta_path.remove(_Finder)  # type: ignore[arg-type]
            spec = importlib.util.find_spec(name)
            assert spec and spec.loader
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                connect = module.connect

                def connecting(path: str = ":memory:", *more: Any, **options: Any) -> Any:
                    made = connect(path, *more, **options)
                    writes = str(path).startswith(_ROOTS) and not options.get("read_only")
                    return _Connection(made, str(path)) if writes else made

                module.connect = connecting

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
