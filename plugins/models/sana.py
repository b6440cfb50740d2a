"""Sana 0.6B, fine-tuned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from chexgenbench import Location, ModelSpec, Parameters, hookimpl
from chexgenbench.types import Download
from chexgenbench_plugins.pipelines import PATTERNS, REQUIRES, PipelineModel, PipelineParameters

PUBLISHED = Download(
    source="raman07/CheXGenBench-Models-Sana-e20",
    revision="6c8989d92e75fbcfc91a82c3570389293867ad6a",
    patterns=PATTERNS,
    size=8_000_000_000,
)


class SanaParameters(PipelineParameters):
    weights: Annotated[str, Location()] = Field(
        PUBLISHED.source,
        description="A diffusers folder (chexgenbench convert sana makes one of a training "
        "checkpoint), or owner/name on the hub; the authors' fine-tuned one by default.",
    )
    steps: int = Field(20, ge=1, le=1000, description="Denoising steps.")
    guidance: float = Field(4.5, ge=0, le=100, description="Classifier-free guidance scale.")
    max_sequence_length: int = Field(
        300, ge=8, le=1024, description="Tokens of the prompt that Gemma's output is cut to."
    )
    complex_human_instruction: bool = Field(
        True,
        description="Puts Sana's own instruction before each prompt, as its pipeline does; it "
        "says how to enhance a prompt and is some hundred tokens long.",
    )
    clean_caption: bool = Field(
        False, description="Cleans prompts of web addresses and the like (needs beautifulsoup4)."
    )
    use_resolution_binning: bool = Field(
        True, description="Makes images at the nearest trained size and scales them to the wanted."
    )


class Sana(PipelineModel):
    name, class_name, download = "sana", "SanaPipeline", PUBLISHED

    @classmethod
    def arguments(cls, parameters: Parameters) -> dict[str, Any]:
        given = super().arguments(parameters)
        # The pipeline's own text is the default of its call.
        if given.pop("complex_human_instruction"):
            return given
        return {**given, "complex_human_instruction": None}


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="sana",
        summary="Sana 0.6B, fine-tuned on chest radiographs",
        load="chexgenbench_plugins.models.sana:Sana",
        parameters=SanaParameters,
        argument="weights",
        convert="chexgenbench_plugins.convert.sana:convert",
        image_size=512,
        downloads=(PUBLISHED,),
        references=("https://arxiv.org/abs/2505.10496", "https://arxiv.org/abs/2410.10629"),
        requires=REQUIRES,
        licence="that of the base model's page; the fine-tuned weights state none",
    )
