"""A generator of reports: a VisionEncoderDecoderModel, small or from published parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench import UserError
from chexgenbench_plugins.reports.checkpoints import (
    checkpoint,
    cuda_devices,
    last_checkpoint,
    trained_once,
)
from chexgenbench_plugins.reports.images import Chosen
from chexgenbench_plugins.reports.vocabulary import joined, word_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, VisionEncoderDecoderModel

_WHAT = "the report generator"
_FILES_ALONE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""For ``from_pretrained``: no download, and neither code of a folder nor a question about it."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A network that is built and not loaded.

    Attributes:
        width: of both halves.
        layers: of each half.
        heads: of attention; divides `width`.
        patch: pixels a side that one token of the image encoder reads.
    """

    width: int
    layers: int
    heads: int
    patch: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a generator is trained: AdamW, linear warm-up over a tenth of the steps, then a cosine.

    Attributes:
        epochs: passes over the pairs.
        batch_size: pairs a step.
        learning_rate: the highest.
        tokens: of a report at most; what is longer is cut.
        seed: of weights, order and dropout.
        device: a torch device string.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    tokens: int
    seed: int
    device: str


def train(
    images: NDArray[np.uint8] | Chosen,
    texts: Sequence[str],
    folder: Path,
    *,
    training: Training,
    sizes: Sizes,
    encoder: Path | None = None,
    decoder: Path | None = None,
    advance: Callable[[int], None],
) -> Path:
    """Fine-tunes, or trains from random weights, on pairs of an image and its report.

    Each epoch takes its order and its dropout from the seed and its number, and ends with a
    checkpoint: a killed training goes on from there to the same weights. Of several processes with
    one folder the first trains, and the others wait for what it leaves.

    Args:
        images: Grey levels [n, size, size], read a batch at a time.
        texts: The report of each [n].
        folder: For checkpoints and the result.
        training: How.
        sizes: Of the halves that are not loaded.
        encoder: A folder with an image encoder of transformers; None: a ViT of `sizes`.
        decoder: A folder with a text decoder and its tokenizer; None: a GPT-2 of `sizes` with the
            words of `texts`.
        advance: Told of each epoch.

    Returns:
        The folder that `generate` takes.

    Raises:
        UserError: a half cannot be loaded, or the encoder wants other images.
    """

    def work(aside: Path) -> None:
        _train(images, texts, folder, aside, training, sizes, encoder, decoder, advance)

    return trained_once(folder, training.epochs, work, advance)


def _train(
    images: NDArray[np.uint8] | Chosen,
    texts: Sequence[str],
    folder: Path,
    result: Path,
    training: Training,
    sizes: Sizes,
    encoder: Path | None,
    decoder: Path | None,
    advance: Callable[[int], None],
) -> None:
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from transformers import get_cosine_schedule_with_warmup

    quiet()
    with torch.random.fork_rng(cuda_devices(training.device)):
        torch.manual_seed(training.seed)
        network, tokenizer = _build(images.shape[1], texts, training, sizes, encoder, decoder)
        network.to(training.device)
        labels = _labels(tokenizer, texts, training.tokens)
        steps = -(-len(texts) // training.batch_size)
        optimizer = torch.optim.AdamW(network.parameters(), training.learning_rate)
        total = steps * training.epochs
        schedule = get_cosine_schedule_with_warmup(optimizer, total // 10, total)
        # Its state is global, and another metric may have made it for another device.
        AcceleratorState._reset_state(reset_partial_state=True)
        # Placement is ours: accelerate would take the first GPU whatever --device said.
        accelerator = Accelerator(
            device_placement=False,
            cpu=training.device == "cpu",
            mixed_precision="no",
            step_scheduler_with_optimizer=False,
        )
        network, optimizer, schedule = accelerator.prepare(network, optimizer, schedule)
        first, state = last_checkpoint(folder)
        if state is not None:
            accelerator.load_state(str(state))
        advance(first)
        for epoch in range(first, training.epochs):
            torch.manual_seed(training.seed + 1 + epoch)
            order = torch.randperm(len(texts)).numpy()
            network.train()
            for start in range(0, len(order), training.batch_size):
                rows = np.sort(order[start : start + training.batch_size])
                loss = network(
                    pixel_values=_pixels(images[rows], network, training.device),
                    labels=labels[torch.from_numpy(rows)].to(training.device),
                ).loss
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            with checkpoint(folder, epoch + 1) as aside:
                accelerator.save_state(str(aside))
            advance(1)
        accelerator.unwrap_model(network).save_pretrained(result)
        tokenizer.save_pretrained(result)


def check_halves(encoder: Path | None, decoder: Path | None, *, size: int, tokens: int) -> None:
    """Refuses folders that `train` could not use, as far as their configuration tells.

    Args:
        encoder: A folder with an image encoder; None: from scratch.
        decoder: A folder with a text decoder; None: from scratch.
        size: Pixels a side of the images.
        tokens: Of a report at most.

    Raises:
        UserError: a configuration cannot be read, wants code of its own, or is of another kind of
            network, of other images or of shorter texts.
    """
    if encoder is not None:
        wanted = getattr(_config(encoder, "image encoder"), "image_size", None)
        if wanted is None:
            raise UserError(
                f"The image encoder of {_WHAT} in {encoder} is none of images of a fixed size.",
                hint="Name a vision transformer, or take --set report-generation.encoder=scratch",
            )
        if wanted not in (size, [size, size], (size, size)):
            square = wanted if isinstance(wanted, int) else wanted[0]
            raise UserError(
                f"The image encoder of {_WHAT} in {encoder} reads images of {wanted} pixels, not "
                f"of {size}.",
                hint=f"--set report-generation.size={square}",
            )
    if decoder is not None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        config = _config(decoder, "text decoder")
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise UserError(
                f"The text decoder of {_WHAT} in {decoder} writes no text: it is of the kind "
                f"{config.model_type!r}."
            )
        longest = getattr(config, "max_position_embeddings", tokens)
        if longest < tokens:
            raise UserError(
                f"The text decoder of {_WHAT} in {decoder} writes {longest} tokens at most, not "
                f"{tokens}.",
                hint=f"--set report-generation.tokens={longest}",
            )


def _config(folder: Path, half: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, **_FILES_ALONE)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"The {half} of {_WHAT} cannot be loaded: {folder}") from error


def generate(
    images: NDArray[np.uint8] | Chosen,
    folder: Path,
    *,
    tokens: int,
    batch_size: int,
    device: str,
    advance: Callable[[int], None],
) -> list[str]:
    """The most likely report, word by word (greedy), of each image.

    Args:
        images: Grey levels [n, size, size].
        folder: What `train` returned.
        tokens: Of a report at most.
        batch_size: Images at a time.
        device: A torch device string.
        advance: Told of each image.
    """
    import torch
    from transformers import AutoTokenizer, GenerationConfig, VisionEncoderDecoderModel

    quiet()
    tokenizer = AutoTokenizer.from_pretrained(folder, **_FILES_ALONE)
    network = VisionEncoderDecoderModel.from_pretrained(folder, **_FILES_ALONE)
    network.eval().to(device)
    unknown = tokenizer.unk_token_id
    settings = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        decoder_start_token_id=network.config.decoder_start_token_id,
        bos_token_id=network.config.decoder_start_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=None if unknown in (None, tokenizer.eos_token_id) else [unknown],
    )
    reports: list[str] = []
    rows = np.arange(images.shape[0])
    for start in range(0, len(rows), batch_size):
        batch = images[rows[start : start + batch_size]]
        with torch.inference_mode():
            ids = network.generate(
                pixel_values=_pixels(batch, network, device), generation_config=settings
            )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        reports += [joined(text) for text in texts]
        advance(len(batch))
    return reports


def quiet() -> None:
    """Keeps the progress bars and remarks of transformers away from ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # accelerate warns of tied weights, which are saved once.
    getLogger("accelerate").setLevel(ERROR)


def _build(
    size: int,
    texts: Sequence[str],
    training: Training,
    sizes: Sizes,
    encoder: Path | None,
    decoder: Path | None,
) -> tuple[VisionEncoderDecoderModel, PreTrainedTokenizerBase]:
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoTokenizer,
        GPT2Config,
        GPT2LMHeadModel,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTModel,
    )

    check_halves(encoder, decoder, size=size, tokens=training.tokens)
    options = _FILES_ALONE | {"use_safetensors": True}
    tokenizer: Any
    if decoder is None:
        tokenizer = word_tokenizer(texts)
        writer: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=training.tokens + 1,
                n_embd=sizes.width,
                n_layer=sizes.layers,
                n_head=sizes.heads,
                add_cross_attention=True,
                is_decoder=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(decoder, **_FILES_ALONE)
            config = _config(decoder, "text decoder")
            config.is_decoder = config.add_cross_attention = True
            writer = AutoModelForCausalLM.from_pretrained(decoder, config=config, **options)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"The text decoder of {_WHAT} cannot be loaded: {decoder}") from error
        if tokenizer.eos_token_id is None:
            tokenizer.eos_token = tokenizer.sep_token
        if tokenizer.bos_token_id is None:
            tokenizer.bos_token = tokenizer.cls_token or tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
    if encoder is None:
        reader: Any = ViTModel(
            ViTConfig(
                image_size=size,
                patch_size=sizes.patch,
                num_channels=1,
                hidden_size=sizes.width,
                num_hidden_layers=sizes.layers,
                num_attention_heads=sizes.heads,
                intermediate_size=4 * sizes.width,
            ),
            add_pooling_layer=False,
        )
    else:
        try:
            reader = AutoModel.from_pretrained(encoder, **options)
        except (OSError, ValueError) as error:
            raise UserError(f"The image encoder of {_WHAT} cannot be loaded: {encoder}") from error
    network = VisionEncoderDecoderModel(encoder=reader, decoder=writer)
    network.config.decoder_start_token_id = tokenizer.bos_token_id
    network.config.pad_token_id = tokenizer.pad_token_id
    network.config.eos_token_id = tokenizer.eos_token_id
    return network, tokenizer


def _labels(tokenizer: Any, texts: Sequence[str], tokens: int) -> torch.Tensor:
    """Token ids [n, longest] that end with the end token; -100 after it, which no loss counts."""
    import torch

    end = tokenizer.eos_token_id
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows = [[*row[: tokens - 1], end] for row in rows]
    width = max(map(len, rows))
    return torch.tensor([row + [-100] * (width - len(row)) for row in rows])


def _pixels(images: NDArray[np.uint8], network: Any, device: str) -> torch.Tensor:
    """float32 [b, channels, size, size] in -1..1."""
    import torch

    scaled = torch.from_numpy(images.astype(np.float32) / 127.5 - 1)[:, None]
    return scaled.expand(-1, network.config.encoder.num_channels, -1, -1).to(device)
