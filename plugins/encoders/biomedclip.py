"""BiomedCLIP: CLIP trained on figures and captions of biomedical articles; image and text."""

from __future__ import annotations

import json
from collections import OrderedDict
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

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

DOWNLOAD = Download(
    source="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    revision="9f341de24bfb00180f1b847274256e9b65a3a32e",
    files=(
        RemoteFile(
            name="open_clip_pytorch_model.bin",
            size=783_705_670,
            sha256="52cc993c5c5ff962bd0c60931874bc001e7e9b41666a385530f4a036294576be",
        ),
        RemoteFile(name="open_clip_config.json", size=707),
        RemoteFile(name="vocab.txt"),
        RemoteFile(name="tokenizer_config.json"),
    ),
)


class BiomedClip(PublishedEncoder):
    """Image and text embeddings of unit length, 512 numbers."""

    parameters: PublishedParameters
    name, download = "biomedclip", DOWNLOAD

    def __init__(self, parameters: PublishedParameters, context: Context) -> None:
        super().__init__(parameters, context)
        from transformers import BertTokenizer

        weights, config, vocabulary, _ = self.weights(parameters, context)
        model = json.loads(config.read_text(encoding="utf-8"))["model_cfg"]
        state = read_state(weights, "biomedclip")
        self.size = model["vision_cfg"]["image_size"]
        self.length = model["text_cfg"]["context_length"]
        self.network = _network(model, state)
        # Newer versions of transformers hold the positions no more, and nothing reads the scale.
        unused = ("logit_scale", "text.transformer.embeddings.position_ids")
        fill(self.network, state, "biomedclip", unused)
        self.network.eval().requires_grad_(False).to(context.device)
        self.tokenizer = BertTokenizer.from_pretrained(vocabulary.parent, local_files_only=True)

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        image = F.resize(image, self.size, InterpolationMode.BICUBIC).convert("RGB")
        pixels = F.to_tensor(F.center_crop(image, self.size))
        return F.normalize(pixels, MEAN, DEVIATION)

    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        import torch

        visual = self.network.visual
        features = visual.head(visual.trunk(batch.to(self.context.device)))
        return {"features": torch.nn.functional.normalize(features, dim=1).cpu().numpy()}

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """What is longer than 256 tokens is cut."""
        import torch
        from open_clip.tokenizer import get_clean_fn

        clean = get_clean_fn("whitespace")
        # Always the full length: no text's padding depends on its neighbours'.
        tokens = self.tokenizer(
            [clean(text) for text in texts],
            max_length=self.length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.context.device)
        text = self.network.text
        with torch.inference_mode():
            words = text.transformer(tokens.input_ids, attention_mask=tokens.attention_mask)
            features = text.proj(words.last_hidden_state[:, 0])
            return torch.nn.functional.normalize(features, dim=1).cpu().numpy()


def _network(model: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The towers with the names of open_clip's CustomTextCLIP.

    open_clip itself would ask the hub for the text tower's configuration; here its sizes are read
    off the weights. BERT's heads are 64 wide.
    """
    import timm
    from torch.nn import GELU, Linear, Module, Sequential
    from transformers import BertConfig, BertModel

    width = model["embed_dim"]
    network = Module()
    network.visual = Module()
    network.visual.trunk = timm.create_model(model["vision_cfg"]["timm_model_name"], num_classes=0)
    network.visual.head = Sequential(
        OrderedDict(proj=Linear(network.visual.trunk.num_features, width, bias=False))
    )
    prefix = "text.transformer."
    vocabulary, hidden = state[f"{prefix}embeddings.word_embeddings.weight"].shape
    layers = {name.split(".")[4] for name in state if name.startswith(f"{prefix}encoder.layer.")}
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=len(layers),
        num_attention_heads=hidden // 64,
        intermediate_size=len(state[f"{prefix}encoder.layer.0.intermediate.dense.bias"]),
        max_position_embeddings=len(state[f"{prefix}embeddings.position_embeddings.weight"]),
    )
    network.text = Module()
    network.text.transformer = BertModel(config, add_pooling_layer=False)
    middle = (hidden + width) // 2
    network.text.proj = Sequential(
        Linear(hidden, middle, bias=False), GELU(), Linear(middle, width, bias=False)
    )
    return network


@hookimpl
def chexgenbench_encoders() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        name="biomedclip",
        summary="BiomedCLIP ViT-B/16 and PubMedBERT, image and text",
        load="chexgenbench_plugins.encoders.biomedclip:BiomedClip",
        parameters=PublishedParameters,
        outputs={"features": 512},
        text=True,
        preprocessing="RGB, shorter side 224 by antialiased bicubic, centre crop 224 x 224, "
        "x / 255 less CLIP's mean, over CLIP's deviation; unit-length output",
        downloads=(DOWNLOAD,),
        requires=("open_clip", "timm", "transformers"),
        licence="MIT",
        references=(
            "https://arxiv.org/abs/2303.00915",
            f"https://huggingface.co/{DOWNLOAD.source}",
        ),
    )
