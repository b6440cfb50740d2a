"""CMMD: squared maximum mean discrepancy of image embeddings under a Gaussian kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chexgenbench import MetricSpec, NotApplicable, Sample, ScoreSpec, SetMetric, hookimpl
from chexgenbench.statistics.estimate import Estimate


class GaussianKernel(SetMetric):
    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        from chexgenbench.statistics import cmmd

        if min(len(real), len(fake)) < 2:
            raise NotApplicable(f"needs 2 images a side, has {len(real)} and {len(fake)}")
        estimate = cmmd(
            real.features,
            fake.features,
            groups_real=real.units,
            groups_fake=fake.units,
        )
        return {"cmmd": estimate}


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="cmmd",
        summary="Kernel distance of normalised embeddings (published for those of CLIP)",
        load=GaussianKernel,
        metric="set",
        scores=(
            ScoreSpec(
                name="cmmd",
                higher_is_better=False,
                summary="1000 times the squared kernel distance of rows of length one, unbiased",
                formula=r"1000 \left( \operatorname{mean} k(x, x') + \operatorname{mean} k(y, y') "
                r"- 2 \operatorname{mean} k(x, y) \right), \quad "
                r"k(x, y) = \exp \left( - \frac{\lVert x - y \rVert^2}{2 \cdot 10^2} \right)",
            ),
        ),
        pitfalls=(
            "Slightly below zero where nothing differs: the statistic is unbiased.",
            "The published code counts each image with itself, which makes its values larger.",
            "The width of the kernel was chosen for CLIP; under another encoder the scale differs.",
        ),
        floor=True,
        references=("https://arxiv.org/abs/2401.09603",),
        licence="Apache-2.0",
    )
