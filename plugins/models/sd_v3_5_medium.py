"""Stable Diffusion 3.5 medium with the authors' LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from chexgenbench import Location, ModelSpec, hookimpl
from chexgenbench.types import Download
from chexgenbench_plugins.pipelines import (
    LORA_REQUIRES,
    PATTERNS,
    PipelineModel,
    PipelineParameters,
)

BASE = Download(
    source="stabilityai/stable-diffusion-3.5-medium",
    revision="b940f670f0eda2d07fbb75229e779da1ad11eb80",
    patterns=PATTERNS,
    size=16_300_000_000,
    gated=True,
)
LORA = Download(
    source="raman07/CheXGenBench-Models-SDV3-5", patterns=("sd3-5_medium_lora.safetensors",)
)


class SdV35MediumParameters(PipelineParameters):
    weights: Annotated[str, Location()] = Field(
        BASE.source, description="The base model: a diffusers folder, or owner/name on the hub."
    )
    lora: Annotated[str, Location()] = Field(
        LORA.source,
        description="The fine-tuning: sd3-5_medium_lora.safetensors, the folder that holds it, "
        "or owner/name on the hub.",
    )
    steps: int = Field(40, ge=1, le=1000, description="Denoising steps.")
    guidance: float = Field(4.5, ge=0, le=100, description="Classifier-free guidance scale.")
    max_sequence_length: int = Field(512, ge=8, le=512, description="Tokens that T5 reads.")


class SdV35Medium(PipelineModel):
    name = "sd-v3-5-medium"
    class_name = "StableDiffusion3Pipeline"
    lora_name = "sd3-5_medium_lora.safetensors"
    download, lora_download = BASE, LORA


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="sd-v3-5-medium",
        summary="Stable Diffusion 3.5 medium with a LoRA for chest radiographs",
        load="chexgenbench_plugins.models.sd_v3_5_medium:SdV35Medium",
        parameters=SdV35MediumParameters,
        argument="weights",
        image_size=1024,
        batch_size=4,
        downloads=(BASE, LORA),
        references=("https://arxiv.org/abs/2505.10496", "https://arxiv.org/abs/2403.03206"),
        requires=LORA_REQUIRES,
        licence="Stability AI Community License (base model); the LoRA states none",
    )
