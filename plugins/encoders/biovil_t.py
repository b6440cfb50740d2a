"""BioViL-T: radiographs and report text in one space; the protocol's alignment is its cosine.

The networks are built here from torchvision's and transformers' parts with the names of the
published weights, as hi-ml-multimodal 0.2.2 describes them; its repository code on the hub is not
run, and hi-ml's pinned dependencies are not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chexgenbench import Context, EncoderSpec, hookimpl
from chexgenbench.types import Download, RemoteFile
from chexgenbench_plugins.weights import PublishedEncoder, PublishedParameters, fill, read_state

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

RESIZED, SIZE, WIDTH = 512, 448, 128

DOWNLOAD = Download(
    source="microsoft/BiomedVLP-BioViL-T",
    revision="692f09e9be1bfe5fdd5f3efdd0e1eca7d2c10b23",
    files=(
        RemoteFile(
            name="biovil_t_image_model_proj_size_128.pt",
            size=109_745_561,
            sha256="b2399d73dc2a68b9f3a1950e864ae0ecd24093fb07aa459d7e65807ebdc0fb77",
        ),
        RemoteFile(
            name="model.safetensors",
            size=440_909_232,
            sha256="70bed344872e0a4f4dca2352564c44f44cb7a9cfcac3d878be2dd08a5fff9aba",
        ),
        RemoteFile(name="config.json", size=803),
        RemoteFile(name="vocab.txt"),
        RemoteFile(name="tokenizer_config.json", size=741),
    ),
)


class BioVilT(PublishedEncoder):
    """Image (without a previous study) and text embeddings of unit length, 128 numbers."""

    parameters: PublishedParameters
    name, download = "biovil-t", DOWNLOAD

    def __init__(self, parameters: PublishedParameters, context: Context) -> None:
        super().__init__(parameters, context)
        from transformers import BertTokenizer

        image, text, config, vocabulary, _ = self.weights(parameters, context)
        self.image = _image_network()
        # The pooler compares two studies and the last layer knows ImageNet: neither is used here.
        unused = ("encoder.vit_pooler.", "encoder.encoder.fc.")
        fill(self.image, read_state(image, "biovil-t"), "biovil-t", unused)
        self.text, self.length = _text_network(json.loads(config.read_text(encoding="utf-8")))
        unused = ("cls.predictions.", "bert.pooler.", "bert.embeddings.position_ids")
        fill(self.text, read_state(text, "biovil-t"), "biovil-t", unused)
        for network in (self.image, self.text):
            network.eval().requires_grad_(False).to(context.device)
        self.tokenizer = BertTokenizer.from_pretrained(vocabulary.parent, local_files_only=True)

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        import numpy as np
        from PIL import Image
        from torchvision.transforms import functional as F

        levels = np.array(image if image.mode in {"L", "RGB"} else image.convert("L"), np.float64)
        levels -= levels.min()
        if levels.max() > 0:
            levels = levels / levels.max() * 255
        grey = Image.fromarray(levels.astype(np.uint8)).convert("L")
        return F.to_tensor(F.center_crop(F.resize(grey, RESIZED), SIZE)).expand(3, SIZE, SIZE)

    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        return {"features": self.image(batch.to(self.context.device)).cpu().numpy()}

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Final full stops are dropped, as in training; what is longer than 512 tokens is cut."""
        import torch

        features = []
        with torch.inference_mode():
            for text in texts:  # one by one: no text's padding depends on its neighbours'
                tokens = self.tokenizer(
                    text.rstrip("!?."),
                    truncation=True,
                    max_length=self.length,
                    return_tensors="pt",
                ).to(self.context.device)
                features.append(self.text(tokens.input_ids, tokens.attention_mask))
        return torch.cat(features).cpu().numpy()


def _image_network() -> torch.nn.Module:
    """ResNet-50 to 14 x 14 patches; each goes on beside the embedding of a missing previous study.

    Bannur et al. 2023, section 3.1 and figure 2; the shapes are those of the published weights.
    """
    import torch
    from torch.nn import BatchNorm2d, Conv2d, Module, ReLU, Sequential
    from torchvision.models import resnet50

    class Network(Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Module()
            self.encoder.encoder = resnet50(weights=None)
            self.encoder.encoder.fc = torch.nn.Identity()
            self.encoder.backbone_to_vit = Conv2d(2048, 256, 1, bias=False)
            self.encoder.missing_previous_emb = torch.nn.Parameter(torch.zeros(1, 256, 1, 1))
            self.projector = Module()
            self.projector.model = Sequential(
                Conv2d(512, WIDTH, 1, bias=False),
                BatchNorm2d(WIDTH),
                ReLU(),
                Conv2d(WIDTH, WIDTH, 1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for name, layer in self.encoder.encoder.named_children():
                if name not in {"avgpool", "fc"}:
                    x = layer(x)
            patches = self.encoder.backbone_to_vit(x)
            missing = self.encoder.missing_previous_emb.expand_as(patches)
            projected = self.projector.model(torch.cat([patches, missing], dim=1))
            return torch.nn.functional.normalize(projected.mean((2, 3)), dim=1)

    return Network()


def _text_network(settings: Mapping[str, Any]) -> tuple[torch.nn.Module, int]:
    """CXR-BERT's encoder with its projection of the class token, and the longest input.

    Boecking et al. 2022, section 2.1; names as in the published weights.
    """
    import torch
    from torch.nn import LayerNorm, Linear, Module
    from transformers import BertConfig, BertModel

    width = settings["projection_size"]
    known = {name: settings[name] for name in BertConfig().to_dict() if name in settings}
    config = BertConfig(**known)

    class Network(Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(config, add_pooling_layer=False)
            self.cls_projection_head = head = Module()
            head.dense_to_hidden = Linear(config.hidden_size, width)
            head.LayerNorm = LayerNorm(width, eps=1e-12)
            head.dense_to_output = Linear(width, width)

        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            words = self.bert(tokens, attention_mask=mask).last_hidden_state
            head = self.cls_projection_head
            hidden = torch.nn.functional.gelu(head.dense_to_hidden(words[:, 0]))
            return torch.nn.functional.normalize(head.dense_to_output(head.LayerNorm(hidden)))

    return Network(), config.max_position_embeddings


@hookimpl
def chexgenbench_encoders() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        name="biovil-t",
        summary="BioViL-T, trained on chest radiographs and their reports, image and text",
        load="chexgenbench_plugins.encoders.biovil_t:BioVilT",
        parameters=PublishedParameters,
        outputs={"features": WIDTH},
        text=True,
        preprocessing="grey levels stretched to 0..255, grey, shorter side 512 by antialiased "
        "bilinear, centre crop 448 x 448, x / 255; unit-length output",
        downloads=(DOWNLOAD,),
        requires=("torchvision", "transformers"),
        environment="biovil-t",
        licence="MIT (research use, see the weights' page)",
        references=(
            "https://arxiv.org/abs/2301.04558",
            "https://arxiv.org/abs/2204.09817",
            "https://huggingface.co/microsoft/BiomedVLP-BioViL-T",
            "https://github.com/microsoft/hi-ml/tree/main/hi-ml-multimodal",
        ),
    )
