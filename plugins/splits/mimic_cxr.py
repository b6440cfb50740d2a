"""MIMIC-CXR with the LLaVA-Rad annotations, the data of the published benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from chexgenbench import (
    Location,
    Parameters,
    Split,
    SplitSource,
    SplitSpec,
    UserError,
    hookimpl,
)

TEST, TRAIN = "LLAVARAD_ANNOTATIONS_TEST.csv", "LLAVARAD_ANNOTATIONS_TRAIN.csv"


class MimicParameters(Parameters):
    folder: Annotated[str, Location()] = Field(
        "MIMIC_Splits", description="Where the two annotation files lie."
    )


class MimicCxr(Split):
    parameters: MimicParameters

    def source(self) -> SplitSource:
        folder = self.context.home / Path(self.parameters.folder).expanduser()
        if not (folder / TEST).is_file():
            raise UserError(
                f"The annotations of MIMIC-CXR are not there: {folder / TEST}.",
                hint="They are credentialed; MIMIC_Splits/README.md says how to get them. "
                "Name the images with --images-root .../mimic-cxr-jpg/2.0.0",
            )
        train = folder / TRAIN
        return SplitSource(test=folder / TEST, train=train if train.is_file() else None)


@hookimpl
def chexgenbench_splits() -> Iterator[SplitSpec]:
    yield SplitSpec(
        name="mimic-cxr",
        summary="MIMIC-CXR with LLaVA-Rad annotations (credentialed; you bring the files)",
        load=MimicCxr,
        parameters=MimicParameters,
        credentialed=True,
        licence="PhysioNet Credentialed Health Data License 1.5.0",
        references=(
            "https://physionet.org/content/mimic-cxr-jpg/2.0.0/",
            "https://physionet.org/content/llava-rad-mimic-cxr-annotation/1.0.0/",
        ),
    )
