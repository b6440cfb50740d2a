"""Weights from the network: whole and checked, or absent.

Only `fetch` downloads, when the user asks for it; a run takes what lies on the machine.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import socket
import string
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from chexgenbench.errors import ChexGenBenchError, UserError, first_line, is_disk_fault
from chexgenbench.files import (
    atomic_path,
    file_lock,
    inside,
    read_json,
    remove_leftovers,
    sha256_file,
)
from chexgenbench.progress import Progress
from chexgenbench.types import Download, RemoteFile

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
"""Suffixes of weights that can run code when they are loaded."""

_COPY = "copy the files from a machine that has them"
_CHUNK = 1 << 20
_SECONDS_OF_SILENCE = 60
# Of any of the HTTP libraries that versions of the hub's client use.
_UNREACHABLE = {"ConnectError", "ConnectionError", "ProxyError", "SSLError", "TimeoutException"}


def locate(download: Download, cache: Path) -> Mapping[RemoteFile, Path | None]:
    """Where each file lies on this machine, None where it does not.

    What is fetched by patterns is one entry, named by them: its path is the folder of the hub's
    cache, None where that lacks something.

    Args:
        cache: the user's cache folder; the hub has a cache of its own (HF_HOME).
    """
    if _is_address(download.source):
        paths = {file: _place(cache, file) for file in download.files}
        return {file: path if path.is_file() else None for file, path in paths.items()}
    if download.patterns:
        folder = snapshot(download.source, download.revision, download.patterns)
        whole = folder is not None and _is_whole(folder, download.patterns)
        return {_bundle(download): folder if whole else None}
    from huggingface_hub import try_to_load_from_cache

    found: dict[RemoteFile, Path | None] = {}
    for file in download.files:
        path = try_to_load_from_cache(download.source, file.name, revision=download.revision)
        found[file] = Path(path) if isinstance(path, str) else None
    return found


def snapshot(
    source: str, revision: str | None, patterns: Sequence[str] | None = None
) -> Path | None:
    """The folder of a repository in the hub's local cache; None where it is not there.

    Args:
        patterns: what must be there (pickles apart) where the cache knows what the repository
            holds; None: whatever is there will do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            source,
            revision=revision,
            local_files_only=True,
            allow_patterns=None if patterns is None else list(patterns),
            ignore_patterns=[f"*{suffix}" for suffix in sorted(PICKLES)],
        )
    except LocalEntryNotFoundError as error:
        # A part of a repository is no fault of a cache: one fetches what one needs.
        part = getattr(error, "snapshot_path", None) if patterns is None else None
        return None if part is None else Path(part)
    except (OSError, ValueError):
        return None
    return Path(found)


def cached_commits(source: str) -> list[str]:
    """The commits of a repository of which the hub's local cache holds something."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model")
    return sorted(path.name for path in (folder / "snapshots").glob("*"))


def fetch(
    download: Download, cache: Path, progress: Progress, setting: str | None = None
) -> Mapping[RemoteFile, Path]:
    """Brings the files that are missing and checks those and the others.

    A file is written beside its place, synced, checked for size and SHA-256, and renamed; one that
    fails leaves nothing. A file from the hub without a published hash is checked against the one
    that the hub names it by. Interrupted, it starts anew. Patterns bring no pickle.

    Args:
        cache: see `locate`.
        progress: is told what is fetched, and the commit where none is pinned.
        setting: the parameter that names the source, such as ``flux-1-dev.lora``.

    Raises:
        UserError: HF_HUB_OFFLINE is set, the server cannot be reached, a licence is not accepted,
            there is no such repository or revision, or the disk is too small.
        ChexGenBenchError: the server or the content is at fault; a wrong hash is named with the
            right one.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise UserError(
            f"{download.source} is not fetched: HF_HUB_OFFLINE is set.",
            hint=f"Unset it, or {_COPY}.",
        )
    if _is_address(download.source):
        if len(download.files) != 1:
            raise ValueError(f"one address holds one file, not {len(download.files)}")
        file = download.files[0]
        path = _place(cache, file)
        _fetch_address(download.source, file, path, progress)
        return {file: path}
    found: dict[RemoteFile, Path]
    if download.patterns:
        found = {_bundle(download): _fetch_patterns(download, progress)}
    else:
        if None in locate(download, cache).values():
            _knock(download)
        found = {file: _fetch_from_hub(download, file, progress) for file in download.files}
    if download.revision is None and found:
        commit = _commit(next(iter(found.values())))
        pinned = f"{download.source}@{commit}"
        way = f"--set {setting}={pinned}" if setting else f"write {pinned} where it is named"
        progress.say(
            f"{download.source} has no pinned revision: this is commit {commit}. "
            f"To stay with it: {way}"
        )
    return found


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


_MOST_BYTES = 1e15


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: ``16G``, ``10GB``, ``512M`` or ``0``.

    Raises:
        UserError: it is no size.

    >>> parse_size("1.5GB"), parse_size("20 k"), parse_size("0")
    (1500000000, 20000, 0)
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)i?B?", text.strip())
    if found is None:
        raise UserError(f"{text[:40]!r} is no size.", hint="Write it as in 10GB or 512M.")
    size = float(found[1]) * 1000 ** " kMGT".index(found[2] or " ")
    if size > _MOST_BYTES:
        raise UserError(f"{text[:20]} is more than any machine has.")
    return int(size)


def _is_address(source: str) -> bool:
    return urllib.parse.urlsplit(source).scheme in {"http", "https"}


def _place(cache: Path, file: RemoteFile) -> Path:
    return inside(cache / "weights", file.name)


def _fetch_address(address: str, file: RemoteFile, path: Path, progress: Progress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.parent / ".fetch.lock"):
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
    except urllib.error.URLError as error:
        if is_disk_fault(error):
            raise
        # A redirect that is refused has a text for its reason.
        kind = UserError if isinstance(error.reason, OSError) else ChexGenBenchError
        raise kind(
            f"{address} could not be fetched: {error.reason}.",
            hint=f"Check the network and the proxy (HTTPS_PROXY), or {_COPY}.",
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if is_disk_fault(error):
            raise
        raise ChexGenBenchError(
            f"{address} could not be fetched: {error}.", hint="Try again."
        ) from error
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


def _fetch_patterns(download: Download, progress: Progress) -> Path:
    """Brings all files that match a pattern, of one commit; its folder in the hub's cache."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    source = download.source
    try:
        listing = HfApi().model_info(
            source,
            revision=download.revision,
            files_metadata=True,
            timeout=_SECONDS_OF_SILENCE,
        )
    except Exception as error:
        raise _hub_fault(download, "", error) from error
    names = {item.rfilename: item for item in listing.siblings or ()}
    wanted = [name for name in names if _matches(name, download.patterns)]
    if not wanted:
        pickles = any(Path(name).suffix in PICKLES for name in names)
        raise ChexGenBenchError(
            f"{source} holds no file that matches {', '.join(download.patterns)}"
            f"{'; its weights are pickles, which are not fetched' if pickles else ''}."
        )
    files = []
    for name in sorted(wanted):
        lfs = names[name].lfs
        size = names[name].size
        files.append(RemoteFile(name=name, size=size, sha256=lfs.sha256 if lfs else None))
    commit = listing.sha
    missing = [
        file
        for file in files
        if not isinstance(try_to_load_from_cache(source, file.name, revision=commit), str)
    ]
    needed = sum(file.size or 0 for file in missing)
    if missing:
        progress.say(f"Fetching {len(missing)} files of {source} ({size_text(needed or None)})")
        _check_disk(_hub_cache(), RemoteFile(name=source, size=needed))
    paths = [_fetch_from_hub(download, file, progress) for file in files]
    if {_commit(path) for path in paths} != {commit}:
        raise ChexGenBenchError(f"{source} was changed while it was fetched.", hint="Try again.")
    return paths[0].parents[len(Path(files[0].name).parts) - 1]


def _knock(download: Download) -> None:
    """Raises at once where the hub cannot be reached; its client would try for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(download.source, revision=download.revision, timeout=_SECONDS_OF_SILENCE)
    except Exception as error:
        # Whatever else is wrong the files themselves will show.
        if any(_is_unreachable(each) for each in _causes(error)):
            raise _hub_fault(download, "", error) from error


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _commit(path: Path) -> str:
    """The commit that a path below ``snapshots`` of the hub's cache belongs to."""
    parts = path.parts
    return parts[len(parts) - parts[::-1].index("snapshots")]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    if Path(name).suffix in PICKLES:
        return False
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _bundle(download: Download) -> RemoteFile:
    shown = ", ".join(download.patterns[:3])
    more = len(download.patterns) - 3
    name = f"{shown} and {more} more" if more > 0 else shown
    return RemoteFile(name=name, size=download.size)


def _is_whole(folder: Path, patterns: Sequence[str]) -> bool:
    """Whether a folder holds weights as far as its own tables say.

    The hub's cache may not know what the repository holds, for example after a copy by hand.
    """
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found = {name for name in names if _matches(name, patterns)}
    for name in found:
        if name.endswith(".safetensors.index.json"):
            shards = _table(_table(read_json(folder / name)).get("weight_map"))
            place = Path(name).parent
            if not all((place / str(shard)).as_posix() in names for shard in shards.values()):
                return False
    for part in _components(folder):
        asked = any(fnmatchcase(part, pattern.partition("/")[0]) for pattern in patterns)
        inside_part = {name for name in found if name.startswith(f"{part}/")}
        weights = any(name.endswith(".safetensors") for name in inside_part)
        if asked and (not inside_part or (f"{part}/config.json" in inside_part and not weights)):
            return False
    return bool(found)


def _components(folder: Path) -> Iterator[str]:
    """The parts of a diffusers pipeline that have a folder of their own."""
    index = folder / "model_index.json"
    if index.is_file():
        for name, value in _table(read_json(index)).items():
            if isinstance(value, list) and value and value[0] is not None:
                yield name


def _table(value: object) -> dict[str, Any]:
    """A JSON object, or an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def _fetch_from_hub(download: Download, file: RemoteFile, progress: Progress) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    revision = download.revision
    if not isinstance(try_to_load_from_cache(download.source, file.name, revision=revision), str):
        _check_disk(_hub_cache(), file)
        progress.say(f"Fetching {download.source}/{file.name} ({size_text(file.size)})")
    try:
        path = Path(hf_hub_download(download.source, file.name, revision=revision))
    # The hub's client raises errors of whichever HTTP library its version uses.
    except Exception as error:
        raise _hub_fault(download, f"/{file.name}", error) from error
    _check_hub_file(download, file, path)
    progress.say(f"{path} is there.")
    return path


def _hub_fault(download: Download, what: str, error: Exception) -> Exception:
    """The error for a fault of the hub's client, or that one where the disk is at fault."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    source = download.source
    page = f"https://huggingface.co/{source}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    chain = list(_causes(error))
    if any(is_disk_fault(each) for each in chain):
        return error
    if isinstance(error, GatedRepoError) or (download.gated and status in {401, 403}):
        return UserError(
            f"The hub does not send {source}{what}: its licence wants to be accepted, by somebody "
            "who is logged in.",
            hint=f"Accept it at {page} and log in (hf auth login), then repeat this command.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"The hub has no repository {source}, or a private one.",
            hint=f"Look at {page}; log in to see a private one: hf auth login",
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(
            f"{source} has no revision {download.revision!r} on the hub.",
            hint=f"Its commits: {page}/commits/main",
        )
    if any(_is_unreachable(each) for each in chain):
        return UserError(
            f"The hub ({ENDPOINT}) cannot be reached for {source}{what}: {first_line(chain[-1])}.",
            hint="Check the network and the proxy (HTTPS_PROXY), name a mirror (HF_ENDPOINT), or "
            f"{_COPY} into {_hub_cache()}.",
        )
    return ChexGenBenchError(f"{source}{what} could not be fetched: {str(error).strip()}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, the first cause last."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _is_unreachable(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return True
    return any(kind.__name__ in _UNREACHABLE for kind in type(error).__mro__)


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
