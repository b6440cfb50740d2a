"""The demo's own latent diffusion model, trained on the chest phantom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from chexgenbench import Location, ModelSpec, hookimpl
from chexgenbench_plugins.data import data_folder
from chexgenbench_plugins.models.stable_diffusion import StableDiffusion
from chexgenbench_plugins.pipelines import REQUIRES, PipelineParameters


class PhantomDiffusionParameters(PipelineParameters):
    weights: Annotated[str, Location()] = Field(
        default_factory=lambda: str(data_folder("phantom-diffusion")),
        description="A diffusers folder; the project's own by default.",
    )
    steps: int = Field(10, ge=1, le=1000, description="Denoising steps.")
    guidance: float = Field(2.0, ge=0, le=100, description="Classifier-free guidance scale.")


class PhantomDiffusion(StableDiffusion):
    name = "phantom-diffusion"


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="phantom-diffusion",
        summary="A small Stable Diffusion pipeline trained on the chest phantom",
        load="chexgenbench_plugins.models.phantom_diffusion:PhantomDiffusion",
        parameters=PhantomDiffusionParameters,
        argument="weights",
        image_size=128,
        batch_size=16,
        references=("docs/phantom.md",),
        requires=REQUIRES,
        licence="Apache-2.0",
    )
