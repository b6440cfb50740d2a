"""What lies in the folder of a saved pipeline, read without loading weights."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexgenbench import Context, UserError
from chexgenbench.files import read_json
from chexgenbench_plugins.pipelines.prompts import ENCODINGS
from chexgenbench_plugins.weights import one_or_shards, refuse_adapters, refuse_pickles


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
        for part, (library, name) in self.parts.items():
            folder = self.path / part
            kind = part_class(library, name, what)
            if is_network(kind):
                files = network_files(folder, kind, context, variant, what)
            else:
                files = [path for path in sorted(folder.glob("*")) if path.suffix in _SETTINGS]
                if not files:
                    raise UserError(f"The weights of {what!r} in {self.path} lack {part}/.")
                _refuse_automatic(kind, files, what)
            found |= {f"{part}/{path.name}": path for path in files}
        require_variant(found.values(), variant, what)
        return found


_LIBRARIES = {"diffusers", "transformers"}
_SETTINGS = {".json", ".txt", ".model", ".jinja"}
# AutoTokenizer and the like take their class from the folder; AutoencoderKL is a class itself.
_AUTOMATIC = re.compile("Auto[A-Z]")


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
        if part[:1] != "_" and isinstance(value, list) and len(value) == 2 and value[0] is not None
    }
    left_out = {"safety_checker", "feature_extractor"} if "safety_checker" in settings else set()
    if isinstance(name, str) and name in ENCODINGS:
        left_out |= {"safety_checker", "feature_extractor", "image_encoder"}
    parts = {part: value for part, value in listed.items() if part not in left_out}
    foreign = [] if isinstance(name, str) else [str(name)]
    for part, (library, kind) in parts.items():
        if not part.isidentifier():  # it is a folder's name, too
            raise UserError(f"{index} names a part {part!r}, which is no name.")
        if not isinstance(library, str) or not (library in _LIBRARIES or _in_diffusers(library)):
            foreign.append(f"{part} of {library!r}")
        elif not isinstance(kind, str) or _AUTOMATIC.match(kind):
            foreign.append(f"{part}, a {kind}")
        # The library prefers them to its own classes.
        foreign += [f"{part}/{file.name}" for file in sorted((path / part).glob("*.py"))]
    if foreign:
        raise UserError(
            f"The pipeline in {path} brings code of its own ({', '.join(foreign)}), which is not "
            "run.",
            hint="Only parts of diffusers and transformers are loaded, each by its own class.",
        )
    return PipelineFolder(
        path=path,
        name=name,
        parts=parts,
        left_out=tuple(part for part in sorted(left_out) if part in settings),
        options={
            key: False if key == "requires_safety_checker" else value
            for key, value in settings.items()
            if key[:1] != "_" and not isinstance(value, list)
        },
    )


def network_files(
    folder: Path, kind: type, context: Context, variant: str | None, what: str
) -> list[Path]:
    """Configuration and weights of one network, as ``from_pretrained`` of `kind` reads them.

    Of a variant that this network has not, it reads the ordinary files.

    Raises:
        UserError: something is missing or there twice, an adapter, a configuration that names
            another file, or a pickle that the user has not accepted.
    """
    from diffusers import ModelMixin

    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"The weights of {what!r} lack {config}.")
    settings = read_json(config)
    if not isinstance(settings, dict) or "transformers_weights" in settings:
        raise UserError(
            f"The configuration of {what!r} cannot be used: {config} "
            f"{'names a weight file' if isinstance(settings, dict) else 'is no JSON object'}.",
        )
    refuse_adapters(folder, what)
    stem, pickled = "model", "pytorch_model"
    if issubclass(kind, ModelMixin):
        stem = pickled = "diffusion_pytorch_model"
    kinds = [(stem, "safetensors")] + ([(pickled, "bin")] if context.allow_pickle else [])
    for infix in [f".{variant}", ""] if variant else [""]:
        for name, suffix in kinds:
            index = f"{name}.{suffix}.index{infix}.json"
            files = one_or_shards(folder, f"{name}{infix}.{suffix}", index, what)
            if files:
                return [config, *files]
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise UserError(
            f"The weights of {what!r} in {folder} lack {stem}.safetensors; there is {others[0]}.",
            hint=f"A stored precision is chosen with --set {what}.variant=fp16, say.",
        )
    refuse_pickles(folder, what, allow_pickle=context.allow_pickle)
    raise UserError(f"The weights of {what!r} are missing: no *.safetensors in {folder}.")


def has_variant(files: Iterable[Path], variant: str | None) -> bool:
    """Whether a weight file among `files` is one of that stored precision."""
    marks = (f".{variant}.", f".{variant}-")
    return any(mark in path.name for path in files for mark in marks if path.suffix != ".json")


def require_variant(files: Iterable[Path], variant: str | None, what: str) -> None:
    """Raises `UserError` where `variant` is asked for and no network has it."""
    if variant and not has_variant(files, variant):
        raise UserError(
            f"The weights of {what!r} have no variant {variant!r}.",
            hint=f"Without --set {what}.variant=... the ordinary ones are read.",
        )


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


def build(folder: PipelineFolder, place: Path, what: str) -> Any:
    """The pipeline with networks that have shapes and no numbers (torch's ``meta`` device).

    Args:
        place: where the files of `folder` are read (`staged`).

    Raises:
        UserError: a part cannot be built from its configuration.
    """
    parts = {
        part: _build_part(place / part, folder.path / part, part_class(library, name, what), what)
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


def part_class(library: str, name: str, what: str) -> type:
    """The class of a part.

    Raises:
        UserError: there is none of that name, or one that diffusers loads in no pipeline.
    """
    import diffusers
    import transformers

    kinds = (
        diffusers.ModelMixin,
        diffusers.SchedulerMixin,
        transformers.PreTrainedModel,
        transformers.PreTrainedTokenizerBase,
        transformers.FeatureExtractionMixin,
        transformers.ImageProcessingMixin,
        transformers.ProcessorMixin,
    )
    module = library if library in _LIBRARIES else f"diffusers.pipelines.{library}"
    try:
        found = getattr(importlib.import_module(module), name)
    # Whatever an import raises, of a package that the class needs for example.
    except Exception as error:
        raise _no_class(library, name, what) from error
    if not (isinstance(found, type) and issubclass(found, kinds)):
        raise _no_class(library, name, what)
    return found


def _refuse_automatic(kind: type, files: Iterable[Path], what: str) -> None:
    """Raises `UserError` where a processor would look for its own parts' classes in its folder."""
    from transformers import ProcessorMixin

    for path in files if issubclass(kind, ProcessorMixin) else ():
        if path.suffix == ".json" and "auto_map" in read_json(path):
            raise UserError(
                f"The weights of {what!r} bring code of their own, which is not run: {path}."
            )


def _no_class(library: str, name: str, what: str) -> UserError:
    return UserError(
        f"The pipeline of {what!r} names a {name} of {library}, which cannot be loaded here.",
        hint="Only networks, schedulers, tokenizers and image processors are loaded. Are diffusers "
        "and transformers as new as the folder, and is what this class needs installed?",
    )


def is_network(kind: type) -> bool:
    """Whether a part of that class has weights."""
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    return issubclass(kind, (ModelMixin, PreTrainedModel))


def _build_part(place: Path, folder: Path, found: Any, what: str) -> Any:
    import torch
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    try:
        if issubclass(found, ModelMixin):
            with torch.device("meta"):
                return found.from_config(found.load_config(place, local_files_only=True))
        if issubclass(found, PreTrainedModel):
            config = found.config_class.from_pretrained(place, local_files_only=True)
            with torch.device("meta"):
                return found(config)
        return found.from_pretrained(place, local_files_only=True)
    # Whatever the constructors raise for settings that they do not know or that do not fit.
    except Exception as error:
        reason = str(error).strip().replace(str(place), str(folder)) or "no reason given"
        raise UserError(
            f"{folder.name} of {what!r} cannot be built from {folder}: "
            f"{type(error).__name__}: {reason}",
            hint="Is the folder whole, and are diffusers and transformers as new as it is?",
        ) from error


def _in_diffusers(library: str) -> bool:
    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None or not str(library).isidentifier():
        return False
    return (Path(spec.origin).parent / "pipelines" / library).is_dir()
