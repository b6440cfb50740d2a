"""Checks of a judge: one of four labels an image, by the image alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from chexgenbench.errors import UserError
from chexgenbench.testing.common import shorten
from chexgenbench.testing.results import Fault, Skip
from chexgenbench.testing.subject import Subject
from chexgenbench.testing.world import WIDTH, read_only, sample
from chexgenbench.types import FINDINGS, QUALITIES, JudgeRequest

COUNT = 12


def requests(subject: Subject) -> list[JudgeRequest]:
    """Pictures with their prompts and labels, and features where the judge reads them."""
    prompts = subject.world.test
    drawn = sample({"features": WIDTH}, seed=2)
    labels = prompts.table[list(FINDINGS)].to_numpy(float)
    found = []
    for row in range(COUNT):
        values = zip(FINDINGS, labels[row].tolist(), strict=True)
        found.append(
            JudgeRequest(
                path=prompts.path(row),
                prompt=prompts.table["prompt"].iloc[row],
                labels={name: None if value != value else value for name, value in values},
                features=drawn.features[row] if subject.spec.features else None,
                text=drawn.text[row] if subject.spec.features and drawn.text is not None else None,
            )
        )
    return found


def _judge(subject: Subject) -> Any:
    if "judge" not in subject.kept:
        judge = subject.create()
        if subject.spec.features:
            judge.learn(read_only(sample({"features": WIDTH}, seed=1)))
        subject.kept["judge"] = judge
    return subject.kept["judge"]


def _ask(subject: Subject, wanted: list[JudgeRequest]) -> list[str]:
    given = list(_judge(subject).judge(wanted))
    if len(given) != len(wanted):
        raise Fault(
            f"{len(given)} answers to {len(wanted)} images", "give one answer an image, in order"
        )
    return given


def labels(subject: Subject) -> str:
    """One of the labels an image."""
    given = _ask(subject, requests(subject))
    odd = [answer for answer in given if answer not in QUALITIES]
    most = subject.parameters.most_unreadable
    if len(odd) > most * len(given):
        raise Fault(
            f"{len(odd)} of {len(given)} answers are no label: {shorten(map(repr, odd))}",
            f"answer one of {', '.join(QUALITIES)}",
        )
    subject.kept["answers"] = given
    return ", ".join(f"{given.count(name)} {name}" for name in QUALITIES if name in given)


def alone(subject: Subject) -> str:
    """An answer depends on its own request: alone, in another order, a second time."""
    wanted = requests(subject)
    first = subject.kept.get("answers") or _ask(subject, wanted)
    again = _ask(subject, wanted)
    turned = _ask(subject, wanted[::-1])[::-1]
    single = [_ask(subject, [each])[0] for each in wanted[:4]]
    for what, other in (
        ("a second time", again),
        ("in another order", turned),
        ("alone", single),
    ):
        changed = sum(a != b for a, b in zip(first, other, strict=False))
        if changed:
            raise Fault(
                f"{changed} of {len(other)} answers are others {what}",
                "an answer may depend on its own request (and on learn) alone, since it is kept",
            )
    return ""


def learns(subject: Subject) -> str:
    """Too few real images are the user's fault and no crash."""
    if not subject.spec.features:
        raise Skip("it reads no features (features=True)")
    refused = 0
    whole = sample({"features": WIDTH}, seed=1)
    for count in (0, 1, 3):
        try:
            subject.create().learn(whole.take(np.arange(count)))
        except UserError:
            refused += 1
        except Exception as error:
            raise Fault(
                f"learn() of {count} images raises {type(error).__name__}: {error}",
                "raise UserError where they are too few",
            ) from error
    return f"refused for {refused} of 3 small numbers" if refused else ""
