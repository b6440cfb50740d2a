"""What each training regime is made of: rows for training, rows for validation, patients apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from chexgenbench import ImageSet, NotApplicable

from .data import seed_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Regime = Literal["real", "synthetic", "mixed", "augmented", "pretrained"]

REAL, SYNTHETIC = 0, 1
"""The sources that a `Regimes.Part` counts in."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The images of one training.

    Attributes:
        train: int64 [n, 2], source (`REAL`, `SYNTHETIC`) and position in its set.
        validation: the same, of patients none of whose images is in `train`; real ones where the
            regime has any, so that thresholds are chosen on what the test looks like.
        after: the regime whose weights it starts from; empty: none.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    after: str = ""

    def count(self, source: int) -> int:
        """How many images of that source it takes."""
        return int((self.train[:, 0] == source).sum() + (self.validation[:, 0] == source).sum())


def variants(regimes: Iterable[str], ratios: Iterable[float]) -> list[str]:
    """The names under which results stand: the regimes, then ``ratio-0.5`` and so on.

    >>> variants(["real", "augmented"], [0.5, 2.0])
    ['real', 'augmented', 'ratio-0.5', 'ratio-2']
    """
    return [*dict.fromkeys(regimes), *(f"ratio-{ratio:g}" for ratio in dict.fromkeys(ratios))]


def repeats_of(ratios: Sequence[float]) -> int:
    """Images of a prompt that the ratios need: 1 up to a ratio of 1, 2 up to 2, and so on."""
    import math

    return max([1, *(math.ceil(ratio) for ratio in ratios)])


def held_out(images: ImageSet, share: float, seed: int) -> NDArray[np.str_]:
    """The patients of all rows of the set that are validated on: that share of them by a hash of
    seed and name, one at least and never all.

    Raises:
        NotApplicable: there is one patient only.
    """
    import numpy as np

    # Also of rows without a readable image, so that the choice is the same for every model.
    every = replace(images, rows=np.arange(len(images.prompts)))
    names = np.unique(every.patients)
    if names.size < 2:
        raise NotApplicable("training and validation need two patients at least")
    ranks = [seed_of("validation", seed, str(name)) for name in names]
    count = min(max(round(share * names.size), 1), names.size - 1)
    return np.sort(names[np.argsort(ranks)[:count]])


def compose(
    variant: str, real: ImageSet, synthetic: ImageSet, validation: NDArray[np.str_], seed: int
) -> Part:
    """The images of a regime.

    Args:
        variant: one of `variants`. ``real``: all real images. ``synthetic``: the first image of
            each prompt. ``mixed``: half of the prompts, chosen by a hash of seed and row, give
            their synthetic image and the others their real one, so the total is that of ``real``.
            ``augmented``: real and synthetic. ``pretrained``: real, from the weights of
            ``synthetic``. ``ratio-R``: all real images and R synthetic ones for each of them,
            chosen by hash; the ones of a smaller ratio are among those of a larger one.
        real, synthetic: sets of the training side, each in the order of its ids.
        validation: patients to validate on; a synthetic image belongs to its prompt's patient.
        seed: of the run.
    """
    import numpy as np

    first = np.flatnonzero(synthetic.repeats == 0)
    every = np.arange(len(real))
    none = np.zeros(0, np.int64)
    if variant in ("real", "pretrained"):
        chosen, made = every, none
    elif variant == "synthetic":
        chosen, made = none, first
    elif variant == "mixed":
        chosen, made = _halves(real, synthetic, first, seed)
    elif variant == "augmented":
        chosen, made = every, first
    else:
        count = round(float(variant.removeprefix("ratio-")) * len(real))
        ranks = [seed_of("ratio", seed, name) for name in synthetic.ids]
        order = np.lexsort((np.array(ranks), synthetic.repeats))
        chosen, made = every, np.sort(order[:count])
    rows = np.concatenate([_pairs(REAL, chosen), _pairs(SYNTHETIC, made)])
    held = np.concatenate(
        [
            np.isin(images.patients[index], validation)
            for images, index in ((real, chosen), (synthetic, made))
        ]
    )
    validated = rows[held]
    if (validated[:, 0] == REAL).any():
        validated = validated[validated[:, 0] == REAL]
    if held.all() or not held.any():
        raise NotApplicable(
            f"too few images to train {variant} on some patients and validate on others: "
            f"{(~held).sum()} and {held.sum()}"
        )
    return Part(
        train=rows[~held],
        validation=validated,
        after="synthetic" if variant == "pretrained" else "",
    )


def _halves(
    real: ImageSet, synthetic: ImageSet, first: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Real images of one half of the prompts and synthetic ones of the other."""
    import numpy as np

    def prompts(images: ImageSet) -> NDArray[np.str_]:
        names = images.prompts.table["prompt_id"].to_numpy(dtype=np.str_)
        found: NDArray[np.str_] = names[images.rows]
        return found

    mine, theirs = prompts(real), prompts(synthetic)[first]
    names = np.unique(np.concatenate([mine, theirs]))
    ranks = np.array([seed_of("mixed", seed, str(name)) for name in names])
    swapped = names[np.argsort(ranks)[: names.size // 2]]
    return np.flatnonzero(~np.isin(mine, swapped)), first[np.isin(theirs, swapped)]


def _pairs(source: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
    import numpy as np

    return np.stack([np.full(index.size, source), index], axis=1).astype(np.int64)


def gathered(
    sources: Sequence[NDArray[np.float32]], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The rows [n, k] of several sources at (source, position) `rows` [n, 2]."""
    import numpy as np

    found = np.empty((len(rows), sources[0].shape[1]), np.float32)
    for source, values in enumerate(sources):
        mine = rows[:, 0] == source
        found[mine] = values[rows[mine, 1]]
    return found
