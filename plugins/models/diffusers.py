"""Any text-to-image pipeline of diffusers, by folder or hub id: ``--model diffusers:ID_OR_DIR``."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, create_model

from chexgenbench import Context, Location, ModelSpec, UserError, hookimpl
from chexgenbench_plugins.pipelines import REQUIRES, LoadParameters, PipelineModel
from chexgenbench_plugins.pipelines.folder import PipelineFolder, pipeline_class, read_folder
from chexgenbench_plugins.weights import weight_folder

_PLAIN = (bool, int, float, str, type(None))
_OURS = {
    "height",
    "width",
    "num_images_per_prompt",
    "output_type",
    "return_dict",
    "callback_steps",
}
"""Plain arguments that the platform decides."""


def _no_text() -> UserError:
    return UserError(
        "The model 'diffusers' needs a folder or a hub id.",
        hint="Write --model diffusers:ID_OR_DIR",
    )


class DiffusersParameters(LoadParameters):
    weights: Annotated[str, Location()] = Field(
        "",
        description="A diffusers folder, or owner/name or owner/name@COMMIT on the hub. Where it "
        "is written as diffusers:ID_OR_DIR, the arguments of that pipeline's call are parameters "
        "too.",
    )


class AnyPipeline(PipelineModel):
    """A pipeline called with the arguments that its class has."""

    name = "diffusers"

    @classmethod
    def folder(cls, parameters: LoadParameters, context: Context) -> PipelineFolder:
        if not parameters.weights:
            raise _no_text()
        return super().folder(parameters, context)


def expand(text: str | None, home: Path) -> ModelSpec:
    """The descriptor with a parameter for each plain argument of the pipeline's call.

    Raises:
        UserError: there is no text, no pipeline at its place, or one that needs more than a prompt.
    """
    if not text:
        raise _no_text()
    folder = read_folder(
        weight_folder(text, revision=None, home=home, what="diffusers", kind="models"), "diffusers"
    )
    call = inspect.signature(pipeline_class(folder.name).__call__).parameters
    fault = _no_text_to_image(folder.name, call)
    if fault:
        raise UserError(
            f"The pipeline in {folder.path}, a {folder.name}, makes no image from a prompt "
            f"alone: {fault}."
        )
    fields: dict[str, Any] = {}
    for name, argument in call.items():
        if name in _OURS or name.startswith(("prompt", "negative_prompt_")):
            continue
        kinds = _plain_types(argument)
        if kinds:
            least = {"ge": 1, "le": 1000} if name == "num_inference_steps" else {}
            fields[name] = (
                typing.Union[kinds],  # noqa: UP007
                Field(argument.default, description=f"Argument of {folder.name}.", **least),
            )
    return dataclasses.replace(
        SPEC,
        summary=f"The {folder.name} in {text}",
        parameters=create_model("PipelineArguments", __base__=DiffusersParameters, **fields),
    )


def _no_text_to_image(name: str, call: typing.Mapping[str, inspect.Parameter]) -> str | None:
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    needed = [
        each
        for each, argument in call.items()
        if argument.default is argument.empty
        and argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL)
        and each not in ("self", "prompt")
    ]
    if needed:
        return f"it needs {', '.join(needed)}"
    missing = [each for each in ("prompt", "generator", "output_type") if each not in call]
    if missing:
        return f"its call has no {', '.join(missing)}"
    if name not in {each.__name__ for each in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}:
        others = {
            "image",
            "mask_image",
            "control_image",
            "video",
            "num_frames",
            "audio_length_in_s",
        }
        other = sorted(others & set(call))
        return f"it takes or makes {', '.join(other)}" if other else None
    return None


def _plain_types(argument: inspect.Parameter) -> tuple[Any, ...]:
    """The plain types that an argument takes; none where its default is not plain."""
    if argument.default is argument.empty or not isinstance(argument.default, _PLAIN):
        return ()
    named = argument.annotation
    members = (
        typing.get_args(named)
        if typing.get_origin(named) in (typing.Union, types.UnionType)
        else (named,)
    )
    kinds = [each for each in members if each in _PLAIN and each is not type(None)]
    if kinds and argument.default is None:
        kinds.append(type(None))
    return tuple(kinds)


SPEC = ModelSpec(
    name="diffusers",
    summary="Any text-to-image pipeline of diffusers: diffusers:ID_OR_DIR",
    load="chexgenbench_plugins.models.diffusers:AnyPipeline",
    parameters=DiffusersParameters,
    argument="weights",
    expand="chexgenbench_plugins.models.diffusers:expand",
    references=("https://github.com/huggingface/diffusers",),
    requires=REQUIRES,
    licence="that of the weights",
)


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield SPEC
