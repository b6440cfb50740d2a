"""Trains a classifier that survives a kill: an epoch is the unit of what is kept.

Accelerate carries device, precision and the state of network, optimizer and schedule; of the
maintained trainers it is the one that leaves the loop here, which has to say in which order images
come and how they are altered, whatever was done before a kill.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexgenbench import ChexGenBenchError, Context, Task
from chexgenbench.files import atomic_path, digest, file_lock, read_json, write_json

from .data import Pixels, augmented, seed_of
from .networks import build
from .regimes import Part, gathered

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_PRECISION = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network is made and trained; see the parameters of the metric ``classification``."""

    backbone: str
    size: int
    epochs: int
    batch_size: int
    learning_rate: float
    augment: bool
    weights: Path | None = None
    weights_sha256: str = ""

    def facts(self) -> dict[str, Any]:
        """What a trained network depends on, as JSON values."""
        return {name: value for name, value in vars(self).items() if name != "weights"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A finished training: the network's weights of its best epoch, and what identifies it."""

    weights: Path
    identity: str


def train(
    task: Task,
    settings: Settings,
    pixels: Pixels,
    part: Part,
    goals: list[NDArray[np.float32]],
    seed: int,
    *,
    name: str,
    after: Trained | None = None,
) -> Trained:
    """Trains on ``part.train`` and keeps the weights of the epoch with the least validation loss.

    Adam, binary cross-entropy over the known labels, and a learning rate that falls to a tenth
    when validation has not improved for three epochs, as published. Images come in an order, and
    with alterations, drawn from (seed, epoch) alone.

    Args:
        pixels: the images of both sources.
        goals: float32 [n, 14] a source, NaN where nothing is asked.
        seed: of first weights, order and alterations.
        name: for progress.
        after: the training whose weights it starts from.

    Returns:
        The training, found in `Task.part` where it was finished before, and taken up after its
        last whole epoch where it was killed: the result is the same to the last bit.
    """
    facts = {
        "settings": settings.facts(),
        "images": {
            use: [
                [pixels.keys[source][row], _codes(goals[source][row])]
                for source, row in rows.tolist()
            ]
            for use, rows in (("train", part.train), ("validation", part.validation))
        },
        "after": after.identity if after else "",
        "device": task.context.device.partition(":")[0],
        "dtype": task.context.dtype,
        "seed": seed,
    }
    identity = digest(facts)
    folder = task.part("training", identity)
    done = folder / "weights.safetensors"
    with file_lock(folder / "lock"):
        if not done.exists():
            _epochs(task, settings, pixels, part, goals, seed, name, after, folder)
    return Trained(weights=done, identity=identity)


def predict(
    task: Task,
    settings: Settings,
    trained: Trained,
    pixels: Pixels,
    rows: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Probabilities [n, 14] of the findings in the images at (source, position) `rows` [n, 2]."""
    import numpy as np
    from safetensors.torch import load_file

    keys = [pixels.keys[source][row] for source, row in rows.tolist()]
    folder = task.part("predictions", trained.identity, keys)
    path = folder / "probabilities.npy"
    with file_lock(folder / "lock"):
        if not path.exists():
            network = build(settings.backbone, None)
            network.load_state_dict(load_file(trained.weights))
            network.to(task.context.device)
            found = _forward(network, pixels, rows, settings.batch_size, task.context.device)
            with atomic_path(path) as temporary:
                np.save(temporary, found.sigmoid().numpy())
    found_there: NDArray[np.float32] = np.load(path)
    return found_there


def _epochs(
    task: Task,
    settings: Settings,
    pixels: Pixels,
    part: Part,
    goals: list[NDArray[np.float32]],
    seed: int,
    name: str,
    after: Trained | None,
    folder: Path,
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    with torch.random.fork_rng(), _accelerator(task.context) as accelerator:
        torch.manual_seed(seed_of("weights", seed))
        network = build(settings.backbone, settings.weights if after is None else None)
        if after is not None:
            network.load_state_dict(load_file(after.weights))
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=2)
        network, optimizer, schedule = accelerator.prepare(network, optimizer, schedule)
        losses: list[float] = []
        last = _last_checkpoint(folder)
        if last is not None:
            accelerator.load_state(str(last))
            losses = read_json(last / "losses.json")
        with task.stage(name, settings.epochs, "epochs") as advance:
            advance(len(losses))
            for epoch in range(len(losses), settings.epochs):
                # Also what a network with dropout draws is then a matter of the epoch.
                torch.manual_seed(seed_of("epoch", seed, epoch))
                _one_epoch(accelerator, network, optimizer, settings, pixels, part, goals)
                loss = _validation_loss(accelerator, network, settings, pixels, part, goals)
                if not math.isfinite(loss):
                    raise ChexGenBenchError(
                        f"The training of {settings.backbone!r} diverged in epoch {epoch + 1}.",
                        hint="Set a lower learning_rate.",
                    )
                schedule.step(loss)
                best = loss < min(losses, default=math.inf)
                losses.append(loss)
                fresh = folder / "writing"
                shutil.rmtree(fresh, ignore_errors=True)
                accelerator.save_state(str(fresh))
                state = accelerator.unwrap_model(network).state_dict()
                if best:
                    save_file({k: v.contiguous() for k, v in state.items()}, fresh / "best")
                else:
                    assert last is not None
                    shutil.copyfile(last / "best", fresh / "best")
                write_json(fresh / "losses.json", losses)
                newest = folder / f"epoch-{epoch + 1:06d}"
                fresh.rename(newest)
                if last is not None:
                    shutil.rmtree(last)
                last = newest
                advance(1)
    assert last is not None
    write_json(folder / "losses.json", losses)
    with atomic_path(folder / "weights.safetensors") as temporary:
        shutil.copyfile(last / "best", temporary)
    shutil.rmtree(last)


def _one_epoch(
    accelerator: Any,
    network: torch.nn.Module,
    optimizer: Any,
    settings: Settings,
    pixels: Pixels,
    part: Part,
    goals: list[NDArray[np.float32]],
) -> None:
    import numpy as np
    import torch

    # The seed of this epoch was set just before.
    draw = np.random.default_rng(torch.initial_seed())
    order = draw.permutation(len(part.train))
    draws = draw.uniform(-1.0, 1.0, (len(order), 6)).astype(np.float32)
    network.train()
    # Near-equal batches: a remainder of one image would upset batch normalisation.
    for batch in np.array_split(order, math.ceil(len(order) / settings.batch_size)):
        rows = part.train[batch]
        known = torch.from_numpy(gathered(goals, rows))
        images = pixels.batch(rows).to(accelerator.device)
        if settings.augment:
            images = augmented(images, draws[batch])
        loss = _loss(network(images), known.to(accelerator.device))
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()


def _validation_loss(
    accelerator: Any,
    network: torch.nn.Module,
    settings: Settings,
    pixels: Pixels,
    part: Part,
    goals: list[NDArray[np.float32]],
) -> float:
    import torch

    rows = part.validation
    logits = _forward(network, pixels, rows, settings.batch_size, accelerator.device)
    return float(_loss(logits.double(), torch.from_numpy(gathered(goals, rows)).double()))


def _forward(
    network: torch.nn.Module,
    pixels: Pixels,
    rows: NDArray[np.int64],
    batch_size: int,
    device: Any,
) -> torch.Tensor:
    """Logits float32 [n, 14]."""
    import torch

    network.eval()
    with torch.inference_mode():
        parts = [
            network(pixels.batch(rows[start : start + batch_size]).to(device)).float().cpu()
            for start in range(0, len(rows), batch_size)
        ]
    return torch.cat(parts)


def _loss(logits: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy over the entries that are known."""
    import torch

    known = ~torch.isnan(goals)
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, goals.nan_to_num(0.0), reduction="none"
    )
    return (each * known).sum() / known.sum().clamp(min=1)


def _codes(goal: NDArray[np.float32]) -> list[int | None]:
    return [None if math.isnan(value) else int(value) for value in goal.tolist()]


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; older ones are removed."""
    found = sorted(folder.glob("epoch-*"))
    for old in found[:-1]:
        shutil.rmtree(old)
    return found[-1] if found else None


@contextmanager
def _accelerator(context: Context) -> Iterator[Any]:
    """An `accelerate.Accelerator` on the context's device; its global state is cleared after."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    device = torch.device(context.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with torch.backends.cudnn.flags(benchmark=False, deterministic=True):
            yield Accelerator(
                cpu=device.type == "cpu",
                mixed_precision=_PRECISION[context.dtype],
                step_scheduler_with_optimizer=False,
            )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
