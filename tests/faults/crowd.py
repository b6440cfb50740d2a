"""Several commands at once into one store and one feature cache, with a reader that stays open."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chexgenbench.store.store import Store
from faults.bench import SMALL, Bench, Plan, State, differences, leftovers, state, whole


@dataclass
class Crowd:
    """What happened.

    Attributes:
        commands, runs: how many were started, and how many runs they are in all.
        seconds: from the first start to the last end.
        longest_wait: of a writer for the lock of the store.
        longest_image_wait: of a command for one that makes the same images.
        reads, longest_read: queries on newly opened stores, and the slowest.
        open_reads: queries of the reader that stayed open.
        wrong: what was not as it should be.
    """

    commands: int
    runs: int = 0
    seconds: float = 0.0
    longest_wait: float = 0.0
    longest_image_wait: float = 0.0
    reads: int = 0
    longest_read: float = 0.0
    open_reads: int = 0
    wrong: list[str] = field(default_factory=list)


_QUESTION = "select count(*) as n, count(distinct run_id) as runs from scores"

_STAYS_OPEN = """
import select, sys, duckdb
with duckdb.connect(sys.argv[1], read_only=True) as still:
    first, count = still.execute(sys.argv[2]).fetchall(), 0
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        assert still.execute(sys.argv[2]).fetchall() == first, "it saw its store change"
        count += 1
print(count)
"""
"""A program of its own: DuckDB opens a file once for all that a process has to do with it."""


class _Reader:
    """Reads the store all the time: by a connection that stays open, and by new ones."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.reads, self.open_reads, self.longest = 0, 0, 0.0
        self.wrong: list[str] = []

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._bench.store.exists() and not self._stop.wait(0.05):
            pass
        if self._stop.is_set():
            return
        store, most = Store(self._bench.store), 0
        command = [sys.executable, "-c", _STAYS_OPEN, str(self._bench.store), _QUESTION]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as still:
            try:
                while not self._stop.wait(0.1):
                    begun = time.monotonic()
                    (row,) = store.query(_QUESTION).to_pylist()
                    self.longest = max(self.longest, time.monotonic() - begun)
                    self.reads += 1
                    if row["n"] < most:
                        self.wrong.append(f"a reader saw {most} scores and then {row['n']}")
                    most = row["n"]
            except Exception as error:
                self.wrong.append(f"a reader failed: {type(error).__name__}: {error}")
            out, err = still.communicate()  # it ends when its input is closed
            if still.returncode or int(out) == 0:
                self.wrong.append(f"the open reader failed: {err}")
            else:
                self.open_reads = int(out)


def at_once(folder: Path, seeds: Sequence[int], wanted: State) -> Crowd:
    """One command for each seed at the same time; equal seeds are the same command.

    Args:
        wanted: what the different ones leave that ran one after another, less the differences of
            runs, which depend on who is on the leaderboard at that moment.
    """
    crowd = Crowd(len(seeds))
    bench = Bench(folder)
    benches = [_Guest(folder, number) for number in range(len(seeds))]
    begun = time.monotonic()
    with _Reader(bench) as reader:
        started = [
            guest.start(*SMALL, "--seed", seed, plan=Plan(waits=str(guest.waits)))
            for guest, seed in zip(benches, seeds, strict=True)
        ]
        ended = [
            guest.wait(process, begun) for guest, process in zip(benches, started, strict=True)
        ]
    crowd.seconds = time.monotonic() - begun
    crowd.reads, crowd.open_reads = reader.reads, reader.open_reads
    crowd.longest_read = reader.longest
    crowd.wrong += reader.wrong
    crowd.wrong += [done.shown() for done in ended if done.code]
    for guest in benches:
        for line in guest.waits.read_text().splitlines():
            seconds, _, path = line.partition(" ")
            if path.endswith(".duckdb.lock"):
                crowd.longest_wait = max(crowd.longest_wait, float(seconds))
            elif "/generations/" in path:
                crowd.longest_image_wait = max(crowd.longest_image_wait, float(seconds))
    crowd.wrong += whole(bench)
    crowd.wrong += differences(without_differences(state(bench)), wanted, shared=True)
    crowd.wrong += [f"left: {path}" for path in leftovers(bench)]
    crowd.runs = len(bench.rows("select run_id from runs"))
    if crowd.runs != 2 * len(set(seeds)):
        crowd.wrong.append(f"{crowd.runs} runs are listed")
    return crowd


def one_after_another(folder: Path, seeds: Sequence[int]) -> State:
    """What the different commands leave that nobody disturbs."""
    bench = Bench(folder)
    for seed in dict.fromkeys(seeds):
        bench.well(*SMALL, "--seed", seed)
    return without_differences(state(bench))


def without_differences(found: State) -> State:
    for name in [name for name in found.tables if name.endswith("/differences")]:
        del found.tables[name]
    return found


class _Guest(Bench):
    """A command of several in one home, with files of its own for what it says."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder / f"guest-{number}", folder)
        self.waits = self.folder / "waits"

    def start(self, *words: object, **options: object) -> subprocess.Popen[str]:  # type: ignore[override]
        return super().start(*words, **options)  # type: ignore[arg-type]
