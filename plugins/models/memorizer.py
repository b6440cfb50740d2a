"""Baseline with a known answer: a model that only repeats its training images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image as PillowImage
from pydantic import Field

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


class MemorizerParameters(Parameters):
    share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of prompts that it answers with training images; the others it answers "
        "as the oracle does.",
    )


class Memorizer(Model):
    """Answers a prompt of the training side with its own image, any other prompt with the image of
    a training row whose labels agree best (one of them, drawn by the request's seed)."""

    parameters: MemorizerParameters

    def __init__(self, parameters: MemorizerParameters, context: Context) -> None:
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
        rows = [self._row(request) if self._knows(request) else None for request in requests]
        self.training.materialise_rows([row for row in rows if row is not None])
        for row, request in zip(rows, requests, strict=True):
            if row is None:
                yield _fresh(request)
                continue
            image = read_image(self.training.path(row))
            if request.size and image.size != (request.size, request.size):
                image = image.resize((request.size, request.size), PillowImage.Resampling.BICUBIC)
            yield image

    def _knows(self, request: Request) -> bool:
        """All images of a prompt are copies, or none; a larger share keeps those of a smaller."""
        place = hashlib.sha256(request.prompt_id.encode()).digest()[:8]
        return int.from_bytes(place) / 2**64 < self.parameters.share

    def _row(self, request: Request) -> int:
        if request.prompt in self.row_of_prompt:
            return self.row_of_prompt[request.prompt]
        wanted = np.asarray([request.labels.get(finding) or 0.0 for finding in FINDINGS])
        distance = np.abs(self.labels - wanted).sum(1)
        nearest = np.flatnonzero(distance == distance.min())
        return int(np.random.default_rng(request.seed).choice(nearest))


def _fresh(request: Request) -> Image:
    from chexgenbench_plugins.phantom import oracle_image
    from chexgenbench_plugins.phantom.canvas import one_thread

    with one_thread():
        return oracle_image(request.prompt, request.labels, request.seed, size=request.size or 128)


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="memorizer",
        summary="Baseline: repeats training images (a leak that privacy metrics must see)",
        load=Memorizer,
        parameters=MemorizerParameters,
        batch_size=32,
        uses_training=True,
        licence="Apache-2.0",
    )
