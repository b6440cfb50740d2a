"""Any CSV file of prompts; ``--split FILE.csv`` is short for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from chexgenbench import Location, Parameters, Split, SplitSource, SplitSpec, hookimpl


class CsvParameters(Parameters):
    test: Annotated[str, Location()] = Field(description="The CSV file of prompts.")
    train: Annotated[str | None, Location()] = Field(
        None, description="The CSV file of the training side, if there is one."
    )


class Csv(Split):
    parameters: CsvParameters

    def source(self) -> SplitSource:
        train = self.parameters.train
        return SplitSource(
            test=self.context.home / Path(self.parameters.test).expanduser(),
            train=self.context.home / Path(train).expanduser() if train else None,
        )


@hookimpl
def chexgenbench_splits() -> Iterator[SplitSpec]:
    yield SplitSpec(
        name="csv",
        summary="A CSV file of yours: --split FILE.csv --images-root FOLDER --column role=NAME",
        load=Csv,
        parameters=CsvParameters,
        # Nothing says whose data it is, so it is handled as patients' data.
        credentialed=True,
        licence="that of the data",
    )
