"""Stable Diffusion 1.x and 2.x: the four of the benchmark, and any other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from chexgenbench import Location, ModelSpec, hookimpl
from chexgenbench.types import Download
from chexgenbench_plugins.pipelines import PATTERNS, REQUIRES, PipelineModel, PipelineParameters


class StableDiffusion(PipelineModel):
    """StableDiffusionPipeline without its safety checker, which blanks medical images."""

    name = "stable-diffusion"
    class_name = "StableDiffusionPipeline"


class SdV14(StableDiffusion):
    name = "sd-v1-4"


class SdV15(StableDiffusion):
    name = "sd-v1-5"


class SdV2(StableDiffusion):
    name = "sd-v2"


class SdV21(StableDiffusion):
    name = "sd-v2-1"
    download = Download(source="raman07/CheXGenBench-Models-SDV-2-1", patterns=PATTERNS)


class SdV21Parameters(PipelineParameters):
    weights: Annotated[str, Location()] = Field(
        SdV21.download.source,
        description="A diffusers folder, or owner/name on the hub; the authors' fine-tuned one "
        "by default.",
    )


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="stable-diffusion",
        summary="Any Stable Diffusion 1.x or 2.x pipeline, by folder or hub id",
        load="chexgenbench_plugins.models.stable_diffusion:StableDiffusion",
        parameters=PipelineParameters,
        argument="weights",
        references=("https://arxiv.org/abs/2112.10752",),
        requires=REQUIRES,
        licence="that of the weights",
    )
    for found, version, licence in (
        (SdV14, "1.4", "CreativeML OpenRAIL-M"),
        (SdV15, "1.5", "CreativeML OpenRAIL-M"),
        (SdV2, "2", "CreativeML OpenRAIL++-M"),
        (SdV21, "2.1", "CreativeML OpenRAIL++-M"),
    ):
        yield ModelSpec(
            name=found.name,
            summary=f"Stable Diffusion {version}, fine-tuned on chest radiographs",
            load=f"chexgenbench_plugins.models.stable_diffusion:{found.__name__}",
            parameters=SdV21Parameters if found is SdV21 else PipelineParameters,
            argument="weights",
            image_size=512,
            gpu_dtype="float32",  # as published
            downloads=() if found.download is None else (found.download,),
            references=("https://arxiv.org/abs/2505.10496", "https://arxiv.org/abs/2112.10752"),
            requires=REQUIRES,
            licence=f"{licence} (base model); that of the fine-tuned weights",
        )
