"""`dataset export`: the images of a run, chosen and perhaps judged, as a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from chexgenbench.datasets.card import PROVENANCE, Choice, card, privacy_remark, provenance
from chexgenbench.datasets.judging import Answers, ask, count
from chexgenbench.datasets.rows import Rows, choose, judged, read_rows
from chexgenbench.datasets.write import (
    Format,
    changed_image,
    check_space,
    missing_image,
    new_folder,
    write_files,
)
from chexgenbench.errors import ChexGenBenchError, UserError, unknown_name
from chexgenbench.features import FeatureStore, HashCache, plan_encoder
from chexgenbench.features.extract import extract, text_key
from chexgenbench.files import digest, file_lock, inside, write_json, write_text
from chexgenbench.progress import Progress
from chexgenbench.registry import Plugin, Registry
from chexgenbench.store import questions
from chexgenbench.store.image_files import real_image
from chexgenbench.store.run_directory import read_table
from chexgenbench.store.store import Store
from chexgenbench.types import (
    FINDINGS,
    QUALITIES,
    UNREADABLE,
    Context,
    Judge,
    JudgeParameters,
    JudgeRequest,
    JudgeSpec,
    Sample,
)
from chexgenbench.workflow.options import Options
from chexgenbench.workflow.plan import (
    hash_weights,
    load_plugins,
    resolve_devices,
    resolve_dtype,
)
from chexgenbench.workflow.suite import parse_settings

_BATCH = 16
"""Images that a judge is given at a time; its answers are kept after each batch."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `dataset export` was told beyond where to work.

    Attributes:
        where: an SQL condition over the rows.
        pool: which images of the run; None: those that it scored.
        judge: ``NAME``, or ``NAME@ENCODER`` for one that reads features.
        qualities: what a judged image must be to stay.
        limit: images at most.
    """

    format: Format = "parquet"
    where: str | None = None
    pool: str | None = None
    judge: str | None = None
    qualities: Sequence[str] = QUALITIES[:2]
    allow_near_copies: bool = False
    keep_flagged: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class Exported:
    """What was written, and what the user must know of it."""

    images: int
    left_out: Mapping[str, int]
    remarks: Sequence[str]


def find_run(store: Store, name: str) -> str:
    """The run that `name` names: an id, the beginning of one, or a model of the leaderboard.

    Raises:
        UserError: none, or several.
    """
    found = store.query(
        "SELECT run_id, any_value(suite) AS suite FROM leaderboard WHERE model = ? "
        "GROUP BY run_id ORDER BY suite",
        [name],
    ).to_pylist()
    if len(found) == 1:
        return str(found[0]["run_id"])
    if found:
        listed = ", ".join(f"{row['run_id']} (suite {row['suite']})" for row in found)
        raise UserError(
            f"The model {name!r} has {len(found)} runs on the leaderboard.",
            hint=f"Name one of them: {listed}",
        )
    try:
        return questions.resolve_run(store, name)
    except UserError as error:
        models = store.query("SELECT DISTINCT model FROM leaderboard").column(0).to_pylist()
        error.hint = f"{error.hint or ''} Models: {', '.join(sorted(models)) or 'none'}.".strip()
        raise


def export_dataset(
    options: Options, run: str, out: Path, export: ExportOptions, progress: Progress
) -> Exported:
    """Writes the dataset `out`, whole or not at all.

    Raises:
        UserError: anything that the user can mend: an unknown run, pool, judge or column, a folder
            that is there, a disk that is too small, images that are gone, nothing left to export.
        ChexGenBenchError: the judge fails, or says too often what is no label.
    """
    for quality in export.qualities:
        if quality not in QUALITIES:
            raise unknown_name("quality", quality, QUALITIES)
    home = options.home
    registry = load_plugins(options)
    judge = _plan_judge(options, registry, export.judge) if export.judge else None
    run_id = find_run(Store(home.store), run)
    rows = read_rows(home, run_id, export.pool, include_credentialed=options.include_credentialed)
    rows = choose(
        rows,
        where=export.where,
        allow_near_copies=export.allow_near_copies,
        keep_flagged=export.keep_flagged,
    )
    _refuse_empty(rows)
    with new_folder(out) as folder:
        facts = None
        if judge is not None:
            rows, facts = _judge(options, registry, judge, rows, export, progress)
            _refuse_empty(rows)
        if export.limit is not None:
            rows = rows.keep(np.arange(len(rows)) < export.limit, "beyond --limit")
        check_space(folder, rows)
        with progress.stage(f"export {rows.record.model}", len(rows)) as advance:
            changed = write_files(folder, rows, export.format, advance)
        chosen = Choice(
            where=export.where,
            allow_near_copies=export.allow_near_copies,
            keep_flagged=export.keep_flagged,
            limit=export.limit,
            qualities=export.qualities if judge else (),
            judge=facts,
            changed=changed,
            licences=_licences(registry, rows),
        )
        write_json(folder / PROVENANCE, provenance(rows, chosen, export.format))
        write_text(folder / "README.md", card(rows, chosen, export.format))
    remarks = [privacy_remark(rows)]
    if not rows.prompts:
        remarks.append(
            "The split is credentialed: prompts and their ids were left out. "
            "--include-credentialed takes them along."
        )
    if changed:
        remarks.append(f"Text and other metadata were taken out of {changed} image files.")
    if facts:
        said = ", ".join(f"{number} {name}" for name, number in facts["counts"].items())
        remarks.append(f"The judge {facts['name']} said: {said}.")
        if facts.get("not_judged"):
            remarks.append(f"{facts['not_judged']}.")
    return Exported(len(rows), rows.left_out, remarks)


def _refuse_empty(rows: Rows) -> None:
    if not len(rows):
        gone = "; ".join(f"{number} {why}" for why, number in rows.left_out.items())
        raise UserError(
            f"No image of run {rows.record.run_id} is left to export: {gone or 'it has none'}.",
            hint="Loosen the condition; near-copies are kept with --allow-near-copies.",
        )


def _licences(registry: Registry, rows: Rows) -> tuple[str, str]:
    model = registry.models.get(rows.record.model_plugin or "")
    split = registry.splits.get(rows.record.split)
    unknown = "not stated"
    return (model.spec.licence if model else unknown, split.spec.licence if split else unknown)


# --- the judge ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JudgePlan:
    """A judge with parsed parameters and hashed weights.

    Attributes:
        encoder: the encoder that the user named for its features, if one.
    """

    plugin: Plugin[JudgeSpec]
    parameters: JudgeParameters
    context: Context
    weights: Mapping[str, str]
    encoder: str | None

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, features of real images aside."""
        parameters = self.parameters.identity()
        del parameters["most_unreadable"]  # it changes no answer
        return {
            "judge": self.plugin.identity(),
            "parameters": parameters,
            "weights": dict(self.weights),
            "device": self.context.device.partition(":")[0],
            "dtype": self.context.dtype,
        }


def _plan_judge(options: Options, registry: Registry, text: str) -> JudgePlan:
    name, _, encoder = text.partition("@")
    plugin: Plugin[JudgeSpec] = registry.find("judges", name)
    values = _settings(options, registry, plugin)
    parameters = cast("JudgeParameters", plugin.parse(values.get(name, {})))
    device = resolve_devices(options.device)[0]
    context = Context(
        device=device,
        dtype=resolve_dtype(options.dtype, device, "bfloat16"),
        home=options.home.root,
        cache=options.home.cache,
        allow_pickle=options.allow_pickle,
    )
    hashes = HashCache(options.home.hashes)
    plugin.load()
    return JudgePlan(
        plugin=plugin,
        parameters=parameters,
        context=context,
        weights=hash_weights(plugin, parameters, context, hashes),
        encoder=encoder or None,
    )


def _settings(
    options: Options, registry: Registry, judge: Plugin[JudgeSpec]
) -> dict[str, dict[str, Any]]:
    """``--set`` of the judge, and of the encoder whose text side it needs."""
    plugins: dict[str, Plugin[Any]] = {**registry.encoders, judge.name: judge}
    has = {name: set(plugin.spec.parameters.model_fields) for name, plugin in plugins.items()}
    kinds = dict.fromkeys(registry.encoders, "encoder") | {judge.name: "model"}
    return parse_settings(list(options.settings), kinds, has, {name: name for name in plugins})


def _judge(
    options: Options,
    registry: Registry,
    plan: JudgePlan,
    rows: Rows,
    export: ExportOptions,
    progress: Progress,
) -> tuple[Rows, dict[str, Any]]:
    """The rows of the wanted qualities, and the facts of the judge."""
    identity: dict[str, Any] = plan.identity()
    taken: _Features | None = None
    if plan.plugin.spec.features:
        taken = _features(options, registry, plan, rows, progress)
        identity |= {"real": taken.id}
    folder = options.home.cache / "judgements" / f"{plan.plugin.name}-{digest(identity)[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Judge] = []

    def create() -> Judge:
        if not made:
            judge: Judge = plan.plugin.create(plan.parameters, plan.context)
            if taken is not None:
                real = taken.real
                plan.plugin.call("cannot learn", lambda: judge.learn(real))
            made.append(judge)
        return made[0]

    requests = _requests(rows, taken)
    hashes = rows.table["sha256"].tolist()
    contents = HashCache(options.home.hashes)
    said: list[str] = []
    # One process at a time: two would ask the same questions.
    with (
        file_lock(folder / "judge.lock"),
        progress.stage(f"judge {rows.record.model}", len(rows)) as advance,
    ):
        answers = Answers(folder)
        while len(said) < len(rows) and not _enough(said, export):
            part = slice(len(said), len(said) + _BATCH)
            paths = [request.path for request in requests[part]]
            for path, kept, found in zip(paths, hashes[part], contents.sha256(paths), strict=True):
                if found != kept:  # an answer is kept by the content that it is about
                    raise missing_image(path) if found is None else changed_image(path)
            ask_part = partial(ask, create, requests[part], hashes[part], answers)
            said += plan.plugin.call("cannot judge", ask_part)
            advance(len(said) - part.start)
    counts = count(said)
    _check_readable(plan, counts, len(said))
    unasked = len(rows) - len(said)
    asked = rows.keep(np.arange(len(rows)) < len(said), "beyond --limit") if unasked else rows
    facts = {"name": plan.plugin.name, "counts": counts, **plan.identity()}
    if taken is not None:
        facts["encoder"] = taken.encoder
        if taken.text is None:
            facts["not_judged"] = (
                f"Whether images answer their prompts was not judged: the encoder {taken.encoder} "
                "reads no text"
            )
    return judged(asked, said, export.qualities), facts


def _enough(said: Sequence[str], export: ExportOptions) -> bool:
    kept = sum(answer in export.qualities for answer in said)
    return export.limit is not None and kept >= export.limit


def _check_readable(plan: JudgePlan, counts: Mapping[str, int], asked: int) -> None:
    unreadable = counts.get(UNREADABLE, 0)
    if unreadable > plan.parameters.most_unreadable * asked:
        raise ChexGenBenchError(
            f"The judge {plan.plugin.name!r} gave no label for {unreadable} of {asked} images, "
            f"more than the share of {plan.parameters.most_unreadable:g} that may be so.",
            hint="All answers are kept. Try another model or mode (chexgenbench judges show "
            f"{plan.plugin.name}), or allow more: --set {plan.plugin.name}.most_unreadable=...",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Features:
    """Features of real and generated images, as the run left them in the cache.

    Attributes:
        id: hash of all that `real` depends on.
        made, text: float32 [n, d] of the rows' images and prompts; no text where the encoder
            reads none.
    """

    encoder: str
    id: str
    real: Sample
    made: Any
    text: Any


def _features(
    options: Options, registry: Registry, plan: JudgePlan, rows: Rows, progress: Progress
) -> _Features:
    record, home = rows.record, options.home
    if not record.encoders:
        raise UserError(f"Run {record.run_id} used no encoder, whose features the judge reads.")
    name = plan.encoder or next(iter(record.encoders))
    if name not in record.encoders:
        raise unknown_name(f"encoder of run {record.run_id}", name, record.encoders)
    facts = record.encoders[name]
    folder = home.features / f"{name}-{facts['id']}"
    images = FeatureStore(folder / "images", facts["outputs"])
    images.refresh()

    table = read_table(inside(home.runs, record.run_id), "prompts", record).to_pandas()
    found: dict[int, Path] = {}
    for row, path in enumerate(table["image_path"]):
        with suppress(ValueError):  # rows that the run left out, without an image or with a bad one
            found[row] = real_image(record.images_root, path)
    table = table.iloc[list(found)]
    keys = HashCache(home.hashes).sha256(list(found.values()))
    made = rows.table["sha256"].tolist()
    images.without([*made, *(key for key in keys if key is not None)])
    there = np.array([key is not None and key in images for key in keys], np.bool_)
    table, kept = table[there], [key for key in keys if key is not None and key in images]
    asked = rows.table["prompt"].map(text_key).tolist()
    known = table["prompt"].map(text_key).tolist()
    if not kept or any(key not in images for key in made):
        raise UserError(
            f"The features of run {record.run_id} under {name!r} are not in the cache.",
            hint="Name an encoder that saw all of these images with --judge NAME@ENCODER, or "
            "repeat the run's command with --new, which encodes them again.",
        )
    texts = None
    if registry.find("encoders", name).spec.text:
        prompts_of = [*table["prompt"], *rows.table["prompt"]]
        places = _settings(options, registry, plan.plugin).get(name, {})
        texts = _texts(options, registry, rows, name, places, prompts_of, progress)
    prompts, patients = _codes(table["prompt_id"]), _codes(table["patient_id"])
    alone = table["patient_id"].isna().to_numpy()
    patients[alone] = patients.max(initial=0) + 1 + np.arange(int(alone.sum()))
    real = Sample(
        outputs=images.read(kept),
        text=texts.read(known)["features"] if texts else None,
        prompts=prompts,
        patients=patients,
    )
    return _Features(
        encoder=name,
        id=digest([facts["id"], kept, known if texts else [], patients.tolist()]),
        real=real,
        made=images.read(made)["features"],
        text=texts.read(asked)["features"] if texts else None,
    )


def _texts(
    options: Options,
    registry: Registry,
    rows: Rows,
    name: str,
    places: Mapping[str, Any],
    prompts: Sequence[str],
    progress: Progress,
) -> FeatureStore:
    """The features of the prompts under an encoder of the run; those not stored yet are made: a run
    encodes its own prompts only, and those only where a metric reads them.

    Args:
        places: parameters of the encoder as the user set them; a run does not keep where its
            weights lie.

    Raises:
        UserError: some are to be made, and the encoder here is not the run's.
    """
    facts = rows.record.encoders[name]
    width = {"features": facts["outputs"]["features"]}
    texts = FeatureStore(options.home.features / f"{name}-{facts['id']}" / "texts", width)
    texts.refresh()
    lacking = {text_key(prompt): prompt for prompt in prompts}
    lacking = {key: lacking[key] for key in texts.without(lacking)}
    if not lacking:
        return texts
    plugin = registry.find("encoders", name)
    parameters = plugin.parse({**facts["parameters"], **places})
    context = Context(
        device=resolve_devices(options.device)[0],
        home=options.home.root,
        cache=options.home.cache,
        allow_pickle=options.allow_pickle,
    )
    hashes = HashCache(options.home.hashes)
    weights = hash_weights(plugin, parameters, context, hashes)
    encoder = plan_encoder(plugin, parameters, context, root=options.home.features, weights=weights)
    if encoder.id != facts["id"]:
        raise UserError(
            f"{len(lacking)} prompts are not encoded by {name!r}, and the encoder here is not that "
            f"of run {rows.record.run_id}, which ran on {facts['device']}: its device, weights or "
            "code are others.",
            hint=f"Choose the run's own with --device and --set {name}.PARAMETER=..., or name "
            "another encoder of the run: --judge NAME@ENCODER.",
        )
    extract(
        (),
        list(lacking.values()),
        [encoder],
        batch_size=options.encode_batch_size,
        text_encoders=frozenset([name]),
        text_stage=partial(progress.stage, "encode prompts", unit="prompts"),
    )
    texts.refresh()
    return texts


def _codes(column: Any) -> Any:
    _, codes = np.unique(column.fillna("").to_numpy(dtype=np.str_), return_inverse=True)
    return codes.astype(np.int64)


def _requests(rows: Rows, taken: _Features | None) -> list[JudgeRequest]:
    labels = [
        {name: None if value != value else value for name, value in zip(FINDINGS, row, strict=True)}
        for row in rows.table[list(FINDINGS)].to_numpy(np.float64, na_value=np.nan).tolist()
    ]
    requests = [
        JudgeRequest(path=path, prompt=prompt, labels=values)
        for path, prompt, values in zip(rows.paths, rows.table["prompt"], labels, strict=True)
    ]
    if taken is None:
        return requests
    return [
        dataclasses.replace(
            request,
            features=taken.made[i],
            text=None if taken.text is None else taken.text[i],
        )
        for i, request in enumerate(requests)
    ]
