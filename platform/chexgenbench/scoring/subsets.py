"""The subsets that every metric is taken over."""

from __future__ import annotations

from chexgenbench.types import FINDINGS

OVERALL = "overall"


def subset_names() -> tuple[str, ...]:
    """``overall``, then the 14 findings in the order of the protocol."""
    return (OVERALL, *FINDINGS)
