"""Inception-v3 as FID, KID and the Inception Score define it: torch-fidelity's network, weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from chexgenbench import (
    Context,
    Encoder,
    EncoderSpec,
    Location,
    Parameters,
    UserError,
    hookimpl,
)
from chexgenbench.types import Download, RemoteFile
from chexgenbench_plugins.weights import fill, read_state

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

FILE = "weights-inception-2015-12-05-6726825d.pth"
DOWNLOAD = Download(
    source=f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}",
    files=(
        RemoteFile(
            name=FILE,
            size=95_628_359,
            sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        ),
    ),
)


class InceptionParameters(Parameters):
    weights: Annotated[str | None, Location()] = Field(
        None, description=f"A state dict (.pth or .safetensors); by default {FILE} in the cache."
    )
    squash: int | None = Field(
        None,
        ge=1,
        description="First squash the image to this width and height by antialiased bilinear with "
        "8-bit results, as the published code did at 299.",
    )


class InceptionV3(Encoder):
    """Pool features (2048) and class probabilities (1008) of the 2015 TensorFlow network."""

    parameters: InceptionParameters

    @classmethod
    def weights(cls, parameters: InceptionParameters, context: Context) -> Sequence[Path]:
        path = context.cache / "weights" / FILE
        if parameters.weights:
            path = context.home / Path(parameters.weights).expanduser()
        if not path.is_file():
            raise UserError(
                f"The weights of 'inception-v3' (96 MB) are missing: {path}.",
                hint="Fetch them: chexgenbench encoders fetch inception-v3"
                if parameters.weights is None
                else "Name a state dict, or leave `weights` out for the published ones.",
            )
        return [path]

    def __init__(self, parameters: InceptionParameters, context: Context) -> None:
        super().__init__(parameters, context)
        path = self.weights(parameters, context)[0]
        self.network = _network()
        fill(self.network, read_state(path, "inception-v3"), "inception-v3")
        self.network.eval().requires_grad_(False).to(context.device)

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        import numpy as np
        import torch
        from PIL import Image
        from torch_fidelity.interpolate_compat_tensorflow import (
            interpolate_bilinear_2d_like_tensorflow1x,
        )

        if image.mode != "L":  # one channel is resized as three of its kind would be
            image = image.convert("RGB")
        if squash := self.parameters.squash:
            image = image.resize((squash, squash), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.atleast_3d(_levels(image))).permute(2, 0, 1)
        resized = interpolate_bilinear_2d_like_tensorflow1x(
            pixels[None], size=(299, 299), align_corners=False
        )
        return ((resized[0] - 128) / 128).expand(3, 299, 299)

    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        features = self.network.trunk(batch.to(self.context.device))
        # The score is defined on logits without the last layer's bias.
        probabilities = features.mm(self.network.fc.weight.T).softmax(1)
        return {
            "features": features.cpu().numpy(),
            "probabilities": probabilities.cpu().numpy(),
        }


def _levels(image: PIL.Image.Image) -> NDArray[np.float32]:
    """[h, w] or [h, w, 3].

    Pillow's own copy of a large image holds the interpreter's lock for milliseconds, in which the
    network, at work in another thread, stands still; grey rows that lie in one piece need none.
    """
    import numpy as np
    import PIL
    import pyarrow as pa

    # Before 13 a view of an array ended the process, and padded rows were not noticed.
    if image.mode == "L" and int(PIL.__version__.partition(".")[0]) >= 13:
        with suppress(ValueError):  # rows in several pieces, from 16 MB on
            rows = pa.array(image).to_numpy().reshape(image.height, image.width)
            return rows.astype(np.float32)
    return np.array(image, np.float32)


def _network() -> torch.nn.Module:
    """The blocks of torch-fidelity in the order of its network.

    Its own class reads weights as an unrestricted pickle and takes integer images only.
    """
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as blocks

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts: list[tuple[str, torch.nn.Module]] = [
                ("Conv2d_1a_3x3", blocks.BasicConv2d(3, 32, kernel_size=3, stride=2)),
                ("Conv2d_2a_3x3", blocks.BasicConv2d(32, 32, kernel_size=3)),
                ("Conv2d_2b_3x3", blocks.BasicConv2d(32, 64, kernel_size=3, padding=1)),
                ("MaxPool_1", torch.nn.MaxPool2d(kernel_size=3, stride=2)),
                ("Conv2d_3b_1x1", blocks.BasicConv2d(64, 80, kernel_size=1)),
                ("Conv2d_4a_3x3", blocks.BasicConv2d(80, 192, kernel_size=3)),
                ("MaxPool_2", torch.nn.MaxPool2d(kernel_size=3, stride=2)),
                ("Mixed_5b", blocks.InceptionA(192, pool_features=32)),
                ("Mixed_5c", blocks.InceptionA(256, pool_features=64)),
                ("Mixed_5d", blocks.InceptionA(288, pool_features=64)),
                ("Mixed_6a", blocks.InceptionB(288)),
                ("Mixed_6b", blocks.InceptionC(768, channels_7x7=128)),
                ("Mixed_6c", blocks.InceptionC(768, channels_7x7=160)),
                ("Mixed_6d", blocks.InceptionC(768, channels_7x7=160)),
                ("Mixed_6e", blocks.InceptionC(768, channels_7x7=192)),
                ("Mixed_7a", blocks.InceptionD(768)),
                ("Mixed_7b", blocks.InceptionE_1(1280)),
                ("Mixed_7c", blocks.InceptionE_2(2048)),
            ]
            self.names = [name for name, _ in parts]
            for name, part in parts:
                self.add_module(name, part)
            self.fc = torch.nn.Linear(2048, 1008)

        def trunk(self, x: torch.Tensor) -> torch.Tensor:
            for name in self.names:
                x = self.get_submodule(name)(x)
            return torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)

    return Network()


@hookimpl
def chexgenbench_encoders() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        name="inception-v3",
        summary="Inception-v3 pool features and class probabilities, as in torch-fidelity",
        load="chexgenbench_plugins.encoders.inception_v3:InceptionV3",
        parameters=InceptionParameters,
        outputs={"features": 2048, "probabilities": 1008},
        protocols={"legacy": {"squash": 299}},
        preprocessing="RGB, 299 x 299 squashed, TensorFlow 1 bilinear without antialiasing, "
        "(x - 128) / 128",
        downloads=(DOWNLOAD,),
        requires=("torch_fidelity",),
        licence="Apache-2.0",
        references=("https://arxiv.org/abs/1512.00567", DOWNLOAD.source),
    )
