"""`worker`, `shard`, `merge`, `jobs`: generations as job directories, for any scheduler."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chexgenbench.cli import run

if TYPE_CHECKING:
    from chexgenbench.workflow.shards import Merged

Out = Annotated[Path, typer.Argument(help="The folder of the job directories.")]


def worker(
    folder: Annotated[Path, typer.Argument(metavar="JOBDIR", help="A job directory.")],
    device: Annotated[
        str | None,
        typer.Option(help="What to work on, such as cuda:1.", show_default="as planned"),
    ] = None,
) -> None:
    """Make the images of one job directory; killed and started again, it goes on.

    Ends with 0 when all are there, 1 when the model failed, 2 for a job that cannot be done here;
    the error stands in the job directory too. A disk that is full or broken: 64 and its number.
    """
    from chexgenbench.errors import UserError
    from chexgenbench.executors.launch import disk_fault, printable
    from chexgenbench.jobs.job import DISK_FAULT, JOB, read_error
    from chexgenbench.jobs.worker import run_noting

    if not (folder / JOB).is_file():
        raise UserError(
            f"{folder} is no job directory: it has no {JOB}.",
            hint="Job directories are written by chexgenbench shard.",
        )
    code = run_noting(folder, device=device)
    if code >= DISK_FAULT:
        typer.echo(f"Error: {folder}: {disk_fault(code).strerror}.", err=True)
    elif code and (error := read_error(folder, 0)) is not None:
        typer.echo(f"Error: {printable(error.message)}", err=True)
        if error.hint:
            typer.echo(printable(error.hint), err=True)
    if code:
        raise typer.Exit(code)


def shard(
    out: Out,
    shards: Annotated[
        int, typer.Option("--shards", min=1, help="Job directories of each generation, at most.")
    ],
    suite: run.SuiteName = "demo",
    model: run.Models = None,
    split: run.SplitName = None,
    encoder: run.Encoders = None,
    metric: run.Metrics = None,
    plugin: run.Plugins = None,
    set_: run.Settings = None,
    images_root: run.ImagesRoot = None,
    column: run.Columns = None,
    limit: run.Limit = None,
    seed: run.Seed = None,
    repeats: run.Repeats = None,
    batch_size: run.BatchSize = None,
    exact: run.Exact = False,
    device: run.Device = "auto",
    executor: run.Executors = None,
    memory: run.Memory = None,
    dtype: run.Dtype = "auto",
    allow_pickle: run.Pickle = False,
    allow_leakage: run.Leakage = False,
    home: run.HomeFolder = None,
) -> None:
    """Write the images that are missing as job directories, and a Slurm array script for them.

    Each is done by chexgenbench worker, on any machine that sees the weights and plugin files under
    the same paths; merge takes the images in. With the same options again, job directories that
    were removed are written anew. A device that is named need not be one of this machine.
    """
    options = run.options_of(locals() | {"shards": None})
    from chexgenbench.workflow.shards import SCRIPT
    from chexgenbench.workflow.shards import shard as write

    out = out.expanduser().absolute()
    written = write(options, out, shards, shlex.join(["chexgenbench", *sys.argv[1:]]))
    shown = options.home.shown
    for note in written.notes:
        print(f"Note: {note}.")
    if written.sharded is None:
        print("No image is missing: nothing was written.")
    else:
        parts = written.sharded.parts
        images = sum(part.n_images for part in parts)
        if written.renewed is None:
            print(f"{len(parts)} job directories for {images} images in {shown(out)}")
        else:
            print(f"{shown(out)} is of this plan; {len(written.renewed)} job directories renewed")
            for name in written.renewed:
                print(f"  {name}")
        print(f"One of them:  bash {shlex.quote(shown(out / SCRIPT))} 1")
        print(f"By Slurm:     cd {shlex.quote(shown(out))} && sbatch {SCRIPT}")
        print(f"How far:      chexgenbench jobs {shlex.quote(shown(out))}")
        print(f"Take them in: chexgenbench merge {shlex.quote(shown(out))}{options.home.option}")
    for name, error in written.failed.items():
        typer.echo(f"Failed: {name}: {error.message}", err=True)
    if written.failed:
        raise typer.Exit(1)


def merge(out: Out, home: run.HomeFolder = None, quiet: run.Quiet = False) -> None:
    """Check and take in what workers have made, while they work or later; then run scores it.

    Ends with 1 while images are missing, and names the job directories that lack them.
    """
    from chexgenbench.home import Home
    from chexgenbench.progress import Progress
    from chexgenbench.workflow.shards import merge as take

    project = Home.find(home)
    merged = take(project, out.expanduser().absolute(), Progress(quiet))
    for each in merged:
        _tell(each)
    lacking = [part.number for each in merged for part in each.parts if not part.complete]
    if lacking:
        numbers = ",".join(map(str, lacking))
        print(f"{len(lacking)} job directories lack images: sbatch --array={numbers} array.sh")
    if not all(each.whole for each in merged):
        if not lacking:
            print("Images that were here are gone: chexgenbench run makes them again.")
        raise typer.Exit(1)
    print("All images are there. Next: chexgenbench run, with the options that shard was given.")


def jobs(out: Out) -> None:
    """How far the job directories of a folder are, and which workers give no sign."""
    from chexgenbench.workflow.shards import look

    shown = look(out.expanduser().absolute())
    width = max((len(each.part.folder) for each in shown), default=0)
    for each in shown:
        count = f"{each.made}/{each.part.n_images}"
        print(f"{each.number:>4}  {each.part.folder:<{width}}  {count:>9}  {each.state}")


def _tell(merged: Merged) -> None:
    asked = merged.asked
    there = sum(part.complete for part in merged.parts)
    print(
        f"{asked.model}, {asked.images}: {merged.made} of {asked.n_images} images; "
        f"{there} of {len(merged.parts)} shards complete"
    )
    for part in merged.parts:
        if part.complete and part.fault is None:
            continue
        from chexgenbench.executors.border import Refused

        refused = "refused, " if isinstance(part.fault, Refused) else ""
        line = f"  {part.number} {part.part.folder}: {refused}"
        line += f"{part.made} of {part.part.n_images} images"
        print(f"{line}: {part.fault.message}" if part.fault is not None else line)
        if refused and not part.complete:
            print(
                "    Remove it, write it anew with the same chexgenbench shard, and run it again."
            )
