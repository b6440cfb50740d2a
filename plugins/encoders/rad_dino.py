"""RAD-DINO: a DINOv2 vision transformer trained on chest radiographs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from chexgenbench import EncoderSpec, hookimpl
from chexgenbench.types import Download, RemoteFile
from chexgenbench_plugins.encoders.dinov2 import DinoV2
from chexgenbench_plugins.weights import PublishedParameters

if TYPE_CHECKING:
    import PIL.Image
    import torch

SIZE = 518
MEAN, DEVIATION = 0.5307, 0.2583
"""Grey level statistics of the training images, from the weights' preprocessor_config.json."""

DOWNLOAD = Download(
    source="microsoft/rad-dino",
    revision="110cbc18d5133582e320b43d53bf5c44e410c936",
    files=(
        RemoteFile(
            name="model.safetensors",
            size=346_345_912,
            sha256="dbfb9f54459c38773505de64a6ab7807bdcb392610fe1e697166342e43fb91ae",
        ),
        RemoteFile(
            name="config.json",
            sha256="89daf9751d9576d586dedf9543c1083211611fa3a36908db7a799b3ce7c68ede",
        ),
    ),
)


class RadDinoParameters(PublishedParameters):
    squash: int | None = Field(
        None,
        ge=1,
        description="First squash the RGB image to this width and height by antialiased bilinear, "
        "as the published code did at 299.",
    )


class RadDino(DinoV2):
    """The pooler output, 768 numbers."""

    parameters: RadDinoParameters
    name, download = "rad-dino", DOWNLOAD

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        import numpy as np
        import torch
        from PIL import Image

        squash = self.parameters.squash
        if squash is None:
            image = image.convert("L")
        else:  # in colour: the published code took no mean over the channels
            image = image.convert("RGB").resize((squash, squash), Image.Resampling.BILINEAR)
        # The longer side is cut to whole pixels, as the published processor does.
        width, height = (side * SIZE // min(image.size) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - SIZE) // 2, (height - SIZE) // 2
        image = image.crop((left, top, left + SIZE, top + SIZE))
        pixels = np.atleast_3d((np.array(image, np.float32) / 255 - MEAN) / DEVIATION)
        return torch.from_numpy(pixels).permute(2, 0, 1).expand(3, SIZE, SIZE)


@hookimpl
def chexgenbench_encoders() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        name="rad-dino",
        summary="RAD-DINO, a vision transformer trained on chest radiographs (pooler output)",
        load="chexgenbench_plugins.encoders.rad_dino:RadDino",
        parameters=RadDinoParameters,
        outputs={"features": 768},
        protocols={"legacy": {"squash": 299}},
        preprocessing="grey (RGB where squashed), shorter side 518 by antialiased bicubic, "
        f"centre crop 518 x 518, (x / 255 - {MEAN}) / {DEVIATION}",
        downloads=(DOWNLOAD,),
        requires=("transformers",),
        licence="MSRLA (research only), see the weights' page",
        references=(
            "https://arxiv.org/abs/2401.10815",
            "https://huggingface.co/microsoft/rad-dino",
        ),
    )
