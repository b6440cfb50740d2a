"""Frechet distance between the Gaussians fitted to real and generated features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chexgenbench import MetricSpec, NotApplicable, Sample, ScoreSpec, SetMetric, hookimpl
from chexgenbench.statistics.estimate import Estimate


class Frechet(SetMetric):
    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        from chexgenbench.statistics import frechet_distance

        n, width = min(len(real), len(fake)), real.features.shape[1]
        if n <= width:
            # The covariance is singular and the bias far above any difference between models.
            raise NotApplicable(
                f"needs more images than the {width} features, has {n}; kid has no such bound"
            )
        estimate = frechet_distance(
            real.features,
            fake.features,
            pairs=fake.answers(real),
            groups_real=real.patients,
            groups_fake=fake.patients,
        )
        return {"fid": estimate}


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="fid",
        summary="Frechet distance of real and generated features",
        load=Frechet,
        metric="set",
        scores=(ScoreSpec(name="fid", higher_is_better=False, lowest=0.0),),
        references=("https://arxiv.org/abs/1706.08500",),
        licence="Apache-2.0",
    )
