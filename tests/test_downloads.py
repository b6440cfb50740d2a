"""Fetching weights from a real server on this machine: whole and checked, or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chexgenbench.downloads import _Redirects, fetch, locate, snapshot, summary
from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.progress import Progress
from chexgenbench.types import Download, RemoteFile
from chexgenbench_plugins.weights import (
    read_state,
    refuse_pickles,
    safe_weight_files,
    shard_files,
    weight_folder,
)
from desk import Desk

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CONFIG = b'{"width": 3}\n'
COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUIET = Progress(quiet=True)

# A repository in the layout of a diffusers pipeline, with all that is in the way in real ones.
INDEX = {
    "_class_name": "SomePipeline",
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "transformer": ["diffusers", "Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SHARDS = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
PIPELINE: dict[str, bytes] = {
    "README.md": b"A card.",
    "everything.safetensors": CONTENT + b"root",
    "model_index.json": json.dumps(INDEX).encode(),
    "scheduler/scheduler_config.json": b"{}",
    "transformer/config.json": CONFIG,
    "transformer/model-1-of-2.safetensors": CONTENT,
    "transformer/model-2-of-2.safetensors": CONTENT[:70_000],
    "transformer/model.safetensors.index.json": json.dumps(SHARDS).encode(),
    "transformer/model.fp16.safetensors": CONTENT[:50_000],
    "transformer/pytorch_model.bin": CONTENT[:60_000],
    "vae/config.json": b'{"width": 4}\n',
    "vae/model.safetensors": CONTENT[:80_000],
}
PATTERNS = (
    "model_index.json",
    "scheduler/*",
    "transformer/config.json",
    "transformer/model-*.safetensors",
    "transformer/*.index.json",
    "transformer/*.bin",
    "vae/*",
)
WANTED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "transformer/model-1-of-2.safetensors",
    "transformer/model-2-of-2.safetensors",
    "transformer/model.safetensors.index.json",
    "vae/config.json",
    "vae/model.safetensors",
}


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def git_name(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class Server(ThreadingHTTPServer):
    """What it has been asked for, and a gate that holds the second half of ``/held`` back."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.gate = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked[f"{self.command} {self.path}"] += 1
        match self.path:
            case "/weights":
                self.answer(CONTENT)
            case "/elsewhere":
                self.answer(b"", 302, Location="/weights")
            case "/truncated":
                self.answer(CONTENT[:1_500_000], length=len(CONTENT))
            case "/without-length":
                self.answer(CONTENT[:1_500_000], length=None)
            case "/endless":
                self.answer(CONTENT + CONTENT, length=None)
            case "/held":
                self.answer(CONTENT[:1_500_000], length=len(CONTENT))
                self.wfile.flush()
                if self.server.gate.wait(60):
                    self.wfile.write(CONTENT[1_500_000:])
            case path if path.startswith(f"/owner/name/resolve/{COMMIT}/"):
                self.hub(path.rpartition("/")[2])
            case path if path.startswith("/api/models/"):
                self.describe(path.partition("?")[0].removeprefix("/api/models/"))
            case path if "/resolve/" in path:
                self.serve(path)
            case _:
                self.answer(b"nothing here", 404)

    def hub(self, name: str) -> None:
        """As the hub answers: its commit, and each file's name by content."""
        if name == "model.safetensors":
            self.answer(CONTENT, ETag=f'"{SHA256}"', **{"X-Repo-Commit": COMMIT})
        elif name == "altered.safetensors":
            changed = CONTENT[:-1] + b"!"
            self.answer(changed, ETag=f'"{SHA256}"', **{"X-Repo-Commit": COMMIT})
        elif name == "config.json":
            self.answer(CONFIG, ETag=f'"{git_name(CONFIG)}"', **{"X-Repo-Commit": COMMIT})
        elif name == "altered.json":
            self.answer(CONFIG, ETag=f'"{"0" * 40}"', **{"X-Repo-Commit": COMMIT})
        else:
            self.answer(b"", 404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def describe(self, path: str) -> None:
        """What the hub says of a repository: its newest commit and its files."""
        repository, _, revision = path.partition("/revision/")
        if repository not in {"owner/pipe", "owner/gated", "owner/cut", "owner/huge", "owner/old"}:
            self.answer(b"{}", 404, **{"X-Error-Code": "RepoNotFound"})
        elif revision not in {"", COMMIT}:
            self.answer(b"{}", 404, **{"X-Error-Code": "RevisionNotFound"})
        else:
            files = PIPELINE
            if repository == "owner/old":
                files = {name: body for name, body in PIPELINE.items() if name.endswith(".bin")}
            siblings = [
                {
                    "rfilename": name,
                    "size": 10**16 if repository == "owner/huge" else len(body),
                    "blobId": git_name(body),
                    "lfs": {"size": len(body), "sha256": sha256(body), "pointerSize": 130}
                    if name.endswith((".safetensors", ".bin"))
                    else None,
                }
                for name, body in files.items()
            ]
            body = json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode()
            self.answer(body, **{"Content-Type": "application/json"})

    def serve(self, path: str) -> None:
        _, name, _, _, *rest = path.strip("/").split("/")
        file = "/".join(rest)
        facts = {"X-Repo-Commit": COMMIT}
        if name == "gated":
            self.answer(b"", 401, **facts, **{"X-Error-Code": "GatedRepo"})
        elif file not in PIPELINE:
            self.answer(b"", 404, **facts, **{"X-Error-Code": "EntryNotFound"})
        else:
            body = PIPELINE[file]
            large = file.endswith((".safetensors", ".bin"))
            facts["ETag"] = f'"{sha256(body) if large else git_name(body)}"'
            sent = body[: len(body) // 2] if name == "cut" and self.command == "GET" else body
            self.answer(sent, **facts)

    def answer(
        self, body: bytes, code: int = 200, *, length: int | None = -1, **headers: str
    ) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # the client may have seen enough
                self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.gate.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def from_address(address: str, **facts: object) -> Download:
    return Download(source=address, files=(RemoteFile(name="weights.pth", **facts),))


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "weights").iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("path", ["/weights", "/elsewhere"])
@pytest.mark.parametrize("known", [True, False])
def test_a_file_arrives_whole(server: Server, tmp_path: Path, path: str, known: bool) -> None:
    facts = {"size": len(CONTENT), "sha256": SHA256} if known else {}
    download = from_address(server.address + path, **facts)
    (file,) = download.files
    assert locate(download, tmp_path)[file] is None
    arrived = fetch(download, tmp_path, QUIET)[file]
    assert arrived == tmp_path / "weights" / "weights.pth"
    assert arrived.read_bytes() == CONTENT
    assert locate(download, tmp_path)[file] == arrived
    assert left(tmp_path) == ["weights.pth"]
    fetch(download, tmp_path, QUIET)
    assert server.asked["GET /weights"] == 1  # what is there is not fetched again


@pytest.mark.parametrize(
    ("path", "facts", "words"),
    [
        ("/absent", {}, "404"),
        ("/truncated", {}, "1500000 of 3072000 bytes"),
        ("/truncated", {"sha256": SHA256}, "1500000 of 3072000 bytes"),
        ("/without-length", {"size": len(CONTENT)}, "1500000 of 3072000 bytes"),
        ("/without-length", {"sha256": SHA256}, SHA256),
        ("/endless", {"size": len(CONTENT)}, "more than 3072000 bytes"),
        ("/weights", {"size": 7}, "3072000 bytes, not the 7"),
        ("/weights", {"sha256": "f" * 64}, f"{SHA256}, expected {'f' * 64}"),
    ],
)
def test_what_is_not_whole_or_not_right_leaves_nothing(
    server: Server, tmp_path: Path, path: str, facts: dict[str, object], words: str
) -> None:
    with pytest.raises(ChexGenBenchError) as caught:
        fetch(from_address(server.address + path, **facts), tmp_path, QUIET)
    assert words in str(caught.value)
    assert left(tmp_path) == []


def test_a_wrong_file_in_the_cache_is_replaced_and_kept_until_then(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    place = tmp_path / "weights" / "weights.pth"
    place.write_bytes(b"half of a file")
    with pytest.raises(ChexGenBenchError):
        fetch(from_address(f"{server.address}/absent", sha256=SHA256), tmp_path, QUIET)
    assert place.read_bytes() == b"half of a file"
    fetch(from_address(f"{server.address}/weights", sha256=SHA256), tmp_path, QUIET)
    assert place.read_bytes() == CONTENT


@pytest.mark.parametrize("place", ["http://127.0.0.1:9", "http://no.such.host.invalid"])
def test_nobody_listens(tmp_path: Path, place: str) -> None:
    with pytest.raises(UserError, match="could not be fetched") as caught:
        fetch(from_address(f"{place}/weights"), tmp_path, QUIET)
    assert "HTTPS_PROXY" in str(caught.value.hint)
    assert left(tmp_path) == []


def test_a_redirect_never_leaves_encryption() -> None:
    handler = _Redirects()
    safe = Request("https://example.org/a")
    assert handler.redirect_request(safe, None, 302, "", {}, "https://example.org/b") is not None
    for target in ("http://example.org/b", "ftp://example.org/b", "file:///etc/passwd"):
        with pytest.raises(URLError, match="redirected"):
            handler.redirect_request(safe, None, 302, "", {}, target)


def test_a_name_cannot_leave_the_cache(server: Server, tmp_path: Path) -> None:
    download = Download(source=f"{server.address}/weights", files=(RemoteFile(name="../../x"),))
    with pytest.raises(ValueError, match="leads out"):
        fetch(download, tmp_path, QUIET)


def test_offline_is_obeyed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        fetch(from_address(f"{server.address}/weights"), tmp_path, QUIET)
    assert not server.asked


PLUGIN = """
from pathlib import Path

from chexgenbench import Encoder, EncoderSpec, UserError, hookimpl
from chexgenbench.downloads import locate
from chexgenbench.types import Download, RemoteFile

DOWNLOADS = ({downloads},)

class Mine(Encoder):
    @classmethod
    def weights(cls, parameters, context):
        found = [path for each in DOWNLOADS for path in locate(each, context.cache).values()]
        if not all(found):
            raise UserError("The weights of 'mine' are missing.")
        return found

    def preprocess(self, image):
        raise NotImplementedError

    def encode(self, batch):
        raise NotImplementedError

@hookimpl
def chexgenbench_encoders():
    yield EncoderSpec(
        name="mine", summary="a test", load=Mine, outputs={{"features": 3}}, preprocessing="none",
        downloads=DOWNLOADS,
    )
"""


def plugin(folder: Path, *downloads: Download) -> Path:
    path = folder / "mine.py"
    path.write_text(PLUGIN.format(downloads=", ".join(map(repr, downloads))))
    return path


@pytest.mark.slow
def test_the_command_fetches_and_show_says_what_is_missing(
    server: Server, desk: Desk, tmp_path: Path
) -> None:
    download = from_address(f"{server.address}/weights", size=len(CONTENT), sha256=SHA256)
    command = ("--plugin", plugin(tmp_path, download))
    shown = desk.run("encoders", "show", "mine", *command, COLUMNS="1000").out
    assert "missing, 3 MB" in shown
    assert "chexgenbench encoders fetch mine" in shown
    checked = desk.run(
        "doctor", "--encoder", "mine", *command, code=2, HF_HUB_OFFLINE="0", COLUMNS="1000"
    )
    assert "weights.pth (3 MB)" in checked.out
    assert "chexgenbench encoders fetch mine" in checked.out
    done = desk.run("encoders", "fetch", "mine", *command, HF_HUB_OFFLINE="0")
    place = desk.cache / "weights" / "weights.pth"
    assert done.out.split() == [str(place)]
    assert SHA256 in done.err
    assert place.read_bytes() == CONTENT
    described = json.loads(desk.run("encoders", "show", "mine", "--json", *command).out)
    assert described["downloads"] == summary((download,), desk.cache)
    assert described["downloads"][0]["path"] == str(place)


def test_killed_in_the_middle_it_leaves_no_half_file_and_starts_anew(
    server: Server, desk: Desk, tmp_path: Path
) -> None:
    download = from_address(f"{server.address}/held", sha256=SHA256)
    command = ("encoders", "fetch", "mine", "--plugin", plugin(tmp_path, download))
    process = desk.start(*command, HF_HUB_OFFLINE="0")
    folder = desk.cache / "weights"
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in folder.glob(".tmp-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (folder / "weights.pth").exists()
    assert len(left(desk.cache)) == 1  # what had come
    server.gate.set()
    desk.run(*command, HF_HUB_OFFLINE="0")
    assert left(desk.cache) == ["weights.pth"]
    assert (folder / "weights.pth").read_bytes() == CONTENT


def test_two_at_once_fetch_once(server: Server, desk: Desk, tmp_path: Path) -> None:
    download = from_address(f"{server.address}/held", sha256=SHA256)
    command = ("encoders", "fetch", "mine", "--plugin", plugin(tmp_path, download))
    first, second = (desk.start(*command, HF_HUB_OFFLINE="0") for _ in range(2))
    time.sleep(1)
    server.gate.set()
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
    assert server.asked["GET /held"] == 1
    assert left(desk.cache) == ["weights.pth"]


def from_hub(**files: str | None) -> Download:
    return Download(
        source="owner/name",
        revision=COMMIT,
        files=tuple(RemoteFile(name=name, sha256=value) for name, value in files.items()),
    )


def hub(server: Server, tmp_path: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }


def test_files_come_from_the_hub_into_its_cache(server: Server, desk: Desk, tmp_path: Path) -> None:
    download = from_hub(**{"model.safetensors": SHA256, "config.json": None})
    command = ("encoders", "fetch", "mine", "--plugin", plugin(tmp_path, download))
    done = desk.run(*command, **hub(server, tmp_path))
    model, config = (Path(line) for line in done.out.split())
    assert model.is_relative_to(tmp_path / "hub")
    assert COMMIT in str(model)
    assert model.read_bytes() == CONTENT
    assert config.read_bytes() == CONFIG
    desk.run(*command, **hub(server, tmp_path))
    files = {ask: count for ask, count in server.asked.items() if "/resolve/" in ask}
    assert set(files.values()) == {1}  # what is there is not asked for again


@pytest.mark.parametrize(
    ("name", "sha256", "words"),
    [
        ("altered.safetensors", SHA256, SHA256),
        ("altered.safetensors", None, SHA256),  # the hub's own name for it
        ("model.safetensors", "f" * 64, f"{SHA256}, expected {'f' * 64}"),
        ("altered.json", None, "0" * 40),
        ("absent.json", None, "could not be fetched"),
    ],
)
def test_what_the_hub_sends_wrong_is_not_kept(
    server: Server, desk: Desk, tmp_path: Path, name: str, sha256: str | None, words: str
) -> None:
    command = (
        "encoders",
        "fetch",
        "mine",
        "--plugin",
        plugin(tmp_path, from_hub(**{name: sha256})),
    )
    failed = desk.run(*command, code=1, **hub(server, tmp_path))
    assert words in failed.err
    snapshots = tmp_path / "hub" / "hub"
    assert not [path for path in snapshots.rglob(name) if ".no_exist" not in path.parts]
    assert not [path for path in snapshots.rglob("blobs/*") if path.stat().st_size]


def pipeline(source: str = "owner/pipe", **facts: object) -> Download:
    return Download(source=source, **{"patterns": PATTERNS, "revision": COMMIT} | facts)


def command(tmp_path: Path, *downloads: Download) -> tuple[object, ...]:
    return ("encoders", "fetch", "mine", "--plugin", plugin(tmp_path, *downloads))


def test_patterns_bring_what_matches_and_never_a_pickle(
    server: Server, desk: Desk, tmp_path: Path
) -> None:
    done = desk.run(*command(tmp_path, pipeline()), **hub(server, tmp_path))
    folder = Path(done.out.strip())
    assert folder.name == COMMIT
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == WANTED
    assert all((folder / name).read_bytes() == PIPELINE[name] for name in there)
    fetched = {ask for ask in server.asked if ask.startswith("GET /owner/pipe/resolve/")}
    assert len(fetched) == len(WANTED)
    desk.run(*command(tmp_path, pipeline()), **hub(server, tmp_path))
    assert all(server.asked[ask] == 1 for ask in fetched)


def test_a_commit_that_nobody_pinned_is_named(server: Server, desk: Desk, tmp_path: Path) -> None:
    done = desk.run(*command(tmp_path, pipeline(revision=None)), **hub(server, tmp_path))
    assert f"To stay with it: write owner/pipe@{COMMIT} where it is named" in done.err
    # A run that pins nothing finds it.
    shown = desk.run(
        "encoders",
        "show",
        "mine",
        *command(tmp_path, pipeline(revision=None))[3:],
        **hub(server, tmp_path) | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.out.strip() in shown.out
    pinned = desk.run(*command(tmp_path, pipeline()), **hub(server, tmp_path))
    assert "To stay with it" not in pinned.err


def test_the_commit_of_each_source_is_said_for_the_parameter_that_names_it(
    server: Server, desk: Desk, tmp_path: Path
) -> None:
    """A model's revision is that of its base; a LoRA has one of its own."""
    code = f"""
from typing import Annotated
from chexgenbench import Location, Model, ModelSpec, Parameters, hookimpl
from chexgenbench.types import Download

class Settings(Parameters):
    weights: Annotated[str, Location()] = "owner/base"
    lora: Annotated[str, Location()] = "owner/pipe"

class Mine(Model):
    def generate(self, requests):
        return []

@hookimpl
def chexgenbench_models():
    yield ModelSpec(
        name="mine", summary="a test", load=Mine, parameters=Settings,
        downloads=({pipeline(revision=None)!r},),
    )
"""
    (tmp_path / "mine.py").write_text(code)
    done = desk.run(
        "models", "fetch", "mine", "--plugin", tmp_path / "mine.py", **hub(server, tmp_path)
    )
    assert f"To stay with it: --set mine.lora=owner/pipe@{COMMIT}" in done.err


GATED = Download(source="owner/gated", files=(RemoteFile(name="a"),), revision=COMMIT)


@pytest.mark.parametrize(
    ("download", "kind", "words"),
    [
        (pipeline("owner/gated"), UserError, "licence wants to be accepted"),
        (GATED, UserError, "licence wants to be accepted"),
        (from_hub(**{"a.safetensors": None}), ChexGenBenchError, "a.safetensors could not be"),
        (pipeline("owner/none"), UserError, "no repository owner/none"),
        (pipeline(revision="f" * 40), UserError, f"no revision '{'f' * 40}'"),
        (pipeline("owner/huge"), UserError, "free"),
        (pipeline("owner/cut"), ChexGenBenchError, "could not be fetched"),
        (pipeline("owner/old"), ChexGenBenchError, "pickles, which are not fetched"),
        (pipeline(patterns=("unet/*",)), ChexGenBenchError, "no file that matches unet/"),
    ],
    ids=lambda value: getattr(value, "source", None),
)
def test_faults_of_the_hub_say_what_to_do(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    download: Download,
    kind: type[ChexGenBenchError],
    words: str,
) -> None:
    place = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ChexGenBenchError) as caught:
        fetch(download, tmp_path, QUIET)
    assert words in caught.value.message
    assert type(caught.value) is kind


def test_a_licence_to_accept_is_the_word_of_the_command(
    server: Server, desk: Desk, tmp_path: Path
) -> None:
    options = command(tmp_path, pipeline("owner/gated", gated=True))
    failed = desk.run(*options, code=2, **hub(server, tmp_path))
    assert "Accept it at https://huggingface.co/owner/gated and log in (hf auth login)" in (
        failed.err
    )
    # The plugin's own word on missing weights comes after a fetch, not in the place of its fault.
    assert "of 'mine' are missing" not in failed.err
    shown = desk.run("encoders", "show", "mine", *options[3:], COLUMNS="1000").out
    assert "licence to accept: https://huggingface.co/owner/gated" in shown


@pytest.mark.parametrize(
    ("download", "endpoint"),
    [
        (pipeline(), "http://127.0.0.1:9"),
        (from_hub(**{"model.safetensors": SHA256}), "http://no.such.host.invalid"),
    ],
    ids=["refused", "unknown"],
)
def test_a_hub_that_cannot_be_reached(
    desk: Desk, tmp_path: Path, download: Download, endpoint: str
) -> None:
    setting = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    failed = desk.run(*command(tmp_path, download), code=2, **setting)
    assert f"The hub ({endpoint}) cannot be reached" in failed.err
    assert "HF_ENDPOINT" in failed.err
    assert str(tmp_path / "hub") in failed.err


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache after a fetch of the pipeline; its snapshot."""
    cache = tmp_path / "cache"
    folder = cache / "models--owner--pipe" / "snapshots" / COMMIT
    for name in WANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PIPELINE[name])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return folder


def know_all_files(folder: Path) -> None:
    """As the hub's client does after it has listed a repository."""
    files = {name: {"size": len(body), "blob_id": "0" * 40} for name, body in PIPELINE.items()}
    table = folder.parents[1] / "trees" / f"{COMMIT}.json"
    table.parent.mkdir()
    table.write_text(json.dumps({"format_version": 1, "files": files}))


@pytest.mark.parametrize("listed", [True, False])
def test_a_part_of_a_repository_is_whole_where_it_is_all_that_was_asked_for(
    cached: Path, tmp_path: Path, listed: bool
) -> None:
    if listed:
        know_all_files(cached)
    assert list(locate(pipeline(), tmp_path).values()) == [cached]
    assert snapshot("owner/pipe", COMMIT) == cached
    assert weight_folder("owner/pipe", revision=COMMIT, home=tmp_path, what="mine") == cached


@pytest.mark.parametrize(
    ("name", "listed"),
    [(name, True) for name in sorted(WANTED)]
    # A copy by hand, without the hub's list: what the tables inside it name must be there.
    + [(name, False) for name in sorted(WANTED) if name.startswith("scheduler/")]
    + [(name, False) for name in sorted(WANTED) if name.endswith(".safetensors")],
)
def test_a_part_that_lacks_a_file_is_not_whole(
    cached: Path, tmp_path: Path, name: str, listed: bool
) -> None:
    if listed:
        know_all_files(cached)
    (cached / name).unlink()
    assert list(locate(pipeline(), tmp_path).values()) == [None]
    with pytest.raises(UserError) as caught:
        weight_folder(
            "owner/pipe",
            revision=COMMIT,
            home=tmp_path,
            what="mine",
            download=pipeline(size=9_000_000_000),
            kind="models",
        )
    assert "9.0 GB" in caught.value.message
    assert caught.value.hint == "Fetch them: chexgenbench models fetch mine"


def test_weights_behind_a_licence_say_where_to_accept_it(cached: Path, tmp_path: Path) -> None:
    shutil.rmtree(cached)
    for revision, way in ((COMMIT, "models fetch mine"), ("e" * 40, "hf download owner/pipe")):
        with pytest.raises(UserError) as caught:
            weight_folder(
                "owner/pipe",
                revision=revision,
                home=tmp_path,
                what="mine",
                download=pipeline(gated=True),
                kind="models",
            )
        assert caught.value.hint is not None
        assert "https://huggingface.co/owner/pipe" in caught.value.hint
        assert "hf auth login" in caught.value.hint
        assert way in caught.value.hint


@given(
    st.recursive(
        st.none() | st.integers() | st.sampled_from(["a.safetensors", "../b.safetensors", "c.bin"]),
        lambda inner: (
            st.dictionaries(st.sampled_from(["weight_map", "metadata", "x"]), inner)
            | st.lists(inner, max_size=2)
        ),
    )
)
def test_an_index_names_files_beside_it_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: object
) -> None:
    folder = tmp_path_factory.mktemp("index", numbered=True)
    (folder / "a.safetensors").write_bytes(b"")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps(content))
    try:
        assert shard_files(index, "mine") == [folder / "a.safetensors"]
        assert isinstance(content, dict)
        assert set(content["weight_map"].values()) == {"a.safetensors"}
    except UserError as error:
        assert index.name in error.message


class Touch:
    """A pickle that runs code when it is loaded: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_of_more_than_tensors_runs_by_the_users_word_alone(tmp_path: Path) -> None:
    import torch

    mark, path = tmp_path / "was-here", tmp_path / "weights.pt"
    torch.save({"a": Touch(mark)}, path)
    with pytest.raises(UserError, match="without running code") as caught:
        read_state(path, "mine")
    assert "--allow-pickle" in str(caught.value.hint)
    assert not mark.exists()
    with pytest.raises(UserError, match="no state dict"):
        read_state(path, "mine", allow_pickle=True)
    assert mark.exists()
    torch.save({"a": torch.ones(2)}, path)
    for allowed in (True, False):
        assert torch.equal(read_state(path, "mine", allow_pickle=allowed)["a"], torch.ones(2))
    path.write_bytes(pickle.dumps("text", protocol=2)[:5])
    for allowed in (True, False):
        with pytest.raises(UserError, match="cannot be read"):
            read_state(path, "mine", allow_pickle=allowed)


def test_pickles_stand_for_safetensors_by_the_users_word_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        safe_weight_files(tmp_path, "mine", allow_pickle=True)
    weights = tmp_path / "model.bin"
    weights.write_bytes(b"")
    for refused in (
        lambda: safe_weight_files(tmp_path, "mine"),
        lambda: refuse_pickles(tmp_path, "mine"),
        lambda: refuse_pickles(weights, "mine"),
    ):
        with pytest.raises(UserError, match="can run any code") as caught:
            refused()
        assert "model.bin" in caught.value.message
        assert "--allow-pickle" in str(caught.value.hint)
    refuse_pickles(weights, "mine", allow_pickle=True)
    found = safe_weight_files(tmp_path, "mine", allow_pickle=True)
    assert [path.name for path in found] == ["model.bin", "config.json"]
    (tmp_path / "model.safetensors").write_bytes(b"")
    for allowed in (True, False):
        found = safe_weight_files(tmp_path, "mine", allow_pickle=allowed)
        assert [path.name for path in found] == ["model.safetensors", "config.json"]
