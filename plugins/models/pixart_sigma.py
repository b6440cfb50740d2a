"""PixArt-Sigma, fine-tuned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from chexgenbench import Location, ModelSpec, hookimpl
from chexgenbench.types import Download
from chexgenbench_plugins.pipelines import PATTERNS, REQUIRES, PipelineModel, PipelineParameters

PUBLISHED = Download(
    source="raman07/CheXGenBench-Models-Pixart-Sigma",
    revision="ab837e1d3d7b5aeccb4dcbc4d3abcf1c2ed24727",
    patterns=PATTERNS,
    size=21_830_000_000,
)


class PixArtSigmaParameters(PipelineParameters):
    weights: Annotated[str, Location()] = Field(
        PUBLISHED.source,
        description="A diffusers folder (chexgenbench convert pixart-sigma makes one of a training "
        "checkpoint), or owner/name on the hub; the authors' fine-tuned one by default.",
    )
    steps: int = Field(20, ge=1, le=1000, description="Denoising steps.")
    guidance: float = Field(4.5, ge=0, le=100, description="Classifier-free guidance scale.")
    max_sequence_length: int = Field(300, ge=8, le=512, description="Tokens that T5 reads.")
    clean_caption: bool = Field(
        False,
        description="Cleans prompts of web addresses and the like. The pipeline's default is true, "
        "which without beautifulsoup4, as in the published environment, means false.",
    )
    use_resolution_binning: bool = Field(
        True, description="Makes images at the nearest trained size and scales them to the wanted."
    )


class PixArtSigma(PipelineModel):
    name, class_name, download = "pixart-sigma", "PixArtSigmaPipeline", PUBLISHED


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="pixart-sigma",
        summary="PixArt-Sigma, fine-tuned on chest radiographs",
        load="chexgenbench_plugins.models.pixart_sigma:PixArtSigma",
        parameters=PixArtSigmaParameters,
        argument="weights",
        convert="chexgenbench_plugins.convert.pixart_sigma:convert",
        image_size=512,
        downloads=(PUBLISHED,),
        references=("https://arxiv.org/abs/2505.10496", "https://arxiv.org/abs/2403.04692"),
        requires=REQUIRES,
        licence="OpenRAIL++ (base model); the fine-tuned weights state none",
    )
