"""The words of a small generator: whole words and punctuation marks of its training reports."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[START]", "[END]"

# A number keeps its point and a word its hyphens, so that joining the tokens gives the text back.
_TOKEN = r"\d+\.\d+|[^\s.,;:!?()]+|[.,;:!?()]"  # noqa: S105


def word_tokenizer(texts: Sequence[str], *, limit: int = 8000) -> PreTrainedTokenizerFast:
    """A tokenizer of the most frequent words of `texts`, lower case.

    Args:
        texts: The training reports, in any order.
        limit: Words and marks at most; the others become ``[UNK]``.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    counts = Counter(token for text in texts for token in re.findall(_TOKEN, text.lower()))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:limit]
    names = [PAD, UNKNOWN, START, END]
    names += [word for word in frequent if word not in names]
    known = {word: at for at, word in enumerate(names)}
    inner = Tokenizer(models.WordLevel(known, unk_token=UNKNOWN))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), behavior="removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, known[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )


def joined(text: str) -> str:
    """Tokens that blanks separate as running text.

    >>> joined("no effusion ( left ) , tube 3.5 cm .")
    'no effusion (left), tube 3.5 cm.'
    """
    return re.sub(r"\( ", "(", re.sub(r" ([.,;:!?)])", r"\1", text)).strip()
