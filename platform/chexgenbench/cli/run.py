"""`run`, `generate`, `evaluate`, `doctor`: what works on images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chexgenbench.cli import complete
from chexgenbench.cli.output import (
    AsJson,
    HomeFolder,
    Quiet,
    own_command,
    print_json,
    print_text,
    remark,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chexgenbench.errors import ChexGenBenchError
    from chexgenbench.store.store import Store
    from chexgenbench.workflow.options import Options
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


_WHERE = "Options: machines and memory"
_CARE = "Options: what is let through"
"""Panels of the help, beside that of all other options."""

SuiteName = Annotated[
    str,
    typer.Option("--suite", help="A suite's name, or a TOML file.", autocompletion=complete.suites),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="A model; repeat it.",
        show_default="suite's",
        autocompletion=complete.models,
    ),
]
SplitName = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="A split's name, or a CSV file.",
        show_default="suite's",
        autocompletion=complete.splits,
    ),
]
Encoders = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="An encoder; repeat it.",
        show_default="suite's",
        autocompletion=complete.encoders,
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="A metric, or metric@encoder; repeat it.",
        show_default="suite's",
        autocompletion=complete.metrics,
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
        help="role=NAME for id, prompt, path, labels, patient, view or a finding; repeat it.",
        show_default="the split's",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, metavar="N", help="Only the first N prompts.", show_default="all"
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, metavar="N", help="Run seed.", show_default="suite's, 0"),
]
Repeats = Annotated[
    int | None,
    typer.Option(
        "--repeats", min=1, metavar="N", help="Images a prompt.", show_default="suite's, 1"
    ),
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
    str,
    typer.Option(
        "--device", rich_help_panel=_WHERE, help="auto, cpu, cuda:0, or several: cuda:0,cuda:1."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        rich_help_panel=_WHERE,
        min=1,
        metavar="N",
        help="Processes that make images.",
        show_default="one a device",
    ),
]
Executors = Annotated[
    list[str] | None,
    typer.Option(
        "--executor",
        rich_help_panel=_WHERE,
        help="here, process, container or ray; NAME=KIND for one model, encoder or task metric; "
        "repeat it.",
        show_default="auto: an environment's own, else here",
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        rich_help_panel=_WHERE,
        help="docker, podman or apptainer.",
        show_default="whichever answers",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        rich_help_panel=_WHERE,
        help="Ray: HOST:PORT, auto or local.",
        show_default="none",
    ),
]
Shared = Annotated[
    str | None,
    typer.Option(
        "--shared",
        rich_help_panel=_WHERE,
        help="Ray: a folder or fsspec URL that every machine sees.",
        show_default="the project folder",
    ),
]
Shards = Annotated[
    int | None,
    typer.Option(
        "--shards",
        rich_help_panel=_WHERE,
        min=1,
        metavar="N",
        help="Parts of a generation.",
        show_default="the executor's",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        rich_help_panel=_WHERE,
        help="A worker's limit, such as 16G.",
        show_default="none",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        rich_help_panel=_WHERE,
        min=1,
        metavar="SECONDS",
        help="Seconds without an image until a worker is ended.",
    ),
]
Pickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        rich_help_panel=_CARE,
        help="Load weights that are pickles: they can run code on this machine.",
        show_default="off",
    ),
]
Dtype = Annotated[
    str, typer.Option("--dtype", rich_help_panel=_WHERE, help="auto, float32, float16 or bfloat16.")
]
EncodeBatch = Annotated[
    int,
    typer.Option(
        "--encode-batch-size",
        rich_help_panel=_WHERE,
        min=1,
        metavar="N",
        help="Images an encoder's call.",
    ),
]
BadImage = Annotated[
    OnBadImage,
    typer.Option(
        "--on-bad-image", rich_help_panel=_CARE, help="Unreadable images: stop, or leave them out."
    ),
]
UncertainPolicy = Annotated[
    Uncertain | None,
    typer.Option(
        "--uncertain",
        help="Uncertain labels: keep, positive or negative.",
        metavar="POLICY",
        show_default="suite's, keep",
    ),
]
ProtocolName = Annotated[
    Protocol | None,
    typer.Option(
        "--protocol",
        help="standard, or legacy: the published code's choices, see docs/protocols.md.",
        metavar="PROTOCOL",
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
        rich_help_panel=_CARE,
        help="Take privacy and utility although training and test side overlap.",
        show_default="off",
    ),
]
Credentialed = Annotated[
    bool,
    typer.Option(
        "--include-credentialed",
        rich_help_panel=_CARE,
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
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Generate an image for each prompt with each model, score them, store, report."""
    options = options_of(locals())
    if dry_run:
        _dry_run(options, json)
        return
    from chexgenbench.progress import Progress
    from chexgenbench.workflow.run import run_suite

    _finish(options, run_suite(options, Progress(quiet)), json, quiet)


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
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Generate the images only; a later `run` scores them without making them again."""
    options = options_of(locals())
    from chexgenbench.progress import Progress
    from chexgenbench.workflow.run import generate_suite

    outcome = generate_suite(options, Progress(quiet))
    if json:
        print_json(
            {
                "images_made": outcome.made,
                "folder": str(options.home.generations),
                "failed": faults(outcome.failed),
            }
        )
    else:
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
    json: AsJson = False,
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
        outcome = run_suite(options, progress, make=False)
    else:
        outcome = evaluate_images(options, images_csv, images_dir, progress, name=name)
    _finish(options, outcome, json, quiet)


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
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="List what killed commands left, and remove it; check nothing else.",
            show_default="off",
        ),
    ] = False,
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished",
            help="With --fix: also half generations and killed runs, which could go on.",
            show_default="off",
        ),
    ] = False,
    home: HomeFolder = None,
    json: AsJson = False,
) -> None:
    """Check everything that a run needs, without running it, and name what killed commands left."""
    if fix or unfinished:
        _fix(home, fix=fix, unfinished=unfinished, json=json)
        return
    options = options_of(locals())
    from chexgenbench.workflow.doctor import examine

    checks = []
    for check in examine(options):
        checks.append(check)
        if not json:  # each as soon as it is known
            text = f"{'ok   ' if check.ok else 'FAULT'} {check.name}: {check.detail}"
            print_text(text, hanging=6)
    well = all(check.ok for check in checks)
    if json:
        rows = [{"name": each.name, "ok": each.ok, "detail": each.detail} for each in checks]
        print_json({"ok": well, "checks": rows})
    if not well:
        raise typer.Exit(2)


def _fix(home: Path | None, *, fix: bool, unfinished: bool, json: bool) -> None:
    from chexgenbench.cli.care import tell_leftovers
    from chexgenbench.errors import UserError
    from chexgenbench.home import Home
    from chexgenbench.workflow.leftovers import find

    if not fix:
        raise UserError("--unfinished says what --fix removes.", hint="Say both.")
    place = Home.find(home)
    tell_leftovers(find(place), place, json=json, all_=unfinished)


def options_of(given: dict[str, Any]) -> Options:
    """What a command was given, by the names of its options."""
    from chexgenbench.errors import UserError
    from chexgenbench.home import Home, real_path
    from chexgenbench.splits.prompts import PUBLISHED_COLUMNS, ROLES
    from chexgenbench.workflow.options import Options
    from chexgenbench.workflow.suite import parse_subsets

    columns: dict[str, str] = {}
    for entry in given.get("column") or []:
        role, equals, column = entry.partition("=")
        if not equals or role not in ROLES:
            raise UserError(
                f"--column {entry!r} is not of the form role=NAME.",
                hint=f"Roles: {', '.join(PUBLISHED_COLUMNS)}, and the 14 findings, such as "
                "'Pleural Effusion=effusion'.",
            )
        columns[role] = column
    settings = list(given.get("set_") or [])
    root: Path | None = given.get("images_root")
    bundle: Path | None = given.get("reference")
    subsets = given.get("subset")
    split = given.get("split")
    if split and split.lower().endswith(".csv"):
        settings.append(f"csv.test={real_path(Path(split))}")
        split = "csv"
    batch: str | None = given.get("batch_size")
    if batch is not None and batch != "auto" and not re.fullmatch("[0-9]{1,9}", batch):
        raise UserError(f"--batch-size {batch[:20]!r} is neither a number nor auto.")
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
        images_root=real_path(root) if root is not None else None,
        columns=columns,
        reference=real_path(bundle) if bundle is not None else None,
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
    from chexgenbench.downloads import parse_size
    from chexgenbench.errors import UserError

    size = parse_size(text)
    if size < _LEAST_MEMORY:
        raise UserError(
            f"{text} of memory is too little for any worker.",
            hint=f"Python and its libraries alone take {_LEAST_MEMORY // 1_000_000}M.",
        )
    return size


def _dry_run(options: Options, json: bool) -> None:
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
    work = [(item.plugin.name, "own", item) for item in generations]
    work += [
        (item.plugin.name, name, pool)
        for item in generations
        for name, pool in plan_pools(plan, item).items()
    ]
    images = []
    for name, kind, item in work:
        made, total = item.made(), len(item.requests)
        each = item.seconds_an_image()
        images.append(
            {
                "model": name,
                "images": kind,
                "wanted": total,
                "made": made,
                "seconds": 0.0 if made == total else each and each * (total - made),
                "bytes": estimate_bytes(item),
            }
        )
    real = []
    for encoder in plan.encoders if plan.reference is None else ():
        known, total = encoded_real(plan, encoder)
        real.append({"encoder": encoder.name, "encoded": known, "wanted": total})
    tasks = {
        task.plugin.name: list(dict.fromkeys(need.name for need in task.needs.values()))
        for task in plan.tasks
    }
    whole = {
        "suite": plan.suite.name,
        "split": plan.split.name,
        "prompts": len(plan.prompts),
        "generations": images,
        "real": real,
        "reference": None if plan.reference is None else plan.reference.path.name,
        "metrics": [item.plugin.name for item in plan.metrics],
        "subsets": len(plan.masks),
        "tasks": tasks,
        "remarks": list(plan.remarks),
        "failed": faults(failed),
    }
    if json:
        print_json(whole)
    else:
        _print_plan(whole)
    for name, error in failed.items():
        remark(f"Fails: {name}: {error.message}")


def _print_plan(plan: dict[str, Any]) -> None:
    print(f"suite {plan['suite']}, split {plan['split']}: {plan['prompts']} prompts")
    for item in plan["generations"]:
        name = item["model"] if item["images"] == "own" else f"{item['model']}, {item['images']}"
        time = "unknown" if item["seconds"] is None else f"about {item['seconds']:.0f} s"
        if item["made"] == item["wanted"]:
            time = "nothing to do"
        print_text(
            f"{name}: {item['made']} of {item['wanted']} images cached; time {time}, "
            f"disk at most {item['bytes'] / 1e6:.0f} MB",
            indent=2,
        )
    if plan["reference"] is not None:
        print_text(f"real images: the reference {plan['reference']}", indent=2)
    for item in plan["real"]:
        counts = f"{item['encoded']} of {item['wanted']}"
        print_text(f"{item['encoder']}: {counts} real images encoded", indent=2)
    print_text(f"metrics: {', '.join(plan['metrics'])}, over {plan['subsets']} subsets")
    for name, needs in plan["tasks"].items():
        print_text(f"task {name}: on {', '.join(needs)}")
    for text in plan["remarks"]:
        print(f"Note: {text}.")


def _finish(options: Options, outcome: Outcome, json: bool, quiet: bool) -> None:
    from chexgenbench.report.board import board_text, columns_of, read_cells
    from chexgenbench.report.page import write_report
    from chexgenbench.store.store import Store

    store = Store(options.home.store)
    runs = [*outcome.runs, *outcome.reused]
    page: Path | None = None
    if runs:
        page = write_report(
            store, options.home, runs, include_credentialed=options.include_credentialed
        )
    if json:
        print_json(
            {
                "runs": list(outcome.runs),
                "reused": list(outcome.reused),
                "images_made": outcome.made,
                "notes": outcome.notes,
                "failed": faults(outcome.failed),
                "store": str(options.home.store),
                "page": page and str(page),
            }
        )
    else:
        for note in () if quiet else outcome.notes:
            print(f"Note: {note}.")
        if page is not None:
            print(board_text(read_cells(store, columns_of(store, runs))))
            shown = options.home.shown
            print(f"\nStore: {shown(options.home.store)}\nPage:  {shown(page)}")
            if not quiet:
                _print_next(store, runs, options.home.option)
    _failures(outcome)


def _print_next(store: Store, runs: Sequence[str], home: str) -> None:
    """Commands that have something to show of these runs."""
    finding = "Pleural Effusion"
    known = store.query(
        "SELECT DISTINCT metric FROM scores WHERE status = 'ok' AND subset = ? "
        "AND run_id IN (SELECT unnest(?::VARCHAR[])) ORDER BY 1",
        [finding, list(runs)],
    )
    metrics: list[str] = known.column(0).to_pylist()

    def one(wanted: str) -> str:
        return wanted if wanted in metrics else metrics[0]

    command = own_command()
    print("Try next:")
    question = "select model, metric, value, ci_low, ci_high from leaderboard"
    if metrics:
        print(f"  {command} leaderboard --metric {one('kid')} --subset '{finding}'{home}")
        question = "select finding, model, value from by_finding where metric = "
        question += f"'{one('alignment')}' order by value"
    print(f'  {command} query "{question}"{home}')
    print(f"  {command} models show stable-diffusion")


def faults(failed: Mapping[str, ChexGenBenchError]) -> dict[str, dict[str, Any]]:
    """Errors by name, for JSON."""
    return {
        name: {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        for name, error in failed.items()
    }


def _failures(outcome: Outcome) -> None:
    """Says what failed; several models, some of which stand, end with 1, a single one as it did."""
    for name, error in outcome.failed.items():
        remark(f"Failed: {name}: {error.message}")
        if error.hint:
            remark(error.hint)
    if outcome.failed:
        only = not (outcome.runs or outcome.reused or outcome.made) and len(outcome.failed) == 1
        raise typer.Exit(next(iter(outcome.failed.values())).exit_code if only else 1)
