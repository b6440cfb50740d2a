"""RadEdit: a denoiser for chest radiographs, put together with two published parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from chexgenbench import Context, Location, ModelSpec, UserError, hookimpl
from chexgenbench.files import read_json
from chexgenbench.types import Download
from chexgenbench_plugins.pipelines import REQUIRES, PipelineModel, PipelineParameters
from chexgenbench_plugins.pipelines.folder import has_variant, network_files, require_variant
from chexgenbench_plugins.weights import fill, read_state, staged, weight_folder

_NETWORK = ("config.json", "diffusion_pytorch_model.safetensors")
UNET = Download(
    source="microsoft/radedit", patterns=tuple(f"unet/{name}" for name in _NETWORK), gated=True
)
VAE = Download(
    source="stabilityai/sdxl-vae",
    revision="6f5909a7e596173e25d4e97b07fd19cdf9611c76",
    patterns=_NETWORK,
    size=335_000_000,
)
TEXT = Download(
    source="microsoft/BiomedVLP-BioViL-T",
    revision="692f09e9be1bfe5fdd5f3efdd0e1eca7d2c10b23",
    patterns=("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"),
    size=441_000_000,
)
_STATES = ("model.safetensors", "pytorch_model.bin")
"""BioViL-T's weights; the second is read by torch's restricted loader, which runs no code."""

LENGTH = 128
"""Tokens that it was trained with (the example on the weights' page)."""


class RadEditParameters(PipelineParameters):
    weights: Annotated[str, Location()] = Field(
        UNET.source, description="The denoiser: a folder with unet/, or owner/name on the hub."
    )
    vae: Annotated[str, Location()] = Field(
        VAE.source, description="The autoencoder of SDXL: a folder, or owner/name on the hub."
    )
    text_encoder: Annotated[str, Location()] = Field(
        TEXT.source, description="The text encoder BioViL-T: a folder, or owner/name on the hub."
    )
    steps: int = Field(100, ge=1, le=1000, description="Denoising steps.")


class RadEdit(PipelineModel):
    """StableDiffusionPipeline from parts, with the sampler of the example on the weights' page."""

    parameters: RadEditParameters
    name, class_name, download = "radedit", "StableDiffusionPipeline", UNET

    @classmethod
    def folders(cls, parameters: RadEditParameters, context: Context) -> tuple[Path, Path, Path]:
        """Where the denoiser, the autoencoder and the text encoder lie."""
        found = []
        for part, download in (("weights", UNET), ("vae", VAE), ("text_encoder", TEXT)):
            source = getattr(parameters, part)
            published = download.revision if source == download.source else None
            if part == "weights":
                published = parameters.revision or published
            found.append(
                weight_folder(
                    source,
                    revision=published,
                    home=context.home,
                    what=cls.name,
                    download=download,
                    kind="models",
                )
            )
        unet, vae, text = found
        return (unet / "unet" if (unet / "unet").is_dir() else unet), vae, text

    @classmethod
    def files(cls, parameters: RadEditParameters, context: Context) -> dict[str, Path]:
        from diffusers import AutoencoderKL, UNet2DConditionModel

        unet, vae, text = cls.folders(parameters, context)
        variant = parameters.variant
        found = {
            f"{part}/{path.name}": path
            for part, folder, kind in (
                ("unet", unet, UNet2DConditionModel),
                ("vae", vae, AutoencoderKL),
            )
            for path in network_files(folder, kind, context, variant, cls.name)
        }
        require_variant(found.values(), variant, cls.name)
        states = [text / name for name in _STATES]
        state = next((path for path in states if path.is_file()), states[0])
        needed = [state, *(text / name for name in ("config.json", "vocab.txt"))]
        missing = [path.name for path in needed if not path.is_file()]
        if missing:
            raise UserError(f"The weights of {cls.name!r} in {text} lack {', '.join(missing)}.")
        optional = text / "tokenizer_config.json"
        needed += [optional] if optional.is_file() else []
        return found | {f"text_encoder/{path.name}": path for path in needed}

    @classmethod
    def build(cls, parameters: RadEditParameters, context: Context) -> Any:
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel

        files = cls.files(parameters, context)
        with staged(files) as place, torch.device("meta"):
            return _assemble(
                place,
                *(
                    kind.from_config(kind.load_config(place / part))
                    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
                ),
                _text_network(files),
            )

    def load(self) -> Any:
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel

        files = self.files(self.parameters, self.context)
        options = {
            "dtype": getattr(torch, self.context.dtype),
            "use_safetensors": None if self.context.allow_pickle else True,
            "local_files_only": True,
        }
        text = _text_network(files)
        state = next(
            files[f"text_encoder/{name}"] for name in _STATES if f"text_encoder/{name}" in files
        )
        # What stands before and behind the words' vectors is for pre-training and for alignment.
        unused = ("cls", "bert.pooler.", "bert.embeddings.position_ids")
        fill(text, read_state(state, self.name), self.name, unused)
        with staged(files) as place:
            networks = []
            for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
                variant = self.parameters.variant
                own = [path for name, path in files.items() if name.startswith(f"{part}/")]
                networks.append(
                    kind.from_pretrained(
                        place / part,
                        variant=variant if has_variant(own, variant) else None,
                        **options,
                    )
                )
            return _assemble(place, *networks, text.to(options["dtype"]))


def _text_network(files: Mapping[str, Path]) -> Any:
    """BioViL-T's text encoder, named as in its weights; its repository's code is not needed."""
    import torch
    from transformers import BertConfig, BertModel

    settings = read_json(files["text_encoder/config.json"])
    known = {name: settings[name] for name in BertConfig().to_dict() if name in settings}
    network = torch.nn.Module()
    network.bert = BertModel(BertConfig(**known), add_pooling_layer=False)
    return network.eval()


def _assemble(place: Path, unet: Any, vae: Any, text: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import BertTokenizer

    return StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text.bert,
        tokenizer=BertTokenizer.from_pretrained(
            place / "text_encoder", model_max_length=LENGTH, local_files_only=True
        ),
        # The betas are diffusers' defaults, 0.0001 to 0.02.
        scheduler=DDIMScheduler(
            beta_schedule="linear",
            prediction_type="epsilon",
            timestep_spacing="trailing",
            steps_offset=1,
            clip_sample=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="radedit",
        summary="RadEdit, trained on chest radiographs, with BioViL-T as text encoder",
        load="chexgenbench_plugins.models.radedit:RadEdit",
        parameters=RadEditParameters,
        argument="weights",
        image_size=512,
        # As published; in float16 SDXL's autoencoder overflows.
        gpu_dtype="float32",
        downloads=(UNET, VAE, TEXT),
        references=(
            "https://arxiv.org/abs/2505.10496",
            "https://arxiv.org/abs/2312.12865",
            "https://huggingface.co/microsoft/radedit",
        ),
        requires=REQUIRES,
        licence="that of its page (research only, a disclaimer to accept); MIT for the "
        "autoencoder and the text encoder",
    )
