"""Precision, recall, density and coverage by nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field

from chexgenbench import (
    MetricSpec,
    NotApplicable,
    Parameters,
    Sample,
    ScoreSpec,
    SetMetric,
    hookimpl,
)
from chexgenbench.statistics.estimate import Estimate


class NeighbourParameters(Parameters):
    k: int = Field(5, ge=1, description="Neighbours that span the ball around an image.")


class Neighbours(SetMetric):
    parameters: NeighbourParameters

    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        from chexgenbench.statistics import precision_recall_density_coverage

        k = self.parameters.k
        # Below that each ball spans a quarter of its side, and everything is near everything.
        if min(len(real), len(fake)) <= 4 * k:
            raise NotApplicable(
                f"needs more than 4 k = {4 * k} images a side, has {len(real)} and {len(fake)}"
            )
        return precision_recall_density_coverage(
            real.features,
            fake.features,
            k=k,
            groups_real=real.units,
            groups_fake=fake.units,
        )


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="prdc",
        summary="Precision, recall, density and coverage of generated images",
        load=Neighbours,
        metric="set",
        scores=(
            ScoreSpec(
                name="precision",
                higher_is_better=True,
                lowest=0.0,
                highest=1.0,
                summary="share of generated images that lie near a real one",
                formula=r"\frac{1}{m} \sum_j \mathbf{1} \left[ \exists i : "
                r"\lVert y_j - x_i \rVert < r_k(x_i) \right]",
            ),
            ScoreSpec(
                name="recall",
                higher_is_better=True,
                lowest=0.0,
                highest=1.0,
                summary="share of real images that lie near a generated one",
                formula=r"\frac{1}{n} \sum_i \mathbf{1} \left[ \exists j : "
                r"\lVert x_i - y_j \rVert < r_k(y_j) \right]",
            ),
            ScoreSpec(
                name="density",
                higher_is_better=True,
                lowest=0.0,
                summary="real balls that hold a generated image, over k",
                formula=r"\frac{1}{k m} \sum_j \sum_i \mathbf{1} \left[ "
                r"\lVert y_j - x_i \rVert < r_k(x_i) \right]",
            ),
            ScoreSpec(
                name="coverage",
                higher_is_better=True,
                lowest=0.0,
                highest=1.0,
                summary="share of real balls that hold a generated image",
                formula=r"\frac{1}{n} \sum_i \mathbf{1} \left[ \exists j : "
                r"\lVert x_i - y_j \rVert < r_k(x_i) \right]",
            ),
        ),
        pitfalls=(
            "All four depend on the numbers of images and on k: compare equal ones only.",
            "One real outlier has a ball that holds much: with 150 real images noise had a "
            "precision of 1.",
            "Recall and coverage hardly move while some good images are left (known_answers.md).",
        ),
        floor=True,
        parameters=NeighbourParameters,
        references=("https://arxiv.org/abs/1904.06991", "https://arxiv.org/abs/2002.09797"),
        licence="Apache-2.0",
    )
