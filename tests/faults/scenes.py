"""Faults other than kills: what they do to a run, and what is there when they are over.

Each scene breaks something, looks at how the command ends, mends it, repeats the command, and
compares with an undisturbed run. It returns what happened in words for the table.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from faults.bench import (
    HERE,
    LONGEST,
    SMALL,
    Bench,
    Ended,
    Plan,
    differences,
    made,
    state,
    whole,
)
from faults.kills import Whole


class CannotTry(Exception):
    """This machine does not let the fault be made."""


@dataclass(frozen=True)
class Scene:
    """A fault and how it is tried."""

    fault: str
    play: Callable[[Bench, Whole], str]


SCENES: dict[str, Scene] = {}


def _scene(fault: str) -> Callable[[Callable[[Bench, Whole], str]], Callable[[Bench, Whole], str]]:
    def add(play: Callable[[Bench, Whole], str]) -> Callable[[Bench, Whole], str]:
        SCENES[play.__name__] = Scene(fault, play)
        return play

    return add


def _ended(done: Ended, codes: Sequence[int], *words: str) -> None:
    """It ended as it should, and said why."""
    text = done.err + done.out
    assert done.code in codes, f"{codes} expected: {done.shown()}"
    assert "Traceback" not in text and "Unexpected" not in text, done.shown()
    lacking = [word for word in words if word.lower() not in text.lower()]
    assert not lacking, f"{lacking} not said: {done.shown()}"


def _sound(bench: Bench) -> None:
    broken = whole(bench)
    assert not broken, broken


def _mended(bench: Bench, reference: Whole, before: dict[Path, int] | None = None) -> None:
    """The same command goes on: nothing is made twice, and all is as undisturbed."""
    done = bench.run(*SMALL)
    assert done.code == 0, done.shown()
    now = made(bench)
    again = [path for path, moment in (before or {}).items() if now.get(path) != moment]
    assert not again, f"made twice or lost: {again}"
    apart = differences(state(bench), reference.state)
    assert not apart, apart


def _come(bench: Bench, process: subprocess.Popen[str], pattern: str) -> None:
    """Waits until a file of that pattern is there."""
    begun = time.monotonic()
    while process.poll() is None and not any(bench.home.glob(pattern)):
        assert time.monotonic() - begun < LONGEST, f"no {pattern}"
        time.sleep(0.005)


@contextmanager
def _small_disk(bench: Bench, size: str) -> Iterator[Bench]:
    """A bench whose home and cache lie on a file system of their own in memory."""
    place = bench.folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CannotTry("no program to mount a disk") from None
    if mounted.returncode:
        raise CannotTry("no right to mount a disk")
    try:
        yield Bench(bench.folder, place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# --- the disk ------------------------------------------------------------------------------------


@_scene("a real disk that fills while images are made")
def disk_fills_at_images(bench: Bench, reference: Whole) -> str:
    return _filled(bench, reference, "runs/generations/*/images/Syn*.png")


@_scene("a real disk that fills while a run is scored")
def disk_fills_at_scores(bench: Bench, reference: Whole) -> str:
    return _filled(bench, reference, "runs/generations/*/summary.json")


@_scene("a real disk that fills while the second run goes into the store")
def disk_fills_at_store(bench: Bench, reference: Whole) -> str:
    return _filled(bench, reference, "Results/chexgenbench.duckdb")


def _filled(bench: Bench, reference: Whole, when: str) -> str:
    with _small_disk(bench, "600m") as small:
        begun = time.monotonic()
        process = small.start(*SMALL)
        _come(small, process, when)
        filler = small.home.parent / "filler"
        with filler.open("wb", buffering=0) as file:
            free = os.statvfs(file.fileno())
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_bsize)
            with suppress(OSError):
                while True:
                    file.write(bytes(4096))
        done = small.wait(process, begun)
        _ended(done, (2,), "no space left")
        _sound(small)
        before = made(small)
        filler.unlink()
        _mended(small, reference, before)
    return f"exit 2, says that the disk is full; {len(before)} images kept; goes on"


ERRORS: Sequence[tuple[str, str, str]] = (
    ("an image", "open", r"/images/\.tmp-"),
    ("the manifest's lines", "sync", r"/runs/generations/[0-9a-f]+/manifest\.jsonl$"),
    ("features", "open", r"/features/.*/\.tmp-"),
    ("a table of a run", "open", r"/runs/[0-9a-f]{16}/\.tmp-.*parquet"),
    ("the record of a run", "sync", r"/runs/[0-9a-f]{16}/\.tmp-.*json"),
    ("the store", "open", r"/Results/\.tmp-.*duckdb"),
    ("the store's sync", "sync", r"/Results/\.tmp-.*duckdb"),
    ("a CSV file", "open", r"/Results/\.tmp-.*csv"),
    ("the page", "open", r"/Results/\.tmp-.*html"),
)


def _refused(bench: Bench, reference: Whole, error: str, words: str) -> str:
    """Every write of a kind fails, kind by kind in the order of a run."""
    known: dict[Path, int] = {}
    for what, event, match in ERRORS:
        plan = Plan(act=error, event=event, match=match, always=True)
        done = bench.run(*SMALL, plan=plan)
        try:
            _ended(done, (2,), words)
        except AssertionError as problem:
            raise AssertionError(f"{error} at {what}: {problem}") from None
        _sound(bench)
        now = made(bench)
        lost = [path for path, moment in known.items() if now.get(path) != moment]
        assert not lost, f"{error} at {what}: {lost} lost or made twice"
        known = now
    _mended(bench, reference, known)
    return f"exit 2 with the reason at each of {len(ERRORS)} kinds of file; goes on"


@_scene("the disk is full (ENOSPC) at each kind of file")
def no_space(bench: Bench, reference: Whole) -> str:
    return _refused(bench, reference, "ENOSPC", "no space left")


@_scene("the disk quota is reached (EDQUOT) at each kind of file")
def quota(bench: Bench, reference: Whole) -> str:
    return _refused(bench, reference, "EDQUOT", "quota")


@_scene("the file system turns read-only (EROFS) at each kind of file")
def turns_read_only(bench: Bench, reference: Whole) -> str:
    return _refused(bench, reference, "EROFS", "read-only")


@_scene("the disk is broken (EIO) at each kind of file")
def broken_disk(bench: Bench, reference: Whole) -> str:
    return _refused(bench, reference, "EIO", "input/output")


@_scene("a project folder that is mounted read-only")
def mounted_read_only(bench: Bench, reference: Whole) -> str:
    with _small_disk(bench, "600m") as small:
        plan = Plan(act="SIGKILL", event="renamed", match=r"/images/Syn", nth=9)
        assert small.run(*SMALL, plan=plan).code == -signal.SIGKILL
        before = made(small)
        disk = str(small.home.parent)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        _ended(small.run(*SMALL), (2,), "read-only")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        _mended(small, reference, before)
    return "exit 2, says that it is read-only; goes on once it is not"


def _mortal() -> None:
    """The superuser of this process is held to the rights of files, as anybody is."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@_scene("the right to write is lost while images are made")
def permission_lost(bench: Bench, reference: Whole) -> str:
    begun = time.monotonic()
    process = bench.start(*SMALL, preexec_fn=_mortal)
    _come(bench, process, "runs/generations/*/images/Syn*.png")
    folders = [
        bench.home / "runs",
        *bench.home.glob("runs/generations"),
        *bench.home.glob("runs/generations/*"),
        *bench.home.glob("runs/generations/*/images"),
    ]
    for folder in folders:
        folder.chmod(0o500)
    done = bench.wait(process, begun)
    for folder in folders:
        folder.chmod(0o700)
    _ended(done, (1, 2), "permission denied")
    _sound(bench)
    before = made(bench)
    _mended(bench, reference, before)
    return f"exit {done.code}, names the file; goes on once it is back"


# --- the clock and locks -------------------------------------------------------------------------


@_scene("the clock steps back by a day while images are made")
def clock_back(bench: Bench, reference: Whole) -> str:
    clock = bench.folder / "clock.so"
    source = HERE / "site" / "clock.c"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", clock, source], check=True)
    except (OSError, subprocess.CalledProcessError):
        raise CannotTry("no C compiler") from None
    plan = Plan(act="clock", event="renamed", match=r"/images/Syn", nth=9, amount=86400.0)
    done = bench.run(*SMALL, plan=plan, preload=clock)
    _ended(done, (0,))
    stepped = "select count(*) as n from runs where finished_at < created_at"
    assert bench.rows(stepped) == [{"n": "1"}], "the clock did not step"
    apart = differences(state(bench), reference.state)
    assert not apart, apart
    _mended(bench, reference, made(bench))
    return "no effect on any number; goes on"


def _without_locks(bench: Bench, reference: Whole, error: str) -> str:
    done = bench.run(*SMALL, plan=Plan(locks=error))
    _ended(done, (2,), "lock")
    _sound(bench)
    assert not bench.store.exists()
    _mended(bench, reference)
    return "exit 2, says that the file system has no locks; nothing is written to the store"


@_scene("a file system without locks (ENOLCK)")
def no_locks(bench: Bench, reference: Whole) -> str:
    return _without_locks(bench, reference, "ENOLCK")


@_scene("a file system that does not know locks (ENOSYS)")
def unknown_locks(bench: Bench, reference: Whole) -> str:
    return _without_locks(bench, reference, "ENOSYS")


# --- plugins -------------------------------------------------------------------------------------


def _with_failing(how: str, *more: str) -> tuple[str, ...]:
    words = list(SMALL)
    words[words.index("blend")] = "failing"
    return (*words, "--set", f"failing.how={how}", *more)


def _one_fails(bench: Bench, reference: Whole, words: Sequence[str], *said: str) -> None:
    """One model fails with its reason, the other stands with the numbers of an undisturbed run."""
    _ended(bench.run(*words), (1,), *said)
    _sound(bench)
    runs = {row["model"]: row for row in bench.rows("select run_id, model, status from runs")}
    assert runs["failing"]["status"] == "failed", runs
    assert runs["dots"]["status"] == "finished", runs
    scores = f"{runs['dots']['run_id']}/scores"
    assert state(bench).tables[scores] == reference.state.tables[scores]


AWAY = ("--executor", "failing=process", "--set", "failing.calls=0")


@_scene("a model that raises, in the command and in a worker")
def model_raises(bench: Bench, reference: Whole) -> str:
    _one_fails(bench, reference, _with_failing("raise"), "the sampler diverged")
    shutil.rmtree(bench.home)
    bench = Bench(bench.folder)
    _one_fails(bench, reference, _with_failing("raise", *AWAY), "the sampler diverged")
    return "exit 1, the reason is recorded; the other model stands"


@_scene("a model that calls sys.exit(0), in the command and in a worker")
def model_exits(bench: Bench, reference: Whole) -> str:
    _one_fails(bench, reference, _with_failing("exit"), "failing")
    shutil.rmtree(bench.home)
    bench = Bench(bench.folder)
    _one_fails(bench, reference, _with_failing("exit", *AWAY), "failing")
    return "exit 1, the reason is recorded; the other model stands"


@_scene("a model that ends its worker with os._exit(0)")
def model_vanishes(bench: Bench, reference: Whole) -> str:
    _one_fails(bench, reference, _with_failing("vanish", *AWAY), "failing")
    return "exit 1, the reason is recorded; the other model stands"


@_scene("a model that hangs in a worker")
def model_hangs(bench: Bench, reference: Whole) -> str:
    _one_fails(bench, reference, _with_failing("hang", *AWAY, "--timeout", "20"), "failing")
    return "ended after --timeout; exit 1, the reason is recorded; the other model stands"


@_scene("a model that leaks memory in a worker held to a limit")
def model_leaks(bench: Bench, reference: Whole) -> str:
    _one_fails(bench, reference, _with_failing("leak", *AWAY, "--memory", "2G"), "memory")
    return "the worker ends; exit 1, says that memory is the reason; the other model stands"


@_scene("a worker that runs out of memory once")
def out_of_memory_once(bench: Bench, reference: Whole) -> str:
    once = str(bench.folder / "once")
    words = _with_failing("leak", *AWAY, "--memory", "2G", "--set", f"failing.once={once}")
    done = bench.run(*words)
    _ended(done, (0, 1))
    if done.code:
        bench.well(*words)
    rows = bench.rows("select status, n_images from runs")
    assert [tuple(row.values()) for row in rows] == [("finished", "24")] * 2, rows
    _sound(bench)
    return "its images are made by the next worker, or by the next command"


@_scene("an encoder that raises or calls sys.exit(0)")
def encoder_fails(bench: Bench, reference: Whole) -> str:
    del reference
    words = [word if word != "grid" else "failing-grid" for word in SMALL]
    words[-2:] = []  # alignment: it has no text side
    for how in ("raise", "exit"):
        done = bench.run(*words, "--set", f"failing-grid.how={how}")
        _ended(done, (1,), "failing-grid")
        _sound(bench)
    return "exit 1, says which encoder failed"


# --- damaged files -------------------------------------------------------------------------------


def _flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (old,) = file.read(1)
        file.seek(at)
        file.write(bytes([old ^ (1 << bit)]))


def _forget_scores(bench: Bench) -> None:
    """Runs and store go; images and features stay, so that scores are made from those."""
    for path in bench.home.glob("runs/[0-9a-f]*"):
        shutil.rmtree(path)
    shutil.rmtree(bench.home / "Results")


@_scene("a feature file that is cut, or in which a bit is flipped")
def damaged_features(bench: Bench, reference: Whole) -> str:
    bench.well(*SMALL)
    dice = random.Random(0)
    parts = sorted(bench.cache.glob("features/*/*/part-*.parquet"))
    for number, part in enumerate(parts):
        size = part.stat().st_size
        if number % 2:
            _flip(part, dice.randrange(size // 8, size // 2), dice.randrange(8))
        else:
            with part.open("r+b") as file:
                file.truncate(size // 2)
    _forget_scores(bench)
    done = bench.run(*SMALL)
    _ended(done, (0,), "damaged")
    apart = differences(state(bench), reference.state)
    assert not apart, apart
    return f"noticed in each of {len(parts)} parts, said, and encoded again"


@_scene("a manifest that is cut in a line")
def cut_manifest(bench: Bench, reference: Whole) -> str:
    bench.well(*SMALL)
    for path in bench.home.glob("runs/generations/*/manifest.jsonl"):
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size * 2 // 3)
    _forget_scores(bench)
    _mended(bench, reference)
    return "the images that it lacks are made again, equal to the bit"


@_scene("a manifest in which a bit is flipped")
def flipped_manifest(bench: Bench, reference: Whole) -> str:
    bench.well(*SMALL)
    text = {
        path: path.read_bytes() for path in bench.home.glob("runs/generations/*/manifest.jsonl")
    }
    said: list[str] = []
    _forget_scores(bench)
    for path, good in text.items():
        for mark in (b'"sha256": "', b'"id": "', b'"seed": ', b"{"):
            at = good.index(mark, len(good) // 2) + len(mark)
            path.write_bytes(good)
            _flip(path, at, 3)
            done = bench.run(*SMALL)
            if done.code:
                _ended(done, (1, 2), ".")
                said.append(mark.decode())
            else:
                apart = differences(state(bench), reference.state)
                assert not apart, (mark, apart)
                _forget_scores(bench)
        path.write_bytes(good)
    _mended(bench, reference)
    return f"{len(said)} of {4 * len(text)} are refused with the file's name, the others mended"


@_scene("an image that is cut, or in which a bit is flipped")
def damaged_images(bench: Bench, reference: Whole) -> str:
    bench.well(*SMALL)
    images = sorted(bench.home.glob("runs/generations/*/images/*.png"))
    for path, cut in ((images[0], True), (images[30], False)):
        if cut:
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)
        else:
            _flip(path, path.stat().st_size // 2)
    _forget_scores(bench)
    _ended(bench.run(*SMALL), (1,), "not as they were made", images[0].name)
    for path in (images[0], images[30]):
        path.unlink()
    _mended(bench, reference)
    return "refused with the image's name; deleted, it is made again, equal to the bit"


@_scene("a store that is cut, or in which a bit is flipped")
def damaged_store(bench: Bench, reference: Whole) -> str:
    bench.well(*SMALL)
    good = bench.store.read_bytes()
    question = "select * exclude (created_at) from scores order by all"
    truth = bench.rows(question)
    dice = random.Random(0)
    refused = unharmed = 0
    for number in range(12):
        if number < 3:
            bench.store.write_bytes(good[: (0, len(good) // 2, len(good) - 4096)[number]])
        else:
            bench.store.write_bytes(good)
            _flip(bench.store, dice.randrange(len(good)), dice.randrange(8))
        done = bench.run("query", question, "--format", "csv")
        if done.code:
            _ended(done, (2,), "rebuild")
            refused += 1
        else:
            assert bench.rows(question) == truth
            unharmed += 1
        # The file that is there may be whole or not: rebuilding asks nothing of it.
        bench.well("store", "rebuild")
        apart = differences(state(bench), reference.state)
        assert not apart, apart
    return (
        f"{refused} of 12 refused, with the command that mends it; {unharmed} met no row; "
        "`store rebuild` makes all again"
    )


@_scene("a damaged table of a run directory")
def damaged_run(bench: Bench, reference: Whole) -> str:
    bench.well(*SMALL)
    scores = sorted(bench.home.glob("runs/*/scores.parquet"))[0]
    with scores.open("r+b") as file:
        file.truncate(scores.stat().st_size // 2)
    done = bench.run("store", "rebuild")
    _ended(done, (0, 1, 2), scores.parent.name)
    _ended(bench.run(*SMALL), (1, 2), "scores.parquet")
    shutil.rmtree(scores.parent)
    _mended(bench, reference)
    return "refused with the file's name; its folder deleted, the run is scored again"


@_scene("a damaged cache of hashes")
def damaged_hashes(bench: Bench, reference: Whole) -> str:
    bench.well(*SMALL)
    (bench.cache / "hashes.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    _forget_scores(bench)
    _mended(bench, reference)
    return "no effect: files are hashed again"
