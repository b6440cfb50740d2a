"""Baseline with a known answer: pictures of nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import Field

from chexgenbench import Image, Model, ModelSpec, Parameters, Request, hookimpl


class NoiseParameters(Parameters):
    mean: float = Field(0.5, ge=0, le=1, description="Mean grey level, 0 black to 1 white.")
    deviation: float = Field(0.2, ge=0, le=1, description="Standard deviation of the grey level.")
    size: int = Field(128, ge=16, le=4096, description="Width and height in pixels.")


class Noise(Model):
    """Independent Gaussian grey levels, the prompt ignored."""

    parameters: NoiseParameters

    def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
        own = self.parameters
        for request in requests:
            size = request.size or own.size
            values = np.random.default_rng(request.seed).normal(
                own.mean, own.deviation, (size, size)
            )
            yield (values.clip(0, 1) * 255).round().astype(np.uint8)


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="noise",
        summary="Baseline: Gaussian noise that ignores the prompt (the worst a model can do)",
        load=Noise,
        parameters=NoiseParameters,
        image_size=128,
        batch_size=32,
        licence="Apache-2.0",
    )
