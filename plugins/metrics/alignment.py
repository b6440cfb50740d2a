"""Image-text alignment: the cosine between an image and its own prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from chexgenbench import MetricSpec, Sample, SampleMetric, ScoreSpec, hookimpl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Alignment(SampleMetric):
    def values(self, fake: Sample) -> Mapping[str, NDArray[np.float64]]:
        from chexgenbench.statistics import cosine_similarity

        assert fake.text is not None  # the descriptor asks for it
        return {"alignment": cosine_similarity(fake.features, fake.text)}


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="alignment",
        summary="Cosine between the embeddings of an image and its prompt",
        load=Alignment,
        metric="sample",
        scores=(
            ScoreSpec(
                name="alignment",
                higher_is_better=True,
                lowest=-1.0,
                highest=1.0,
                summary="mean over images of the cosine with their own prompt",
                formula=r"\frac{1}{m} \sum_j \frac{y_j^\top t_j}"
                r"{\lVert y_j \rVert \, \lVert t_j \rVert}",
            ),
        ),
        text=True,
        pitfalls=(
            "Each encoder has a scale of its own: compare models under one encoder, and with what "
            "real images get.",
            "An encoder reads the beginning of a long prompt only (77 tokens for clip).",
            "An image can follow its prompt and look like no radiograph, or be a copy.",
        ),
        references=("https://arxiv.org/abs/2104.08718",),
        licence="Apache-2.0",
    )
