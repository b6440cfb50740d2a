"""Baseline with a known answer: a fresh phantom drawn from the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from chexgenbench import Image, Model, ModelSpec, Parameters, Request, hookimpl


class OracleParameters(Parameters):
    size: int = Field(128, ge=32, le=1024, description="Width and height in pixels.")


class Oracle(Model):
    """Draws another patient with the findings that the prompt names: as good as a model can be on
    the phantom, since its images come from the same distribution as the real ones."""

    parameters: OracleParameters

    def generate(self, requests: Sequence[Request]) -> Sequence[Image]:
        from chexgenbench_plugins.phantom import oracle_image
        from chexgenbench_plugins.phantom.canvas import one_thread

        with one_thread():
            return [
                oracle_image(
                    request.prompt,
                    request.labels,
                    request.seed,
                    size=request.size or self.parameters.size,
                )
                for request in requests
            ]


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="oracle",
        summary="Baseline: fresh phantoms drawn from the prompt (the best a model can do)",
        load=Oracle,
        parameters=OracleParameters,
        image_size=128,
        batch_size=32,
        licence="Apache-2.0",
    )
