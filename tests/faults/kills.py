"""SIGKILL at random and at named points, until a run has finished; then it is compared."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from faults.bench import (
    IMAGES,
    LONGEST,
    SMALL,
    Bench,
    Ended,
    Plan,
    State,
    differences,
    end_all,
    leftovers,
    made,
    stage_of,
    state,
    whole,
    workers,
)

TWO = ("--workers", "2")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Whole:
    """The undisturbed run that all others are compared with.

    Attributes:
        seconds: by the clock.
        work, begun: seconds of processor time in all, and until its first write: a measure of how
            far a run is that a busy machine does not change.
        events: how many it had; see `site/sitecustomize.py`.
    """

    state: State
    seconds: float
    work: float
    begun: float
    events: int

    @classmethod
    def measure(cls, bench: Bench) -> Whole:
        process = bench.start(*SMALL, plan=Plan(note=str(bench.note)))
        begun, first, work = time.monotonic(), 0.0, 0.0
        while process.poll() is None and time.monotonic() - begun < LONGEST:
            work = _work(process) or work
            if not first and bench.last_event()[0]:
                first = work
            time.sleep(0.01)
        done = bench.wait(process, begun)
        assert done.code == 0, done.shown()
        assert len(made(bench)) == IMAGES
        said = [*whole(bench), *map(str, leftovers(bench))]
        assert not said, said
        return cls(state(bench), done.seconds, work, first, bench.last_event()[0])


def _work(process: subprocess.Popen[str]) -> float:
    """Seconds of processor time that a process has used; 0 of one that has ended."""
    with suppress(psutil.Error):
        used = psutil.Process(process.pid).cpu_times()
        return used.user + used.system
    return 0.0


@dataclass
class Tally:
    """What was done and found.

    Attributes:
        kills: by the way they came and the stage they met.
        rounds: runs that were carried to their end over kills.
        again: images that stood in a manifest when a kill came and were made a second time.
        left: temporary files that were there at the end of a round.
        wrong: what was not as it should be, with the round.
    """

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    rounds: int = 0
    left: Counter[str] = field(default_factory=Counter)
    again: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.kills.total()


# --- at random -----------------------------------------------------------------------------------


def at_random(
    folder: Path, kills: int, seed: int, reference: Whole, say: Say, only: int | None = None
) -> Tally:
    """Rounds until there were so many kills; each carries one run over several to its end.

    Args:
        only: replays this round alone.
    """
    tally = Tally()
    number = only or 1
    while tally.count < kills:
        bench = Bench(folder / f"round-{number}")
        wrong = list(_round(bench, random.Random(f"{seed}/{number}"), reference, tally, say))
        tally.rounds += 1
        tally.wrong += [f"round {number}: {text}" for text in wrong]
        say(f"round {number}: {tally.count} kills so far; {wrong or 'all as undisturbed'}")
        if not wrong:
            bench.remove()
        if only:
            break
        number += 1
    return tally


def _round(
    bench: Bench, dice: random.Random, reference: Whole, tally: Tally, say: Say
) -> Iterator[str]:
    words = (*SMALL, *(TWO if dice.random() < 0.3 else ()))
    most = dice.randint(8, 16)
    known: dict[Path, int] = {}
    killed = 0
    done: Ended | None = None
    while killed < most:
        way = dice.choice(["moment", "event", *(["worker"] if TWO[0] in words else [])])
        # Early ones are drawn more often: who goes on has less to do.
        left = max(0.45, 0.88**killed)
        moment, nth = left * dice.random() ** 1.5, left * dice.random() ** 1.5
        moment = 0.7 * reference.begun + moment * (reference.work - 0.7 * reference.begun)
        nth = 1 + int(nth * reference.events)
        every = dice.random() < 0.5
        plan = Plan(act="SIGKILL", nth=nth) if way == "event" else Plan()
        plan = Plan(**{**vars(plan), "note": str(bench.note)})
        bench.note.unlink(missing_ok=True)
        process = bench.start(*words, plan=plan)
        begun = time.monotonic()
        if way == "event":
            ended = bench.wait(process, begun)
            struck = ended.code == -signal.SIGKILL
        elif way == "worker":
            struck = _kill_worker(process, dice.uniform(0.0, 1.5))
            if struck:
                tally.kills[way, "images by workers"] += 1
                say(f"  worker, after {time.monotonic() - begun:.1f} s")
            # The command goes on without it, and is killed in its turn or not.
            also = _kill_at(process, moment, every=every)
            ended = bench.wait(process, begun)
            if not also and (ended.code not in (0, 1) or "Traceback" in ended.err):
                yield f"a worker was killed: {ended.shown()}"
        else:
            struck = _kill_at(process, moment, every=every)
            ended = bench.wait(process, begun)
        yield from whole(bench)
        yield from _lost(bench, known, tally)
        if way == "worker":
            killed, struck = killed + struck, also
        if struck:
            killed += 1
            shown = way if way == "event" else "group" if every else "command"
            stage = stage_of(bench.last_event()[1])
            tally.kills[shown, stage] += 1
            say(f"  {shown}: {stage}, after {time.monotonic() - begun:.1f} s")
        elif ended.code and way != "worker":
            yield f"not killed: {ended.shown()}"
        if not ended.code:  # it was done before the kill came, or without the worker
            done = ended
            break
    done = done or bench.run(*words)
    if done.code:
        yield f"carried to its end: {done.shown()}"
        return
    yield from _lost(bench, known, tally)
    yield from differences(state(bench), reference.state)
    for path in leftovers(bench):
        stage = stage_of(f"/{path}")
        tally.left[stage] += 1
        if stage in ("image files", "manifest and its like", "store"):
            yield f"left: {path}"
    listed = bench.rows("select run_id from runs order by all")
    if len(listed) != 2:
        yield f"{len(listed)} runs are listed"


def _lost(bench: Bench, known: dict[Path, int], tally: Tally) -> Iterator[str]:
    """Images that stood in a manifest are there, and are not made again."""
    now = made(bench)
    for path, time_of in known.items():
        if path not in now:
            yield f"{path} was made and is lost"
        elif now[path] != time_of:
            tally.again += 1
            yield f"{path} was made twice"
    known.update(now)


def _reach(process: subprocess.Popen[str], work: float) -> bool:
    """Waits until a process has used that much processor time; False where it has ended before."""
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < LONGEST:
        if _work(process) >= work:
            return True
        time.sleep(0.005)
    return False


def _kill_at(process: subprocess.Popen[str], work: float, *, every: bool) -> bool:
    """Whether it lived until then; kills the command, and all that it started where `every`."""
    if not _reach(process, work):
        return False
    if every:
        end_all(process)
    else:
        process.kill()
        process.wait()
    return process.returncode == -signal.SIGKILL


def _kill_worker(process: subprocess.Popen[str], delay: float) -> bool:
    """Kills one worker, some time after the first one was seen; whether there was one."""
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < LONGEST:
        found = workers(process)
        if found:
            time.sleep(delay)
            for worker in workers(process)[:1]:
                with suppress(psutil.Error):
                    alive = worker.status() != psutil.STATUS_ZOMBIE
                    os.kill(worker.pid, signal.SIGKILL)
                    return alive
            return False
        time.sleep(0.02)
    return False


# --- at named points -----------------------------------------------------------------------------

_GENERATION = r"/runs/generations/[0-9a-f]{16}"
_LINES = _GENERATION + r"/manifest\.jsonl$"
_RUN = r"/runs/[0-9a-f]{16}"
_STORE = r"/Results/(\.tmp-.*|chexgenbench)\.duckdb"


def _kill(event: str, match: str, nth: int = 1, act: str = "SIGKILL", amount: float = 0.0) -> Plan:
    return Plan(act=act, event=event, match=match, nth=nth, amount=amount)


POINTS: Sequence[tuple[str, Plan]] = (
    ("a real image of the demo before its rename", _kill("rename", r"/phantom/.*\.png$", 5)),
    ("while SQLite notes the hashes of files", _kill("connect", "hashes", 1, "late", 0.004)),
    ("in the middle of a part of features", _kill("sync", r"/features/.*parquet", 1, "torn")),
    ("features written, not renamed", _kill("rename", r"/features/.*parquet", 1)),
    ("features renamed, the next encoder's not begun", _kill("renamed", r"/features/.*parquet", 1)),
    ("the run noted as begun", _kill("renamed", _RUN + r"/run\.json$", 1)),
    ("in the middle of a PNG", _kill("sync", r"/images/\.tmp-.*png$", 2, "torn")),
    ("a PNG written, not renamed", _kill("rename", r"/images/Syn.*png$", 3)),
    ("between the file and its manifest line", _kill("renamed", r"/images/Syn.*png$", 2)),
    ("in the middle of a manifest line", _kill("sync", _LINES, 2, "torn")),
    ("the manifest rid of a torn line, not renamed", _kill("rename", r"/manifest\.jsonl$", 1)),
    ("a manifest line written, not synced", _kill("sync", _LINES, 2)),
    ("all images made, the summary not", _kill("rename", _GENERATION + r"/summary\.json$", 1)),
    ("between the generation and its features", _kill("renamed", _GENERATION + r"/summary\.json$")),
    ("in the middle of the scores' Parquet", _kill("sync", _RUN + r"/\.tmp-.*parquet$", 1, "torn")),
    ("between the tables and the record of a run", _kill("rename", _RUN + r"/run\.json$", 2)),
    ("between the run directory and the store", _kill("lock", r"duckdb\.lock$", 1)),
    ("the store's copy made", _kill("sql", _STORE + r".* INSERT", 1)),
    ("between two tables of the store", _kill("sql", _STORE + r".* INSERT", 4)),
    ("the store about to commit", _kill("sql", _STORE + r".* CHECKPOINT", 1)),
    ("while the store commits", _kill("sql", _STORE + r".* CHECKPOINT", 1, "late", 0.004)),
    ("in the middle of the store's file", _kill("sync", r"/Results/\.tmp-.*duckdb$", 1, "torn")),
    ("the new store before its rename", _kill("rename", _STORE + "$", 1)),
    ("the new store renamed, its folder not synced", _kill("renamed", _STORE + "$", 1)),
    ("between the two CSV files", _kill("rename", r"/conditional_.*csv$", 1)),
    ("differences of two runs, the record not", _kill("renamed", r"/differences\.parquet$", 2)),
    ("in the middle of the page", _kill("sync", r"/Results/\.tmp-.*html$", 1, "torn")),
)  # fmt: skip
"""In the order of a run, so that one home meets them all: each command goes on until the next."""

WORKER_POINTS: Sequence[tuple[str, Plan]] = (
    ("a worker, between the file and its manifest line", _kill("renamed", r"/images/Syn.*png$", 2)),
    ("a worker, in the middle of a line", _kill("sync", r"/manifest-\d\.jsonl$", 2, "torn")),
    ("parts of the manifest, one of two removed", _kill("remove", r"/manifest-\d\.jsonl$", 2)),
)  # fmt: skip


@dataclass
class Point:
    """A named point, whether a kill struck there, and what was wrong after it."""

    name: str
    struck: bool
    wrong: list[str]


def at_points(folder: Path, reference: Whole, say: Say) -> list[Point]:
    """A kill at each named point, on one home with one process and on one with two workers."""
    found: list[Point] = []
    for name, points, words in (
        ("points", POINTS, SMALL),
        ("worker-points", WORKER_POINTS, (*SMALL, *TWO)),
    ):
        bench, known, tally = Bench(folder / name), dict[Path, int](), Tally()
        mine: list[Point] = []
        for text, plan in points:
            where = "worker" if text.startswith("a worker") else "command"
            done = bench.run(*words, plan=Plan(**{**vars(plan), "where": where}))
            struck = done.code == -signal.SIGKILL or (where == "worker" and "SIGKILL" in done.err)
            wrong = [*whole(bench), *_lost(bench, known, tally)]
            if not struck:
                wrong.append(f"not reached: {done.shown()}")
            mine.append(Point(text, struck, wrong))
            say(f"{text}: {'killed' if struck else 'NOT REACHED'}; {wrong or 'whole'}")
        done = bench.run(*words)
        at_last = [] if done.code == 0 else [done.shown()]
        at_last += [*_lost(bench, known, tally), *differences(state(bench), reference.state)]
        mine[-1].wrong += at_last
        say(f"{name}, at the end: {at_last or 'all as undisturbed'}; left {leftovers(bench)}")
        found += mine
        if not any(point.wrong for point in mine):
            bench.remove()
    return found


def by_signal(
    folder: Path, kind: signal.Signals, count: int, seed: int, reference: Whole, say: Say
) -> Tally:
    """A signal that a process may answer, at random moments of one run, which is then compared."""
    tally, dice = Tally(), random.Random(f"{seed}/{kind.name}")
    bench, known = Bench(folder / kind.name), dict[Path, int]()
    # A Ctrl-C that meets Python's own end, when all is done, ends it by the signal: 130 to a shell.
    wanted = {
        signal.SIGINT: (130, -signal.SIGINT),
        signal.SIGTERM: (-signal.SIGTERM, 143),
    }[kind]
    # What a shell starts in the background ignores Ctrl-C, and so do its children; a handler they
    # do not inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for _ in range(count):
        # One that comes while Python starts meets no program yet.
        moment = dice.uniform(1.2 * reference.begun, 0.9 * reference.work)
        bench.note.unlink(missing_ok=True)
        process = bench.start(*SMALL, plan=Plan(note=str(bench.note)))
        begun = time.monotonic()
        _reach(process, moment)
        process.send_signal(kind)
        done = bench.wait(process, begun)
        tally.wrong += [*whole(bench), *_lost(bench, known, tally)]
        if done.code in wanted:
            tally.kills[kind.name, stage_of(bench.last_event()[1])] += 1
        elif done.code != 0:
            tally.wrong.append(f"{kind.name}: {done.shown()}")
        if "Traceback" in done.err:
            tally.wrong.append(f"{kind.name}: {done.shown()}")
    done = bench.run(*SMALL)
    tally.wrong += [] if done.code == 0 else [done.shown()]
    tally.wrong += [*_lost(bench, known, tally), *differences(state(bench), reference.state)]
    tally.rounds = 1
    if tally.count < count // 2:
        tally.wrong.append(f"{kind.name} ended {tally.count} of {count} commands")
    say(f"{kind.name}: {tally.count} of {count}; {tally.wrong or 'all as undisturbed'}")
    if not tally.wrong:
        bench.remove()
    return tally
