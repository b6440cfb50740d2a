"""From images to feature vectors: what is there already, what is missing, and where it is kept."""

from chexgenbench.features.extract import EncoderPlan, Extraction, extract, plan_encoder
from chexgenbench.features.hashes import HashCache
from chexgenbench.features.store import FeatureStore

__all__ = [
    "EncoderPlan",
    "Extraction",
    "FeatureStore",
    "HashCache",
    "extract",
    "plan_encoder",
]
