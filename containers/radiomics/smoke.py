"""Run in the environment: the encoder radiomics takes features of two images, in a process."""

from pathlib import Path

import numpy as np
import PIL.Image

import chexgenbench.jobs.worker
from chexgenbench import Context
from chexgenbench_plugins.encoders.radiomics import NAMES, Radiomics, RadiomicsParameters


def main() -> None:
    assert chexgenbench.jobs.worker.main
    import torch

    parameters, context = (
        RadiomicsParameters(size=64, workers=1),
        Context(home=Path(), cache=Path()),
    )
    assert Radiomics.weights(parameters, context), "no file of pyradiomics"
    encoder = Radiomics(parameters, context)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64), np.uint8)
    images = [encoder.preprocess(PIL.Image.fromarray(image)) for image in pixels]
    features = encoder.encode(torch.stack(images))["radiomics"]
    assert features.shape == (2, len(NAMES)), features.shape
    assert np.isfinite(features).all()
    assert (features[0] != features[1]).any()
    mean = NAMES.index("diagnostics_Image-original_Mean")
    assert abs(features[0, mean] - pixels[0].mean()) < 0.5, "the mean grey level is another"
    print(f"radiomics: {len(NAMES)} features of 2 images")


if __name__ == "__main__":  # the encoder's processes import this file again
    main()
