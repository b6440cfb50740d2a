"""What a phantom study shows: the 14 findings and the details a renderer needs to draw them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from chexgenbench.types import FINDINGS

Side = Literal["left", "right", "bilateral", ""]
Severity = Literal["mild", "moderate", "severe", ""]
Zone = Literal["upper", "mid", "lower", ""]
View = Literal["PA", "AP"]
State = Literal["present", "uncertain", "absent"]
Labels = dict[str, float | None]

DEVICES: tuple[str, ...] = (
    "endotracheal tube",
    "central line",
    "pacemaker",
    "nasogastric tube",
    "chest tube",
    "sternal wires",
)
PLEURAL_KINDS: tuple[str, ...] = ("thickening", "plaque")


@dataclass(frozen=True)
class Shape:
    """Which details a finding has: its possible sides, severities, zones and kinds."""

    sides: tuple[Side, ...] = ("",)
    severities: tuple[Severity, ...] = ("",)
    zones: tuple[Zone, ...] = ("",)
    kinds: tuple[str, ...] = ()


_LRB: tuple[Side, ...] = ("left", "right", "bilateral")
_LR: tuple[Side, ...] = ("left", "right")
_MMS: tuple[Severity, ...] = ("mild", "moderate", "severe")
_UML: tuple[Zone, ...] = ("upper", "mid", "lower")

SHAPES: dict[str, Shape] = {
    "Atelectasis": Shape(_LRB, _MMS),
    "Cardiomegaly": Shape(severities=_MMS),
    "Consolidation": Shape(_LRB, _MMS, _UML),
    "Edema": Shape(severities=_MMS),
    "Enlarged Cardiomediastinum": Shape(severities=_MMS),
    "Fracture": Shape(_LR, _MMS, _UML),
    "Lung Lesion": Shape(_LR, _MMS, _UML),
    "Lung Opacity": Shape(_LRB, _MMS, _UML),
    "Pleural Effusion": Shape(_LRB, _MMS),
    "Pleural Other": Shape(_LR, _MMS, kinds=PLEURAL_KINDS),
    "Pneumonia": Shape(_LRB, _MMS, _UML),
    "Pneumothorax": Shape(_LR, _MMS),
    "Support Devices": Shape(kinds=DEVICES),
}
"""The details of every finding that can be drawn (all but No Finding)."""


@dataclass(frozen=True)
class Finding:
    """One finding of a study.

    `state` tells whether the report states it, doubts it or denies it; a denied finding has no
    details. `kinds` names devices (any number) or the kind of pleural change (exactly one).
    """

    name: str
    state: State = "present"
    side: Side = ""
    severity: Severity = ""
    zone: Zone = ""
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = SHAPES.get(self.name)
        if shape is None:
            raise ValueError(f"not a finding that can be drawn: {self.name!r}")
        if self.state not in get_args(State):
            raise ValueError(f"unknown state {self.state!r}")
        if self.state == "absent":
            if self.side or self.severity or self.zone or self.kinds:
                raise ValueError(f"{self.name}: a denied finding has no details")
            return
        if (
            self.side not in shape.sides
            or self.severity not in shape.severities
            or self.zone not in shape.zones
            or not set(self.kinds) <= set(shape.kinds)
            or bool(shape.kinds) != bool(self.kinds)
        ):
            raise ValueError(f"details do not fit {self.name}: {self}")


@dataclass(frozen=True)
class Study:
    """Findings (at most one of a name, in the order of FINDINGS) and the view, None: unstated."""

    findings: tuple[Finding, ...] = ()
    view: View | None = None

    def __post_init__(self) -> None:
        order = [FINDINGS.index(f.name) for f in self.findings]
        if order != sorted(set(order)):
            raise ValueError("findings must be unique and in the published order")

    def get(self, name: str) -> Finding | None:
        """The finding of that name when it is stated or doubted, else None."""
        for finding in self.findings:
            if finding.name == name and finding.state != "absent":
                return finding
        return None


def make_study(findings: Mapping[str, Finding], view: View | None = None) -> Study:
    """A study of the given findings (by name), put in the published order."""
    return Study(tuple(findings[n] for n in FINDINGS if n in findings), view)


def labels_of(study: Study) -> Labels:
    """The 14 labels of a study: 1.0 stated, -1.0 doubted, 0.0 denied, None not mentioned.

    As with CheXpert's labeller, No Finding is 1.0 when nothing but devices is stated or doubted.
    """
    labels: Labels = dict.fromkeys(FINDINGS)
    value = {"present": 1.0, "uncertain": -1.0, "absent": 0.0}
    for finding in study.findings:
        labels[finding.name] = value[finding.state]
    seen = any(f.state != "absent" and f.name != "Support Devices" for f in study.findings)
    labels["No Finding"] = None if seen else 1.0
    return labels


def random_finding(name: str, rng: np.random.Generator, state: State = "present") -> Finding:
    """A finding with details drawn at random, in proportions a ward would recognise."""
    if state == "absent":
        return Finding(name, "absent")
    shape = SHAPES[name]
    side = shape.sides[int(rng.integers(len(shape.sides)))]
    severity = shape.severities[int(rng.integers(len(shape.severities)))]
    zone = shape.zones[int(rng.integers(len(shape.zones)))]
    kinds: tuple[str, ...] = ()
    if name == "Support Devices":
        count = (1, 1, 1, 2, 2, 3)[int(rng.integers(6))]
        chosen = {int(i) for i in rng.choice(len(DEVICES), size=count, replace=False)}
        kinds = tuple(d for i, d in enumerate(DEVICES) if i in chosen)
    elif shape.kinds:
        kinds = (shape.kinds[int(rng.integers(len(shape.kinds)))],)
    if name in {"Consolidation", "Pneumonia"} and zone == "upper" and rng.integers(2):
        zone = "lower"
    return Finding(name, state, side, severity, zone, kinds)


def reconcile(study: Study, labels: Mapping[str, float | None], rng: np.random.Generator) -> Study:
    """The study made to agree with the labels: what they state and it lacks is added at random,
    what they deny or leave out is removed, doubts become what the labels say."""
    states: dict[float, State] = {1.0: "present", -1.0: "uncertain", 0.0: "absent"}
    kept: dict[str, Finding] = {}
    for name in FINDINGS:
        value = labels.get(name)
        if name not in SHAPES or value is None:
            continue
        state = states[float(value)]
        old = study.get(name)
        if state != "absent" and old is not None:
            kept[name] = replace(old, state=state)
        else:
            kept[name] = random_finding(name, rng, state)
    return make_study(kept, study.view)


def seed_of(*parts: str | int) -> int:
    """A 64-bit seed hashed from its parts; the same on every machine and in every process."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(*parts: str | int) -> np.random.Generator:
    """A random generator seeded with `seed_of(*parts)`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed_of(*parts))))
