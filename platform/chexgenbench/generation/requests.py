"""Requests from a prompts table, each with its own seed."""

from __future__ import annotations

import hashlib
import re

from chexgenbench.splits.prompts import PromptTable
from chexgenbench.types import FINDINGS, Request

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def seed_of(run_seed: int, prompt_id: str, repeat: int) -> int:
    """63 bits hashed from what names the image, so that order and machines do not matter.

    >>> seed_of(0, "a", 0) == seed_of(0, "a", 0) != seed_of(0, "a", 1)
    True
    """
    text = f"{run_seed}\n{repeat}\n{prompt_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def request_id(prompt_id: str, repeat: int) -> str:
    """The prompt's id, with ``~1`` and so on for repeats; it serves as a file name.

    An id that is no plain file name is replaced by a hash of it. The tilde stands in no plain
    name, so that a prompt named a~1 cannot be taken for the second image of a.

    >>> request_id("s50", 0), request_id("s50", 2), len(request_id("../x", 0))
    ('s50', 's50~2', 32)
    """
    plain = prompt_id
    if not _PLAIN_NAME.fullmatch(prompt_id):
        plain = hashlib.sha256(prompt_id.encode()).hexdigest()[:32]
    return plain if repeat == 0 else f"{plain}~{repeat}"


def make_requests(
    prompts: PromptTable, *, seed: int, repeats: int, size: int | None
) -> list[Request]:
    """All requests in canonical order: by row of the table, then by repeat."""
    table = prompts.table
    labels = [
        {
            finding: None if value != value else value
            for finding, value in zip(FINDINGS, row, strict=True)
        }
        for row in table[list(FINDINGS)].to_numpy(dtype=float).tolist()
    ]
    rows = zip(
        table["prompt_id"], table["prompt"], table["patient_id"], table["view"], labels, strict=True
    )
    return [
        Request(
            id=request_id(prompt_id, repeat),
            prompt_id=prompt_id,
            prompt=prompt,
            seed=seed_of(seed, prompt_id, repeat),
            repeat=repeat,
            size=size,
            labels=finding_values,
            patient_id=_text(patient),
            view=_text(view),
        )
        for prompt_id, prompt, patient, view, finding_values in rows
        for repeat in range(repeats)
    ]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
