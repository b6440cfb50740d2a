"""A tiny LLM-CXR of random weights in the layout and with the names of the published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate, silu

CODES, WIDTH, POSITIONS = 48, 8, 640
REPORTS = [
    "Large left pleural effusion.",
    "The heart is severely enlarged. There is no pneumothorax.",
    "No acute cardiopulmonary process.",
]


class Block(nn.Module):
    """A residual block of taming-transformers (taming/modules/diffusionmodules/model.py)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inside, eps=1e-6)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, outside, eps=1e-6)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """Its attention: one head over all places, projections by 1 x 1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("bcq,bck->bqk", q, k) * x.shape[1] ** -0.5
        seen = torch.einsum("bqk,bck->bcq", weights.softmax(2), v)
        return x + self.proj_out(seen.reshape(x.shape))


class Taming(nn.Module):
    """The parts of its VQModel that turn codes into pixels, under its names.

    Args:
        widths: channels of each level, the finest first; each level but that doubles the size.
        blocks: residual blocks a level in the encoder; the decoder has one more.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 32, 64), blocks: int = 1) -> None:
        super().__init__()
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(CODES, WIDTH)
        self.post_quant_conv = nn.Conv2d(WIDTH, WIDTH, 1)
        self.decoder = decoder = nn.Module()
        decoder.conv_in = nn.Conv2d(WIDTH, widths[-1], 3, padding=1)
        decoder.mid = nn.Module()
        decoder.mid.block_1 = Block(widths[-1], widths[-1])
        decoder.mid.attn_1 = Attention(widths[-1])
        decoder.mid.block_2 = Block(widths[-1], widths[-1])
        above = (*widths[1:], widths[-1])
        decoder.up = nn.ModuleList()
        for level, (inside, width) in enumerate(zip(above, widths, strict=True)):
            up = nn.Module()
            up.block = nn.ModuleList(
                Block(inside if i == 0 else width, width) for i in range(blocks + 1)
            )
            coarsest = level == len(widths) - 1
            up.attn = nn.ModuleList(Attention(width) for _ in range((blocks + 1) * coarsest))
            if level:
                up.upsample = nn.Module()
                up.upsample.conv = nn.Conv2d(width, width, 3, padding=1)
            decoder.up.append(up)
        decoder.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        decoder.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes int64 [n, 256] to pixels [n, 3, h, w], in -1..1 where they are none outside."""
        grid = self.quantize.embedding(codes).reshape(-1, 16, 16, WIDTH).permute(0, 3, 1, 2)
        mid = self.decoder.mid
        x = self.decoder.conv_in(self.post_quant_conv(grid))
        x = mid.block_2(mid.attn_1(mid.block_1(x)))
        for up in reversed(self.decoder.up):
            for i, block in enumerate(up.block):
                x = block(x)
                x = up.attn[i](x) if len(up.attn) else x
            if hasattr(up, "upsample"):
                x = up.upsample.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.decoder.conv_out(silu(self.decoder.norm_out(x)))


def taming(**arguments: Any) -> Taming:
    """Random weights with some contrast: no norm or bias is what a fresh layer has."""
    torch.manual_seed(1)
    network = Taming(**arguments).eval().requires_grad_(False)
    for value in network.parameters():
        value.add_(0.1 * torch.randn_like(value))
    return network


def published_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """As in a checkpoint: with the encoder and the discriminator, which no image needs."""
    return network.state_dict() | {
        "encoder.conv_in.weight": torch.zeros(32, 3, 3, 3),
        "quant_conv.weight": torch.zeros(WIDTH, WIDTH, 1, 1),
        "loss.discriminator.main.0.weight": torch.zeros(8, 3, 4, 4),
    }


def tiny_llm_cxr(folder: Path) -> dict[str, object]:
    """Writes the language model and, in ``vqgan``, its VQ-GAN; returns the plugin's parameters."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(folder / "tokenizer.json")
    state = write_language_model(folder, size + CODES)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "vqgan").mkdir(exist_ok=True)
    checkpoint = {"state_dict": published_state(taming())}
    torch.save(checkpoint, folder / "vqgan" / "mimic-cxr-256-txvloss-4e-compat.ckpt")
    return {"weights": str(folder)}


def write_tokenizer(path: Path) -> int:
    """Byte-level BPE with the special tokens of LLM-CXR; returns its size."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["<image> image Below is an instruction that describes a task.", *REPORTS] * 2,
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"],
            show_progress=False,
        ),
    )
    keys = ["### End", "### Instruction:", "### Response:\n"]
    tokenizer.add_special_tokens([AddedToken(key, normalized=False) for key in keys])
    written = json.loads(tokenizer.to_str())
    # As it was written before tokenizers 0.20, which cannot read the newer form.
    merges = written["model"]["merges"]
    written["model"]["merges"] = [" ".join(m) if isinstance(m, list) else m for m in merges]
    path.write_text(json.dumps(written))
    return tokenizer.get_vocab_size(with_added_tokens=True)


def write_language_model(folder: Path, vocabulary: int) -> dict[str, torch.Tensor]:
    """Writes ``config.json`` as transformers 4.28 did; returns weights that listen to the text."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    settings = {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": POSITIONS,
        "hidden_act": "gelu",
        "rotary_pct": 0.5,
        "rotary_emb_base": 10000,
        "layer_norm_eps": 1e-05,
        "initializer_range": 0.02,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.28.1",
        "use_cache": True,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**settings)).float()
    # transformers 5 calls the head lm_head; the published file has the name of before.
    return {
        name.replace("lm_head", "embed_out"): torch.randn_like(value) * 0.3
        if value.ndim == 2
        else value
        for name, value in model.state_dict().items()
    }
