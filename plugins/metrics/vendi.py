"""Vendi score: the effective number of different generated images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chexgenbench import MetricSpec, Sample, ScoreSpec, SetMetric, hookimpl
from chexgenbench.statistics.estimate import Estimate


class Vendi(SetMetric):
    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        from chexgenbench.statistics import vendi_score

        return {"vendi_score": vendi_score(fake.features, groups=fake.units)}


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="vendi",
        summary="Effective number of different generated images; grows with how many there are",
        load=Vendi,
        metric="set",
        scores=(ScoreSpec(name="vendi_score", higher_is_better=True, lowest=1.0),),
        references=("https://arxiv.org/abs/2210.02410",),
        licence="Apache-2.0",
    )
