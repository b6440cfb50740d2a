"""PixArt-Sigma: the checkpoint of its trainer to a folder for `PixArtSigmaPipeline`.

Names after ``scripts/convert_pixart_sigma_to_diffusers.py`` of huggingface/diffusers, architecture
after ``diffusion/model/nets/PixArtMS.py`` of PixArt-alpha/PixArt-sigma.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexgenbench import Context, UserError
from chexgenbench_plugins.convert.checkpoint import image_size, position_scale, read_checkpoint
from chexgenbench_plugins.convert.folder import Base, denoiser, write
from chexgenbench_plugins.convert.names import depth, fits, shape_of, translate

if TYPE_CHECKING:
    import torch

MAPPING = "1"
# The repository of 512 pixels serves its transformer alone (diffusers' own test of it takes the
# other parts from here); they are the same for all sizes.
BASE = "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"
PIPELINE = "PixArtSigmaPipeline"
_BLOCK = "transformer_blocks.N"
_RULES = {
    "x_embedder.proj": ("pos_embed.proj",),
    "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
    "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
    "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2",),
    "t_block.1": ("adaln_single.linear",),
    "final_layer.linear": ("proj_out",),
    "final_layer.scale_shift_table": ("scale_shift_table",),
    "blocks.N.scale_shift_table": (f"{_BLOCK}.scale_shift_table",),
    "blocks.N.attn.qkv": tuple(f"{_BLOCK}.attn1.to_{each}" for each in "qkv"),
    "blocks.N.attn.proj": (f"{_BLOCK}.attn1.to_out.0",),
    "blocks.N.cross_attn.q_linear": (f"{_BLOCK}.attn2.to_q",),
    "blocks.N.cross_attn.kv_linear": tuple(f"{_BLOCK}.attn2.to_{each}" for each in "kv"),
    "blocks.N.cross_attn.proj": (f"{_BLOCK}.attn2.to_out.0",),
    "blocks.N.mlp.fc1": (f"{_BLOCK}.ff.net.0.proj",),
    "blocks.N.mlp.fc2": (f"{_BLOCK}.ff.net.2",),
}
# Positions are computed; the empty prompt is encoded, not stored.
_IGNORED = ("pos_embed", "y_embedder.y_embedding")
_MICRO = "micro-conditions of PixArt-Alpha, which PixArt-Sigma's pipeline does not pass"
_NORM = "a norm of queries and keys, which diffusers' network does not have"
_COMPRESSION = "compressed keys and values, which diffusers' network does not have"
_REFUSED = {
    "csize_embedder": _MICRO,
    "ar_embedder": _MICRO,
    "blocks.N.attn.q_norm": _NORM,
    "blocks.N.attn.k_norm": _NORM,
    "blocks.N.attn.sr": _COMPRESSION,
    "blocks.N.attn.norm": _COMPRESSION,
}
_HEADS = {1152: 16}


def convert(
    checkpoint: Path,
    out: Path,
    base: str | None,
    context: Context,
    *,
    size: int | None = None,
    attention_heads: int | None = None,
    ema: bool = True,
) -> Mapping[str, Any]:
    """Fills `out` from the checkpoint and a base; returns facts for the record.

    Args:
        size: pixels, where the checkpoint does not say.
        attention_heads: by default those of a base or published network of that width.
        ema: averaged weights, where there are some.

    Raises:
        UserError: the checkpoint is of another network, or the base does not go with it.
    """
    state, weights = read_checkpoint(checkpoint, ema=ema, context=context)
    tensors, ignored = translate(
        state, _RULES, ignored=_IGNORED, refused=_REFUSED, what="pixart-sigma"
    )
    found = Base.find(base, BASE, "pixart-sigma", context)
    if found.index.get("_class_name") != PIPELINE:
        raise UserError(
            f"The base {found.source} is a {found.index.get('_class_name')}, not a {PIPELINE}."
        )
    config = found.config("transformer") | _architecture(state, found, size, attention_heads)
    network = denoiser("PixArtTransformer2DModel", config)
    fits(tensors, network.state_dict(), _RULES, "pixart-sigma")
    write(out, found, PIPELINE, network, tensors)
    return {
        "mapping": MAPPING,
        "weights": weights,
        "ignored": ignored,
        "base": found.describe(),
        "pipeline": PIPELINE,
        "loaded_by": "pixart-sigma",
    }


def _architecture(
    state: Mapping[str, torch.Tensor], base: Base, size: int | None, heads: int | None
) -> dict[str, Any]:
    what = "pixart-sigma"
    width, channels, patch, _ = shape_of(state, "x_embedder.proj.weight", 4, what)
    captions = shape_of(state, "y_embedder.y_proj.fc1.weight", 2, what)[1]
    base.require("vae", ("latent_channels",), channels, "latents")
    base.require("text_encoder", ("d_model",), captions, "captions")
    pixels = image_size(state, patch=patch, factor=base.downscale(), size=size)
    # The published networks divide positions by size / 512 (diffusers' script).
    scale = position_scale(state) or pixels / 512
    config = base.config("transformer")
    if heads is None:
        same = config.get("cross_attention_dim") == width
        heads = config["num_attention_heads"] if same else _HEADS.get(width)
    if heads is None:
        raise UserError(
            f"The checkpoint is {width} channels wide, and no tensor shows its number of heads.",
            hint="Name a base of that width by --base, or: --set attention_heads=16",
        )
    if heads < 1 or width % heads:
        raise UserError(f"attention_heads = {heads} does not divide the {width} channels.")
    return {
        "in_channels": channels,
        "out_channels": shape_of(state, "final_layer.linear.weight", 2, what)[0] // patch**2,
        "num_layers": depth(state),
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "cross_attention_dim": width,
        "caption_channels": captions,
        "attention_bias": True,
        "sample_size": pixels // base.downscale(),
        "patch_size": patch,
        "interpolation_scale": scale,
        # Unsaid, diffusers turns them on for a sample of 128.
        "use_additional_conditions": False,
    }
