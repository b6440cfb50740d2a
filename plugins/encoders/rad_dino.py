"""RAD-DINO: a DINOv2 vision transformer trained on chest radiographs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from chexgenbench import Context, Encoder, EncoderSpec, Location, Parameters, hookimpl
from chexgenbench.types import Download, RemoteFile
from chexgenbench_plugins.weights import weight_files

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

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


class RadDinoParameters(Parameters):
    weights: Annotated[str, Location()] = Field(
        DOWNLOAD.source, description="A transformers folder, or owner/name on the hub."
    )
    revision: str | None = Field(
        DOWNLOAD.revision, description="The hub commit; ignored for a folder."
    )
    squash: int | None = Field(
        None,
        ge=1,
        description="First squash the RGB image to this width and height by antialiased bilinear, "
        "as the published code did at 299.",
    )


class RadDino(Encoder):
    """The pooler output, 768 numbers."""

    parameters: RadDinoParameters

    @classmethod
    def weights(cls, parameters: RadDinoParameters, context: Context) -> Sequence[Path]:
        return list(
            weight_files(
                DOWNLOAD,
                source=parameters.weights,
                revision=parameters.revision,
                home=context.home,
                what="rad-dino",
            ).values()
        )

    def __init__(self, parameters: RadDinoParameters, context: Context) -> None:
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

    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        output = self.network(batch.to(self.context.device, self.network.dtype))
        return {"features": output.pooler_output.float().cpu().numpy()}


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
