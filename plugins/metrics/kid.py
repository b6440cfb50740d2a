"""Kernel distance: the unbiased squared maximum mean discrepancy under a cubic kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chexgenbench import MetricSpec, NotApplicable, Sample, ScoreSpec, SetMetric, hookimpl
from chexgenbench.statistics.estimate import Estimate


class Kernel(SetMetric):
    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        from chexgenbench.statistics import kernel_distance

        if min(len(real), len(fake)) < 2:
            raise NotApplicable(f"needs 2 images a side, has {len(real)} and {len(fake)}")
        estimate = kernel_distance(
            real.features,
            fake.features,
            pairs=fake.answers(real),
            groups_real=real.patients,
            groups_fake=fake.patients,
        )
        return {"kid": estimate}


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="kid",
        summary="Kernel distance over all pairs, unbiased at any number of images",
        load=Kernel,
        metric="set",
        scores=(ScoreSpec(name="kid", higher_is_better=False),),
        references=("https://arxiv.org/abs/1801.01401",),
        licence="Apache-2.0",
    )
