"""Breaks the real command in every way that is known here, and writes what happened.

    python tests/faults [--kills 200] [--seed 1] [--part kills] [--part points] [--part faults]
        [--part crowd] [--round N] [--fault NAME] [--folder DIR] [--write]

Without ``--part`` all parts run. ``--round`` replays one round of random kills with the seed that
was printed, ``--fault`` one scene. ``--write`` puts the tables into docs/reliability.md. The exit
code is 1 where anything was lost, stood twice or differed. The folder of what went wrong stays.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from side_by_side import machine, table, write_between  # noqa: E402

from faults.bench import Bench, stages  # noqa: E402
from faults.crowd import Crowd, at_once, one_after_another  # noqa: E402
from faults.kills import Point, Tally, Whole, at_points, at_random, by_signal  # noqa: E402
from faults.scenes import SCENES, CannotTry  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
PARTS = ("kills", "points", "faults", "crowd")

WAYS = {
    "command": "the command alone",
    "group": "the command and all that it started",
    "event": "the command, at an event of a file",
    "worker": "one worker of two",
}


def say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", flush=True)


def of_kills(folder: Path, options: argparse.Namespace, reference: Whole) -> tuple[str, list[str]]:
    begun = time.monotonic()
    tally = at_random(
        folder, options.kills, options.seed, reference, say, only=options.round or None
    )
    minutes = (time.monotonic() - begun) / 60
    rows = [
        [stage, *(str(tally.kills[way, stage] or "") for way in WAYS)]
        for stage in (*stages(), "images by workers")
        if any(tally.kills[way, stage] for way in WAYS)
    ]
    totals = [sum(n for (w, _), n in tally.kills.items() if w == way) for way in WAYS]
    rows.append(["**all**", *map(str, totals)])
    again = f"{tally.again} images made twice"
    text = [
        f"Seed {options.seed}; {tally.count} kills over {tally.rounds} runs, in {minutes:.0f} "
        f"minutes ({machine()}). An undisturbed run took {reference.seconds:.0f} s and had "
        f"{reference.events} events. {len(tally.wrong)} differences from it, {again}. Temporary "
        f"files left at the end of a run: {_counted(tally)}.",
        "",
        table(["last write before the kill", *WAYS.values()], rows),
    ]
    return "\n".join(text), tally.wrong


def _counted(tally: Tally) -> str:
    return ", ".join(f"{n} of {name}" for name, n in tally.left.most_common()) or "none"


def of_points(folder: Path, reference: Whole) -> tuple[str, list[str]]:
    points: list[Point] = at_points(folder, reference, say)
    rows = [
        [point.name, "killed" if point.struck else "not reached", "; ".join(point.wrong) or "whole"]
        for point in points
    ]
    text = table(["killed", "", "what was there then, and at the end of the run"], rows)
    return text, [f"{point.name}: {point.wrong}" for point in points if point.wrong]


def of_faults(folder: Path, options: argparse.Namespace, reference: Whole) -> tuple[str, list[str]]:
    rows: list[list[str]] = []
    wrong: list[str] = []
    for name, scene in SCENES.items():
        if options.fault and name not in options.fault:
            continue
        place = folder / name
        try:
            outcome = scene.play(Bench(place), reference)
        except CannotTry as error:
            outcome = f"not tried here: {error}"
        except Exception as error:
            outcome = f"FAILED: {type(error).__name__}: {error}"
            wrong.append(f"{name}: {outcome}")
        else:
            shutil.rmtree(place)
        say(f"{name}: {outcome}")
        rows.append([scene.fault, outcome.partition("\n")[0]])
    for kind, text in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")):
        if options.fault:
            break
        tally = by_signal(folder, kind, 8, options.seed, reference, say)
        wrong += tally.wrong
        met = ", ".join(sorted({stage for _, stage in tally.kills}))
        ends = "ends with 130 and says how to go on" if kind == signal.SIGINT else "ends"
        outcome = f"{ends}; goes on, equal to the bit" if not tally.wrong else "FAILED"
        rows.append([f"{text} at {tally.count} random moments ({met})", outcome])
    return table(["fault", "what happened"], rows), wrong


def of_crowd(folder: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    dice = random.Random(options.seed)
    eight = [101, 102, 103, 104, 105, 106, 101, 102]
    dice.shuffle(eight)
    rows: list[list[str]] = []
    wrong: list[str] = []
    wanted = {}
    for name, seeds in (("two", [101, 102]), ("the same twice", [101, 101]), ("eight", eight)):
        key = tuple(sorted(set(seeds)))
        place = folder / f"crowd-{len(rows)}"
        wanted[key] = one_after_another(folder / f"alone-{len(rows)}", list(key))
        crowd: Crowd = at_once(place, seeds, wanted[key])
        say(f"{name}: {crowd}")
        wrong += [f"{name} at once: {text}" for text in crowd.wrong]
        rows.append(
            [
                f"{name} ({crowd.runs} runs)",
                f"{crowd.seconds:.0f}",
                f"{crowd.longest_wait:.2f}",
                f"{crowd.longest_read:.2f}",
                f"{crowd.reads} and {crowd.open_reads}",
                "; ".join(crowd.wrong) or "all rows there, equal to the bit",
            ]
        )
        if not crowd.wrong:
            shutil.rmtree(place)
            shutil.rmtree(folder / f"alone-{len(rows) - 1}")
    header = ["commands at once", "seconds in all", "longest wait of a writer, s"]
    header += ["slowest query, s", "queries by new and by open readers", "outcome"]
    return f"{machine()}.\n\n{table(header, rows)}", wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--round", type=int, help="Replay this round of random kills alone.")
    parser.add_argument("--fault", action="append", choices=[*SCENES], metavar="NAME")
    parser.add_argument("--folder", type=Path, help="Where to work; must not exist.")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    parts = options.part or (["faults"] if options.fault else ["kills"] if options.round else PARTS)

    folder = options.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    say(f"seed {options.seed}, in {folder}")
    reference = Whole.measure(Bench(folder / "undisturbed"))
    say(f"undisturbed: {reference.seconds:.1f} s, {reference.events} events")
    wrong: list[str] = []
    for part in parts:
        text, faults = {
            "kills": lambda: of_kills(folder, options, reference),
            "points": lambda: of_points(folder, reference),
            "faults": lambda: of_faults(folder, options, reference),
            "crowd": lambda: of_crowd(folder, options),
        }[part]()
        print(f"\n{text}\n", flush=True)
        wrong += faults
        if options.write:
            write_between(PAGE, part, text)
    for text in wrong:
        print(f"WRONG {text}")
    print(f"{len(wrong)} faults; seed {options.seed}")
    if wrong:
        print(f"What went wrong lies in {folder}")
    elif not options.folder:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
