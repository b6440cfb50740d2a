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
        scores=(
            ScoreSpec(
                name="fid",
                higher_is_better=False,
                lowest=0.0,
                summary="squared Frechet distance of the Gaussians with the features' moments",
                formula=r"\lVert \mu_x - \mu_y \rVert^2 + \operatorname{tr} \left( \Sigma_x + "
                r"\Sigma_y - 2 \left( \Sigma_x \Sigma_y \right)^{1/2} \right)",
            ),
        ),
        pitfalls=(
            "Biased upward by the number of images: a subset of few looks bad for any model. "
            "Read excess, or kid.",
            "With no more images than features the covariance is singular; the value then carries "
            "a warning and no interval.",
            "Means and covariances alone are compared: a copy of the training side scores best.",
        ),
        floor=True,
        references=("https://arxiv.org/abs/1706.08500",),
        licence="Apache-2.0",
    )
