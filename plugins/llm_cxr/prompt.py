"""A report to the tokens that LLM-CXR was trained to answer with an image."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from chexgenbench import UserError
from chexgenbench.files import read_json
from chexgenbench_plugins.llm_cxr.sampling import LENGTH

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The frame of training/consts.py. In training the image stood inside "<image>", in the place of the
# middle one of its three tokens, so that "<" is what the model says before the first code.
HEAD = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{}\n\nInput:\n"
)
RESPONSE = "### Response:\n"
TAIL = f"\n\n{RESPONSE}"
PLACE = "<image>"


class Prompts:
    """Reports to token ids.

    Attributes:
        first: the token of the first code, which is the size of the tokenizer.
        longest: tokens that a prompt may have, so that the image still fits the model's context.
    """

    def __init__(self, tokenizer: Path, *, instruction: str, positions: int) -> None:
        """Reads the file `tokenizer` (``tokenizer.json``).

        Raises:
            UserError: it is broken or not LLM-CXR's, or `instruction` alone fills the context of
                `positions` tokens.
        """
        self.tokenizer = _read(tokenizer)
        named = [each["content"] for each in read_json(tokenizer).get("added_tokens") or ()]
        # Runs of blanks are tokens as well, of ordinary text.
        words = [re.escape(word) for word in named if word.strip()]
        self.control = re.compile("|".join(words)) if words else None
        self.first = self.tokenizer.get_vocab_size(with_added_tokens=True)
        self.longest = positions - LENGTH
        self.head = HEAD.format(instruction)
        place = self._ids(PLACE)
        if len(place) != 3 or self._ids(RESPONSE) != [self.tokenizer.token_to_id(RESPONSE)]:
            raise UserError(
                f"{tokenizer} is not the tokenizer of LLM-CXR: {PLACE!r} must be three tokens and "
                f"{RESPONSE!r} one.",
                hint="Name the folder of the published language model, which holds its own.",
            )
        self.tail = [*self._ids(TAIL), place[0]]
        if len(self._ids(self.head)) + len(self.tail) >= self.longest:
            raise UserError(
                f"The instruction of 'llm-cxr' leaves no room for a report: the context is "
                f"{positions} tokens, of which the image takes {LENGTH}."
            )

    def encode(self, report: str) -> tuple[list[int], bool]:
        """The tokens up to the image, and whether the end of `report` had to be left out.

        What the report says is text, though it be spelt like a token of the frame.
        """
        ids = [*self._frame(report, TAIL), self.tail[-1]]
        if len(ids) <= self.longest:
            return ids, False
        return self._frame(report, "")[: self.longest - len(self.tail)] + self.tail, True

    def _frame(self, report: str, tail: str) -> list[int]:
        """Head, report and tail; the report is cut inside each word that would become a token of
        the frame, and what is between the cuts is encoded by itself."""
        text, start = f"{self.head}{report}{tail}", len(self.head)
        cuts = [0]
        while self.control and (found := self.control.search(text, start)):
            if found.start() >= len(self.head) + len(report):
                break
            start = found.start() + 1
            cuts.append(start)
        pieces = pairwise([*cuts, len(text)])
        return [token for begin, end in pieces for token in self._ids(text[begin:end])]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids


def _read(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The library raises Exception itself for whatever is wrong.
    except Exception as error:
        raise UserError(f"The tokenizer of 'llm-cxr' cannot be read: {path}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
