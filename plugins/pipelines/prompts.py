"""How pipelines read prompts: embeddings that can be kept, and what is cut off.

Each prompt is encoded alone, padded to the full length that the model reads, so that its embedding
depends on nothing else: not on the batch, not on what was made before.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Embedding = Mapping[str, torch.Tensor]

_BOTH = ("prompt_embeds", "negative_prompt_embeds")
_POOLED = (*_BOTH, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
_MASKED = (
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
)
ENCODINGS: Mapping[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": _BOTH,
    "StableDiffusionXLPipeline": _POOLED,
    "StableDiffusion3Pipeline": _POOLED,
    "PixArtAlphaPipeline": _MASKED,
    "PixArtSigmaPipeline": _MASKED,
    "SanaPipeline": _MASKED,
    "Lumina2Pipeline": _MASKED,
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
}
"""Pipeline to the arguments of its call that ``encode_prompt`` returns, in its order (diffusers
0.42). Pipelines that are not here are given prompts as text."""

_CACHE_BYTES = 2**28


class PromptEncoder:
    """The text side of a loaded pipeline whose class is in `ENCODINGS`.

    Args:
        pipeline: the pipeline.
        arguments: what its call is given beside prompts, by name.
    """

    def __init__(self, pipeline: Any, arguments: Mapping[str, Any]) -> None:
        self.pipeline = pipeline
        self.outputs = ENCODINGS[type(pipeline).__name__]
        call = inspect.signature(pipeline.__call__).parameters
        encode = inspect.signature(pipeline.encode_prompt).parameters
        # encode_prompt has other defaults than the call that uses it.
        self.fixed = {
            name: arguments.get(name, call[name].default)
            for name in encode
            if name in call and name not in {"prompt", "negative_prompt", "kwargs", *self.outputs}
        }
        self.guided = "do_classifier_free_guidance" in encode
        self.scale = arguments.get("guidance_scale" if self.guided else "true_cfg_scale", 1.0)
        self.negative_text = arguments.get("negative_prompt")
        self._negative: Embedding | None = None
        self._kept: OrderedDict[str, Embedding] = OrderedDict()
        self._bytes = 0

    def arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The arguments of the call for these prompts, tensors with one row a prompt."""
        import torch

        # Asking for it walks all modules, which for a small model costs as much as a prompt.
        device = self.pipeline._execution_device
        rows = [self._positive(prompt, device) for prompt in prompts]
        found = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        if self.scale > 1 and (self.guided or self.negative_text is not None):
            if self._negative is None:
                self._negative = self._encode_negative(device)
            found |= {name: torch.cat([row] * len(rows)) for name, row in self._negative.items()}
        # Some calls have a text as default, and refuse it beside embeddings.
        return {"negative_prompt": None, **found}

    def _positive(self, prompt: str, device: torch.device) -> Embedding:
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        extra = {"do_classifier_free_guidance": False} if self.guided else {}
        made = self._call(device, prompt=[prompt], **extra)
        self._kept[prompt] = made
        self._bytes += _size(made)
        while self._bytes > _CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return made

    def _encode_negative(self, device: torch.device) -> Embedding:
        text = self.negative_text
        if not self.guided:
            made = self._call(device, prompt=[text])
            return {f"negative_{name}": row for name, row in made.items()}
        made = self._call(
            device,
            prompt=[""],
            negative_prompt=None if text is None else [text],
            do_classifier_free_guidance=True,
        )
        return {name: row for name, row in made.items() if name.startswith("negative_")}

    def _call(self, device: torch.device, **texts: Any) -> Embedding:
        given = self.fixed | {"device": device, "num_images_per_prompt": 1}
        made = self.pipeline.encode_prompt(**given, **texts)
        # Flux returns positions as well, which no argument of the call takes.
        return {name: row for name, row in zip(self.outputs, made, strict=False) if row is not None}


def _size(embedding: Embedding) -> int:
    return sum(row.nbytes for row in embedding.values())


class PromptReader:
    """Counts the tokens of prompts as a pipeline does, with or without its weights.

    Attributes:
        limits: tokenizer to the number of tokens that its text encoder is given.
    """

    def __init__(self, pipeline: Any, arguments: Mapping[str, Any]) -> None:
        self.pipeline = pipeline
        self.call = inspect.signature(pipeline.__call__).parameters
        self.given = arguments
        names = [name for name in sorted(pipeline.components) if name.startswith("tokenizer")]
        self.tokenizers = {
            name: pipeline.components[name] for name in names if pipeline.components[name]
        }
        self.limits = {name: each.model_max_length for name, each in self.tokenizers.items()}
        longest = self._argument("max_sequence_length")
        last = next(reversed(self.limits), "")
        # CLIP reads what it was trained for; the last text encoder, what the call says.
        if longest is not None and last and "CLIP" not in type(self.tokenizers[last]).__name__:
            self.limits[last] = longest

    def _argument(self, name: str) -> Any:
        if name in self.given:
            return self.given[name]
        return self.call[name].default if name in self.call else None

    def excess(self, prompts: Sequence[str], *, negative: bool = False) -> dict[str, list[bool]]:
        """For each tokenizer, whether each prompt is longer than what is read of it.

        Args:
            negative: they are negative prompts, before which no pipeline puts a text of its own.
        """
        if not prompts:
            return {name: [] for name in self.tokenizers}
        texts = list(prompts)
        clean = getattr(self.pipeline, "_text_preprocessing", None)
        if clean is not None:
            texts = clean(texts, clean_caption=bool(self._argument("clean_caption")))
        before = ""
        if "system_prompt" in self.call and not negative:
            asked = self._argument("system_prompt")
            before = (self.pipeline.system_prompt if asked is None else asked) + " <Prompt Start> "
        given = None if negative else self._argument("complex_human_instruction")
        instruction = "\n".join(given or ())
        found: dict[str, list[bool]] = {}
        for name, tokenizer in self.tokenizers.items():
            limit = self.limits[name]
            if instruction:
                # Sana puts the instruction before each prompt and reads that much more.
                limit += len(tokenizer.encode(instruction)) - 2
            tokens = tokenizer([f"{before}{instruction}{text}" for text in texts]).input_ids
            found[name] = [len(row) > limit for row in tokens]
        return found

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Whether no text encoder reads the whole prompt."""
        excess = list(self.excess(prompts).values())
        return [all(row) for row in zip(*excess, strict=True)] if excess else [False] * len(prompts)

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        """What of these prompts, and of the negative one, is cut off, in sentences."""
        count = len(prompts)
        found = self._cuts(self.excess(prompts), lambda cut: f"{cut} of {count} prompts are")
        negative = self.given.get("negative_prompt")
        if isinstance(negative, str):
            excess = self.excess([negative], negative=True)
            found += self._cuts(excess, lambda _: "The negative prompt is")
        return found

    def _cuts(
        self, excess: Mapping[str, Sequence[bool]], subject: Callable[[int], str]
    ) -> list[str]:
        found: list[str] = []
        if not excess:
            return found
        widest = max(self.limits, key=lambda name: self.limits[name])
        lost = sum(all(row) for row in zip(*excess.values(), strict=True))
        if lost:
            found.append(
                f"{subject(lost)} longer than the {self.limits[widest]} tokens that this model "
                "reads; the rest is not seen."
            )
        narrow = [name for name in excess if self.limits[name] < self.limits[widest]]
        partly = sum(any(row) for row in zip(*(excess[name] for name in narrow), strict=True))
        if partly:
            tokens = min(self.limits[name] for name in narrow)
            found.append(
                f"{subject(partly)} longer than the {tokens} tokens that "
                f"{' and '.join(_encoder(name) for name in narrow)} of this model read; what comes "
                f"behind is left to {_encoder(widest)}."
            )
        return found


def _encoder(tokenizer: str) -> str:
    return tokenizer.replace("tokenizer", "text_encoder")
