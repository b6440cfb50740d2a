"""Name rules: how the tensors of an original network are called, and cut, in diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from chexgenbench import UserError

if TYPE_CHECKING:
    import torch

Rules = Mapping[str, tuple[str, ...]]
"""Original module or tensor to its names in diffusers; ``N`` stands for a block's number.

Where there are several names, the tensor is cut along its first axis into as many equal parts.
"""

_BLOCK = re.compile(r"^(blocks|transformer_blocks)\.(\d+)\.")
_KINDS = ("weight", "bias")


def rename(name: str, rules: Rules) -> tuple[str, ...] | None:
    """The names in diffusers of the original tensor `name`; None where no rule has it.

    >>> rename("blocks.3.attn.kv.bias", {"blocks.N.attn.kv": ("layers.N.k", "layers.N.v")})
    ('layers.3.k.bias', 'layers.3.v.bias')
    """
    general, number = _general(name)
    module, _, kind = general.rpartition(".")
    if general in rules:
        found, end = rules[general], ""
    elif module in rules and kind in _KINDS:
        found, end = rules[module], f".{kind}"
    else:
        return None
    return tuple(_special(each, number) + end for each in found)


def original_name(name: str, rules: Rules) -> str:
    """The original tensor that becomes `name`, the other way round than `rename`."""
    general, number = _general(name)
    module, _, kind = general.rpartition(".")
    for source, targets in rules.items():
        if general in targets:
            return _special(source, number)
        if module in targets and kind in _KINDS:
            return f"{_special(source, number)}.{kind}"
    return name


def translate(
    state: Mapping[str, torch.Tensor],
    rules: Rules,
    *,
    ignored: Sequence[str],
    refused: Mapping[str, str],
    what: str,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors by their names in diffusers, and the names that were left out.

    Args:
        ignored: tensors that diffusers computes itself or that inference does not need.
        refused: module or tensor (with ``N``) to what it means that diffusers cannot do.
        what: the model's name, for the error.

    Raises:
        UserError: a tensor is neither in the rules nor ignored, or cannot be cut.
    """
    converted: dict[str, torch.Tensor] = {}
    unknown = []
    for name, value in state.items():
        if name in ignored:
            continue
        general = _general(name)[0]
        for pattern, reason in refused.items():
            if general == pattern or general.startswith(f"{pattern}."):
                raise UserError(f"The checkpoint has {name!r}: {reason}.")
        targets = rename(name, rules)
        if targets is None:
            unknown.append(name)
            continue
        if value.ndim == 0 or value.shape[0] % len(targets):
            raise UserError(
                f"The tensor {name!r} of shape {_shape(value)} cannot be cut into {len(targets)}."
            )
        # One tensor is handed on as it is; parts are copied, so that each is saved alone.
        parts = value.chunk(len(targets)) if len(targets) > 1 else (value,)
        for target, part in zip(targets, parts, strict=True):
            converted[target] = part.clone() if len(targets) > 1 else part
    if unknown:
        if any(name.startswith("transformer_blocks.") for name in unknown):
            raise UserError(
                "The checkpoint has the names of diffusers already: it needs no conversion.",
                hint=f"Give its folder to the plugin: --model {what}:FOLDER",
            )
        raise UserError(
            f"The checkpoint has {len(unknown)} tensors that are not of {what}: {_listed(unknown)}."
        )
    return converted, [name for name in ignored if name in state]


def fits(
    converted: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    rules: Rules,
    what: str,
) -> None:
    """Raises `UserError` unless `converted` are the tensors of a network with those `expected`."""
    missing = [original_name(name, rules) for name in expected if name not in converted]
    if missing:
        missing = list(dict.fromkeys(missing))
        raise UserError(
            f"The checkpoint lacks {len(missing)} tensors of {what}: {_listed(missing)}."
        )
    surplus = [original_name(name, rules) for name in converted if name not in expected]
    if surplus:
        surplus = list(dict.fromkeys(surplus))
        raise UserError(
            f"The checkpoint has {len(surplus)} tensors that its kind of {what} has not: "
            f"{_listed(surplus)}."
        )
    for name, value in expected.items():
        found = converted[name]
        if found.shape != value.shape:
            raise UserError(
                f"The tensor {original_name(name, rules)!r} gives {_shape(found)} for {name!r}, "
                f"where {what} of this width has {_shape(value)}."
            )


def shape_of(state: Mapping[str, torch.Tensor], name: str, axes: int, what: str) -> tuple[int, ...]:
    """The shape of a tensor that the architecture is read off; `UserError` where it is missing."""
    if name not in state:
        raise UserError(
            f"The checkpoint lacks {name!r}: it is none of {what}.",
            hint=f"It has {_listed(list(state))}.",
        )
    if state[name].ndim != axes:
        raise UserError(f"The tensor {name!r} has {state[name].ndim} axes, not {axes}.")
    return tuple(state[name].shape)


def depth(state: Mapping[str, torch.Tensor]) -> int:
    """How many blocks there are: one more than the highest number."""
    numbers = [int(found[2]) for name in state if (found := _BLOCK.match(name))]
    return max(numbers, default=-1) + 1


def _general(name: str) -> tuple[str, str]:
    found = _BLOCK.match(name)
    if found is None:
        return name, ""
    return f"{found[1]}.N.{name[found.end() :]}", found[2]


def _special(name: str, number: str) -> str:
    return name.replace(".N.", f".{number}.", 1)


def _shape(value: torch.Tensor) -> str:
    return "[" + ", ".join(map(str, value.shape)) + "]"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
