"""The folder of one training: a lock, the last epoch's state, and in the end the result."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chexgenbench.files import TEMPORARY, file_lock

_DONE, _STATE = "trained", "epoch-{:04d}"


def trained_once(
    folder: Path, epochs: int, work: Callable[[Path], None], advance: Callable[[int], None]
) -> Path:
    """What a training leaves, made by the first of several processes; the others wait for it.

    Args:
        folder: For checkpoints and the result.
        epochs: Told to `advance` where all was done before.
        work: Trains, and fills the folder that it is given.
        advance: Told of each epoch.
    """
    done = folder / _DONE
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "lock"):
        if done.is_dir():
            advance(epochs)
        else:
            with whole(done) as aside:
                work(aside)
            for left in folder.glob("epoch-*"):
                shutil.rmtree(left)
    return done


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that becomes it when the block ends without an error."""
    aside = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    aside.replace(folder)


@contextmanager
def checkpoint(folder: Path, epoch: int) -> Iterator[Path]:
    """A folder for the state after `epoch` epochs, which then stands alone."""
    target = folder / _STATE.format(epoch)
    with whole(target) as aside:
        yield aside
    for older in folder.glob("epoch-*"):
        if older != target:
            shutil.rmtree(older)


def last_checkpoint(folder: Path) -> tuple[int, Path | None]:
    """How many epochs the last state has seen, and its folder: 0 and None where there is none."""
    saved = sorted(folder.glob("epoch-????"))
    if not saved:
        return 0, None
    return int(saved[-1].name.removeprefix("epoch-")), saved[-1]


def cuda_devices(device: str) -> list[int]:
    """The CUDA devices whose random numbers are used, for ``torch.random.fork_rng``."""
    return [int(device.partition(":")[2] or 0)] if device.startswith("cuda") else []
