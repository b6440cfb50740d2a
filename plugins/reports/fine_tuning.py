"""LLaVA-Rad trained on pairs of an image and its report: a new LoRA, and the projector.

The recipe is that of the public code (``scripts/finetune_lora.sh`` of microsoft/LLaVA-Rad): AdamW
without decay, a warm-up over 3 % of the steps and a cosine, gradients clipped to 1, the image
encoder frozen, activations computed again in the backward pass instead of kept.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chexgenbench import Context, UserError
from chexgenbench.files import read_json
from chexgenbench.images import read_image
from chexgenbench_plugins.reports.checkpoints import (
    checkpoint,
    cuda_devices,
    last_checkpoint,
    trained_once,
)
from chexgenbench_plugins.reports.encoder_decoder import Training, quiet
from chexgenbench_plugins.reports.llava_rad import ADAPTER, LlavaRad

if TYPE_CHECKING:
    import torch

_WEIGHTS, _STATE = "trained.safetensors", "state.pt"
_WARM_UP = 0.03
_TOGETHER = 8
"""Images whose reports are written at once: about 7 GB of keys and values for 7 B parameters."""
_READERS = 4

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The network that a training starts from.

    Attributes:
        own: The files of microsoft/llava-rad.
        base: The language model.
        published: Whether the published LoRA and projector are in it from the start.
        context: Device and precision of the frozen weights.
    """

    own: Path
    base: Path
    published: bool
    context: Context


def fine_tune(
    paths: Sequence[Path],
    texts: Sequence[str],
    folder: Path,
    *,
    source: Source,
    training: Training,
    advance: Callable[[int], None],
) -> Path:
    """Trains on pairs of an image and its report.

    Each epoch takes its order and its dropout from the seed and its number, and ends with a
    checkpoint: a killed training goes on from there to the same weights. Of several processes with
    one folder the first trains, and the others wait for what it leaves. What is kept are the
    trained weights alone.

    Args:
        paths: The images.
        texts: The report of each.
        folder: For checkpoints and the result.
        source: What to start from.
        training: How.
        advance: Told of each epoch.

    Returns:
        The folder that `write` takes.

    Raises:
        UserError: a file of the network is missing, broken or of another one.
    """

    def work(result: Path) -> None:
        _train(paths, texts, folder, result, source, training, advance)

    return trained_once(folder, training.epochs, work, advance)


def write(
    paths: Sequence[Path],
    trained: Path,
    *,
    source: Source,
    training: Training,
    advance: Callable[[int], None],
) -> list[str]:
    """The most likely report, word by word (greedy), of each image.

    Args:
        paths: The images.
        trained: What `fine_tune` returned.
        source: What it was given.
        training: What it was given.
        advance: Told of each image.
    """
    import torch
    from safetensors.torch import load_file

    quiet()
    with torch.random.fork_rng(cuda_devices(training.device)):
        model, weights = adapted(source, training.seed)
    _restore(weights, load_file(trained / _WEIGHTS))
    model.language = model.language.merge_and_unload().eval()
    images = ahead(read_image, paths)
    reasons = [None] * len(paths)
    reports: list[str] = []
    for report in model.describe(images, reasons, training.tokens, together=_TOGETHER):
        reports.append(report)
        advance(1)
    return reports


def adapted(source: Source, seed: int) -> tuple[LlavaRad, dict[str, torch.nn.Parameter]]:
    """The network with a new LoRA around its language model, and what is trained of it, by name.

    Trained weights are float32 whatever the precision of the frozen ones: steps of 1e-4 are lost in
    the seven bits of bfloat16.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = LlavaRad(source.own, source.base, source.context, published=source.published)
    try:
        model.language = get_peft_model(model.language, LoraConfig(**lora_settings(source.own)))
    except ValueError as error:
        raise UserError(
            f"The LoRA that {source.own / ADAPTER[0]} describes does not fit {source.base}."
        ) from error
    model.projector.float().requires_grad_(requires_grad=True)
    parts = {"language": model.language, "projector": model.projector}
    trained = {
        f"{part}.{name}": weight
        for part, network in parts.items()
        for name, weight in network.named_parameters()
        if weight.requires_grad
    }
    for weight in trained.values():
        weight.data = weight.data.float()
    return model, trained


def lora_settings(folder: Path) -> dict[str, Any]:
    """Rank, alpha, dropout and layers of the published LoRA; where its file is not there, those of
    the public code.

    Raises:
        UserError: the file is broken or says something else.
    """
    file = folder / ADAPTER[0]
    given = read_json(file) if file.is_file() else {}
    if not isinstance(given, dict):
        raise UserError(f"{file} does not describe a LoRA.")
    rank, alpha = given.get("r", 64), given.get("lora_alpha", 128)
    dropout = given.get("lora_dropout", 0.05)
    layers = given.get("target_modules") or "all-linear"
    named = isinstance(layers, list) and all(isinstance(name, str) for name in layers)
    if not (
        isinstance(rank, int)
        and rank > 0
        and isinstance(alpha, int | float)
        and alpha > 0
        and isinstance(dropout, int | float)
        and 0 <= dropout < 1
        and (named or isinstance(layers, str))
    ):
        raise UserError(f"{file} does not describe a LoRA: r, lora_alpha, lora_dropout, layers.")
    return {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": layers,
        "task_type": "CAUSAL_LM",
    }


def report_loss(model: LlavaRad, pixels: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The negative log likelihood of the report, summed over its tokens.

    Args:
        model: What `adapted` returned.
        pixels: [3, size, size], see `LlavaRad.prepared`.
        ids: Tokens of the report with the end token; nothing of the prompt is predicted.
    """
    import torch

    patches = model.patches(pixels[None])
    kind = torch.device(model.device).type
    with torch.autocast(kind, model.dtype, enabled=model.dtype != torch.float32):
        inputs = torch.cat([model.prompt(patches, None), model.words(ids[:-1])], dim=1)
        found = model.language(inputs_embeds=inputs, use_cache=False, logits_to_keep=len(ids))
    wanted = torch.tensor(ids, device=model.device)
    return torch.nn.functional.cross_entropy(found.logits[0].float(), wanted, reduction="sum")


def ahead(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """``map(work, items)`` with a few of the next already under way in threads."""
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * _READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _train(
    paths: Sequence[Path],
    texts: Sequence[str],
    folder: Path,
    result: Path,
    source: Source,
    training: Training,
    advance: Callable[[int], None],
) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import get_cosine_schedule_with_warmup

    quiet()
    with torch.random.fork_rng(cuda_devices(training.device)):
        model, weights = adapted(source, training.seed)
        # Called gradient checkpointing before transformers 5.
        new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
        enable = getattr(model.language, new if hasattr(model.language, new) else old)
        enable({"use_reentrant": False})
        # A list, because the order of the optimizer's state is that of its parameters.
        moved = list(weights.values())
        optimizer = torch.optim.AdamW(moved, training.learning_rate, weight_decay=0.0)
        total = -(-len(texts) // training.batch_size) * training.epochs
        schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(total * _WARM_UP), total)
        first, saved = last_checkpoint(folder)
        if saved is not None:
            _restore(weights, load_file(saved / _WEIGHTS))
            state = torch.load(saved / _STATE, map_location=training.device, weights_only=True)
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
        advance(first)
        ids = _tokens(model.tokenizer, texts, training.tokens)
        for epoch in range(first, training.epochs):
            torch.manual_seed(training.seed + 1 + epoch)
            order: list[int] = torch.randperm(len(texts)).tolist()
            model.language.train()
            pixels = ahead(lambda path: model.prepared(read_image(path)), [paths[i] for i in order])
            for start in range(0, len(order), training.batch_size):
                rows = order[start : start + training.batch_size]
                count = sum(len(ids[row]) for row in rows)
                # One pair at a time: 1,500 tokens fill a GPU, and nothing must be padded.
                for row in rows:
                    (report_loss(model, next(pixels), ids[row]) / count).backward()
                torch.nn.utils.clip_grad_norm_(moved, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            with checkpoint(folder, epoch + 1) as aside:
                save_file(_kept(weights), aside / _WEIGHTS)
                state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                torch.save(state, aside / _STATE)
            advance(1)
        save_file(_kept(weights), result / _WEIGHTS)


def _tokens(tokenizer: Any, texts: Sequence[str], most: int) -> list[list[int]]:
    """The tokens of each report, cut, with the end token."""
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [[*row[: most - 1], tokenizer.eos_token_id] for row in rows]


def _kept(weights: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}


def _restore(weights: dict[str, torch.nn.Parameter], saved: dict[str, torch.Tensor]) -> None:
    import torch

    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[name])
