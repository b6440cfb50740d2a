"""Sana: the checkpoint of NVlabs/Sana's trainer to a folder for `SanaPipeline`.

Names after ``scripts/convert_sana_to_diffusers.py`` of huggingface/diffusers, architecture after
``diffusion/model/nets/sana_multi_scale.py`` of NVlabs/Sana.
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
BASE = "Efficient-Large-Model/Sana_600M_512px_diffusers"
_BLOCK = "transformer_blocks.N"
_RULES = {
    "x_embedder.proj": ("patch_embed.proj",),
    "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
    "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
    "attention_y_norm": ("caption_norm",),
    "t_block.1": ("time_embed.linear",),
    "final_layer.linear": ("proj_out",),
    "final_layer.scale_shift_table": ("scale_shift_table",),
    "blocks.N.scale_shift_table": (f"{_BLOCK}.scale_shift_table",),
    "blocks.N.attn.qkv": tuple(f"{_BLOCK}.attn1.to_{each}" for each in "qkv"),
    "blocks.N.attn.q_norm": (f"{_BLOCK}.attn1.norm_q",),
    "blocks.N.attn.k_norm": (f"{_BLOCK}.attn1.norm_k",),
    "blocks.N.attn.proj": (f"{_BLOCK}.attn1.to_out.0",),
    "blocks.N.cross_attn.q_linear": (f"{_BLOCK}.attn2.to_q",),
    "blocks.N.cross_attn.kv_linear": tuple(f"{_BLOCK}.attn2.to_{each}" for each in "kv"),
    "blocks.N.cross_attn.q_norm": (f"{_BLOCK}.attn2.norm_q",),
    "blocks.N.cross_attn.k_norm": (f"{_BLOCK}.attn2.norm_k",),
    "blocks.N.cross_attn.proj": (f"{_BLOCK}.attn2.to_out.0",),
    "blocks.N.mlp.inverted_conv.conv": (f"{_BLOCK}.ff.conv_inverted",),
    "blocks.N.mlp.depth_conv.conv": (f"{_BLOCK}.ff.conv_depth",),
    "blocks.N.mlp.point_conv.conv": (f"{_BLOCK}.ff.conv_point",),
}
_TIME = {
    "t_embedder.mlp.0": ("time_embed.emb.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_embed.emb.timestep_embedder.linear_2",),
}
# Sana-Sprint, which reads the guidance scale as an input.
_GUIDED_TIME = {
    "t_embedder.mlp.0": ("time_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_embed.timestep_embedder.linear_2",),
    "cfg_embedder.mlp.0": ("time_embed.guidance_embedder.linear_1",),
    "cfg_embedder.mlp.2": ("time_embed.guidance_embedder.linear_2",),
}
# Positions are computed; the empty prompt is encoded, not stored; the variance is for training.
_IGNORED = (
    "pos_embed",
    "y_embedder.y_embedding",
    "logvar_linear.weight",
    "logvar_linear.bias",
)
_REFUSED = {
    "blocks.N.attn.qkv.bias": "softmax self-attention, where diffusers has the linear one alone"
}
# Heads of the cross-attention of the published networks, by width (diffusers' script).
_CROSS_HEADS = {1152: 16, 2240: 20}
_LINEAR_HEAD = 32


def convert(
    checkpoint: Path,
    out: Path,
    base: str | None,
    context: Context,
    *,
    size: int | None = None,
    head_width: int | None = None,
    cross_attention_heads: int | None = None,
    ema: bool = True,
) -> Mapping[str, Any]:
    """Fills `out` from the checkpoint and a base; returns facts for the record.

    Args:
        size: pixels, where the checkpoint does not say.
        head_width: channels of a head of the self-attention, which no tensor shows; by default
            the base's, else 32.
        cross_attention_heads: by default those of a base or published network of that width.
        ema: averaged weights, where there are some.

    Raises:
        UserError: the checkpoint is of another network, or the base does not go with it.
    """
    state, weights = read_checkpoint(checkpoint, ema=ema, context=context)
    guided = "cfg_embedder.mlp.0.weight" in state
    rules = _RULES | (_GUIDED_TIME if guided else _TIME)
    tensors, ignored = translate(state, rules, ignored=_IGNORED, refused=_REFUSED, what="sana")
    found = Base.find(base, BASE, "sana", context)
    pipeline = "SanaSprintPipeline" if guided else "SanaPipeline"
    if found.index.get("_class_name") != pipeline:
        raise UserError(
            f"The checkpoint is one for {pipeline}, and the base {found.source} is a "
            f"{found.index.get('_class_name')}.",
            hint="Name a base of that kind by --base.",
        )
    config = found.config("transformer") | _architecture(state, found, size)
    width = config["cross_attention_dim"]
    config |= _heads(width, found.config("transformer"), head_width, cross_attention_heads)
    network = denoiser("SanaTransformer2DModel", config)
    fits(tensors, network.state_dict(), rules, "sana")
    write(out, found, pipeline, network, tensors)
    return {
        "mapping": MAPPING,
        "weights": weights,
        "ignored": ignored,
        "base": found.describe(),
        "pipeline": pipeline,
        "loaded_by": "diffusers" if guided else "sana",
    }


def _architecture(
    state: Mapping[str, torch.Tensor], base: Base, size: int | None
) -> dict[str, Any]:
    width, channels, patch, _ = shape_of(state, "x_embedder.proj.weight", 4, "sana")
    captions = shape_of(state, "y_embedder.y_proj.fc1.weight", 2, "sana")[1]
    hidden = shape_of(state, "blocks.0.mlp.inverted_conv.conv.weight", 4, "sana")[0] // 2
    base.require("vae", ("latent_channels",), channels, "latents")
    base.require("text_encoder", ("hidden_size",), captions, "captions")
    pixels = image_size(state, patch=patch, factor=base.downscale(), size=size)
    scale = position_scale(state)
    if "pos_embed" not in state and pixels > 1024:
        # The published networks have positions from 2,048 pixels on (diffusers' script).
        scale = pixels / 2048
    ratio = base.config("transformer").get("mlp_ratio", 2.5)
    return {
        "in_channels": channels,
        "out_channels": shape_of(state, "final_layer.linear.weight", 2, "sana")[0] // patch**2,
        "num_layers": depth(state),
        "cross_attention_dim": width,
        "caption_channels": captions,
        # diffusers takes the whole part of ratio x width.
        "mlp_ratio": ratio if int(ratio * width) == hidden else (hidden + 0.5) / width,
        "attention_bias": False,
        "sample_size": pixels // base.downscale(),
        "patch_size": patch,
        "interpolation_scale": scale,
        "guidance_embeds": "cfg_embedder.mlp.0.weight" in state,
        "qk_norm": "rms_norm_across_heads" if "blocks.0.attn.q_norm.weight" in state else None,
    }


def _heads(
    width: int, config: Mapping[str, Any], head: int | None, cross: int | None
) -> dict[str, int]:
    """Numbers and widths of heads: no tensor's shape shows them."""
    head = head or config.get("attention_head_dim") or _LINEAR_HEAD
    if cross is None:
        same = config.get("cross_attention_dim") == width
        cross = config["num_cross_attention_heads"] if same else _CROSS_HEADS.get(width)
    if cross is None:
        raise UserError(
            f"The checkpoint is {width} channels wide, and no tensor shows its number of heads.",
            hint="Name a base of that width by --base, or: --set cross_attention_heads=20",
        )
    for name, parts in (("head_width", head), ("cross_attention_heads", cross)):
        if parts < 1 or width % parts:
            raise UserError(f"{name} = {parts} does not divide the {width} channels.")
    return {
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_cross_attention_heads": cross,
        "cross_attention_head_dim": width // cross,
    }
