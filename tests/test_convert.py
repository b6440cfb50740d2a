"""Converters: the original networks, written once more, against what diffusers makes of them."""

from __future__ import annotations

import inspect
import json
import math
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from chexgenbench import Context, Request, UserError
from chexgenbench.cli.convert import convert
from chexgenbench.registry import load_registry
from chexgenbench_plugins.convert import pixart_sigma, sana
from chexgenbench_plugins.convert.checkpoint import image_size, position_scale, read_checkpoint
from chexgenbench_plugins.convert.names import depth, original_name, rename
from desk import Desk

State = dict[str, torch.Tensor]
WIDTH, CHANNELS, CAPTIONS, HEADS = 16, 4, 16, 2


# --- the original networks ------------------------------------------------------------------
# Module names and formulas of NVlabs/Sana (diffusion/model/nets/sana_multi_scale.py,
# sana_blocks.py, basic_modules.py) and of PixArt-alpha/PixArt-sigma (diffusion/model/nets/PixArt*).


class Mlp(nn.Module):
    def __init__(self, wide: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(wide, hidden), nn.Linear(hidden, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Waves(nn.Module):
    """A number to a vector: cosines and sines of 128 frequencies, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, number: torch.Tensor) -> torch.Tensor:
        angle = number[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1))


class Captions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.y_proj = Mlp(CAPTIONS, WIDTH, WIDTH)
        self.register_buffer("y_embedding", torch.randn(5, CAPTIONS))


class RootMeanSquare(nn.Module):
    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(WIDTH)), epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.epsilon).sqrt() * self.weight


class SoftAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        weight = (q @ k.mT * (c // HEADS) ** -0.5).softmax(-1)
        return self.proj((weight @ v).transpose(1, 2).reshape(b, n, c))


class LinearAttention(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.q_norm = RootMeanSquare(1e-5) if norm else nn.Identity()
        self.k_norm = RootMeanSquare(1e-5) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, c).unbind(2)
        q, k, v = (
            each.reshape(b, n, HEADS, c // HEADS).transpose(1, 2)
            for each in (self.q_norm(q).relu(), self.k_norm(k).relu(), v)
        )
        summed = k.sum(2, keepdim=True)
        out = q @ (k.mT @ v) / ((q * summed).sum(-1, keepdim=True) + 1e-8)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class CrossAttention(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.q_linear, self.proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kv_linear = nn.Linear(WIDTH, 2 * WIDTH)
        self.q_norm = RootMeanSquare(1e-6) if norm else nn.Identity()
        self.k_norm = RootMeanSquare(1e-6) if norm else nn.Identity()

    def forward(self, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        k, v = self.kv_linear(y).view(b, -1, 2, c).unbind(2)
        q, k, v = (
            each.reshape(b, -1, HEADS, c // HEADS).transpose(1, 2)
            for each in (self.q_norm(self.q_linear(x)), self.k_norm(k), v)
        )
        weight = q @ k.mT * (c // HEADS) ** -0.5
        weight = weight.masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(-1)
        return self.proj((weight @ v).transpose(1, 2).reshape(b, n, c))


class Convolution(nn.Module):
    def __init__(self, wide: int, out: int, kernel: int, groups: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide, out, kernel, padding=kernel // 2, groups=groups, bias=bias)


class GatedConvolutions(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inverted_conv = Convolution(WIDTH, 2 * hidden, 1, 1, True)
        self.depth_conv = Convolution(2 * hidden, 2 * hidden, 3, 2 * hidden, True)
        self.point_conv = Convolution(hidden, WIDTH, 1, 1, False)

    def forward(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        b, _, c = x.shape
        x = F.silu(self.inverted_conv.conv(x.mT.reshape(b, c, rows, -1)))
        x, gate = self.depth_conv.conv(x).chunk(2, 1)
        return self.point_conv.conv(x * F.silu(gate)).reshape(b, c, -1).mT


class Block(nn.Module):
    def __init__(self, linear: bool, norm: bool, hidden: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, WIDTH))
        self.attn = LinearAttention(norm) if linear else SoftAttention()
        self.cross_attn = CrossAttention(norm)
        self.mlp = GatedConvolutions(hidden) if linear else Mlp(WIDTH, hidden, WIDTH)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, t: torch.Tensor, rows: int
    ) -> torch.Tensor:
        table = self.scale_shift_table + t.reshape(len(t), 6, WIDTH)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = table[:, :, None].unbind(1)
        x = x + gate * self.attn(plain_norm(x) * (1 + scale) + shift)
        x = x + self.cross_attn(x, y, mask)
        inner = plain_norm(x) * (1 + scale_mlp) + shift_mlp
        more = (rows,) if isinstance(self.mlp, GatedConvolutions) else ()
        return x + gate_mlp * self.mlp(inner, *more)


class Last(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, out)
        self.scale_shift_table = nn.Parameter(torch.randn(2, WIDTH))


class Patches(nn.Module):
    def __init__(self, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS, WIDTH, patch, patch)


class Original(nn.Module):
    """`Sana` (linear) or `PixArtMS`, with the names that their checkpoints have.

    Args:
        side: latents of the trained size.
        scale: what positions are divided by; None: no positions, and a table of zeros.
    """

    def __init__(
        self,
        *,
        linear: bool,
        side: int,
        patch: int,
        scale: float | None,
        norm: bool = False,
        guided: bool = False,
        hidden: int = 40,
    ) -> None:
        super().__init__()
        self.linear, self.patch, self.scale = linear, patch, scale
        self.base, self.out = side // patch, CHANNELS * (1 if linear else 2)
        self.x_embedder, self.t_embedder = Patches(patch), Waves()
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.y_embedder = Captions()
        if linear:
            self.attention_y_norm = RootMeanSquare(1e-5)
        if guided:
            self.cfg_embedder, self.logvar_linear = Waves(), nn.Linear(WIDTH, 1)
        self.blocks = nn.ModuleList(Block(linear, norm, hidden) for _ in range(3))
        self.final_layer = Last(patch**2 * self.out)
        self.register_buffer("pos_embed", self.positions(self.base, self.base))
        with torch.no_grad():
            for name, value in self.named_parameters():
                value.copy_(0.35 * torch.randn_like(value) + 1.0 * ("norm" in name))

    def positions(self, rows: int, columns: int) -> torch.Tensor:
        if self.scale is None:
            return torch.zeros(1, rows * columns, WIDTH)
        found = []
        for row in range(rows):
            for column in range(columns):
                vector: list[float] = []
                for place, count in ((column, columns), (row, rows)):
                    angle = place / (count / self.base) / self.scale
                    angles = angle * 10000 ** (-np.arange(WIDTH // 4) / (WIDTH // 4))
                    vector += [*np.sin(angles), *np.cos(angles)]
                found.append(vector)
        return torch.tensor(found, dtype=torch.float32)[None]

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        y: torch.Tensor,
        mask: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        b, _, height, width = x.shape
        p, rows, columns = self.patch, height // self.patch, width // self.patch
        x = self.x_embedder.proj(x).flatten(2).mT + self.positions(rows, columns)
        t = self.t_embedder(t)
        if guidance is not None:
            t = t + self.cfg_embedder(guidance)
        y = self.y_embedder.y_proj(y)
        if self.linear:
            y = self.attention_y_norm(y)
        for block in self.blocks:
            x = block(x, y, mask, self.t_block(t), rows)
        shift, scale = (self.final_layer.scale_shift_table + t[:, None])[:, :, None].unbind(1)
        x = self.final_layer.linear(plain_norm(x) * (1 + scale) + shift)
        x = x.reshape(b, rows, columns, p, p, self.out)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(b, self.out, height, width)


def plain_norm(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def sana_network(**changes: Any) -> Original:
    return Original(**{"linear": True, "side": 2, "patch": 1, "scale": None} | changes)


def pixart_network(**changes: Any) -> Original:
    return Original(
        **{"linear": False, "side": 8, "patch": 2, "scale": 1.0, "hidden": 4 * WIDTH} | changes
    )


NETWORKS: Mapping[str, tuple[str, Callable[[], Original]]] = {
    "sana": ("sana", sana_network),
    "sana, norms of queries and keys": ("sana", lambda: sana_network(norm=True)),
    "sana, positions, an odd width of the gate": (
        "sana",
        lambda: sana_network(side=8, scale=2.0, hidden=37),
    ),
    "sana, guidance as an input": ("sana", lambda: sana_network(norm=True, guided=True)),
    "pixart-sigma, 512": ("pixart-sigma", pixart_network),
    "pixart-sigma, 1024": ("pixart-sigma", lambda: pixart_network(side=16, scale=2.0)),
    "pixart-sigma, 256": ("pixart-sigma", lambda: pixart_network(side=4, scale=0.5)),
}


# --- helpers --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: tiny.save(name, folder / name) for name in ("sana", "pixart-sigma")}


@pytest.fixture(scope="session")
def sprint_base(bases: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Sana-Sprint is published: the parts of Sana under another pipeline and scheduler."""
    folder = tmp_path_factory.mktemp("sprint") / "base"
    pipeline = diffusers.SanaPipeline.from_pretrained(bases["sana"])
    parts = pipeline.components | {"scheduler": diffusers.SCMScheduler()}
    diffusers.SanaSprintPipeline(**parts).save_pretrained(folder)
    return folder


def command(model: str, checkpoint: Path, out: Path, base: Path | str | None, **more: Any) -> Any:
    """What the command line does, in this process."""
    convert(model, checkpoint, out, None if base is None else str(base), **more)
    return json.loads((out / "conversion.json").read_text())


def saved(state: Mapping[str, Any], path: Path) -> Path:
    torch.save(dict(state), path)
    return path


def original(model: str, **changes: Any) -> State:
    network = sana_network(**changes) if model == "sana" else pixart_network(**changes)
    return network.state_dict()


def transformer(folder: Path) -> Any:
    found = json.loads((folder / "model_index.json").read_text())["transformer"][1]
    return getattr(diffusers, found).from_pretrained(folder / "transformer").eval()


def refused(
    match: str, model: str, content: Mapping[str, Any], folder: Path, base: Any, **more: Any
) -> UserError:
    """The conversion is refused with a message of that form, and leaves nothing."""
    checkpoint, out = saved(content, folder / "checkpoint.pth"), folder / "out"
    with pytest.raises(UserError, match=match) as caught:
        command(model, checkpoint, out, base, **more)
    assert not out.exists()
    assert not list(folder.glob(".tmp-*"))
    return caught.value


# --- what comes out -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
def test_converted_network_answers_as_the_original(
    kind: str, bases: Mapping[str, Path], sprint_base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model, build = NETWORKS[kind]
    network = build().eval()
    guided = hasattr(network, "cfg_embedder")
    checkpoint = saved({"state_dict": network.state_dict()}, tmp_path / "epoch_1.pth")
    base = sprint_base if guided else bases[model]
    record = command(model, checkpoint, tmp_path / "out", base)
    assert record["weights"] == "state_dict"
    assert record["loaded_by"] == ("diffusers" if guided else model)
    made = transformer(tmp_path / "out")
    if made.config.get("qk_norm"):
        # The output shows no exchange of these two: attention sees their product.
        for part in ("norm_q", "norm_k"):
            old = network.state_dict()[f"blocks.1.cross_attn.{part[-1]}_norm.weight"]
            assert torch.equal(made.state_dict()[f"transformer_blocks.1.attn2.{part}.weight"], old)
            old = network.state_dict()[f"blocks.1.attn.{part[-1]}_norm.weight"]
            assert torch.equal(made.state_dict()[f"transformer_blocks.1.attn1.{part}.weight"], old)
    side = network.base * network.patch
    assert made.config.sample_size == side
    mask = torch.ones(2, 5)
    mask[1, 3:] = 0
    for height, width in ((side, side), (side, 2 * side)):
        x, y = torch.randn(2, CHANNELS, height, width), torch.randn(2, 5, CAPTIONS)
        t, guidance = torch.tensor([17, 801]), torch.tensor([0.3, 0.45]) if guided else None
        more = {"guidance": guidance} if guided else {}
        with torch.inference_mode():
            expected = network(x, t, y, mask, guidance)
            found = made(
                x, encoder_hidden_states=y, timestep=t, encoder_attention_mask=mask, **more
            ).sample
        assert expected.std() > 0.3
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


INVERSE = [
    # Longest first: each is replaced wherever it stands in a name of diffusers.
    ("patch_embed.proj", "x_embedder.proj"),
    ("pos_embed.proj", "x_embedder.proj"),
    ("caption_projection.linear_", "y_embedder.y_proj.fc"),
    ("caption_norm", "attention_y_norm"),
    ("time_embed.emb.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_embed.emb.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("adaln_single.emb.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("adaln_single.emb.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_embed.linear", "t_block.1"),
    ("adaln_single.linear", "t_block.1"),
    ("proj_out", "final_layer.linear"),
    ("transformer_blocks.", "blocks."),
    ("attn1.to_out.0", "attn.proj"),
    ("attn2.to_out.0", "cross_attn.proj"),
    ("attn2.to_q", "cross_attn.q_linear"),
    ("ff.conv_inverted", "mlp.inverted_conv.conv"),
    ("ff.conv_depth", "mlp.depth_conv.conv"),
    ("ff.conv_point", "mlp.point_conv.conv"),
    ("ff.net.0.proj", "mlp.fc1"),
    ("ff.net.2", "mlp.fc2"),
]


def to_original(state: State) -> State:
    """diffusers' names to the original ones, written apart from the converter's rules."""
    found: State = {}
    for name, value in state.items():
        if "attn1.to_q" in name:
            parts = [state[name.replace("to_q", f"to_{each}")] for each in "qkv"]
            name, value = name.replace("attn1.to_q", "attn.qkv"), torch.cat(parts)
        elif "attn2.to_k" in name:
            parts = [value, state[name.replace("to_k", "to_v")]]
            name, value = name.replace("attn2.to_k", "cross_attn.kv_linear"), torch.cat(parts)
        elif "attn1.to_k" in name or "to_v" in name:
            continue
        for old, new in INVERSE:
            name = name.replace(old, new)
        found["final_layer." * (name == "scale_shift_table") + name] = value
    return found


@pytest.mark.parametrize("model", ["sana", "pixart-sigma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_gives_the_same_pipeline(
    model: str, dtype: torch.dtype, bases: Mapping[str, Path], tmp_path: Path
) -> None:
    base = transformer(bases[model])
    state = to_original({name: value.to(dtype) for name, value in base.state_dict().items()})
    state["pos_embed"] = torch.zeros(1, 4, 16)
    if model == "pixart-sigma":
        state["pos_embed"] = base.pos_embed.pos_embed
    out = tmp_path / "out"
    command(model, saved(state, tmp_path / "c.pth"), out, bases[model])
    stored = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == base.state_dict().keys()
    for name, value in base.state_dict().items():
        assert torch.equal(stored[name], value.to(dtype)), name
    images = []
    for folder in (bases[model], out):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        images.append(
            pipeline(
                tiny.PROMPTS[0],
                height=64,
                width=64,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(3),
                output_type="np",
                use_resolution_binning=False,
            ).images
        )
    assert images[0].std() > 0.01
    if dtype == torch.float32:
        assert np.array_equal(*images)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.slow
def test_command_line(bases: Mapping[str, Path], tmp_path: Path) -> None:
    """As a user types it; the base lies in the hub's cache, as links to blobs."""
    desk = Desk.new(tmp_path)
    saved({"state_dict": original("sana"), "epoch": 3}, desk.home / "epoch_3.pth")
    snapshot = tmp_path / "hub" / "hub" / "models--some--base" / "snapshots" / COMMIT
    for path in filter(Path.is_file, bases["sana"].rglob("*")):
        link = snapshot / path.relative_to(bases["sana"])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    done = desk.run(
        *("convert", "sana", "epoch_3.pth", "made", "--base", f"some/base@{COMMIT}"),
        HF_HOME=str(tmp_path / "hub"),
    )
    assert "chexgenbench run --model sana:made" in done.out
    made = desk.home / "made"
    record = json.loads((made / "conversion.json").read_text())
    assert record["base"] == {"source": "some/base", "revision": COMMIT}
    assert record["checkpoint"]["file"] == "epoch_3.pth"
    assert len(record["checkpoint"]["sha256"]) == 64
    assert record["weights"] == "state_dict"
    assert record["ignored"] == ["pos_embed", "y_embedder.y_embedding"]
    assert str(tmp_path) not in json.dumps(record)
    assert not any(path.is_symlink() for path in made.rglob("*"))


@pytest.mark.parametrize("model", ["sana", "pixart-sigma"])
def test_the_plugin_loads_it(model: str, bases: Mapping[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command(model, saved(original(model), tmp_path / "c.pth"), out, bases[model])
    plugin = load_registry(home=tmp_path).find("models", f"{model}:{out}")
    values = {"size": 64, "steps": 2, "use_resolution_binning": False}
    parameters = plugin.parse(values)
    context = Context(home=tmp_path, cache=tmp_path)
    files = set(plugin.load().weights(parameters, context))
    assert "transformer/diffusion_pytorch_model.safetensors" in files
    assert "conversion.json" not in files
    requests = [Request(id="a", prompt_id="a", prompt=tiny.PROMPTS[0], seed=1)]
    plugin.load().check(parameters, context, requests)
    (made,) = plugin.create(parameters, context).generate(requests)
    assert np.asarray(getattr(made, "image", made)).shape[:2] == (64, 64)


def test_models_without_converter_and_unknown_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'noise' has no converter") as caught:
        command("noise", tmp_path / "c.pth", tmp_path / "out", None)
    assert "pixart-sigma, sana" in str(caught.value.hint)
    with pytest.raises(UserError, match="no model named 'sanna'"):
        command("sanna", tmp_path / "c.pth", tmp_path / "out", None)


def test_only_what_is_loaded_is_copied(bases: Mapping[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["sana"], base)
    for extra in ("vae/diffusion_pytorch_model.fp16.safetensors", "vae/notes.md", "whole.ckpt"):
        (base / extra).write_bytes(b"x")
    command("sana", saved(original("sana"), tmp_path / "c.pth"), tmp_path / "out", base)
    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert made == {str(path.relative_to(bases["sana"])) for path in bases["sana"].rglob("*.*")} | {
        "conversion.json"
    }
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask


# --- what checkpoints hold ------------------------------------------------------------------


def test_averaged_weights_are_taken_and_said(bases: Mapping[str, Path], tmp_path: Path) -> None:
    plain, average = original("sana"), original("sana")
    checkpoint = saved({"state_dict": plain, "state_dict_ema": average}, tmp_path / "c.pth")
    for setting, name, expected in (
        ("ema=true", "state_dict_ema", average),
        ("ema=false", "state_dict", plain),
    ):
        out = tmp_path / name
        record = command("sana", checkpoint, out, bases["sana"], settings=[setting])
        assert record["weights"] == name
        stored = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
        assert torch.equal(stored["proj_out.weight"], expected["final_layer.linear.weight"])


@given(
    st.lists(st.sampled_from(["module.", "_orig_mod.", "base_model.", "model."]), max_size=3),
    st.sampled_from([None, "state_dict", "model"]),
    st.sampled_from([".pth", ".safetensors"]),
)
def test_wrappers_are_taken_off(
    tmp_path_factory: pytest.TempPathFactory, prefixes: list[str], key: str | None, suffix: str
) -> None:
    state = {"t_block.1.weight": torch.arange(4.0), "x_embedder.proj.bias": torch.ones(3)}
    wrapped = {"".join(prefixes) + name: value for name, value in state.items()}
    path = tmp_path_factory.getbasetemp() / f"wrapped{suffix}"
    if suffix == ".safetensors":
        save_file(wrapped, path)
    else:
        torch.save(wrapped if key is None else {key: wrapped, "epoch": 2}, path)
    context = Context(home=path.parent, cache=path.parent)
    found, _ = read_checkpoint(path, ema=True, context=context)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_random_states_of_the_trainer_are_no_pickle_of_code(
    bases: Mapping[str, Path], tmp_path: Path
) -> None:
    """Sana's trainer saves those of torch, NumPy and Python beside the weights."""
    content = {
        "state_dict": original("sana"),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": []},
        "scheduler": {"last_epoch": 3, "lr_lambdas": [None]},
        "rng_state": {
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),  # noqa: NPY002
            "python": random.getstate(),
        },
    }
    checkpoint = saved(content, tmp_path / "c.pth")
    assert command("sana", checkpoint, tmp_path / "out", bases["sana"])["weights"] == "state_dict"


class Opaque:
    """A class of the trainer's own."""


def test_pickles_of_more_are_refused_and_accepted_on_the_users_word(
    bases: Mapping[str, Path], tmp_path: Path
) -> None:
    content = {"state_dict": original("sana"), "config": Opaque()}
    error = refused("holds more than tensors.*Opaque", "sana", content, tmp_path, bases["sana"])
    assert "\x1b" not in error.message
    assert "--allow-pickle" in str(error.hint)
    out = tmp_path / "out"
    command("sana", tmp_path / "checkpoint.pth", out, bases["sana"], allow_pickle=True)
    assert (out / "model_index.json").is_file()


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps({"a": 1})])
def test_broken_files(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    context = Context(home=tmp_path, cache=tmp_path)
    with pytest.raises(UserError, match=name):
        read_checkpoint(tmp_path / name, ema=True, context=context)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {"a": "b"}}])
def test_files_without_a_state_dict(content: dict[str, Any], tmp_path: Path) -> None:
    context = Context(home=tmp_path, cache=tmp_path)
    with pytest.raises(UserError, match="no state dict"):
        read_checkpoint(saved(content, tmp_path / "c.pth"), ema=True, context=context)


# --- checkpoints of other networks ----------------------------------------------------------


@pytest.mark.parametrize("model", ["sana", "pixart-sigma"])
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("blocks.1.attn.proj.bias", "lacks 1 tensors of .*'blocks.1.attn.proj.bias'"),
        ("blocks.2.attn.qkv.weight", "lacks 1 tensors of .*'blocks.2.attn.qkv.weight'"),
        ("x_embedder.proj.weight", "lacks 'x_embedder.proj.weight'"),
        ("final_layer.scale_shift_table", "lacks 1 tensors.*'final_layer.scale_shift_table'"),
    ],
)
def test_missing_tensors(
    model: str, name: str, match: str, bases: Mapping[str, Path], tmp_path: Path
) -> None:
    state = original(model)
    del state[name]
    refused(match, model, state, tmp_path, bases[model])


@pytest.mark.parametrize("model", ["sana", "pixart-sigma"])
@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("blocks.1.surprise.weight", (2,), "1 tensors that are not of .*'blocks.1.surprise"),
        ("blocks.1.attn.proj.weight", (16, 8), r"'blocks.1.attn.proj.weight'.*\[16, 8\]"),
        ("blocks.1.cross_attn.kv_linear.weight", (31, 16), "cannot be cut into 2"),
        ("blocks.1.cross_attn.kv_linear.weight", (40, 16), "'blocks.1.cross_attn.kv_linear"),
        ("x_embedder.proj.weight", (16, 4), "'x_embedder.proj.weight' has 2 axes"),
        ("pos_embed", (1, 5, 16), "not the table of sines"),
        ("pos_embed", (5, 16), "not of the shape"),
    ],
)
def test_unknown_and_misshapen_tensors(
    model: str,
    name: str,
    shape: tuple[int, ...],
    match: str,
    bases: Mapping[str, Path],
    tmp_path: Path,
) -> None:
    refused(match, model, original(model) | {name: torch.ones(shape)}, tmp_path, bases[model])


@pytest.mark.parametrize(
    ("model", "name", "match"),
    [
        ("sana", "blocks.0.attn.qkv.bias", "softmax self-attention"),
        ("pixart-sigma", "csize_embedder.mlp.0.weight", "micro-conditions"),
        ("pixart-sigma", "blocks.0.attn.q_norm.bias", "norm of queries and keys"),
        ("pixart-sigma", "blocks.2.attn.sr.weight", "compressed keys and values"),
    ],
)
def test_networks_that_diffusers_does_not_have(
    model: str, name: str, match: str, bases: Mapping[str, Path], tmp_path: Path
) -> None:
    state = original(model) | {name: torch.ones(3 * WIDTH)}
    refused(f"{name}.*{match}", model, state, tmp_path, bases[model])


def test_norms_of_one_attention_alone(bases: Mapping[str, Path], tmp_path: Path) -> None:
    """diffusers has one switch for both attentions."""
    state = original("sana", norm=True)
    both = {name: value for name, value in state.items() if "cross_attn.q_norm" not in name}
    refused("lacks 3 tensors.*cross_attn.q_norm", "sana", both, tmp_path, bases["sana"])
    cross = {name: value for name, value in state.items() if ".attn.q_norm" not in name}
    refused("has 9 tensors.*attn.k_norm", "sana", cross, tmp_path, bases["sana"])


def test_the_other_network_and_diffusers_own_names(
    bases: Mapping[str, Path], tmp_path: Path
) -> None:
    refused("not of pixart-sigma", "pixart-sigma", original("sana"), tmp_path, bases["sana"])
    refused("softmax self-attention", "sana", original("pixart-sigma"), tmp_path, bases["sana"])
    state = transformer(bases["sana"]).state_dict()
    error = refused("names of diffusers already", "sana", state, tmp_path, bases["sana"])
    assert "--model sana:FOLDER" in str(error.hint)


# --- size, heads, base ----------------------------------------------------------------------


@pytest.mark.parametrize("model", ["sana", "pixart-sigma"])
def test_image_size_is_read_or_asked_for(
    model: str, bases: Mapping[str, Path], tmp_path: Path
) -> None:
    state = original(model)
    refused("not for 512", model, state, tmp_path, bases[model], settings=["size=512"])
    del state["pos_embed"]
    error = refused("no 'pos_embed'", model, state, tmp_path, bases[model])
    assert "--set size=" in str(error.hint)
    for size in (65, 0, -64):
        wrong = [f"size={size}"]
        refused("no positive multiple", model, state, tmp_path, bases[model], settings=wrong)
    for size, scale in ((512, 1.0), (1024, 2.0), (4096, 8.0)):
        out = tmp_path / str(size)
        command(model, tmp_path / "checkpoint.pth", out, bases[model], settings=[f"size={size}"])
        config = json.loads((out / "transformer" / "config.json").read_text())
        factor = 32 if model == "sana" else 8
        assert config["sample_size"] == size // factor
        if model == "sana":
            scale = None if size <= 1024 else size / 2048
        assert config["interpolation_scale"] == scale


def test_heads_come_from_base_or_setting(bases: Mapping[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["sana"], base)
    config = json.loads((base / "transformer" / "config.json").read_text())
    (base / "transformer" / "config.json").write_text(
        json.dumps(config | {"cross_attention_dim": 24, "attention_head_dim": 4})
    )
    state = original("sana")
    error = refused("16 channels wide.*heads", "sana", state, tmp_path, base)
    assert "--set cross_attention_heads=" in str(error.hint)
    wrong = ["cross_attention_heads=3"]
    refused("does not divide", "sana", state, tmp_path, base, settings=wrong)
    out = tmp_path / "made"
    right = ["cross_attention_heads=8", "sana.head_width=16"]
    command("sana", tmp_path / "checkpoint.pth", out, base, settings=right)
    made = transformer(out).config
    assert (made.num_attention_heads, made.attention_head_dim) == (1, 16)
    assert (made.num_cross_attention_heads, made.cross_attention_head_dim) == (8, 2)


@pytest.mark.parametrize("width", [1152, 2240])
def test_heads_of_the_published_networks(width: int) -> None:
    """As in diffusers' script, where the base has no transformer."""
    found = sana._heads(width, {}, None, None)
    published = {
        1152: dict(zip(found, (36, 32, 16, 72), strict=True)),
        2240: dict(zip(found, (70, 32, 20, 112), strict=True)),
    }
    assert found == published[width]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["sise=512"], "no setting of the converter of 'sana' named 'sise'"),
        (["size=big"], "Wrong setting size"),
        (["size"], "not name=value"),
    ],
)
def test_settings_are_checked(settings: list[str], match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        command("sana", tmp_path / "c.pth", tmp_path / "out", None, settings=settings)


def test_the_page_names_all_settings() -> None:
    page = Path(__file__).parent.parent / "docs" / "convert.md"
    listed = set(
        re.findall(r"^\| `(\w+)` \| (?:both|sana|pixart-sigma) \|", page.read_text(), re.M)
    )
    known = inspect.getfullargspec(sana.convert).kwonlyargs
    assert listed == {*known, *inspect.getfullargspec(pixart_sigma.convert).kwonlyargs}


def test_bases_that_do_not_go_with_it(
    bases: Mapping[str, Path], sprint_base: Path, tmp_path: Path
) -> None:
    state = original("sana")
    refused("a PixArtSigmaPipeline", "sana", state, tmp_path, bases["pixart-sigma"])
    refused("for SanaPipeline.*SanaSprintPipeline", "sana", state, tmp_path, sprint_base)
    pixart = original("pixart-sigma")
    refused("is a SanaPipeline", "pixart-sigma", pixart, tmp_path, bases["sana"])
    refused("no model_index.json", "sana", state, tmp_path, tmp_path)
    refused("not on this machine", "sana", state, tmp_path, "nobody/nothing")
    for part, key, match in (
        ("vae", "latent_channels", "latents of 4 channels"),
        ("text_encoder", "hidden_size", "captions of 16 channels"),
    ):
        base = tmp_path / part
        shutil.copytree(bases["sana"], base)
        path = base / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: 99}))
        refused(match, "sana", state, tmp_path, base)


def test_bases_that_are_not_whole_or_not_safe(bases: Mapping[str, Path], tmp_path: Path) -> None:
    state, base = original("sana"), tmp_path / "base"
    shutil.copytree(bases["sana"], base)
    (base / "vae" / "diffusion_pytorch_model.safetensors").rename(base / "vae" / "model.bin")
    refused("pickles", "sana", state, tmp_path, base)
    (base / "vae" / "model.bin").unlink()
    refused("lacks the weights of vae", "sana", state, tmp_path, base)
    shutil.rmtree(base / "vae")
    refused("lacks its part vae", "sana", state, tmp_path, base)
    index = json.loads((base / "model_index.json").read_text())
    index["vae"] = ["my_vae", "MyVae"]
    (base / "model_index.json").write_text(json.dumps(index))
    refused("foreign code.*my_vae", "sana", state, tmp_path, base)


def test_a_base_at_a_commit_of_the_hubs_cache(
    bases: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(bases["sana"], tmp_path / "hub/models--me--base/snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    checkpoint = saved(original("sana"), tmp_path / "c.pth")
    made = command("sana", checkpoint, tmp_path / "out", f"me/base@{commit}")
    assert made["base"] == {"source": "me/base", "revision": commit}


def test_a_base_with_an_adapter(bases: Mapping[str, Path], tmp_path: Path) -> None:
    base = shutil.copytree(bases["sana"], tmp_path / "base")
    (base / "text_encoder" / "adapter_config.json").write_text("{}")
    refused("hold an adapter", "sana", original("sana"), tmp_path, base)


def test_what_is_there_stays(bases: Mapping[str, Path], tmp_path: Path) -> None:
    checkpoint = saved(original("sana"), tmp_path / "c.pth")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        command("sana", checkpoint, out, bases["sana"])
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    command("sana", checkpoint, out, bases["sana"])
    assert (out / "model_index.json").is_file()


# --- name rules and tables ------------------------------------------------------------------

RULES = {
    "sana": sana._RULES | sana._TIME,
    "sana-sprint": sana._RULES | sana._GUIDED_TIME,
    "pixart-sigma": pixart_sigma._RULES,
}


@given(
    st.sampled_from(sorted(RULES)),
    st.data(),
    st.integers(0, 120),
    st.sampled_from(["weight", "bias"]),
)
def test_each_name_goes_one_way_and_back(
    kind: str, data: st.DataObject, number: int, ending: str
) -> None:
    rules = RULES[kind]
    module = data.draw(st.sampled_from(sorted(rules)))
    name = module.replace(".N.", f".{number}.")
    name += "" if module.endswith("table") else f".{ending}"
    targets = rename(name, rules)
    assert targets is not None
    for target in targets:
        assert original_name(target, rules) == name
        assert "N" not in target
        assert target.startswith("transformer_blocks.") == name.startswith("blocks.")
        assert (f".{number}." in target) or not name.startswith("blocks.")
    every = [each for found in rules.values() for each in found]
    assert len(every) == len(set(every))


@given(st.text(st.sampled_from("abkqv_.N0159"), max_size=30))
def test_names_without_a_rule(name: str) -> None:
    for rules in RULES.values():
        assert rename(name, rules) is None or name.removesuffix(".weight") in rules


@given(
    st.integers(2, 12),
    st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_scale_of_positions(side: int, scale: float, dtype: torch.dtype) -> None:
    network = Original(linear=False, side=side, patch=1, scale=scale)
    state = {"pos_embed": network.pos_embed.to(dtype)}
    assert position_scale(state) == scale
    assert image_size(state, patch=1, factor=8, size=None) == 8 * side


def test_depth() -> None:
    assert depth({"blocks.9.a": torch.ones(1), "blocks.10.a": torch.ones(1), "b": None}) == 11
