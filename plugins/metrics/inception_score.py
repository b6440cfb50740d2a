"""Inception Score on an encoder's class probabilities (on its pool features under ``legacy``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

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


class InceptionScoreParameters(Parameters):
    splits: int = Field(10, ge=1, description="Parts of equal size that are averaged.")
    on: Literal["probabilities", "features"] = Field(
        "probabilities",
        description="Class probabilities, or the softmax of features as if they were logits.",
    )


class InceptionScore(SetMetric):
    parameters: InceptionScoreParameters

    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        import numpy as np
        from scipy.special import softmax

        from chexgenbench.statistics import inception_score

        splits = self.parameters.splits
        if len(fake) < 2 * splits:
            raise NotApplicable(f"needs {2 * splits} images for {splits} parts, has {len(fake)}")
        if self.parameters.on == "features":
            chances = softmax(fake.features.astype(np.float64), axis=1)
            estimate = inception_score(chances, splits=splits, groups=fake.units)
            warning = f"softmax of {chances.shape[1]} features, which are no class logits"
            return {"inception_score": replace(estimate, warning=warning)}
        estimate = inception_score(fake.outputs["probabilities"], splits=splits, groups=fake.units)
        return {"inception_score": estimate}


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="inception-score",
        summary="Clear and varied classes: exp of the mean divergence from the average class",
        load=InceptionScore,
        metric="set",
        scores=(
            ScoreSpec(
                name="inception_score",
                higher_is_better=True,
                lowest=1.0,
                summary="sure and varied classes; mean over parts S of the images",
                formula=r"\operatorname{mean} \exp \left( \frac{1}{|S|} \sum_{j \in S} "
                r"\mathrm{KL} \left( p_j \, \Vert \, \bar{p}_S \right) \right)",
            ),
        ),
        pitfalls=(
            "It looks at generated images alone: sharp, varied images of anything score well.",
            "The classes of inception-v3 are those of photographs, which no radiograph belongs to.",
            "It grows with the number of images a part.",
        ),
        output="probabilities",
        parameters=InceptionScoreParameters,
        protocols={"legacy": {"on": "features"}},
        references=("https://arxiv.org/abs/1606.03498",),
        licence="Apache-2.0",
    )
