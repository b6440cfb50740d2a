"""`dataset export`: a run's images as a dataset."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chexgenbench.cli import complete
from chexgenbench.cli.output import AsJson, HomeFolder, Quiet, print_json
from chexgenbench.cli.run import Device, Dtype, Pickle, Plugins, Settings


class Layout(StrEnum):
    """How images and their table lie on the disk."""

    parquet = "parquet"
    imagefolder = "imagefolder"


app = typer.Typer(help="Datasets of generated images.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command("export")
def export(
    run: Annotated[
        str,
        typer.Argument(
            help="A run, the beginning of its id, or a model of the leaderboard.",
            autocompletion=complete.runs,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make: new, or an empty one.")],
    format: Annotated[
        Layout, typer.Option("--format", "-f", help="Parquet files, or a folder of images.")
    ] = Layout.parquet,
    where: Annotated[
        str | None,
        typer.Option(
            help="Which images: an SQL condition over the columns, such as "
            "'\"alignment@clip\" > 0.3'.",
            show_default="all",
        ),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            help="Images that the run made beyond its test prompts.", show_default="those it scored"
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="A judge of quality; NAME@ENCODER for one that reads features.",
            show_default="none",
        ),
    ] = None,
    keep_quality: Annotated[
        str, typer.Option("--keep-quality", help="What a judged image must be, by commas.")
    ] = "High Quality,Medium Quality",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Images at most.", show_default="all")
    ] = None,
    allow_near_copies: Annotated[
        bool,
        typer.Option(
            "--allow-near-copies",
            help="Keep images that a privacy metric takes for copies of training images.",
            show_default="off",
        ),
    ] = False,
    keep_flagged: Annotated[
        bool,
        typer.Option(
            "--keep-flagged",
            help="Keep black, constant, NaN and duplicate images.",
            show_default="off",
        ),
    ] = False,
    include_credentialed: Annotated[
        bool,
        typer.Option(
            "--include-credentialed",
            help="Prompts of a credentialed split, which are report text, go along.",
            show_default="off",
        ),
    ] = False,
    plugin: Plugins = None,
    set_: Settings = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    allow_pickle: Pickle = False,
    home: HomeFolder = None,
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's images with prompts, labels and scores, as `datasets.load_dataset` opens them.

    Images that a privacy metric takes for copies of training images stay behind. The folder appears
    whole or not at all; its README.md says where it comes from.
    """
    from chexgenbench.home import Home
    from chexgenbench.progress import Progress
    from chexgenbench.workflow.dataset import ExportOptions, export_dataset
    from chexgenbench.workflow.options import Options

    found = Home.find(home)
    options = Options(
        home=found,
        plugins=tuple(plugin or ()),
        settings=tuple(set_ or ()),
        device=device,
        dtype=dtype,
        allow_pickle=allow_pickle,
        include_credentialed=include_credentialed,
    )
    chosen = ExportOptions(
        format=format.value,
        where=where,
        pool=pool,
        judge=judge,
        qualities=tuple(name.strip() for name in keep_quality.split(",")),
        allow_near_copies=allow_near_copies,
        keep_flagged=keep_flagged,
        limit=limit,
    )
    place = out.expanduser()
    done = export_dataset(options, run, place.absolute(), chosen, Progress(quiet))
    if json:
        print_json(
            {
                "images": done.images,
                "folder": str(place.absolute()),
                "left_out": dict(done.left_out),
                "notes": list(done.remarks),
            }
        )
        return
    for why, count in done.left_out.items():
        print(f"left out: {count} {why}")
    for text in () if quiet else done.remarks:
        print(f"Note: {text}")
    print(f"{done.images} images, in {found.shown(place)}")
