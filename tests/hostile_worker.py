"""A worker that writes what it should not: ``hostile_worker.py KIND JOBDIR SECRET ID...``.

It imports nothing of the platform. Each function below is a kind; `honest` does what it is asked.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

FOLDER, SECRET, IDS = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
IMAGES, MANIFEST = FOLDER / "images", FOLDER / "manifest.jsonl"
VERSIONS, HARDWARE = {"python": "3.11.2"}, {"cores": 2, "processor": "a processor"}


def part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    name: str,
    width: int = 32,
    height: int = 32,
    depth: int = 8,
    colours: int = 0,
    interlace: int = 0,
    before: bytes = b"",
    pixels: bytes | None = None,
    surplus: bytes = b"",
) -> bytes:
    values = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours] * depth // 8
    noise = hashlib.sha256(name.encode()).digest() * (width * values // 32 + 1)
    rows = (
        b"".join(
            b"\0" + noise[y % 32 :][: width * values].ljust(width * values, b"\7")
            for y in range(height)
        )
        if pixels is None
        else pixels
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlace))
        + before
        + part(b"IDAT", zlib.compress(rows + surplus, 1))
        + part(b"IEND", b"")
    )


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def process(versions: Any = VERSIONS, hardware: Any = HARDWARE, **changes: Any) -> str:
    values = {"versions": versions, "hardware": hardware}
    name = digest(values)[:16]
    append("processes.jsonl", json.dumps({"id": name, **values, **changes}))
    return name


def append(name: str, text: str) -> None:
    with (FOLDER / name).open("a") as file:
        file.write(text + "\n")


def line(name: str, data: bytes, **changes: Any) -> dict[str, Any]:
    values = {
        "id": name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": 32,
        "height": 32,
        "seconds": 0.5,
        "flags": [],
        "call": 2,
        "device": "cpu",
        "memory": 1000,
        "process": digest({"versions": VERSIONS, "hardware": HARDWARE})[:16],
        "path": f"images/SyntheticImg_{name}.png",
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not ...}


def image(name: str, data: bytes | None = None, **changes: Any) -> None:
    """Writes an image, and its line in the manifest with these changes."""
    data = png(name) if data is None else data
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / f"SyntheticImg_{name}.png").write_bytes(data)
    append("manifest.jsonl", json.dumps(line(name, data, **changes)))


def honest(ids: list[str] = IDS) -> None:
    process()
    for name in ids:
        image(name)


def first(data: bytes | None = None, **changes: Any) -> None:
    """Good but for its first image."""
    process()
    image(IDS[0], data, **changes)
    for name in IDS[1:]:
        image(name)


def linked(name: str, target: Path) -> None:
    """Puts a link in the place of an image, whose line has the target's hash."""
    process()
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / f"SyntheticImg_{name}.png").symlink_to(target)
    append("manifest.jsonl", json.dumps(line(name, target.read_bytes())))


def raw(text: str | bytes) -> None:
    process()
    IMAGES.mkdir()
    MANIFEST.write_bytes(text if isinstance(text, bytes) else text.encode())


def instead(name: str, make: Any) -> None:
    """Something else in the place of an image."""
    process()
    IMAGES.mkdir(exist_ok=True)
    make(IMAGES / f"SyntheticImg_{name}.png")
    append("manifest.jsonl", json.dumps(line(name, b"")))


def note(text: str) -> None:
    (FOLDER / "worker-0.error.json").write_text(text)
    sys.exit(1)


def fault(message: Any = "It broke.", hint: Any = None, **more: Any) -> None:
    note(json.dumps({"format": 2, "user": False, "message": message, "hint": hint, **more}))


def moved(folder: Path) -> Path:
    """A folder of this worker's elsewhere, with all images in it."""
    honest()
    target = FOLDER.parent.parent / "elsewhere"
    folder.rename(target)
    folder.symlink_to(target)
    return target


def replaced_manifest(make: Any) -> None:
    honest()
    data = MANIFEST.read_bytes()
    MANIFEST.unlink()
    make(data)


def manifest_link() -> None:
    def make(data: bytes) -> None:
        (FOLDER / "other").write_bytes(data)
        MANIFEST.symlink_to("other")

    replaced_manifest(make)


def second_name() -> None:
    process()
    data = png(IDS[0])
    (FOLDER / "first").write_bytes(data)
    IMAGES.mkdir()
    os.link(FOLDER / "first", IMAGES / f"SyntheticImg_{IDS[0]}.png")
    append("manifest.jsonl", json.dumps(line(IDS[0], data)))


def stay() -> None:
    sys.stdout.flush()
    time.sleep(600)


def changed_after() -> None:
    """Lets an image be taken, then puts another in its place and says so."""
    process()
    image(IDS[0])
    taken = FOLDER.parent.parent / "images" / f"SyntheticImg_{IDS[0]}.png"
    while not taken.exists():
        time.sleep(0.01)
    image(IDS[0], png("another"))


def many_files() -> None:
    (FOLDER / "many").mkdir()
    for number in range(10_100):
        (FOLDER / "many" / str(number)).touch()
    stay()


def deep() -> None:
    os.chdir(FOLDER)
    for _ in range(1500):
        Path("a").mkdir()
        os.chdir("a")
    sys.stdout.flush()
    time.sleep(600)


def big() -> None:
    with (FOLDER / "big").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 300_000_000)
        stay()


def fill() -> None:
    """Takes all of the disk."""
    with (FOLDER / "big").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1_000_000))
        except OSError:
            stay()


def late() -> None:
    """Honest, once the disk is full; ends as a worker of ours does then."""
    while shutil.disk_usage(FOLDER).free:
        time.sleep(0.01)
    try:
        honest()
    except OSError as error:
        sys.exit(64 + (error.errno or 0))


def sparse() -> None:
    """Holds nothing, so it is no fault."""
    with (FOLDER / "sparse").open("wb") as file:
        file.truncate(10**12)
    honest()
    time.sleep(3)  # is measured meanwhile


def sparse_manifest() -> None:
    honest()
    os.truncate(MANIFEST, 10**12)


def deaf() -> None:
    """Ends by no signal that can be ignored."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stay()


def gone() -> None:
    subprocess.run(["rm", "-rf", str(FOLDER)], check=True)
    stay()


def replaced() -> None:
    honest()
    FOLDER.rename(FOLDER.with_name("mine"))
    FOLDER.symlink_to("mine")
    stay()


def crash() -> None:
    sys.stdout.flush()
    ctypes.string_at(0)


def flood() -> None:
    block = b"secretly long \x1b[2J line\n" * 50_000
    for _ in range(850):
        sys.stdout.buffer.write(block)
    print("the last words", flush=True)
    sys.exit(3)


def silent() -> None:
    honest()
    sys.stdout.flush()
    os.close(1)
    os.close(2)
    time.sleep(0.3)
    os._exit(0)


def lingering() -> None:
    honest()
    stay()


KINDS: dict[str, Any] = {
    "honest": honest,
    # counts and ids
    "too few": lambda: honest(IDS[:-1]),
    "none": lambda: None,
    "twice": lambda: honest([*IDS, IDS[0]]),
    "not asked": lambda: honest([*IDS, "r999"]),
    "of another shard": lambda: honest([*IDS, "r5"]),
    "outside": lambda: first(id="../../../../outside"),
    "terminal id": lambda: first(id="\x1b[2J\u202eevil"),
    "path outside": lambda: first(path="/etc/passwd"),  # not believed, so no fault
    # sizes
    "other size": lambda: first(png("a", 48, 48), width=48, height=48),
    "size lie": lambda: first(png("a", 48, 48)),
    "tiny": lambda: first(png("a", 8, 8), width=8, height=8),
    "bomb": lambda: first(png("a", 60_000, 60_000, pixels=bytes(10**7)), width=60_000),
    # formats
    "jpeg": lambda: first(b"\xff\xd8\xff\xe0" + b"0" * 500),
    "16 bits": lambda: first(png("a", depth=16)),
    "16 bits rgb": lambda: first(png("a", depth=16, colours=2)),
    "rgba": lambda: first(png("a", colours=6)),
    "palette": lambda: first(png("a", colours=3, before=part(b"PLTE", bytes(768)))),
    "animated": lambda: first(png("a", before=part(b"acTL", struct.pack(">II", 2, 0)))),
    "text": lambda: first(png("a", before=part(b"tEXt", b"Comment\0the patient's name"))),
    "transparent": lambda: first(png("a", before=part(b"tRNS", b"\0\0"))),
    "interlaced": lambda: first(png("a", interlace=1)),
    "trailing": lambda: first(png("a") + b"PK\3\4 an archive"),
    "surplus": lambda: first(png("a", surplus=b"hidden behind the pixels")),
    "truncated": lambda: first(png("a")[:-40]),
    "few rows": lambda: first(png("a", pixels=b"\0" * 33)),
    "checksum": lambda: first(png("a")[:-1] + b"\0"),
    "two headers": lambda: first(png("a", before=part(b"IHDR", bytes(13)))),
    "filter": lambda: first(png("a", pixels=(b"\x77" + b"\1" * 32) * 32)),
    "many parts": lambda: first(png("a", before=part(b"IDAT", b"") * 20_000)),
    "empty": lambda: first(b""),
    "sha": lambda: first(sha256="0" * 64),
    # links and other things that are no files
    "secret": lambda: linked(IDS[0], SECRET),
    "secret image": lambda: linked(IDS[0], SECRET.with_suffix(".png")),
    "folder link": lambda: moved(IMAGES),
    "manifest link": manifest_link,
    "manifest secret": lambda: (honest(), MANIFEST.unlink(), MANIFEST.symlink_to(SECRET)),
    "manifest fifo": lambda: replaced_manifest(lambda _: (os.mkfifo(MANIFEST), stay())),
    "manifest folder": lambda: replaced_manifest(lambda _: MANIFEST.mkdir()),
    "fifo": lambda: (instead(IDS[0], os.mkfifo), stay()),
    "folder": lambda: instead(IDS[0], os.mkdir),
    "socket": lambda: instead(IDS[0], lambda path: os.mknod(path, 0o140600)),
    "device": lambda: instead(IDS[0], lambda path: os.mknod(path, 0o20600, os.makedev(1, 5))),
    "hard link": second_name,
    "no folder": lambda: (process(), append("manifest.jsonl", json.dumps(line(IDS[0], b"")))),
    "no image": lambda: instead(IDS[0], lambda _: None),
    # lines
    "long line": lambda: raw("x" * 50_000 + "\n"),
    "endless line": lambda: raw("x" * 50_000),
    "no json": lambda: raw("not json\n"),
    "nested": lambda: raw("[" * 16_000 + "\n"),
    "list": lambda: raw("[]\n"),
    "binary": lambda: raw(os.urandom(5000).replace(b"\n", b"") + b"\n"),
    "surrogate": lambda: first(id="\ud800"),
    "nan": lambda: first(seconds=float("nan")),
    "infinite": lambda: first(seconds=float("inf")),
    "negative": lambda: first(seconds=-1.0),
    "true": lambda: first(width=True),
    "huge": lambda: first(memory=10**400),
    "digits": lambda: raw('{"memory": ' + "9" * 6000 + "}\n"),
    "missing key": lambda: first(sha256=...),
    "extra key": lambda: first(extra="\x1b[31mred"),
    "null": lambda: raw("null\n"),
    "many lines": lambda: raw("{}\n" * 1_000_000),
    "many empty lines": lambda: raw("\n" * 1000),
    "flag": lambda: first(flags=["No Name"]),
    "flags": lambda: first(flags=["a"] * 100),
    "device name": lambda: first(device="/dev/sda"),
    "no process": lambda: [image(name) for name in IDS],
    "sparse manifest": sparse_manifest,
    # notes
    "cut of another": lambda: (append("calls.jsonl", '{"batch": 9, "calls": [2]}'), honest()),
    "cut sum": lambda: (append("calls.jsonl", '{"batch": 0, "calls": [2, 2]}'), honest()),
    "cut true": lambda: (append("calls.jsonl", '{"batch": false, "calls": [2]}'), honest()),
    "cut negative": lambda: (append("calls.jsonl", '{"batch": 0, "calls": [-1, 3]}'), honest()),
    "cut text": lambda: (append("calls.jsonl", '"\\u001b[2J"'), honest()),
    "process id": lambda: (process(id="0" * 16), honest()),
    "process nested": lambda: (process(hardware={"a": {"b": 1}}), honest()),
    "process key": lambda: (process(versions={"\x1b[2J": 5}), honest()),
    "process escape": lambda: (process(versions={"a": "\x1b[2J"}), honest()),
    "process long": lambda: (process(versions={"a": "x" * 900}), honest()),
    "process surrogate": lambda: append(
        "processes.jsonl", '{"id": "%s", "versions": {"a": "\\ud800"}, "hardware": {}}' % ("0" * 16)
    ),
    "processes": lambda: [process(hardware={"a": number}) for number in range(200)],
    "process secret": lambda: (FOLDER / "processes.jsonl").symlink_to(SECRET),
    # what it says when it fails
    "note link": lambda: ((FOLDER / "worker-0.error.json").symlink_to(SECRET), sys.exit(1)),
    "note fifo": lambda: (os.mkfifo(FOLDER / "worker-0.error.json"), sys.exit(1)),
    "note huge": lambda: note(json.dumps({"message": "x" * 100_000})),
    "note no json": lambda: note("{"),
    "note of another kind": lambda: fault(message=5),
    "note escapes": lambda: fault("It broke \x1b[2J\u202e here.", "Do \x07 this."),
    "note user": lambda: fault("Stop everything.", user=True),
    "disk": lambda: sys.exit(64 + 28),
    # size and time
    "big": big,
    "fill": fill,
    "late": late,
    "many files": many_files,
    "deep": deep,
    "sparse": sparse,
    "flood": flood,
    "at once": lambda: sys.exit(7),
    "killed": lambda: (sys.stdout.flush(), os.kill(os.getpid(), signal.SIGKILL)),
    "crash": crash,
    "hang": stay,
    "deaf": deaf,
    "silent": silent,
    "lingering": lingering,
    "changed after": changed_after,
    "gone": gone,
    "replaced": replaced,
}

if __name__ == "__main__":
    print(f"the last words of {sys.argv[1]} \x1b[2J", flush=True)
    KINDS[sys.argv[1]]()
