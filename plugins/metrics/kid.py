"""Kernel distance: the unbiased squared maximum mean discrepancy under a cubic kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field, field_validator

from chexgenbench import (
    MetricSpec,
    NotApplicable,
    Parameters,
    Sample,
    ScoreSpec,
    SetMetric,
    hookimpl,
)
from chexgenbench.statistics.estimate import Estimate


class KernelParameters(Parameters):
    subset_size: int | Literal["all"] | None = Field(
        None,
        description="Images a side of each random subset; without it all pairs of different "
        "prompts and patients count; 'all': one subset, every pair in it.",
    )
    subsets: int = Field(100, ge=1, description="Random subsets that are averaged.")

    @field_validator("subset_size")
    @classmethod
    def _is_a_size(cls, size: int | str | None) -> int | str | None:
        if isinstance(size, int) and size < 2:
            raise ValueError("a subset has at least 2 images")
        return size


class Kernel(SetMetric):
    parameters: KernelParameters

    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        from chexgenbench.statistics import kernel_distance
        from chexgenbench.statistics.sampling import withheld

        fewest = min(len(real), len(fake))
        if fewest < 2:
            raise NotApplicable(f"needs 2 images a side, has {len(real)} and {len(fake)}")
        size = self.parameters.subset_size
        if size == "all":
            # An image and the real one of its prompt count as a pair, as in the published code.
            value = kernel_distance(real.features, fake.features).value
            return {"kid": withheld(value, "one subset of all images has no spread")}
        estimate = kernel_distance(
            real.features,
            fake.features,
            None if size is None else min(size, fewest),
            self.parameters.subsets,
            self.seed,
            groups_real=real.units,
            groups_fake=fake.units,
        )
        return {"kid": estimate}


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="kid",
        summary="Kernel distance over all pairs, unbiased at any number of images",
        load=Kernel,
        metric="set",
        scores=(
            ScoreSpec(
                name="kid",
                higher_is_better=False,
                summary="squared kernel distance over pairs of different patients, unbiased",
                formula=r"\operatorname{mean} k(x, x') + \operatorname{mean} k(y, y') "
                r"- 2 \operatorname{mean} k(x, y), \quad "
                r"k(x, y) = \left( \frac{x^\top y}{d} + 1 \right)^3",
            ),
        ),
        pitfalls=(
            "Slightly below zero where nothing differs: the statistic is unbiased.",
            "Other tools count an image with the real one of its own prompt, and take the mean of "
            "random subsets: theirs is lower by something like 1 / n, and noisier.",
            "Its numbers are small, so three decimals lose them.",
        ),
        floor=True,
        parameters=KernelParameters,
        protocols={"legacy": {"subset_size": "all"}},
        references=("https://arxiv.org/abs/1801.01401",),
        licence="Apache-2.0",
    )
