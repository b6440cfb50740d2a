"""Train the demo's latent diffusion model: python training/phantom_diffusion.py --cache DIR.

Three stages; each keeps its result in the cache folder, so that a stopped training goes on with the
next one: an autoencoder on crops; a UNet with its text encoder on the latents (v-prediction, EMA,
one-cycle AdamW); and the export as a StableDiffusionPipeline folder. Only the 4,000 training images
of the demo split are seen.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from chexgenbench_plugins.phantom.report import vocabulary
from phantom_data import training_side

SEED = 20250516
LENGTH = 60
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("assets/phantom-diffusion"))
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--unet-steps", type=int, default=1400)
    parser.add_argument("--vae-batch", type=int, default=16)
    parser.add_argument("--unet-batch", type=int, default=32)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    options.cache.mkdir(parents=True, exist_ok=True)
    images, prompts = training_side(options.cache)
    pixels = torch.from_numpy(images)[:, None]
    figures: dict[str, object] = {"seed": SEED, "images": len(images), "licence": "Apache-2.0"}
    vae = train_vae(pixels, options, figures)
    latents = encode(vae, pixels, options, figures)
    tokenizer = make_tokenizer()
    text, unet = train_unet(latents, prompts, tokenizer, options, figures)
    export(vae, text, unet, tokenizer, options.out, figures)


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=128,
    )


def one_cycle(step: int, steps: int, peak: float, optimiser: torch.optim.Optimizer) -> None:
    """Warm-up over 5 % of the steps, then a cosine to nothing."""
    share = step / steps
    rate = peak * min(share / 0.05, 0.5 * (1 + float(np.cos(np.pi * share))))
    for group in optimiser.param_groups:
        group["lr"] = max(rate, 1e-6)


def crops(pixels: torch.Tensor, rng: np.random.Generator, count: int) -> torch.Tensor:
    """Random crops float32 [count, 1, 64, 64] in -1..1."""
    rows = rng.integers(0, len(pixels), count)
    tops, lefts = rng.integers(0, 65, (2, count))
    batch = torch.stack(
        [
            pixels[row, :, top : top + 64, left : left + 64]
            for row, top, left in zip(rows, tops, lefts, strict=True)
        ]
    )
    return batch.float() / 127.5 - 1


def likeness(out: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, and the absolute error of the edges."""
    error = out - batch
    edges = (out.diff(dim=-1) - batch.diff(dim=-1)).abs().mean() + (
        out.diff(dim=-2) - batch.diff(dim=-2)
    ).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * edges


def train_vae(pixels: torch.Tensor, options: argparse.Namespace, figures: dict) -> AutoencoderKL:
    vae = new_vae()
    file = options.cache / "vae.pt"
    if file.exists():
        saved = torch.load(file, weights_only=True)
        vae.load_state_dict(saved["model"])
        figures["vae"] = saved["figures"]
        return vae.eval()
    average = copy.deepcopy(vae)
    rng = np.random.default_rng(SEED)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=1.5e-3, weight_decay=0.0)
    start, losses = time.perf_counter(), []
    for step in range(options.vae_steps):
        one_cycle(step, options.vae_steps, 1.5e-3, optimiser)
        batch = crops(pixels, rng, options.vae_batch)
        posterior = vae.encode(batch).latent_dist
        out = vae.decode(posterior.sample()).sample
        loss = likeness(out, batch) + 1e-6 * posterior.kl().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        follow(average, vae, min(0.995, step / (step + 10)))
        losses.append((out - batch).detach().abs().mean().item() * 127.5)
        report("vae", step, losses, start)
    figures["vae"] = {
        "steps": options.vae_steps,
        "batch": options.vae_batch,
        "crop": 64,
        "seconds": round(time.perf_counter() - start),
        "l1_grey_levels": round(float(np.mean(losses[-100:])), 3),
        "parameters": sum(p.numel() for p in vae.parameters()),
    }
    torch.save({"model": average.state_dict(), "figures": figures["vae"]}, file)
    return average.eval()


def report(name: str, step: int, losses: list[float], start: float) -> None:
    if step % 50 == 49:
        mean, seconds = np.mean(losses[-50:]), time.perf_counter() - start
        print(f"{name} {step + 1} loss {mean:.4f} {seconds:.0f} s", flush=True)


@torch.no_grad()
def follow(average: torch.nn.Module, model: torch.nn.Module, keep: float) -> None:
    """Exponential moving average of the weights."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - keep)


@torch.no_grad()
def encode(
    vae: AutoencoderKL, pixels: torch.Tensor, options: argparse.Namespace, figures: dict
) -> torch.Tensor:
    batches = (pixels[i : i + 50].float() / 127.5 - 1 for i in range(0, len(pixels), 50))
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in batches])
    scale = 1 / latents.std().item()
    vae.register_to_config(scaling_factor=scale)
    figures["scaling_factor"] = scale
    return latents * scale


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the report grammar; start and end as CLIP has them."""
    words = ["<|startoftext|>", "<|endoftext|>", "<unk>", *vocabulary()]
    core = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[^\sa-z]"), "removed", invert=True)
    core.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        model_max_length=LENGTH,
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    return tokenizer(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def new_networks(tokenizer: PreTrainedTokenizerFast) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(40, 80, 160),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=128,
    )
    return text, unet


def train_unet(
    latents: torch.Tensor,
    prompts: list[str],
    tokenizer: PreTrainedTokenizerFast,
    options: argparse.Namespace,
    figures: dict,
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    text, unet = new_networks(tokenizer)
    both = torch.nn.ModuleList([text, unet])
    file = options.cache / "unet.pt"
    if file.exists():
        saved = torch.load(file, weights_only=True)
        both.load_state_dict(saved["model"])
        figures["unet"] = saved["figures"]
        return text.eval(), unet.eval()
    torch.manual_seed(SEED)
    average = copy.deepcopy(both)
    tokens, empty = tokenize(tokenizer, prompts), tokenize(tokenizer, [""])
    scheduler = DDPMScheduler(**SCHEDULE)
    optimiser = torch.optim.AdamW(both.parameters(), lr=1.2e-3, weight_decay=0.01)
    start, losses = time.perf_counter(), []
    for step in range(options.unet_steps):
        one_cycle(step, options.unet_steps, 1.2e-3, optimiser)
        rows = torch.randint(0, len(latents), (options.unet_batch,))
        clean = latents[rows]
        read = torch.where(torch.rand(len(rows), 1) < 0.1, empty, tokens[rows])
        noise = torch.randn_like(clean)
        times = torch.randint(0, 1000, (len(rows),))
        noisy = scheduler.add_noise(clean, noise, times)
        target = scheduler.get_velocity(clean, noise, times)
        states = text(read).last_hidden_state
        loss = (unet(noisy, times, states).sample - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        follow(average, both, min(0.995, step / (step + 10)))
        losses.append(loss.item())
        report("unet", step, losses, start)
    figures["unet"] = {
        "steps": options.unet_steps,
        "batch": options.unet_batch,
        "seconds": round(time.perf_counter() - start),
        "loss": round(float(np.mean(losses[-100:])), 4),
        "parameters": sum(p.numel() for p in unet.parameters()),
        "text_parameters": sum(p.numel() for p in text.parameters()),
    }
    torch.save({"model": average.state_dict(), "figures": figures["unet"]}, file)
    return average[0].eval(), average[1].eval()


def export(vae, text, unet, tokenizer, out: Path, figures: dict) -> None:  # type: ignore[no-untyped-def]
    # Training noise never reached the end of the schedule, so sampling starts at its last step.
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, timestep_spacing="trailing")
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(out, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)
    shrink(out / "vae" / "diffusion_pytorch_model.safetensors")
    (out / "training.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def shrink(path: Path) -> None:
    """Stores the half of the autoencoder that text-to-image never calls, the encoder, in 8 bits.

    It is loaded as it would be anyway; what is decoded stays the same to the bit.
    """
    state = load_file(path)
    for name, value in state.items():
        if name.startswith(("encoder.", "quant_conv.")) and value.ndim > 1:
            state[name] = value.to(torch.float8_e4m3fn)
    save_file(state, path, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
