"""`run`, `generate`, `evaluate`, `doctor`: what works on images."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from chexgenbench.workflow.plan import Options
    from chexgenbench.workflow.run import Outcome


class OnBadImage(StrEnum):
    """What an image that cannot be read does."""

    fail = "fail"
    skip = "skip"


class Protocol(StrEnum):
    """Which choices are made where the published code and sound statistics differ."""

    standard = "standard"
    legacy = "legacy"


class Uncertain(StrEnum):
    """What an uncertain label counts as."""

    keep = "keep"
    positive = "positive"
    negative = "negative"


SuiteName = Annotated[str, typer.Option("--suite", help="A suite's name, or a TOML file.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="A model; repeat it.", show_default="suite's"),
]
SplitName = Annotated[
    str | None,
    typer.Option("--split", help="A split's name, or a CSV file.", show_default="suite's"),
]
Encoders = Annotated[
    list[str] | None,
    typer.Option("--encoder", help="An encoder; repeat it.", show_default="suite's"),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", help="A metric, or metric@encoder; repeat it.", show_default="suite's"
    ),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A file with a plugin; repeat it.", show_default="none"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A parameter, name=value or plugin.name=value; repeat it.",
        show_default="none",
    ),
]
ImagesRoot = Annotated[
    Path | None,
    typer.Option("--images-root", help="Where the image paths start.", show_default="the split's"),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="role=NAME for id, prompt, path, labels, patient, view.",
        show_default="the split's",
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first N prompts.", show_default="all")
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Run seed.", show_default="suite's, 0")
]
Repeats = Annotated[
    int | None, typer.Option("--repeats", min=1, help="Images a prompt.", show_default="suite's, 1")
]
BatchSize = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        help="Requests a call; auto measures what is fastest here.",
        show_default="the model's",
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact", help="One request a call: independent of the batch size.", show_default="off"
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda:0, or several: cuda:0,cuda:1.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Processes that make images.", show_default="one a device"
    ),
]
Executors = Annotated[
    list[str] | None,
    typer.Option(
        "--executor",
        help="here, process, container or ray; NAME=KIND for one model, encoder or task metric; "
        "repeat it.",
        show_default="auto: an environment's own, else here",
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime", help="docker, podman or apptainer.", show_default="whichever answers"
    ),
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Ray: HOST:PORT, auto or local.", show_default="none"),
]
Shared = Annotated[
    str | None,
    typer.Option(
        "--shared",
        help="Ray: a folder or fsspec URL that every machine sees.",
        show_default="the project folder",
    ),
]
Shards = Annotated[
    int | None,
    typer.Option("--shards", min=1, help="Parts of a generation.", show_default="the executor's"),
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", help="A worker's limit, such as 16G.", show_default="none"),
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", min=1, help="Seconds without an image until a worker is ended."),
]
Pickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Load weights that are pickles: they can run code on this machine.",
        show_default="off",
    ),
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, float16 or bfloat16.")]
EncodeBatch = Annotated[
    int, typer.Option("--encode-batch-size", min=1, help="Images an encoder's call.")
]
BadImage = Annotated[
    OnBadImage, typer.Option("--on-bad-image", help="Unreadable images: stop, or leave them out.")
]
UncertainPolicy = Annotated[
    Uncertain | None,
    typer.Option("--uncertain", help="Uncertain labels.", show_default="suite's, keep"),
]
ProtocolName = Annotated[
    Protocol | None,
    typer.Option(
        "--protocol",
        help="legacy: the published code's choices, see docs/protocols.md.",
        show_default="suite's, standard",
    ),
]
Subsets = Annotated[
    list[str] | None,
    typer.Option(
        "--subset",
        help="A further subset, 'name: SQL condition' over the prompts; repeat it.",
        show_default="suite's",
    ),
]
ReferenceFile = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        help="A bundle that stands for the real images.",
        show_default="the split's images",
    ),
]
ExtraInfo = Annotated[
    str, typer.Option("--extra-info", help="A label for the run.", show_default="none")
]
HomeFolder = Annotated[
    Path | None,
    typer.Option("--home", help="Project folder.", show_default="CHEXGENBENCH_HOME, or here"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", show_default="off")]
New = Annotated[
    bool, typer.Option("--new", help="Repeat it although it is finished.", show_default="off")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would run; make no image.", show_default="off")
]
Leakage = Annotated[
    bool,
    typer.Option(
        "--allow-leakage",
        help="Take privacy and utility although training and test side overlap.",
        show_default="off",
    ),
]
Credentialed = Annotated[
    bool,
    typer.Option(
        "--include-credentialed",
        help="Patients' text and images may go to the page.",
        show_default="off",
    ),
]


def run(
    suite: SuiteName = "demo",
    model: Models = None,
    split: SplitName = None,
    encoder: Encoders = None,
    metric: Metrics = None,
    plugin: Plugins = None,
    set_: Settings = None,
    images_root: ImagesRoot = None,
    column: Columns = None,
    limit: Limit = None,
    seed: Seed = None,
    repeats: Repeats = None,
    batch_size: BatchSize = None,
    exact: Exact = False,
    protocol: ProtocolName = None,
    subset: Subsets = None,
    reference: ReferenceFile = None,
    uncertain: UncertainPolicy = None,
    device: Device = "auto",
    workers: Workers = None,
    executor: Executors = None,
    runtime: Runtime = None,
    address: Address = None,
    shared: Shared = None,
    shards: Shards = None,
    memory: Memory = None,
    timeout: Timeout = 1800.0,
    dtype: Dtype = "auto",
    allow_pickle: Pickle = False,
    encode_batch_size: EncodeBatch = 32,
    on_bad_image: BadImage = OnBadImage.fail,
    allow_leakage: Leakage = False,
    extra_info: ExtraInfo = "",
    home: HomeFolder = None,
    new: New = False,
    dry_run: DryRun = False,
    include_credentialed: Credentialed = False,
    quiet: Quiet = False,
) -> None:
    """Generate an image for each prompt with each model, score them, store, report."""
    options = options_of(locals())
    if dry_run:
        _dry_run(options)
        return
    from chexgenbench.progress import Progress
    from chexgenbench.workflow.run import run_suite

    _finish(options, run_suite(options, Progress(quiet)))


def generate(
    suite: SuiteName = "demo",
    model: Models = None,
    split: SplitName = None,
    plugin: Plugins = None,
    set_: Settings = None,
    images_root: ImagesRoot = None,
    column: Columns = None,
    limit: Limit = None,
    seed: Seed = None,
    repeats: Repeats = None,
    batch_size: BatchSize = None,
    exact: Exact = False,
    device: Device = "auto",
    workers: Workers = None,
    executor: Executors = None,
    runtime: Runtime = None,
    address: Address = None,
    shared: Shared = None,
    shards: Shards = None,
    memory: Memory = None,
    timeout: Timeout = 1800.0,
    dtype: Dtype = "auto",
    allow_pickle: Pickle = False,
    home: HomeFolder = None,
    new: New = False,
    quiet: Quiet = False,
) -> None:
    """Generate the images only; a later `run` scores them without making them again."""
    options = options_of(locals())
    from chexgenbench.progress import Progress
    from chexgenbench.workflow.run import generate_suite

    outcome = generate_suite(options, Progress(quiet))
    print(f"{outcome.made} images made, in {options.home.shown(options.home.generations)}")
    _failures(outcome)


def evaluate(
    images_csv: Annotated[
        Path | None,
        typer.Option(
            help="Your own images: a table with the columns prompt and img_savename, such as "
            "assets/CSV/prompt_INFO.csv.",
            show_default="the images that `generate` made",
        ),
    ] = None,
    images_dir: Annotated[Path, typer.Option(help="The folder of your own images.")] = Path(
        "assets/synthetic_images"
    ),
    name: Annotated[
        str | None,
        typer.Option(help="What to call your own images.", show_default="images:FOLDER"),
    ] = None,
    suite: SuiteName = "demo",
    model: Models = None,
    split: SplitName = None,
    encoder: Encoders = None,
    metric: Metrics = None,
    plugin: Plugins = None,
    set_: Settings = None,
    images_root: ImagesRoot = None,
    column: Columns = None,
    limit: Limit = None,
    seed: Seed = None,
    repeats: Repeats = None,
    batch_size: BatchSize = None,
    exact: Exact = False,
    protocol: ProtocolName = None,
    subset: Subsets = None,
    reference: ReferenceFile = None,
    uncertain: UncertainPolicy = None,
    device: Device = "auto",
    workers: Workers = None,
    executor: Executors = None,
    runtime: Runtime = None,
    address: Address = None,
    shared: Shared = None,
    shards: Shards = None,
    memory: Memory = None,
    timeout: Timeout = 1800.0,
    dtype: Dtype = "auto",
    allow_pickle: Pickle = False,
    encode_batch_size: EncodeBatch = 32,
    on_bad_image: BadImage = OnBadImage.fail,
    allow_leakage: Leakage = False,
    extra_info: ExtraInfo = "",
    home: HomeFolder = None,
    include_credentialed: Credentialed = False,
    quiet: Quiet = False,
) -> None:
    """Score images that are there: your own, joined to the split by prompt text, or generated ones.

    With the same options as `generate`, the images that it made are found again.
    """
    options = options_of(locals())
    from chexgenbench.progress import Progress
    from chexgenbench.workflow.run import evaluate_images, run_suite

    progress = Progress(quiet)
    if images_csv is None:
        _finish(options, run_suite(options, progress, make=False))
    else:
        _finish(options, evaluate_images(options, images_csv, images_dir, progress, name=name))


def doctor(
    suite: SuiteName = "demo",
    model: Models = None,
    split: SplitName = None,
    encoder: Encoders = None,
    plugin: Plugins = None,
    set_: Settings = None,
    images_root: ImagesRoot = None,
    column: Columns = None,
    protocol: ProtocolName = None,
    subset: Subsets = None,
    reference: ReferenceFile = None,
    device: Device = "auto",
    executor: Executors = None,
    runtime: Runtime = None,
    address: Address = None,
    dtype: Dtype = "auto",
    allow_pickle: Pickle = False,
    home: HomeFolder = None,
) -> None:
    """Check everything that a run needs, without running it."""
    options = options_of(locals())
    from chexgenbench.workflow.doctor import examine

    faults = 0
    for check in examine(options):
        faults += not check.ok
        print(f"{'ok   ' if check.ok else 'FAULT'} {check.name}: {check.detail}")
    if faults:
        raise typer.Exit(2)


def options_of(given: dict[str, Any]) -> Options:
    """What a command was given, by the names of its options."""
    from chexgenbench.errors import UserError
    from chexgenbench.home import Home
    from chexgenbench.workflow.plan import Options
    from chexgenbench.workflow.suite import parse_subsets

    columns: dict[str, str] = {}
    for entry in given.get("column") or []:
        role, equals, column = entry.partition("=")
        if not equals or role not in ("id", "prompt", "path", "labels", "patient", "view"):
            raise UserError(
                f"--column {entry!r} is not of the form role=NAME.",
                hint="Roles: id, prompt, path, labels, patient, view.",
            )
        columns[role] = column
    settings = list(given.get("set_") or [])
    root: Path | None = given.get("images_root")
    bundle: Path | None = given.get("reference")
    subsets = given.get("subset")
    split = given.get("split")
    if split and split.lower().endswith(".csv"):
        settings.append(f"csv.test={Path(split).expanduser().resolve()}")
        split = "csv"
    batch: str | None = given.get("batch_size")
    if batch is not None and batch != "auto" and not batch.isdecimal():
        raise UserError(f"--batch-size {batch!r} is neither a number nor auto.")
    changes = {
        "split": split,
        "models": given.get("model"),
        "encoders": given.get("encoder"),
        "metrics": given.get("metric"),
        "uncertain": given["uncertain"].value if given.get("uncertain") else None,
        "protocol": given["protocol"].value if given.get("protocol") else None,
        "subsets": parse_subsets(subsets) if subsets else None,
        "batch_size": batch if batch in (None, "auto") else int(batch),
        "exact": given.get("exact") or None,
    } | {name: given.get(name) for name in ("limit", "seed", "repeats")}
    return Options(
        home=Home.find(given["home"]),
        suite=given["suite"],
        changes=changes,
        plugins=tuple(given.get("plugin") or ()),
        settings=tuple(settings),
        images_root=root.expanduser().resolve() if root is not None else None,
        columns=columns,
        reference=bundle.expanduser().resolve() if bundle is not None else None,
        device=given.get("device", "auto"),
        dtype=given.get("dtype", "auto"),
        workers=given.get("workers"),
        executors=tuple(given.get("executor") or ()),
        runtime=given.get("runtime"),
        address=given.get("address"),
        shared=given.get("shared"),
        shards=given.get("shards"),
        memory=bytes_of(given["memory"]) if given.get("memory") else None,
        timeout=given.get("timeout", 1800.0),
        allow_pickle=given.get("allow_pickle", False),
        allow_leakage=given.get("allow_leakage", False),
        encode_batch_size=given.get("encode_batch_size", 32),
        on_bad_image=given["on_bad_image"].value if given.get("on_bad_image") else "fail",
        extra_info=given.get("extra_info", ""),
        new=given.get("new", False),
        include_credentialed=given.get("include_credentialed", False),
    )


_LEAST_MEMORY = 256_000_000


def bytes_of(text: str) -> int:
    """The memory of a worker as a user writes it.

    >>> bytes_of("16G"), bytes_of("512M")
    (16000000000, 512000000)
    """
    from chexgenbench.errors import UserError

    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)i?B?", text.strip())
    if found is None or not float(found[1]):
        raise UserError(f"{text!r} is no size.", hint="Write it as in 16G or 512M.")
    size = int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))
    if size < _LEAST_MEMORY:
        raise UserError(
            f"{text} of memory is too little for any worker.",
            hint=f"Python and its libraries alone take {_LEAST_MEMORY // 1_000_000}M.",
        )
    return size


def _dry_run(options: Options) -> None:
    from chexgenbench.errors import ChexGenBenchError
    from chexgenbench.workflow.plan import (
        encoded_real,
        estimate_bytes,
        make_plan,
        plan_models,
        plan_pools,
    )

    plan = make_plan(options)
    failed: dict[str, ChexGenBenchError] = {}
    generations = plan_models(plan, failed)
    print(f"suite {plan.suite.name}, split {plan.split.name}: {len(plan.prompts)} prompts")
    work = [(item.plugin.name, item) for item in generations]
    work += [
        (f"{item.plugin.name}, {name}", pool)
        for item in generations
        for name, pool in plan_pools(plan, item).items()
    ]
    for name, item in work:
        made, total = item.made(), len(item.requests)
        seconds = item.seconds_an_image()
        time = "unknown" if seconds is None else f"about {seconds * (total - made):.0f} s"
        if made == total:
            time = "nothing to do"
        print(
            f"  {name}: {made} of {total} images cached; time {time}, "
            f"disk at most {estimate_bytes(item) / 1e6:.0f} MB"
        )
    if plan.reference is not None:
        print(f"  real images: the reference {plan.reference.path.name}")
    for encoder in plan.encoders if plan.reference is None else ():
        known, total = encoded_real(plan, encoder)
        print(f"  {encoder.name}: {known} of {total} real images encoded")
    names = ", ".join(item.plugin.name for item in plan.metrics)
    print(f"metrics: {names}, over {len(plan.masks)} subsets")
    for task in plan.tasks:
        needs = ", ".join(dict.fromkeys(need.name for need in task.needs.values()))
        print(f"task {task.plugin.name}: on {needs}")
    for remark in plan.remarks:
        print(f"Note: {remark}.")
    for name, error in failed.items():
        typer.echo(f"Fails: {name}: {error.message}", err=True)


def _finish(options: Options, outcome: Outcome) -> None:
    from chexgenbench.report.board import board_text, columns_of, read_cells
    from chexgenbench.report.page import write_report
    from chexgenbench.store.store import Store

    store = Store(options.home.store)
    runs = [*outcome.runs, *outcome.reused]
    for note in outcome.notes:
        print(f"Note: {note}.")
    if runs:
        page = write_report(
            store, options.home, runs, include_credentialed=options.include_credentialed
        )
        print(board_text(read_cells(store, columns_of(store, runs))))
        shown = options.home.shown
        print(f"\nStore: {shown(options.home.store)}\nPage:  {shown(page)}")
        question = (
            "select finding, model, value from by_finding where metric = 'alignment' order by value"
        )
        command, home = _command(), options.home.option
        print(
            "Try next:\n"
            f"  {command} leaderboard --metric kid --subset 'Pleural Effusion'{home}\n"
            f'  {command} query "{question}"{home}\n'
            f"  {command} models show stable-diffusion"
        )
    _failures(outcome)


def _command() -> str:
    """What to type to call this program again: its path where it is not on the PATH."""
    import shutil
    import sys

    own = Path(sys.argv[0])
    found = shutil.which(own.name)
    if found and Path(found).resolve() == own.resolve():
        return own.name
    try:
        return str(own.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(own)


def _failures(outcome: Outcome) -> None:
    """Says what failed; several models, some of which stand, end with 1, a single one as it did."""
    for name, error in outcome.failed.items():
        typer.echo(f"Failed: {name}: {error.message}", err=True)
        if error.hint:
            typer.echo(error.hint, err=True)
    if outcome.failed:
        only = not (outcome.runs or outcome.reused or outcome.made) and len(outcome.failed) == 1
        raise typer.Exit(next(iter(outcome.failed.values())).exit_code if only else 1)
