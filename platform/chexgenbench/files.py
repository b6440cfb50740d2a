"""Files that are whole or absent: atomic writes, hashes, paths that stay in their folder."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

from chexgenbench.errors import UserError

if TYPE_CHECKING:
    from filelock import BaseFileLock

try:
    import fcntl
except ImportError:  # Windows: what is in use there cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp-"
"""How the name of a file begins that is being written."""

_UMASK = Lock()
"""The umask is read by setting it; two threads at once could leave it at 0."""


def umask() -> int:
    """The bits that the user's new files lack."""
    with _UMASK:
        found = os.umask(0)
        os.umask(found)
    return found


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends without an error.

    The data is synced before the rename, so that after a crash `path` is the old or the new file,
    never a part. The temporary name starts with ``.tmp-`` and keeps the suffix, because writers
    such as Pillow choose the format by it. While the block lasts the file is locked, so that
    `is_free` tells what a killed writer left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.suffix, dir=path.parent)
    temporary = Path(name)
    held = _lock(descriptor, shared=False)
    if not held:
        os.close(descriptor)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; a result is as readable as any other file of the user.
        temporary.chmod(0o666 & ~umask())
        temporary.replace(path)
    finally:
        if held:
            os.close(descriptor)
        temporary.unlink(missing_ok=True)


def file_lock(path: Path | str, timeout: float = -1) -> BaseFileLock:
    """A lock that the system frees when its process ends, however it ends.

    Newer releases of filelock take a marker file in its place where a file system has no locks: a
    kill leaves that behind, and whoever comes next would wait for a dead process. Here taking
    the lock fails there, with the error of the system.

    Args:
        timeout: seconds to wait for whoever holds it; negative without end.
    """
    from filelock import FileLock

    # A worker's own environment may have an older release, which takes no marker.
    known = inspect.signature(FileLock.__init__).parameters
    strict: dict[str, Any] = {"fallback_to_soft": False} if "fallback_to_soft" in known else {}
    return FileLock(path, timeout=timeout, **strict)


@contextmanager
def sign(folder: Path, name: str, suffix: str) -> Iterator[Callable[[], bool]]:
    """An empty temporary file that asks for something by its name, ``.tmp-NAME-…SUFFIX``, while the
    block lasts; `is_free` tells whether a killed process left it.

    Yields:
        Whether another process has `answer`ed; that the file is gone alone means nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(prefix=f"{TEMPORARY}{name}-", suffix=suffix, dir=folder)
    try:
        _lock(descriptor, shared=False)
        yield lambda: os.fstat(descriptor).st_size > 0
    finally:
        os.close(descriptor)
        Path(path).unlink(missing_ok=True)


def answer(path: Path) -> None:
    """Tells whoever shows a sign that it was done, and takes the sign away."""
    with suppress(OSError):  # of another user: who is told nothing does it again
        path.write_bytes(b"1")
        path.unlink()


def signs(folder: Path, suffix: str) -> dict[Path, str]:
    """What `sign` left or others show there now, and the name that each says."""
    return {
        path: path.name.removeprefix(TEMPORARY).removesuffix(suffix).rpartition("-")[0]
        for path in sorted(folder.glob(f"{TEMPORARY}*-*{suffix}"))
    }


def remove_leftovers(folder: Path, suffix: str) -> None:
    """Removes what killed writers left of `atomic_path`; the caller holds the folder's lock."""
    for path in folder.glob(f"{TEMPORARY}*{suffix}"):
        path.unlink(missing_ok=True)


class Presence:
    """A sign, in a folder, that a process uses what lies there; the system takes it away when the
    process ends, however it ends. Several processes may be present.

    Where the folder cannot be written, or its file system has no locks, there is no sign.
    """

    NAME = ".in-use"

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] | None = None
        with suppress(OSError):
            file = (folder / self.NAME).open("ab")
            if _lock(file.fileno(), shared=True):
                self._file = file
            else:
                file.close()

    def close(self) -> None:
        """Takes the sign away."""
        if self._file is not None:
            self._file.close()
            self._file = None


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether no process is present in the folder, see `Presence`; none becomes so in the block.

    False as well where that cannot be told.
    """
    try:
        file = (folder / Presence.NAME).open("ab")
    except OSError:
        yield False
        return
    with file:
        yield _lock(file.fileno(), shared=False)


@contextmanager
def unheld(path: Path) -> Iterator[bool]:
    """Whether no living process holds the lock of a file, see `atomic_path`; none takes it in the
    block. False as well where that cannot be told."""
    try:
        file = path.open("rb")
    except OSError:
        yield False
        return
    with file:
        yield _lock(file.fileno(), shared=False)


def is_free(path: Path) -> bool:
    """What `unheld` says at this moment."""
    with unheld(path) as free:
        return free


def _lock(descriptor: int, *, shared: bool) -> bool:
    """Locks an open file until it is closed; False where another holds it, or without locks."""
    if fcntl is None:
        return False
    try:
        # Who wants it alone does not wait, and holds it for a moment.
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file to be read, which is one: a pipe would be waited for, and a device has no end.

    Raises:
        UserError: it is something else, missing, or cannot be opened.
    """
    try:
        # A pipe that nobody writes to is waited for when it is opened.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise UserError(f"The file {path} does not exist.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"The file {path} cannot be read: {reason}.") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise UserError(f"The file {path} cannot be read: it is {kind}.")
    with os.fdopen(descriptor, "rb") as file:
        yield file


_BEYOND_ASCII = re.compile(r"[^\n\x20-\x7e]")


def escaped(text: str) -> str:
    """A JSON text of the same value in which every sign that is not printable is escaped, so that
    a terminal neither obeys it nor turns its direction of writing.

    >>> escaped('["\u00e9\u202e\u009b"]')
    '["\u00e9\\\\u202e\\\\u009b"]'
    """
    return _BEYOND_ASCII.sub(
        lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text
    )


def read_json(path: Path) -> Any:
    """The JSON value in `path`; `UserError` naming the file when it is missing or broken."""
    if not path.exists():
        raise UserError(f"{path} is missing.")
    try:
        with opened(path) as file:
            text = file.read().decode("utf-8")
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a pair of surrogates is no text that can be written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except RecursionError as error:
        raise UserError(f"{path} cannot be read: it is nested too deeply.") from error


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    found = hashlib.sha256()
    # Not hashlib.file_digest, which a worker on Python 3.10 does not have.
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form: the identity of what it describes.

    >>> digest({"a": 1, "b": [2.5]}) == digest({"b": [2.5], "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return sha256_bytes(text.encode("utf-8"))


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, refused with `ValueError` where it would leave `root`.

    Absolute paths, ``..`` and symbolic links that lead outside are refused.
    """
    if not relative or "\0" in relative:
        raise ValueError(f"{relative!r} is not a file name")
    try:
        base = root.resolve()
        path = (base / relative).resolve()
    except RuntimeError as error:  # of Python before 3.13
        raise ValueError(f"{relative!r} is a link to itself") from error
    if not path.is_relative_to(base) or path == base:
        raise ValueError(f"{relative!r} leads out of its folder {root}")
    return path
