"""The published encoders with random weights, as their files are laid out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def save_inception(path: Path, images: Sequence[Path]) -> None:
    """Inception-v3, whose normalisation fits the images, so that features tell them apart."""
    from chexgenbench_plugins.encoders.inception_v3 import _network

    torch.manual_seed(0)
    network = _network()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # running statistics become those of the one batch
    shown = [np.array(Image.open(each).convert("RGB").resize((299, 299))) for each in images]
    batch = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 128 - 1
    with torch.no_grad():
        network.train().trunk(batch)
    torch.save(network.state_dict(), path)


def save_rad_dino(folder: Path, **config: float) -> None:
    """RAD-DINO, with its processor's settings; ``config`` as of transformers' Dinov2Config."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(image_size=518, **config)).save_pretrained(folder)
    settings = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 518},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 518, "width": 518},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5307] * 3,
        "image_std": [0.2583] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
