"""`worker`, `shard`, `merge`, `jobs`: generations as job directories, for any scheduler."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chexgenbench.cli import run
from chexgenbench.cli.output import AsJson, HomeFolder, Quiet, print_json, print_listing, remark

if TYPE_CHECKING:
    from chexgenbench.home import Home
    from chexgenbench.workflow.shards import Merged, Written

Out = Annotated[Path, typer.Argument(help="The folder of the job directories.")]


def worker(
    folder: Annotated[Path, typer.Argument(metavar="JOBDIR", help="A job directory.")],
    device: Annotated[
        str | None,
        typer.Option(help="What to work on, such as cuda:1.", show_default="as planned"),
    ] = None,
    json: AsJson = False,
) -> None:
    """Make the images of one job directory; killed and started again, it goes on.

    Ends with 0 when all are there, 1 when the model failed, 2 for a job that cannot be done here;
    the error stands in the job directory too. A disk that is full or broken: 64 and its number.
    """
    from chexgenbench.errors import ChexGenBenchError, UserError
    from chexgenbench.executors.launch import disk_fault
    from chexgenbench.jobs.job import DISK_FAULT, JOB, read_error
    from chexgenbench.jobs.worker import run_noting

    if not (folder / JOB).is_file():
        raise UserError(
            f"{folder} is no job directory: it has no {JOB}.",
            hint="Job directories are written by chexgenbench shard.",
        )
    code = run_noting(folder, device=device)
    error: ChexGenBenchError | None = None
    if code >= DISK_FAULT:
        error = ChexGenBenchError(f"{folder}: {disk_fault(code).strerror}.")
    elif code:
        error = read_error(folder, 0)
    if error is not None:
        remark(f"Error: {error.message}")
        if error.hint:
            remark(error.hint)
    if json:
        fault = error and {"message": error.message, "hint": error.hint}
        print_json({"folder": str(folder), "done": not code, "exit_code": code, "error": fault})
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
    home: HomeFolder = None,
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the images that are missing as job directories, and a Slurm array script for them.

    Each is done by chexgenbench worker, on any machine that sees the weights and plugin files under
    the same paths; merge takes the images in. With the same options again, job directories that
    were removed are written anew. A device that is named need not be one of this machine.
    """
    options = run.options_of(locals() | {"shards": None})
    from chexgenbench.home import real_path
    from chexgenbench.workflow.shards import SCRIPT
    from chexgenbench.workflow.shards import shard as write

    out = real_path(out)
    written = write(options, out, shards, shlex.join(["chexgenbench", *sys.argv[1:]]))
    if json:
        sharded = written.sharded
        print_json(
            {
                "folder": None if sharded is None else str(out),
                "script": None if sharded is None else str(out / SCRIPT),
                "jobs": [
                    {"folder": part.folder, "images": part.n_images}
                    for part in (sharded.parts if sharded is not None else ())
                ],
                "renewed": written.renewed,
                "notes": written.notes,
                "failed": run.faults(written.failed),
            }
        )
    else:
        for note in () if quiet else written.notes:
            print(f"Note: {note}.")
        _tell_written(written, options.home, out, quiet=quiet)
    for name, error in written.failed.items():
        remark(f"Failed: {name}: {error.message}")
    if written.failed:
        raise typer.Exit(1)


def _tell_written(written: Written, home: Home, out: Path, *, quiet: bool) -> None:
    from chexgenbench.workflow.shards import SCRIPT

    shown = home.shown
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
        if quiet:
            return
        print(f"One of them:  bash {shlex.quote(shown(out / SCRIPT))} 1")
        print(f"By Slurm:     cd {shlex.quote(shown(out))} && sbatch {SCRIPT}")
        print(f"How far:      chexgenbench jobs {shlex.quote(shown(out))}")
        print(f"Take them in: chexgenbench merge {shlex.quote(shown(out))}{home.option}")


def merge(
    out: Out,
    home: HomeFolder = None,
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check and take in what workers have made, while they work or later; then run scores it.

    Ends with 1 while images are missing, and names the job directories that lack them.
    """
    from chexgenbench.home import Home, real_path
    from chexgenbench.progress import Progress
    from chexgenbench.workflow.shards import merge as take

    project = Home.find(home)
    merged = take(project, real_path(out), Progress(quiet))
    lacking = [part.number for each in merged for part in each.parts if not part.complete]
    whole = all(each.whole for each in merged)
    if json:
        print_json(
            {
                "complete": whole,
                "generations": [_as_json(each) for each in merged],
                "lacking": lacking,
            }
        )
    else:
        for each in merged:
            _tell(each)
        if lacking:
            numbers = ",".join(map(str, lacking))
            print(f"{len(lacking)} job directories lack images: sbatch --array={numbers} array.sh")
        elif not whole:
            print("Images that were here are gone: chexgenbench run makes them again.")
        elif not quiet:
            print("All images are there.")
            print("Next: chexgenbench run, with the options that shard was given.")
    if not whole:
        raise typer.Exit(1)


def jobs(out: Out, json: AsJson = False) -> None:
    """How far the job directories of a folder are, and which workers give no sign."""
    from chexgenbench.home import real_path
    from chexgenbench.workflow.shards import look

    shown = look(real_path(out))
    if json:
        print_json(
            [
                {
                    "number": each.number,
                    "folder": each.part.folder,
                    "made": each.made,
                    "images": each.part.n_images,
                    "state": each.state,
                }
                for each in shown
            ]
        )
        return
    rows = [
        (f"{each.number:>4}", each.part.folder, f"{each.made}/{each.part.n_images}", each.state)
        for each in shown
    ]
    print_listing(("", "", "", ""), rows)


def _as_json(merged: Merged) -> dict[str, Any]:
    return {
        "model": merged.asked.model,
        "images": merged.asked.images,
        "made": merged.made,
        "wanted": merged.asked.n_images,
        "jobs": [
            {
                "number": part.number,
                "folder": part.part.folder,
                "made": part.made,
                "images": part.part.n_images,
                "complete": part.complete,
                "fault": part.fault and part.fault.message,
            }
            for part in merged.parts
        ],
    }


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
