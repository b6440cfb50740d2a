"""TorchXRayVision's DenseNet-121, trained to name findings on seven chest radiograph datasets."""

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
    UserError,
    hookimpl,
)
from chexgenbench_plugins.weights import fill, read_state

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

SIZE = 224
FILE = "densenet121-res224-all.safetensors"
CONVERSION = (
    'pip install torchxrayvision safetensors && python -c "import torchxrayvision as x; '
    "from safetensors.torch import save_file; "
    "save_file(x.models.DenseNet(weights='densenet121-res224-all').state_dict(), "
    f"'{FILE}')\""
)


class TorchXRayVisionParameters(Parameters):
    weights: Annotated[str | None, Location()] = Field(
        None, description=f"A state dict (.safetensors or .pth); by default {FILE} in the cache."
    )


class TorchXRayVision(Encoder):
    """The pooled features before the classifier, 1024 numbers."""

    parameters: TorchXRayVisionParameters

    @classmethod
    def weights(cls, parameters: TorchXRayVisionParameters, context: Context) -> Sequence[Path]:
        path = context.cache / "weights" / FILE
        if parameters.weights:
            path = context.home / Path(parameters.weights).expanduser()
        if not path.is_file():
            raise UserError(
                f"The weights of 'torchxrayvision' (28 MB) are missing: {path}. They are published "
                "as a pickle of a whole module, which can run code when it is loaded, so it is "
                "not loaded here.",
                hint="Convert them once on a machine that you can lose, and copy the result there: "
                f"{CONVERSION}",
            )
        return [path]

    def __init__(self, parameters: TorchXRayVisionParameters, context: Context) -> None:
        super().__init__(parameters, context)
        import torch
        from torchvision.models import densenet121

        self.network = densenet121(weights=None)
        self.network.features.conv0 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        self.network.classifier = torch.nn.Identity()
        path = self.weights(parameters, context)[0]
        state = read_state(path, "torchxrayvision")
        fill(self.network, state, "torchxrayvision", ("classifier.", "op_threshs"))
        self.network.eval().requires_grad_(False).to(context.device)

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        import numpy as np
        import torch
        from scipy import ndimage

        levels = (2 * (np.array(image.convert("L"), np.float32) / 255) - 1) * 1024
        side = min(levels.shape)
        top, left = (length // 2 - side // 2 for length in levels.shape)
        square = levels[top : top + side, left : left + side]
        # What the package's resizer asks of scikit-image: a Gaussian, then linear, and grey
        # (zero) beyond the edge.
        beyond = {"mode": "grid-constant", "cval": 0.0}
        sigma = max(0.0, (side / SIZE - 1) / 2)
        smooth = ndimage.gaussian_filter(square, sigma, **beyond) if sigma else square
        resized = ndimage.zoom(smooth, SIZE / side, order=1, grid_mode=True, **beyond)
        return torch.from_numpy(resized.clip(square.min(), square.max()))[None]

    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        return {"features": self.network(batch.to(self.context.device)).cpu().numpy()}


@hookimpl
def chexgenbench_encoders() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        name="torchxrayvision",
        summary="TorchXRayVision DenseNet-121 features (densenet121-res224-all)",
        load="chexgenbench_plugins.encoders.torchxrayvision:TorchXRayVision",
        parameters=TorchXRayVisionParameters,
        outputs={"features": 1024},
        preprocessing="grey, -1024..1024, central square, 224 x 224 by linear after a Gaussian "
        "against aliasing (sigma (scale - 1) / 2), zero beyond the edge",
        requires=("torchvision", "scipy"),
        licence="Apache-2.0",
        references=(
            "https://arxiv.org/abs/2111.00595",
            "https://github.com/mlmed/torchxrayvision",
        ),
    )
