"""Near duplicates: images with the perceptual hash of a training image, confirmed by their pixels.

Radiographs are all alike: the usual hash of 64 bits is the same for many pairs of patients. So 256
bits are taken, and how far patients lie apart is read off the held-out images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
"""Different training images of the nearest hashes whose pixels are compared, and ties."""


@dataclass(frozen=True, eq=False)
class Duplicates:
    """What was found.

    Attributes:
        rate: share of generated images that are near duplicates, held-out images as control; a
            reason where no held-out image can be compared.
        near: by the name of each set bool [n], whether an image is a near duplicate of a training
            image; those whose file is that of a training image are.
        exact: generated images whose file is that of a training image.
        bits: int64 [h], bits in which the hash of each held-out image differs from the nearest
            training image's, which is of another patient.
        leaked: held-out images whose hash is that of a training image; they are in no control.
    """

    rate: Excess | str
    near: Mapping[str, NDArray[np.bool_]]
    exact: int
    bits: NDArray[np.int64]
    leaked: int


def find_duplicates(
    task: Task, made: Mapping[str, ImageSet], training: ImageSet, held_out: ImageSet
) -> Duplicates:
    """Looks for each image's near duplicate among the training images.

    A near duplicate has fewer bits between its hash and that of a training image than any held-out
    image has, and there, once mean and contrast are taken out, a smaller root mean square
    difference of 16 x 16 means than any held-out image: one in (h + 1) images that are no copies is
    taken for one at most. Copies after JPEG at quality 50, another size, noise or another contrast
    are found; cropped ones are not.

    Args:
        task: keeps the hashes.
        made: sets of images by name; ``generated`` has the rate.
        training: the images that may have been copied.
        held_out: real images of other patients.
    """
    targets = _marks(task, training)
    bits, pixels = _nearest(_marks(task, held_out), targets)
    kept = np.flatnonzero(bits > 0)
    known = set(training.keys)
    # One number that is smallest where both are, in units of the smallest of held-out images.
    least = (bits[kept].min(), max(float(pixels[kept].min()), 1e-9)) if kept.size else None

    def far(found: tuple[NDArray[np.int64], NDArray[np.float64]]) -> NDArray[np.float64]:
        if least is None:
            return np.full(len(found[0]), np.inf)
        return np.maximum(found[0] / least[0], found[1] / least[1])

    distances = {}
    for name, images in made.items():
        exact = np.array([key in known for key in images.keys], np.bool_)
        distances[name] = far(_nearest(_marks(task, images), targets))
        distances[name][exact] = 0.0
    generated = made["generated"]
    rate: Excess | str = "every held-out image has the hash of a training image"
    edge = 1.0
    if kept.size:
        rate, threshold = excess_below(
            distances["generated"],
            far((bits, pixels))[kept],
            rate=1 / (kept.size + 1),
            groups_fake=generated.patients,
            groups_held_out=held_out.patients[kept],
        )
        edge = threshold.distance
    return Duplicates(
        rate,
        {name: found < edge for name, found in distances.items()},
        sum(key in known for key in generated.keys),
        bits,
        len(held_out) - kept.size,
    )


def _nearest(
    queries: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    targets: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Bits [n] to the nearest hash, and the least pixel difference [n] among the nearest ones, all
    that are as near as the last of `_CANDIDATES`."""
    import faiss

    # Equal images once: else a thousand blank ones are a thousand ties.
    rows = np.unique(np.concatenate(targets, axis=1), axis=0)
    hashes, small = np.split(rows, [targets[0].shape[1]], axis=1)
    index = faiss.IndexBinaryFlat(8 * hashes.shape[1])
    index.add(np.ascontiguousarray(hashes))
    last = min(_CANDIDATES, len(rows)) - 1
    bits, pixels = np.empty(len(queries[0]), np.int64), np.empty(len(queries[0]))
    todo, width = np.arange(len(bits)), min(4 * _CANDIDATES, len(rows))
    while todo.size:
        open_rows = []
        for start in range(0, todo.size, step := max(1, 1_000_000 // width)):
            at = todo[start : start + step]
            found, ids = index.search(queries[0][at], width)
            near = found <= found[:, last, None]
            # Where a farther one was seen too, no tie was missed.
            whole = ~near[:, -1] | (width == len(rows))
            bits[at[whole]] = found[whole, 0]
            pixels[at[whole]] = _least(queries[1][at[whole]], small, ids[whole], near[whole])
            open_rows.append(at[~whole])
        todo, width = np.concatenate(open_rows), min(4 * width, len(rows))
    return bits, pixels


def _least(
    thumbnails: NDArray[np.uint8],
    others: NDArray[np.uint8],
    ids: NDArray[np.int64],
    near: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Least difference of each thumbnail [n] from `others` at `ids` [n, k] where `near`."""
    least = np.full(len(ids), np.inf)
    at, column = np.nonzero(near)
    for start in range(0, at.size, 4096):
        part = slice(start, start + 4096)
        one, other = at[part], ids[at[part], column[part]]
        gaps = _standardised(thumbnails[one]) - _standardised(others[other])
        np.minimum.at(least, one, np.sqrt((gaps**2).mean(axis=1)))
    return least


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
