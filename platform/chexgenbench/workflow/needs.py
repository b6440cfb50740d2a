"""What a model needs on this machine: modules, weights, licences, memory.

Nothing is loaded for it: sizes come from the file system and from the headers of safetensors.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from chexgenbench.downloads import PICKLES, locate, size_text
from chexgenbench.environments import state_of
from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.home import Home
from chexgenbench.registry import Plugin, importable, split_model
from chexgenbench.types import Context, Download, ModelSpec, Parameters
from chexgenbench.workflow.plan import resolve_dtype, weight_paths

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_OTHER = {"BOOL": 1, "I8": 1, "U8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}
_CONTAINER, _STALE = ", in a container", ", stale"
_LONGEST_HEADER = 100_000_000
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Fault:
    """What is missing, in a few words, and in a sentence with what to do."""

    short: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a model needs and has.

    Attributes:
        name: its label.
        licence: of its weights.
        missing: what keeps it from running here.
        files: weight files that are there.
        size: their bytes.
        dtype: the precision that it would run in.
        memory: part of the model to bytes of its weights in that precision; nothing else is in it,
            and what the layers compute comes on top.
        to_fetch: bytes that ``fetch`` would bring, as far as they were published; 0: nothing.
        environment: the environment of its own that it runs in, empty where it runs in this one.
    """

    name: str
    licence: str
    missing: tuple[Fault, ...] = ()
    files: int = 0
    size: int = 0
    dtype: str = "float32"
    memory: Mapping[str, int] = field(default_factory=dict)
    to_fetch: int = 0
    environment: str = ""

    @property
    def ready(self) -> bool:
        return not self.missing

    def as_json(self) -> dict[str, Any]:
        """As plain values, for ``--json``."""
        return {
            "name": self.name,
            "ready": self.ready,
            "missing": [fault.text for fault in self.missing],
            "licence": self.licence,
            "weight_files": self.files,
            "weight_bytes": self.size,
            "dtype": self.dtype,
            "memory_bytes": sum(self.memory.values()),
            "memory_by_part": dict(self.memory),
            "bytes_to_fetch": self.to_fetch,
            "environment": self.environment,
        }

    def memory_text(self) -> str:
        """The memory of the weights, and of their largest part where there are several."""
        total = size_text(sum(self.memory.values()))
        if len(self.memory) < 2:
            return f"{total} as {self.dtype}"
        part = max(self.memory, key=lambda name: self.memory[name])
        return f"{total} as {self.dtype}, of which {part} {size_text(self.memory[part])}"


def model_needs(
    plugin: Plugin[ModelSpec], values: Mapping[str, Any], context: Context, dtype: str = "auto"
) -> Needs:
    """What `plugin` needs with these parameter values.

    Args:
        context: its device decides what ``auto`` precision is.
        dtype: ``--dtype``.
    """
    spec = plugin.spec
    faults = [*_modules(plugin, context), *_parameters(plugin, values)]
    parameters: Parameters | None = None
    if not faults:
        try:
            parameters = plugin.parse(values)
        except UserError as error:
            faults.append(Fault(error.message.rstrip("."), whole_text(error)))
    own = getattr(parameters, "dtype", "auto")
    chosen = resolve_dtype(own if own != "auto" else dtype, context.device, spec.gpu_dtype)
    paths: Mapping[str, Path] = {}
    to_fetch = 0
    if parameters is None:
        to_fetch, more = _downloads(plugin, context)
        faults += more
    else:
        try:
            paths = weight_paths(plugin, parameters, context)
        except ChexGenBenchError as error:
            to_fetch, more = _downloads(plugin, context)
            text = whole_text(error)
            if more and f"fetch {spec.name}" in text:  # the same, in the plugin's words
                faults.append(Fault(more[0].short, text))
                faults += more[1:]
            else:
                faults += [Fault(error.message.rstrip("."), text), *more]
    memory: Mapping[str, int] = {}
    size = 0
    try:
        size = sum(path.stat().st_size for path in paths.values())
        memory = weight_memory(paths, chosen)
    except OSError as error:
        text = f"{error.filename} cannot be read: {error.strerror}"
        faults.append(Fault(text, f"{text}."))
    except UserError as error:
        faults.append(Fault(error.message.rstrip("."), whole_text(error)))
    return Needs(
        name=plugin.name,
        licence=spec.licence,
        missing=tuple(faults),
        files=len(paths),
        size=size,
        dtype=chosen,
        memory=memory,
        to_fetch=to_fetch,
        environment=_environment(plugin, context),
    )


def _environment(plugin: Plugin[ModelSpec], context: Context) -> str:
    """Its name, with what is special about it; empty where it is not made."""
    own = plugin.spec.environment
    if own is None:
        return ""
    home = Home(context.home)
    state = state_of(own, context.cache, home)
    if state == "missing":
        from chexgenbench.executors.containers import is_built

        return f"{own}{_CONTAINER}" if is_built(own, None, home) else ""
    return f"{own}{_STALE}" if state == "stale" else own


def _modules(plugin: Plugin[ModelSpec], context: Context) -> list[Fault]:
    own = plugin.spec.environment
    if there := _environment(plugin, context):
        if not there.endswith(_STALE):
            return []  # its modules are looked for in there, when it runs
        text = f"The environment {own} was built from other files: chexgenbench env build {own}"
        return [Fault("a stale environment", text)]
    missing = [name for name in plugin.spec.requires if not importable(name)]
    if not missing:
        return []
    names = ", ".join(missing)
    elsewhere = f", or make its environment: chexgenbench env build {own}" if own else ""
    return [
        Fault(
            f"modules to install: {names}",
            f"The modules {names} are not installed: pip install {' '.join(missing)}{elsewhere}",
        )
    ]


def _parameters(plugin: Plugin[ModelSpec], values: Mapping[str, Any]) -> list[Fault]:
    spec = plugin.spec
    if spec.expand is not None and split_model(plugin.text)[2] is None:
        text = f"What to run is written after a colon: --model {spec.name}:... ({spec.summary})"
        return [Fault(f"a text: {spec.name}:...", text)]
    given = {**plugin.values, **values}
    faults = []
    for name, info in spec.parameters.model_fields.items():
        if info.is_required() and name not in given:
            way = f"--set {plugin.name}.{name}=..."
            if name == spec.argument:
                way += f", or --model {spec.name}:..."
            text = f"The parameter {name} has no default: {way} ({info.description})"
            faults.append(Fault(f"{name} to name", text))
    return faults


def _downloads(plugin: Plugin[ModelSpec], context: Context) -> tuple[int, list[Fault]]:
    """The bytes that ``fetch`` would bring, and what is to be done for it."""
    missing: list[Download] = []
    sizes: list[int | None] = []
    for download in plugin.spec.downloads:
        absent = [file for file, path in locate(download, context.cache).items() if path is None]
        if absent:
            missing.append(download)
            sizes += [file.size for file in absent]
    if not missing:
        return 0, []
    size = sum(each or 0 for each in sizes)
    told = size_text(size or None) + (" and more" if size and None in sizes else "")
    sources = ", ".join(download.source for download in missing)
    faults = [
        Fault(
            f"to fetch: {told}",
            f"{sources} ({told}) is not on this machine. "
            f"Fetch: chexgenbench models fetch {plugin.spec.name}",
        )
    ]
    gated = [download.source for download in missing if download.gated]
    if gated:
        pages = ", ".join(f"https://huggingface.co/{source}" for source in gated)
        text = f"The hub wants its licence accepted, once: {pages}; then log in: hf auth login"
        faults.append(Fault("a licence to accept", text))
    return size, faults


def whole_text(error: ChexGenBenchError) -> str:
    """What an error says and what to do, in one line."""
    return f"{error.message} {error.hint or ''}".strip()


def weight_memory(paths: Mapping[str, Path], dtype: str) -> dict[str, int]:
    """Part of a model to the bytes of its weights in `dtype`, the largest first.

    A part is the folder of its files: of a diffusers pipeline ``vae``, ``transformer`` and so on.
    A pickle, whose content is not looked at, counts as what it has on disk.

    Args:
        paths: see `weight_paths`.
        dtype: what floating-point numbers become; others stay what they are.

    Raises:
        UserError: a safetensors file is broken.
    """
    parts: dict[str, int] = {}
    for name, path in paths.items():
        if path.suffix == ".safetensors":
            size = safetensors_memory(path, dtype)
        elif path.suffix in PICKLES:
            size = path.stat().st_size
        else:
            continue
        part = _part(name, path)
        parts[part] = parts.get(part, 0) + size
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def _part(name: str, path: Path) -> str:
    folder = PurePosixPath(name).parent
    if not folder.name:
        folder = PurePosixPath(path.parent.as_posix())
    if _COMMIT.fullmatch(folder.name):  # the root of a repository in the hub's cache
        return path.parent.parent.parent.name.rpartition("--")[2]
    return folder.name


def safetensors_memory(path: Path, dtype: str) -> int:
    """The bytes of all tensors of a safetensors file in `dtype`, from its header alone.

    The header is JSON after its length in 8 bytes, little-endian:
    https://github.com/huggingface/safetensors#format

    Raises:
        UserError: it is no safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= _LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        sizes = [
            prod(tensor["shape"]) * _OTHER.get(tensor["dtype"], _BYTES[dtype])
            for name, tensor in header.items()
            if name != "__metadata__"
        ]
        if any(size < 0 for size in sizes):
            raise ValueError("a negative shape")
        return sum(sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no safetensors file: {error}.") from error


def likely_device() -> str:
    """``cuda:0`` where there is a GPU, else ``cpu``; torch is asked only where there may be one."""
    signs = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
    if shutil.which("nvidia-smi") is None and not any(path.exists() for path in signs):
        return "cpu"
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"
