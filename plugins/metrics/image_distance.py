"""Distance of images made for training prompts to the prompts' own real images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from chexgenbench import (
    Context,
    ImageNeed,
    MetricSpec,
    ScoreSpec,
    Task,
    TaskMetric,
    TaskResult,
    UserError,
    hookimpl,
)
from chexgenbench_plugins.reid.parameters import OwnImageParameters

if TYPE_CHECKING:
    from chexgenbench.splits.prompts import PromptTable


class PixelParameters(OwnImageParameters):
    size: int = Field(
        512, ge=16, le=2048, description="Pixels a side that both images are squashed to."
    )


class _OwnImage(TaskMetric):
    name: ClassVar[str]

    @classmethod
    def needs(cls, parameters: OwnImageParameters) -> Mapping[str, ImageNeed]:
        from chexgenbench_plugins.reid.pairs import needs

        return needs(parameters.prompts, parameters.repeats)

    @classmethod
    def check(
        cls, parameters: OwnImageParameters, context: Context, tables: Mapping[str, PromptTable]
    ) -> Sequence[str]:
        from chexgenbench_plugins.reid.pairs import check_tables

        return check_tables(cls.name, tables, parameters.prompts, parameters.without_patients)


class PixelDistance(_OwnImage):
    name = "pixel-distance"
    parameters: PixelParameters

    def run(self, task: Task) -> TaskResult:
        from chexgenbench_plugins.reid.distances import Pairs, distance_scores
        from chexgenbench_plugins.reid.raster import PixelDistances, raster

        size = self.parameters.size
        pairs = Pairs.of(task, self.parameters.repeats)
        with raster(task.part("real images"), pairs.pool.sets, size) as rows:
            distances = PixelDistances(task, pairs, rows, size)
            return distance_scores(task, pairs, "pixel_distance", distances.made, distances.real)


class LatentDistance(_OwnImage):
    name = "latent-distance"
    parameters: OwnImageParameters

    def run(self, task: Task) -> TaskResult:
        import numpy as np

        from chexgenbench_plugins.reid.distances import Pairs, distance_scores, root_mean_square

        for name, images in task.sets.items():
            if not np.isfinite(images.features).all():
                raise UserError(f"{task.encoder}: features of {name} hold NaN or infinity.")
        pairs = Pairs.of(task, self.parameters.repeats)
        real = np.concatenate([one.features for one in pairs.pool.sets])

        def in_blocks(first: Any, second: Any, one: Any, other: Any) -> Any:
            parts = [slice(start, start + 4096) for start in range(0, len(one), 4096)]
            found = [root_mean_square(first[one[part]], second[other[part]]) for part in parts]
            return np.concatenate([np.empty(0), *found])

        return distance_scores(
            task,
            pairs,
            "latent_distance",
            lambda images, at, own: in_blocks(images.features, real, at, own),
            lambda one, other: in_blocks(real, real, one, other),
        )


def _scores(prefix: str, unit: str) -> tuple[ScoreSpec, ...]:
    said = {
        "mean": "distance of an image to its prompt's own real one; control: held-out "
        "prompts, weighted to the same findings",
        "min": "distance of the nearest image of a prompt; control: as of the mean",
        "real": "distance of real images: same_patient, other_patient, other_patient_min",
    }
    delta = r", \quad \delta(a, b) = \sqrt{ \operatorname{mean} (a - b)^2 }"
    formulas = {
        "mean": r"\frac{1}{P} \sum_p \frac{1}{R} \sum_r \delta(x_p, y_{pr})" + delta,
        "min": r"\frac{1}{P} \sum_p \min_r \, \delta(x_p, y_{pr})" + delta,
        "real": r"\operatorname{mean} \delta(x, x')" + delta,
    }
    return tuple(
        ScoreSpec(
            name=f"{prefix}_{name}",
            higher_is_better=True,
            lowest=0.0,
            summary=f"{text} ({unit})",
            formula=formulas[name],
        )
        for name, text in said.items()
    )


_PITFALLS = (
    "A distance says nothing without its control: an image that follows its prompt is nearer to "
    "that prompt's image than a random one is.",
    "A large distance is no privacy: noise is far from everybody.",
    "It sees the prompt's own image only; memorisation looks at all of the training side.",
)
"""Of both distances."""


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="pixel-distance",
        summary="Distance of images to their prompts' own real ones, pixel by pixel",
        load=PixelDistance,
        metric="task",
        output=None,
        parameters=PixelParameters,
        scores=_scores("pixel_distance", "grey levels, root mean square"),
        pitfalls=_PITFALLS,
        licence="Apache-2.0",
        references=("https://arxiv.org/abs/2505.10496",),
    )
    yield MetricSpec(
        name="latent-distance",
        summary="Distance of images to their prompts' own real ones, by an encoder's features",
        load=LatentDistance,
        metric="task",
        parameters=OwnImageParameters,
        scores=_scores("latent_distance", "root mean square over the features"),
        pitfalls=_PITFALLS,
        licence="Apache-2.0",
        references=("https://arxiv.org/abs/2505.10496",),
    )
