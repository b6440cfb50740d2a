"""Frechet Radiomics Distance: how far the textures of generated images are from real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from chexgenbench import MetricSpec, NotApplicable, Sample, ScoreSpec, SetMetric, hookimpl
from chexgenbench.statistics.estimate import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class FrechetRadiomics(SetMetric):
    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        from chexgenbench.statistics import frechet_radiomics_distance

        try:
            found = frechet_radiomics_distance(
                _values(real),
                _values(fake),
                groups_real=real.units,
                groups_fake=fake.units,
            )
        except ValueError as error:  # too few images, none with features, or equal sides
            raise NotApplicable(str(error)) from error
        return {"frd": found}


def _values(side: Sample) -> NDArray[np.float32]:
    import numpy as np

    return np.where(side.outputs["undefined"] != 0, np.float32("nan"), side.outputs["radiomics"])


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="frd",
        summary="Frechet Radiomics Distance: log of the distance of z-scored radiomics",
        load=FrechetRadiomics,
        metric="set",
        scores=(
            ScoreSpec(
                name="frd",
                higher_is_better=False,
                summary="natural logarithm of the squared distance, scaled by the real side",
                formula=r"\ln \mathrm{FID} \left( z(x), z(y) \right), \quad "
                r"z(v) = \frac{v - \mu_x}{\sigma_x}",
            ),
        ),
        pitfalls=(
            "Texture depends on resolution: both sides go to one size first, and scores of two "
            "sizes do not compare.",
            "A logarithm: a difference of 0.7 is a factor of two. It can be negative.",
            "With 394 features a subset of fewer images has no interval.",
        ),
        output="radiomics",
        floor=True,
        licence="Apache-2.0",
        references=("https://arxiv.org/abs/2412.01496",),
    )
