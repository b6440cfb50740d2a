"""Codes of an image, drawn from a language model one after the other.

The published code samples from the whole vocabulary until 256 tokens happen to be codes; here no
other token can be drawn, so that one pass gives an image. Each row has randomness of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chexgenbench import ChexGenBenchError

if TYPE_CHECKING:
    import torch
    from transformers import GPTNeoXForCausalLM

GRID = 16
LENGTH = GRID * GRID


def draw_codes(
    model: GPTNeoXForCausalLM,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    first: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> torch.Tensor:
    """The codes int64 [n, LENGTH] of an image for each prompt, on the CPU.

    Args:
        model: its vocabulary is `first` tokens of text and then the codes.
        prompts: token ids; the shorter ones are padded on the left.
        seeds: of each row; all randomness of a row comes from it.
        first: the token of code 0.
        temperature, top_k, top_p: as in `choose`.

    Raises:
        ChexGenBenchError: the model gives no numbers.
    """
    import torch

    n, width = len(prompts), max(map(len, prompts))
    device = model.get_output_embeddings().weight.device
    ids = torch.zeros(n, width, dtype=torch.long)
    mask = torch.zeros(n, width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    uniform = torch.stack([torch.rand(LENGTH, generator=g, dtype=torch.double) for g in generators])
    head = model.get_output_embeddings().weight[first:]
    # transformers before 4.32 counts positions by itself, padding included.
    placed = "position_ids" in inspect.signature(model.gpt_neox.forward).parameters
    position = (mask.cumsum(1) - 1).clamp(min=0)
    codes = torch.empty(n, LENGTH, dtype=torch.long)
    past = None
    with torch.inference_mode():
        for step in range(LENGTH):
            result = model.gpt_neox(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=past,
                use_cache=True,
                **({"position_ids": position} if placed else {}),
            )
            past = result.past_key_values
            logits = (result.last_hidden_state[:, -1] @ head.T).double().cpu()
            if not logits.isfinite().all():
                raise ChexGenBenchError(
                    "The language model of 'llm-cxr' gives NaN or infinite scores.",
                    hint="float16 can overflow: use --dtype bfloat16 or float32.",
                )
            codes[:, step] = choose(
                logits, uniform[:, step], temperature=temperature, top_k=top_k, top_p=top_p
            )
            ids = (codes[:, step : step + 1] + first).to(device)
            mask = torch.cat([mask, mask.new_ones(n, 1)], dim=1)
            position = position[:, -1:] + 1
    return codes


def choose(
    logits: torch.Tensor, uniform: torch.Tensor, *, temperature: float, top_k: int, top_p: float
) -> torch.Tensor:
    """One index a row, int64 [n], by inverting the distribution at `uniform`.

    Args:
        logits: float64 [n, k].
        uniform: float64 [n] in [0, 1).
        temperature: divides the logits.
        top_k: the likeliest that stay; 0: all.
        top_p: of those, the smallest set of the likeliest whose mass reaches it stays.
    """
    import torch

    values, order = torch.sort(logits / temperature, dim=1, descending=True, stable=True)
    if top_k:
        values[:, top_k:] = -torch.inf
    mass = values.softmax(1)
    kept = mass.cumsum(1) - mass < top_p
    kept[:, 0] = True
    edges = torch.where(kept, mass, 0).cumsum(1)
    rank = torch.searchsorted(edges, uniform[:, None] * edges[:, -1:], right=True)
    # Rounding can put the product onto the last edge.
    return order.gather(1, rank.minimum(kept.sum(1, keepdim=True) - 1))[:, 0]
