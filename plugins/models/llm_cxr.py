"""LLM-CXR: a language model that answers a report with the codes of a radiograph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from chexgenbench import (
    Context,
    Location,
    Made,
    Model,
    ModelSpec,
    Parameters,
    Request,
    UserError,
    hookimpl,
)
from chexgenbench_plugins.llm_cxr.files import (
    language_files,
    language_model,
    read_settings,
    vqgan_file,
)
from chexgenbench_plugins.llm_cxr.prompt import Prompts
from chexgenbench_plugins.llm_cxr.sampling import draw_codes
from chexgenbench_plugins.llm_cxr.vqgan import VqGan
from chexgenbench_plugins.weights import weight_folder

# Names of the files that hold wherever they lie.
_LANGUAGE, _VQGAN = "language_model/", "vqgan/checkpoint"


class LlmCxrParameters(Parameters):
    weights: Annotated[str, Location()] = Field(
        description="Folder of the language model (config.json, tokenizer.json, weights), or "
        "owner/name or owner/name@COMMIT on the hub."
    )
    revision: Annotated[str | None, Location()] = Field(
        None, description="The hub commit; ignored for a folder."
    )
    vqgan: Annotated[str | None, Location()] = Field(
        None,
        description="Checkpoint of the VQ-GAN (.safetensors or .ckpt), or a folder that holds one; "
        "by default the folder `vqgan` in the folder of the language model.",
    )
    instruction: str = Field(
        "Generate a chest X-ray image that corresponds to the entered free-text radiology reports "
        "for the chest X-ray image.",
        min_length=1,
        description="Stands before the report: the first of the ten that the published code "
        "draws from.",
    )
    temperature: float = Field(1.0, gt=0, le=10, description="Divides the scores of the codes.")
    top_p: float = Field(
        0.92, gt=0, le=1, description="The likeliest codes of that mass can be drawn."
    )
    top_k: int = Field(0, ge=0, description="At most so many codes can be drawn; 0: no limit.")
    size: int | None = Field(
        None,
        ge=16,
        le=4096,
        description="Width and height in pixels. The model makes 256; anything else is resampled "
        "from that (bicubic, antialiased) and shows no more detail.",
    )
    # What it comes to is in the context, and counts there.
    dtype: Annotated[Literal["auto", "float32", "float16", "bfloat16"], Location()] = Field(
        "auto", description="Precision of the language model; the VQ-GAN is float32."
    )


class LlmCxr(Model):
    """GPT-NeoX with 256 tokens of image, decoded one image at a time."""

    parameters: LlmCxrParameters

    @classmethod
    def weights(cls, parameters: LlmCxrParameters, context: Context) -> Mapping[str, Path]:
        folder = weight_folder(
            parameters.weights, revision=parameters.revision, home=context.home, what="llm-cxr"
        )
        place = Path(parameters.vqgan).expanduser() if parameters.vqgan else folder / "vqgan"
        read_settings(folder)
        settings = folder / "config.json", folder / "tokenizer.json"
        files = [*settings, *language_files(folder)]
        return {f"{_LANGUAGE}{path.name}": path for path in files} | {
            _VQGAN: vqgan_file(context.home / place)
        }

    @classmethod
    def check(
        cls, parameters: LlmCxrParameters, context: Context, requests: Sequence[Request]
    ) -> Sequence[str]:
        prompts, vqgan, _ = cls.open(parameters, context)
        empty = [request.prompt_id for request in requests if not request.prompt.strip()]
        if empty:
            raise UserError(
                f"{len(empty)} prompts are empty: {', '.join(empty[:5])}.",
                hint="Give them a text, or leave these rows out.",
            )
        remarks = []
        texts = {request.prompt for request in requests}
        cut = sum(prompts.encode(text)[1] for text in texts)
        if cut:
            remarks.append(
                f"{cut} of {len(texts)} prompts are longer than the {prompts.longest} tokens that "
                "'llm-cxr' reads, its instruction included; the rest is not seen."
            )
        sizes = {request.size or parameters.size or vqgan.size for request in requests}
        if sizes - {vqgan.size}:
            remarks.append(
                f"'llm-cxr' makes images of {vqgan.size} pixels; they are resampled to "
                f"{', '.join(map(str, sorted(sizes)))}."
            )
        return remarks

    @classmethod
    def open(
        cls, parameters: LlmCxrParameters, context: Context
    ) -> tuple[Prompts, VqGan, Mapping[str, Path]]:
        """Tokenizer, VQ-GAN and the language model's files, found to belong together."""
        found = cls.weights(parameters, context)
        files = {
            name.removeprefix(_LANGUAGE): path
            for name, path in found.items()
            if name.startswith(_LANGUAGE)
        }
        config = read_settings(files["config.json"].parent)
        prompts = Prompts(
            files["tokenizer.json"],
            instruction=parameters.instruction,
            positions=config["max_position_embeddings"],
        )
        vqgan = VqGan(found[_VQGAN], allow_pickle=context.allow_pickle)
        if config["vocab_size"] != prompts.first + vqgan.codes:
            raise UserError(
                f"The weights of 'llm-cxr' do not belong together: the language model knows "
                f"{config['vocab_size']} tokens, and its tokenizer has {prompts.first}, the VQ-GAN "
                f"{vqgan.codes} codes.",
                hint="The vocabulary is the tokenizer's followed by the codes; take all parts from "
                "one publication.",
            )
        return prompts, vqgan, files

    def __init__(self, parameters: LlmCxrParameters, context: Context) -> None:
        super().__init__(parameters, context)
        self.prompts, vqgan, files = self.open(parameters, context)
        self.vqgan = vqgan.to(context.device)
        self.language = language_model(files, context)

    def generate(self, requests: Sequence[Request]) -> Iterator[Made]:
        prompts, cuts = zip(*(self.prompts.encode(each.prompt) for each in requests), strict=True)
        codes = draw_codes(
            self.language,
            prompts,
            [request.seed for request in requests],
            first=self.prompts.first,
            temperature=self.parameters.temperature,
            top_k=self.parameters.top_k,
            top_p=self.parameters.top_p,
        )
        for request, cut, row in zip(requests, cuts, codes, strict=True):
            # One by one: the same codes are the same pixels in any batch.
            size = request.size or self.parameters.size or self.vqgan.size
            image = self.vqgan.decode(row, size).numpy()
            yield Made(image=image, flags=("truncated",) if cut else ())


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="llm-cxr",
        summary="LLM-CXR: a language model that speaks in VQ-GAN codes, 256 x 256",
        load="chexgenbench_plugins.models.llm_cxr:LlmCxr",
        parameters=LlmCxrParameters,
        argument="weights",
        image_size=256,
        gpu_dtype="bfloat16",
        environment="llm-cxr",
        requires=("diffusers", "tokenizers", "transformers"),
        licence="Apache-2.0 (code); not stated for the weights, which saw MIMIC-CXR",
        references=(
            "https://arxiv.org/abs/2305.11490",
            "https://github.com/hyn2028/llm-cxr",
            "https://arxiv.org/abs/2012.09841",
        ),
    )
