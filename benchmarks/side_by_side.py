"""What the benchmarks share: two sides by turns, memory of a process, a table between markers."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Cost:
    """What one call took: seconds by the clock, seconds of processor time, and memory in MB.

    Processor time does not count what other processes did meanwhile, so on a busy machine and
    with one thread it is the fairer of the two.
    """

    wall: float
    processor: float
    memory: float = 0.0


def by_turns(sides: Mapping[str, Callable[[], Cost]], repeats: int) -> dict[str, list[Cost]]:
    """Each side once, then each again: a slow minute of the machine meets all of them."""
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            costs[name].append(run())
            print(f"{name}: {costs[name][-1]}", file=sys.stderr, flush=True)
    return costs


def apart(script: Path, name: str, *arguments: str) -> Callable[[], Cost]:
    """A run of ``script --side NAME`` in a process of its own, with as many threads as here."""

    def run() -> Cost:
        done = subprocess.run(
            [sys.executable, str(script), "--side", name, *arguments],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return Cost(**json.loads(done.stdout.splitlines()[-1]))

    return run


def measure(function: Callable[[], Any]) -> Cost:
    """The cost of one call, memory as the rise of the process's peak above what it had before.

    Linux only: the peak is that of this process's own memory, reset before the call.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    begun, worked = time.perf_counter(), time.process_time()
    function()
    wall, processor = time.perf_counter() - begun, time.process_time() - worked
    return Cost(wall, processor, (_status("VmHWM") - before) / 1024)


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def spread(values: Sequence[float]) -> str:
    """Least, median and largest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:.2f} / {middle:.2f} / {high:.2f}"


def machine() -> str:
    """Processor, cores, threads and how busy it is, in words."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)
        model = found[1] if found else model
    threads = os.environ.get("OMP_NUM_THREADS", "as many as cores")
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    return f"{model}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}, {load}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_between(page: Path, marker: str, text: str) -> None:
    """Puts ``text`` between ``<!-- marker -->`` and ``<!-- /marker -->`` of a page."""
    old = page.read_text(encoding="utf-8")
    pattern = rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
    new, count = re.subn(pattern, lambda m: f"{m[1]}{text}\n{m[2]}", old, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{page} has no <!-- {marker} --> ... <!-- /{marker} -->")
    page.write_text(new, encoding="utf-8")
