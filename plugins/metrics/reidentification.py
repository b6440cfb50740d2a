"""Re-identification: whether images made for training prompts are of the prompts' own patients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from chexgenbench import (
    Context,
    ImageNeed,
    Location,
    MetricSpec,
    ScoreSpec,
    Task,
    TaskMetric,
    TaskResult,
    hookimpl,
)
from chexgenbench_plugins.reid.parameters import OwnImageParameters

if TYPE_CHECKING:
    from chexgenbench.splits.prompts import PromptTable


class ReidentificationParameters(OwnImageParameters):
    weights: Annotated[str, Location()] = Field(
        "raman07/Patient_ReIdentification_MIMIC",
        description="A folder or file, owner/name on the hub, or `phantom` for the demo's network.",
    )
    false_match_rate: float = Field(
        0.01,
        gt=0.0,
        lt=1.0,
        description="How often the best of `repeats` real images of other patients may pass.",
    )
    pairs: int = Field(16, ge=0, description="Pairs that are kept for the report.")


class Reidentification(TaskMetric):
    parameters: ReidentificationParameters

    @classmethod
    def needs(cls, parameters: ReidentificationParameters) -> Mapping[str, ImageNeed]:
        from chexgenbench_plugins.reid.pairs import needs

        return needs(parameters.prompts, parameters.repeats)

    @classmethod
    def weights(cls, parameters: ReidentificationParameters, context: Context) -> Sequence[Path]:
        from chexgenbench_plugins.reid.loading import weight_files

        return weight_files(parameters.weights, context)

    @classmethod
    def check(
        cls,
        parameters: ReidentificationParameters,
        context: Context,
        tables: Mapping[str, PromptTable],
    ) -> Sequence[str]:
        from chexgenbench_plugins.reid.loading import load_network
        from chexgenbench_plugins.reid.pairs import check_tables

        remarks = check_tables(
            "reidentification", tables, parameters.prompts, parameters.without_patients
        )
        load_network(cls.weights(parameters, context), context)
        return remarks

    def run(self, task: Task) -> TaskResult:
        from chexgenbench_plugins.reid.loading import Reidentifier
        from chexgenbench_plugins.reid.verification import reidentify

        chosen = self.parameters
        return reidentify(
            task,
            Reidentifier(self.weights(chosen, self.context), self.context),
            repeats=chosen.repeats,
            rate=chosen.false_match_rate,
            pairs=chosen.pairs,
        )


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="reidentification",
        summary="Whether images made for training prompts show the prompts' own patients",
        load=Reidentification,
        metric="task",
        output=None,
        parameters=ReidentificationParameters,
        scores=(
            ScoreSpec(
                name="reid_rate",
                higher_is_better=False,
                lowest=0.0,
                highest=1.0,
                summary="share of training prompts whose best image passes for their patient; "
                "control: held-out prompts, weighted to the same findings",
                formula=r"\frac{1}{P} \sum_p \mathbf{1} [ \max_r \, s(x_p, y_{pr}) > \tau ]",
            ),
            ScoreSpec(
                name="reid_mean",
                higher_is_better=False,
                lowest=0.0,
                highest=1.0,
                summary="score of an image with its prompt's own real one, 1: the same patient",
                formula=r"\frac{1}{P} \sum_p \frac{1}{R} \sum_r s(x_p, y_{pr})",
            ),
            ScoreSpec(
                name="reid_max",
                higher_is_better=False,
                lowest=0.0,
                highest=1.0,
                summary="largest of these scores",
                formula=r"\max_{p, r} \, s(x_p, y_{pr})",
            ),
            ScoreSpec(
                name="reid_count",
                higher_is_better=False,
                lowest=0.0,
                summary="training prompts whose best image passes for their patient",
                formula=r"\sum_p \mathbf{1} [ \max_r \, s(x_p, y_{pr}) > \tau ]",
            ),
            ScoreSpec(
                name="reid_network_auc",
                higher_is_better=True,
                lowest=0.0,
                highest=1.0,
                summary="how well the network tells real pairs of one patient from pairs of two "
                "with the same labels",
                formula=r"\Pr [ s(\text{same}) > s(\text{other}) ] + "
                r"\tfrac{1}{2} \Pr [ s(\text{same}) = s(\text{other}) ]",
            ),
            ScoreSpec(
                name="reid_network_recall",
                higher_is_better=True,
                lowest=0.0,
                highest=1.0,
                summary="share of real pairs of one patient that the threshold finds",
                formula=r"\Pr [ s(\text{same}) > \tau ]",
            ),
            ScoreSpec(
                name="reid_real",
                higher_is_better=True,
                lowest=0.0,
                highest=1.0,
                summary="mean score of real pairs: same_patient, other_patient",
                formula=r"\operatorname{mean} s(x, x')",
            ),
        ),
        pitfalls=(
            "The network decides what a patient is: where reid_network_auc is below 0.8 the "
            "scores say little, and carry a warning.",
            "The published count names no threshold, so reid_count does not compare with it.",
            "reid_max grows with the number of prompts and images.",
        ),
        licence="Apache-2.0 (the published weights state none)",
        references=(
            "https://arxiv.org/abs/2505.10496",
            "https://doi.org/10.1038/s41598-022-19045-3",
        ),
        requires=("timm",),
    )
