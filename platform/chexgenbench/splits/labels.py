"""CheXpert labels from the Python-dict strings of the published annotation files."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Literal

import numpy as np

from chexgenbench.types import FINDINGS

if TYPE_CHECKING:
    from numpy.typing import NDArray

Uncertain = Literal["keep", "positive", "negative"]
LONGEST = 4096
_UNCERTAIN_AS: dict[Uncertain, float] = {"keep": -1.0, "positive": 1.0, "negative": 0.0}


def parse_labels(text: str) -> NDArray[np.float64]:
    """The 14 labels of a row, in the order of `FINDINGS`.

    Args:
        text: ``"{'Edema': 1.0, 'Fracture': None, ...}"``; literals only, nothing is evaluated. A
            finding that is not named counts as not mentioned.

    Returns:
        float64 [14]: 1 present, 0 absent, -1 uncertain, NaN not mentioned.

    Raises:
        ValueError: no such dictionary; the message never repeats the text, which may be a
            patient's report.

    >>> parse_labels("{'Atelectasis': -1.0, 'Edema': 1}")[[0, 1, 3]]
    array([-1., nan,  1.])
    """
    if len(text) > LONGEST:
        raise ValueError(f"labels of {len(text)} characters are no dictionary of 14 findings")
    try:
        found: object = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("the labels are not a dictionary") from error
    if not isinstance(found, dict):
        raise ValueError("the labels are not a dictionary")
    values = np.full(len(FINDINGS), np.nan)
    for name, value in found.items():
        if name not in FINDINGS:
            raise ValueError("the labels name something that is none of the 14 findings")
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"the label of {name} is no number")
        if value not in (0, 1, -1):
            raise ValueError(f"the label of {name} is none of 1, 0, -1 and None")
        values[FINDINGS.index(name)] = value
    return values


def decide_uncertain(labels: NDArray[np.float64], policy: Uncertain) -> NDArray[np.float64]:
    """The labels with -1 kept apart, or counted as present or as absent."""
    return np.where(labels == -1.0, _UNCERTAIN_AS[policy], labels)
