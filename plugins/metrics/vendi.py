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
        scores=(
            ScoreSpec(
                name="vendi_score",
                higher_is_better=True,
                lowest=1.0,
                summary="as if so many images at right angles were equally frequent",
                formula=r"\exp \left( - \sum_k \lambda_k \ln \lambda_k \right), \quad "
                r"\lambda = \operatorname{eig}(K), \quad K_{ij} = \frac{1}{m} "
                r"\cos(y_i, y_j)",
            ),
        ),
        pitfalls=(
            "It looks at generated images alone: noise of many kinds is diverse.",
            "It grows with the number of images, so subsets of different size do not compare.",
            "Features with a large common part all point one way, and the score is near 1.",
        ),
        references=("https://arxiv.org/abs/2210.02410",),
        licence="Apache-2.0",
    )
