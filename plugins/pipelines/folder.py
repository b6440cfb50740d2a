"""What lies in the folder of a saved pipeline, read without loading weights."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexgenbench import Context, UserError
from chexgenbench.files import read_json
from chexgenbench_plugins.pipelines.prompts import ENCODINGS
from chexgenbench_plugins.weights import refuse_pickles

_NO_NETWORK = ("scheduler", "tokenizer", "feature_extractor", "processor")
"""Parts with these words in their name have settings and vocabularies alone."""


@dataclass(frozen=True)
class PipelineFolder:
    """A diffusers folder.

    Attributes:
        name: the class of the pipeline.
        parts: part (which is also its subfolder) to library and class.
        left_out: parts that no image depends on here: what reads images, and the safety checker,
            which blanks medical images.
        options: further arguments of the pipeline's constructor.
    """

    path: Path
    name: str
    parts: Mapping[str, tuple[str, str]]
    left_out: tuple[str, ...]
    options: Mapping[str, Any]

    def files(self, context: Context, variant: str | None, what: str) -> dict[str, Path]:
        """The files that decide the images and that loading reads, by ``part/name``.

        Raises:
            UserError: a part is not there, incomplete, or a pickle that the user has not accepted.
        """
        found = {"model_index.json": self.path / "model_index.json"}
        for part, (library, _) in self.parts.items():
            folder = self.path / part
            if any(word in part for word in _NO_NETWORK):
                settings = [path for path in sorted(folder.glob("*")) if path.suffix in _SETTINGS]
                if not settings:
                    raise UserError(f"The weights of {what!r} in {self.path} lack {part}/.")
                found |= {f"{part}/{path.name}": path for path in settings}
            else:
                files = model_files(folder, library, context, variant, what)
                found |= {f"{part}/{path.name}": path for path in files}
        if variant and not any(f".{variant}" in path.name for path in found.values()):
            raise UserError(
                f"The weights of {what!r} in {self.path} have no variant {variant!r}.",
                hint=f"Without --set {what}.variant=... the ordinary ones are read.",
            )
        return found


_LIBRARIES = {"diffusers", "transformers"}
_SETTINGS = {".json", ".txt", ".model", ".jinja"}


def read_folder(path: Path, what: str) -> PipelineFolder:
    """The pipeline in `path`, of which nothing is loaded.

    Raises:
        UserError: it is no diffusers pipeline, or brings code of its own.
    """
    index = path / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{path} is no diffusers pipeline: it has no model_index.json.",
            hint="Name the folder that save_pretrained wrote, not one of its subfolders or a "
            "training checkpoint (chexgenbench convert turns some of those into one).",
        )
    settings = read_json(index)
    name = settings.get("_class_name") if isinstance(settings, dict) else None
    if name is None:
        raise UserError(f"{index} names no pipeline class.")
    listed = {
        part: (value[0], value[1])
        for part, value in settings.items()
        if part[0] != "_" and isinstance(value, list) and len(value) == 2 and value[0] is not None
    }
    left_out = {"safety_checker", "feature_extractor"} if "safety_checker" in settings else set()
    if isinstance(name, str) and name in ENCODINGS:
        left_out |= {"safety_checker", "feature_extractor", "image_encoder"}
    parts = {part: value for part, value in listed.items() if part not in left_out}
    foreign = [] if isinstance(name, str) else [str(name)]
    for part, (library, _) in parts.items():
        if library not in _LIBRARIES and not _in_diffusers(library):
            foreign.append(f"{part} of {library!r}")
    if foreign:
        raise UserError(
            f"The pipeline in {path} brings code of its own ({', '.join(foreign)}), which is not "
            "run.",
            hint="Only parts of diffusers and transformers are loaded.",
        )
    return PipelineFolder(
        path=path,
        name=name,
        parts=parts,
        left_out=tuple(part for part in sorted(left_out) if part in settings),
        options={
            key: False if key == "requires_safety_checker" else value
            for key, value in settings.items()
            if key[0] != "_" and not isinstance(value, list)
        },
    )


def model_files(
    folder: Path, library: str, context: Context, variant: str | None, what: str
) -> list[Path]:
    """Configuration and weights of one network, as ``from_pretrained`` chooses among several.

    Raises:
        UserError: something is missing, or a pickle that the user has not accepted.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"The weights of {what!r} lack {config}.")
    stem, pickled = ("model", "pytorch_model")
    if library == "diffusers":
        stem = pickled = "diffusion_pytorch_model"
    kinds = [(stem, "safetensors")] + ([(pickled, "bin")] if context.allow_pickle else [])
    for name, suffix in kinds:
        for infix in [f".{variant}", ""] if variant else [""]:
            single = folder / f"{name}{infix}.{suffix}"
            index = folder / f"{name}.{suffix}.index{infix}.json"
            if index.is_file():
                shards = read_json(index).get("weight_map", {})
                files = [folder / shard for shard in sorted(set(shards.values()))]
                missing = [path.name for path in files if not path.is_file()]
                if missing or not files:
                    raise UserError(
                        f"The weights of {what!r} in {folder} lack {', '.join(missing) or 'all'}, "
                        f"which {index.name} names."
                    )
                return [config, *files]
            if single.is_file():
                return [config, single]
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise UserError(
            f"The weights of {what!r} in {folder} lack {stem}.safetensors; there is {others[0]}.",
            hint=f"A stored precision is chosen with --set {what}.variant=fp16, say.",
        )
    refuse_pickles(folder, what, allow_pickle=context.allow_pickle)
    raise UserError(f"The weights of {what!r} are missing: no *.safetensors in {folder}.")


def check_whole(files: Iterable[Path], what: str) -> None:
    """Raises `UserError` where a safetensors file is not as long as its header says, or is none."""
    from safetensors import SafetensorError, safe_open

    for path in files:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="np"):
                    pass
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"The weights of {what!r} cannot be read: {path}: {error}.",
                    hint="Was the file copied or fetched as a whole?",
                ) from error


def pipeline_class(name: str) -> Any:
    """The pipeline class of that name in diffusers; `UserError` where there is none."""
    import diffusers

    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise UserError(
            f"diffusers {diffusers.__version__} has no pipeline {name}.",
            hint="A newer one may: pip install -U diffusers",
        )
    return found


def build(folder: PipelineFolder, what: str) -> Any:
    """The pipeline with networks that have shapes and no numbers (torch's ``meta`` device).

    Raises:
        UserError: a part cannot be built from its configuration.
    """
    parts = {
        part: _build_part(folder.path / part, library, name, what)
        for part, (library, name) in folder.parts.items()
    }
    found = pipeline_class(folder.name)
    try:
        return found(**parts, **dict.fromkeys(folder.left_out), **folder.options)
    # Whatever a constructor raises when it is given other parts than it expects.
    except Exception as error:
        raise UserError(
            f"The pipeline of {what!r} in {folder.path} cannot be built: {error}"
        ) from error


def _build_part(folder: Path, library: str, name: str, what: str) -> Any:
    import torch
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    module = library if library in _LIBRARIES else f"diffusers.pipelines.{library}"
    try:
        found = getattr(importlib.import_module(module), name)
        if issubclass(found, ModelMixin):
            with torch.device("meta"):
                return found.from_config(found.load_config(folder, local_files_only=True))
        if issubclass(found, PreTrainedModel):
            config = found.config_class.from_pretrained(folder, local_files_only=True)
            with torch.device("meta"):
                return found(config)
        return found.from_pretrained(folder, local_files_only=True)
    # Whatever the constructors raise for settings that they do not know or that do not fit.
    except Exception as error:
        raise UserError(
            f"{folder.name} of {what!r} cannot be built from {folder}: "
            f"{type(error).__name__}: {str(error).strip() or 'no reason given'}",
            hint="Is the folder whole, and are diffusers and transformers as new as it is?",
        ) from error


def _in_diffusers(library: str) -> bool:
    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None or not str(library).isidentifier():
        return False
    return (Path(spec.origin).parent / "pipelines" / library).is_dir()
