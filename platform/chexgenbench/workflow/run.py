"""The stages in order: real side, and for each model generate, encode, score, store, report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from chexgenbench import provenance
from chexgenbench.downloads import size_text
from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.features import EncoderPlan, Extraction, cache, extract
from chexgenbench.files import Presence, digest, sha256_bytes
from chexgenbench.generation import Generation
from chexgenbench.images import BadImage
from chexgenbench.jobs.job import Limits
from chexgenbench.jobs.manifest import ManifestRow
from chexgenbench.progress import Progress
from chexgenbench.scoring import Floors, SampleScore, Score, Sides, score
from chexgenbench.splits.prompts import check_images
from chexgenbench.splits.user_images import read_user_images
from chexgenbench.store.export_csv import export_run
from chexgenbench.store.records import SCHEMAS, RunRecord
from chexgenbench.store.run_directory import (
    RECORD_NAME,
    read_record,
    read_table,
    relabel,
    write_record,
    write_run,
)
from chexgenbench.store.store import Store
from chexgenbench.types import ImageNeed
from chexgenbench.workflow.differences import influence_table, settle
from chexgenbench.workflow.options import Options
from chexgenbench.workflow.places import launcher_of, place_of
from chexgenbench.workflow.plan import (
    Plan,
    check_folder,
    make_plan,
    measure_batches,
    plan_models,
    plan_pools,
    plugin_source,
    weight_paths,
)
from chexgenbench.workflow.reference import RealSide, write_reference
from chexgenbench.workflow.tasks import (
    Found,
    SetImages,
    Sets,
    compares_sides,
    find_copies,
    image_id,
    leave_out,
    part_of,
    real_identity,
    real_images,
    refuse_leakage,
    run_tasks,
    undecodable,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedSide:
    """Generated images with what is known of each, whoever made them."""

    id: str
    rows: NDArray[np.int64]
    table: pd.DataFrame
    folder: Path

    def path(self, position: int) -> Path:
        return self.folder / str(self.table["path"].iloc[position])

    def made(self, plan: Plan) -> SetImages:
        """The same as a set of images for task metrics."""
        return SetImages(
            prompts=plan.prompts,
            rows=self.rows,
            repeats=self.table["repeat"].to_numpy(np.int64),
            ids=self.table["image_id"].tolist(),
            keys=self.table["sha256"].tolist(),
            paths=[self.path(i) for i in range(len(self.table))],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Images that a model made beyond the run's own."""

    need: ImageNeed
    generation: Generation
    rows: Sequence[ManifestRow]

    @property
    def paths(self) -> list[Path]:
        return [self.generation.folder / row.path for row in self.rows]

    def made(self, plan: Plan) -> SetImages:
        """The same as a set of images for task metrics."""
        prompts = plan.tables.rows(self.need)
        return SetImages(
            prompts=prompts,
            rows=np.repeat(np.arange(len(prompts)), self.need.repeats or 1),
            repeats=np.asarray([row.repeat for row in self.rows], np.int64),
            ids=[row.id for row in self.rows],
            keys=[row.sha256 for row in self.rows],
            paths=self.paths,
        )


class Clock:
    """Wall-clock seconds of each stage of a run, by its name in the order in which they began."""

    def __init__(self, known: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(known or {})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds what the block takes, if it ends well, to the stage."""
        begun = time.perf_counter()
        yield
        taken = self.seconds.get(name, 0.0) + time.perf_counter() - begun
        self.seconds[name] = round(taken, 3)

    def noted(self, record: RunRecord) -> RunRecord:
        """The record with the seconds, beside the machine that they were taken on."""
        return record.model_copy(
            update={"hardware": {**record.hardware, "seconds": dict(self.seconds)}}
        )


@dataclass
class Outcome:
    """What one command did."""

    runs: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: dict[str, ChexGenBenchError] = field(default_factory=dict)
    encoded: int = 0
    made: int = 0
    floors: Floors = field(default_factory=dict)
    real: dict[ImageNeed, SetImages] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    """Of the real side, which all models share."""
    lost: int = 0
    notes: list[str] = field(default_factory=list)


def generate_suite(options: Options, progress: Progress) -> Outcome:
    """Makes the images of every model of the suite and scores none.

    Raises:
        UserError: bad input, before anything is generated.
    """
    plan = make_plan(options)
    outcome = Outcome()
    generations = plan_models(plan, outcome.failed)
    with _at_work(plan, outcome):
        _tell(plan, progress)
        generations = measure_batches(plan, generations, outcome.failed, progress.say)
        for number, generation in enumerate(generations, 1):
            name, shown = generation.plugin.name, progress.of(number, len(generations), "model")
            _attempt(outcome, name, partial(_make_all, plan, generation, outcome, shown))
    return outcome


@contextmanager
def _at_work(plan: Plan, outcome: Outcome) -> Iterator[None]:
    """Marks the project as one that a command works in, and keeps the cache to its size at the end.

    Raises:
        UserError: the variable for that size holds none.
    """
    most, home = cache.limit(), plan.options.home
    with closing(Presence(home.results)):
        yield
    for encoder in plan.encoders:
        encoder.close()  # what this command used goes last
    if most is None:
        return
    pruned = cache.prune(home.cache, to=most)
    if pruned.bytes:
        outcome.notes.append(
            f"{size_text(pruned.bytes)} of the feature cache removed, the least recently used, to "
            f"keep it to {size_text(most)} ({cache.LIMIT})"
        )
    if pruned.left > most:
        outcome.notes.append(
            f"the feature cache has {size_text(pruned.left)}, more than {size_text(most)} "
            f"({cache.LIMIT}): other commands use it"
        )


def _make_all(plan: Plan, generation: Generation, outcome: Outcome, progress: Progress) -> None:
    for part in (generation, *plan_pools(plan, generation).values()):
        _make(plan, part, outcome, progress)


def run_suite(options: Options, progress: Progress, *, make: bool = True) -> Outcome:
    """Runs every model of the suite; a model that fails is recorded and the others go on.

    Args:
        make: makes the images that are missing; else they must all be there.

    Raises:
        UserError: bad input, before anything is generated.
    """
    plan = make_plan(options)
    outcome = Outcome()
    generations = plan_models(plan, outcome.failed)
    if not make:
        pools = [pool for item in generations for pool in plan_pools(plan, item).values()]
        _require_images([*generations, *pools])
    with _at_work(plan, outcome):
        _tell(plan, progress)
        real = _prepare(plan, progress, outcome)
        if make:
            generations = measure_batches(plan, generations, outcome.failed, progress.say)
        for number, generation in enumerate(generations, 1):
            name, shown = generation.plugin.name, progress.of(number, len(generations), "model")
            _attempt(outcome, name, partial(_run_model, plan, generation, real, outcome, shown))
    return outcome


def _require_images(generations: Sequence[Generation]) -> None:
    lacking = [
        f"{item.plugin.name}: {item.made()} of {len(item.requests)} images"
        for item in generations
        if item.made() < len(item.requests)
    ]
    if lacking:
        raise UserError(
            f"The images are not all there ({'; '.join(lacking)}).",
            hint="Make them with `chexgenbench generate` and the same options, "
            "or make and score them with `chexgenbench run`.",
        )


def evaluate_images(
    options: Options, csv: Path, folder: Path, progress: Progress, *, name: str | None = None
) -> Outcome:
    """Scores a user's own images, joined to the split by prompt; only answered prompts count."""
    plan = make_plan(options, models=False)
    own = read_user_images(csv, folder, plan.prompts)
    kept, counted = _weigh(plan, own.rows)
    outcome = Outcome()
    for count, text in (
        (own.unmatched, "rows of {csv} have a prompt that the split does not have; left out"),
        (
            own.ambiguous,
            "rows of {csv} have a prompt that stands in several rows of the split; "
            "they answer the first",
        ),
        (own.repeated, "rows of {csv} repeat a prompt; {counted}"),
    ):
        if count:
            outcome.notes.append(f"{count} " + text.format(csv=csv, counted=counted))
    used, at = np.unique(own.rows[kept], return_inverse=True)
    outcome.notes.append(f"{len(kept)} images answer {len(used)} prompts of {plan.split.name}")
    plan = replace(plan, prompts=plan.prompts.take(used))
    rows = at.astype(np.int64)
    with _at_work(plan, outcome):
        _tell(plan, progress)
        generated = _own_side(plan, rows, [own.paths[i] for i in kept])
        real = _prepare(plan, progress, outcome)
        name = name or f"images:{folder.name}"
        record = _record(
            plan,
            name,
            generated.id,
            real,
            {"images": len(rows)},
            {},
            batch_size=None,
            sets=outcome.real,
        )
        _attempt(
            outcome, name, partial(_evaluate, plan, record, generated, real, outcome, progress)
        )
    return outcome


def _weigh(plan: Plan, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], str]:
    """The images that count, and how repeated prompts are handled, in words.

    The real side has each prompt once. Where the table repeats some prompts only, their images
    would weigh more on the other side; the published code lets them.
    """
    _, first, counts = np.unique(rows, return_index=True, return_counts=True)
    every = np.arange(len(rows))
    if plan.suite.protocol == "legacy":
        return every, "all count, as in the published code, although the real side has each once"
    if (counts == counts[0]).all():
        return every, "they count as further images of it"
    return np.sort(first), "the first image of each prompt counts, so that all weigh the same"


def _prepare(plan: Plan, progress: Progress, outcome: Outcome) -> RealSide:
    """The real side of the scores and of the task metrics."""
    with outcome.clock.stage("encode real"):
        real = prepare_real(plan, progress, outcome)
        _prepare_sets(plan, progress, outcome)
    return real


def prepare_real(plan: Plan, progress: Progress, outcome: Outcome) -> RealSide:
    """Checks, hashes and encodes the real images: once ever, and before any image is made.

    Raises:
        UserError: images that are missing or unreadable, unless they are to be skipped.
    """
    prompts = plan.prompts
    if plan.reference is not None:
        real = plan.reference.real_side(plan)
        # The prompts are the user's own, and so are their text features.
        _extract(plan, [], outcome, "encode prompts", progress)
        return real
    if not prompts.has_image().any():
        outcome.notes.append("the split has no real images: only metrics that need none are taken")
        return RealSide([None] * len(prompts), 0)
    bad: dict[int, BadImage] = dict(check_images(prompts))
    _refuse_bad(plan, bad)
    known = [i for i in np.flatnonzero(prompts.has_image()).tolist() if i not in bad]
    paths = {i: prompts.path(i) for i in known}
    keys: list[str | None] = [None] * len(prompts)
    for i, key in zip(known, plan.hashes.sha256([paths[i] for i in known]), strict=True):
        keys[i] = key
    images = [(key, paths[i]) for i, key in enumerate(keys) if key is not None]
    done = _extract(plan, images, outcome, "encode real images", progress)
    for i, key in enumerate(keys):
        if key in done.bad:
            bad[i] = done.bad[key]
            keys[i] = None
    _refuse_bad(plan, bad)
    if bad:
        outcome.notes.append(f"{len(bad)} real images cannot be read; skipped and not counted")
    return RealSide(keys, len(bad))


def _prepare_sets(plan: Plan, progress: Progress, outcome: Outcome) -> None:
    """Finds, hashes and encodes the real images that task metrics work on, before any is made.

    Raises:
        UserError: images that cannot be used, unless they are to be skipped, or that stand on both
            sides of the split.
    """
    if not plan.tasks:
        return
    stage = partial(progress.stage, unit="images")
    found, bad = real_images(plan.tables, plan.needs, plan.hashes, stage)
    if compares_sides(plan.tasks):
        copies = find_copies(found)
        allow = plan.options.allow_leakage
        outcome.notes += refuse_leakage(copies, plan.split.name, allow=allow)
    encoders = {encoder.name: encoder for encoder in plan.encoders}
    pairs = dict.fromkeys(
        (need, name)
        for task in plan.tasks
        for need in task.needs.values()
        for name in task.encoders
    )
    decoded: dict[str, BadImage] = {}
    for need, name in pairs:
        if need not in found:
            continue
        made = found[need]
        if name:
            images = list(zip(made.keys, made.paths, strict=True))
            what = f"encode {need.name}"
            batch = plan.options.encode_batch_size
            done = extract(
                images,
                (),
                [encoders[name]],
                batch_size=batch,
                workplaces=plan.workplaces,
                stage=partial(progress.stage, what),
                say=progress.say,
            )
            outcome.encoded += done.encoded
            decoded |= done.bad
        else:
            decoded |= undecodable(made)
        found[need], rows = leave_out(made, decoded)
        bad |= rows
    if bad and plan.options.on_bad_image == "fail":
        listed = [f"line {line} of {file}: {bad[file, line].message}" for file, line in sorted(bad)]
        more = f"\n... and {len(listed) - 20} more" if len(listed) > 20 else ""
        raise UserError(
            f"{len(bad)} real images of the split cannot be used:\n"
            + "\n".join(listed[:20])
            + more,
            hint="Mend them, or leave them out of every score: --on-bad-image skip.",
        )
    if bad:
        outcome.notes.append(
            f"{len(bad)} real images that privacy and utility need cannot be read; left out"
        )
    outcome.real.update(found)
    outcome.lost = len(bad)


def _extract(
    plan: Plan,
    images: Sequence[tuple[str, Path]],
    outcome: Outcome,
    what: str,
    progress: Progress,
) -> Extraction:
    done = extract(
        images,
        plan.prompts.table["prompt"].tolist(),
        plan.encoders,
        batch_size=plan.options.encode_batch_size,
        text_encoders=plan.text_encoders,
        workplaces=plan.workplaces,
        stage=partial(progress.stage, what),
        text_stage=partial(progress.stage, "encode prompts", unit="prompts"),
        say=progress.say,
    )
    outcome.encoded += done.encoded
    return done


@dataclass(frozen=True)
class BuiltReference:
    """What `build_reference` wrote."""

    split: str
    images: int
    encoders: Sequence[str]
    sha256: str
    credentialed: bool


def build_reference(options: Options, path: Path, progress: Progress) -> BuiltReference:
    """Encodes a split's real images and writes them as one reference bundle.

    Raises:
        UserError: bad input, before anything is encoded.
    """
    plan = make_plan(options, models=False, metrics=False)
    if path.is_dir() or path.suffix != ".safetensors":
        raise UserError(f"The bundle {path} must be a file with the ending .safetensors.")
    check_folder(path.absolute().parent, "Name another place for the bundle.")
    if not plan.prompts.has_image().any():
        raise UserError(
            f"The split {plan.split.name!r} names no folder of real images.",
            hint="Name it: --images-root FOLDER",
        )
    with _at_work(plan, Outcome()):
        _tell(plan, progress)
        real = prepare_real(plan, progress, Outcome())
        return BuiltReference(
            split=plan.split.name,
            images=sum(key is not None for key in real.keys),
            encoders=[encoder.name for encoder in plan.encoders],
            sha256=write_reference(path, plan, real),
            credentialed=plan.split.spec.credentialed,
        )


def _refuse_bad(plan: Plan, bad: dict[int, BadImage]) -> None:
    if not bad or plan.options.on_bad_image == "skip":
        return
    lines = plan.prompts.table["line"]
    listed = [f"line {lines.iloc[i]}: {bad[i].message}" for i in sorted(bad)[:20]]
    more = f"\n... and {len(bad) - 20} more" if len(bad) > 20 else ""
    raise UserError(
        f"{len(bad)} real images of {plan.prompts.source_file} cannot be used:\n"
        + "\n".join(listed)
        + more,
        hint="Mend them, or leave them out of every score: --on-bad-image skip.",
    )


def _attempt(outcome: Outcome, name: str, stage: Any) -> None:
    """One model's stage: its failure is noted and the others go on; a full disk stops them all."""
    try:
        stage()
    except ChexGenBenchError as error:
        if error.__cause__ is not None and is_disk_fault(error.__cause__):
            raise
        outcome.failed[name] = error


def _make(
    plan: Plan, generation: Generation, outcome: Outcome, progress: Progress
) -> dict[str, ManifestRow]:
    name = generation.plugin.name
    there = generation.made()
    total = len(generation.requests)
    options = plan.options
    plugin, parameters = generation.plugin, generation.parameters
    place = place_of(options, plugin)
    weights = weight_paths(plugin, parameters, generation.context).values()
    work = partial(
        generation.run,
        say=progress.say,
        devices=plan.devices,
        workers=options.workers,
        interpreter=place.interpreter,
        source=replace(plugin_source(options), weights=tuple(weights)),
        shards=options.shards,
        limits=Limits(memory=options.memory),
        timeout=options.timeout,
    )
    if there == total:
        rows = work()
    else:
        with ExitStack() as stack:
            launcher = launcher_of(place, options, plan.devices)
            if launcher is not None:
                stack.enter_context(closing(launcher))
            advance = stack.enter_context(progress.stage(f"generate {name}", total))
            rows = work(advance, launcher=launcher)
        outcome.made += total - there
    flags = [row.flags for row in rows.values()]
    cut = generation.summary().cut_batches
    outcome.notes.extend(_suspicions(name, generation.remarks, flags, cut))
    return rows


def _suspicions(
    name: str, remarks: Sequence[str], flags: Iterable[Iterable[str] | None], cut: int | None
) -> Iterator[str]:
    """What was noticed about a model, its prompts and its images."""
    for remark in remarks:
        yield f"{name}: {remark.rstrip('.')}"
    listed = [tuple(each or ()) for each in flags]
    counts = Counter(flag for each in listed for flag in each)
    if counts:
        named = ", ".join(f"{count} {flag}" for flag, count in sorted(counts.items()))
        yield f"suspect images of {name}: {named}, of {len(listed)}"
    if cut:
        yield f"{name}: memory ran out in {cut} batches, which were halved"


def _run_model(
    plan: Plan, generation: Generation, real: RealSide, outcome: Outcome, progress: Progress
) -> None:
    spec = generation.plugin.spec
    record = _record(
        plan,
        generation.plugin.name,
        generation.id,
        real,
        generation.parameters.model_dump(mode="json"),
        dict(generation.identity["weights"]),
        batch_size=generation.batch_size,
        dtype=generation.context.dtype,
        plugin=spec.name,
        remarks=generation.remarks,
        sets=outcome.real,
        pools=plan_pools(plan, generation),
    )
    if _reuse(plan, record, outcome):
        return
    folder = plan.options.home.runs / record.run_id
    write_record(folder, record)
    pools: list[Pool] = []
    clock = Clock(outcome.clock.seconds)
    try:
        with clock.stage("generate"):
            rows = list(_make(plan, generation, outcome, progress).values())
            for name, part in plan_pools(plan, generation).items():
                made = list(_make(plan, part, outcome, progress).values())
                pool = Pool(need=plan.pools[name], generation=part, rows=made)
                _check_content(plan, record, pool.paths, [row.sha256 for row in made])
                pools.append(pool)
    except ChexGenBenchError as error:
        _fail(plan, record, error)
        raise
    table = pd.DataFrame(
        {
            "image_id": [row.id for row in rows],
            "prompt_id": [row.prompt_id for row in rows],
            "repeat": [row.repeat for row in rows],
            "seed": [row.seed for row in rows],
            "path": [row.path for row in rows],
            "sha256": [row.sha256 for row in rows],
            "width": [row.width for row in rows],
            "height": [row.height for row in rows],
            "seconds": [row.seconds for row in rows],
            "batch": [row.batch for row in rows],
            "call": [row.call for row in rows],
            "flags": [list(row.flags) for row in rows],
        }
    )
    generated = GeneratedSide(
        id=generation.id,
        rows=np.repeat(np.arange(len(plan.prompts)), plan.suite.repeats),
        table=table,
        folder=generation.folder,
    )
    summary = generation.summary()
    record = record.model_copy(
        update={
            "seconds_generating": summary.seconds,
            "images_per_second": summary.images_per_second,
            "workers": summary.workers,
            "threads": summary.threads,
            "peak_memory": summary.peak_memory,
            "n_cut_batches": summary.cut_batches,
            # Of the machine that made the images, which need not be the one that scores them.
            "hardware": {**summary.hardware, "devices": list(summary.devices)},
            "versions": {**record.versions, "generation": dict(summary.versions)},
        }
    )
    _evaluate(plan, record, generated, real, outcome, progress, pools, clock)


def _evaluate(
    plan: Plan,
    record: RunRecord,
    generated: GeneratedSide,
    real: RealSide,
    outcome: Outcome,
    progress: Progress,
    pools: Sequence[Pool] = (),
    clock: Clock | None = None,
) -> None:
    if _reuse(plan, record, outcome):
        return
    clock = clock or Clock(outcome.clock.seconds)
    folder = plan.options.home.runs / record.run_id
    try:
        record, tables = _score(plan, record, generated, real, outcome, progress, pools, clock)
    except ChexGenBenchError as error:
        _fail(plan, record, error)
        raise
    store = Store(plan.options.home.store)
    with clock.stage("write"):
        write_run(folder, record, tables)
    record = clock.noted(record)
    write_record(folder, record)
    store.ingest([folder])
    settle(plan.options.home, store, record.run_id)
    export_run(plan.options.home.results, record, tables["scores"])
    outcome.runs.append(record.run_id)


def _fail(plan: Plan, record: RunRecord, error: ChexGenBenchError) -> None:
    folder = plan.options.home.runs / record.run_id
    failed = record.model_copy(
        update={"status": "failed", "reason": str(error), "finished_at": provenance.now()}
    )
    write_record(folder, failed)
    Store(plan.options.home.store).ingest([folder])


def _reuse(plan: Plan, record: RunRecord, outcome: Outcome) -> bool:
    """Whether the run is finished already; then it is the latest one, in the store and the tables,
    even where a kill came between the run directory and those."""
    folder = plan.options.home.runs / record.run_id
    if not (folder / RECORD_NAME).exists():
        return False
    known = read_record(folder)
    if known.status != "finished":
        return False
    label = plan.options.extra_info or known.extra_info
    known = known.model_copy(update={"used_at": provenance.now(), "extra_info": label})
    relabel(folder, known)
    store = Store(plan.options.home.store)
    store.ingest([folder])
    settle(plan.options.home, store, record.run_id)
    scores = read_table(folder, "scores", known).to_pandas()
    export_run(plan.options.home.results, known, scores)
    flags = read_table(folder, "images", known).column("flags").to_pylist()
    outcome.notes.extend(_suspicions(known.model, known.remarks, flags, known.n_cut_batches))
    outcome.reused.append(record.run_id)
    return True


def _score(
    plan: Plan,
    record: RunRecord,
    generated: GeneratedSide,
    real: RealSide,
    outcome: Outcome,
    progress: Progress,
    pools: Sequence[Pool],
    clock: Clock,
) -> tuple[RunRecord, dict[str, pd.DataFrame | pa.Table]]:
    keys: list[str] = generated.table["sha256"].tolist()
    _check_content(plan, record, [generated.path(i) for i in range(len(keys))], keys)
    to_encode = [(key, generated.path(i)) for i, key in enumerate(keys)]
    with clock.stage("encode generated"):
        done = _extract(plan, to_encode, outcome, f"encode {record.model}", progress)
    if done.bad and plan.options.on_bad_image == "fail":
        listed = "\n".join(error.message for error in list(done.bad.values())[:20])
        raise UserError(
            f"{len(done.bad)} generated images of {record.model} cannot be used:\n{listed}",
            hint="Mend them (chexgenbench repair makes a model's images again), or leave them out "
            "of every score: --on-bad-image skip.",
        )
    sides = Sides(
        prompts=plan.prompts,
        real=real.keys,
        fake=[None if key in done.bad else key for key in keys],
        fake_rows=generated.rows,
    )
    steps = len(plan.masks) * sum(len(metric.encoders) for metric in plan.metrics)
    scoring = progress.stage(f"score {record.model}", steps, unit="scores")
    with clock.stage("score"), scoring as advance:
        scores, samples = score(
            sides,
            plan.metrics,
            plan.encoders,
            seed=plan.suite.seed,
            masks=plan.masks,
            basis=_basis(plan, real),
            floors=outcome.floors,
            advance=advance,
        )
    with clock.stage("score"):
        found = _tasks(plan, record, generated, real, outcome, progress, pools)
    outcome.notes += [f"{record.model}: {note}" for note in found.notes]
    record = record.model_copy(update={"remarks": [*record.remarks, *found.notes]})
    scores = [*scores, *found.scores]
    bad = [key in done.bad for key in keys]
    record = record.model_copy(
        update={
            "status": "finished",
            "finished_at": provenance.now(),
            "n_images": len(keys) - sum(bad),
            "n_skipped_images": real.skipped + outcome.lost + sum(bad),
            "n_flagged": int(generated.table["flags"].map(len).gt(0).sum()),
        }
    )
    images = generated.table.assign(
        run_id=record.run_id,
        generation_id=generated.id,
        status=["skipped" if skipped else "ok" for skipped in bad],
        reason=pd.array(
            [done.bad[key].message if key in done.bad else None for key in keys], dtype="object"
        ),
    )
    prompts = plan.prompts.table.assign(run_id=record.run_id, split=record.split)
    influences = influence_table(record.run_id, scores)
    return record, {
        "scores": _score_table(record, scores),
        "influences": influences,
        "differences": SCHEMAS["differences"].empty_table(),
        "sample_scores": pd.concat(
            [_sample_table(record, samples, generated.table), found.samples], ignore_index=True
        ),
        "prompts": prompts[list(SCHEMAS["prompts"].names)],
        "images": images,
        "pool_prompts": _pool_prompts(plan, record, pools),
        "pool_images": _pool_images(record, pools),
        "neighbours": found.neighbours,
    }


def _tasks(
    plan: Plan,
    record: RunRecord,
    generated: GeneratedSide,
    real: RealSide,
    outcome: Outcome,
    progress: Progress,
    pools: Sequence[Pool],
) -> Found:
    """What the task metrics find."""

    def encode(
        name: str, images: Sequence[tuple[str, Path]], encoder: EncoderPlan
    ) -> Mapping[str, BadImage]:
        stage = partial(progress.stage, f"encode {name}, {record.model}")
        batch = plan.options.encode_batch_size
        done = extract(
            images,
            (),
            [encoder],
            batch_size=batch,
            workplaces=plan.workplaces,
            stage=stage,
            say=progress.say,
        )
        outcome.encoded += done.encoded
        return done.bad

    own = plan.own_need
    there = {own: generated.made(plan), **{pool.need: pool.made(plan) for pool in pools}}
    names = {own: None, **{pool.need: pool.need.name for pool in pools}}
    # A user's own images have no pools.
    sources = {need: plan.source_of(need) for need in plan.needs if need.source == "model"}
    sources = {need: source for need, source in sources.items() if source in there}
    parts = {
        need: there[source]
        if need == source
        else part_of(there[source], need, plan.tables.rows(need))
        for need, source in sources.items()
    }
    return run_tasks(
        plan.tasks,
        Sets({**outcome.real, **parts}, encode, progress.say),
        {encoder.name: encoder for encoder in plan.encoders},
        run_id=record.run_id,
        model=record.model,
        seed=plan.suite.seed,
        cache=plan.options.home.cache,
        pools={need: names[source] for need, source in sources.items()},
        basis=digest([_basis(plan, real), real_identity(outcome.real)]),
        stage=progress.stage,
        say=progress.say,
        workplace=plan.workplace,
    )


def _pool_prompts(plan: Plan, record: RunRecord, pools: Sequence[Pool]) -> pd.DataFrame:
    columns = list(SCHEMAS["pool_prompts"].names)
    parts = [plan.tables.rows(pool.need).table.assign(side=pool.need.side) for pool in pools]
    if not parts:
        return pd.DataFrame(columns=columns)
    rows = pd.concat(parts, ignore_index=True).drop_duplicates(["side", "prompt_id"])
    return rows.assign(run_id=record.run_id)[columns]


def _pool_images(record: RunRecord, pools: Sequence[Pool]) -> pd.DataFrame:
    rows = [
        {
            "run_id": record.run_id,
            "pool": pool.need.name,
            "side": pool.need.side,
            "generation_id": pool.generation.id,
            "image_id": image_id(pool.need.name, row.id),
            "prompt_id": row.prompt_id,
            "repeat": row.repeat,
            "seed": row.seed,
            "path": row.path,
            "sha256": row.sha256,
            "flags": list(row.flags),
            "status": "ok",
        }
        for pool in pools
        for row in pool.rows
    ]
    return pd.DataFrame(rows, columns=list(SCHEMAS["pool_images"].names))


def _check_content(
    plan: Plan, record: RunRecord, paths: Sequence[Path], keys: Sequence[str]
) -> None:
    """Every image is the one that was made: features are found by the content's hash."""
    found = plan.hashes.sha256(paths)
    # One that cannot be read has no hash; the encoder says why.
    other = [p for p, key, now in zip(paths, keys, found, strict=True) if now and now != key]
    if other:
        raise ChexGenBenchError(
            f"{len(other)} images of {record.model} are not as they were made, such as {other[0]}.",
            hint="`chexgenbench repair` makes them again; or delete them: the same command does.",
        )


def _basis(plan: Plan, real: RealSide) -> str:
    """Identity of all that two models' scores have in common, encoder and metric aside."""
    return digest(
        {
            "prompts": plan.prompts.fingerprint(),
            "real": real.id,
            "uncertain": plan.suite.uncertain,
            "protocol": plan.suite.protocol,
            "numerics": provenance.numerics(),
        }
    )


def _score_table(record: RunRecord, scores: Sequence[Score]) -> pd.DataFrame:
    rows = [{k: v for k, v in vars(item).items() if k != "influence"} for item in scores]
    return pd.DataFrame(rows).assign(
        run_id=record.run_id,
        model=record.model,
        suite=record.suite,
        protocol=record.protocol,
        seed=record.seed,
        extra_info=record.extra_info,
        created_at=record.finished_at,
    )


def _sample_table(
    record: RunRecord, samples: Sequence[SampleScore], images: pd.DataFrame
) -> pd.DataFrame:
    columns = ["run_id", "image_id", "prompt_id", "metric", "encoder", "value"]
    parts = [
        images[["image_id", "prompt_id"]].assign(
            run_id=record.run_id, metric=item.metric, encoder=item.encoder, value=item.values
        )
        for item in samples
    ]
    return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)


def _record(
    plan: Plan,
    model: str,
    generation_id: str,
    real: RealSide,
    parameters: dict[str, Any],
    weights: dict[str, Any],
    *,
    batch_size: int | None,
    dtype: str = "float32",
    plugin: str | None = None,
    remarks: Sequence[str] = (),
    sets: Mapping[ImageNeed, SetImages] | None = None,
    pools: Mapping[str, Generation] | None = None,
) -> RunRecord:
    suite, options = plan.suite, plan.options
    encoders = {item.name: {"id": item.id, **item.identity} for item in plan.encoders}
    metrics = {
        item.plugin.name: {
            **item.plugin.identity(),
            "parameters": item.parameters.identity(),
            "encoders": list(item.encoders),
        }
        for item in plan.metrics
    }
    metrics |= {
        item.plugin.name: {**item.identity(), "encoders": list(item.encoders)}
        for item in plan.tasks
    }
    identity = {
        "suite": suite.name,
        "split": plan.split.name,
        "credentialed": plan.split.spec.credentialed,
        "model": model,
        "uncertain": suite.uncertain,
        "on_bad_image": options.on_bad_image,
        "generation": generation_id,
        "prompts": plan.prompts.fingerprint(),
        "real": real.id,
        "protocol": suite.protocol,
        "subsets": {
            name: sha256_bytes(plan.masks[name].tobytes()) for name in sorted(suite.subsets)
        },
        "reference": plan.reference.id if plan.reference else None,
        "numerics": provenance.numerics(),
        "encoders": encoders,
        "metrics": metrics,
        "seed": suite.seed,
    }
    made = {name: {"generation": pool.id} for name, pool in (pools or {}).items()}
    if plan.tasks:
        identity |= {"pools": made, "sets": real_identity(sets or {})}
        identity |= {"allow_leakage": options.allow_leakage}
    return RunRecord(
        run_id=digest(identity)[:16],
        suite=suite.name,
        model=model,
        model_plugin=plugin,
        remarks=[*remarks, *plan.remarks],
        pools=made,
        subsets=dict(suite.subsets),
        uncertain=suite.uncertain,
        reference=plan.reference.id if plan.reference else None,
        split=plan.split.name,
        protocol=suite.protocol,
        seed=suite.seed,
        status="running",
        generation_id=generation_id,
        model_parameters=parameters,
        repeats=suite.repeats,
        batch_size=batch_size,
        exact=suite.exact,
        device=plan.device,
        dtype=dtype,
        limit=suite.limit,
        n_prompts=len(plan.prompts),
        created_at=provenance.now(),
        extra_info=options.extra_info,
        credentialed=plan.split.spec.credentialed,
        images_root=str(plan.prompts.images_root) if plan.prompts.images_root else None,
        versions=provenance.versions(),
        weights=weights,
        hardware=provenance.hardware(plan.device),
        encoders=encoders,
        metrics=metrics,
        commit=provenance.commit(),
    )


def _own_side(plan: Plan, rows: NDArray[np.int64], paths: Sequence[Path]) -> GeneratedSide:
    hashes = plan.hashes.sha256(list(paths))
    ids = plan.prompts.table["prompt_id"].to_numpy()[rows]
    repeat = pd.Series(ids).groupby(ids).cumcount().to_numpy()
    table = pd.DataFrame(
        {
            "image_id": [f"{name}~{number}" for name, number in zip(ids, repeat, strict=True)],
            "prompt_id": ids,
            "repeat": repeat,
            "seed": pd.array([None] * len(ids), dtype="Int64"),
            "path": [str(path.resolve()) for path in paths],
            "sha256": [value or f"unreadable-{i}" for i, value in enumerate(hashes)],
            "width": pd.array([None] * len(ids), dtype="Int64"),
            "height": pd.array([None] * len(ids), dtype="Int64"),
            "seconds": np.nan,
            "batch": pd.array([None] * len(ids), dtype="Int64"),
            "call": pd.array([None] * len(ids), dtype="Int64"),
            "flags": [[] for _ in ids],
        }
    )
    name = digest([ids.tolist(), repeat.tolist(), table["sha256"].tolist()])[:16]
    return GeneratedSide(id=name, rows=rows, table=table, folder=Path("/"))


def _tell(plan: Plan, progress: Progress) -> None:
    prompts = plan.prompts
    text = f"split {prompts.name}: {len(prompts)} prompts"
    if prompts.duplicates:
        text += f", {prompts.duplicates} rows repeat a prompt and are left out"
    if prompts.conflicts:
        text += f" ({len(prompts.conflicts)} of them with other labels)"
    progress.say(text)
    for reason in plan.left_out:
        progress.say(f"left out: {reason}")
    for remark in plan.remarks:
        progress.say(f"note: {remark}")
    for problem in plan.registry.problems:
        progress.say(f"plugin left out: {problem.source}: {problem.reason}")
