"""Near duplicates: images with the perceptual hash of a training image, confirmed by their pixels.

Radiographs are all alike: the usual hash of 64 bits is the same for many pairs of patients. So 256
bits are taken, and how far patients lie apart is read off the held-out images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chexgenbench import ImageSet, Task
from chexgenbench.files import atomic_path
from chexgenbench.images import read_image, thumbnail
from chexgenbench.statistics.copies import Excess, excess_below

HASH_SIDE = 16
"""Bits a side of the hash."""

_CHUNK = 512
"""Images whose hashes lie in one file."""

_CANDIDATES = 3
"""Training images of the nearest hashes whose pixels are compared."""


@dataclass(frozen=True, eq=False)
class Duplicates:
    """What was found.

    Attributes:
        rate: share of generated images that are near duplicates, held-out images as control.
        near: bool [n], whether a generated image is one.
        exact: bool [n], whether its file is that of a training image.
        bits: int64 [h], bits in which the hash of each held-out image differs from the nearest
            training image's, which is of another patient.
        leaked: held-out images whose hash is that of a training image; they are in no control.
    """

    rate: Excess
    near: NDArray[np.bool_]
    exact: NDArray[np.bool_]
    bits: NDArray[np.int64]
    leaked: int


def find_duplicates(
    task: Task, generated: ImageSet, training: ImageSet, held_out: ImageSet
) -> Duplicates:
    """Looks for each generated image's near duplicate among the training images.

    A near duplicate has fewer bits between its hash and that of a training image than any held-out
    image has, and there, once mean and contrast are taken out, a smaller root mean square
    difference of 16 x 16 means than any held-out image: one in (h + 1) images that are no copies is
    taken for one at most. Copies after JPEG at quality 50, another size, noise or another contrast
    are found; cropped ones are not.
    """
    marks = [_marks(task, images) for images in (generated, training, held_out)]
    bits, pixels = _nearest(marks[0], marks[1])
    bits_h, pixels_h = _nearest(marks[2], marks[1])
    kept = np.flatnonzero(bits_h > 0)
    if not kept.size:
        raise ValueError("every held-out image has the hash of a training image")
    # One number that is smallest where both are, in units of the smallest of held-out images.
    least = bits_h[kept].min(), max(float(pixels_h[kept].min()), 1e-9)
    far = np.maximum(bits / least[0], pixels / least[1])
    far_h = np.maximum(bits_h / least[0], pixels_h / least[1])[kept]
    known = set(training.keys)
    exact = np.array([key in known for key in generated.keys])
    far[exact] = 0.0
    rate, threshold = excess_below(
        far,
        far_h,
        rate=1 / (kept.size + 1),
        groups_fake=generated.patients,
        groups_held_out=held_out.patients[kept],
    )
    near = far < threshold.distance
    return Duplicates(rate, near, exact, bits_h, len(held_out) - kept.size)


def _nearest(
    queries: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    targets: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Bits [n] to the nearest hash, and the least pixel difference [n] among the nearest ones."""
    import faiss

    index = faiss.IndexBinaryFlat(8 * targets[0].shape[1])
    index.add(targets[0])
    bits, ids = index.search(queries[0], min(_CANDIDATES, len(targets[0])))
    pixels = np.empty(ids.shape)
    for part in range(0, len(ids), 4096):
        rows = slice(part, part + 4096)
        gaps = _standardised(queries[1][rows])[:, None] - _standardised(targets[1])[ids[rows]]
        pixels[rows] = np.sqrt((gaps**2).mean(axis=2))
    return bits[:, 0].astype(np.int64), pixels.min(axis=1)


def _standardised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    scaled: NDArray[np.float64] = rows / np.maximum(rows.std(axis=1, keepdims=True), 1.0)
    return scaled


def _marks(task: Task, images: ImageSet) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Hash [n, 32] and thumbnail [n, 256] of each image, kept by the content of the files."""
    hashes, small = [], []
    with task.stage(f"hash {images.need.name}", len(images), "images") as advance:
        for rows in _chunks(len(images)):
            keys = images.keys[rows]
            path = task.part("perceptual hash", HASH_SIDE, list(keys)) / "marks.npz"
            if not path.is_file():
                _write(path, images.paths[rows])
            with np.load(path) as kept:
                hashes.append(kept["hash"])
                small.append(kept["thumbnail"])
            advance(len(keys))
    return np.concatenate(hashes), np.concatenate(small)


def _write(path: Path, images: tuple[Path, ...]) -> None:
    import imagehash

    hashes, small = [], []
    for image in map(read_image, images):
        grey = image.convert("L")
        hashes.append(np.packbits(imagehash.phash(grey, HASH_SIDE).hash.ravel()))
        small.append(thumbnail(grey).ravel())
    with atomic_path(path) as aside, aside.open("wb") as file:
        np.savez(file, hash=np.stack(hashes), thumbnail=np.stack(small))


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, _CHUNK):
        yield slice(start, start + _CHUNK)
