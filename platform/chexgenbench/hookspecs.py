"""The hooks of CheXGenBench: the plugin author's manual.

A plugin is a module with any of the five functions below, marked with ``hookimpl``. It is found
when it lies in a plugins folder, when ``--plugin FILE`` names it, or when an installed package
declares it::

    [project.entry-points.chexgenbench]
    my-plugin = "my_package.my_module"

Each hook yields descriptors and must be cheap: no torch, no weights. Heavy modules are imported by
the class that ``load`` names, and only when the user asks for that plugin.
``chexgenbench plugin new KIND NAME`` writes a whole package, ``chexgenbench plugin check`` says
whether it keeps all this.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from chexgenbench.types import EncoderSpec, JudgeSpec, MetricSpec, ModelSpec, SplitSpec

GROUP = "chexgenbench"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def chexgenbench_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """Models: what turns a prompt into a radiograph.

    A whole plugin; save it as ``stripes.py`` and type
    ``chexgenbench run --plugin stripes.py --model stripes``::

        import numpy as np
        from pydantic import Field

        from chexgenbench import Model, ModelSpec, Parameters, hookimpl

        class StripeParameters(Parameters):
            width: int = Field(8, ge=1, description="Width of a stripe in pixels.")

        class Stripes(Model):
            "Stripes under noise; the prompt is ignored."

            def generate(self, requests):
                for request in requests:
                    random = np.random.default_rng(request.seed)
                    size = request.size or 128
                    row = (np.arange(size) // self.parameters.width % 2) * 200
                    yield (row + random.integers(0, 50, (size, size))).astype(np.uint8)

        @hookimpl
        def chexgenbench_models():
            yield ModelSpec(
                name="stripes", summary="Vertical stripes", load=Stripes,
                parameters=StripeParameters, image_size=128, licence="Apache-2.0",
            )
    """


@hookspec
def chexgenbench_encoders() -> Iterable[EncoderSpec]:  # type: ignore[empty-body]
    """Encoders: what turns an image, and perhaps a text, into a vector.

    A whole plugin::

        import numpy as np

        from chexgenbench import Encoder, EncoderSpec, hookimpl

        class Thumbnail(Encoder):
            "The grey levels of an 8 x 8 thumbnail."

            def preprocess(self, image):
                import torch

                small = image.convert("L").resize((8, 8), reducing_gap=None)
                return torch.from_numpy(np.asarray(small, np.float32) / 255)

            def encode(self, batch):
                return {"features": batch.flatten(1).numpy()}

        @hookimpl
        def chexgenbench_encoders():
            yield EncoderSpec(
                name="thumbnail", summary="64 grey levels", load=Thumbnail,
                outputs={"features": 64}, preprocessing="grey, 8 x 8 bicubic with antialiasing",
                licence="Apache-2.0",
            )
    """


@hookspec
def chexgenbench_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """Metrics: what turns features into scores.

    A whole plugin with a set metric; a sample metric overrides ``values`` of `SampleMetric`
    instead and leaves averaging and intervals to the platform::

        import numpy as np

        from chexgenbench import MetricSpec, NotApplicable, ScoreSpec, SetMetric, hookimpl
        from chexgenbench.statistics import Estimate

        class MeanGap(SetMetric):
            "Euclidean distance of the mean features of the two sides."

            def score(self, real, fake):
                if min(len(real), len(fake)) < 2:
                    raise NotApplicable("needs at least 2 images a side")
                # In float64: sums of many float32 values would depend on the order of the rows.
                means = [side.features.mean(0, dtype=np.float64) for side in (real, fake)]
                gap = np.linalg.norm(means[0] - means[1])
                return {"mean_gap": Estimate(float(gap), reason="no interval was derived")}

        @hookimpl
        def chexgenbench_metrics():
            yield MetricSpec(
                name="mean-gap", summary="Distance of the feature means", load=MeanGap,
                metric="set", licence="Apache-2.0",
                scores=(ScoreSpec(name="mean_gap", higher_is_better=False, lowest=0.0),),
            )

    A task metric trains or runs something. It says which sets of images it needs (`ImageNeed`:
    real or made by the model, of the test or the training side, how many prompts and seeds); the
    platform makes, decodes and encodes them once for all metrics. A whole plugin::

        import numpy as np

        from chexgenbench import (
            ImageNeed, ImageValues, MetricSpec, ScoreSpec, TaskMetric, TaskResult, TaskScore,
            hookimpl,
        )
        from chexgenbench.statistics import mean_estimate

        class Novelty(TaskMetric):
            "Mean distance of an image to the nearest one of 500 training images."

            @classmethod
            def needs(cls, parameters):
                return {
                    "made": ImageNeed(side="test", source="model"),
                    "known": ImageNeed(side="training", source="real", prompts=500),
                }

            def run(self, task):
                made, known = task.sets["made"], task.sets["known"].features
                apart = np.array([np.linalg.norm(known - x, axis=1).min() for x in made.features])
                mean = mean_estimate(apart, groups=made.patients)
                return TaskResult(
                    scores=[TaskScore(name="novelty", estimate=mean, n_fake=len(made))],
                    values=[ImageValues(name="novelty", images="made", values=apart)],
                )

        @hookimpl
        def chexgenbench_metrics():
            yield MetricSpec(
                name="novelty", summary="Distance to the nearest training image", load=Novelty,
                metric="task", licence="Apache-2.0",
                scores=(ScoreSpec(name="novelty", higher_is_better=True, lowest=0.0),),
            )
    """


@hookspec
def chexgenbench_splits() -> Iterable[SplitSpec]:  # type: ignore[empty-body]
    """Splits: where the prompts, labels and real images come from.

    A whole plugin::

        from chexgenbench import Split, SplitSource, SplitSpec, UserError, hookimpl

        class Clinic(Split):
            "Radiographs of our clinic, in the folder clinic/ of the project."

            def source(self):
                folder = self.context.home / "clinic"
                if not (folder / "test.csv").is_file():
                    raise UserError(f"{folder} holds no test.csv.", hint="Ask the archive for it.")
                return SplitSource(
                    test=folder / "test.csv", images_root=folder / "images",
                    columns={"prompt": "caption", "patient": "subject"},
                )

        @hookimpl
        def chexgenbench_splits():
            yield SplitSpec(
                name="clinic", summary="Our clinic", load=Clinic, credentialed=True,
                licence="an agreement with the clinic",
            )
    """


@hookspec
def chexgenbench_judges() -> Iterable[JudgeSpec]:  # type: ignore[empty-body]
    """Judges: what says of what quality the images of an export are.

    A whole plugin; save it as ``contrast.py`` and type ``chexgenbench dataset export RUN OUT
    --plugin contrast.py --judge contrast``::

        import numpy as np

        from chexgenbench import Judge, JudgeSpec, hookimpl
        from chexgenbench.images import read_image

        class Contrast(Judge):
            "High quality where the standard deviation of the grey levels is above 40."

            def judge(self, requests):
                for request in requests:
                    grey = np.asarray(read_image(request.path).convert("L"), np.float64)
                    yield "High Quality" if grey.std() > 40 else "Low Quality"

        @hookimpl
        def chexgenbench_judges():
            yield JudgeSpec(
                name="contrast", summary="Grey levels far apart", load=Contrast,
                licence="Apache-2.0",
            )
    """
