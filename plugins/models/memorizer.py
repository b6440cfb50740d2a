"""Baseline with a known answer: a model that only repeats its training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image as PillowImage

from chexgenbench import (
    FINDINGS,
    Context,
    Image,
    Model,
    ModelSpec,
    Parameters,
    Request,
    UserError,
    hookimpl,
)
from chexgenbench.images import read_image


class Memorizer(Model):
    """Answers a prompt of the training side with its own image, any other prompt with the image of
    a training row whose labels agree best (one of them, drawn by the request's seed)."""

    def __init__(self, parameters: Parameters, context: Context) -> None:
        super().__init__(parameters, context)
        if context.training is None or context.training.images_root is None:
            raise UserError(
                "The model 'memorizer' needs training images, and this split has none.",
                hint="Name a split with a training table and --images-root.",
            )
        self.training = context.training
        self.labels = np.nan_to_num(self.training.table[list(FINDINGS)].to_numpy(float), nan=0.0)
        self.row_of_prompt = {text: i for i, text in enumerate(self.training.table["prompt"])}

    def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
        rows = [self._row(request) for request in requests]
        self.training.materialise_rows(rows)
        for row, request in zip(rows, requests, strict=True):
            image = read_image(self.training.path(row))
            if request.size and image.size != (request.size, request.size):
                image = image.resize((request.size, request.size), PillowImage.Resampling.BICUBIC)
            yield image

    def _row(self, request: Request) -> int:
        if request.prompt in self.row_of_prompt:
            return self.row_of_prompt[request.prompt]
        wanted = np.asarray([request.labels.get(finding) or 0.0 for finding in FINDINGS])
        distance = np.abs(self.labels - wanted).sum(1)
        nearest = np.flatnonzero(distance == distance.min())
        return int(np.random.default_rng(request.seed).choice(nearest))


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="memorizer",
        summary="Baseline: repeats training images (a leak that privacy metrics must see)",
        load=Memorizer,
        batch_size=32,
        uses_training=True,
        licence="Apache-2.0",
    )
