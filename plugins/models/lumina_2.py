"""Lumina-Image 2.0 with the authors' LoRA."""

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
    source="Alpha-VLLM/Lumina-Image-2.0",
    revision="cf8a782c5be9bc864310a5c7881510104472923c",
    patterns=PATTERNS,
    size=21_300_000_000,
)
LORA = Download(
    source="raman07/CheXGenBench-Models-Lumina2", patterns=("lumina2_lora.safetensors",)
)


class Lumina2Parameters(PipelineParameters):
    weights: Annotated[str, Location()] = Field(
        BASE.source, description="The base model: a diffusers folder, or owner/name on the hub."
    )
    lora: Annotated[str, Location()] = Field(
        LORA.source,
        description="The fine-tuning: lumina2_lora.safetensors, the folder that holds it, or "
        "owner/name on the hub.",
    )
    steps: int = Field(50, ge=1, le=1000, description="Denoising steps.")
    guidance: float = Field(4.0, ge=0, le=100, description="Classifier-free guidance scale.")
    cfg_trunc_ratio: float = Field(
        0.25, ge=0, le=1, description="The first part of the steps, which alone has guidance."
    )
    cfg_normalization: bool = Field(
        True, description="Keeps the length of the guided prediction that of the conditional one."
    )
    system_prompt: str | None = Field(
        None, description="What is put before each prompt; by default the pipeline's own text."
    )
    max_sequence_length: int = Field(
        256, ge=8, le=512, description="Tokens that Gemma reads, those of the system prompt too."
    )


class Lumina2(PipelineModel):
    name = "lumina-2"
    class_name = "Lumina2Pipeline"
    lora_name = "lumina2_lora.safetensors"
    download, lora_download = BASE, LORA


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="lumina-2",
        summary="Lumina-Image 2.0 with a LoRA for chest radiographs",
        load="chexgenbench_plugins.models.lumina_2:Lumina2",
        parameters=Lumina2Parameters,
        argument="weights",
        image_size=1024,
        batch_size=4,
        gpu_dtype="bfloat16",
        downloads=(BASE, LORA),
        references=("https://arxiv.org/abs/2505.10496", "https://arxiv.org/abs/2503.21758"),
        requires=LORA_REQUIRES,
        licence="Apache-2.0 (base model); the LoRA states none",
    )
