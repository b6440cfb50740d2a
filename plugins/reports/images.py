"""Images of a set at the size that a generator reads, decoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chexgenbench.files import atomic_path, file_lock
from chexgenbench.images import read_image

if TYPE_CHECKING:
    import PIL.Image


def grey_images(
    paths: Sequence[Path], folder: Path, *, size: int, advance: Callable[[int], None]
) -> NDArray[np.uint8]:
    """Grey levels [n, size, size] of images, read from a file in `folder` that is made once.

    Args:
        paths: The images, whose content the caller named in `folder`.
        folder: Where the file lies.
        size: Pixels a side; see `squared`.
        advance: Told of each image.

    Raises:
        BadImage: an image cannot be read.
    """
    file = folder / "images.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "lock"):
        if not file.is_file():
            with atomic_path(file) as aside:
                shape = (len(paths), size, size)
                made = np.lib.format.open_memmap(aside, "w+", np.uint8, shape)
                for at, path in enumerate(paths):
                    made[at] = squared(read_image(path), size)
                    advance(1)
                made.flush()
                del made
        else:
            advance(len(paths))
    stored: NDArray[np.uint8] = np.load(file, mmap_mode="r")
    return stored


class Chosen:
    """Images out of several stores, read when they are asked for.

    Attributes:
        shape: [n, size, size].
    """

    def __init__(
        self, stores: Mapping[int, NDArray[np.uint8]], places: Sequence[tuple[int, int]]
    ) -> None:
        """Image i is that of ``places[i]``: a store and a position in it."""
        self._stores, self._places = stores, places
        size = next(iter(stores.values())).shape[1]
        self.shape = (len(places), size, size)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [k, size, size]."""
        places = [self._places[row] for row in rows.tolist()]
        return np.stack([self._stores[store][at] for store, at in places])


def squared(image: PIL.Image.Image, size: int) -> NDArray[np.uint8]:
    """Grey levels [size, size]: bicubic with antialiasing, aspect kept, padded with black."""
    from PIL import Image

    grey = image.convert("L")
    scale = size / max(grey.size)
    width, height = (max(1, round(side * scale)) for side in grey.size)
    small = grey.resize((width, height), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (size, size))
    canvas.paste(small, ((size - width) // 2, (size - height) // 2))
    return np.asarray(canvas, np.uint8)
