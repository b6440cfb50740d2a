"""Weights of the re-identification network, and an embedding for each image, made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench import Context, ImageSet, Task, UserError
from chexgenbench.files import atomic_path, read_json, sha256_file
from chexgenbench.images import read_image
from chexgenbench_plugins.data import data_folder
from chexgenbench_plugins.reid.network import Architecture, build, pair_scores, pixels
from chexgenbench_plugins.weights import fill, read_state, weight_folder

if TYPE_CHECKING:
    import torch

PUBLISHED = "raman07/Patient_ReIdentification_MIMIC"
PUBLISHED_FILE = "ResNet-50_epoch11_data_handling_RPN.pth"
"""A state dict; only torch's restricted loader reads it, which runs no code."""

NAME = "reidentification"
PHANTOM = "phantom"
CONFIG = "config.json"
BLOCK = 256
"""Images in one file of the cache."""

Vectors = NDArray[np.float32]


def weight_files(source: str, context: Context) -> list[Path]:
    """The weights in `source`, and their configuration where there is one.

    Args:
        source: ``phantom`` (the demo's), a folder, a file, or owner/name on the hub.

    Raises:
        UserError: there are none; says what to fetch.
    """
    if source == PHANTOM:
        source = str(data_folder("phantom-reid"))
    single = (context.home / Path(source).expanduser()).resolve()
    if single.is_file():
        folder, found = single.parent, [single]
    else:
        folder = weight_folder(source, revision=None, home=context.home, what=NAME)
        found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pth"))
    if len(found) != 1:
        raise UserError(
            f"The weights of 'reidentification' in {folder} are "
            f"{'missing' if not found else 'several: ' + ', '.join(f.name for f in found)}.",
            hint=f"One *.safetensors or *.pth is expected, as published: hf download {PUBLISHED} "
            f"{PUBLISHED_FILE}",
        )
    config = folder / CONFIG
    return [*found, config] if config.is_file() else found


def read_architecture(files: Sequence[Path]) -> Architecture:
    """From ``config.json`` beside the weights; without one it is the published network.

    Raises:
        UserError: the file holds other names or values.
    """
    for path in files:
        if path.name == CONFIG:
            values = read_json(path)
            try:
                values |= {name: tuple(values[name]) for name in ("layers", "channels")}
                return Architecture(**values)
            except (KeyError, TypeError) as error:
                raise UserError(f"{path} does not describe the network: {error}.") from error
    return Architecture()


def load_network(files: Sequence[Path], context: Context) -> torch.nn.Module:
    """The network with these weights, on the CPU.

    Raises:
        UserError: the weights cannot be read, or are of another network.
    """
    network = build(read_architecture(files))
    state = read_state(files[0], NAME, allow_pickle=context.allow_pickle)
    fill(network, {n: v.float() if v.is_floating_point() else v for n, v in state.items()}, NAME)
    return network.eval().requires_grad_(False)


class Reidentifier:
    """The network, ready: embeddings of images, and scores of pairs from embeddings."""

    def __init__(self, files: Sequence[Path], context: Context) -> None:
        self.architecture = read_architecture(files)
        self.identity = [sha256_file(path) for path in files]
        self.device = context.device
        self.network = load_network(files, context)
        self.weight: Vectors = self.network.fc_end.weight.numpy()[0]  # type: ignore[union-attr]
        self.bias = float(self.network.fc_end.bias)  # type: ignore[arg-type]
        self.network.to(self.device)

    def embed(self, images: torch.Tensor) -> Vectors:
        """Stacked `pixels` to embeddings float32 [n, features]."""
        import torch

        with torch.inference_mode():
            vectors: Vectors = self.network(images.to(self.device)).cpu().numpy()
        return vectors

    def scores(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
        """Score of row i of `first` with row i of `second`, in 0..1."""
        return pair_scores(first, second, self.weight, self.bias)

    def embed_sets(self, task: Task, sets: Sequence[ImageSet]) -> list[Vectors]:
        """The embeddings of each set, in which every content is decoded and seen once; kept in
        blocks in the task's folder, so that a killed run goes on where it was.

        A batch decides the last digits of its rows, so each set has batches of its own: a real
        image has one embedding whatever model is looked at.

        Raises:
            UserError: an embedding is not finite: the weights are broken.
        """
        with task.stage("embed for re-identification", sum(map(len, sets)), "images") as advance:
            return [self._embed_set(task, one, advance) for one in sets]

    def _embed_set(self, task: Task, images: ImageSet, advance: Callable[[int], None]) -> Vectors:
        paths = dict(zip(images.keys, images.paths, strict=True))
        keys = sorted(paths)  # by content, so that the order of the rows plays no part
        table = np.zeros((len(keys), self.architecture.features), np.float32)
        for start in range(0, len(keys), BLOCK):
            block = keys[start : start + BLOCK]
            table[start : start + BLOCK] = self._block(task, block, paths)
            advance(len(block))
        if not np.isfinite(table).all():
            raise UserError("The re-identification network gives NaN: its weights are broken.")
        position = {key: at for at, key in enumerate(keys)}
        return table[[position[key] for key in images.keys]]

    def _block(self, task: Task, keys: Sequence[str], paths: dict[str, Path]) -> Vectors:
        import torch

        kept = task.part("embeddings", self.identity, self.device, list(keys)) / "vectors.npy"
        if not kept.exists():
            parts = []
            for start in range(0, len(keys), 32):
                images = [
                    pixels(read_image(paths[key]), self.architecture)
                    for key in keys[start : start + 32]
                ]
                parts.append(self.embed(torch.stack(images)))
            with atomic_path(kept) as temporary:
                np.save(temporary, np.concatenate(parts))
        vectors: Vectors = np.load(kept)
        return vectors
