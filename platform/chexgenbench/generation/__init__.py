"""From a prompts table to a list of requests, and from there to the images of one model."""

from chexgenbench.generation.batch_size import choose_batch_size
from chexgenbench.generation.generation import (
    Generation,
    Summary,
    conclude,
    is_concluded,
    plan_generation,
)
from chexgenbench.generation.requests import make_requests, seed_of

__all__ = [
    "Generation",
    "Summary",
    "choose_batch_size",
    "conclude",
    "is_concluded",
    "make_requests",
    "plan_generation",
    "seed_of",
]
