"""An exported dataset as one side of a split: a run's images train the next utility run.

The dataset's table becomes a CSV file in the published schema; images of a Parquet dataset are
written out when they are first needed, those of an image folder are read where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from chexgenbench import Location, Parameters, Split, SplitSource, SplitSpec, UserError, hookimpl
from chexgenbench_plugins.exported.folder import ExportedFolder
from chexgenbench_plugins.splits.demo import Demo


class ExportedParameters(Parameters):
    dataset: Annotated[str, Location()] = Field(
        description="The folder that `chexgenbench dataset export` made, with prompts; a relative "
        "one starts from the project folder (--home)."
    )
    side: Literal["train", "test"] = Field(
        "train", description="Which side of the split the dataset is."
    )
    other: Annotated[str | None, Location()] = Field(
        None,
        description="The CSV file of the other side, whose images start from --images-root; by "
        "default the demo's.",
    )
    shared_prompts: bool = Field(
        False,
        description="Accept images that were made for prompts of the other side, whose labels "
        "both sides then share.",
    )


class Exported(Split):
    parameters: ExportedParameters

    def source(self) -> SplitSource:
        home = self.context.home
        dataset = ExportedFolder.open(
            home / Path(self.parameters.dataset).expanduser(), self.context.cache
        )
        other = self._other(home)
        trains = self.parameters.side == "train"
        theirs = other.test if trains or other.train is None else other.train
        if not self.parameters.shared_prompts:
            dataset.refuse_shared(theirs)

        def materialise(csv: Path, ids: Sequence[str]) -> None:
            if csv == dataset.csv:
                dataset.write_images(ids)
            elif other.materialise is not None:
                other.materialise(csv, ids)

        if trains:
            return SplitSource(
                test=theirs,
                images_root=other.images_root,
                train=dataset.csv,
                train_images_root=dataset.images,
                own_columns=True,
                materialise=materialise,
            )
        return SplitSource(
            test=dataset.csv,
            images_root=dataset.images,
            train=theirs,
            train_images_root=other.images_root,
            own_columns=True,
            materialise=materialise,
        )

    def _other(self, home: Path) -> SplitSource:
        if self.parameters.other is None:
            return Demo(Parameters(), self.context).source()
        path = home / Path(self.parameters.other).expanduser()
        if not path.is_file():
            raise UserError(f"The CSV file of the other side is not there: {path}.")
        return SplitSource(test=path, train=path)  # whichever side is wanted


@hookimpl
def chexgenbench_splits() -> Iterator[SplitSpec]:
    yield SplitSpec(
        name="exported",
        summary="A dataset of yours as one side of a split: --set exported.dataset=FOLDER",
        load="chexgenbench_plugins.splits.exported:Exported",
        parameters=ExportedParameters,
        # Its other side may be anybody's data, so it is handled as patients' data.
        credentialed=True,
        licence="that of the data",
        references=("docs/dataset.md",),
    )
