"""A procedural chest phantom: radiograph-like images with matching report text, drawn from seeds.

Everything here is numpy and the standard library; `clip` alone needs torch, inside its functions.
"""

from .anatomy import Anatomy, draw_anatomy
from .findings import FINDINGS, Finding, Labels, Study, labels_of
from .render import render
from .report import Parsed, compose, parse, vocabulary
from .split import oracle_image, render_images, render_row

__all__ = [
    "FINDINGS",
    "Anatomy",
    "Finding",
    "Labels",
    "Parsed",
    "Study",
    "compose",
    "draw_anatomy",
    "labels_of",
    "oracle_image",
    "parse",
    "render",
    "render_images",
    "render_row",
    "vocabulary",
]
