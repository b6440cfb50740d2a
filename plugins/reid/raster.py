"""Images of one size on disk, so that each is decoded once and memory stays bounded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chexgenbench import ImageSet, Task
from chexgenbench.files import atomic_path
from chexgenbench.images import read_image
from chexgenbench_plugins.reid.distances import Pairs, root_mean_square
from chexgenbench_plugins.reid.pairs import Floats, Integers

BLOCK = 512
"""Pairs in one file of the cache."""


def squashed(path: Path, size: int, *, grey: bool) -> NDArray[np.uint8]:
    """The image at size x size by antialiased bicubic, its aspect not kept: uint8 [channels, size
    * size]; one channel where it is asked for or the file has one, else three."""
    image = read_image(path)
    if grey:
        image = image.convert("L")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels: NDArray[np.uint8] = np.asarray(image, np.uint8).reshape(size * size, -1).T
    return pixels


@contextmanager
def raster(folder: Path, sets: tuple[ImageSet, ...], size: int) -> Iterator[NDArray[np.uint8]]:
    """All real images in grey, one after the other: uint8 [n, size * size] on the disk, for the
    time of the block."""
    count = sum(len(one) for one in sets)
    with tempfile.TemporaryFile(dir=folder) as file:
        rows: NDArray[np.uint8] = np.memmap(file, np.uint8, "w+", shape=(count, size * size))
        for at, path in enumerate(path for one in sets for path in one.paths):
            rows[at] = squashed(path, size, grey=True)[0]
        yield rows


class PixelDistances:
    """Root mean square differences in grey levels, 0 to 255, of images squashed to one size."""

    def __init__(self, task: Task, pairs: Pairs, rows: NDArray[np.uint8], size: int) -> None:
        self.task = task
        self.rows = rows
        self.size = size
        self.keys = [key for one in pairs.pool.sets for key in one.keys]

    def made(self, images: ImageSet, at: Integers, own: Integers) -> Floats:
        """Of made images to real ones; each channel of a colour image is compared with the grey
        real one."""
        found = []
        with self.task.stage("pixel distances", len(at), "images") as advance:
            for start in range(0, len(at), BLOCK):
                part, real = at[start : start + BLOCK].tolist(), own[start : start + BLOCK].tolist()
                facts = [[images.keys[i], self.keys[j]] for i, j in zip(part, real, strict=True)]
                kept = self.task.part("pixel distances", self.size, facts) / "distances.npy"
                if not kept.exists():
                    values = [
                        self._one(images.paths[i], j) for i, j in zip(part, real, strict=True)
                    ]
                    with atomic_path(kept) as temporary:
                        np.save(temporary, np.array(values))
                found.append(np.load(kept))
                advance(len(part))
        distances: Floats = np.concatenate(found)
        return distances

    def _one(self, path: Path, real: int) -> float:
        channels = squashed(path, self.size, grey=False)
        squares = root_mean_square(channels, self.rows[real][None]) ** 2
        return float(np.sqrt(squares.mean()))

    def real(self, first: Integers, second: Integers) -> Floats:
        """Of real images to one another."""
        found = np.empty(len(first))
        for start in range(0, len(first), 32):
            part = slice(start, start + 32)
            found[part] = root_mean_square(self.rows[first[part]], self.rows[second[part]])
        return found
