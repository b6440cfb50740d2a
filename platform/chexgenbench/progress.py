"""How long work tells how far it is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

Advance = Callable[[int], None]

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Progress:
    """Shows named stages on a stream (standard error by default: output stays clean)."""

    quiet: bool = False
    stream: TextIO | None = None

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "images") -> Iterator[Advance]:
        """A stage of `total` steps; call the yielded function with the number just done."""
        stream = self.stream or sys.stderr
        if self.quiet or total == 0:
            yield lambda _count: None
        elif stream.isatty():
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
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            ProgressColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:.1f}/s" if speed else "")

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(unit),
            Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(file=stream)) as bar:
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
