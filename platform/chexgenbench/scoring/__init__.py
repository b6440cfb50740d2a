"""From features to scores: every metric over every subset, from the same features."""

from chexgenbench.scoring.score import MetricPlan, SampleScore, Score, Sides, score
from chexgenbench.scoring.subsets import OVERALL, subset_names

__all__ = ["OVERALL", "MetricPlan", "SampleScore", "Score", "Sides", "score", "subset_names"]
