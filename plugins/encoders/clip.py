"""OpenAI's CLIP ViT-L/14 at 336 pixels, which CMMD is defined on; image and text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from chexgenbench import Context, EncoderSpec, hookimpl
from chexgenbench.types import Download, RemoteFile
from chexgenbench_plugins.weights import PublishedEncoder, PublishedParameters, fill, read_state

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

DOWNLOAD = Download(
    source="timm/vit_large_patch14_clip_336.openai",
    revision="81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
    files=(
        RemoteFile(
            name="open_clip_model.safetensors",
            size=1_711_828_444,
            sha256="fbc415c3d0d7b79faed8f5ccfb740c32b7c4f5ffe7283b851f89c6231c01a8e0",
        ),
        RemoteFile(name="open_clip_config.json"),
    ),
)


class Clip(PublishedEncoder):
    """Image and text embeddings of unit length, 768 numbers."""

    parameters: PublishedParameters
    name, download = "clip", DOWNLOAD

    def __init__(self, parameters: PublishedParameters, context: Context) -> None:
        super().__init__(parameters, context)
        import open_clip

        weights, config = self.weights(parameters, context)
        model = json.loads(config.read_text(encoding="utf-8"))["model_cfg"]
        self.size = model["vision_cfg"]["image_size"]
        self.network = open_clip.CLIP(
            model["embed_dim"],
            model["vision_cfg"],
            model["text_cfg"],
            quick_gelu=model.get("quick_gelu", False),
        )
        fill(self.network, read_state(weights, "clip"), "clip")
        self.network.eval().requires_grad_(False).to(context.device)
        self.tokenize = open_clip.SimpleTokenizer(
            context_length=model["text_cfg"]["context_length"]
        )

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        image = F.resize(image, self.size, InterpolationMode.BICUBIC).convert("RGB")
        pixels = F.to_tensor(F.center_crop(image, self.size))
        return F.normalize(pixels, MEAN, DEVIATION)

    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        features = self.network.encode_image(batch.to(self.context.device), normalize=True)
        return {"features": features.cpu().numpy()}

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """What is longer than 77 tokens is cut, as everywhere with CLIP."""
        import torch

        tokens = self.tokenize(list(texts)).to(self.context.device)
        with torch.inference_mode():
            return self.network.encode_text(tokens, normalize=True).cpu().numpy()


@hookimpl
def chexgenbench_encoders() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        name="clip",
        summary="CLIP ViT-L/14 at 336 pixels (OpenAI's weights), image and text",
        load="chexgenbench_plugins.encoders.clip:Clip",
        parameters=PublishedParameters,
        outputs={"features": 768},
        text=True,
        preprocessing="RGB, shorter side 336 by antialiased bicubic, centre crop 336 x 336, "
        "x / 255 less CLIP's mean, over CLIP's deviation; unit-length output",
        downloads=(DOWNLOAD,),
        requires=("open_clip",),
        licence="MIT (weights: OpenAI's release of CLIP)",
        references=(
            "https://arxiv.org/abs/2103.00020",
            "https://arxiv.org/abs/2401.09603",
            "https://huggingface.co/timm/vit_large_patch14_clip_336.openai",
        ),
    )
