"""Inception Score on an encoder's class probabilities (never on its pool features)."""

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


class InceptionScoreParameters(Parameters):
    splits: int = Field(10, ge=1, description="Parts of equal size that are averaged.")


class InceptionScore(SetMetric):
    parameters: InceptionScoreParameters

    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        from chexgenbench.statistics import inception_score

        splits = self.parameters.splits
        if len(fake) < 2 * splits:
            raise NotApplicable(f"needs {2 * splits} images for {splits} parts, has {len(fake)}")
        groups = fake.prompts if fake.patients is None else fake.patients
        estimate = inception_score(fake.outputs["probabilities"], splits=splits, groups=groups)
        return {"inception_score": estimate}


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="inception-score",
        summary="Clear and varied classes: exp of the mean divergence from the average class",
        load=InceptionScore,
        metric="set",
        scores=(ScoreSpec(name="inception_score", higher_is_better=True, lowest=1.0),),
        output="probabilities",
        parameters=InceptionScoreParameters,
        references=("https://arxiv.org/abs/1606.03498",),
        licence="Apache-2.0",
    )
