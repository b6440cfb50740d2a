"""The decoder of a VQ-GAN of taming-transformers, drawn by diffusers' decoder of the same network.

Esser et al. 2021 (https://arxiv.org/abs/2012.09841); names and layers are those of
https://github.com/CompVis/taming-transformers, taming/modules/diffusionmodules/model.py. Its
configuration follows from the shapes, so the ``.yaml`` file beside a checkpoint is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from chexgenbench import UserError
from chexgenbench_plugins.llm_cxr.files import foreign_objects
from chexgenbench_plugins.llm_cxr.sampling import GRID
from chexgenbench_plugins.weights import read_state

if TYPE_CHECKING:
    import torch

_RULES = (
    (r"mid\.block_1\.", "mid_block.resnets.0."),
    (r"mid\.block_2\.", "mid_block.resnets.1."),
    (r"mid\.attn_1\.", "mid_block.attentions.0."),
    (r"block\.(\d+)\.", r"resnets.\1."),
    (r"attn\.(\d+)\.", r"attentions.\1."),
    (r"upsample\.", "upsamplers.0."),
    (r"nin_shortcut", "conv_shortcut"),
    (r"norm_out", "conv_norm_out"),
    (r"(?<=attentions\.\d\.)norm\.", "group_norm."),
    (r"(?<=attentions\.\d\.)([qkv])\.", r"to_\1."),
    (r"(?<=attentions\.\d\.)proj_out\.", "to_out.0."),
)


class VqGan:
    """Codes to pixels.

    Attributes:
        codes: how many there are.
        size: width and height in pixels of 16 x 16 codes.
    """

    def __init__(self, path: Path, *, allow_pickle: bool = False) -> None:
        """Opens the checkpoint `path`; tensors stay on the disk until they are used.

        Raises:
            UserError: it is broken, a pickle of more than tensors, or of another network.
        """
        import torch
        from diffusers.models.autoencoders.vae import Decoder

        state = read_checkpoint(path, allow_pickle=allow_pickle)
        try:
            levels = 1 + max(int(name.split(".")[2]) for name in _under(state, "decoder.up."))
            blocks = 1 + max(
                int(name.split(".")[4]) for name in _under(state, "decoder.up.0.block")
            )
            self.codebook = state["quantize.embedding.weight"]
            self.codes = len(self.codebook)
            self.size = GRID * 2 ** (levels - 1)
            attends = [f"decoder.up.{level}.attn.0.q.weight" in state for level in range(levels)]
            with torch.device("meta"):
                decoder = Decoder(
                    in_channels=state["decoder.conv_in.weight"].shape[1],
                    out_channels=3,
                    block_out_channels=tuple(
                        len(state[f"decoder.up.{level}.block.0.conv2.weight"])
                        for level in range(levels)
                    ),
                    up_block_types=tuple(
                        f"{'Attn' * each}UpDecoderBlock2D" for each in reversed(attends)
                    ),
                    layers_per_block=blocks - 1,
                )
                post = torch.nn.Conv2d(self.codebook.shape[1], decoder.conv_in.in_channels, 1)
            self.network = torch.nn.ModuleDict({"post_quant_conv": post, "decoder": decoder})
            named = {
                diffusers_name(name, levels): value
                for name, value in state.items()
                if name.startswith(("post_quant_conv.", "decoder."))
            }
            # An attention's 1 x 1 convolutions are linear layers in diffusers.
            flat = {
                n: v[:, :, 0, 0] if ".to_" in n and v.ndim == 4 else v for n, v in named.items()
            }
            self.network.load_state_dict(flat, assign=True)
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            lines = [line.strip() for line in str(error).splitlines()]
            raise UserError(
                f"The VQ-GAN of 'llm-cxr' is of another network: {path}: "
                f"{'; '.join(lines[1:3] or lines)[:300]}",
                hint="It must be a VQModel of taming-transformers with three colour channels.",
            ) from error
        self.network.eval().requires_grad_(False)

    def to(self, device: str) -> VqGan:
        """Reads the weights, onto `device` and as float32, which the published code decodes in."""
        import torch

        self.network.to(device, torch.float32)
        self.codebook = self.codebook.to(device, torch.float32)
        return self

    def decode(self, codes: torch.Tensor, size: int) -> torch.Tensor:
        """Codes int64 [LENGTH] to an image float32 [size, size, 3] in 0..1 on the CPU.

        Another size than `self.size` is resampled by antialiased bicubic interpolation.
        """
        import torch
        from torch.nn.functional import interpolate

        with torch.inference_mode():
            grid = self.codebook[codes.to(self.codebook.device)].T.reshape(1, -1, GRID, GRID)
            image = self.network["decoder"](self.network["post_quant_conv"](grid))
            if size != self.size:
                image = interpolate(image, (size, size), mode="bicubic", antialias=True)
            return ((image[0].clamp(-1, 1) + 1) / 2).permute(1, 2, 0).cpu()


def diffusers_name(name: str, levels: int) -> str:
    """The name in diffusers' decoder of a name in taming's, whose levels count from the finest."""
    for pattern, new in _RULES:
        name = re.sub(pattern, new, name)
    return re.sub(r"\bup\.(\d+)\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.", name)


def read_checkpoint(path: Path, *, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """The tensors by name of safetensors, or of a checkpoint that torch saved.

    PyTorch Lightning's checkpoints name its classes beside the tensors: they become empty
    placeholders here, so that none of their code runs.

    Raises:
        UserError: the file is broken, or holds other objects and `allow_pickle` is not set.
    """
    lightning = [
        (type("Placeholder", (), {}), name)
        for name in foreign_objects(path)
        if name.startswith(("pytorch_lightning.", "lightning."))
    ]
    return read_state(path, "llm-cxr", allow_pickle=allow_pickle, allowed=lightning)


def _under(state: Mapping[str, torch.Tensor], prefix: str) -> list[str]:
    return [name for name in state if name.startswith(prefix)]
