"""A job directory that travels through an fsspec URL, between machines that share no folder.

Object stores replace a file as a whole and promise no order. So whoever writes puts the files first
and the lines of ``*.jsonl`` that name them last, and whoever reads takes the lines first. No other
file is seen in part: where a store shows what is being written, it has another name until then.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.executors.border import Refused
from chexgenbench.executors.launch import LITTLE
from chexgenbench.files import TEMPORARY, digest

if TYPE_CHECKING:
    import fsspec

_LINES = ".jsonl"
_DEEPEST = 4

_PART = "part"
_MOST_LINES = 1_000_000_000
"""Bytes of a file of lines: far more than a worker writes of any list of requests."""


class Remote:
    """A folder of an fsspec URL.

    A connection is for one thread; each makes a `Remote` of its own.

    Args:
        url: such as ``s3://bucket/folder``, or a path.

    Raises:
        UserError: the URL's protocol is not known here, or its server does not answer or does not
            let this user in.
    """

    def __init__(self, url: str) -> None:
        from fsspec import AbstractFileSystem
        from fsspec.core import url_to_fs

        try:
            found: tuple[fsspec.AbstractFileSystem, str] = url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True
            )
        except Exception as error:  # each store has errors of its own, such as ftplib's
            raise UserError(
                f"The shared place {without_secret(url)} cannot be used: {told(error, url)}",
                hint="Name a folder, or a URL that fsspec knows and has the package for, with the "
                "name and password that its server asks for.",
            ) from error
        self._fs, self._root = found
        # Object stores put a file there as a whole, and have no renaming of their own.
        self._renames = type(self._fs).mv is not AbstractFileSystem.mv
        self._root = self._root.rstrip("/")

    def sizes(self) -> dict[str, int]:
        """Path below the folder to the bytes of each file that is whole; empty where there is no
        folder."""
        self._fs.invalidate_cache()
        try:
            files: dict[str, Any] = self._fs.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self._fs._strip_protocol(self._root).strip("/")) + 1
        return {
            name.strip("/")[start:]: int(info["size"] or 0)
            for name, info in files.items()
            if not name.rpartition("/")[2].startswith(TEMPORARY)
        }

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

    def send(self, path: Path, name: str, *, again: bool = False) -> None:
        """Copies a file to there, where it is seen once it is whole.

        Args:
            again: it was sent before: not every store moves a file onto another.
        """
        there = self._at(name)
        above, _, last = there.rpartition("/")
        self._fs.makedirs(above, exist_ok=True)
        if not self._renames:
            self._fs.put_file(str(path), there)
            return
        hidden = f"{above}/{TEMPORARY}{last}"
        self._fs.put_file(str(path), hidden)
        if again:
            with suppress(FileNotFoundError):
                self._fs.rm_file(there)
        self._fs.mv(hidden, there)

    def remove(self) -> None:
        """Removes the folder, where it is there."""
        self._fs.invalidate_cache()
        if self._fs.exists(self._root):
            self._fs.rm(self._root, recursive=True)

    def remove_empty(self) -> None:
        """Removes the folder where nothing is in it; an object store has no empty ones."""
        self._fs.invalidate_cache()
        with suppress(Exception):  # each store has errors of its own, and one where it is not empty
            if not self._fs.ls(self._root, detail=False):
                self._fs.rmdir(self._root)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


def place_at(shared: str, folder: Path) -> str:
    """The URL in a shared place for the job directories of a folder of this machine; the same for a
    later command, which removes what a killed one has left there."""
    return f"{shared}/chexgenbench-{digest([socket.gethostname(), str(folder)])[:16]}"


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
                    self._remote.send(path, name, again=name in self._sent)
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
            Refused: a file there has a name that leads out of the folder, or is far larger than a
                worker's can be.
            ChexGenBenchError: the disk of this command has not the room for what is there.
            OSError: that disk is full.
        """
        found = self._sizes()
        if not found:
            return False
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=self._folder) as name:
            place = Path(name)
            lines = [name for name in found if _has_lines(name)]
            for name in lines:
                self._fetch(name, place / name)
            if lines:
                found = self._sizes()
            for name, size in found.items():
                if _has_lines(name) or not self._fetch(name, place / _PART):
                    continue
                (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                (place / _PART).replace(self._folder / name)  # whole: it is read meanwhile
                self._seen[name] = size
            for path in place.glob(f"*{_LINES}"):
                size = path.stat().st_size
                # Less than before is a file that is being replaced.
                if size > self._seen.get(path.name, 0):
                    path.replace(self._folder / path.name)
                    self._seen[path.name] = size
        return True

    def _fetch(self, name: str, path: Path) -> bool:
        """Copies a file from there, unless it is just being replaced."""
        try:
            self._remote.fetch(name, path)
        except FileNotFoundError:
            return False
        return True

    def _sizes(self) -> dict[str, int]:
        """Those of files that are new or have changed, which this machine has the room for."""
        found = self._remote.sizes()
        for name in found:
            parts = name.split("/")
            if len(parts) > _DEEPEST or any(part in ("", ".", "..") for part in parts):
                raise Refused(f"The worker left a file at {name[:200]!r}, which no worker writes.")
            if _has_lines(name) and found[name] > _MOST_LINES:
                raise Refused(f"The worker's {name[:200]} has more than {_MOST_LINES} bytes.")
        new = {name: size for name, size in found.items() if self._seen.get(name) != size}
        free = shutil.disk_usage(self._folder).free
        if new and free < LITTLE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        if sum(new.values()) > free - LITTLE:
            raise ChexGenBenchError(
                f"The worker has written {sum(new.values()) / 1e9:.1f} GB, and the disk of this "
                f"command has {free / 1e9:.1f} GB left."
            )
        return new


def _has_lines(name: str) -> bool:
    """Whether that is a file of lines, which grows."""
    return name.endswith(_LINES) and "/" not in name


def told(error: BaseException, url: str) -> str:
    """What a store's error says, without the URL's name and password.

    >>> told(OSError("ftp://name:a%20word@host: no a word"), "ftp://name:a%20word@host/folder")
    'ftp://***@host: no ***'
    """
    text = " ".join((str(error) or type(error).__name__).split())
    user = url.partition("://")[2].partition("/")[0].rpartition("@")[0]
    word = user.partition(":")[2]
    for secret in filter(None, (user, unquote(user), word, unquote(word))):
        text = text.replace(secret, "***")
    return text


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
