"""Where the weights of a plugin lie: a folder or file of the user, or the hub's local cache.

Nothing is downloaded during a run: what is missing is an error before anything expensive, and the
error holds the command that fetches it. Nothing is unpickled: weights are safetensors, or files
that torch's restricted loader takes, which builds tensors and runs no code; more than that is
loaded where the user said ``--allow-pickle`` alone.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from chexgenbench import Context, Encoder, Location, Parameters, UserError
from chexgenbench.downloads import (
    PICKLES,
    cached_commits,
    locate,
    size_text,
    snapshot,
)
from chexgenbench.errors import first_line
from chexgenbench.files import read_json
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
        source: a folder (relative ones start from `home`), or ``owner/name`` on the hub, which
            may end in ``@`` and a commit.
        revision: the hub commit to use where `source` names none.
        what: the plugin's name, for the error.
        download: what ``chexgenbench KIND fetch WHAT`` brings, for the error.
        kind: ``encoders`` or ``models``.

    Raises:
        UserError: neither is there, what is there of `download` is not whole, or `source` and
            `revision` name two commits.
    """
    folder = (home / Path(source).expanduser()).resolve()
    if folder.is_dir():
        return folder
    source, at, commit = source.partition("@")
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or (at and not commit):
        raise UserError(
            f"The weights of {what!r} are not there: {folder} is not a folder.",
            hint="Name a folder, or a hub id of the form owner/name or owner/name@COMMIT.",
        )
    if commit and revision not in (None, commit):
        raise UserError(
            f"The weights of {what!r} are named at two commits: {source}@{commit}, and "
            f"revision={revision}.",
            hint="Leave one of them out.",
        )
    revision = commit or revision
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
    others = [each for each in cached_commits(source) if each != revision]
    there = f"Another commit is there: {source}@{others[-1]}. " if others else ""
    fetch = f"Fetch them: {command}"
    if download is not None and download.gated and source == download.source:
        fetch = (
            f"Accept their licence at https://huggingface.co/{source} and log in (hf auth login), "
            f"then fetch them: {command}"
        )
    raise UserError(
        f"The weights of {what!r}{size} are not on this machine: {source} is neither a folder "
        f"nor in the hub's cache{f' at revision {revision}' if revision else ''}.",
        hint=f"{there}{fetch}",
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


def shard_files(index: Path, what: str) -> list[Path]:
    """The files that an index (``NAME.SUFFIX.index.json``) names, all of its suffix and beside it.

    What lies elsewhere would be loaded and never hashed, and what has another suffix would go to
    another loader than the one that was chosen.

    Raises:
        UserError: the index is of another form, names other files, or some are not there.
    """
    suffix = f".{index.name.partition('.index.')[0].rpartition('.')[2]}"
    content = read_json(index)
    table = content.get("weight_map") if isinstance(content, dict) else None
    names = list(table.values()) if isinstance(table, dict) else []
    plain = all(
        isinstance(name, str) and not set(name) & set("/\\\0") and name.endswith(suffix)
        for name in names
    )
    if not names or not plain or not isinstance(content.get("metadata"), dict):
        raise UserError(
            f"The index of the weights of {what!r} cannot be used: {index}.",
            hint=f"Its weight_map must name {suffix} files beside it, as save_pretrained writes "
            "them, and metadata must stand beside that.",
        )
    files = [index.parent / name for name in sorted(set(names))]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise UserError(
            f"The weights of {what!r} in {index.parent} lack {', '.join(missing)}, which "
            f"{index.name} names."
        )
    return files


def one_or_shards(folder: Path, name: str, index: str, what: str) -> list[Path]:
    """The file `name` of `folder`, or the index and what it names; empty where there is neither.

    Raises:
        UserError: both are there, of which libraries take one or the other; see `shard_files`.
    """
    single, table = folder / name, folder / index
    if single.is_file() and table.is_file():
        raise UserError(
            f"The weights of {what!r} in {folder} are there twice: {name}, and what {index} names.",
            hint="Remove one of the two.",
        )
    if table.is_file():
        return [table, *shard_files(table, what)]
    return [single] if single.is_file() else []


def refuse_adapters(folder: Path, what: str) -> None:
    """Raises `UserError` where `folder` holds an adapter: transformers would apply it unasked."""
    found = sorted(path.name for path in folder.glob("adapter_*"))
    if found:
        raise UserError(
            f"The weights of {what!r} in {folder} hold an adapter beside the network "
            f"({', '.join(found)}).",
            hint="Merge it into the weights or remove it. A LoRA of a pipeline is named by itself: "
            "--set lora=FILE",
        )


@contextmanager
def staged(files: Mapping[str, Path]) -> Iterator[Path]:
    """A temporary folder with links to `files` by their names, and nothing else.

    A library that loads from it reads what was hashed: no code, adapter, second precision or other
    tokenizer that lies beside the weights.
    """
    with tempfile.TemporaryDirectory(prefix="chexgenbench-") as name:
        for file, path in files.items():
            link = Path(name, file)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        yield Path(name)


def read_content(
    path: Path, subject: str, *, allow_pickle: bool = False, allowed: Sequence[Any] = ()
) -> Any:
    """What a safetensors file, or one that torch saved, holds: tensors and plain values.

    Args:
        subject: what the file is, for errors, such as ``weights of 'sana'``.
        allow_pickle: the user's yes to a pickle of anything, which can run code.
        allowed: what torch's restricted loader may build besides (`torch.serialization`).

    Raises:
        UserError: the file is broken, or a pickle of more and `allow_pickle` is not set.
    """
    from pickle import UnpicklingError

    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Mapped, not read: of a training checkpoint the optimizer's state is not needed.
        mapped = zipfile.is_zipfile(path)
        try:
            with torch.serialization.safe_globals(list(allowed)):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception:
            if not allow_pickle:
                raise
            return torch.load(path, map_location="cpu", weights_only=False, mmap=mapped)
    # Whatever a broken file makes the loaders raise.
    except Exception as error:
        if allow_pickle or not isinstance(error, UnpicklingError):
            raise UserError(
                f"The {subject} cannot be read: {path}: {first_line(error)}.",
                hint="It must be safetensors, or what torch.save wrote.",
            ) from error
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        found = f"holds more than tensors ({foreign[1]})" if foreign else "is broken or holds more"
        raise UserError(
            f"The {subject} cannot be read without running code that its author chose: {path} "
            f"{found}.",
            hint="Save its state dict alone, as safetensors, on a machine that you can lose. If "
            "you trust whoever made the file to run code on this one: --allow-pickle",
        ) from error


def read_state(
    path: Path, what: str, *, allow_pickle: bool = False, allowed: Sequence[Any] = ()
) -> dict[str, torch.Tensor]:
    """The tensors by name of a safetensors file or of a state dict that torch saved.

    Args:
        what: the plugin's name, for errors; the others are those of `read_content`.

    Raises:
        UserError: the file is broken, holds something else, or is a pickle of more than tensors.
    """
    import torch

    content = read_content(path, f"weights of {what!r}", allow_pickle=allow_pickle, allowed=allowed)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
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
    return size_text(download.size or sum(file.size or 0 for file in download.files) or None)
