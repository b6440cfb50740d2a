"""How long work tells how far it is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TextIO

Advance = Callable[[int], None]

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Progress:
    """Shows named stages on a stream (standard error by default: output stays clean).

    Attributes:
        quiet: shows nothing.
        part: stands before the name of each stage, such as ``model 2 of 4``.
    """

    quiet: bool = False
    stream: TextIO | None = None
    part: str = ""

    def of(self, number: int, total: int, what: str) -> Progress:
        """The same for one of several parts of the work, each of which has stages of its own."""
        return replace(self, part=f"{what} {number} of {total}") if total > 1 else self

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "images") -> Iterator[Advance]:
        """A stage of `total` steps; call the yielded function with the number just done."""
        stream = self.stream or sys.stderr
        name = f"{self.part}, {name}" if self.part else name
        if self.quiet or total == 0 or stream is None:
            yield lambda _count: None
        elif stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
            with self._bar(name, total, unit, stream) as advance:
                yield advance
        else:
            with self._lines(name, total, unit, stream) as advance:
                yield advance

    def say(self, text: str) -> None:
        """One line about what happens."""
        if not self.quiet:
            print(text, file=self.stream or sys.stderr, flush=True)

    @contextmanager
    def _bar(self, name: str, total: int, unit: str, stream: TextIO) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                speed = task.speed
                if task.finished and task.elapsed:
                    speed = task.completed / task.elapsed
                return Text(f"{speed:.1f}/s" if speed else "")

        class Time(ProgressColumn):
            """What is left, while that can be told; at the end, what it took."""

            def render(self, task: Task) -> Text:
                if task.finished:
                    return Text(f"in {_clock(task.elapsed or 0)}")
                left = task.time_remaining
                return Text("" if left is None else f"{_clock(left)} left")

        columns = (
            # A long name takes a second line, and is never cut.
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(overflow="fold"),
            ),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            TextColumn(f"{{task.completed}}/{{task.total}} {unit}", markup=False),
            Rate(),
            Time(),
        )
        with Bar(*columns, console=Console(file=stream), expand=True) as bar:
            task = bar.add_task(name, total=total)
            yield lambda count: bar.advance(task, count)

    @contextmanager
    def _lines(self, name: str, total: int, unit: str, stream: TextIO) -> Iterator[Advance]:
        start = last = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if 0 < done < total and now - last >= _SECONDS_BETWEEN_LINES:
                last = now
                left = (now - start) / done * (total - done)
                print(
                    f"{name}: {done} of {total} {unit}, about {left:.0f} s left",
                    file=stream,
                    flush=True,
                )

        yield advance
        seconds = time.monotonic() - start
        print(
            f"{name}: {done} of {total} {unit} in {seconds:.1f} s ({done / seconds:.1f} a second)",
            file=stream,
            flush=True,
        )


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(7), _clock(3725)
    ('0:07', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
