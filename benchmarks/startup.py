"""How long simple commands take, against the same ones of inspect_ai and lm-eval.

    python benchmarks/startup.py [--home DIR] [--peers DIR] [--turns 5] [--write]

Both are installed from PyPI into a virtual environment of their own, `--peers` (made where it is
not there). Each command is started by turns, with its output thrown away; seconds by the clock and
of the processor, user and system. `--home` is a project with a finished run; without it a small
one is made. The peers list tasks and logs of a folder with one task. ``--write`` puts the table
into docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from importlib.metadata import version
from pathlib import Path

from side_by_side import ROOT, Cost, by_turns, machine, spread, table, write_between

PAGE = ROOT / "docs" / "performance.md"
PEERS = ("inspect_ai", "lm_eval")
TASK = "from inspect_ai import Task, task\n\n\n@task\ndef one():\n    return Task()\n"
COMMANDS = {
    "help": ("chexgenbench --help", "lm_eval --help", "inspect --help"),
    "what there is to run": (
        "chexgenbench models list",
        "lm_eval ls tasks",
        "inspect list tasks",
    ),
    "what was run": ("chexgenbench leaderboard", "", "inspect log list"),
}
"""What is wanted, to the command of ours, of lm-eval (which has none for the last) and of
inspect_ai."""


def installed(folder: Path) -> Path:
    """The scripts of an environment with both peers."""
    scripts = folder / "bin"
    if not (scripts / "lm_eval").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([scripts / "pip", "install", "--quiet", *PEERS], check=True)
    return scripts


def small_run(scripts: Path, home: Path) -> Path:
    """A project with a run of 40 images."""
    home.mkdir()
    command = "run --model noise --metric fid --limit 40 --quiet"
    environment = {**os.environ, "CHEXGENBENCH_HOME": str(home)}
    subprocess.run([scripts / "chexgenbench", *command.split()], env=environment, check=True)
    return home


def timed(command: list[str], folder: Path) -> Cost:
    environment = {**os.environ, "CHEXGENBENCH_HOME": str(folder)}
    before, begun = os.times(), time.perf_counter()
    subprocess.run(
        command,
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wall, after = time.perf_counter() - begun, os.times()
    used = after.children_user + after.children_system
    return Cost(wall, used - before.children_user - before.children_system)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path)
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    theirs = installed(options.peers)
    ours = Path(sysconfig.get_path("scripts"))
    found = subprocess.run(
        [theirs / "pip", "list", "--format", "freeze"], check=True, text=True, capture_output=True
    )
    peers = [line for line in found.stdout.split() if line.startswith(PEERS)]
    say = f"{machine()}; {options.turns} turns; {', '.join(peers)}; Python {sys.version.split()[0]}"
    rows = []
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "one.py").write_text(TASK)
        home = options.home or small_run(ours, Path(empty, "home"))
        for wanted, commands in COMMANDS.items():
            sides = {}
            for command in filter(None, commands):
                program, *words = shlex.split(command)
                mine = program == "chexgenbench"
                line = [str((ours if mine else theirs) / program), *words]
                folder = home if mine else Path(empty)
                sides[command] = lambda line=line, folder=folder: timed(line, folder)
            costs = by_turns(sides, options.turns)
            first = min(cost.processor for cost in next(iter(costs.values())))
            for command, each in costs.items():
                least = min(cost.processor for cost in each)
                rows.append(
                    [
                        wanted,
                        f"`{command}`",
                        spread([cost.wall for cost in each]),
                        spread([cost.processor for cost in each]),
                        f"{least / first:.1f}",
                    ]
                )
    header = ["", "command", "seconds", "processor seconds", "of ours"]
    text = f"{say}; chexgenbench {version('chexgenbench')}.\n\n{table(header, rows)}"
    print(text)
    if options.write:
        write_between(PAGE, "startup", text)


if __name__ == "__main__":
    main()
