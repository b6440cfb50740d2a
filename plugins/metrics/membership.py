"""Membership inference: whether one can tell which images a model was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from chexgenbench import (
    Context,
    ImageNeed,
    ImageSet,
    MetricSpec,
    NotApplicable,
    Parameters,
    ScoreSpec,
    Task,
    TaskMetric,
    TaskResult,
    TaskScore,
    UserError,
    hookimpl,
)

if TYPE_CHECKING:
    from chexgenbench.splits.prompts import PromptTable
    from chexgenbench.statistics.attacks import Attack, Prompted

FEWEST = 50
"""Prompts a side: an AUC of fewer has an interval of more than a tenth on each side."""

RATES = (0.01, 0.001)


class MembershipParameters(Parameters):
    prompts: int = Field(2000, ge=1, description="Prompts a side of which images are made.")
    repeats: int = Field(10, ge=1, description="Images of a prompt, each from a seed of its own.")
    neighbours: int = Field(1, ge=1, description="k of the densities; 1 sees a single copy.")
    without_patients: bool = Field(
        False, description="Go on without patient ids: every row is a patient of its own."
    )


class Membership(TaskMetric):
    parameters: MembershipParameters

    @classmethod
    def needs(cls, parameters: MembershipParameters) -> Mapping[str, ImageNeed]:
        p, r = parameters.prompts, parameters.repeats
        return {
            "members": ImageNeed(side="training", source="model", prompts=p, repeats=r),
            "held_out": ImageNeed(side="test", source="model", prompts=p, repeats=r),
            "training_real": ImageNeed(side="training", source="real", every_row=True),
            "held_out_real": ImageNeed(side="test", source="real"),
        }

    @classmethod
    def check(
        cls,
        parameters: MembershipParameters,
        context: Context,
        tables: Mapping[str, PromptTable],
    ) -> Sequence[str]:
        from chexgenbench_plugins.patients import check_patients

        remarks = []
        sides = {"training": tables["members"], "test": tables["held_out"]}
        for side, prompts in sides.items():
            if len(prompts) < FEWEST:
                raise UserError(
                    f"The metric 'membership' needs images for at least {FEWEST} {side} prompts "
                    f"and gets {len(prompts)}.",
                    hint=f"Set prompts to {FEWEST} or more, name a split with more {side} rows, or "
                    "leave the metric out.",
                )
            if len(prompts) < parameters.prompts:
                remarks.append(
                    f"{parameters.prompts:,} {side} prompts were asked for and {len(prompts):,} "
                    "are there"
                )
        return remarks + check_patients(
            "membership", sides, without_patients=parameters.without_patients
        )

    def run(self, task: Task) -> TaskResult:
        from chexgenbench.statistics import Undefined
        from chexgenbench.statistics.attacks import Pool, membership_attacks

        sets = task.sets
        notes: list[str] = []
        real = sets["training_real"]
        trained = set(real.patients.tolist())
        try:
            members, _ = _prompted("members", sets["members"], real, set())
            held_out, common = _prompted(
                "held_out", sets["held_out"], sets["held_out_real"], trained
            )
            pool = Pool.checked(real.features, real.patients, real.labels == 1.0)
            found = membership_attacks(
                members, held_out, pool, rates=RATES, neighbours=self.parameters.neighbours
            )
        except Undefined as error:
            raise NotApplicable(str(error)) from error
        except ValueError as error:
            raise UserError(f"The metric 'membership' on {task.encoder!r}: {error}.") from error
        if common:
            notes.append(
                f"{common} held-out images show patients of the training side and were left out."
            )
        real_count = len(members.real) + len(held_out.real)
        made_count = len(members.images) + len(held_out.images)
        scores = [
            replace(score, n_real=real_count, n_fake=made_count)
            for name, attack in found.items()
            for score in _scores(name, attack)
        ]
        return TaskResult(scores=scores, notes=notes)


def _prompted(name: str, made: ImageSet, real: ImageSet, without: set[str]) -> tuple[Prompted, int]:
    """The real images that have images made for their prompts, and how many `without` took."""
    import numpy as np

    from chexgenbench.statistics.attacks import Prompted

    place = {prompt: at for at, prompt in enumerate(real.ids)}
    prompts = made.prompts.table["prompt_id"].to_numpy()[made.rows]
    records = np.array([place.get(prompt, -1) for prompt in prompts], np.int64)
    barred = np.isin(real.patients, list(without))
    kept = (records >= 0) & ~barred[records]
    used, of = np.unique(records[kept], return_inverse=True)
    if len(used) < FEWEST:
        raise NotApplicable(
            f"{len(used)} {made.need.side} prompts have a readable real image, a generated one and "
            f"a patient who is not on the other side; {FEWEST} are needed"
        )
    chosen = real.take(used)
    prompted = Prompted.checked(
        name, chosen.features, chosen.patients, chosen.labels == 1.0, made.features[kept], of
    )
    return prompted, int(np.isin(np.unique(records[records >= 0]), np.flatnonzero(barred)).sum())


def _scores(name: str, attack: Attack) -> Iterator[TaskScore]:
    yield TaskScore(
        name="membership_auc",
        variant=name,
        estimate=attack.auc,
        control=attack.control_auc.value,
        excess=attack.excess_auc,
    )
    for rate, found in attack.tpr.items():
        control, excess = attack.control_tpr[rate], attack.excess_tpr[rate]
        yield TaskScore(
            name="membership_tpr",
            variant=f"{name}_at_{100 * rate:g}pct".replace(".", "_"),
            estimate=found,
            control=None if isinstance(control, str) else control.value,
            excess=None if isinstance(excess, str) else excess,
        )


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="membership",
        summary="Membership inference by distance and by density ratio, with its controls",
        load=Membership,
        metric="task",
        scores=(
            ScoreSpec(
                name="membership_auc",
                higher_is_better=False,
                lowest=0.0,
                highest=1.0,
                summary="chance that a training image scores above a held-out one; 0.5 by guessing",
                formula=r"\Pr [ a(x) > a(x') ] + \tfrac{1}{2} \Pr [ a(x) = a(x') ], \quad "
                r"x \text{ trained on}, \; x' \text{ held out}",
            ),
            ScoreSpec(
                name="membership_tpr",
                higher_is_better=False,
                lowest=0.0,
                highest=1.0,
                summary="share of training images recognised at a false-positive rate",
                formula=r"\Pr [ a(x) > t ], \quad \Pr [ a(x') > t ] = \alpha",
            ),
        ),
        pitfalls=(
            "The score alone can be off 0.5 because the sides differ: read excess.",
            "No attack that succeeds is no proof that none would.",
            "A rate at 1 % needs 1,000 held-out patients, one at 0.1 % 10,000; with fewer there "
            "is no value.",
        ),
        parameters=MembershipParameters,
        licence="Apache-2.0",
        references=("https://arxiv.org/abs/2302.12580", "https://arxiv.org/abs/2211.10459"),
    )
