"""A job directory that travels through an fsspec URL, between machines that share no folder.

Object stores replace a file as a whole and promise no order. So whoever writes puts the files first
and the lines of ``*.jsonl`` that name them last, and whoever reads takes the lines first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexgenbench.errors import UserError
from chexgenbench.executors.border import Refused
from chexgenbench.files import atomic_path

if TYPE_CHECKING:
    import fsspec

_LINES = ".jsonl"
_DEEPEST = 4


class Remote:
    """A folder of an fsspec URL.

    A connection is for one thread; each makes a `Remote` of its own.

    Args:
        url: such as ``s3://bucket/folder``, or a path.

    Raises:
        UserError: the URL's protocol is not known here, or its server does not answer.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        try:
            found: tuple[fsspec.AbstractFileSystem, str] = url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True
            )
        except (ImportError, ValueError, OSError) as error:
            raise UserError(
                f"The shared place {without_secret(url)} cannot be used: {error}",
                hint="Name a folder, or a URL that fsspec knows and has the package for.",
            ) from error
        self._fs, self._root = found
        self._root = self._root.rstrip("/")

    def sizes(self) -> dict[str, int]:
        """Path below the folder to the bytes of each file; empty where there is no folder."""
        self._fs.invalidate_cache()
        try:
            files: dict[str, Any] = self._fs.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self._fs._strip_protocol(self._root).strip("/")) + 1
        return {name.strip("/")[start:]: int(info["size"] or 0) for name, info in files.items()}

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: it is not there.
        """
        data: bytes = self._fs.cat_file(self._at(name))
        return data

    def write(self, name: str, data: bytes) -> None:
        """Puts a file there, in the place of what was there."""
        path = self._at(name)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(path, data)

    def fetch(self, name: str, path: Path) -> None:
        """Copies a file from there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fs.get_file(self._at(name), str(path))

    def send(self, path: Path, name: str) -> None:
        """Copies a file to there."""
        there = self._at(name)
        self._fs.makedirs(there.rpartition("/")[0], exist_ok=True)
        self._fs.put_file(str(path), there)

    def remove(self) -> None:
        """Removes the folder, where it is there."""
        self._fs.invalidate_cache()
        if self._fs.exists(self._root):
            self._fs.rm(self._root, recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


class Sender:
    """Sends what changes in a local folder."""

    def __init__(self, folder: Path, remote: Remote) -> None:
        self._folder, self._remote = folder, remote
        self._sent: dict[str, tuple[int, int]] = {}

    def send(self) -> None:
        """Sends what is new since the last call; files that are being written are left out."""
        lines = {path.name: path.read_bytes() for path in self._folder.glob(f"*{_LINES}")}
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder).as_posix()
            if path.name.startswith(".") or name in lines or path.is_symlink():
                continue
            try:
                facts = path.stat()
                state = (facts.st_mtime_ns, facts.st_size)
                if path.is_file() and self._sent.get(name) != state:
                    self._remote.send(path, name)
                    self._sent[name] = state
            except FileNotFoundError:  # it was there a moment ago
                continue
        for name, data in lines.items():
            if self._sent.get(name) != (0, len(data)):
                self._remote.write(name, data)
                self._sent[name] = (0, len(data))


class Fetcher:
    """Fetches what changes in a remote folder; what was removed there stays here."""

    def __init__(self, remote: Remote, folder: Path) -> None:
        self._remote, self._folder = remote, folder
        self._seen: dict[str, int] = {}

    def fetch(self) -> bool:
        """Fetches what is new since the last call; whether there was something.

        Raises:
            Refused: a file there has a name that leads out of the folder.
        """
        found = self._sizes()
        lines: dict[str, bytes] = {}
        for name in found:
            if name.endswith(_LINES) and "/" not in name:
                try:
                    lines[name] = self._remote.read(name)
                except FileNotFoundError:  # it is being replaced
                    continue
        if lines:
            found = self._sizes()
        for name, size in found.items():
            if name.endswith(_LINES) and "/" not in name:
                continue
            try:
                self._remote.fetch(name, self._folder / name)
            except FileNotFoundError:
                continue
            self._seen[name] = size
        for name, data in lines.items():
            # Less than before is a file that is being replaced.
            if len(data) > self._seen.get(name, 0):
                with atomic_path(self._folder / name) as temporary:
                    temporary.write_bytes(data)
                self._seen[name] = len(data)
        return bool(found)

    def _sizes(self) -> dict[str, int]:
        """Those of files that are new or have changed."""
        found = self._remote.sizes()
        for name in found:
            parts = name.split("/")
            if len(parts) > _DEEPEST or any(part in ("", ".", "..") for part in parts):
                raise Refused(f"The worker left a file at {name[:200]!r}, which no worker writes.")
        return {name: size for name, size in found.items() if self._seen.get(name) != size}


def without_secret(url: str) -> str:
    """A URL for messages, without a name and password.

    >>> without_secret("ftp://name:word@host/folder"), without_secret("/data")
    ('ftp://host/folder', '/data')
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"
