"""Memorisation: whether generated images repeat images of the training side, any of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from chexgenbench import (
    Context,
    ImageNeed,
    MetricSpec,
    Parameters,
    ScoreSpec,
    Task,
    TaskMetric,
    TaskResult,
    hookimpl,
)

if TYPE_CHECKING:
    from chexgenbench.splits.prompts import PromptTable


class MemorisationParameters(Parameters):
    prompts: int = Field(2000, ge=1, description="Training prompts of which images are made.")
    repeats: int = Field(10, ge=1, description="Images of each of them, each of its own seed.")
    members: bool = Field(True, description="Make them; else the run's own images are all.")
    false_match_rate: float = Field(
        0.01, gt=0, lt=1, description="Held-out images that may be taken for copies."
    )
    subsamples: int = Field(10, ge=1, description="Cuts of the training side into equal sizes.")
    cosine: bool = Field(False, description="Features of length one, so cosine distances.")
    pairs: int = Field(50, ge=0, description="Nearest pairs that are shown.")
    without_patients: bool = Field(
        False, description="Take a row without a patient for a patient of its own."
    )


class Memorisation(TaskMetric):
    parameters: MemorisationParameters

    @classmethod
    def needs(cls, parameters: Any) -> Mapping[str, ImageNeed]:
        needs = {
            "generated": ImageNeed(side="test", source="model", repeats=None),
            "training": ImageNeed(side="training", source="real", every_row=True),
            "held_out": ImageNeed(side="test", source="real"),
        }
        if parameters.members:
            p, r = parameters.prompts, parameters.repeats
            needs["members"] = ImageNeed(side="training", source="model", prompts=p, repeats=r)
            needs["others"] = ImageNeed(side="test", source="model", prompts=p, repeats=r)
        return needs

    @classmethod
    def check(
        cls, parameters: Any, context: Context, tables: Mapping[str, PromptTable]
    ) -> Sequence[str]:
        from chexgenbench_plugins.patients import check_patients

        return check_patients(
            "memorisation",
            {"training": tables["training"], "test": tables["held_out"]},
            without_patients=parameters.without_patients,
        )

    def run(self, task: Task) -> TaskResult:
        from chexgenbench_plugins.memorisation import measure

        return measure(task, self.parameters)


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    share = {"lowest": 0.0, "highest": 1.0}
    yield MetricSpec(
        name="memorisation",
        summary="Copies of training images, by nearest neighbours among all of them",
        load=Memorisation,
        metric="task",
        scores=(
            ScoreSpec(
                name="replicated_rate",
                higher_is_better=False,
                summary="share of images nearer to a training image than held-out ones are",
                formula=r"\frac{1}{m} \sum_j \mathbf{1} [ \delta(y_j, T) < \tau ], \quad "
                r"\Pr [ \delta(h, T) < \tau ] \le \alpha",
                **share,
            ),
            ScoreSpec(
                name="training_share",
                higher_is_better=False,
                summary="share of images nearer to a training image than to a held-out one",
                formula=r"\frac{1}{m} \sum_j \mathbf{1} [ \delta(y_j, T) < \delta(y_j, H) ], "
                r"\quad |T| = |H|",
                **share,
            ),
            ScoreSpec(
                name="nndr",
                higher_is_better=True,
                summary="distance to the nearest training patient over that to the second",
                formula=r"\frac{1}{m} \sum_j \frac{ \delta_1(y_j, T) }{ \delta_2(y_j, T) }",
                **share,
            ),
            ScoreSpec(
                name="authenticity",
                higher_is_better=True,
                summary="share of images that are no nearer to a training image than others are",
                formula=r"\frac{1}{m} \sum_j \mathbf{1} [ \delta(t_j, T) < \delta(y_j, t_j) ], "
                r"\quad t_j \text{ nearest to } y_j",
                **share,
            ),
            ScoreSpec(
                name="ct_score",
                higher_is_better=True,
                summary="z of lying farther from the training side than held-out images: "
                "below 0 copies, about 0 honest",
                formula=r"\sum_c w_c \frac{ U_c - n_c m_c / 2 + 1/2 }"
                r"{ \sqrt{ n_c m_c (n_c + m_c + 1) / 12 } }",
            ),
            ScoreSpec(
                name="near_duplicates",
                higher_is_better=False,
                summary="share of images with the perceptual hash and pixels of a training image",
                formula=r"\frac{1}{m} \sum_j \mathbf{1} [ \text{hash and pixels nearer than any "
                r"held-out image's} ]",
                **share,
            ),
        ),
        pitfalls=(
            "A model of blurred images lies nearer to everything, and replicated_rate flags it "
            "without copying; the other scores are not misled.",
            "Training and held-out patients must be of one population: sicker held-out patients "
            "move every control.",
            "A copy is what the encoder takes for one; the hash misses a crop of a few pixels.",
        ),
        parameters=MemorisationParameters,
        references=(
            "https://arxiv.org/abs/2104.00635",
            "https://arxiv.org/abs/2102.08921",
            "https://arxiv.org/abs/2004.05675",
            "https://arxiv.org/abs/2301.13188",
        ),
        requires=("faiss", "imagehash"),
        licence="Apache-2.0",
    )
