"""A model whose packages clash with ours: it needs numpy 1, and the platform numpy 2.

It names its environment, `containers/example`. This file is imported in both places, here for its
descriptor and there for its work, so what clashes is imported where it works, in `__init__`.
"""

from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw

from chexgenbench import Context, Model, ModelSpec, Parameters, Request, hookimpl


class OldNumpy(Model):
    """Noise, with as many bright stripes as the major version of the numpy that drew it."""

    def __init__(self, parameters: Parameters, context: Context) -> None:
        super().__init__(parameters, context)
        import numpy as np

        self.major = int(np.__version__.partition(".")[0])
        assert self.major == 1, f"made for numpy 1, and this is {np.__version__}"
        # numpy 2 has neither: this is what makes such code old.
        self.random, self.dtype = np.random.RandomState, np.float_  # noqa: NPY201

    def generate(self, requests: Sequence[Request]) -> Iterator[Image.Image]:
        for request in requests:
            noise = self.random(request.seed % 2**32).normal(90, 30, (128, 128))
            values = noise.astype(self.dtype).clip(0, 200).astype("uint8")
            image = Image.fromarray(values)
            for stripe in range(self.major):
                corner = (8 + 16 * stripe, 8)
                ImageDraw.Draw(image).rectangle((corner, (corner[0] + 7, 119)), fill=255)
            yield image


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="old-numpy",
        summary="Example: a model in an environment of its own",
        load=OldNumpy,
        image_size=128,
        batch_size=32,
        environment="example",
        licence="Apache-2.0",
    )
