"""Frechet distance between the Gaussians fitted to real and generated features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chexgenbench import MetricSpec, NotApplicable, Sample, ScoreSpec, SetMetric, hookimpl
from chexgenbench.statistics.estimate import Estimate


class Frechet(SetMetric):
    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        from chexgenbench.statistics import frechet_distance

        if min(len(real), len(fake)) < 2:
            raise NotApplicable(f"needs 2 images a side, has {len(real)} and {len(fake)}")
        estimate = frechet_distance(
            real.features,
            fake.features,
            groups_real=real.units,
            groups_fake=fake.units,
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
        floor=True,
        references=("https://arxiv.org/abs/1706.08500",),
        licence="Apache-2.0",
    )
