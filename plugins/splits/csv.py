"""Any CSV file of prompts; ``--split FILE.csv`` is short for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from chexgenbench import Location, Parameters, Split, SplitSource, SplitSpec, hookimpl


class CsvParameters(Parameters):
    test: Annotated[str, Location()] = Field(description="The CSV file of prompts.")
    train: Annotated[str | None, Location()] = Field(
        None, description="The CSV file of the training side, if there is one."
    )
    labels: Literal["file", "rules"] = Field(
        "file",
        description="The file's labels (a column of dictionaries, or a column a finding), or those "
        "that rules read off the prompts.",
    )
    credentialed: bool = Field(
        True,
        description="Whether prompts and images are patients' data that must not reach logs, pages "
        "and exports; say false of public data alone.",
    )


class Csv(Split):
    parameters: CsvParameters

    def source(self) -> SplitSource:
        labeller = None
        if self.parameters.labels == "rules":
            from chexgenbench_plugins.labelling.rules import RuleLabeller

            labeller = RuleLabeller().label
        train = self.parameters.train
        return SplitSource(
            test=self.context.home / Path(self.parameters.test).expanduser(),
            train=self.context.home / Path(train).expanduser() if train else None,
            labeller=labeller,
            credentialed=self.parameters.credentialed,
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
        references=("docs/open_i.md",),
    )
