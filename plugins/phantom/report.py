"""Report text of a study and back: a small grammar that is written and read by the same tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .findings import (
    Finding,
    Labels,
    Severity,
    Side,
    State,
    Study,
    View,
    Zone,
    labels_of,
    make_study,
)

Words = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Phrases:
    """How a finding is worded.

    `cores` are noun phrases that go into the wrappers; `stated` and `doubted` are whole sentences.
    Slots: {sev}, {adv}, {side}, {zone}, {kinds}. An empty word in `sev` means that a missing
    severity reads as that severity.
    """

    cores: tuple[str, ...]
    denied: tuple[str, ...]
    sev: Words = field(default_factory=dict[str, tuple[str, ...]])
    zone: Words = field(default_factory=dict[str, tuple[str, ...]])
    kinds: Words = field(default_factory=dict[str, tuple[str, ...]])
    stated: tuple[str, ...] = ()
    doubted: tuple[str, ...] = ()


_AMOUNT: Words = {"mild": ("mild", "minimal"), "moderate": ("moderate", ""), "severe": ("severe",)}
_SIZE: Words = {"mild": ("small", "trace"), "moderate": ("moderate",), "severe": ("large",)}
_ADVERB: Words = {"mild": ("mildly",), "moderate": ("moderately",), "severe": ("severely",)}
_ZONES: Words = {
    "upper": ("upper lobe", "upper zone"),
    "mid": ("mid lung", "mid zone"),
    "lower": ("lower lobe", "lung base"),
}
_SIDES: Words = {"left": ("left",), "right": ("right",), "bilateral": ("bilateral",)}

GRAMMAR: dict[str, Phrases] = {
    "Atelectasis": Phrases(
        cores=("{sev} {side} basilar atelectasis", "{sev} {side} linear atelectasis"),
        denied=("atelectasis",),
        sev={
            "mild": ("mild", "minimal", "subsegmental"),
            "moderate": ("moderate", ""),
            "severe": ("marked", "severe"),
        },
        stated=("{sev} {side} basilar atelectasis with volume loss.",),
    ),
    "Cardiomegaly": Phrases(
        cores=("{sev} cardiomegaly", "{sev} enlargement of the cardiac silhouette"),
        denied=("cardiomegaly",),
        sev=_AMOUNT,
        stated=("The heart is {adv} enlarged.", "Heart size is {adv} increased."),
        doubted=("The heart may be {adv} enlarged.",),
    ),
    "Consolidation": Phrases(
        cores=("{sev} {side} {zone} consolidation", "{sev} consolidation in the {side} {zone}"),
        denied=("consolidation", "focal consolidation"),
        sev={"mild": ("small", "patchy"), "moderate": ("", "focal"), "severe": ("dense", "large")},
        zone=_ZONES,
        stated=("The {side} {zone} shows {sev} consolidation with air bronchograms.",),
    ),
    "Edema": Phrases(
        cores=("{sev} pulmonary edema", "{sev} perihilar edema", "{sev} interstitial edema"),
        denied=("pulmonary edema", "overt edema"),
        sev=_AMOUNT,
        stated=("Vascular congestion with {sev} pulmonary edema.",),
        doubted=("Vascular congestion may represent {sev} pulmonary edema.",),
    ),
    "Enlarged Cardiomediastinum": Phrases(
        cores=("{sev} widening of the mediastinum", "{sev} mediastinal widening"),
        denied=("mediastinal widening",),
        sev=_AMOUNT,
        stated=("The mediastinum is {adv} widened.",),
        doubted=("The mediastinum may be {adv} widened.",),
    ),
    "Fracture": Phrases(
        cores=("{sev} {side} {zone} rib fracture", "{sev} fracture of the {side} {zone} rib"),
        denied=("acute fracture", "rib fracture"),
        sev={"mild": ("nondisplaced",), "moderate": ("",), "severe": ("displaced",)},
        zone={"upper": ("third",), "mid": ("fifth",), "lower": ("seventh",)},
    ),
    "Lung Lesion": Phrases(
        cores=("{side} {zone} {sev}", "{sev} in the {side} {zone}"),
        denied=("lung nodule", "suspicious nodule"),
        sev={
            "mild": ("small nodule", "tiny nodule"),
            "moderate": ("nodule", "nodular lesion"),
            "severe": ("mass", "large mass"),
        },
        zone=_ZONES,
    ),
    "Lung Opacity": Phrases(
        cores=("{sev} {side} {zone} opacity", "{sev} opacity in the {side} {zone}"),
        denied=("focal opacity",),
        sev={"mild": ("faint", "subtle"), "moderate": ("hazy", ""), "severe": ("extensive",)},
        zone=_ZONES,
    ),
    "Pleural Effusion": Phrases(
        cores=("{sev} {side} pleural effusion", "{sev} {side} effusion"),
        denied=("pleural effusion", "effusion"),
        sev=_SIZE,
        stated=(
            "{sev} {side} pleural effusion blunting the costophrenic angle.",
            "{sev} amount of {side} pleural fluid.",
        ),
        doubted=("Blunted costophrenic angle may represent {sev} {side} effusion.",),
    ),
    "Pleural Other": Phrases(
        cores=("{sev} {side} pleural {kinds}", "{sev} pleural {kinds} on the {side}"),
        denied=("pleural thickening",),
        sev=_AMOUNT,
        kinds={"thickening": ("thickening", "scarring"), "plaque": ("plaques", "calcification")},
    ),
    "Pneumonia": Phrases(
        cores=("{sev} {side} {zone} pneumonia", "{sev} pneumonia in the {side} {zone}"),
        denied=("pneumonia",),
        sev={"mild": ("early", "mild"), "moderate": ("",), "severe": ("extensive", "severe")},
        zone=_ZONES,
        stated=("Patchy airspace disease compatible with {sev} {side} {zone} pneumonia.",),
        doubted=("Patchy airspace disease may represent {sev} {side} {zone} pneumonia.",),
    ),
    "Pneumothorax": Phrases(
        cores=("{sev} {side} pneumothorax", "{sev} {side} apical pneumothorax"),
        denied=("pneumothorax",),
        sev=_SIZE,
        stated=("{sev} {side} pneumothorax with visible pleural line.",),
    ),
    "Support Devices": Phrases(
        cores=("{kinds} in place", "{kinds} in standard position", "{kinds} in situ"),
        denied=("support device",),
        kinds={
            "endotracheal tube": ("endotracheal tube",),
            "central line": ("central line", "jugular line"),
            "pacemaker": ("pacemaker", "dual lead pacemaker"),
            "nasogastric tube": ("nasogastric tube", "enteric tube"),
            "chest tube": ("chest tube", "pleural drain"),
            "sternal wires": ("sternal wires", "sternotomy wires"),
        },
    ),
}

_STATED = (
    "{x}.", "There is {x}.", "{x} is seen.", "{x} is present.", "{x} is noted.",
    "Findings consistent with {x}.", "Unchanged {x}.", "Stable {x}.", "New {x}.",
    "Again seen is {x}.", "Interval development of {x}.", "The study demonstrates {x}.",
)  # fmt: skip
_DOUBTED = (
    "Possible {x}.", "Questionable {x}.", "{x} cannot be excluded.", "Suspected {x}.",
    "There may be {x}.", "Equivocal {x}.",
)  # fmt: skip
_DEVICES_STATED = ("{x}.", "Unchanged {x}.", "New {x}.", "Again noted {x}.")
_DEVICES_DOUBTED = ("Possible {x}.", "Suspected {x}.")
_DENIALS: dict[str, tuple[str, ...]] = {
    "heart size is normal.": ("Cardiomegaly",),
    "the heart is normal in size.": ("Cardiomegaly",),
    "cardiac silhouette is within normal limits.": ("Cardiomegaly",),
    "mediastinal contours are unremarkable.": ("Enlarged Cardiomediastinum",),
    "the cardiomediastinal silhouette is normal.": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "bony structures are intact.": ("Fracture",),
}
_NO = (
    "No {n}.",
    "There is no {n}.",
    "No evidence of {n}.",
    "{n} is not seen.",
    "Negative for {n}.",
)
_VIEWS: dict[View, tuple[str, ...]] = {
    "PA": ("PA view of the chest.", "Upright PA chest radiograph."),
    "AP": ("Portable AP chest radiograph.", "AP view of the chest.", "Bedside AP film."),
}
_OPENINGS = ("Frontal chest radiograph.", "Single view of the chest.", "Chest radiograph.")
_CLEAR = (
    "The lungs are clear.", "Lungs are clear and well expanded.", "Lungs are well aerated.",
    "No acute cardiopulmonary process.", "Normal chest radiograph.", "Clear lungs bilaterally.",
    "No acute abnormality.",
)  # fmt: skip
_CLOSINGS = (
    "Clinical correlation is advised.", "Follow up is recommended.", "No change from prior study.",
    "Comparison is made to the prior study.", "Short interval follow up is suggested.",
)  # fmt: skip
_NEUTRAL = frozenset(s.lower() for s in (*_OPENINGS, *_CLEAR, *_CLOSINGS))
_VIEW_OF = {s.lower(): view for view, texts in _VIEWS.items() for s in texts}
MAX_WORDS = 58
"""Longest prompt that `compose` makes, in tokens (words and punctuation marks)."""


@dataclass(frozen=True)
class Parsed:
    """What `parse` read: the study, its 14 labels, and the sentences outside the grammar."""

    study: Study
    labels: Labels
    unknown: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every sentence was understood."""
        return not self.unknown


def compose(study: Study, rng: np.random.Generator) -> str:
    """Word a study: one of many wordings, drawn from `rng`; `parse` gives the study back."""

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    opening: list[str] = []
    if study.view is not None:
        opening.append(pick(_VIEWS[study.view]))
    elif rng.random() < 0.25:
        opening.append(pick(_OPENINGS))
    seen = [f for f in study.findings if f.state != "absent"]
    body = [_sentence(f, rng) for f in seen]
    devices = [f.name for f in seen] == ["Support Devices"]
    if (not seen or devices) and rng.random() < 0.85:
        body.insert(int(rng.integers(len(body) + 1)), pick(_CLEAR))
    order = rng.permutation(len(body)) if rng.random() < 0.5 else np.arange(len(body))
    body = [body[int(i)] for i in order]
    body += _deny([f.name for f in study.findings if f.state == "absent"], rng)
    if rng.random() < 0.15:
        body.append(pick(_CLOSINGS))
    text = " ".join([*opening, *body]) or pick(_OPENINGS)
    while len(tokens(text)) > MAX_WORDS and opening and study.view is None:
        opening.pop()
        text = " ".join([*opening, *body])
    return text


def parse(prompt: str) -> Parsed:
    """Read a prompt of this grammar. Case and spacing do not matter; of two sentences about one
    finding the later one counts. Sentences outside the grammar are listed in `unknown`."""
    found: dict[str, Finding] = {}
    view: View | None = None
    unknown: list[str] = []
    for sentence in re.findall(r"[^.]+\.?", prompt):
        text = " ".join(sentence.split()).lower()
        if not text or text == ".":
            continue
        text = text if text.endswith(".") else text + "."
        if text in _VIEW_OF:
            view = _VIEW_OF[text]
        elif text in _NEUTRAL:
            continue
        elif (names := _read_denial(text)) is not None:
            found.update({n: Finding(n, "absent") for n in names})
        elif (finding := _read_finding(text)) is not None:
            found[finding.name] = finding
        else:
            unknown.append(text)
    study = make_study(found, view)
    return Parsed(study, labels_of(study), tuple(unknown))


def tokens(text: str) -> list[str]:
    """Lower-case words and punctuation marks of a text."""
    return re.findall(r"[a-z]+|[^\sa-z]", text.lower())


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark that the grammar can produce, sorted."""
    texts: list[str] = [*_STATED, *_DOUBTED, *_DEVICES_STATED, *_DEVICES_DOUBTED, *_DENIALS, *_NO]
    texts += [*_VIEW_OF, *_NEUTRAL, ", and or .", *(w for t in _ADVERB.values() for w in t)]
    texts += [w for t in _SIDES.values() for w in t]
    for p in GRAMMAR.values():
        texts += [*p.cores, *p.denied, *p.stated, *p.doubted]
        texts += [w for table in (p.sev, p.zone, p.kinds) for t in table.values() for w in t]
    return tuple(sorted({t for text in texts for t in tokens(re.sub(r"\{\w+\}", " ", text))}))


def _sentence(finding: Finding, rng: np.random.Generator) -> str:
    phrases = GRAMMAR[finding.name]
    devices = finding.name == "Support Devices"
    doubted = finding.state == "uncertain"
    whole = phrases.doubted if doubted else phrases.stated
    if devices:
        wrappers = _DEVICES_DOUBTED if doubted else _DEVICES_STATED
    else:
        wrappers = _DOUBTED if doubted else _STATED
    if whole and rng.random() < 0.3:
        text = whole[int(rng.integers(len(whole)))]
    else:
        core = phrases.cores[int(rng.integers(len(phrases.cores)))]
        at = 0 if rng.random() < 0.35 else int(rng.integers(len(wrappers)))
        text = wrappers[at].replace("{x}", core)

    def word(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))] if options else ""

    kinds = [word(phrases.kinds[k]) for k in finding.kinds]
    joined = kinds[0] if len(kinds) == 1 else ", ".join(kinds[:-1]) + " and " + "".join(kinds[-1:])
    slots = {
        "{sev}": word(phrases.sev.get(finding.severity, ())),
        "{adv}": word(_ADVERB.get(finding.severity, ())),
        "{side}": finding.side,
        "{zone}": word(phrases.zone.get(finding.zone, ())),
        "{kinds}": joined,
    }
    for slot, value in slots.items():
        text = text.replace(slot, value)
    text = " ".join(text.split())
    return text[0].upper() + text[1:]


def _deny(names: list[str], rng: np.random.Generator) -> list[str]:
    names = [names[int(i)] for i in rng.permutation(len(names))]
    sentences: list[str] = []
    fixed = list(_DENIALS.items())
    for at in rng.permutation(len(fixed)):
        text, about = fixed[int(at)]
        if set(about) <= set(names) and rng.random() < 0.6:
            sentences.append(text[0].upper() + text[1:])
            names = [n for n in names if n not in about]
    while names:
        count = min(len(names), int(rng.integers(1, 4)))
        group, names = names[:count], names[count:]
        nouns = [GRAMMAR[n].denied[int(rng.integers(len(GRAMMAR[n].denied)))] for n in group]
        listed = nouns[0] if count == 1 else ", ".join(nouns[:-1]) + " or " + nouns[-1]
        text = _NO[0 if rng.random() < 0.5 else int(rng.integers(len(_NO)))].replace("{n}", listed)
        sentences.append(text[0].upper() + text[1:])
    return sentences


@lru_cache(maxsize=1)
def _denied_names() -> dict[str, str]:
    return {noun: name for name, phrases in GRAMMAR.items() for noun in phrases.denied}


@lru_cache(maxsize=1)
def _denial_patterns() -> tuple[re.Pattern[str], ...]:
    nouns = "|".join(sorted(map(re.escape, _denied_names()), key=len, reverse=True))
    listed = f"(?P<n>(?:(?:{nouns})(?:, | or )?)+)"
    texts = sorted(_NO, key=len, reverse=True)
    return tuple(re.compile(re.escape(t.lower()).replace(r"\{n\}", listed)) for t in texts)


def _read_denial(text: str) -> tuple[str, ...] | None:
    if text in _DENIALS:
        return _DENIALS[text]
    for pattern in _denial_patterns():
        match = pattern.fullmatch(text)
        if match:
            return tuple(_denied_names()[n] for n in re.split(r", | or ", match["n"]))
    return None


@dataclass(frozen=True)
class _Reader:
    pattern: re.Pattern[str]
    name: str
    state: State


def _table_pattern(slot: str, table: Words) -> str:
    words = sorted((w for t in table.values() for w in t if w), key=len, reverse=True)
    group = f"(?P<{slot}>{'|'.join(map(re.escape, words))})"
    return f"(?:{group} )?" if any("" in t for t in table.values()) else group + " "


@lru_cache(maxsize=1)
def _readers() -> tuple[_Reader, ...]:
    readers: list[_Reader] = []
    for name, phrases in GRAMMAR.items():
        devices = name == "Support Devices"
        for state in ("present", "uncertain"):
            doubted = state == "uncertain"
            if devices:
                wrappers = _DEVICES_DOUBTED if doubted else _DEVICES_STATED
            else:
                wrappers = _DOUBTED if doubted else _STATED
            texts = [w.replace("{x}", c) for w in wrappers for c in phrases.cores]
            texts += phrases.doubted if doubted else phrases.stated
            kinds = "|".join(re.escape(w) for t in phrases.kinds.values() for w in t)
            slots = {
                "sev": _table_pattern("sev", phrases.sev),
                "adv": _table_pattern("adv", _ADVERB),
                "side": _table_pattern("side", _SIDES),
                "zone": _table_pattern("zone", phrases.zone),
                "kinds": f"(?P<kinds>(?:(?:{kinds})(?:, | and )?)+) ",
            }
            for text in texts:
                pattern = "".join(
                    slots[part[1:-1]] if part.startswith("{") else re.escape(part + " ")
                    for part in text.lower().replace(".", " .").split()
                )
                readers.append(_Reader(re.compile(pattern), name, state))
    return tuple(readers)


def _value(table: Words, word: str | None) -> str:
    for key, words in table.items():
        if (word or "") in words:
            return key
    return ""


def _read_finding(text: str) -> Finding | None:
    spaced = text.replace(".", " .") + " "
    for reader in _readers():
        match = reader.pattern.fullmatch(spaced)
        if match is None:
            continue
        phrases, got = GRAMMAR[reader.name], match.groupdict()
        severity = _value(_ADVERB, got["adv"]) if got.get("adv") else ""
        if not severity and phrases.sev:
            severity = _value(phrases.sev, got.get("sev"))
        named = re.split(r", | and ", got["kinds"]) if got.get("kinds") else []
        kinds = {_value(phrases.kinds, k) for k in named}
        try:
            return Finding(
                reader.name,
                reader.state,
                _as_side(got.get("side") or ""),
                _as_severity(severity),
                _as_zone(_value(phrases.zone, got.get("zone")) if phrases.zone else ""),
                tuple(k for k in phrases.kinds if k in kinds),
            )
        except ValueError:
            continue
    return None


def _as_side(text: str) -> Side:
    return text if text in ("left", "right", "bilateral") else ""


def _as_severity(text: str) -> Severity:
    return text if text in ("mild", "moderate", "severe") else ""


def _as_zone(text: str) -> Zone:
    return text if text in ("upper", "mid", "lower") else ""
