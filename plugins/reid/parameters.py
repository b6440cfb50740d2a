"""Parameters of the metrics that compare an image with its prompt's own real one."""

from __future__ import annotations

from pydantic import Field

from chexgenbench import Parameters


class OwnImageParameters(Parameters):
    prompts: int = Field(2000, ge=1, description="Prompts a side; 2,000 as published.")
    repeats: int = Field(10, ge=1, description="Images a prompt, each from its own seed.")
    without_patients: bool = Field(
        False, description="Take a row without a patient for a patient of its own."
    )
