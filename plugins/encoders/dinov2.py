"""DINOv2 ViT-B/14: the general-purpose features that dgm-eval and FLD prefer to Inception's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from chexgenbench import Context, EncoderSpec, hookimpl
from chexgenbench.types import Download, RemoteFile
from chexgenbench_plugins.weights import PublishedEncoder, PublishedParameters

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray
    from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer

RESIZED, SIZE = 256, 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet; all from the weights' preprocessor_config.json."""

DOWNLOAD = Download(
    source="facebook/dinov2-base",
    revision="f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    files=(
        RemoteFile(
            name="model.safetensors",
            size=346_345_912,
            sha256="d73036b56966966d07975d696bde331762f37297e2f095de8cea0040c3aa0841",
        ),
        RemoteFile(name="config.json", size=548),
    ),
)


class DinoV2(PublishedEncoder):
    """The class token after the last norm (transformers' pooler output), 768 numbers."""

    parameters: PublishedParameters
    name, download = "dinov2", DOWNLOAD

    def __init__(self, parameters: PublishedParameters, context: Context) -> None:
        super().__init__(parameters, context)
        import torch
        from transformers import Dinov2Model
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.network = Dinov2Model.from_pretrained(
            self.weights(parameters, context)[0].parent,
            dtype=getattr(torch, context.dtype),
            use_safetensors=True,
            local_files_only=True,
        )
        self.network.eval().requires_grad_(False).to(context.device)
        last = self.network.encoder.layer[-1]
        if hasattr(last.attention, "k_proj"):  # transformers 5; before, the layer stays whole
            last.forward = class_token_of(last)

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        import numpy as np
        import torch
        from PIL import Image

        # The longer side is cut to whole pixels and odd margins go right and down, as in
        # transformers' processor.
        width, height = (side * RESIZED // min(image.size) for side in image.size)
        image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - SIZE) // 2, (height - SIZE) // 2
        image = image.crop((left, top, left + SIZE, top + SIZE))
        pixels = (np.array(image, np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        output = self.network(batch.to(self.context.device, self.network.dtype))
        return {"features": output.pooler_output.float().cpu().numpy()}


def class_token_of(layer: Dinov2Layer) -> Callable[..., torch.Tensor]:
    """The layer's `forward` for tokens [n, t, d] that gives the class token alone, [n, 1, d].

    Nothing else of the last layer is asked for: the other tokens need keys and values there, and no
    query, projection or MLP, nine tenths of a layer's products.
    """
    from torch.nn.functional import scaled_dot_product_attention

    attention = layer.attention

    def forward(tokens: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        normed, token = layer.norm1(tokens), tokens[:, :1]
        query, key, value = (
            project(part).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project, part in (
                (attention.q_proj, normed[:, :1]),
                (attention.k_proj, normed),
                (attention.v_proj, normed),
            )
        )
        seen = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        token = token + layer.layer_scale1(attention.o_proj(seen))
        return token + layer.layer_scale2(layer.mlp(layer.norm2(token)))

    return forward


@hookimpl
def chexgenbench_encoders() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        name="dinov2",
        summary="DINOv2 ViT-B/14, trained on natural images (class token)",
        load="chexgenbench_plugins.encoders.dinov2:DinoV2",
        parameters=PublishedParameters,
        outputs={"features": 768},
        preprocessing="RGB, shorter side 256 by antialiased bicubic, centre crop 224 x 224, "
        "x / 255 less ImageNet mean, over ImageNet deviation",
        downloads=(DOWNLOAD,),
        requires=("transformers",),
        licence="Apache-2.0",
        references=(
            "https://arxiv.org/abs/2304.07193",
            "https://huggingface.co/facebook/dinov2-base",
        ),
    )
