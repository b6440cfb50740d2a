"""Files that are whole or absent: atomic writes, hashes, paths that stay in their folder."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from chexgenbench.errors import UserError

_UMASK = Lock()
"""The umask is read by setting it; two threads at once could leave it at 0."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends without an error.

    The data is synced before the rename, so that after a crash `path` is the old or the new file,
    never a part. The temporary name starts with ``.tmp-`` and keeps the suffix, because writers
    such as Pillow choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; a result is as readable as any other file of the user.
        with _UMASK:
            umask = os.umask(0)
            os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, suffix: str) -> None:
    """Removes what killed writers left of `atomic_path`; the caller holds the folder's lock."""
    for path in folder.glob(f".tmp-*{suffix}"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; `UserError` naming the file when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


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
    base = root.resolve()
    path = (base / relative).resolve()
    if not path.is_relative_to(base) or path == base:
        raise ValueError(f"{relative!r} leads out of its folder {root}")
    return path
