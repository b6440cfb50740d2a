"""Weights from the network: whole and checked, or absent.

Only `fetch` downloads, when the user asks for it; a run takes what lies on the machine.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import string
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.files import atomic_path, inside, remove_leftovers, sha256_file
from chexgenbench.progress import Progress
from chexgenbench.types import Download, RemoteFile

_CHUNK = 1 << 20
_SECONDS_OF_SILENCE = 60


def locate(download: Download, cache: Path) -> Mapping[RemoteFile, Path | None]:
    """Where each file lies on this machine, None where it does not.

    Args:
        cache: the user's cache folder; the hub has a cache of its own (HF_HOME).
    """
    if _is_address(download.source):
        paths = {file: _place(cache, file) for file in download.files}
        return {file: path if path.is_file() else None for file, path in paths.items()}
    from huggingface_hub import try_to_load_from_cache

    found: dict[RemoteFile, Path | None] = {}
    for file in download.files:
        path = try_to_load_from_cache(download.source, file.name, revision=download.revision)
        found[file] = Path(path) if isinstance(path, str) else None
    return found


def fetch(download: Download, cache: Path, progress: Progress) -> Mapping[RemoteFile, Path]:
    """Brings the files that are missing and checks those and the others.

    A file is written beside its place, synced, checked for size and SHA-256, and renamed; one that
    fails leaves nothing. A file from the hub without a published hash is checked against the one
    that the hub names it by. Interrupted, it starts anew.

    Raises:
        UserError: HF_HUB_OFFLINE is set, or the disk is too small.
        ChexGenBenchError: the network, the server or the content is at fault; a wrong hash is named
            with the right one.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise UserError(
            f"{download.source} is not fetched: HF_HUB_OFFLINE is set.",
            hint="Unset it, or copy the files from another machine.",
        )
    if _is_address(download.source):
        if len(download.files) != 1:
            raise ValueError(f"one address holds one file, not {len(download.files)}")
        file = download.files[0]
        path = _place(cache, file)
        _fetch_address(download.source, file, path, progress)
        return {file: path}
    return {file: _fetch_from_hub(download, file, progress) for file in download.files}


def size_text(size: int | None) -> str:
    """Bytes in the unit that people use.

    >>> size_text(95_628_359), size_text(1_711_828_444), size_text(803), size_text(None)
    ('96 MB', '1.7 GB', '1 kB', 'size unknown')
    """
    if size is None:
        return "size unknown"
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"


def _is_address(source: str) -> bool:
    return urllib.parse.urlsplit(source).scheme in {"http", "https"}


def _place(cache: Path, file: RemoteFile) -> Path:
    return inside(cache / "weights", file.name)


def _fetch_address(address: str, file: RemoteFile, path: Path, progress: Progress) -> None:
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / ".fetch.lock"):
        remove_leftovers(path.parent, path.suffix)
        if path.is_file() and (file.sha256 is None or sha256_file(path) == file.sha256):
            progress.say(f"{path} is there.")
            return
        _check_disk(path.parent, file)
        with atomic_path(path) as temporary:
            with temporary.open("wb") as target:
                found = _stream(address, file, target, progress)
            if file.sha256 is not None and found != file.sha256:
                raise _wrong_hash(address, found, file.sha256)
        progress.say(f"{path}: SHA-256 {found}{'' if file.sha256 else ', unchecked'}.")


def _stream(address: str, file: RemoteFile, target: IO[bytes], progress: Progress) -> str:
    """Writes the content of `address` to `target`; its SHA-256."""
    from chexgenbench import __version__

    request = urllib.request.Request(  # noqa: S310 -- `fetch` has looked at the scheme
        address, headers={"User-Agent": f"chexgenbench/{__version__}"}
    )
    opener = urllib.request.build_opener(_Redirects)
    hashed = hashlib.sha256()
    received = 0
    try:
        with opener.open(request, timeout=_SECONDS_OF_SILENCE) as answer:
            stated = answer.headers.get("Content-Length")
            expected = int(stated) if stated else file.size
            if file.size is not None and expected != file.size:
                raise ChexGenBenchError(
                    f"{address} holds {expected} bytes, not the {file.size} that were published."
                )
            with progress.stage(f"Fetching {file.name}", expected or 0, "bytes") as advance:
                while chunk := answer.read(_CHUNK):
                    received += len(chunk)
                    if expected is not None and received > expected:
                        break
                    target.write(chunk)
                    hashed.update(chunk)
                    advance(len(chunk))
    except urllib.error.HTTPError as error:
        raise ChexGenBenchError(f"{address} answered {error.code} {error.reason}.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if is_disk_fault(error):
            raise
        reason = getattr(error, "reason", error)
        raise ChexGenBenchError(f"{address} could not be fetched: {reason}.") from error
    if expected is not None and received != expected:
        more = "more than " if received > expected else f"{received} of "
        raise ChexGenBenchError(f"{address} sent {more}{expected} bytes.", hint="Try again.")
    return hashed.hexdigest()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from an encrypted address to a plain one."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        allowed = {"https"} if req.type == "https" else {"http", "https"}
        if urllib.parse.urlsplit(newurl).scheme not in allowed:
            raise urllib.error.URLError(f"redirected from {req.type} to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch_from_hub(download: Download, file: RemoteFile, progress: Progress) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import RepositoryNotFoundError

    cached = locate(download, Path())[file]
    if cached is None:
        Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
        _check_disk(Path(HF_HUB_CACHE), file)
        progress.say(f"Fetching {download.source}/{file.name} ({size_text(file.size)})")
    try:
        path = Path(hf_hub_download(download.source, file.name, revision=download.revision))
    # The hub's client raises errors of whichever HTTP library its version uses.
    except Exception as error:
        if is_disk_fault(error):
            raise
        closed = isinstance(error, RepositoryNotFoundError)  # among them those behind a licence
        raise ChexGenBenchError(
            f"{download.source}/{file.name} could not be fetched: {str(error).strip()}",
            hint=f"Accept its licence at https://huggingface.co/{download.source}, "
            "then: hf auth login"
            if closed
            else None,
        ) from error
    _check_hub_file(download, file, path)
    progress.say(f"{path} is there.")
    return path


def _check_hub_file(download: Download, file: RemoteFile, path: Path) -> None:
    """The content is what was published, or what the hub's cache says it is."""
    content = path.resolve()
    size = content.stat().st_size
    named = content.name if set(content.name) <= set(string.hexdigits.lower()) else ""
    expected = file.sha256 or (named if len(named) in {40, 64} else None)
    if expected is not None and len(expected) == 40:
        # Small files go by git's name for them: SHA-1 of a header and the content.
        header = f"blob {size}\0".encode()
        found = hashlib.sha1(header + content.read_bytes(), usedforsecurity=False).hexdigest()
    elif expected is not None:
        found = sha256_file(content)
    else:
        found = None
    if found != expected or size != (size if file.size is None else file.size):
        path.unlink()
        content.unlink(missing_ok=True)
        if found == expected:
            raise ChexGenBenchError(
                f"{download.source}/{file.name} has {size} bytes, not the {file.size} that were "
                "published; it has been removed."
            )
        raise _wrong_hash(f"{download.source}/{file.name}", str(found), str(expected))


def _wrong_hash(what: str, found: str, expected: str) -> ChexGenBenchError:
    return ChexGenBenchError(
        f"{what} is not what was published: its hash is {found}, expected {expected}. "
        "It has not been kept.",
        hint="Try again; if it stays so, the file was changed or a proxy alters it.",
    )


def _check_disk(folder: Path, file: RemoteFile) -> None:
    free = shutil.disk_usage(folder).free
    if file.size is not None and file.size > free:
        raise UserError(
            f"{file.name} has {size_text(file.size)} and the disk of {folder} {size_text(free)} "
            "free.",
            hint="Free some, or move the caches: CHEXGENBENCH_CACHE, HF_HOME.",
        )


def summary(downloads: tuple[Download, ...], cache: Path) -> list[dict[str, Any]]:
    """A row for each file: source, revision, file, size, sha256, and path (None: missing)."""
    return [
        {
            "source": download.source,
            "revision": download.revision,
            "file": file.name,
            "size": file.size,
            "sha256": file.sha256,
            "path": None if path is None else str(path),
        }
        for download in downloads
        for file, path in locate(download, cache).items()
    ]
