"""CheXpert labels from a cell: a dictionary of all findings, or one finding's number."""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Literal

import numpy as np

from chexgenbench.types import FINDINGS

if TYPE_CHECKING:
    from numpy.typing import NDArray

Uncertain = Literal["keep", "positive", "negative"]
LONGEST = 4096
_EMPTY = frozenset({"", "nan", "none", "null"})
_UNCERTAIN_AS: dict[Uncertain, float] = {"keep": -1.0, "positive": 1.0, "negative": 0.0}


def parse_labels(text: str) -> NDArray[np.float64]:
    """The 14 labels of a row, in the order of `FINDINGS`.

    Args:
        text: ``"{'Edema': 1.0, 'Fracture': None, ...}"`` as in the published files, or the same in
            JSON; literals only, nothing is evaluated. A finding that is not named counts as not
            mentioned.

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
    found = _literal(text.strip())
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


def _literal(text: str) -> object:
    for read in (ast.literal_eval, json.loads):
        try:
            found: object = read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return found
    raise ValueError("the labels are not a dictionary")


def parse_label(text: str) -> float:
    """One finding's label from a cell of its own column: 1, 0, -1, or NaN where it is empty.

    Raises:
        ValueError: it is something else; the message does not repeat it.

    >>> [parse_label(text) for text in ("1", "-1.0", "0", "")]
    [1.0, -1.0, 0.0, nan]
    """
    if text.strip().lower() in _EMPTY:
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value not in (0, 1, -1):
        raise ValueError("is none of 1, 0, -1 and empty")
    return value


def decide_uncertain(labels: NDArray[np.float64], policy: Uncertain) -> NDArray[np.float64]:
    """The labels with -1 kept apart, or counted as present or as absent."""
    return np.where(labels == -1.0, _UNCERTAIN_AS[policy], labels)
