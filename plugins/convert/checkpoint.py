"""The tensors of a training checkpoint, whatever it wraps them in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexgenbench import Context, UserError
from chexgenbench_plugins.weights import read_content

if TYPE_CHECKING:
    import torch

_EMA = ("state_dict_ema", "model_ema", "ema")
_PLAIN = ("state_dict", "model", "module")
# torch.compile, DataParallel, FSDP, Lightning and the wrapper of PixArt's trainer.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "module.", "base_model.", "model.")


def read_checkpoint(
    path: Path, *, ema: bool, context: Context
) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors by their name in the original network, and which of the file's they are.

    Args:
        path: safetensors, or what ``torch.save`` wrote: a state dict, or a training checkpoint
            that holds one as ``state_dict`` and perhaps an averaged one as ``state_dict_ema``.
        ema: take the averaged weights where there are some.

    Raises:
        UserError: no such file, no state dict in it, or a pickle of more than tensors, plain
            values and the random state of NumPy (which Sana's trainer saves).
    """
    if not path.is_file():
        raise UserError(
            f"The checkpoint {path} is not a file.",
            hint="Name the .pth or .safetensors file that the training wrote.",
        )
    content = read_content(
        path,
        "checkpoint",
        allow_pickle=context.allow_pickle,
        allowed=_numpy_random_state(),
    )
    if not isinstance(content, Mapping):
        raise UserError(f"The checkpoint {path} holds a {type(content).__name__}, no state dict.")
    found = "the file itself"
    for name in (*(_EMA if ema else ()), *_PLAIN):
        inner = content.get(name)
        if isinstance(inner, Mapping) and inner:
            content, found = inner, name
            break
    state = {str(name): value for name, value in content.items()}
    if not state or not all(_is_tensor(value) for value in state.values()):
        raise UserError(
            f"The checkpoint {path} holds no state dict: {', '.join(list(state)[:5]) or 'nothing'}."
        )
    return _unwrap(state), found


def _numpy_random_state() -> list[Any]:
    """What a pickled ``numpy.random.get_state()`` is rebuilt by: arrays of uint32, no code."""
    import numpy as np
    from numpy._core.multiarray import _reconstruct

    # NumPy 1 and 2 name one function by two modules.
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    rebuild = [(_reconstruct, f"{module}._reconstruct") for module in modules]
    return [*rebuild, np.ndarray, np.dtype, np.dtypes.UInt32DType]


def _is_tensor(value: object) -> bool:
    import torch

    return torch.is_tensor(value)


def _unwrap(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the prefixes that wrappers put before every name."""
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            return _unwrap({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def image_size(
    state: Mapping[str, torch.Tensor], *, patch: int, factor: int, size: int | None
) -> int:
    """Width and height in pixels that the network was trained for.

    Read off ``pos_embed`` [1, n, width], the table of the n patches, which the trainers save.

    Args:
        patch: pixels of a latent to a patch.
        factor: pixels of the image to one of the latent.
        size: what the user said; None: nothing.

    Raises:
        UserError: neither the table nor the user says, they contradict one another, or the network
            cannot make that size.
    """
    table = state.get("pos_embed")
    if table is not None and table.ndim != 3:
        raise UserError("'pos_embed' of the checkpoint is not of the shape [1, patches, width].")
    found = None if table is None else math.isqrt(table.shape[-2]) * patch * factor
    if found is None and size is None:
        raise UserError(
            "The checkpoint has no 'pos_embed', so its image size is not known.",
            hint="Say it: --set size=512",
        )
    if found is not None and size is not None and found != size:
        raise UserError(
            f"The checkpoint was trained for {found} pixels by its 'pos_embed', not for {size}.",
            hint="Leave out --set size.",
        )
    chosen = size if found is None else found
    assert chosen is not None
    if chosen <= 0 or chosen % (patch * factor):
        raise UserError(f"Size {chosen} is no positive multiple of {patch * factor}.")
    return chosen


def position_scale(state: Mapping[str, torch.Tensor]) -> float | None:
    """What the positions of ``pos_embed`` were divided by; None where it is missing or all zero.

    The table holds sines and cosines of (column, row) / scale (``get_2d_sincos_pos_embed`` of
    PixArt and Sana), so the angle of its second patch says it.

    Raises:
        UserError: the table is not of that form.
    """
    import torch
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    table = state.get("pos_embed")
    if table is None or not bool(table.any()):
        return None
    values = table.detach().double().flatten(0, -2)
    count, width = values.shape
    side = math.isqrt(count)
    scale = 1.0
    if side > 1:
        angle = math.atan2(float(values[1, 0]), float(values[1, width // 4]))
        found = 1 / angle if angle > 0.05 else 0.0
        # Half precision leaves two or three digits of it; the published ones are powers of two.
        power = 2.0 ** round(math.log2(found)) if found else 0.0
        scale = power if abs(found - power) < 0.02 * power else found
    if side**2 == count and scale > 0:
        expected = get_2d_sincos_pos_embed(
            width, side, base_size=side, interpolation_scale=scale, output_type="pt"
        )
        # Checkpoints in half precision keep three digits.
        if torch.allclose(expected.double(), values, atol=5e-3):
            return scale
    raise UserError("'pos_embed' of the checkpoint is not the table of sines that is expected.")
