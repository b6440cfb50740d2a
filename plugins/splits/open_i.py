"""The Indiana University chest X-ray collection of Open-I: public reports and radiographs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from chexgenbench import Location, Parameters, Split, SplitSource, SplitSpec, hookimpl


class OpenIParameters(Parameters):
    folder: Annotated[str, Location()] = Field(
        "open_i",
        description="Holds ecgen-radiology/*.xml (Open-I) or indiana_reports.csv (Kaggle); a "
        "relative one starts from the project folder (--home).",
    )
    images: Annotated[str | None, Location()] = Field(
        None, description="Folder of the images; by default images or that of Kaggle, in `folder`."
    )
    projections: Annotated[str | None, Location()] = Field(
        None,
        description="A table of views: Kaggle's indiana_projections.csv, or nlmcxr_tsne_pa.csv.gz "
        "of the package torchxrayvision; by default the one in `folder`.",
    )
    views: Literal["frontal", "first", "all"] = Field(
        "frontal",
        description="Images: those that a table calls frontal, the first of each report (some are "
        "lateral), or all.",
    )
    prompt: Literal["impression", "findings", "both"] = Field(
        "impression", description="The section of a report that is the prompt."
    )
    keep_marks: bool = Field(
        False, description="Leave the XXXX of de-identification in the prompts."
    )
    words: int = Field(2, ge=1, description="Prompts of fewer words are left out.")
    labels: Literal["rules", "mesh", "none"] = Field(
        "rules",
        description="Labels: read off the prompts by rules, those of Open-I's indexers for whole "
        "reports (no denials, no doubts), or none.",
    )
    test: float = Field(0.3, gt=0, le=1, description="Share of the reports on the test side.")
    seed: int = Field(0, ge=0, description="Of the draw of the test side.")


class OpenI(Split):
    parameters: OpenIParameters

    def source(self) -> SplitSource:
        from chexgenbench_plugins.open_i.reports import PROJECTIONS_TABLE, read_collection
        from chexgenbench_plugins.open_i.tables import Choice, find_images, write_sides

        chosen = self.parameters
        folder = self._place(chosen.folder)
        projections = self._place(chosen.projections) if chosen.projections else None
        if projections is None and (folder / PROJECTIONS_TABLE).is_file():
            projections = folder / PROJECTIONS_TABLE
        collection = read_collection(folder, projections)
        images = self._place(chosen.images) if chosen.images else _images(folder)
        choice = Choice(
            views=chosen.views,
            section=chosen.prompt,
            keep_marks=chosen.keep_marks,
            words=chosen.words,
            labels=chosen.labels,
            test=chosen.test,
            seed=chosen.seed,
        )
        sides = write_sides(collection, find_images(images), choice, self.context.cache)
        return SplitSource(
            test=sides.test,
            train=sides.train,
            images_root=images,
            own_columns=True,
            notes=sides.notes,
        )

    def _place(self, path: str) -> Path:
        return self.context.home / Path(path).expanduser()


def _images(folder: Path) -> Path:
    usual = [folder / "images" / "images_normalized", folder / "images", folder / "NLMCXR_png"]
    return next((path for path in usual if path.is_dir()), folder)


@hookimpl
def chexgenbench_splits() -> Iterator[SplitSpec]:
    yield SplitSpec(
        name="open-i",
        summary="Indiana University chest X-rays of Open-I (public; you bring the files)",
        load="chexgenbench_plugins.splits.open_i:OpenI",
        parameters=OpenIParameters,
        licence="CC BY-NC-ND 4.0",
        references=(
            "docs/open_i.md",
            "https://openi.nlm.nih.gov/faq#collection",
            "https://doi.org/10.1093/jamia/ocv080",
        ),
    )
