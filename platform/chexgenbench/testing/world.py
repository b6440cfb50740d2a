"""What plugins are tried on: simple pictures of chests, a small split of them, random features.

All is drawn here from fixed seeds, so that two processes see the same. The pictures are no
radiographs and no plugin is asked to like them: they differ from each other in the way that their
labels say, which is all that a contract needs.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chexgenbench.files import sha256_file
from chexgenbench.splits.prompts import PromptTable, read_prompts
from chexgenbench.types import ImageNeed, ImageSet, Sample

TEST, TRAINING = 60, 80
"""Rows of the two sides of the split, two a patient."""

SIZE = 96
WIDTH = 16
"""Of features where no encoder says another."""

ROWS = 240
"""Of features; two rows a patient."""

_SEED = 20_240_601
_SIZES = ("small", "moderate", "large")
_SIDES = ("left", "right")
_FINDINGS = ("Pleural Effusion", "Pneumothorax", "Consolidation", "Atelectasis")
_HEARTS = ("The heart size is normal.", "The heart is enlarged.", "The heart is severely enlarged.")
_DEVICES = ("", " A pacemaker is in place.")


@dataclass(frozen=True)
class Case:
    """What a row says and its picture shows."""

    size: str
    side: str
    finding: str
    heart: str
    device: str

    @property
    def prompt(self) -> str:
        return f"{self.size.capitalize()} {self.side} {self.finding.lower()}. {self.heart}" + (
            self.device
        )

    @property
    def labels(self) -> dict[str, float]:
        found = {self.finding: 1.0, "Cardiomegaly": float("enlarged" in self.heart)}
        return found | ({"Support Devices": 1.0} if self.device else {})


def cases(count: int) -> list[Case]:
    """Different cases, the same ones each time, at most 144."""
    every = [
        Case(*parts) for parts in itertools.product(_SIZES, _SIDES, _FINDINGS, _HEARTS, _DEVICES)
    ]
    order = np.random.default_rng(_SEED).permutation(len(every))
    return [every[i] for i in order[:count]]


def draw(case: Case, seed: int, size: int = SIZE) -> NDArray[np.uint8]:
    """A picture [size, size] of a case: two dark lungs, a heart, and what the case says."""
    random = np.random.default_rng([_SEED, seed])
    y, x = np.mgrid[:size, :size] / size
    tall, wide, off = random.uniform(0.28, 0.34), random.uniform(0.14, 0.18), random.normal(0, 0.01)

    def disc(cx: float, cy: float, rx: float, ry: float) -> NDArray[np.float64]:
        edge = 1 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2
        soft: NDArray[np.float64] = 1 / (1 + np.exp(-8 * edge.clip(-8, 8)))
        return soft

    grey = 0.25 + 0.45 * disc(0.5 + off, 0.55, 0.42, 0.6)
    for centre in (0.31, 0.69):
        grey -= 0.4 * disc(centre + off, 0.48, wide, tall)
    heart = 0.1 + 0.05 * (("enlarged" in case.heart) + ("severely" in case.heart))
    grey += 0.3 * disc(0.56 + off, 0.62, heart, heart)
    # The left of a patient is on the right of the picture.
    centre = (0.69 if case.side == "left" else 0.31) + off
    much = 0.06 + 0.05 * _SIZES.index(case.size)
    if case.finding == "Pleural Effusion":
        grey += 0.4 * disc(centre, 0.78, 0.16, 1.6 * much)
    elif case.finding == "Pneumothorax":
        grey -= 0.2 * disc(centre, 0.28, 0.14, 1.4 * much)
    else:
        low = 0.4 if case.finding == "Consolidation" else 0.62
        grey += 0.3 * disc(centre, low, much, much)
    if case.device:
        grey += 0.5 * disc(0.78 + off, 0.24, 0.05, 0.04)
    grey += random.normal(0, 0.02, grey.shape)
    return np.asarray((grey.clip(0, 1) * 255).round(), np.uint8)


@dataclass(frozen=True, eq=False)
class World:
    """A split of pictures in a folder.

    Attributes:
        test, training: the two sides; no patient is on both.
    """

    folder: Path
    test: PromptTable
    training: PromptTable

    @classmethod
    def make(cls, folder: Path) -> World:
        """Draws it; about 0.3 s."""
        every = cases(TEST + TRAINING)
        sides = {"test": every[:TEST], "training": every[TEST:]}
        tables: dict[str, PromptTable] = {}
        for number, (side, chosen) in enumerate(sides.items()):
            images = [draw(case, 1000 * number + i) for i, case in enumerate(chosen)]
            path = write_split(folder, side, chosen, images)
            tables[side] = read_prompts(path, name="kit", images_root=folder)
        return cls(folder, tables["test"], tables["training"])

    def pictures(self, count: int) -> list[Image.Image]:
        """Pictures of the test side, grey."""
        return [Image.open(self.test.path(row)).convert("L") for row in range(count)]

    def images(
        self, need: ImageNeed, table: PromptTable, outputs: Mapping[str, int], seed: int = 0
    ) -> ImageSet:
        """The images of a need: those of `table`, or others of the same cases.

        Args:
            outputs: name and width of the features that the set carries.
        """
        repeats = need.repeats or 1
        rows = np.repeat(np.arange(len(table)), repeats)
        made = np.tile(np.arange(repeats), len(table))
        ids = table.table["prompt_id"].tolist()
        known = {case.prompt: case for case in cases(TEST + TRAINING)}
        paths: list[Path] = []
        for row, repeat in zip(rows.tolist(), made.tolist(), strict=True):
            if need.source == "real":
                paths.append(table.path(row))
                continue
            path = self.folder / "made" / f"{seed}-{ids[row]}-{repeat}.png"
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                case = known[table.table["prompt"].iloc[row]]
                number = 10_000 + 1000 * seed + 10 * row + repeat
                Image.fromarray(draw(case, number)).save(path)
            paths.append(path)
        names = [f"{ids[i]}~{k}" if k else ids[i] for i, k in zip(rows, made, strict=True)]
        return ImageSet(
            need=need,
            prompts=table,
            rows=rows,
            repeats=made,
            ids=tuple(names),
            keys=tuple(sha256_file(path) for path in paths),
            paths=tuple(paths),
            outputs={name: _features_of(paths, width) for name, width in outputs.items()},
        )


def write_split(
    folder: Path, side: str, chosen: Sequence[Case], images: Sequence[NDArray[np.uint8]]
) -> Path:
    """A CSV file in the published columns, its images in a folder beside it; two rows a patient."""
    (folder / side).mkdir(parents=True, exist_ok=True)
    path = folder / f"{side}.csv"
    columns = ("id", "annotated_prompt", "path", "chexpert_labels", "patientID", "view")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for i, (case, pixels) in enumerate(zip(chosen, images, strict=True)):
            name = f"{side}/{i:03}.png"
            Image.fromarray(pixels).save(folder / name, optimize=True)
            patient = f"{side}-p{i // 2:03}"
            writer.writerow((f"{side}-{i:03}", case.prompt, name, case.labels, patient, "PA"))
    return path


def _features_of(paths: Sequence[Path], width: int) -> NDArray[np.float32]:
    """Random projections of thumbnails: images that differ have features that differ."""
    rows = [
        np.asarray(Image.open(path).convert("L").resize((16, 16)), np.float64).ravel() / 255
        for path in paths
    ]
    matrix = np.random.default_rng(_SEED).normal(size=(256, width)) / 16
    return np.asarray(np.stack(rows) @ matrix, np.float32)


# --- features -------------------------------------------------------------------------------


def sample(
    outputs: Mapping[str, int], degree: float = 0.0, *, seed: int = 1, kind: str = "unlike"
) -> Sample:
    """`ROWS` rows of a side under an encoder that does not exist.

    Rows of degree 0 are draws of one distribution: three clusters. Its ``probabilities`` are
    sure and varied, its text is near its image.

    Args:
        outputs: name and width of the encoder's outputs.
        degree: how far the rows are damaged, 0 to 1.
        seed: of the draw.
        kind: ``unlike`` moves rows to where no real one is, and away from their texts;
            ``collapse`` makes all rows one.
    """
    random = np.random.default_rng([_SEED, seed])
    group = random.integers(0, 3, ROWS)
    found: dict[str, NDArray[np.float32]] = {}
    text: NDArray[np.float32] | None = None
    for name, width in outputs.items():
        if name == "probabilities":
            rows, bad = _probabilities(random, width, kind)
        elif name == "undefined":
            # What radiomics cannot say of an image; 0: all is known.
            rows = bad = np.zeros((ROWS, width))
        else:
            centres = np.random.default_rng(_SEED).normal(0, 1.5, (3, width))
            rows = centres[group] + random.normal(0, 1, (ROWS, width))
            if name == "features":
                text = np.asarray(rows + random.normal(0, 0.3, rows.shape), np.float32)
            bad = 6.0 + random.normal(0, 0.5, rows.shape)
            if kind == "collapse":
                bad = rows.mean(0) + 1e-3 * random.normal(0, 1, rows.shape)
        found[name] = np.asarray((1 - degree) * rows + degree * bad, np.float32)
    return Sample(
        outputs=found,
        text=text,
        prompts=np.arange(ROWS, dtype=np.int64),
        patients=np.arange(ROWS, dtype=np.int64) // 2,
    )


def _probabilities(
    random: np.random.Generator, width: int, kind: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    logits = random.normal(0, 0.5, (ROWS, width))
    logits[np.arange(ROWS), random.integers(0, width, ROWS)] += 6
    rows = np.exp(logits)
    rows /= rows.sum(1, keepdims=True)
    same = np.zeros((ROWS, width)) + (np.arange(width) == 0)
    return rows, same if kind == "collapse" else np.full((ROWS, width), 1 / width)


def read_only(side: Sample) -> Sample:
    """The same with arrays that cannot be written to."""

    def fixed(array: NDArray[np.float32]) -> NDArray[np.float32]:
        copy = array.copy()
        copy.flags.writeable = False
        return copy

    return replace(side, outputs={name: fixed(rows) for name, rows in side.outputs.items()})
