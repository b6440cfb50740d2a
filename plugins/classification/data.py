"""What a classifier is trained on: labels as targets, and images decoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from chexgenbench import FINDINGS, ImageSet, NotApplicable, Task, UserError
from chexgenbench.files import atomic_path, file_lock, sha256_bytes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from chexgenbench.splits.prompts import PromptTable

Uncertain = Literal["ignore", "positive", "negative"]

MEAN, DEVIATION = 0.449, 0.226
"""Of ImageNet's grey levels in 0..1, by which images are normalised: the averages of its three
channels, which the weights of timm expect."""

FEWEST = 2
"""Test patients with, and without, a finding that it needs: of one patient no error is known."""


def targets(labels: NDArray[np.float64], uncertain: Uncertain) -> NDArray[np.float32]:
    """What a network is to say of each finding: 1, 0, or NaN where nothing is asked of it.

    Args:
        labels: [n, 14], 1 present, 0 absent, -1 uncertain, NaN not mentioned.
        uncertain: what -1 becomes: NaN (``ignore``, so that it has no part in the loss), 1 or 0.

    Returns:
        float32 [n, 14]. What a report does not mention is absent, as in CheXpert (Irvin et al.
        2019, arXiv 1901.07031), whose policies U-Ignore, U-Ones and U-Zeros the three are.

    >>> import numpy as np
    >>> targets(np.array([[1.0, 0.0, -1.0, np.nan]]), "ignore").tolist()
    [[1.0, 0.0, nan, 0.0]]
    """
    import numpy as np

    becomes = {"ignore": np.nan, "positive": 1.0, "negative": 0.0}[uncertain]
    known = np.where(labels == -1.0, becomes, labels)
    return np.where(np.isnan(labels), 0.0, known).astype(np.float32)


def seed_of(*facts: object) -> int:
    """63 bits hashed from `facts`."""
    return int(sha256_bytes(repr(facts).encode())[:16], 16) >> 1


def by_id(images: ImageSet) -> ImageSet:
    """The set in the order of its ids, whatever order it came in."""
    import numpy as np

    return images.take(np.argsort(np.asarray(images.ids, dtype=np.str_), kind="stable"))


def untestable(labels: NDArray[np.float64], patients: NDArray[Any]) -> dict[str, str]:
    """The findings that cannot be scored, and why.

    Args:
        labels: of the test rows [n, 14]. Uncertain ones do not count: nobody knows what would be
            right.
        patients: the patient of each row [n]; one may have rows with a finding and others without.
    """
    import numpy as np

    truth = targets(labels, "ignore")
    reasons = {}
    for name, column in zip(FINDINGS, truth.T, strict=True):
        having, lacking = (int(np.unique(patients[column == value]).size) for value in (1, 0))
        if min(having, lacking) < FEWEST:
            reasons[name] = (
                f"{having} test patients with the finding and {lacking} without; "
                f"{FEWEST} of each are needed"
            )
    return reasons


def check_tables(
    metric: str, tables: Mapping[str, PromptTable], *, without_patients: bool
) -> list[str]:
    """Remarks on the rows of the sets ``real``, ``synthetic`` and ``test`` of a utility metric.

    Raises:
        UserError: there is nothing to train or to test on, or no row has a patient.
    """
    import numpy as np

    from chexgenbench_plugins.patients import check_patients

    for side in ("real", "test"):
        if not len(tables[side]):
            raise UserError(f"The metric {metric!r} has no {side} rows to work on.")
    sides = {"training": tables["real"], "test": tables["test"]}
    remarks = check_patients(metric, sides, without_patients=without_patients)
    patients = tables["real"].patient_codes()
    if (len(tables["real"]) if patients is None else np.unique(patients).size) < 2:
        raise UserError(
            f"The metric {metric!r} needs two patients at least to train and to validate on, and "
            f"{tables['real'].source_file} has one."
        )
    test, owners = tables["test"], tables["test"].patient_codes()
    reasons = untestable(
        test.table[list(FINDINGS)].to_numpy(np.float64),
        np.arange(len(test)) if owners is None else owners,
    )
    if len(reasons) == len(FINDINGS):
        raise UserError(
            f"The metric {metric!r} has no finding to score: each needs {FEWEST} patients with it "
            f"and {FEWEST} without in {test.source_file}."
        )
    return remarks + [f"{name} is left out: {reason}." for name, reason in reasons.items()]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pixels:
    """Grey images at training size, read from memory-mapped files.

    Attributes:
        sources: uint8 [n, size, size] each.
        keys: the content of each image of each source, as SHA-256.
    """

    sources: Sequence[NDArray[np.uint8]]
    keys: Sequence[Sequence[str]]

    def batch(self, at: NDArray[np.int64]) -> torch.Tensor:
        """float32 [n, 1, size, size], normalised, of (source, position) [n, 2]."""
        import numpy as np
        import torch

        rows = np.stack([self.sources[source][row] for source, row in at.tolist()])
        grey = torch.from_numpy(rows)[:, None].float() / 255.0
        return (grey - MEAN) / DEVIATION


def decoded(task: Task, images: ImageSet, size: int, name: str) -> NDArray[np.uint8]:
    """The images as uint8 [n, size, size], memory-mapped; decoded once for all runs.

    The shorter side is resized to `size` (bicubic, antialiased) and the centre is cut out, so that
    the proportions stay; colours become grey.
    """
    import numpy as np
    from PIL import Image, ImageOps

    from chexgenbench.images import read_image

    if not len(images):
        raise NotApplicable(f"there is no readable image in the set {name}")
    folder = task.part({"pixels": list(images.keys), "size": size})
    path = folder / "pixels.npy"
    with file_lock(folder / "lock"):
        if not path.exists():
            with (
                atomic_path(path) as temporary,
                task.stage(f"decode {name}", len(images), "images") as advance,
            ):
                array = np.lib.format.open_memmap(
                    temporary, "w+", np.uint8, (len(images), size, size)
                )
                for row, file in enumerate(images.paths):
                    grey = read_image(file).convert("L")
                    array[row] = ImageOps.fit(grey, (size, size), Image.Resampling.BICUBIC)
                    advance(1)
                array.flush()
                del array
    found: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return found


def augmented(batch: torch.Tensor, draws: NDArray[np.float32]) -> torch.Tensor:
    """The images, each a little turned, moved, enlarged and lit; never mirrored.

    A mirrored chest has its heart on the right, which is another finding (situs inversus), and the
    side of an effusion would contradict its report.

    Args:
        batch: [n, 1, h, w].
        draws: uniform in -1..1 [n, 6]: angle (5 degrees at most), shift right and down (3 % of the
            side), scale (5 %), contrast (10 %) and brightness (0.1 of a standard deviation).
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    turn, right, down, scale, contrast, light = torch.from_numpy(draws).to(batch.device).unbind(1)
    angle, zoom = turn * (5.0 * torch.pi / 180.0), 1.0 + 0.05 * scale
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [
        torch.stack([cosine, -sine, 0.06 * right], dim=1),
        torch.stack([sine, cosine, 0.06 * down], dim=1),
    ]
    grid = affine_grid(torch.stack(rows, dim=1), list(batch.shape), align_corners=False)
    moved = grid_sample(batch, grid, padding_mode="border", align_corners=False)
    return moved * (1.0 + 0.1 * contrast)[:, None, None, None] + (0.1 * light)[:, None, None, None]
