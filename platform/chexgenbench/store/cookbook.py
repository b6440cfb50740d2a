"""Questions in SQL that are kept with the platform: ``queries/NAME.sql``.

A file begins with comments: the question in the first line, what a reader must know in the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING

from chexgenbench.errors import unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

_FOLDER = "queries"
_COMMENT = "--"


@dataclass(frozen=True, kw_only=True)
class SavedQuery:
    """A question of the cookbook.

    Attributes:
        name: what ``query --saved`` calls it.
        question: in words.
        note: what a reader of the answer must know; may be empty.
        sql: one statement, without the comments.
    """

    name: str
    question: str
    note: str
    sql: str


@cache
def saved_queries() -> Mapping[str, SavedQuery]:
    """All of them by name, in alphabetical order.

    >>> saved_queries()["cost"].question
    'What does a model cost, and how long would 18,575 prompts take?'
    """
    folder = files("chexgenbench.store") / _FOLDER
    found = sorted(
        (each for each in folder.iterdir() if each.name.endswith(".sql")),
        key=lambda each: each.name,
    )
    texts = {each.name.removesuffix(".sql"): each.read_text(encoding="utf-8") for each in found}
    return MappingProxyType({name: _parse(name, text) for name, text in texts.items()})


def saved_query(name: str) -> SavedQuery:
    """The one of that name.

    Raises:
        UserError: there is none.
    """
    known = saved_queries()
    if name not in known:
        raise unknown_name("saved query", name, list(known))
    return known[name]


def _parse(name: str, text: str) -> SavedQuery:
    lines = text.strip().splitlines()
    head = 0
    while lines[head].startswith(_COMMENT):
        head += 1
    question, *note = (line.removeprefix(_COMMENT).strip() for line in lines[:head])
    sql = "\n".join(lines[head:])
    return SavedQuery(name=name, question=question, note=" ".join(note), sql=sql)
