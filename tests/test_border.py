"""Workers that lie: each is refused with its own message, and loses its shard alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.executors import run_shards
from chexgenbench.executors.border import Intake, Refused, Shard, noted, read_plain
from chexgenbench.executors.launch import LOG_BYTES, Process, keep_ends
from chexgenbench.files import digest
from chexgenbench.images import BadImage, read_png
from chexgenbench.jobs.generate import hold
from chexgenbench.jobs.job import GenerateJob, Job
from chexgenbench.jobs.manifest import ManifestRow, read_calls, read_manifest, read_processes
from chexgenbench.types import Request

SCRIPT = Path(__file__).parent / "hostile_worker.py"
SECRET = "the secret of somebody else"
COUNT = 8


def requests(count: int = COUNT) -> list[Request]:
    return [
        Request(id=f"r{i}", prompt_id=f"r{i}", prompt="", seed=i, size=32) for i in range(count)
    ]


JOB = GenerateJob(
    model="none",
    source="",
    parameters={},
    context={"home": "/", "cache": "/", "dtype": "float32", "allow_pickle": False},
    batch_size=2,
    n_requests=COUNT,
)


class Scripts:
    """Starts the script above: of that kind for the shard with the first batch, else an honest one.

    Args:
        first: the kinds of the first shard's workers, the last for all that follow.
        others: the same of the others.
    """

    name = "script"
    shards_a_place = 1

    def __init__(self, secret: Path, *first: str, others: Sequence[str] = ("honest",)) -> None:
        self.places: Sequence[str] = ("cpu", "cpu")
        self._secret, self._first, self._others = secret, list(first), list(others)
        self.started: list[Process] = []
        self.kinds: list[str] = []

    def start(self, folder: Path, job: Job, device: str, log: Path) -> Process:
        assert isinstance(job, GenerateJob)
        kinds = self._first if 0 in job.batches else self._others
        kind = kinds.pop(0) if len(kinds) > 1 else kinds[0]
        self.kinds.append(kind)
        ids = [f"r{2 * batch + i}" for batch in job.batches for i in range(2)]
        command = [sys.executable, "-I", "-S", str(SCRIPT), kind, str(folder), str(self._secret)]
        self.started.append(Process([*command, *ids], log))
        return self.started[-1]

    def close(self) -> None:
        """Nothing is held."""


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bench" / "generation"
        self.said: list[str] = []
        self.secret = folder / "secret"
        self.secret.write_text(SECRET)
        self.secret.with_suffix(".png").write_bytes(_png())
        self.launcher = Scripts(self.secret, "honest")

    def run(
        self, *first: str, others: Sequence[str] = ("honest",), timeout: float = 60.0
    ) -> dict[str, ManifestRow]:
        self.launcher = Scripts(self.secret, *first, others=others)
        with hold(self.folder):
            return run_shards(
                JOB,
                requests(),
                self.folder,
                self.launcher,
                timeout=timeout,
                say=self.said.append,
            )

    def made(self) -> list[str]:
        return sorted(read_manifest(self.folder))


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def others(bench: Bench) -> dict[str, bytes]:
    """What lies outside the generation's folder."""
    root = bench.folder.parent.parent
    paths = [
        path for path in root.rglob("*") if path.is_file() and bench.folder not in path.parents
    ]
    return {str(path): path.read_bytes() for path in paths}


NONE: list[str] = []
REFUSED: dict[str, str] = {
    "too few": "ended as if it were done, and a part of its work is missing",
    "none": "ended as if it were done, and a part of its work is missing",
    "not asked": "an image that was not asked for: 'r999'",
    "of another shard": "an image that was not asked for: 'r5'",
    "outside": "an image that was not asked for: '../../../../outside'",
    "terminal id": r"an image that was not asked for: '\\x1b\[2J\\u202eevil'",
    "other size": "r0.png has 48 x 48 pixels where 32 x 32 were asked for",
    "size lie": "r0.png has 48 x 48 pixels and not 32 x 32, as its manifest says",
    "tiny": "r0.png is 8 x 8 pixels; at least 16",
    "bomb": "r0.png is too large: 60000 x 60000 pixels",
    "jpeg": "r0.png is not a PNG file",
    "16 bits": "r0.png has 16 bits a value and the PNG colour type 0",
    "16 bits rgb": "r0.png has 16 bits a value and the PNG colour type 2",
    "rgba": "r0.png has 8 bits a value and the PNG colour type 6",
    "palette": "r0.png has a part b'PLTE'",
    "animated": "r0.png has a part b'acTL'",
    "text": "r0.png has a part b'tEXt'",
    "transparent": "r0.png has a part b'tRNS'",
    "interlaced": "not interlaced, are expected",
    "trailing": "r0.png goes on after its end",
    "surplus": "r0.png holds more than its pixels",
    "truncated": "r0.png is truncated",
    "few rows": "r0.png is truncated: its pixels end early",
    "checksum": "the checksum of its part b'IEND' is wrong",
    "two headers": "has its parts in no order of a PNG file",
    "filter": "r0.png cannot be read: unrecognized data stream",
    "many parts": "r0.png has more than 103082 bytes",
    "empty": "r0.png is not a PNG file",
    "sha": "r0.png is not what its manifest says",
    "secret": "r0.png cannot be read: a symbolic link",
    "secret image": "r0.png cannot be read: a symbolic link",
    "folder link": "images cannot be read: no folder, or a symbolic link",
    "manifest link": "manifest.jsonl cannot be read: a symbolic link",
    "manifest secret": "manifest.jsonl cannot be read: a symbolic link",
    "manifest fifo": "manifest.jsonl is no plain file",
    "manifest folder": "manifest.jsonl is no plain file",
    "fifo": "r0.png is no plain file",
    "folder": "r0.png is no plain file",
    "socket": "r0.png cannot be read: No such device or address",
    "device": "r0.png (is no plain file|cannot be read: )",
    "hard link": "r0.png has a second name",
    "no folder": "folder images is missing",
    "no image": "r0.png is missing, although its manifest names it",
    "long line": "manifest.jsonl has a line of more than 16384 bytes",
    "endless line": "manifest.jsonl has a line of more than 16384 bytes",
    "no json": "manifest.jsonl is not JSON",
    "nested": "manifest.jsonl is not JSON",
    "list": "manifest.jsonl has a fault",
    "binary": "manifest.jsonl is not JSON",
    "surrogate": "manifest.jsonl has a fault: id|not asked for",
    "nan": "manifest.jsonl is not JSON",
    "infinite": "manifest.jsonl is not JSON",
    "negative": "manifest.jsonl has a fault: seconds",
    "true": "manifest.jsonl has a fault: width",
    "huge": "manifest.jsonl has a fault: memory",
    "digits": "manifest.jsonl is not JSON",
    "missing key": "manifest.jsonl has a fault: sha256: Field required",
    "extra key": "manifest.jsonl has a fault: extra: Extra inputs",
    "null": "manifest.jsonl has a fault",
    "many lines": "manifest.jsonl has (more than .* bytes|a fault)",
    "many empty lines": "manifest.jsonl is not JSON",
    "flag": "manifest.jsonl has a fault: flags.0",
    "flags": "manifest.jsonl has a fault: flags",
    "device name": "manifest.jsonl has a fault: device",
    "no process": "names a process that processes.jsonl lacks",
    "sparse manifest": "manifest.jsonl has more than .* bytes",
    "cut of another": "calls.jsonl has a line that cannot be",
    "cut sum": "calls.jsonl cuts a batch of 2 into 4",
    "cut true": "calls.jsonl has a line that cannot be",
    "cut negative": "calls.jsonl has a line that cannot be",
    "cut text": "calls.jsonl has a line that cannot be",
    "process id": "processes.jsonl has an id that is not its content's",
    "process nested": "processes.jsonl has a fault: hardware.a",
    "process key": "processes.jsonl has a fault: versions",
    "process escape": "processes.jsonl has a fault: versions.a",
    "process long": "processes.jsonl has a fault: versions.a",
    "process surrogate": "processes.jsonl (has a fault|is not JSON)",
    "processes": "processes.jsonl has more than 100 processes",
    "process secret": "processes.jsonl cannot be read: a symbolic link",
    "note link": "worker-0.error.json cannot be read: a symbolic link",
    "note fifo": "worker-0.error.json is no plain file",
    "note huge": "worker-0.error.json has more than 65536 bytes",
    "note no json": "worker-0.error.json is not JSON",
    "note of another kind": "worker-0.error.json has a fault: message",
    "changed after": "returned an image twice: 'r0'",
    "gone": "job directory is gone",
    "replaced": "job directory cannot be opened: no folder, or a symbolic link",
}
ROOT = {"device"}
GOOD_AT_FIRST = {
    "folder link",
    "manifest link",
    "manifest secret",
    "manifest fifo",
    "manifest folder",
    "sparse manifest",
    "replaced",
    "twice",
}
"""What these make before they lie may have been taken by then."""

BEFORE_IT_WAS_FOUND = {
    "too few": ["r0", "r1", "r2"],
    "not asked": ["r0", "r1", "r2", "r3"],
    "of another shard": ["r0", "r1", "r2", "r3"],
    "changed after": ["r0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED)
def test_a_lying_worker_loses_its_shard_only(bench: Bench, kind: str) -> None:
    if kind in ROOT and os.geteuid():
        pytest.skip("only root makes device nodes")
    before = others(bench)
    if kind in ("not asked", "of another shard"):
        # Its shard is whole before the lie, so nothing is lost; the lie is not taken either.
        rows = bench.run(kind)
        assert list(rows) == [f"r{i}" for i in range(COUNT)]
        return
    with pytest.raises(Refused, match=REFUSED[kind]) as caught:
        bench.run(kind)
    assert isinstance(caught.value, ChexGenBenchError)
    assert re.match(r"worker \d on cpu is refused\. ", caught.value.message)
    good = BEFORE_IT_WAS_FOUND.get(kind, NONE)
    if kind in GOOD_AT_FIRST:
        good = [name for name in bench.made() if name < "r4"]
    assert bench.made() == [*good, "r4", "r5", "r6", "r7"]
    # Once, and the end of its log is shown; no escape of a terminal is.
    assert bench.launcher.kinds.count(kind) == 1
    assert caught.value.hint and f"the last words of {kind}" in caught.value.hint
    shown = f"{caught.value}{caught.value.hint}{bench.said}"
    assert "\x1b" not in shown and "\u202e" not in shown and len(shown) < 5000
    assert SECRET not in shown
    for path in bench.folder.rglob("*"):
        assert not path.is_symlink()
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes()
            assert path.read_bytes() != bench.secret.with_suffix(".png").read_bytes()
    shutil.rmtree(bench.folder.parent / "elsewhere", ignore_errors=True)
    assert others(bench) == before
    assert not any(psutil.pid_exists(each.pid) for each in bench.launcher.started)
    # The same command goes on where it was.
    assert list(bench.run("honest")) == [f"r{i}" for i in range(COUNT)]


DYING = {
    "at once": "ended with exit code 7: the last words of at once",
    "killed": "ended with signal SIGKILL: the last words",
    "crash": "ended with signal SIGSEGV: the last words",
    "flood": "ended with exit code 3: the last words",
    "hang": r"returned nothing for 1 s \(--timeout\) and was ended",
    "deaf": r"returned nothing for 1 s \(--timeout\) and was ended",
    "note escapes": r"It broke \ufffd\[2J\ufffd here\.",
    "disk": "ended by a fault of its disk: No space left on device",
}


@pytest.mark.parametrize("kind", DYING)
def test_the_shard_of_a_dying_worker_is_made_by_another(bench: Bench, kind: str) -> None:
    rows = bench.run(kind, "honest", timeout=1.0 if kind in ("hang", "deaf") else 60.0)
    assert list(rows) == [f"r{i}" for i in range(COUNT)]
    assert bench.launcher.kinds.count(kind) == 1
    assert len(bench.said) == 1 and re.search(DYING[kind], bench.said[0])
    assert "Another takes its part. The end of its log" in bench.said[0]
    assert "\x1b" not in bench.said[0] and len(bench.said[0]) < 3000
    assert not (bench.folder / "shards").exists()
    assert not any(psutil.pid_exists(each.pid) for each in bench.launcher.started)
    if kind == "flood":
        log = bench.folder / f"worker-{bench.launcher.kinds.index('flood') + 1}.log"
        assert LOG_BYTES < log.stat().st_size <= 2 * LOG_BYTES + 100
        assert b"bytes left out" in log.read_bytes()


def test_a_shard_is_tried_three_times_without_an_image(bench: Bench) -> None:
    with pytest.raises(ChexGenBenchError, match="exit code 7") as caught:
        bench.run("at once")
    assert not isinstance(caught.value, (Refused, UserError))
    assert bench.launcher.kinds.count("at once") == 3
    assert bench.made() == ["r4", "r5", "r6", "r7"]


def test_bad_input_that_a_worker_claims_ends_its_shard_and_no_other(bench: Bench) -> None:
    """Nobody knows whether it lies; what it says ends no other worker."""
    with pytest.raises(UserError, match="Stop everything"):
        bench.run("note user")
    assert bench.launcher.kinds.count("note user") == 1
    assert bench.made() == ["r4", "r5", "r6", "r7"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("big", "written 0.3 GB into its job directory, where its work takes at most 0.3 GB"),
        ("many files", "written more than 10008 files"),
        ("deep", "made folders more than 64 deep"),
    ],
)
def test_a_worker_that_fills_its_folder_is_ended(bench: Bench, kind: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        bench.run(kind)
    assert bench.made() == ["r4", "r5", "r6", "r7"]
    assert not list((bench.folder / "shards").glob("*"))


@pytest.mark.parametrize("kind", ["path outside", "sparse", "silent"])
def test_what_does_no_harm_is_no_fault(bench: Bench, kind: str) -> None:
    before = others(bench)
    assert len(bench.run(kind)) == COUNT
    assert bench.said == []
    assert others(bench) == before


def test_a_worker_that_does_not_end_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chexgenbench.executors.errands._ENDING", 0.3)
    assert len(bench.run("lingering", timeout=600)) == COUNT
    assert bench.said == []
    assert not any(psutil.pid_exists(each.pid) for each in bench.launcher.started)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of that many bytes in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user cannot mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for each in mounted:
        subprocess.run(["umount", str(each)], check=True)


def test_a_full_disk_of_ours_ends_the_command(
    tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    bench = Bench(tmp_path)
    bench.folder = small_disk(4_000_000) / "generation"
    with pytest.raises(OSError, match="No space left on device"):
        bench.run("disk", "honest")


def test_a_worker_that_fills_the_disk_is_ended_and_the_others_go_on(
    tmp_path: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is measured when the disk is full, if not before."""
    monkeypatch.setattr("chexgenbench.executors.errands._MEASURE_AGAIN", 600.0)
    bench = Bench(tmp_path)
    bench.folder = small_disk(290_000_000) / "generation"
    with pytest.raises(Refused, match=r"written 0\.3 GB into its job directory"):
        bench.run("fill", others=("late", "honest"))
    assert bench.launcher.kinds == ["fill", "late", "honest"]
    assert "worker 2 on cpu ended by a fault of its disk" in bench.said[1]
    assert bench.made() == ["r4", "r5", "r6", "r7"]
    assert list(bench.run("honest")) == [f"r{i}" for i in range(COUNT)]


@pytest.mark.parametrize("parts", [1, 9_000, 20_000])
def test_a_png_has_a_bounded_number_of_parts(parts: int) -> None:
    data = _png()
    start = data.index(b"IDAT") - 4
    empty = bytes(4) + b"IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")
    data = data[:start] + empty * parts + data[start:]
    if parts > 10_000:
        with pytest.raises(BadImage, match="more than 10000 parts"):
            read_png(data, "x", 10_000)
    else:
        assert read_png(data, "x", 10_000).size == (32, 32)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_png_of_ours_is_read(mode: str, level: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (700, 300, 3), dtype=np.uint8)
    image = Image.fromarray(values).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=level)
    found = read_png(buffer.getvalue(), "x", 210_000)
    assert found.mode == mode and np.array_equal(np.asarray(found), np.asarray(image))
    with pytest.raises(BadImage, match="too large: 300 x 700"):
        read_png(buffer.getvalue(), "x", 209_999)


def test_a_bomb_is_not_unpacked() -> None:
    """A gigabyte of zeros in a megabyte: no more is unpacked than the pixels that are claimed."""
    packed = zlib.compress(bytes(2**30), 9)
    header = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(each)) + kind + each + struct.pack(">I", zlib.crc32(kind + each))
        for kind, each in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    )
    tracemalloc.start()
    with pytest.raises(BadImage, match="holds more than its pixels"):
        read_png(data, "x", 10_000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20_000_000


GOOD = _png()
FIRST = {"python": "3"}
PROCESS = digest({"versions": FIRST, "hardware": {}})[:16]
ROW = {
    "id": "r0",
    "sha256": hashlib.sha256(GOOD).hexdigest(),
    "width": 32,
    "height": 32,
    "seconds": 0.1,
    "flags": [],
    "call": 1,
    "device": "cpu",
    "memory": 0,
    "process": PROCESS,
}
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["r0", "r1", PROCESS, "cpu"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
BYTES = st.binary(max_size=200)


def _line_of(values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _changed(row: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Lines that are good but for a few values."""
    return st.dictionaries(st.sampled_from([*row, "extra"]), JSON, max_size=2).map(
        lambda changes: _line_of({**row, **changes})
    )


def _file(*lines: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(st.one_of(*lines, BYTES, JSON.map(_line_of)), max_size=4).map(b"".join)


PNG = st.one_of(
    BYTES,
    st.just(GOOD),
    st.tuples(st.integers(0, len(GOOD) - 1), BYTES, st.integers(0, 50)).map(
        lambda cut: GOOD[: cut[0]] + cut[1] + GOOD[cut[0] + cut[2] :]
    ),
)


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    manifest=_file(_changed(ROW), _changed({**ROW, "id": "r1"})),
    calls=_file(_changed({"batch": 0, "calls": [1, 1]})),
    processes=_file(_changed({"id": PROCESS, "versions": FIRST, "hardware": {}})),
    note=_file(_changed({"format": 2, "user": False, "message": "a", "hint": None})),
    images=st.tuples(PNG, PNG),
    right=st.booleans(),
)
@example(
    manifest=_line_of(ROW),
    calls=_line_of({"batch": 0, "calls": [1, 1]}),
    processes=_line_of({"id": PROCESS, "versions": FIRST, "hardware": {}}),
    note=b"",
    images=(GOOD, GOOD),
    right=True,
)
def test_whatever_a_worker_writes_is_taken_or_refused(
    tmp_path: Path,
    manifest: bytes,
    calls: bytes,
    processes: bytes,
    note: bytes,
    images: tuple[bytes, bytes],
    right: bool,
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        work, generation = Path(name, "work"), Path(name, "generation")
        (work / "images").mkdir(parents=True)
        generation.mkdir()
        for i, data in enumerate(images):
            (work / "images" / f"SyntheticImg_r{i}.png").write_bytes(data)
            if right:
                known, sha = ROW["sha256"], hashlib.sha256(data).hexdigest()
                manifest = manifest.replace(str(known).encode(), sha.encode())
        files = {
            "manifest.jsonl": manifest,
            "calls.jsonl": calls,
            "processes.jsonl": processes,
            "worker-0.error.json": note,
        }
        for file, data in files.items():
            (work / file).write_bytes(data)
        known_ids: set[str] = set()
        shard = Shard(batches=[0], requests=requests(2), batch_size=2)
        intake = Intake(work, shard, generation, known_ids, 1)
        for step in (intake.take, intake.take, lambda: noted(work)):
            try:
                step()
            except Refused as refused:
                assert refused.message.replace("\n", "").isprintable()
                assert len(refused.message) < 1000
        # What was taken is whole and readable, and nothing else is there.
        rows = read_manifest(generation)
        assert set(rows) == known_ids <= {"r0", "r1"}
        for row in rows.values():
            data = (generation / row.path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == row.sha256
            assert read_png(data, "x", 32 * 32).size == (row.width, row.height) == (32, 32)
        assert all(cut == (1, 1) for cut in read_calls(generation).values() if len(cut) > 1)
        assert set(read_processes(generation)) >= {row.process for row in rows.values()}
        names = {row.path for row in rows.values()}
        plain = {"manifest.jsonl", "calls.jsonl", "processes.jsonl"}
        found = {
            str(path.relative_to(generation)) for path in generation.rglob("*") if path.is_file()
        }
        assert names <= found <= names | plain
        assert {path.name for path in Path(name).iterdir()} == {"work", "generation"}


def test_lines_that_come_in_pieces_are_taken_once(tmp_path: Path) -> None:
    """As a worker writes them, whose last line is cut at any byte."""
    work, generation = tmp_path / "work", tmp_path / "generation"
    (work / "images").mkdir(parents=True)
    generation.mkdir()
    (work / "processes.jsonl").write_bytes(
        _line_of({"id": PROCESS, "versions": FIRST, "hardware": {}})
    )
    for i in range(2):
        (work / "images" / f"SyntheticImg_r{i}.png").write_bytes(GOOD)
    data = _line_of(ROW) + _line_of({**ROW, "id": "r1"})
    intake = Intake(
        work, Shard(batches=[3], requests=requests(2), batch_size=2), generation, set(), 4
    )
    with (work / "manifest.jsonl").open("ab", buffering=0) as file:
        for at in range(len(data)):
            assert len(intake.rows) == data[:at].count(b"\n")
            file.write(data[at : at + 1])
            intake.take()
    assert intake.complete()
    assert [(row.id, row.batch, row.worker) for row in intake.rows] == [("r0", 3, 4), ("r1", 3, 4)]
    assert list(read_manifest(generation)) == ["r0", "r1"]


def test_a_plain_file_is_read_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    assert read_plain(tmp_path, "file", 5) == b"12345"
    for name, most, message in (
        ("file", 4, "more than 4 bytes"),
        ("link", 5, "a symbolic link"),
        ("fifo", 5, "no plain file"),
    ):
        with pytest.raises(Refused, match=message):
            read_plain(tmp_path, name, most)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path, "none", 5)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "none", "file", 5)


def test_the_size_of_an_output_is_bounded_and_its_ends_are_kept(tmp_path: Path) -> None:
    for size in (0, 5, 99, 100, 101, 199, 200, 201, 250, 1000):
        data = bytes(65 + i % 26 for i in range(size))
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            keep_ends(file, tmp_path / "log", 100)  # type: ignore[arg-type]
        found = (tmp_path / "log").read_bytes()
        if size <= 200:
            assert found == data
        else:
            note = f"\n... {size - 200} bytes left out ...\n".encode()
            assert found == data[:100] + note + data[-100:]
