"""A labeller by rules: which of the 14 findings a report states, denies or doubts.

The method is that of NegBio and the CheXpert labeller (Peng et al. 2018,
https://arxiv.org/abs/1712.05898; Irvin et al. 2019, https://arxiv.org/abs/1901.07031): find the
mentions of a finding, class each of them, take the class that counts most. They class by dependency
parses; here the words between a mention and a word of denial or doubt decide how far that reaches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from chexgenbench import FINDINGS
from chexgenbench_plugins.labelling import lexicon

STATED, DENIED, DOUBTED = 1.0, 0.0, -1.0

_NO_FINDING = "No Finding"
_BARE = frozenset({_NO_FINDING, "Support Devices"})
"""What No Finding does not depend on."""

# A full stop inside a number ends nothing, and neither does one line of wrapped text.
_ALIKE = (
    (re.compile("[\u2018\u2019]"), "'"),
    (re.compile(r"\br/o\b\.?"), "rule out"),
    (re.compile(r"\bw/o\b"), "without"),
    (re.compile(r"\bno\s+longer\b"), "no-longer"),
    (re.compile(r"\bother\s+than\b"), "except"),
    (re.compile(r"\bcan(?:'t|\s+not)\b"), "cannot"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\b(vs|dr|approx)\."), r"\1"),  # a full stop that ends no sentence
    (re.compile(r"(?<![\w)?])\?+\s*(?=\w)"), "query "),  # "atelectasis, ?pneumonia"
    (re.compile(r"(?<=[\w)])\s*\?"), " in question."),
)
"""Ways to write one thing, and the one that the lexicon has."""
_SENTENCE = re.compile(r"\n\s*\n|\n(?=\s*(?:\d+[.)]|[-*•]))|[!;?]|\.(?!\d)|(?<=[a-z])\.(?=\d)")
_WORD = re.compile(r"no-longer|[a-z]+(?:'[a-z]+)?|\d+(?:\.\d+)?|[,:()]")
_END = "."
"""Stands after the last word of a sentence, for phrases that end one."""
_NOT_REACH = 6
"""How many words ``not`` reaches."""
_PAIR_REACH = 6
"""How far apart two findings joined by ``or`` may stand."""
_LONGEST = 300
"""Words of a sentence that are read together; no report needs more."""
_NOT_SKIPPED = lexicon.BREAKS | {"no", "without"}
"""What no phrase skips."""


class RuleLabeller:
    """Reads labels off report text; each text by itself, and always in the same way."""

    def label(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Labels [n, 14] in the order of `FINDINGS`: 1, 0 denied, -1 doubted, NaN not mentioned.

        Of several mentions of a finding a statement counts before a doubt, and a doubt before a
        denial. No Finding is 1 where nothing but devices is stated or doubted, else NaN.
        """
        found: dict[str, NDArray[np.float64]] = {}
        for text in texts:
            if text not in found:
                found[text] = _label(text)
        return np.array([found[text] for text in texts]).reshape(len(texts), len(FINDINGS))


def _label(text: str) -> NDArray[np.float64]:
    seen: dict[str, set[float]] = {}
    text = text.lower()
    for written, alike in _ALIKE:
        text = written.sub(alike, text)
    for sentence in _SENTENCE.split(text):
        for finding, value in _sentence(sentence):
            seen.setdefault(finding, set()).add(value)
    labels = np.full(len(FINDINGS), np.nan)
    for place, finding in enumerate(FINDINGS):
        values = seen.get(finding, ())
        labels[place] = next((v for v in (STATED, DOUBTED, DENIED) if v in values), np.nan)
    abnormal = any(values & {STATED, DOUBTED} for f, values in seen.items() if f not in _BARE)
    labels[FINDINGS.index(_NO_FINDING)] = np.nan if abnormal else STATED
    return labels


# --- phrases ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Phrase:
    """A phrase of the lexicon: for each word what it may be, and whether it may be missing."""

    name: str
    words: tuple[tuple[frozenset[str], tuple[str, ...], bool], ...]
    gap: int | None
    """Where ``~`` stands in `words`."""
    rest: _Phrase | None
    """What follows the ``~``."""


def _parse(name: str, text: str) -> _Phrase:
    words: list[tuple[frozenset[str], tuple[str, ...], bool]] = []
    gap = None
    for word in text.split():
        if word == "~":
            gap = len(words)
            continue
        missing = word.endswith("?")
        options = word.removesuffix("?").split("/")
        exact = frozenset(option for option in options if not option.endswith("*"))
        begins = tuple(option[:-1] for option in options if option.endswith("*"))
        words.append((exact, begins, missing))
    rest = None if gap is None else _Phrase(name, tuple(words[gap:]), None, None)
    return _Phrase(name, tuple(words), gap, rest)


_KEY = 3
"""How many letters of a word find the phrases that only say how it begins."""


@dataclass
class _Phrases:
    """Phrases, found by their first word."""

    exact: dict[str, list[_Phrase]] = field(default_factory=dict)
    begins: dict[str, list[_Phrase]] = field(default_factory=dict)

    @classmethod
    def of(cls, named: Iterable[tuple[str, str]]) -> _Phrases:
        table = cls()
        for name, text in named:
            phrase = _parse(name, text)
            exact, begins, _ = phrase.words[0]
            for word in exact:
                table.exact.setdefault(word, []).append(phrase)
            for word in begins:
                table.begins.setdefault(word[:_KEY], []).append(phrase)
        return table

    def at(self, words: Sequence[str], start: int) -> list[tuple[_Phrase, int]]:
        """The phrases that begin at a word, and where each ends."""
        found: list[tuple[_Phrase, int]] = []
        word = words[start]
        for phrases in (self.exact.get(word, ()), self.begins.get(word[:_KEY], ())):
            for phrase in phrases:
                end = _match(phrase, words, start, 0)
                if end is not None:
                    found.append((phrase, end))
        return found

    def spans(self, words: Sequence[str]) -> list[tuple[int, int]]:
        """The longest phrase at each word where one begins, none inside another."""
        found: list[tuple[int, int]] = []
        free = 0
        for at, word in enumerate(words):
            if at >= free and (word in self.exact or word[:_KEY] in self.begins):
                end = max((end for _, end in self.at(words, at)), default=at)
                if end > at:
                    found.append((at, end))
                    free = end
        return found


def _match(phrase: _Phrase, words: Sequence[str], at: int, part: int) -> int | None:
    """Where the phrase ends when its words from `part` on begin at `at`; None where they do not."""
    while part < len(phrase.words):
        if part == phrase.gap and phrase.rest is not None:
            return _after_gap(phrase.rest, words, at)
        exact, begins, missing = phrase.words[part]
        fits = at < len(words) and (
            words[at] in exact or (bool(begins) and words[at].startswith(begins))
        )
        if fits:
            at += 1
        elif not missing:
            return None
        part += 1
    return at


def _after_gap(rest: _Phrase, words: Sequence[str], at: int) -> int | None:
    """Where the rest of a phrase ends after the fewest words that may be skipped."""
    verb = False
    for skipped in range(lexicon.GAP + 1):
        here = at + skipped
        if here >= len(words):
            return None
        end = _match(rest, words, here, 0)
        if end is not None:
            return end
        word = words[here]
        # "The heart, hila and mediastinum are normal": one statement, but for what follows a verb,
        # or the colon of a heading, as in "Heart: mildly enlarged".
        heads = word == ":" and not verb
        if (word in _NOT_SKIPPED and not heads) or (verb and word in (",", "and", "with", "or")):
            return None
        verb = verb or heads or word in lexicon.VERBS
    return None


@lru_cache(maxsize=1)
def _tables() -> dict[str, _Phrases]:
    def plain(texts: Iterable[str]) -> _Phrases:
        return _Phrases.of(("", text) for text in texts)

    return {
        "named": _Phrases.of((f, text) for f, texts in lexicon.NAMED.items() for text in texts),
        "denied": _Phrases.of((f, text) for f, texts in lexicon.DENIED.items() for text in texts),
        **{
            name.lower(): plain(getattr(lexicon, name))
            for name in (
                "NO_MENTION", "NEGATED_BEFORE", "NOT_BEFORE", "NEXT_BEFORE", "NEGATED_AFTER",
                "NEUTRAL", "DOUBTED_FIRST", "DOUBTED_BEFORE", "DOUBTED_AFTER", "DOUBTED_WITHIN",
                "IGNORED_BEFORE", "ELSEWHERE",
            )
        },
    }  # fmt: skip


# --- a sentence -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mention:
    finding: str
    start: int
    end: int
    denied: bool


@lru_cache(maxsize=1 << 16)
def _sentence(sentence: str) -> tuple[tuple[str, float], ...]:
    """Finding and class of every mention in a sentence in lower case."""
    words = [*_WORD.findall(sentence), _END]
    if len(words) > _LONGEST:
        parts = (words[at : at + _LONGEST] for at in range(0, len(words), _LONGEST))
        return tuple(found for part in parts for found in _statements(part))
    return _statements(words)


def _statements(words: Sequence[str]) -> tuple[tuple[str, float], ...]:
    mentions = _mentions(words)
    if not mentions:
        return ()
    reader = _Reader(words, mentions)
    classed = [(mention, reader.value(mention)) for mention in mentions]
    # "Congestion may be edema": where a doubt names a finding again, the first was its sign.
    doubts = {mention.finding: mention.start for mention, value in classed if value == DOUBTED}
    last = {mention.finding: mention.start for mention in mentions}
    return tuple(
        (mention.finding, value)
        for mention, value in classed
        if value is not None
        and not (value == STATED and doubts.get(mention.finding, -1) > mention.start)
        # "Pneumothorax: no pneumothorax": a heading says less than what stands below it.
        and not (reader.heads(mention) and last[mention.finding] > mention.start)
    )


def _mentions(words: Sequence[str]) -> list[_Mention]:
    tables = _tables()
    named, denials = tables["named"], tables["denied"]
    blocked = {i for start, end in tables["no_mention"].spans(words) for i in range(start, end)}
    found: list[_Mention] = []
    taken = -1
    covered: dict[str, int] = {}
    for start in range(len(words)):
        solid = 0
        # Of "heart size is enlarged with normal hila" the nearest word of state counts.
        nearest: dict[str, tuple[int, bool]] = {}
        longest: dict[str, tuple[int, bool]] = {}
        for table, denied in ((named, False), (denials, True)):
            for phrase, end in table.at(words, start):
                if phrase.gap is not None:
                    # "Normal heart size with enlarged aorta": the heart has its word already.
                    if start < covered.get(phrase.name, 0):
                        continue
                    known = nearest.get(phrase.name)
                    if known is None or end < known[0]:
                        nearest[phrase.name] = (end, denied)
                elif start > taken or phrase.name == lexicon.OTHER:
                    solid = max(solid, end)
                    known = longest.get(phrase.name)
                    if known is None or end > known[0]:
                        longest[phrase.name] = (end, denied)
        for name, (end, denied) in {**nearest, **longest}.items():
            blocks = name != lexicon.OTHER and any(i in blocked for i in range(start, end))
            # Of two findings that begin here the longer phrase says more: "nodular opacity".
            if not blocks and (name in nearest or end == solid or name == lexicon.OTHER):
                found.append(_Mention(name, start, end, denied))
                if name not in nearest:
                    covered[name] = end
        if solid:
            taken = max(taken, solid - 1)
    return found


class _Reader:
    """Classes the mentions of one sentence."""

    def __init__(self, words: Sequence[str], mentions: Sequence[_Mention]) -> None:
        self.words = words
        self.starts = [mention.start for mention in mentions]
        tables = _tables()

        def spans(name: str) -> list[tuple[int, int]]:
            return tables[name].spans(words)

        elsewhere = spans("elsewhere")
        neutral = [*spans("neutral"), *elsewhere]
        first = spans("doubted_first")
        after_doubt = _apart(spans("doubted_after"), elsewhere)
        self.negated_after = _apart(spans("negated_after"), [*neutral, *after_doubt, *first])
        # "Resolved" alone speaks of what follows as well, "has resolved" of what stands before it;
        # but "no longer seen is" what it begins with.
        first_end = min((mention.end for mention in mentions), default=0)
        closed = [(s, e) for s, e in self.negated_after if e - s > 1 and s >= first_end]
        self.negated = _apart(spans("negated_before"), [*neutral, *first, *closed])
        self.nots = _apart(spans("not_before"), [*neutral, *first, *after_doubt, *closed])
        self.next = _apart(spans("next_before"), neutral)
        self.doubted_first = first
        self.doubted = _apart(spans("doubted_before"), after_doubt)
        self.doubted_after = after_doubt
        self.within = spans("doubted_within")
        self.ignored = _apart(spans("ignored_before"), [*first, *after_doubt])
        self.paired = self._paired(mentions)

    def value(self, mention: _Mention) -> float | None:
        """The class of a mention; None where it is no statement on this image."""
        inside = [s for s, e in self.nots + self.negated if mention.start < s and e <= mention.end]
        if mention.finding in ("Cardiomegaly", "Enlarged Cardiomediastinum") and (
            any(mention.start <= s < mention.end + 3 for s, _ in self.within)
        ):
            return DOUBTED
        if mention.denied:
            # "Not normal" does not say what it is instead.
            return DOUBTED if inside or self._before(mention, self.nots, _NOT_REACH) else DENIED
        if self._before(mention, self.ignored):
            return None
        if self._before(mention, self.doubted_first) or self._after(mention, self.doubted_after):
            return DOUBTED
        if (
            inside
            or (self._before(mention, self.negated) and not self._stays(mention))
            or self._before(mention, self.nots, _NOT_REACH)
            or self._before(mention, self.next, 1)
            or self._after(mention, self.negated_after)
        ):
            return DENIED
        # "Prominent" is said of hearts that are large and of hearts that only look so.
        prominent = mention.finding in ("Cardiomegaly", "Enlarged Cardiomediastinum") and (
            any(word in lexicon.PROMINENT for word in self.words[mention.start : mention.end])
        )
        doubted = prominent or any(mention.start < s < mention.end for s, _ in self.doubted)
        if doubted or mention in self.paired or self._before(mention, self.doubted):
            return DOUBTED
        return STATED

    def _before(
        self, mention: _Mention, cues: Sequence[tuple[int, int]], reach: int | None = None
    ) -> bool:
        return any(
            end <= mention.start
            and (reach is None or mention.start - end < reach)
            and self._joined(end, mention.start)
            for _, end in cues
        )

    def _after(self, mention: _Mention, cues: Sequence[tuple[int, int]]) -> bool:
        for start, end in cues:
            if start < mention.end:
                continue
            between = self.words[mention.end : start]
            if self.words[end - 1] in lexicon.GONE:
                between = _without_link(between, self.words[start] in lexicon.VERBS)
            if between[-1:] == [":"] and not (lexicon.BREAKS | lexicon.VERBS) & set(between[:-1]):
                return True  # a heading, and what it has
            # "Cardiomegaly, effusion resolved": without a verb it is said of the last alone.
            bare = self.words[start] not in lexicon.VERBS and (
                self.words[end - 1] in lexicon.GONE | {",", _END}
            )
            if bare and "," in between and not {"and", "or", "nor"} & set(between):
                comma = start - between[::-1].index(",")
                if any(comma <= at < start for at in self.starts):
                    continue
            verbs = [i for i, word in enumerate(between) if word in lexicon.VERBS]
            joints = [i for i, word in enumerate(between) if word in (",", "and", "with")]
            if not lexicon.BREAKS.intersection(between) and not (
                verbs and any(joint > verbs[0] for joint in joints)
            ):
                return True
        return False

    def heads(self, mention: _Mention) -> bool:
        """Whether a mention is the heading of what follows."""
        return self.words[mention.end : mention.end + 1] == [":"]

    def _stays(self, mention: _Mention) -> bool:
        """Whether a finding is said to stay after others are said to be gone: "resolution of the
        effusion, atelectasis persists"."""
        return (
            self.words[mention.end] in lexicon.STAYS
            and not self._lists(mention.start)
            and any(word in (",", "and", "with") for word in self.words[: mention.start])
            and not any(word == "or" for word in self.words[: mention.start])
        )

    def _joined(self, start: int, end: int) -> bool:
        """Whether what was said before `start` still holds at `end`."""
        between = self.words[start:end]
        if lexicon.BREAKS.intersection(between):
            return False
        for at, (joint, following) in enumerate(pairwise([*between, self.words[end]])):
            if (
                joint in (",", "and", "with")
                and following in lexicon.STARTS
                and not self._lists(start + at + 1)
            ):
                return False
        return True

    def _lists(self, start: int) -> bool:
        """Whether an ``or`` still comes in the statement: what is listed is listed to its end."""
        for word in self.words[start:]:
            if word in lexicon.BREAKS or word in lexicon.VERBS:
                return False
            if word in ("or", "nor"):
                return True
        return False

    def _paired(self, mentions: Sequence[_Mention]) -> set[_Mention]:
        """The findings left and right of an ``or`` or ``versus``: one of them, not said which."""
        pairs: set[_Mention] = set()
        for at, word in enumerate(self.words):
            if word not in ("or", "versus", "vs"):
                continue
            left = [m for m in mentions if m.end <= at and at - m.end <= _PAIR_REACH]
            right = [m for m in mentions if m.start > at and m.start - at <= _PAIR_REACH]
            if not left or not right:
                continue
            one, other = max(left, key=lambda m: m.end), min(right, key=lambda m: m.start)
            between = self.words[one.end : other.start]
            if not lexicon.BREAKS.intersection(between) and "," not in between[:-1]:
                pairs |= {one, other}
        return pairs


def _without_link(between: Sequence[str], verb: bool) -> Sequence[str]:
    """Without what only leads to the next verb of the same subject: "... *which has since*
    resolved"; unchanged where no verb follows, since then another subject may."""
    kept = len(between)
    while kept and between[kept - 1] in lexicon.LINKS | lexicon.VERBS:
        kept -= 1
        verb = verb or between[kept] in lexicon.VERBS
    linked = any(word in lexicon.LINKS for word in between[kept:])
    return between[:kept] if verb and linked else between


def _apart(
    spans: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The spans that share no word with any of the others."""
    return [(start, end) for start, end in spans if all(end <= s or start >= e for s, e in others)]
