"""Where the weights of a plugin lie: a folder or file of the user, or the hub's local cache.

Nothing is downloaded during a run: what is missing is an error before anything expensive, and the
error holds the command that fetches it. Nothing is unpickled: weights are safetensors, or files
that torch's restricted loader takes, which builds tensors and runs no code; more than that is
loaded where the user said ``--allow-pickle`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from chexgenbench import Context, Encoder, Location, Parameters, UserError
from chexgenbench.downloads import PICKLES, locate, size_text, snapshot
from chexgenbench.types import Download

if TYPE_CHECKING:
    import torch


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
    kind: str = "encoders",
) -> Path:
    """The local folder of `source`, which is a folder or a hub id.

    Args:
        source: a folder (relative ones start from `home`), or ``owner/name`` on the hub.
        revision: the hub commit to use.
        what: the plugin's name, for the error.
        download: what ``chexgenbench KIND fetch WHAT`` brings, for the error.
        kind: ``encoders`` or ``models``.

    Raises:
        UserError: neither is there, or what is there of `download` is not whole.
    """
    folder = (home / Path(source).expanduser()).resolve()
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(
            f"The weights of {what!r} are not there: {folder} is not a folder.",
            hint="Name a folder, or a hub id of the form owner/name.",
        )
    ours = download is not None and (source, revision) == (download.source, download.revision)
    found: Path | None
    if ours and download is not None and download.patterns:
        found = next(iter(locate(download, home).values()))
    else:
        found = snapshot(source, revision)
    if found is not None:
        return found
    pinned = f" --revision {revision}" if revision else ""
    command = f"hf download {source}{pinned}"
    if ours:
        command = f"chexgenbench {kind} fetch {what}"
    size = f" ({total_size(download)})" if download is not None and ours else ""
    fetch = f"Fetch them: {command}"
    if download is not None and download.gated and source == download.source:
        fetch = (
            f"Accept their licence at https://huggingface.co/{source} and log in (hf auth login), "
            f"then fetch them: {command}"
        )
    raise UserError(
        f"The weights of {what!r}{size} are not on this machine: {source} is neither a folder "
        f"nor in the hub's cache{f' at revision {revision}' if revision else ''}.",
        hint=fetch,
    )


def weight_files(
    download: Download,
    *,
    source: str,
    revision: str | None,
    home: Path,
    what: str,
    kind: str = "encoders",
) -> Sequence[Path]:
    """The files of `download` in their order, in the folder or hub cache that `source` names.

    Raises:
        UserError: one is missing; with a word of its own where a pickle lies in the place of
            safetensors.
    """
    folder = weight_folder(
        source, revision=revision, home=home, what=what, download=download, kind=kind
    )
    paths = {file.name: folder / file.name for file in download.files}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        if any(name.endswith(".safetensors") for name in missing):
            refuse_pickles(folder, what)
        raise UserError(
            f"The weights of {what!r} in {folder} lack {', '.join(missing)}.",
            hint=f"They are files of {download.source}: chexgenbench {kind} fetch {what}",
        )
    return list(paths.values())


def safe_weight_files(folder: Path, what: str, *, allow_pickle: bool = False) -> Sequence[Path]:
    """All files of `folder` that decide what a model does: safetensors, JSON and text.

    Args:
        allow_pickle: the user's yes (`Context.allow_pickle`): pickles stand for safetensors where
            there are none.

    Raises:
        UserError: there are no safetensors; with a word of its own where only pickles are there.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    if not weights:
        refuse_pickles(folder, what, allow_pickle=allow_pickle)
        weights = [path for path in files if path.suffix in PICKLES]
    if not weights:
        raise UserError(f"The weights of {what!r} are missing: no *.safetensors in {folder}.")
    return [*weights, *(path for path in files if path.suffix in {".json", ".txt", ".model"})]


def refuse_pickles(path: Path, what: str, *, allow_pickle: bool = False) -> None:
    """Raises `UserError` where `path` is, or holds, weights as pickles, which can run code.

    Args:
        allow_pickle: the user's yes; nothing is refused then.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    pickles = [file for file in files if file.suffix in PICKLES]
    if pickles and not allow_pickle:
        where = f"in {path} are pickles ({pickles[0].name})" if path.is_dir() else f"are {path}"
        raise UserError(
            f"The weights of {what!r} {where}, and a pickle can run any code on this machine when "
            "it is loaded.",
            hint="Convert them to safetensors on a machine that you can lose, or, if you trust "
            "whoever made them, say --allow-pickle.",
        )


def read_state(path: Path, what: str, *, allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """The tensors by name of a safetensors file or of a state dict that torch saved.

    Args:
        allow_pickle: the user's yes to a pickle of more than tensors, which can run code.

    Raises:
        UserError: the file is broken, or a pickle of more than tensors.
    """
    import pickle

    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        if allow_pickle:
            raise _unreadable(path, what, error) from error
        raise UserError(
            f"The weights of {what!r} cannot be read without running code that may be in them: "
            f"{path} is a broken file, or a pickle of more than tensors.",
            hint="It must be safetensors, or a state dict without anything but tensors. If you "
            "trust whoever made it to run code on this machine, say --allow-pickle.",
        ) from error
    # Whatever a broken file makes the two loaders raise.
    except Exception as error:
        raise _unreadable(path, what, error) from error
    if not isinstance(state, dict) or not all(torch.is_tensor(each) for each in state.values()):
        raise UserError(f"The weights of {what!r} are no state dict: {path}.")
    return state


def _unreadable(path: Path, what: str, error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"The weights of {what!r} cannot be read: {path}: {reason}",
        hint="It must be safetensors, or a state dict without anything but tensors.",
    )


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
    return size_text(download.size or sum(file.size or 0 for file in download.files) or None)
