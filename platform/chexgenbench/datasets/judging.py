"""What a judge said, kept by content: an image is judged once, and a kill loses no answer."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chexgenbench.errors import ChexGenBenchError
from chexgenbench.files import digest, file_lock
from chexgenbench.types import QUALITIES, UNREADABLE, Judge, JudgeRequest

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWERS = "answers.jsonl"


class Answers:
    """The answers of one judge (its code, parameters and weights) in a file that grows.

    A key holds hashes and labels and no text.

    Args:
        folder: the judge's own.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / ANSWERS
        self._known = dict(self._read())

    @staticmethod
    def key(request: JudgeRequest, sha256: str) -> str:
        """What an answer depends on, the judge aside."""
        return digest([sha256, request.prompt, dict(request.labels)])

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def add(self, keys: Sequence[str], answers: Sequence[str]) -> None:
        """Keeps answers; they are on the disk when this returns."""
        lines = [json.dumps([key, answer]) for key, answer in zip(keys, answers, strict=True)]
        # A line that a kill cut is ended first, and does not parse.
        text = "\n" + "\n".join(lines) + "\n"
        with file_lock(f"{self._path}.lock"), self._path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._known.update(zip(keys, answers, strict=True))

    def _read(self) -> Iterator[tuple[str, str]]:
        if not self._path.is_file():
            return
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                key, answer = json.loads(line)
            except ValueError:
                continue
            if answer in (*QUALITIES, UNREADABLE):
                yield key, answer


def ask(
    judge: Callable[[], Judge],
    requests: Sequence[JudgeRequest],
    hashes: Sequence[str],
    answers: Answers,
) -> list[str]:
    """One of `QUALITIES` or `UNREADABLE` a request.

    Args:
        judge: gives the judge; called only where an answer is not known.
        hashes: SHA-256 of each image.

    Raises:
        ChexGenBenchError: the judge gives another number of answers than it was asked for.
    """
    keys = [answers.key(*pair) for pair in zip(requests, hashes, strict=True)]
    unknown = [i for i, key in enumerate(keys) if answers.get(key) is None]
    if unknown:
        given = list(judge().judge([requests[i] for i in unknown]))
        if len(given) != len(unknown):
            raise ChexGenBenchError(
                f"The judge gave {len(given)} answers to {len(unknown)} images."
            )
        said = [answer if answer in QUALITIES else UNREADABLE for answer in given]
        answers.add([keys[i] for i in unknown], said)
    return [answers.get(key) or UNREADABLE for key in keys]


def count(answers: Sequence[str]) -> dict[str, int]:
    """How many of each, the best first; those that did not occur are left out."""
    found = Counter(answers)
    return {name: found[name] for name in (*QUALITIES, UNREADABLE) if found[name]}
