"""The subsets that every metric is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from chexgenbench.splits.prompts import PromptTable
from chexgenbench.types import FINDINGS, OVERALL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def subset_masks(
    prompts: PromptTable, conditions: Mapping[str, str] | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Name to the rows of each subset, bool [n].

    ``overall``, the 14 findings in the order of the protocol, then the user's.

    Args:
        conditions: name to SQL condition over the prompts table, see `PromptTable.select`.

    Raises:
        UserError: a condition that cannot be used.
    """
    masks = {name: prompts.subset_mask(name) for name in (OVERALL, *FINDINGS)}
    for name, condition in (conditions or {}).items():
        masks[name] = prompts.select(condition)
    return masks
