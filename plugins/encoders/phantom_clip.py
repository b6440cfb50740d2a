"""The demo's own CLIP, trained on pairs of phantom and report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from chexgenbench import (
    FINDINGS,
    Context,
    Encoder,
    EncoderSpec,
    Location,
    Parameters,
    hookimpl,
)
from chexgenbench_plugins.data import data_folder
from chexgenbench_plugins.weights import safe_weight_files, weight_folder

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray


class PhantomClipParameters(Parameters):
    weights: Annotated[str, Location()] = Field(
        default_factory=lambda: str(data_folder("phantom-clip")),
        description="The folder that training/phantom_clip.py wrote.",
    )


class PhantomClip(Encoder):
    """Image and text embeddings of an open_clip model.

    The class probabilities are zero-shot: the softmax over the 14 findings of the scaled cosine
    between the image and the mean of reports that state the finding alone.
    """

    parameters: PhantomClipParameters

    @classmethod
    def folder(cls, parameters: PhantomClipParameters, context: Context) -> Path:
        return weight_folder(
            parameters.weights, revision=None, home=context.home, what="phantom-clip"
        )

    @classmethod
    def weights(cls, parameters: PhantomClipParameters, context: Context) -> Sequence[Path]:
        return safe_weight_files(cls.folder(parameters, context), "phantom-clip")

    def __init__(self, parameters: PhantomClipParameters, context: Context) -> None:
        super().__init__(parameters, context)
        import torch

        from chexgenbench_plugins.phantom.clip import finding_embeddings, load_clip

        self.network, self.tokenize = load_clip(self.folder(parameters, context))
        self.network.eval().requires_grad_(False)
        with torch.inference_mode():
            self.findings = finding_embeddings(self.network, self.tokenize).to(context.device)
            self.scale = self.network.logit_scale.exp().to(context.device)
        self.network.to(context.device)

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        from chexgenbench_plugins.phantom.clip import preprocess

        return preprocess(image)

    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        features = self.network.encode_image(batch.to(self.context.device), normalize=True)
        probabilities = (self.scale * features @ self.findings.T).softmax(1)
        return {
            "features": features.cpu().numpy(),
            "probabilities": probabilities.cpu().numpy(),
        }

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return self._text(texts).cpu().numpy()

    def _text(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenize(list(texts)).to(self.context.device)
        return self.network.encode_text(tokens, normalize=True)


@hookimpl
def chexgenbench_encoders() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        name="phantom-clip",
        summary="A small CLIP trained on phantom pairs: the demo's eyes",
        load="chexgenbench_plugins.encoders.phantom_clip:PhantomClip",
        parameters=PhantomClipParameters,
        outputs={"features": 64, "probabilities": len(FINDINGS)},
        text=True,
        version="2",
        preprocessing="grey, 128 x 128 squashed by antialiased bicubic, unit-length output",
        requires=("open_clip",),
        licence="Apache-2.0",
        references=("docs/phantom.md",),
    )
