"""Any Stable Diffusion 1.x or 2.x pipeline: a diffusers folder, or a hub id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from chexgenbench import (
    Context,
    Image,
    Location,
    Model,
    ModelSpec,
    Parameters,
    Request,
    UserError,
    hookimpl,
)
from chexgenbench.files import read_json
from chexgenbench_plugins.weights import safe_weight_files, weight_folder


class StableDiffusionParameters(Parameters):
    weights: Annotated[str, Location()] = Field(
        description="A diffusers folder, or owner/name on the hub."
    )
    revision: str | None = Field(None, description="The hub commit; ignored for a folder.")
    steps: int = Field(50, ge=1, le=1000, description="Denoising steps.")
    guidance: float = Field(7.5, ge=0, le=100, description="Classifier-free guidance scale.")
    negative_prompt: str = Field("", description="What the image should not show.")


class StableDiffusion(Model):
    """StableDiffusionPipeline without its safety checker, which blanks medical images."""

    parameters: StableDiffusionParameters

    @classmethod
    def folder(cls, parameters: StableDiffusionParameters, context: Context) -> Path:
        return weight_folder(
            parameters.weights, revision=parameters.revision, home=context.home, what=cls.__name__
        )

    @classmethod
    def weights(cls, parameters: StableDiffusionParameters, context: Context) -> Sequence[Path]:
        folder = cls.folder(parameters, context)
        index = folder / "model_index.json"
        if not index.is_file():
            raise UserError(f"{folder} is no diffusers pipeline: it has no model_index.json.")
        found = read_json(index).get("_class_name")
        if found != "StableDiffusionPipeline":
            raise UserError(f"{folder} holds a {found}, not a StableDiffusionPipeline.")
        return safe_weight_files(folder, cls.__name__)

    def __init__(self, parameters: StableDiffusionParameters, context: Context) -> None:
        super().__init__(parameters, context)
        import torch
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging
        from transformers.utils import logging as transformers_logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        self.pipeline = StableDiffusionPipeline.from_pretrained(
            self.folder(parameters, context),
            dtype=getattr(torch, context.dtype),
            use_safetensors=True,
            local_files_only=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).to(context.device)
        self.pipeline.set_progress_bar_config(disable=True)

    def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
        import torch

        size = requests[0].size
        if size is not None and size % self.pipeline.vae_scale_factor:
            raise UserError(
                f"Image size {size} is not a multiple of {self.pipeline.vae_scale_factor}."
            )
        # Noise comes from the CPU's generator, so that it is the same on every device.
        result = self.pipeline(
            prompt=[request.prompt for request in requests],
            negative_prompt=[self.parameters.negative_prompt] * len(requests),
            num_inference_steps=self.parameters.steps,
            guidance_scale=self.parameters.guidance,
            height=size,
            width=size,
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            output_type="np",
        )
        yield from result.images


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="stable-diffusion",
        summary="Any Stable Diffusion 1.x or 2.x pipeline, by folder or hub id",
        load="chexgenbench_plugins.models.stable_diffusion:StableDiffusion",
        parameters=StableDiffusionParameters,
        references=("https://arxiv.org/abs/2112.10752",),
        requires=("diffusers", "transformers"),
        licence="that of the weights",
    )
