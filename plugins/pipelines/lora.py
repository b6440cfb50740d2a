"""LoRA files: found, held against the networks that they are for, and loaded without a remainder.

diffusers passes over most of what does not fit: another prefix changes nothing, half a match
applies half, and Flux enlarges its own weights where the width differs. Here each of these is an
error that names what does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexgenbench import Context, UserError
from chexgenbench.types import Download
from chexgenbench_plugins.weights import weight_folder

if TYPE_CHECKING:
    import torch

_ADAPTER = "chexgenbench"


def lora_file(
    source: str, name: str | None, context: Context, what: str, download: Download | None = None
) -> Path:
    """The file of a LoRA: `source` itself, or the one in that folder or hub repository.

    Args:
        name: the name under which such files are published, chosen among several.

    Raises:
        UserError: there is none, there are several, or it is no safetensors file.
    """
    file = context.home / Path(source).expanduser()
    if not file.is_file():
        same = download is not None and source == download.source
        folder = weight_folder(
            source,
            revision=download.revision if download is not None and same else None,
            home=context.home,
            what=what,
            download=download,
            kind="models",
        )
        files = sorted(folder.glob("*.safetensors"))
        chosen = [path for path in files if path.name == name] or files
        if not chosen:
            raise UserError(f"The LoRA of {what!r} is missing: no *.safetensors in {folder}.")
        if len(chosen) > 1:
            raise UserError(
                f"The LoRA of {what!r} is not clear: {len(files)} *.safetensors in {folder}"
                f"{f', none of them named {name}' if name else ''}.",
                hint=f"Name the file itself: --set {what}.lora=FILE",
            )
        file = chosen[0]
    if file.suffix != ".safetensors":
        raise UserError(
            f"The LoRA of {what!r} is no safetensors file: {file}.",
            hint="A pickle can run code when it is loaded: convert it where that does no harm.",
        )
    return file


def check_lora(pipeline: Any, file: Path, what: str) -> list[str]:
    """Holds `file` against the networks of `pipeline`, which need no numbers; returns remarks.

    Raises:
        UserError: a name in it fits no layer, or has another width than the layer.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names, notes = list(opened.keys()), opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"The LoRA of {what!r} cannot be read: {file}: {error}") from error
    if any("dora_scale" in name for name in names):
        raise UserError(
            f"The LoRA of {what!r} is a DoRA, which diffusers would apply in part only."
        )
    _layers(pipeline, file, what)
    if "lora_adapter_metadata" in notes or any(name.endswith("alpha") for name in names):
        return []
    return [f"{file.name} does not say its alpha, so alpha = rank is taken: a scale of 1."]


def load_lora(pipeline: Any, file: Path, scale: float, what: str) -> None:
    """Applies the LoRA and makes sure that all of it arrived.

    Raises:
        UserError: see `check_lora`; or a layer that should have it has not.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    wanted = _layers(pipeline, file, what)
    pipeline.load_lora_weights(
        str(file.parent),
        weight_name=file.name,
        adapter_name=_ADAPTER,
        use_safetensors=True,
        local_files_only=True,
    )
    found = {
        (part, name)
        for part in {part for part, _ in wanted}
        for name, layer in getattr(pipeline, part).named_modules()
        if isinstance(layer, BaseTunerLayer) and _ADAPTER in layer.active_adapters
    }
    if found != wanted:
        raise UserError(
            f"The LoRA of {what!r} reached {len(found)} layers, and {file} has {len(wanted)}.",
            hint="Are diffusers and peft as new as the LoRA?",
        )
    pipeline.set_adapters([_ADAPTER], [scale])


def _layers(pipeline: Any, file: Path, what: str) -> set[tuple[str, str]]:
    """The layers (part, name) that `file` changes.

    Raises:
        UserError: a name in it fits no layer, or has another width than the layer.
    """
    kind = type(pipeline).__name__
    if not hasattr(pipeline, "lora_state_dict"):
        raise UserError(f"The model {what!r} takes no LoRA: {kind} has none in diffusers.")
    try:
        # Whatever the naming of the trainer, this is how the pipeline will understand it.
        state = pipeline.lora_state_dict(
            str(file.parent), weight_name=file.name, use_safetensors=True, local_files_only=True
        )
        if isinstance(state, tuple):
            state = state[0]
        return _compare(pipeline, state, file, what)
    except UserError:
        raise
    # Whatever the converters of other trainers' names raise for names that they do not know.
    except Exception as error:
        raise UserError(
            f"The LoRA {file} does not fit {what!r}: its names cannot be understood "
            f"({type(error).__name__}: {error}).",
            hint=f"It must be a LoRA for {kind}.",
        ) from error


def _compare(
    pipeline: Any, state: Mapping[str, torch.Tensor], file: Path, what: str
) -> set[tuple[str, str]]:
    parts = {
        name: getattr(pipeline, name)
        for name in pipeline._lora_loadable_modules
        if getattr(pipeline, name, None) is not None
    }
    layers: set[tuple[str, str]] = set()
    unknown = {name for name in state if name.partition(".")[0] not in parts}
    wide: list[str] = []
    for part, network in parts.items():
        own = {
            name.removeprefix(f"{part}."): value
            for name, value in state.items()
            if name.startswith(f"{part}.")
        }
        modules = dict(network.named_modules())
        pairs: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in _peft_names(own, part, modules).items():
            layer, dot, matrix = name.rpartition(".lora_")
            if dot and matrix in {"A.weight", "B.weight", "B.bias"} and layer in modules:
                pairs.setdefault(layer, {})[matrix] = value
            else:
                unknown.add(f"{part}.{name}")
        for layer, pair in pairs.items():
            weight = getattr(modules[layer], "weight", None)
            if weight is None or not {"A.weight", "B.weight"} <= set(pair):
                unknown.add(f"{part}.{layer}")
            elif (pair["B.weight"].shape[0], pair["A.weight"].shape[1]) != weight.shape[:2]:
                wide.append(
                    f"{layer} is {pair['B.weight'].shape[0]} x {pair['A.weight'].shape[1]}, "
                    f"not {weight.shape[0]} x {weight.shape[1]}"
                )
            else:
                layers.add((part, layer))
    if wide:
        raise UserError(
            f"The LoRA {file} was trained for another width than {what!r} has: {wide[0]}"
            f"{_more(wide)}.",
            hint="Is it for another version of the base model?",
        )
    if not state:
        raise UserError(f"The LoRA {file} is empty.")
    if unknown:
        names = ", ".join(sorted(unknown)[:3])
        raise UserError(
            f"The LoRA {file} does not fit {what!r}: {len(unknown)} of its {len(state)} names fit "
            f"no layer of {', '.join(parts)}: {names}{_more(sorted(unknown)[2:])}.",
            hint=f"It must be a LoRA for {type(pipeline).__name__}, with names such as "
            f"{next(iter(parts), 'transformer')}.….lora_A.weight.",
        )
    return layers


def _peft_names(
    state: Mapping[str, torch.Tensor], part: str, modules: Mapping[str, Any]
) -> Mapping[str, torch.Tensor]:
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    if not state or "lora_A" in next(iter(state)):
        return state
    if not part.startswith("text_encoder"):
        found: Mapping[str, torch.Tensor] = convert_unet_state_dict_to_peft(state)
        return found
    found = convert_state_dict_to_peft(convert_state_dict_to_diffusers(state))
    if "text_model" not in modules:
        found = {name.removeprefix("text_model."): value for name, value in found.items()}
    return found


def _more(names: Iterable[str]) -> str:
    count = len(list(names)) - 1
    return f" and {count} more" if count > 0 else ""
