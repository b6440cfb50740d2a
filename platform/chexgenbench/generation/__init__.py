"""From a prompts table to a list of requests, and from there to the images of one model."""

from chexgenbench.generation.generation import Generation, plan_generation
from chexgenbench.generation.requests import make_requests, seed_of

__all__ = ["Generation", "make_requests", "plan_generation", "seed_of"]
