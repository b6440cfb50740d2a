"""How far chexgenbench.statistics and the Inception encoder are from the packages others use.

    python benchmarks/parity.py [--small] [--write]

Both sides get the same features (or images). Each row of the table is one comparison over several
sizes, with the largest relative difference. Where a definition differs, one row shows the
difference as it is, and the next row what is left when only that is made equal.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from side_by_side import ROOT, table, write_between

from chexgenbench.statistics import (
    cmmd,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall_density_coverage,
)

Array = NDArray[np.float64]

BOUND = 1e-6
"""What equal definitions must agree to."""


@dataclass(frozen=True)
class Comparison:
    """One row: largest relative difference over sizes, and why it is not zero where it is not."""

    metric: str
    against: str
    sizes: str
    difference: float
    reason: str = ""  # why the definitions differ; empty where they are equal

    @property
    def equal(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Sizes:
    """Numbers of rows and features to compare at: with N > d, and with N < d."""

    enough: tuple[tuple[int, int, int], ...]
    few: tuple[tuple[int, int, int], ...]
    tiny: tuple[tuple[int, int, int], ...]  # small enough for 50 digits
    neighbours: tuple[tuple[int, int, int, int], ...]  # and k
    classes: tuple[tuple[int, int, int], ...]  # and splits
    images: tuple[tuple[int, int], ...]


FULL = Sizes(
    enough=((300, 250, 8), (1000, 700, 64), (2500, 2000, 768), (2600, 2400, 2048)),
    few=((300, 200, 768), (500, 500, 2048)),
    tiny=((12, 10, 20), (8, 14, 30)),
    neighbours=((300, 200, 8, 5), (1000, 1000, 64, 5), (2000, 1500, 768, 5), (150, 400, 2048, 3)),
    classes=((500, 1008, 10), (2000, 14, 10), (1000, 1008, 1)),
    images=((512, 512), (299, 299), (128, 128), (200, 331), (1024, 768)),
)
SMALL = Sizes(
    enough=((120, 90, 6), (260, 200, 64)),
    few=((60, 50, 128),),
    tiny=((6, 5, 8),),
    neighbours=((120, 90, 6, 5), (100, 150, 64, 3)),
    classes=((200, 40, 10),),
    images=((128, 128), (70, 90)),
)


def features(n: int, d: int, seed: int, shift: float = 0.0) -> Array:
    """Non-negative and of very different scales, like pool features; float32 as they are stored."""
    rows = np.abs(np.random.default_rng(seed).normal(size=(n, d)) + shift)
    return (rows * (1 + np.arange(d)) ** -0.5).astype(np.float32).astype(np.float64)


def sides(n: int, m: int, d: int) -> tuple[Array, Array]:
    return features(n, d, 1), features(m, d, 2, 0.3)


def apart(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / max(abs(theirs), np.finfo(np.float64).tiny)


def _compare(
    metric: str,
    against: str,
    sizes: tuple[tuple[int, ...], ...],
    difference: Callable[..., float],
    reason: str = "",
) -> Comparison:
    words = ", ".join(" x ".join(str(part) for part in size) for size in sizes)
    return Comparison(metric, against, words, max(difference(*s) for s in sizes), reason)


class Given(torch.nn.Module):
    """Features in place of images, for metrics that insist on a network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


# --- Frechet distance -------------------------------------------------------------------------


def _moments(rows: Array) -> tuple[Array, Array]:
    return rows.mean(axis=0), np.cov(rows, rowvar=False)


def by_sqrtm(x: Array, y: Array) -> float:
    """scipy's matrix square root of the product, as Heusel et al. 2017 wrote it."""
    from scipy.linalg import sqrtm

    (m1, s1), (m2, s2) = _moments(x), _moments(y)
    root = np.trace(sqrtm(s1 @ s2))
    return float((m1 - m2) @ (m1 - m2) + np.trace(s1) + np.trace(s2) - 2 * root.real)


def in_fifty_digits(x: Array, y: Array) -> float:
    """The definition in 50 decimal digits, for sizes that allow it."""
    import mpmath

    with mpmath.workdps(50):
        first, second = (_mp_covariance(rows) for rows in (x, y))
        values, vectors = mpmath.eigsy(first[1])
        roots = mpmath.diag([mpmath.sqrt(max(value, mpmath.mpf(0))) for value in values])
        half = vectors * roots * vectors.T
        inner = mpmath.eigsy(half * second[1] * half, eigvals_only=True)
        cross = sum(mpmath.sqrt(max(value, mpmath.mpf(0))) for value in inner)
        gap = first[0] - second[0]
        squared = (gap * gap.T)[0, 0]
        trace = sum(first[1][i, i] + second[1][i, i] for i in range(x.shape[1]))
        return float(squared + trace - 2 * cross)


def _mp_covariance(rows: Array) -> tuple[Any, Any]:
    import mpmath

    data = mpmath.matrix(rows.tolist())
    n = data.rows
    mean = mpmath.matrix(1, n) + mpmath.mpf(1) / n
    mean = mean * data
    centred = data - mpmath.matrix(n, 1) * mean
    for i in range(n):
        for j in range(data.cols):
            centred[i, j] = data[i, j] - mean[0, j]
    return mean, centred.T * centred / (n - 1)


def _fidelity_fid(x: Array, y: Array) -> float:
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    stats = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (x, y)]
    return float(fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID])


def _torchmetrics_fid(x: Array, y: Array) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=Given(x.shape[1])).set_dtype(torch.float64)
    for rows, real in ((x, True), (y, False)):
        for part in torch.from_numpy(rows).split(64):
            metric.update(part, real=real)
    return float(metric.compute())


def _clean_fid(x: Array, y: Array) -> float:
    from cleanfid.fid import frechet_distance as theirs

    (m1, s1), (m2, s2) = _moments(x), _moments(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return float(theirs(m1, s1, m2, s2))


def _frechet_of(theirs: Callable[[Array, Array], float]) -> Callable[..., float]:
    def difference(n: int, m: int, d: int) -> float:
        x, y = sides(n, m, d)
        expected = theirs(x, y)
        found = [frechet_distance(x, y, interval=interval).value for interval in (True, False)]
        return max(apart(value, expected) for value in found)

    return difference


def frechet(sizes: Sizes) -> Iterator[Comparison]:
    name = "frechet_distance"
    yield _compare(name, "scipy.linalg.sqrtm", sizes.enough, _frechet_of(by_sqrtm))
    yield _compare(name, "torch-fidelity", sizes.enough, _frechet_of(_fidelity_fid))
    yield _compare(name, "torchmetrics", sizes.enough, _frechet_of(_torchmetrics_fid))
    yield _compare(name, "clean-fid", sizes.enough, _frechet_of(_clean_fid))
    yield _compare(name, "the definition in 50 digits", sizes.tiny, _frechet_of(in_fifty_digits))
    reason = (
        "N < d: roots of eigenvalues that are zero but for rounding add up to "
        "some 1e-8 of the largest each; ours takes singular values of an [n, m] matrix"
    )
    yield _compare(name, "torch-fidelity", sizes.few, _frechet_of(_fidelity_fid), reason)


# --- kernel distance --------------------------------------------------------------------------


def _fidelity_subsets(n: int, m: int, d: int) -> float:
    """torch-fidelity's own draws; ours is the exact statistic of each drawn subset."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    x, y = sides(n, m, d)
    size, subsets, seed = min(n, m) // 2, 5, 2020
    theirs = kid_features_to_metric(
        torch.from_numpy(x),
        torch.from_numpy(y),
        kid_subsets=subsets,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )[KEY_METRIC_KID_MEAN]
    draw = np.random.RandomState(seed)
    drawn = [
        kernel_distance(
            x[draw.choice(n, size, replace=False)], y[draw.choice(m, size, replace=False)]
        ).value
        for _ in range(subsets)
    ]
    return apart(float(np.mean(drawn)), float(theirs))


def _all_rows(x: Array, y: Array) -> tuple[Array, Array]:
    """As many rows a side: other tools can take all pairs of equal sizes only."""
    rows = min(len(x), len(y))
    return x[:rows], y[:rows]


def _torchmetrics_kid(dtype: torch.dtype) -> Callable[..., float]:
    def difference(n: int, m: int, d: int) -> float:
        from torchmetrics.image.kid import KernelInceptionDistance

        x, y = _all_rows(*sides(n, m, d))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            metric = KernelInceptionDistance(feature=Given(d), subsets=1, subset_size=len(x))
        metric.set_dtype(dtype)
        metric.update(torch.from_numpy(x).to(dtype), real=True)
        metric.update(torch.from_numpy(y).to(dtype), real=False)
        theirs = float(metric.compute()[0])
        ours = kernel_distance(x, y), kernel_distance(x, y, subset_size=len(x), subsets=1)
        return max(apart(one.value, theirs) for one in ours)

    return difference


def _clean_kid(n: int, m: int, d: int) -> float:
    from cleanfid.fid import kernel_distance as theirs

    x, y = _all_rows(*sides(n, m, d))
    value = theirs(x, y, num_subsets=1, max_subset_size=len(x))
    return apart(kernel_distance(x, y).value, value)


def kernel(sizes: Sizes) -> Iterator[Comparison]:
    name = "kernel_distance"
    every = sizes.enough + sizes.few
    yield _compare(name, "torch-fidelity, its 5 subsets of half", every, _fidelity_subsets)
    yield _compare(
        name, "torchmetrics in float64, all rows", every, _torchmetrics_kid(torch.double)
    )
    yield _compare(name, "clean-fid, all rows", every, _clean_kid)
    yield _compare(
        name,
        "torchmetrics as it comes, all rows",
        every,
        _torchmetrics_kid(torch.float32),
        "it sums the kernels in float32, and the distance is a small difference of large means",
    )


def _fidelity_cmmd(estimator: str) -> Callable[..., float]:
    """torch-fidelity's Gaussian kernel and its estimators, at CMMD's bandwidth and scale."""

    def difference(n: int, m: int, d: int) -> float:
        from torch_fidelity.metric_kid import kernel_rbf, mmd2

        x, y = _all_rows(*sides(n, m, d))
        units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y)]
        kernels = [
            kernel_rbf(units[i], units[j], kid_kernel_rbf_sigma=10.0)
            for i, j in ((0, 0), (0, 1), (1, 1))
        ]
        return apart(cmmd(x, y).value, 1000 * float(mmd2(*kernels, mmd_est=estimator)))

    return difference


def clip_kernel(sizes: Sizes) -> Iterator[Comparison]:
    every = sizes.enough + sizes.few
    name = "cmmd"
    yield _compare(name, "torch-fidelity's kernel, unbiased", every, _fidelity_cmmd("unbiased"))
    yield _compare(
        name,
        "the same, biased as in the published code",
        every,
        _fidelity_cmmd("biased"),
        "the published code also counts the kernel of each row with itself",
    )


# --- neighbours -------------------------------------------------------------------------------


def _prdc(n: int, m: int, d: int, k: int) -> float:
    from prdc import compute_prdc

    x, y = sides(n, m, d)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        theirs = compute_prdc(x, y, k)
    ours = precision_recall_density_coverage(x, y, k=k)
    return max(apart(ours[name].value, float(value)) for name, value in theirs.items())


def _fidelity_prc(whole: bool) -> Callable[..., float]:
    """On features, or on features rounded to whole numbers, where distances tie."""

    def difference(n: int, m: int, d: int, k: int) -> float:
        from torch_fidelity.metric_prc import calculate_precision_recall_full

        x, y = sides(n, m, d)
        if whole:
            x, y = np.round(3 * x[:, :6]), np.round(3 * y[:, :6])
        generated, real = torch.from_numpy(y), torch.from_numpy(x)
        theirs = calculate_precision_recall_full(generated, real, neighborhood=k)
        ours = precision_recall_density_coverage(x, y, k=k)
        return max(
            apart(ours[name].value, value)
            for name, value in zip(("precision", "recall"), theirs, strict=True)
        )

    return difference


def neighbours(sizes: Sizes) -> Iterator[Comparison]:
    name = "precision_recall_density_coverage"
    yield _compare(name, "prdc", sizes.neighbours, _prdc)
    yield _compare(
        "precision, recall", "torch-fidelity", sizes.neighbours, _fidelity_prc(whole=False)
    )
    yield _compare(
        "precision, recall",
        "torch-fidelity, on whole numbers",
        sizes.neighbours,
        _fidelity_prc(whole=True),
        "it counts rows on the edge of a ball as inside; ours and prdc do not, "
        "which shows only where distances are equal",
    )


# --- Inception Score --------------------------------------------------------------------------


def _softmax(logits: Array) -> Array:
    odds: Array = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def _logits(n: int, classes: int) -> Array:
    return 2 * np.random.default_rng(1).normal(size=(n, classes))


def _fidelity_score(n: int, classes: int, splits: int) -> float:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    logits = _logits(n, classes)
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=False)
    return apart(inception_score(_softmax(logits), splits).value, theirs[KEY_METRIC_ISC_MEAN])


def _torchmetrics_score(same_order: bool) -> Callable[..., float]:
    def difference(n: int, classes: int, splits: int) -> float:
        from torchmetrics.image.inception import InceptionScore

        logits = _logits(n, classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            metric = InceptionScore(feature=Given(classes), splits=splits)
        metric.update(torch.from_numpy(logits))
        torch.manual_seed(3)
        theirs = float(metric.compute()[0])
        torch.manual_seed(3)
        order = torch.randperm(n).numpy() if same_order else np.arange(n)
        return apart(inception_score(_softmax(logits)[order], splits).value, theirs)

    return difference


def classes(sizes: Sizes) -> Iterator[Comparison]:
    name = "inception_score"
    yield _compare(name, "torch-fidelity, unshuffled", sizes.classes, _fidelity_score)
    yield _compare(
        name, "torchmetrics, in its random order", sizes.classes, _torchmetrics_score(True)
    )
    yield _compare(
        name,
        "torchmetrics as it comes",
        sizes.classes,
        _torchmetrics_score(False),
        "it shuffles the rows before it cuts the parts, at every call anew",
    )


# --- Inception-v3 -----------------------------------------------------------------------------


def network(sizes: Sizes) -> Iterator[Comparison]:
    """Random weights: the published ones cannot be had without a network, and do not matter."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from chexgenbench.registry import load_registry
    from chexgenbench.types import Context, Encoder
    from chexgenbench_plugins.encoders.inception_v3 import _network

    torch.manual_seed(0)
    plugin = load_registry().encoders["inception-v3"]
    words = ", ".join(f"{width} x {height}" for width, height in sizes.images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        torch.save(_network().state_dict(), path)
        reference = FeatureExtractorInceptionV3(
            "inception",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=str(path),
            verbose=False,
        ).eval()
        context = Context(home=Path(folder), cache=Path(folder))
        encoder = plugin.create(plugin.parse({"weights": str(path)}), context)
        assert isinstance(encoder, Encoder)
        largest = {"features": 0.0, "probabilities": 0.0}
        random = np.random.default_rng(0)
        for width, height in sizes.images:
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            with torch.inference_mode():
                pool, logits = reference(torch.from_numpy(pixels).permute(2, 0, 1)[None])
                ours = encoder.encode(encoder.preprocess(Image.fromarray(pixels))[None])
            theirs = {"features": pool.numpy(), "probabilities": logits.softmax(1).numpy()}
            for name, expected in theirs.items():
                gap = np.abs(ours[name] - expected).max() / np.abs(expected).max()
                largest[name] = max(largest[name], float(gap))
    for name, value in largest.items():
        yield Comparison(f"inception-v3 {name}", "torch-fidelity's network", words, value)


FAMILIES = (frechet, kernel, clip_kernel, neighbours, classes, network)


def comparisons(sizes: Sizes) -> Iterator[Comparison]:
    for family in FAMILIES:
        yield from family(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="the sizes of the tests")
    parser.add_argument("--write", action="store_true", help="into docs/parity.md")
    chosen = parser.parse_args()
    rows = []
    for one in comparisons(SMALL if chosen.small else FULL):
        rows.append([one.metric, one.against, one.sizes, f"{one.difference:.1e}", one.reason])
        print(*rows[-1], sep=" | ", flush=True)
        if one.equal and one.difference > BOUND:
            raise SystemExit(f"{one.metric} is {one.difference:.1e} from {one.against}")
    if chosen.write:
        header = ["ours", "against", "rows x features", "largest relative difference", "why"]
        write_between(ROOT / "docs" / "parity.md", "parity", table(header, rows))


if __name__ == "__main__":
    main()
