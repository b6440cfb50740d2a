"""A judge without a network: how usual an image is beside the real ones, and how well it answers.

Two shares are taken under one encoder. *Realism*: the distance of the image to its k-th nearest
real image, and the share of real images that lie as far or farther from the others. *Alignment*:
the cosine of image and prompt, and the share of real images that fit their own prompt as badly or
worse. Both are conformal p values (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World,
2005): of new real images at most a share of `a` has one of `a` or below, whatever the encoder. So
the thresholds below say what they cost in real images, and none was chosen by looking at a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from chexgenbench import (
    Judge,
    JudgeParameters,
    JudgeRequest,
    JudgeSpec,
    Sample,
    UserError,
    hookimpl,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEWEST = 20
"""With fewer real images no share can be below 0.05."""


class ScoresParameters(JudgeParameters):
    usual: float = Field(0.25, gt=0, lt=1, description="High Quality: both shares above this.")
    unusual: float = Field(
        0.05, gt=0, lt=1, description="Low Quality: a share of this or below; Medium between."
    )
    unrelated: float = Field(
        0.01, gt=0, lt=1, description="Not Relevant: a share of alignment of this or below."
    )
    k: int = Field(5, ge=1, description="Which nearest real image is looked at.")


class Scores(Judge):
    parameters: ScoresParameters

    def learn(self, real: Sample) -> None:
        import numpy as np

        if len(real) < max(FEWEST, self.parameters.k + 2):
            raise UserError(
                f"The judge 'scores' needs {FEWEST} real images or more to say what is usual, and "
                f"this run has {len(real)}.",
                hint="Export a run over more prompts, or use another judge.",
            )
        self._real = real.features.astype(np.float64)
        # Images of one patient are near each other and say nothing of how far others lie.
        self._far = np.sort(self._distances(self._real, real.units, real.units))
        self._cosine = None
        if real.text is not None:
            self._cosine = np.sort(_cosine(real.features, real.text))

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[str]:
        import numpy as np

        features = np.stack([np.asarray(request.features, np.float64) for request in requests])
        beyond = len(self._far) - np.searchsorted(self._far, self._distances(features), "left")
        realism = (1 + beyond) / (1 + len(self._far))
        alignment = np.ones(len(requests))
        if self._cosine is not None:
            text = np.stack([np.asarray(request.text, np.float64) for request in requests])
            below = np.searchsorted(self._cosine, _cosine(features, text), "right")
            alignment = (1 + below) / (1 + len(self._cosine))
        for real, fitting in zip(realism.tolist(), alignment.tolist(), strict=True):
            yield self._label(real, fitting)

    def _label(self, realism: float, alignment: float) -> str:
        levels = self.parameters
        if alignment <= levels.unrelated:
            return "Not Relevant"
        if min(realism, alignment) <= levels.unusual:
            return "Low Quality"
        return "High Quality" if min(realism, alignment) > levels.usual else "Medium Quality"

    def _distances(
        self,
        rows: NDArray[np.float64],
        units: NDArray[np.int64] | None = None,
        others: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """Of each row to its k-th nearest real image of another unit, in blocks."""
        import numpy as np

        squares = (self._real**2).sum(axis=1)
        found = []
        for start in range(0, len(rows), 256):
            block = rows[start : start + 256]
            all_squares = (block**2).sum(axis=1)[:, None] + squares - 2 * block @ self._real.T
            if units is not None and others is not None:
                all_squares[units[start : start + 256, None] == others] = np.inf
            k = self.parameters.k - 1
            found.append(np.partition(all_squares, k, axis=1)[:, k])
        return np.sqrt(np.maximum(np.concatenate(found), 0))


def _cosine(images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float64]:
    from chexgenbench.statistics import cosine_similarity

    return cosine_similarity(images, texts)


@hookimpl
def chexgenbench_judges() -> Iterator[JudgeSpec]:
    yield JudgeSpec(
        name="scores",
        summary="Realism and alignment beside the real images' own; no network of its own",
        load="chexgenbench_plugins.judges.scores:Scores",
        parameters=ScoresParameters,
        features=True,
        licence="Apache-2.0",
        references=("docs/dataset.md",),
    )
