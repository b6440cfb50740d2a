"""Where the weights of a plugin lie: a folder or file of the user, or the hub's local cache.

Nothing is downloaded during a run: what is missing is an error before anything expensive, and the
error holds the command that fetches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chexgenbench import UserError

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def weight_folder(source: str, *, revision: str | None, home: Path, what: str) -> Path:
    """The local folder of `source`, which is a folder or a hub id.

    Args:
        source: a folder (relative ones start from `home`), or ``owner/name`` on the hub.
        revision: the hub commit to use.
        what: the plugin's name, for the error.

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
        pinned = f" --revision {revision}" if revision else ""
        raise UserError(
            f"The weights of {what!r} are not on this machine: {source} is neither a folder "
            f"nor in the hub's cache.",
            hint=f"Fetch them: hf download {source}{pinned}",
        ) from error


def safe_weight_files(folder: Path, what: str) -> Sequence[Path]:
    """All files of `folder` that decide what a model does: safetensors, JSON and text.

    Raises:
        UserError: there are no safetensors; with a word of its own where only pickles are there.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    if not weights:
        pickles = [path for path in files if path.suffix in _PICKLES]
        if pickles:
            raise UserError(
                f"The weights of {what!r} in {folder} are pickles ({pickles[0].name}), "
                "which can run code when they are loaded.",
                hint="Convert them to safetensors on a machine that you can lose.",
            )
        raise UserError(f"The weights of {what!r} are missing: no *.safetensors in {folder}.")
    return [*weights, *(path for path in files if path.suffix in {".json", ".txt", ".model"})]
