"""Frechet distance extrapolated to endless samples: without the bias of the plug-in value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chexgenbench import MetricSpec, NotApplicable, Sample, ScoreSpec, SetMetric, hookimpl
from chexgenbench.statistics.estimate import Estimate


class FrechetInfinite(SetMetric):
    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        from chexgenbench.statistics import frechet_distance_infinite

        n, width = min(len(real), len(fake)), real.features.shape[1]
        if n <= width:
            # The bias is not near proportional to 1 / n yet: at n = d / 2 the extrapolation was
            # 1.7 times the distance in simulation.
            raise NotApplicable(
                f"needs more images than the {width} features, has {n}; kid has no such bound"
            )
        try:
            estimate = frechet_distance_infinite(
                real.features,
                fake.features,
                self.seed,
                groups_real=real.units,
                groups_fake=fake.units,
            )
        except ValueError as error:  # too few images or patients to halve; features are finite
            raise NotApplicable(str(error)) from error
        return {"fid_infinity": estimate}


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="fid-infinity",
        summary="Frechet distance extrapolated to endless samples, unlike fid free of bias by n",
        load=FrechetInfinite,
        metric="set",
        scores=(
            ScoreSpec(
                name="fid_infinity",
                higher_is_better=False,
                summary="slightly negative at times where the distributions are equal",
                formula=r"2 \, \mathrm{FID}(N) - \operatorname{mean} \mathrm{FID}(N / 2)",
            ),
        ),
        pitfalls=(
            "Skipped with no more images than features, and without an interval below 8 times as "
            "many: 6,144 patients for an encoder of 768.",
            "It has another target than fid: the two must not be mixed in one table.",
        ),
        references=("https://arxiv.org/abs/1911.07023",),
        licence="Apache-2.0",
    )
