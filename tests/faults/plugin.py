"""Two models, an encoder and models that fail, small enough that a start costs seconds.

A pixel of ``blend`` depends on every request of its call, as the last bit does in a network's
kernels: an image that a resumed run made in another call than an undisturbed one is another image.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chexgenbench import Encoder, EncoderSpec, Model, ModelSpec, Parameters, Request, hookimpl

if TYPE_CHECKING:
    import PIL.Image
    import torch

SIDE = 64


class Pace(Parameters):
    seconds: float = 0.02


class Blend(Model):
    def generate(self, requests: Sequence[Request]) -> Iterator[np.ndarray]:
        time.sleep(self.parameters.seconds * len(requests))
        call = sum(request.seed for request in requests) % 251
        for request in requests:
            pixels = np.random.default_rng(request.seed).integers(0, 256, (SIDE, SIDE))
            yield ((pixels + call) % 256).astype(np.uint8)


class Dots(Model):
    def generate(self, requests: Sequence[Request]) -> Iterator[np.ndarray]:
        time.sleep(self.parameters.seconds * len(requests))
        for request in requests:
            yield np.random.default_rng(request.seed).integers(0, 256, (SIDE, SIDE), np.uint8)


class Fault(Parameters):
    how: str = "raise"
    calls: int = 2
    once: str = ""


class Failing(Model):
    """Well for some calls, then not; where ``once`` names a file that is there, well for good."""

    def __init__(self, parameters: Fault, context: Any) -> None:
        super().__init__(parameters, context)
        self.left = parameters.calls
        self.kept: list[bytearray] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[np.ndarray]:
        if self.left == 0 and not (self.parameters.once and Path(self.parameters.once).exists()):
            self.fail()
        self.left -= 1
        for request in requests:
            yield np.random.default_rng(request.seed).integers(0, 256, (SIDE, SIDE), np.uint8)

    def fail(self) -> None:
        if self.parameters.once:
            Path(self.parameters.once).touch()
        how = self.parameters.how
        if how == "raise":
            raise RuntimeError("the sampler diverged")
        if how == "exit":
            sys.exit(0)
        if how == "vanish":
            os._exit(0)
        if how == "hang":
            time.sleep(3600)
        if how == "leak":
            while True:
                self.kept.append(bytearray(os.urandom(1 << 20) * 64))
        raise ValueError(how)


class Grid(Encoder):
    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        import torch

        small = image.convert("L").resize((4, 4), reducing_gap=None)
        return torch.from_numpy(np.asarray(small, np.float32) / 255)

    def encode(self, batch: torch.Tensor) -> Mapping[str, np.ndarray]:
        return {"features": batch.flatten(1).numpy()}

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [list(text.encode()) for text in texts]
        return np.stack([np.random.default_rng(seed).random(16, np.float32) for seed in seeds])


class FailingGrid(Grid):
    parameters: Fault

    def encode(self, batch: torch.Tensor) -> Mapping[str, np.ndarray]:
        if self.parameters.how == "exit":
            sys.exit(0)
        raise RuntimeError("the encoder diverged")


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    for name, load in (("blend", Blend), ("dots", Dots)):
        yield ModelSpec(
            name=name, summary="Noise", load=load, parameters=Pace, batch_size=4, image_size=SIDE
        )
    yield ModelSpec(
        name="failing",
        summary="Fails",
        load=Failing,
        parameters=Fault,
        batch_size=4,
        image_size=SIDE,
    )


@hookimpl
def chexgenbench_encoders() -> Iterator[EncoderSpec]:
    outputs, preprocessing = {"features": 16}, "grey, 4 x 4 bicubic"
    yield EncoderSpec(
        name="grid",
        summary="Means",
        load=Grid,
        outputs=outputs,
        preprocessing=preprocessing,
        text=True,
    )
    yield EncoderSpec(
        name="failing-grid", summary="Fails", load=FailingGrid, parameters=Fault,
        outputs=outputs, preprocessing=preprocessing,
    )  # fmt: skip
