"""The denoising network made faster: compiled, or with another kernel for its attention."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from chexgenbench import UserError
from chexgenbench.errors import unknown_name


def set_attention(network: Any, backend: str, what: str) -> None:
    """Computes the attention of `network` by that backend of diffusers.

    Raises:
        UserError: the backend is unknown, would be fetched as code from the hub, is not installed,
            or no layer of `network` can use it, which diffusers passes over in silence.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    # Those of the hub are code of a moving revision that diffusers would fetch and run.
    known = [each.value for each in AttentionBackendName if not each.value.endswith("_hub")]
    if backend not in known:
        raise unknown_name(f"attention of model {what!r}", backend, known)
    if not any(hasattr(each, "_attention_backend") for each in _processors(network)):
        raise UserError(
            f"No layer of {type(network).__name__} in model {what!r} can compute attention "
            f"by {backend!r}: its layers call PyTorch's scaled dot product attention themselves.",
            hint="Leave it out.",
        )
    try:
        network.set_attention_backend(backend)
    # The package that it needs is missing, or too old.
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The attention {backend!r} of model {what!r} cannot be used here: {error}"
        ) from error


def _processors(network: Any) -> list[Any]:
    return [module.processor for module in network.modules() if hasattr(module, "processor")]


def require_compiler(offload: str, device: str, what: str) -> None:
    """Raises `UserError` where a network on `device` could not be compiled."""
    if offload == "sequential":
        raise UserError(
            f"The model {what!r} cannot be compiled with offload=sequential, which swaps layers.",
            hint=f"Set one of the two: --set {what}.compile=false",
        )
    # What compiles for a GPU also writes its launchers in C++.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            f"compile of model {what!r} needs a C++ compiler, and none was found.",
            hint=f"Install g++ or clang++, or --set {what}.compile=false",
        ) from error
    if not device.startswith("cpu") and not has_triton():
        raise UserError(
            f"compile of model {what!r} needs Triton on {device}.",
            hint=f"pip install triton, or --set {what}.compile=false",
        )


def compiled_only() -> AbstractContextManager[object]:
    """Within, a network that was compiled too often raises instead of running uncompiled.

    By default PyTorch (2.14) gives up after eight versions of a network and runs it as it stands,
    so that an image would depend on how many shapes had gone before.
    """
    import torch._dynamo

    return torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True)
