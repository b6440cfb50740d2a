"""Radiomics of the Frechet Radiomics Distance, by pyradiomics in a pool of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from chexgenbench import Context, Encoder, EncoderSpec, Location, Parameters, UserError, hookimpl

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

IMAGES = ("original", "wavelet-LH", "wavelet-HL", "wavelet-HH", "wavelet-LL")
"""Filters of a 2-D image. Laplacians of Gaussian are asked for by the published settings too, but
pyradiomics has a 3-D filter only, which needs 4 slices: one slice gives none (see docs/frd.md)."""

CLASSES = {
    "firstorder": "10Percentile 90Percentile Energy Entropy InterquartileRange Kurtosis Maximum "
    "MeanAbsoluteDeviation Mean Median Minimum Range RobustMeanAbsoluteDeviation RootMeanSquared "
    "Skewness TotalEnergy Uniformity Variance",
    "glcm": "Autocorrelation JointAverage ClusterProminence ClusterShade ClusterTendency Contrast "
    "Correlation DifferenceAverage DifferenceEntropy DifferenceVariance JointEnergy JointEntropy "
    "Imc1 Imc2 Idm Idmn Id Idn InverseVariance MaximumProbability SumEntropy SumSquares",
    "glrlm": "GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance "
    "HighGrayLevelRunEmphasis LongRunEmphasis LongRunHighGrayLevelEmphasis "
    "LongRunLowGrayLevelEmphasis LowGrayLevelRunEmphasis RunEntropy RunLengthNonUniformity "
    "RunLengthNonUniformityNormalized RunPercentage RunVariance ShortRunEmphasis "
    "ShortRunHighGrayLevelEmphasis ShortRunLowGrayLevelEmphasis",
    "glszm": "GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance "
    "HighGrayLevelZoneEmphasis LargeAreaEmphasis LargeAreaHighGrayLevelEmphasis "
    "LargeAreaLowGrayLevelEmphasis LowGrayLevelZoneEmphasis SizeZoneNonUniformity "
    "SizeZoneNonUniformityNormalized SmallAreaEmphasis SmallAreaHighGrayLevelEmphasis "
    "SmallAreaLowGrayLevelEmphasis ZoneEntropy ZonePercentage ZoneVariance",
    "ngtdm": "Busyness Coarseness Complexity Contrast Strength",
}
"""The features of each class that the published settings name."""

NAMES = (
    # Grey levels of the image and of what was normalised and resampled. They are no radiomics, but
    # they are numbers in pyradiomics' answer, and so part of every published distance.
    *(
        f"diagnostics_{part}_{name}"
        for part in ("Image-original", "Image-interpolated", "Mask-interpolated")
        for name in ("Mean", "Minimum", "Maximum")
    ),
    *(
        f"{image}_{kind}_{name}"
        for image in IMAGES
        for kind, names in CLASSES.items()
        for name in names.split()
    ),
)
"""The columns of ``features``, by pyradiomics' names."""

SETTINGS: Mapping[str, Any] = {
    "normalize": True,
    "normalizeScale": 100,
    "interpolator": "sitkBSpline",
    "resampledPixelSpacing": [2, 2, 0],  # 0: as it is
    "padDistance": 10,
    "preCrop": True,
    "force2D": True,
    "force2Ddimension": 0,
    "binWidth": 5,
    "voxelArrayShift": 300,
    "label": 1,
}


class RadiomicsParameters(Parameters):
    size: int = Field(512, ge=32, le=4096, description="Width and height of every image, pixels.")
    # Marked as a location because the features do not depend on it either.
    workers: Annotated[int | None, Location()] = Field(
        None, ge=1, le=512, description="Processes; by default one for each core."
    )


class Radiomics(Encoder):
    """First-order and texture features of an image and its wavelet bands.

    ``undefined`` is 1 where a feature has no value (all are undefined for an image of one grey
    level) and ``features`` holds 0 in its place.
    """

    parameters: RadiomicsParameters

    @classmethod
    def weights(cls, parameters: RadiomicsParameters, context: Context) -> Sequence[Path]:
        # In an environment of its own it works there; see `workflow.places`.
        own = context.cache.glob("environments/radiomics/lib/python*/site-packages/radiomics")
        package = find_spec("radiomics")
        here = [Path(package.origin).parent] if package and package.origin else []
        found = [*sorted(own), *here]
        if not found:
            raise UserError(
                "The encoder 'radiomics' needs pyradiomics, which is not installed here.",
                # The package of the module's own name is another one.
                hint="Install it: pip install pyradiomics-bhklab, or make its environment: "
                "chexgenbench env build radiomics",
            )
        # Its code decides the features, so an update of it computes them anew.
        folder = found[0]
        return sorted([*folder.glob("*.py"), *folder.glob("*.so"), *folder.glob("*.pyd")])

    def __init__(self, parameters: RadiomicsParameters, context: Context) -> None:
        super().__init__(parameters, context)
        self.pool: ProcessPoolExecutor | None = None

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        import numpy as np
        import torch
        from PIL import Image

        size = self.parameters.size
        grey = image.convert("L")
        width, height = (round(side * size / min(grey.size)) for side in grey.size)
        grey = grey.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        return torch.from_numpy(
            np.array(grey.crop((left, top, left + size, top + size)), np.float32)
        )

    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        import numpy as np

        images = list(batch.cpu().numpy())
        pool = self.pool or self._start(len(images))
        try:
            # The platform fills its last batch up with copies; each image is computed once.
            tasks = {image.tobytes(): image for image in images}
            rows = dict(zip(tasks, pool.map(extract, tasks.values()), strict=True))
        except BaseException:  # Ctrl-C as well: what waits must not be finished first
            pool.shutdown(wait=False, cancel_futures=True)
            self.pool = None
            raise
        with np.errstate(over="ignore"):
            values = np.array([rows[image.tobytes()] for image in images]).astype(np.float32)
        undefined = ~np.isfinite(values)
        values[undefined] = 0.0
        return {"radiomics": values, "undefined": undefined.astype(np.float32)}

    def _start(self, most: int) -> ProcessPoolExecutor:
        import multiprocessing
        import os

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        # Not forked: the parent has threads, and perhaps a GPU.
        context = multiprocessing.get_context("spawn")
        workers = min(self.parameters.workers or cores or 1, most)
        self.pool = ProcessPoolExecutor(workers, context, initializer=_prepare)
        return self.pool


def _prepare() -> None:
    """Makes a worker quiet, of one thread, and mortal."""
    import logging
    import multiprocessing
    import os
    import signal
    import threading

    import SimpleITK
    import threadpoolctl

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells it to stop
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    logging.getLogger("radiomics").setLevel(logging.CRITICAL)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threadpoolctl.threadpool_limits(1)
    _extractor()


def extract(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Grey levels [h, w] to the features called `NAMES`; NaN where one is undefined."""
    import numpy as np
    import SimpleITK

    if pixels.min() == pixels.max():
        return np.full(len(NAMES), np.nan)
    mask = np.ones((1, *pixels.shape), np.uint8)
    mask[0, 0, 0] = 0  # pyradiomics takes a mask of ones only for no mask
    found = _extractor().execute(
        SimpleITK.GetImageFromArray(pixels[None]), SimpleITK.GetImageFromArray(mask)
    )
    return np.array([float(found[name]) for name in NAMES])


@cache
def _extractor() -> Any:
    """The extractor of pyradiomics, two slow loops replaced; the values keep every bit."""
    import numpy as np
    from radiomics import featureextractor, getFeatureClasses, imageoperations

    theirs = getFeatureClasses()

    class Binned:
        """Bins an image once for all its classes, its range found by numpy, not min and max."""

        maskArray: Any
        settings: Any
        coefficients: Any

        def _applyBinning(self, matrix: Any) -> Any:
            shared = self.settings["shared"]
            if not shared:
                inside = matrix[self.maskArray]
                ends = np.array([inside.min(), inside.max()])
                levels = np.digitize(inside, imageoperations.getBinEdges(ends, **self.settings))
                shared["binned"] = np.zeros(matrix.shape, int)
                shared["binned"][self.maskArray] = levels
                shared["levels"] = np.unique(levels)
            levels = shared["levels"]
            self.coefficients.update(grayLevels=levels, Ng=int(levels[-1]))
            return shared["binned"].copy()

    class Cooccurrence(Binned, theirs["glcm"]):
        """Sums over the diagonals of the matrices in one pass, not in one a diagonal."""

        def _calculateCoefficients(self) -> None:
            shares, top = self.P_glcm, self.coefficients["Ng"]  # [1, levels, levels, angles]
            levels = self.coefficients["grayLevels"]
            i, j = levels[:, None].astype(float), levels[None, :].astype(float)

            def sums(places: Any, length: int) -> Any:
                flat = np.broadcast_to(places, shares.shape[1:3]).ravel()
                angles = np.moveaxis(shares[0], -1, 0).reshape(shares.shape[-1], -1)
                return np.stack([np.bincount(flat, row, length) for row in angles], axis=-1)[None]

            tiny = np.spacing(1)
            self.coefficients.update(
                eps=tiny,
                i=i,
                j=j,
                kValuesSum=np.arange(2.0, 2 * top + 1),
                kValuesDiff=np.arange(0.0, top),
                px=shares.sum(2, keepdims=True),
                py=shares.sum(1, keepdims=True),
                ux=(i[None, :, :, None] * shares).sum((1, 2), keepdims=True),
                uy=(j[None, :, :, None] * shares).sum((1, 2), keepdims=True),
                pxAddy=sums(levels[:, None] + levels - 2, 2 * top - 1),
                pxSuby=sums(np.abs(levels[:, None] - levels), top),
                HXY=-(shares * np.log2(shares + tiny)).sum((1, 2)),
            )

    kinds = {kind: type(kind, (Binned, theirs[kind]), {}) for kind in CLASSES}
    kinds["glcm"] = Cooccurrence

    class Extractor(featureextractor.RadiomicsFeatureExtractor):
        def computeFeatures(self, image: Any, mask: Any, filtered: str, **settings: Any) -> Any:
            found: dict[str, Any] = {}
            shared: dict[str, Any] = {}
            for kind, names in CLASSES.items():
                features = kinds[kind](image, mask, shared=shared, **settings)
                for name in names.split():
                    features.enableFeatureByName(name)
                values = features.execute().items()
                found.update({f"{filtered}_{kind}_{name}": value for name, value in values})
            return found

    extractor = Extractor(**SETTINGS)
    extractor.enableImageTypes(Original={}, Wavelet={})
    extractor.disableAllFeatures()  # that is, no shapes; computeFeatures chooses the others
    return extractor


@hookimpl
def chexgenbench_encoders() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        name="radiomics",
        summary="Radiomics of the image and its wavelet bands, those of the Frechet Radiomics "
        "Distance",
        load="chexgenbench_plugins.encoders.radiomics:Radiomics",
        parameters=RadiomicsParameters,
        outputs={"radiomics": len(NAMES), "undefined": len(NAMES)},
        environment="radiomics",
        preprocessing="grey, shorter side to `size` by antialiased bicubic, centre crop, 8 bits; "
        "pyradiomics: normalised to a deviation of 100, B-spline to every second pixel, bins of 5",
        licence="BSD-3-Clause",
        references=(
            "https://arxiv.org/abs/2412.01496",
            "https://doi.org/10.1158/0008-5472.CAN-17-0339",
        ),
    )
