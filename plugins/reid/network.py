"""The Siamese network that says whether two radiographs are of one patient.

Published for NIH ChestX-ray14 by Packhaeuser et al. 2022 (Scientific Reports 12, 14851), "Deep
learning-based patient re-identification is able to exploit the biometric nature of medical chest
X-ray data", and trained on MIMIC-CXR for CheXGenBench (arXiv 2505.10496).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of the network; the defaults are the published one.

    Attributes:
        bottleneck: blocks of three convolutions as in ResNet-50, else of two as in ResNet-18.
        layers: blocks in each of the four stages.
        channels: width of each stage.
        inputs: colours of an image: 3, or 1 for grey.
        features: width of the embedding.
        size: pixels a side of what the network sees.
        first: pixels a side that an image is brought to before that (bicubic), as the published
            code does; 0 for none.
        pooled: the last maps are averaged over the image; else they are taken as they are, because
            a shallow network does not know otherwise where a thing is.
    """

    bottleneck: bool = True
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    inputs: int = 3
    features: int = 128
    size: int = 224
    first: int = 512
    pooled: bool = True


def build(architecture: Architecture) -> torch.nn.Module:
    """The network with random weights, its state named as published.

    ``model.*`` is a ResNet (conv1, bn1, layer1 to layer4, fc) and ``fc_end`` the last layer.
    ``forward`` takes images float32 [n, inputs, size, size] in 0..1 to embeddings [n, features] in
    0..1, and ``pair_scores`` takes embeddings to scores.
    """
    import torch
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    class Siamese(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = ResNet(
                Bottleneck if architecture.bottleneck else BasicBlock,
                architecture.layers,
                num_classes=architecture.features,
                in_chans=architecture.inputs,
                channels=architecture.channels,
            )
            if not architecture.pooled:
                cells = (architecture.size // 32) ** 2
                self.model.global_pool = torch.nn.Flatten()
                self.model.fc = torch.nn.Linear(
                    self.model.num_features * cells, architecture.features
                )
            self.fc_end = torch.nn.Linear(architecture.features, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            embeddings: torch.Tensor = torch.sigmoid(self.model(images))
            return embeddings

    return Siamese()


def pixels(image: PIL.Image.Image, architecture: Architecture) -> torch.Tensor:
    """What the network sees of an image: float32 [inputs, size, size] in 0..1.

    The aspect is not kept: squashed by bicubic to `first` and by bilinear to `size`, both with
    antialiasing, and not normalised, as the published code does.
    """
    import numpy as np
    import torch
    from PIL import Image

    image = image.convert("L" if architecture.inputs == 1 else "RGB")
    for side, filter_ in (
        (architecture.first, Image.Resampling.BICUBIC),
        (architecture.size, Image.Resampling.BILINEAR),
    ):
        if side and image.size != (side, side):
            image = image.resize((side, side), filter_)
    values = np.asarray(image, np.float32) / np.float32(255)
    return torch.from_numpy(values[None] if values.ndim == 2 else values.transpose(2, 0, 1).copy())


def pair_scores(
    first: NDArray[Any], second: NDArray[Any], weight: NDArray[Any], bias: float
) -> NDArray[np.float64]:
    """How sure the network is that row i of both sides is one patient: float64 [n] in 0..1.

    sigmoid(weight . |first - second| + bias), in float64, so that no pair needs a forward pass.

    Args:
        first, second: embeddings [n, features].
        weight, bias: of ``fc_end``.

    >>> import numpy as np
    >>> a, b = np.array([[0.5, 0.0]]), np.array([[0.5, 1.0]])
    >>> pair_scores(a, b, np.array([-3.0, -4.0]), 4.0)
    array([0.5])
    """
    import numpy as np

    logits = np.abs(first.astype(np.float64) - second) @ weight.astype(np.float64) + bias
    scores: NDArray[np.float64] = 1 / (1 + np.exp(-logits))
    return scores
