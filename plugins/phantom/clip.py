"""The small open_clip model that sees phantoms and reads their reports; torch is loaded late."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .findings import FINDINGS, generator, make_study, random_finding
from .report import compose, tokens

if TYPE_CHECKING:
    import open_clip
    import PIL.Image
    import torch

SIZE = 128
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
Tokenize = Callable[[Sequence[str]], "torch.Tensor"]


def build(config: dict[str, Any]) -> tuple[open_clip.CLIP, Tokenize]:
    """The model with random weights, and the function that turns texts into int64 [n, context]."""
    import open_clip

    vision = open_clip.CLIPVisionCfg(
        **config["vision"] | {"layers": tuple(config["vision"]["layers"])}
    )
    text = open_clip.CLIPTextCfg(**config["text"])
    model = open_clip.CLIP(config["embed_dim"], vision, text)
    return model, tokenizer(config["vocabulary"], config["text"]["context_length"])


def load_clip(directory: Path) -> tuple[open_clip.CLIP, Tokenize]:
    """The trained model in float32, and its tokenizer, from a folder of config and safetensors."""
    from safetensors.torch import load_file

    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    model, tokenize = build(config)
    state = load_file(directory / WEIGHTS)
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    return model.eval(), tokenize


def tokenizer(vocabulary: Sequence[str], context: int) -> Tokenize:
    """Whole words to numbers: 0 pads, then an unknown word, the words, start and end.

    The end has the highest number, because the text tower is read where the number is highest.
    """
    numbers = {word: number for number, word in enumerate(vocabulary, start=2)}
    start, end = len(vocabulary) + 2, len(vocabulary) + 3

    def tokenize(texts: Sequence[str]) -> torch.Tensor:
        import torch

        rows = torch.zeros(len(texts), context, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            words = [numbers.get(word, 1) for word in tokens(text)][: context - 2]
            row[: len(words) + 2] = torch.tensor([start, *words, end])
        return rows

    return tokenize


def finding_texts(count: int = 32) -> dict[str, list[str]]:
    """For each finding, reports that state it alone, as the model has read them in training."""
    texts: dict[str, list[str]] = {}
    for name in FINDINGS:
        rng = generator("finding texts", name)
        studies = [
            make_study({} if name == "No Finding" else {name: random_finding(name, rng, "present")})
            for _ in range(count)
        ]
        texts[name] = [compose(study, rng) for study in studies]
    return texts


def finding_embeddings(model: open_clip.CLIP, tokenize: Tokenize) -> torch.Tensor:
    """The direction of each finding: the mean text embedding of its reports, float32 [14, d]."""
    import torch

    means = [
        model.encode_text(tokenize(texts), normalize=True).mean(0)
        for texts in finding_texts().values()
    ]
    return torch.nn.functional.normalize(torch.stack(means), dim=1)


def preprocess(image: PIL.Image.Image) -> torch.Tensor:
    """Grey, 128 x 128 by antialiased bicubic, -1 to 1: float32 [3, 128, 128]."""
    import numpy as np
    import torch
    from PIL import Image

    grey = image.convert("L")
    if grey.size != (SIZE, SIZE):
        grey = grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(grey, np.float32) / 127.5 - 1)
    return pixels.expand(3, SIZE, SIZE)
