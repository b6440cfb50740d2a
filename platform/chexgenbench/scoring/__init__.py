"""From features to scores: every metric over every subset, from the same features."""

from chexgenbench.scoring.floor import Floors
from chexgenbench.scoring.score import (
    MetricPlan,
    SampleScore,
    Score,
    Sides,
    interval_warning,
    score,
)
from chexgenbench.scoring.subsets import subset_masks

__all__ = [
    "Floors",
    "MetricPlan",
    "SampleScore",
    "Score",
    "Sides",
    "interval_warning",
    "score",
    "subset_masks",
]
