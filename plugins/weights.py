"""Where the weights of a plugin lie: a folder or file of the user, or the hub's local cache.

Nothing is downloaded during a run: what is missing is an error before anything expensive, and the
error holds the command that fetches it. Nothing is unpickled: weights are safetensors, or files
that torch's restricted loader takes, which builds tensors and runs no code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from chexgenbench import Context, Encoder, Location, Parameters, UserError
from chexgenbench.types import Download

if TYPE_CHECKING:
    import torch


_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


class PublishedParameters(Parameters):
    """Where published weights lie."""

    weights: Annotated[str | None, Location()] = Field(
        None,
        description="A folder with the published files, or owner/name on the hub; by default the "
        "published ones.",
    )
    revision: Annotated[str | None, Location()] = Field(
        None,
        description="The hub commit, by default the published one; ignored for a folder.",
    )


class PublishedEncoder(Encoder):
    """An encoder whose weights are the files of `download`."""

    name: ClassVar[str]
    download: ClassVar[Download]

    @classmethod
    def weights(cls, parameters: PublishedParameters, context: Context) -> Sequence[Path]:
        """In the order of `download.files`."""
        source = parameters.weights or cls.download.source
        # The published commit says nothing of another repository.
        published = cls.download.revision if source == cls.download.source else None
        return weight_files(
            cls.download,
            source=source,
            revision=parameters.revision or published,
            home=context.home,
            what=cls.name,
        )


def weight_folder(
    source: str,
    *,
    revision: str | None,
    home: Path,
    what: str,
    download: Download | None = None,
) -> Path:
    """The local folder of `source`, which is a folder or a hub id.

    Args:
        source: a folder (relative ones start from `home`), or ``owner/name`` on the hub.
        revision: the hub commit to use.
        what: the plugin's name, for the error.
        download: what ``chexgenbench encoders fetch WHAT`` brings, for the error.

    Raises:
        UserError: neither is there.
    """
    folder = (home / Path(source).expanduser()).resolve()
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(
            f"The weights of {what!r} are not there: {folder} is not a folder.",
            hint="Name a folder, or a hub id of the form owner/name.",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        default = download is not None and (source, revision) == (
            download.source,
            download.revision,
        )
        pinned = f" --revision {revision}" if revision else ""
        command = f"hf download {source}{pinned}"
        if default:
            command = f"chexgenbench encoders fetch {what}"
        size = f" ({total_size(download)})" if download is not None and default else ""
        raise UserError(
            f"The weights of {what!r}{size} are not on this machine: {source} is neither a folder "
            f"nor in the hub's cache{f' at revision {revision}' if revision else ''}.",
            hint=f"Fetch them: {command}",
        ) from error


def weight_files(
    download: Download, *, source: str, revision: str | None, home: Path, what: str
) -> Sequence[Path]:
    """The files of `download` in their order, in the folder or hub cache that `source` names.

    Raises:
        UserError: one is missing; with a word of its own where a pickle lies in the place of
            safetensors.
    """
    folder = weight_folder(source, revision=revision, home=home, what=what, download=download)
    paths = {file.name: folder / file.name for file in download.files}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        if any(name.endswith(".safetensors") for name in missing):
            refuse_pickles(folder, what)
        raise UserError(
            f"The weights of {what!r} in {folder} lack {', '.join(missing)}.",
            hint=f"They are files of {download.source}: chexgenbench encoders fetch {what}",
        )
    return list(paths.values())


def safe_weight_files(folder: Path, what: str) -> Sequence[Path]:
    """All files of `folder` that decide what a model does: safetensors, JSON and text.

    Raises:
        UserError: there are no safetensors; with a word of its own where only pickles are there.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    if not weights:
        refuse_pickles(folder, what)
        raise UserError(f"The weights of {what!r} are missing: no *.safetensors in {folder}.")
    return [*weights, *(path for path in files if path.suffix in {".json", ".txt", ".model"})]


def refuse_pickles(folder: Path, what: str) -> None:
    """Raises `UserError` where `folder` holds weights as pickles, which can run code."""
    pickles = [path for path in sorted(folder.rglob("*")) if path.suffix in _PICKLES]
    if pickles:
        raise UserError(
            f"The weights of {what!r} in {folder} are pickles ({pickles[0].name}), "
            "which can run code when they are loaded.",
            hint="Convert them to safetensors on a machine that you can lose.",
        )


def read_state(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors by name of a safetensors file or of a state dict that torch saved.

    Raises:
        UserError: the file is broken, or a pickle of more than tensors.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    # Whatever a broken file makes the two loaders raise.
    except Exception as error:
        raise UserError(
            f"The weights of {what!r} cannot be read: {path}: {str(error).splitlines()[0]}",
            hint="It must be safetensors, or a state dict without anything but tensors.",
        ) from error
    if not isinstance(state, dict) or not all(torch.is_tensor(each) for each in state.values()):
        raise UserError(f"The weights of {what!r} are no state dict: {path}.")
    return state


def fill(
    network: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    what: str,
    unused: tuple[str, ...] = (),
) -> None:
    """Loads `state` into `network`, one to one but for names that begin with one of `unused`.

    Raises:
        UserError: a name or a shape differs: these are weights of another network.
    """
    used = {name: value for name, value in state.items() if not name.startswith(unused or ("\0",))}
    try:
        network.load_state_dict(used)
    except RuntimeError as error:
        fault = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise UserError(f"The weights of {what!r} are of another network: {fault[:300]}") from error


def total_size(download: Download) -> str:
    """The known sizes of all files together, in MB or GB."""
    from chexgenbench.downloads import size_text

    return size_text(sum(file.size or 0 for file in download.files) or None)
