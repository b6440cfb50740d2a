"""Fetching weights from a real server on this machine: whole and checked, or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import pytest

from chexgenbench.downloads import _Redirects, fetch, locate, summary
from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.progress import Progress
from chexgenbench.types import Download, RemoteFile
from desk import Desk

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CONFIG = b'{"width": 3}\n'
COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUIET = Progress(quiet=True)


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
            git = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
            self.answer(CONFIG, ETag=f'"{git}"', **{"X-Repo-Commit": COMMIT})
        elif name == "altered.json":
            self.answer(CONFIG, ETag=f'"{"0" * 40}"', **{"X-Repo-Commit": COMMIT})
        else:
            self.answer(b"", 404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

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


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ChexGenBenchError, match="could not be fetched"):
        fetch(from_address("http://127.0.0.1:9/weights"), tmp_path, QUIET)
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


def test_the_command_fetches_and_show_says_what_is_missing(
    server: Server, desk: Desk, tmp_path: Path
) -> None:
    download = from_address(f"{server.address}/weights", size=len(CONTENT), sha256=SHA256)
    command = ("--plugin", plugin(tmp_path, download))
    shown = desk.run("encoders", "show", "mine", *command).out
    assert "missing, 3 MB" in shown
    assert "chexgenbench encoders fetch mine" in shown
    checked = desk.run("doctor", "--encoder", "mine", *command, code=2, HF_HUB_OFFLINE="0")
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
