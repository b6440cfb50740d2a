"""The files of LLM-CXR, and its language model loaded from them.

The authors publish two archives: a folder that transformers saved (its weights as
``pytorch_model.bin``) and a VQ-GAN checkpoint with its configuration.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from chexgenbench import Context, UserError
from chexgenbench.errors import first_line
from chexgenbench.files import read_json
from chexgenbench_plugins.weights import one_or_shards, refuse_adapters, staged

if TYPE_CHECKING:
    from transformers import GPTNeoXForCausalLM

PUBLISHED = "https://github.com/hyn2028/llm-cxr#pretrained-models"


def read_settings(folder: Path) -> Mapping[str, Any]:
    """The ``config.json`` of `folder`.

    Raises:
        UserError: it is missing, broken, or of another kind of model.
    """
    settings = read_json(folder / "config.json")
    found = settings.get("model_type") if isinstance(settings, dict) else None
    if found != "gpt_neox":
        raise UserError(f"{folder} holds a {found} model, and LLM-CXR is a gpt_neox.")
    absent = {"vocab_size", "max_position_embeddings"} - settings.keys()
    if absent:
        raise UserError(f"{folder / 'config.json'} lacks {', '.join(sorted(absent))}.")
    return settings


def vqgan_file(place: Path) -> Path:
    """The checkpoint that is `place`, or the one that lies there; safetensors come first.

    Raises:
        UserError: there is none, or several.
    """
    if place.is_file():
        return place
    kinds = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
    found = sorted(path for path in place.glob("*") if path.suffix in kinds)
    safe = [path for path in found if path.suffix == ".safetensors"]
    if len(safe or found) == 1:
        return (safe or found)[0]
    raise UserError(
        f"The VQ-GAN of 'llm-cxr' is {'not the only one' if found else 'not there'}: {place}.",
        hint=f"Name its checkpoint: --set llm-cxr.vqgan=FILE. The published one: {PUBLISHED}",
    )


def language_files(folder: Path) -> Sequence[Path]:
    """The weights that transformers would load, after their index if they are in parts.

    Raises:
        UserError: one is missing or there twice, an adapter, or a pickle of more than tensors.
    """
    refuse_adapters(folder, "llm-cxr")
    for name in ("model.safetensors", "pytorch_model.bin"):
        files = one_or_shards(folder, name, f"{name}.index.json", "llm-cxr")
        for path in files:
            if path.suffix == ".bin" and (objects := foreign_objects(path)):
                raise UserError(
                    f"The weights of 'llm-cxr' are a pickle of more than tensors, which can run "
                    f"code when it is loaded: {path} holds {', '.join(objects[:3])}.",
                    hint="Save its state dict as safetensors on a machine that you can lose.",
                )
        if files:
            return files
    raise UserError(
        f"The weights of 'llm-cxr' are missing: no model.safetensors in {folder}.",
        hint=f"The published ones: {PUBLISHED}",
    )


def language_model(files: Mapping[str, Path], context: Context) -> GPTNeoXForCausalLM:
    """The GPT-NeoX of `files`, by their names in its folder, all of whose weights were there.

    Raises:
        UserError: a weight is missing, or of another shape.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import GPTNeoXForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = files["config.json"].parent
    try:
        with staged(files) as place:
            model, report = GPTNeoXForCausalLM.from_pretrained(
                place,
                torch_dtype=getattr(torch, context.dtype),
                use_safetensors=any(path.suffix == ".safetensors" for path in files.values()),
                local_files_only=True,
                # They are reported then, and refused below.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    # What broken files make the loaders of several versions raise.
    except (OSError, RuntimeError, ValueError, KeyError, UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"The language model of 'llm-cxr' in {folder} cannot be read: {first_line(error)}."
        ) from error
    # Buffers that some versions save and others make: causal masks and rotary frequencies.
    made = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
    absent = [name for name in report["missing_keys"] if not name.endswith(made)]
    faults = [*absent, *map(str, report["mismatched_keys"])]
    if faults:
        raise UserError(
            f"The weights of 'llm-cxr' in {folder} are of another network: "
            f"{', '.join(sorted(faults)[:3])} missing or of another shape."
        )
    return model.eval().requires_grad_(False).to(context.device)


def foreign_objects(path: Path) -> list[str]:
    """Names of what a torch file would import when it is loaded, tensors and containers aside.

    Empty for safetensors, and for torch's format of before 1.6, which torch's restricted loader
    reads or refuses as a whole.
    """
    import torch

    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return []
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    # Whatever a broken file makes it raise.
    except Exception as error:
        raise UserError(f"The weights of 'llm-cxr' cannot be read: {path}: {error}") from error
