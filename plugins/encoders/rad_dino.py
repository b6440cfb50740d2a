"""RAD-DINO: a DINOv2 vision transformer trained on chest radiographs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from chexgenbench import (
    Context,
    Encoder,
    EncoderSpec,
    Location,
    Parameters,
    hookimpl,
)
from chexgenbench_plugins.weights import safe_weight_files, weight_folder

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

SIZE = 518
MEAN, DEVIATION = 0.5307, 0.2583
"""Grey level statistics of the training images, from the weights' preprocessor_config.json."""


class RadDinoParameters(Parameters):
    weights: Annotated[str, Location()] = Field(
        "microsoft/rad-dino", description="A transformers folder, or owner/name on the hub."
    )
    revision: str | None = Field(None, description="The hub commit; ignored for a folder.")


class RadDino(Encoder):
    """The pooler output, 768 numbers."""

    parameters: RadDinoParameters

    @classmethod
    def folder(cls, parameters: RadDinoParameters, context: Context) -> Path:
        return weight_folder(
            parameters.weights, revision=parameters.revision, home=context.home, what="rad-dino"
        )

    @classmethod
    def weights(cls, parameters: RadDinoParameters, context: Context) -> Sequence[Path]:
        return safe_weight_files(cls.folder(parameters, context), "rad-dino")

    def __init__(self, parameters: RadDinoParameters, context: Context) -> None:
        super().__init__(parameters, context)
        import torch
        from transformers import Dinov2Model
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.network = Dinov2Model.from_pretrained(
            self.folder(parameters, context),
            dtype=getattr(torch, context.dtype),
            use_safetensors=True,
            local_files_only=True,
        )
        self.network.eval().requires_grad_(False).to(context.device)

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        import numpy as np
        import torch
        from PIL import Image

        grey = image.convert("L")
        # The longer side is cut to whole pixels, as the published processor does.
        width, height = (side * SIZE // min(grey.size) for side in grey.size)
        grey = grey.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - SIZE) // 2, (height - SIZE) // 2
        grey = grey.crop((left, top, left + SIZE, top + SIZE))
        pixels = (np.array(grey, np.float32) / 255 - MEAN) / DEVIATION
        return torch.from_numpy(pixels).expand(3, SIZE, SIZE)

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
        preprocessing="grey, shorter side 518 by antialiased bicubic, centre crop 518 x 518, "
        f"(x / 255 - {MEAN}) / {DEVIATION}",
        requires=("transformers",),
        licence="MSRLA (research only), see the weights' page",
        references=(
            "https://arxiv.org/abs/2401.10815",
            "https://huggingface.co/microsoft/rad-dino",
        ),
    )
