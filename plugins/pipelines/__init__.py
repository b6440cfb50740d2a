"""Diffusion pipelines as models: weights checked, loaded and called in one place.

A plugin names the pipeline's class and its parameters; see `plugins/models/sana.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from chexgenbench import Context, Location, Model, Parameters, Request, UserError
from chexgenbench.errors import unknown_name
from chexgenbench.types import Download, Image, Made
from chexgenbench_plugins.pipelines.faster import compiled_only, require_compiler, set_attention
from chexgenbench_plugins.pipelines.folder import (
    PipelineFolder,
    build,
    check_whole,
    pipeline_class,
    read_folder,
)
from chexgenbench_plugins.pipelines.lora import check_lora, load_lora, lora_file
from chexgenbench_plugins.pipelines.prompts import ENCODINGS, PromptEncoder, PromptReader
from chexgenbench_plugins.weights import staged, weight_folder

PATTERNS = (
    "model_index.json",
    "scheduler/*",
    "tokenizer*/*",
    *(
        f"{part}/{name}"
        for part in ("text_encoder*", "transformer", "unet", "vae")
        for name in (
            "config.json",
            "model.safetensors*",
            "model-*.safetensors",
            "diffusion_pytorch_model.safetensors*",
            "diffusion_pytorch_model-*.safetensors",
        )
    ),
)
"""What of a hub repository a pipeline loads: no second precision, no checkpoint in one file."""

REQUIRES = ("diffusers", "transformers")
LORA_REQUIRES = (*REQUIRES, "peft")
_CALL_NAMES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
_BINNED = {
    "PixArtSigmaPipeline": (32, 64, 128, 256),
    "SanaPipeline": (16, 32, 64, 128),
}
"""Sizes of the latent image for which these pipelines have a table of resolutions (0.42)."""


class LoadParameters(Parameters):
    """How a pipeline is loaded, and the size of its images."""

    weights: Annotated[str, Location()] = Field(
        description="A diffusers folder, or owner/name or owner/name@COMMIT on the hub."
    )
    revision: Annotated[str | None, Location()] = Field(
        None, description="The hub commit of the weights; ignored for a folder."
    )
    variant: Annotated[str | None, Location()] = Field(
        None,
        pattern="^[a-z0-9]+$",
        description="Which of several stored precisions is read, such as fp16.",
    )
    lora: Annotated[str | None, Location()] = Field(
        None,
        description="A LoRA: a .safetensors file, a folder that holds it, or owner/name or "
        "owner/name@COMMIT on the hub.",
    )
    lora_scale: float = Field(1.0, ge=-10, le=10, description="Strength of the LoRA.")
    scheduler: str | None = Field(
        None,
        description="The sampler: a scheduler class of diffusers that can stand for the "
        "pipeline's own.",
    )
    compile: bool = Field(
        False,
        description="Compiles the denoising network: a minute for each batch size, and faster "
        "afterwards. Needs a C++ compiler, and on a GPU Triton.",
    )
    attention: str | None = Field(
        None,
        pattern="^[a-z0-9_]+$",
        description="How attention is computed: a backend of diffusers, such as flash or "
        "_native_cudnn; by default what PyTorch chooses.",
    )
    # What it comes to is in the context, and counts there.
    dtype: Annotated[Literal["auto", "float32", "float16", "bfloat16"], Location()] = Field(
        "auto", description="Precision; auto is what --dtype says."
    )
    # Where the weights wait for their turn changes no image.
    offload: Annotated[Literal["none", "model", "sequential"], Location()] = Field(
        "none",
        description="On a GPU with little memory, keeps weights in main memory until they are "
        "used: a whole network at a time (model), or a layer at a time (sequential, slow).",
    )
    size: int | None = Field(
        None, ge=8, le=4096, description="Width and height in pixels; by default the pipeline's."
    )

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        if self.lora is None:
            del found["lora_scale"]
        # Only what differs from the eager network counts, so that images made before stand.
        for name in ("compile", "attention"):
            if not found[name]:
                del found[name]
        return found


class PipelineParameters(LoadParameters):
    """With the arguments that nearly every pipeline takes."""

    steps: int = Field(50, ge=1, le=1000, description="Denoising steps.")
    guidance: float = Field(
        7.5, ge=0, le=100, description="Classifier-free guidance scale; off at 1 and below."
    )
    negative_prompt: str = Field("", description="What the image should not show.")


class PipelineModel(Model):
    """A text-to-image pipeline of diffusers.

    Attributes:
        name: the plugin, for messages.
        class_name: the pipeline's class in diffusers; None is any.
        lora_name: the name under which its LoRA is published.
        download: where the default weights come from.
        lora_download: where the default LoRA comes from.
    """

    name: ClassVar[str]
    class_name: ClassVar[str | None] = None
    lora_name: ClassVar[str | None] = None
    download: ClassVar[Download | None] = None
    lora_download: ClassVar[Download | None] = None
    parameters: LoadParameters

    # --- before anything is loaded

    @classmethod
    def folder(cls, parameters: LoadParameters, context: Context) -> PipelineFolder:
        """The pipeline that `parameters` name, of the right class.

        Raises:
            UserError: it is not there, no pipeline, or one of another class.
        """
        default = cls.download
        same = default is not None and parameters.weights == default.source
        path = weight_folder(
            parameters.weights,
            revision=parameters.revision or (default.revision if default and same else None),
            home=context.home,
            what=cls.name,
            download=default,
            kind="models",
        )
        found = read_folder(path, cls.name)
        if cls.class_name not in (None, found.name):
            raise UserError(
                f"The model {cls.name!r} needs a {cls.class_name}, and {path} holds a "
                f"{found.name}.",
                hint="Any text-to-image pipeline runs as --model diffusers:ID_OR_DIR",
            )
        return found

    @classmethod
    def files(cls, parameters: Any, context: Context) -> dict[str, Path]:
        """The files of the pipeline that decide the images, LoRA aside."""
        folder = cls.folder(parameters, context)
        return folder.files(context, parameters.variant, cls.name)

    @classmethod
    def lora(cls, parameters: LoadParameters, context: Context) -> Path | None:
        """The file of the LoRA, if there is to be one."""
        if parameters.lora is None:
            return None
        return lora_file(parameters.lora, cls.lora_name, context, cls.name, cls.lora_download)

    @classmethod
    def weights(cls, parameters: Any, context: Context) -> Mapping[str, Path]:
        files = cls.files(parameters, context)
        lora = cls.lora(parameters, context)
        found = files if lora is None else {**files, "lora": lora}
        check_whole(found.values(), cls.name)
        return found

    @classmethod
    def build(cls, parameters: Any, context: Context) -> Any:
        """The pipeline with networks that have shapes and no numbers."""
        with staged(cls.files(parameters, context)) as place:
            return build(cls.folder(parameters, context), place, cls.name)

    @classmethod
    def arguments(cls, parameters: Parameters) -> dict[str, Any]:
        """What the pipeline's call is given beside prompts and size."""
        own = type(parameters).model_fields
        return {
            _CALL_NAMES.get(name, name): getattr(parameters, name)
            for name, info in own.items()
            if name not in LoadParameters.model_fields
            and not any(isinstance(mark, Location) for mark in info.metadata)
        }

    @classmethod
    def check(cls, parameters: Any, context: Context, requests: Sequence[Request]) -> list[str]:
        empty = [request.prompt_id for request in requests if not request.prompt.strip()]
        if empty:
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            raise UserError(
                f"The model {cls.name!r} needs a prompt, and these rows have an empty one: "
                f"{', '.join(empty[:5])}{more}."
            )
        _quiet()
        pipeline = cls.build(parameters, context)
        arguments = cls.arguments(parameters)
        for size in {request.size or parameters.size for request in requests}:
            _check_size(pipeline, size, arguments, cls.name)
        if parameters.scheduler is not None:
            _set_scheduler(pipeline, parameters.scheduler, cls.name)
        if arguments.get("clean_caption"):
            _require_cleaning(cls.name)
        if parameters.attention is not None:
            set_attention(_denoiser(pipeline), parameters.attention, cls.name)
        if parameters.compile:
            require_compiler(parameters.offload, context.device, cls.name)
        remarks = PromptReader(pipeline, arguments).remarks(
            list(dict.fromkeys(request.prompt for request in requests))
        )
        lora = cls.lora(parameters, context)
        if lora is not None:
            remarks += check_lora(pipeline, lora, cls.name)
        if parameters.offload != "none" and context.device.startswith("cpu"):
            remarks.append(f"offload={parameters.offload} has no effect without a GPU.")
        return remarks

    # --- with weights

    def __init__(self, parameters: Any, context: Context) -> None:
        super().__init__(parameters, context)
        _quiet()
        self.pipeline = self.load()
        self.pipeline.set_progress_bar_config(disable=True)
        if parameters.scheduler is not None:
            _set_scheduler(self.pipeline, parameters.scheduler, self.name)
        lora = self.lora(parameters, context)
        if lora is not None:
            load_lora(self.pipeline, lora, parameters.lora_scale, self.name)
        offload = "none" if context.device.startswith("cpu") else parameters.offload
        if offload == "model":
            self.pipeline.enable_model_cpu_offload(device=context.device)
        elif offload == "sequential":
            self.pipeline.enable_sequential_cpu_offload(device=context.device)
        else:
            self.pipeline.to(context.device)
        if parameters.attention is not None:
            set_attention(_denoiser(self.pipeline), parameters.attention, self.name)
        if parameters.compile:
            # Each shape by itself: a kernel for any shape would come with the second one, so that
            # an image would depend on which batches had gone before.
            _denoiser(self.pipeline).compile(dynamic=False)
        self.call = self.arguments(parameters)
        self.reader = PromptReader(self.pipeline, self.call)
        known = type(self.pipeline).__name__ in ENCODINGS
        self.encoder = PromptEncoder(self.pipeline, self.call) if known else None

    def load(self) -> Any:
        """The pipeline with its weights in main memory."""
        import inspect

        import torch

        folder = self.folder(self.parameters, self.context)
        found = pipeline_class(folder.name)
        options = dict.fromkeys(folder.left_out) | {
            name: False
            # A mark in the images would depend on which packages are installed.
            for name in ("requires_safety_checker", "add_watermarker")
            if name in inspect.signature(found).parameters
        }
        with staged(self.files(self.parameters, self.context)) as place:
            return found.from_pretrained(
                place,
                dtype=getattr(torch, self.context.dtype),
                variant=self.parameters.variant,
                use_safetensors=None if self.context.allow_pickle else True,
                local_files_only=True,
                **options,
            )

    def generate(self, requests: Sequence[Request]) -> Iterator[Image | Made]:
        import torch

        size = requests[0].size or self.parameters.size
        _check_size(self.pipeline, size, self.call, self.name)
        size = size or native_size(self.pipeline)
        prompts = [request.prompt for request in requests]
        call = dict(self.call)
        # Layers that come and go cannot be tensors of inference mode.
        still = torch.no_grad if self.parameters.offload == "sequential" else torch.inference_mode
        with still(), compiled_only() if self.parameters.compile else nullcontext():
            if self.encoder is not None:
                call |= self.encoder.arguments(prompts)
            else:
                call["prompt"] = prompts
                if isinstance(call.get("negative_prompt"), str):
                    call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
            try:
                # Noise comes from the CPU's generator, so that it is the same on every device.
                result = self.pipeline(
                    **call,
                    **({"height": size, "width": size} if size else {}),
                    generator=[torch.Generator("cpu").manual_seed(r.seed) for r in requests],
                    output_type="np",
                )
            except UnboundLocalError as error:
                # Sana turns the decoder's lack of memory into a warning and goes on without image.
                raise torch.OutOfMemoryError(
                    f"{self.name}: the decoder ran out of memory"
                ) from error
        blank = getattr(result, "nsfw_content_detected", None) or [False] * len(prompts)
        cut = self.reader.truncated(prompts)
        for image, *found in zip(result.images, cut, blank, strict=True):
            names = ("truncated", "safety_blank")
            yield Made(image=image, flags=tuple(n for n, f in zip(names, found, strict=True) if f))


def _quiet() -> None:
    """Faults are raised, counted or checked here; the libraries' own lines would only interrupt."""
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    for each in (logging, transformers_logging):
        each.set_verbosity_error()
        each.disable_progress_bar()


def _denoiser(pipeline: Any) -> Any:
    return getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)


def native_size(pipeline: Any) -> int | None:
    """The trained size where the pipeline's own default is another one.

    Sana's call says 1024, which a model of 512 would make at 512 and enlarge.
    """
    if type(pipeline).__name__ != "SanaPipeline":
        return None
    size: int = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    return size


def _check_size(pipeline: Any, size: int | None, arguments: Mapping[str, Any], what: str) -> None:
    """Raises `UserError` where the pipeline cannot make images of that size."""
    config = getattr(_denoiser(pipeline), "config", {})
    if size is not None:
        scale = getattr(pipeline, "vae_scale_factor", 1)
        images = getattr(getattr(pipeline, "image_processor", None), "config", {})
        multiple = math.lcm(
            32 if type(pipeline).__name__ == "SanaPipeline" else 8,
            int(images.get("vae_scale_factor", 1)),
            int(scale * _single(config.get("patch_size"))),
        )
        if size % multiple:
            raise UserError(
                f"The model {what!r} makes images whose width is a multiple of {multiple}, "
                f"not {size}.",
                hint=f"Take {max(multiple, round(size / multiple) * multiple)}.",
            )
        positions = config.get("pos_embed_max_size")
        largest = positions * scale * _single(config.get("patch_size")) if positions else size
        if size > largest:
            raise UserError(f"The model {what!r} makes images up to {largest} pixels, not {size}.")
    binned = _BINNED.get(type(pipeline).__name__)
    sample = config.get("sample_size")
    if binned and arguments.get("use_resolution_binning") and sample not in binned:
        raise UserError(
            f"The model {what!r} was trained for latent images of {sample}, for which the pipeline "
            "has no table of resolutions.",
            hint=f"Switch it off: --set {what}.use_resolution_binning=false",
        )


def _single(patch: Any) -> int:
    return patch if isinstance(patch, int) and patch > 0 else 1


def _set_scheduler(pipeline: Any, name: str, what: str) -> None:
    """Raises `UserError` where the pipeline's own scheduler cannot be replaced by that one."""
    known = {each.__name__: each for each in pipeline.scheduler.compatibles}
    if name not in known:
        raise unknown_name(f"scheduler of model {what!r}", name, known)
    try:
        pipeline.scheduler = known[name].from_config(pipeline.scheduler.config)
    # A package that it needs, or settings that it does not take.
    except Exception as error:
        raise UserError(
            f"The scheduler {name} of model {what!r} cannot be made: {error}"
        ) from error


def _require_cleaning(what: str) -> None:
    from diffusers.utils import is_bs4_available, is_ftfy_available

    if not (is_bs4_available() and is_ftfy_available()):
        raise UserError(
            f"clean_caption of model {what!r} needs the packages beautifulsoup4 and ftfy; without "
            "them diffusers would leave the prompts as they are.",
            hint=f"pip install beautifulsoup4 ftfy, or --set {what}.clean_caption=false",
        )
