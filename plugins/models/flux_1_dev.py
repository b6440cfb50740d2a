"""FLUX.1 [dev] with the authors' LoRA."""

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
    source="black-forest-labs/FLUX.1-dev",
    revision="3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
    patterns=PATTERNS,
    size=33_700_000_000,
    gated=True,
)
LORA = Download(source="raman07/CheXGenBench-Models-SDV-Flux", patterns=("*.safetensors",))
OURS = "None was published: this is the pipeline's own default."


class Flux1DevParameters(PipelineParameters):
    weights: Annotated[str, Location()] = Field(
        BASE.source, description="The base model: a diffusers folder, or owner/name on the hub."
    )
    lora: Annotated[str, Location()] = Field(
        LORA.source,
        description="The fine-tuning: a .safetensors file, the folder that holds it, or "
        "owner/name on the hub.",
    )
    steps: int = Field(28, ge=1, le=1000, description=f"Denoising steps. {OURS}")
    guidance: float = Field(
        3.5, ge=0, le=100, description=f"Guidance that the model was distilled for. {OURS}"
    )
    true_cfg_scale: float = Field(
        1.0,
        ge=0,
        le=100,
        description=f"Classifier-free guidance, with the negative prompt; off at 1. {OURS}",
    )
    max_sequence_length: int = Field(512, ge=8, le=512, description=f"Tokens that T5 reads. {OURS}")


class Flux1Dev(PipelineModel):
    name = "flux-1-dev"
    class_name = "FluxPipeline"
    lora_name = "flux_lora.safetensors"
    download, lora_download = BASE, LORA


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="flux-1-dev",
        summary="FLUX.1 [dev] with a LoRA for chest radiographs",
        load="chexgenbench_plugins.models.flux_1_dev:Flux1Dev",
        parameters=Flux1DevParameters,
        argument="weights",
        image_size=1024,
        batch_size=1,
        gpu_dtype="bfloat16",
        downloads=(BASE, LORA),
        references=(
            "https://arxiv.org/abs/2505.10496",
            "https://github.com/black-forest-labs/flux",
        ),
        requires=LORA_REQUIRES,
        licence="FLUX.1 [dev] Non-Commercial License (base model); the LoRA states none",
    )
