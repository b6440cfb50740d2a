"""Which images are compared: with the own one, with other patients', with the same patient's.

Nothing here depends on the order of the rows: ties are broken by a hash of ids and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench import ImageNeed, ImageSet, UserError
from chexgenbench.splits.prompts import PromptTable
from chexgenbench_plugins.patients import check_patients

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FEWEST = 20
"""Prompts a side below which a share says nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Real:
    """Real images of both sides as one pool.

    Attributes:
        sets: the image sets, one after the other.
        patients: [n], a name of one's own for a row without a patient.
        labels: float64 [n, 14], as `ImageSet.labels`.
        keys: uint64 [n], random by id and seed.
    """

    sets: tuple[ImageSet, ...]
    patients: NDArray[np.str_]
    labels: Floats
    keys: NDArray[np.uint64]

    @classmethod
    def of(cls, sets: Sequence[ImageSet], seed: int) -> Real:
        ids = [f"{one.need.side}\x1f{name}" for one in sets for name in one.ids]
        return cls(
            sets=tuple(sets),
            patients=np.concatenate([one.patients for one in sets]),
            labels=np.concatenate([one.labels for one in sets]),
            keys=np.array([_hash(f"{seed}\x1f{name}") for name in ids], np.uint64),
        )

    def __len__(self) -> int:
        return len(self.keys)


def needs(prompts: int, repeats: int) -> dict[str, ImageNeed]:
    """The sets of the metrics that compare an image with its prompt's own real one.

    ``members`` answer training prompts and ``held_out`` answer test prompts, by one procedure.
    """
    return {
        "members": ImageNeed(side="training", source="model", prompts=prompts, repeats=repeats),
        "held_out": ImageNeed(side="test", source="model", prompts=prompts, repeats=repeats),
        "members_real": ImageNeed(side="training", source="real", prompts=prompts),
        "held_out_real": ImageNeed(side="test", source="real"),
    }


def check_tables(
    metric: str, tables: Mapping[str, PromptTable], prompts: int, without_patients: bool
) -> list[str]:
    """Remarks on the rows of `needs`.

    Raises:
        UserError: a side has too few prompts, or no patients and `without_patients` is not set.
    """
    remarks = []
    sides = {"training": tables["members"], "test": tables["held_out"]}
    for side, table in sides.items():
        if len(table) < FEWEST:
            raise UserError(
                f"The metric {metric!r} needs {FEWEST} {side} prompts at least; the split has "
                f"{len(table)}.",
                hint="Name a split with more rows on that side, or leave the metric out.",
            )
        if len(table) < prompts:
            remarks.append(
                f"{len(table):,} {side} prompts are there and {prompts:,} were asked for"
            )
    return remarks + check_patients(metric, sides, without_patients=without_patients)


def own_images(made: ImageSet, real: ImageSet) -> Integers:
    """For each made image the position in `real` of its prompt's own image, -1 where unreadable."""
    position = {name: at for at, name in enumerate(real.ids)}
    ids = made.prompts.table["prompt_id"].to_numpy()[made.rows]
    return np.array([position.get(name, -1) for name in ids], np.int64)


def strangers(pool: Real, count: int) -> Integers:
    """For each image `count` images of other patients whose labels agree best, at random among
    equals: int64 [n, count].

    Labels agree by the number of the 14 findings that have one state (present, absent, uncertain,
    not mentioned). Fewer columns where there are fewer images of other patients.
    """
    states = np.nan_to_num(pool.labels, nan=2.0)
    state = (states[:, :, None] == np.array([-1.0, 0.0, 1.0, 2.0])).reshape(len(pool), -1)
    one_hot = state.astype(np.float32)
    _, patient = np.unique(pool.patients, return_inverse=True)
    others = len(pool) - int(np.bincount(patient).max())
    count = min(count, others)
    found = np.zeros((len(pool), count), np.int64)
    step = max(1, 4_000_000 // max(len(pool), 1))
    for start in range(0, len(pool), step):
        rows = slice(start, start + step)
        apart = pool.labels.shape[1] - (one_hot[rows] @ one_hot.T).astype(np.float64)
        apart += _mixed(pool.keys[rows, None] ^ _mixed(pool.keys)[None]) / 2.0**64
        apart[patient[rows, None] == patient[None]] = np.inf
        nearest = np.argpartition(apart, count - 1, axis=1)[:, :count] if count else found[rows]
        order = np.take_along_axis(apart, nearest, axis=1).argsort(axis=1)
        found[rows] = np.take_along_axis(nearest, order, axis=1)
    return found


def siblings(pool: Real) -> Integers:
    """For each image another one of its patient, at random: int64 [n], -1 where there is none."""
    order = np.lexsort((pool.keys, pool.patients))
    patients = pool.patients[order]
    starts = np.flatnonzero(np.r_[True, patients[1:] != patients[:-1]])
    found = np.full(len(pool), -1, np.int64)
    for start, end in zip(starts, np.r_[starts[1:], len(pool)], strict=True):
        if end - start > 1:
            found[order[start:end]] = np.roll(order[start:end], 1)
    return found


def by_prompt(rows: Integers, values: Floats) -> tuple[Integers, Floats, Floats, Floats]:
    """Rows that occur, and the mean, least and largest of their values."""
    used, at, counts = np.unique(rows, return_inverse=True, return_counts=True)
    least, largest = np.full(len(used), np.inf), np.full(len(used), -np.inf)
    np.minimum.at(least, at, values)
    np.maximum.at(largest, at, values)
    return used, np.bincount(at, values, len(used)) / counts, least, largest


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _mixed(keys: NDArray[np.uint64]) -> NDArray[Any]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
