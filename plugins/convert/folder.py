"""The parts that a training checkpoint lacks, and the folder that is written."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexgenbench import Context, UserError
from chexgenbench.downloads import size_text
from chexgenbench.files import read_json, write_json
from chexgenbench_plugins.weights import refuse_adapters, refuse_pickles, weight_folder

if TYPE_CHECKING:
    import torch

# What from_pretrained reads by default; a second copy such as model.fp16.safetensors is not.
_KEPT = {".safetensors", ".json", ".txt", ".model"}
_VARIANT = re.compile(r"\.(fp16|fp32|bf16|non_ema|ema)[.-]")
_DENOISER = "transformer"


@dataclass(frozen=True)
class Base:
    """A diffusers pipeline whose text encoder, tokenizer, VAE and scheduler are taken.

    Attributes:
        folder: where it lies.
        source: what the user named, or the default.
        index: its ``model_index.json``.
    """

    folder: Path
    source: str
    index: Mapping[str, Any]

    @classmethod
    def find(cls, named: str | None, default: str, what: str, context: Context) -> Base:
        """The base in the folder or hub cache that `named` or else `default` says.

        A hub id may end in ``@`` and a commit.

        Raises:
            UserError: it is not there, no pipeline, brings code of its own, or lacks a part.
        """
        source = named or default
        folder = weight_folder(source, revision=None, home=context.home, what=f"the base of {what}")
        if not (folder / "model_index.json").is_file():
            raise UserError(
                f"The base {source} is no pipeline: {folder} has no model_index.json.",
                hint=f"Name a folder with all parts of a pipeline by --base, such as {default}.",
            )
        base = cls(folder, source, read_json(folder / "model_index.json"))
        for part in base.parts():
            library = base.index[part][0]
            if library not in ("diffusers", "transformers"):
                raise UserError(f"The base {source} brings foreign code: {part} from {library!r}.")
            if not part.isidentifier() or not (folder / part).is_dir():
                raise UserError(f"The base {source} lacks its part {part}: no {folder / part}.")
            refuse_adapters(folder / part, f"the base of {what}")
            # The configuration of a network has this name; a tokenizer's and scheduler's do not.
            weights = any(path.suffix == ".safetensors" for path in base.files(part))
            if (folder / part / "config.json").is_file() and not weights:
                refuse_pickles(folder / part, f"the base of {what}")
                raise UserError(f"The base {source} lacks the weights of {part}: no *.safetensors.")
        return base

    def parts(self) -> list[str]:
        """The names of its parts but for the denoiser."""
        entries = (name for name, entry in self.index.items() if isinstance(entry, list))
        return [name for name in entries if name != _DENOISER and all(self.index[name])]

    def files(self, part: str) -> Iterator[Path]:
        """The files of a part that are taken over."""
        for path in sorted((self.folder / part).iterdir()):
            if path.suffix in _KEPT and not _VARIANT.search(path.name):
                yield path

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part; empty where there is none."""
        path = self.folder / part / "config.json"
        found: dict[str, Any] = read_json(path) if path.is_file() else {}
        return found

    def require(self, part: str, keys: tuple[str, ...], value: int, reads: str) -> None:
        """Raises `UserError` where a part is of another width than the denoiser reads."""
        config = self.config(part)
        for key in keys:
            if key in config and config[key] != value:
                raise UserError(
                    f"The checkpoint reads {reads} of {value} channels, and the {part} of the base "
                    f"{self.source} gives {config[key]}.",
                    hint="Name the base that the training started from by --base.",
                )

    def downscale(self) -> int:
        """Pixels of an image to one of the VAE's latents: a factor of 2 a level."""
        config = self.config("vae")
        levels = config.get("encoder_block_out_channels") or config.get("block_out_channels")
        if not levels:
            raise UserError(f"The VAE of the base {self.source} has no block_out_channels.")
        return int(2 ** (len(levels) - 1))

    def describe(self) -> dict[str, Any]:
        """For the record: a hub id and its commit, or the folder's name."""
        if self.folder.parent.name == "snapshots":
            return {"source": self.source.partition("@")[0], "revision": self.folder.name}
        return {"source": self.folder.name}


def denoiser(kind: str, config: Mapping[str, Any]) -> Any:
    """An instance of diffusers' class `kind` without memory: names and shapes alone."""
    import diffusers
    import torch

    found = getattr(diffusers, kind)
    known = inspect.signature(found.__init__).parameters
    with torch.device("meta"):
        return found(**{name: value for name, value in config.items() if name in known})


def write(
    out: Path, base: Base, pipeline: str, network: Any, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Fills `out`: the network with its tensors, in their own precision, and the base's parts.

    Raises:
        UserError: the disk has no room.
    """
    import diffusers

    copied = [(part, path) for part in base.parts() for path in base.files(part)]
    size = sum(value.nbytes for value in tensors.values())
    size += sum(path.stat().st_size for _, path in copied)
    free = shutil.disk_usage(out).free
    if size > free:
        raise UserError(
            f"The converted folder needs {size_text(size)}, and {size_text(free)} are free there."
        )
    network.load_state_dict(dict(tensors), assign=True)
    network.save_pretrained(out / _DENOISER)
    for part, path in copied:
        target = out / part / path.name
        target.parent.mkdir(exist_ok=True)
        # Copied, not linked: whoever saves into this folder later must not change the base.
        shutil.copyfile(path, target)
    index = dict(base.index) | {
        "_class_name": pipeline,
        "_diffusers_version": diffusers.__version__,
        _DENOISER: ["diffusers", type(network).__name__],
    }
    write_json(out / "model_index.json", index)
