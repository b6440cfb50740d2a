"""A folder of ready images as a model: one image for each prompt of the split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from chexgenbench import (
    Context,
    Image,
    Location,
    Model,
    ModelSpec,
    Parameters,
    Request,
    UserError,
    hookimpl,
)
from chexgenbench.images import read_image


class ImagesParameters(Parameters):
    folder: Annotated[str, Location()] = Field(
        "assets/synthetic_images", description="The folder of the images."
    )
    csv: Annotated[str | None, Location()] = Field(
        None,
        description="A table of prompt and img_savename, by default prompt_INFO.csv in the folder; "
        "without one the files are named SyntheticImg_<id>.png, as the published code does.",
    )


class Images(Model):
    """Answers each prompt with its image; a prompt without one stops the run.

    To score images for a part of the prompts use ``chexgenbench evaluate``.
    """

    parameters: ImagesParameters

    @classmethod
    def table(cls, parameters: ImagesParameters, context: Context) -> Path | None:
        """The table that names the images, if there is one."""
        if parameters.csv is not None:
            return context.home / Path(parameters.csv).expanduser()
        path = context.home / Path(parameters.folder).expanduser() / "prompt_INFO.csv"
        return path if path.is_file() else None

    @classmethod
    def files(cls, parameters: ImagesParameters, context: Context) -> dict[tuple[str, int], Path]:
        """Prompt and repeat to file; where there is no table, ``SyntheticImg_<id>`` and 0."""
        folder = context.home / Path(parameters.folder).expanduser()
        table = cls.table(parameters, context)
        if table is not None:
            from chexgenbench.splits.user_images import read_image_list

            named: dict[tuple[str, int], Path] = {}
            count: Counter[str] = Counter()
            for prompt, path in read_image_list(table, folder):
                named[prompt, count[prompt]] = path
                count[prompt] += 1
            return named
        if not folder.is_dir():
            raise UserError(f"The folder of images {folder} does not exist.")
        return {(path.stem, 0): path for path in sorted(folder.glob("SyntheticImg_*.png"))}

    @classmethod
    def weights(cls, parameters: ImagesParameters, context: Context) -> Mapping[str, Path]:
        files = cls.files(parameters, context)
        if not files:
            raise UserError(
                f"There is no image for the model 'images' in {parameters.folder}.",
                hint="Name a table: --set images.csv=prompt_INFO.csv",
            )
        # The table too: it decides which image answers which prompt.
        table = cls.table(parameters, context)
        # By the names that the images go by, links not followed: which file answers which prompt.
        folder = os.path.abspath(context.home / Path(parameters.folder).expanduser())  # noqa: PTH100
        named = {
            os.path.relpath(os.path.abspath(path), folder): path  # noqa: PTH100
            for path in sorted(set(files.values()))
        }
        return named if table is None else {"table": table, **named}

    @classmethod
    def check(
        cls, parameters: ImagesParameters, context: Context, requests: Sequence[Request]
    ) -> Sequence[str]:
        files = cls.files(parameters, context)
        by_prompt = cls.table(parameters, context) is not None
        lacking = [each for each in requests if cls._key(each, by_prompt) not in files]
        if lacking:
            names = ", ".join(each.prompt_id for each in lacking[:5])
            raise UserError(
                f"The model 'images' has no image for {len(lacking)} of {len(requests)} requests "
                f"({names}{', ...' if len(lacking) > 5 else ''}).",
                hint="Each repeat of a prompt needs an image of its own. Score what there is: "
                "chexgenbench evaluate --images-csv ...",
            )
        return ()

    @staticmethod
    def _key(request: Request, by_prompt: bool) -> tuple[str, int]:
        return (request.prompt, request.repeat) if by_prompt else (f"SyntheticImg_{request.id}", 0)

    def __init__(self, parameters: ImagesParameters, context: Context) -> None:
        super().__init__(parameters, context)
        self.named = self.files(parameters, context)

    def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
        by_prompt = self.table(self.parameters, self.context) is not None
        for request in requests:
            yield read_image(self.named[self._key(request, by_prompt)])


@hookimpl
def chexgenbench_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="images",
        summary="Ready images of yours, one for each prompt: images:FOLDER",
        load=Images,
        parameters=ImagesParameters,
        argument="folder",
        batch_size=32,
        licence="that of the images",
    )
