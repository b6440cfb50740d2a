"""Everything that is decided and checked before anything expensive happens."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench.downloads import size_text
from chexgenbench.errors import ChexGenBenchError, UserError, unknown_name
from chexgenbench.executors import ModelSource, Workplace
from chexgenbench.features import EncoderPlan, HashCache, plan_encoder
from chexgenbench.files import digest
from chexgenbench.generation import (
    Generation,
    choose_batch_size,
    make_requests,
    plan_generation,
)
from chexgenbench.home import Home
from chexgenbench.registry import Plugin, Registry, load_registry, split_model
from chexgenbench.scoring import MetricPlan, subset_masks
from chexgenbench.splits.prompts import PromptTable, read_prompts
from chexgenbench.store.store import Store
from chexgenbench.types import (
    Context,
    EncoderSpec,
    ImageNeed,
    ModelSpec,
    Split,
    SplitSource,
    SplitSpec,
)
from chexgenbench.workflow.options import Options
from chexgenbench.workflow.places import check_executors, check_places, place_of, workplace_of
from chexgenbench.workflow.reference import Reference
from chexgenbench.workflow.suite import Suite, parse_settings, read_suite
from chexgenbench.workflow.tasks import (
    Tables,
    TaskPlan,
    check_tasks,
    compares_sides,
    covers,
    fewest,
    find_leakage,
    plan_task,
    refuse_leakage,
)

_MANY_FILES = 64
"""Above this, weight files (a folder of images, say) are recorded by one hash of all."""

DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked plan: plugins found, parameters parsed, tables read, weights hashed.

    Attributes:
        models: the suite's models by label, none where the user brings images.
        whole: the split's test table; `prompts` are the rows of it that are used.
        reference: what stands for the real images, if not the images.
        tasks: the task metrics; `metrics` has the others.
        remarks: what was noticed about the rows that they work on.
        left_out: metrics of the suite that no chosen encoder can serve, with why.
    """

    options: Options
    suite: Suite
    registry: Registry
    models: Mapping[str, Plugin[ModelSpec]]
    split: Plugin[SplitSpec]
    whole: PromptTable
    prompts: PromptTable
    training: PromptTable | None
    encoders: Sequence[EncoderPlan]
    metrics: Sequence[MetricPlan]
    devices: Sequence[str]
    tasks: Sequence[TaskPlan] = ()
    remarks: Sequence[str] = ()
    left_out: Sequence[str] = ()
    reference: Reference | None = None

    @cached_property
    def hashes(self) -> HashCache:
        return HashCache(self.options.home.hashes)

    @cached_property
    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """The subsets of `prompts`."""
        return subset_masks(self.prompts, self.suite.subsets)

    @property
    def tables(self) -> Tables:
        """The rows that task metrics choose from."""
        return Tables(self.prompts, self.training, self.suite.seed)

    @property
    def needs(self) -> list[ImageNeed]:
        """The distinct sets of images that task metrics work on."""
        return list(dict.fromkeys(need for task in self.tasks for need in task.needs.values()))

    @property
    def own_need(self) -> ImageNeed:
        """The need that the run's own images answer."""
        return ImageNeed(side="test", source="model", repeats=self.suite.repeats)

    @property
    def pools(self) -> dict[str, ImageNeed]:
        """The sets beyond its own images that a model must make, by name."""
        made = fewest([need for need in self.needs if need.source == "model"])
        return {need.name: need for need in made if not covers(self.own_need, need)}

    def source_of(self, need: ImageNeed) -> ImageNeed:
        """What the images of a need, made by the model, are taken from: own images or a pool."""
        sources = (self.own_need, *self.pools.values())
        return next(source for source in sources if covers(source, need))

    @property
    def device(self) -> str:
        """The device that encodes, and the first that generates."""
        return self.devices[0]

    def workplace(self, plugin: Plugin[Any]) -> Workplace | None:
        """Where an encoder or a task metric works; None where that is this process."""
        return workplace_of(self.options, plugin, plugin_source(self.options), self.devices)

    @property
    def workplaces(self) -> dict[str, Workplace]:
        """Where encoders work that do not work in this process, by name."""
        found = {item.name: self.workplace(item.plugin) for item in self.encoders}
        return {name: place for name, place in found.items() if place is not None}

    @property
    def text_encoders(self) -> frozenset[str]:
        """The encoders whose text side some metric needs."""
        return frozenset(
            name for metric in self.metrics if metric.plugin.spec.text for name in metric.encoders
        )


def load_plugins(options: Options) -> Registry:
    """All plugins: built in, installed, in the user's folder, and named on the command line."""
    source = plugin_source(options)
    return load_registry(source.files, source.folder, options.home.root)


def plugin_source(options: Options) -> ModelSource:
    """Where plugins come from beside those that are built in or installed."""
    return ModelSource(files=options.plugins, folder=Home.user_folder() / "plugins")


def make_plan(options: Options, *, models: bool = True, metrics: bool = True) -> Plan:
    """Reads and checks all that a run needs, models aside (see `plan_models`).

    Args:
        models: whether the suite's models are looked up; scoring a user's own images needs none.
        metrics: whether its metrics are; encoding needs none.

    Raises:
        UserError: anything that the user can mend, before anything expensive.
    """
    registry = load_plugins(options)
    suite = read_suite(options.suite, options.home, options.changes)
    split = registry.find("splits", suite.split)
    chosen: dict[str, Plugin[Any]] = {suite.split: split}
    chosen_models = find_models(registry, suite.models) if models else {}
    for label in chosen_models:
        if label in (suite.split, *suite.encoders, *(m.partition("@")[0] for m in suite.metrics)):
            raise UserError(
                f"The label {label!r} is the name of the split, an encoder or a metric of the run.",
                hint="Choose another.",
            )
    chosen |= chosen_models
    chosen |= {name: registry.find("encoders", name) for name in suite.encoders}
    left_out: list[str] = []
    metric_encoders = _metric_encoders(options, suite, registry, left_out) if metrics else {}
    chosen |= {name: registry.find("metrics", name) for name in metric_encoders}
    task_names = [name for name in metric_encoders if registry.metrics[name].spec.metric == "task"]
    check_executors(options.executors, [*chosen_models, *suite.encoders, *task_names])
    values = parameter_values(options, suite, chosen)

    check_folders(options.home)
    Store(options.home.store).check()
    devices = resolve_devices(options.device, here=not options.elsewhere)
    context = Context(
        device=devices[0],
        home=options.home.root,
        cache=options.home.cache,
        allow_pickle=options.allow_pickle,
    )
    opened = _open_split(options, suite, split, values[suite.split], context)
    split, whole, training = opened.split, opened.test, opened.training

    hashes = HashCache(options.home.hashes)
    encoders: list[EncoderPlan] = []
    faults: list[UserError] = []
    for name in suite.encoders:
        plugin = registry.encoders[name]
        try:
            encoders.append(_plan_encoder(plugin, values[name], context, options.home, hashes))
        except UserError as error:
            faults.append(error)
    _raise_all(faults)
    metric_plans: list[MetricPlan] = []
    tasks: list[TaskPlan] = []
    for name, used in metric_encoders.items():
        metric = registry.metrics[name]
        own = metric.parse(values[name])
        if metric.spec.metric == "task":
            weights = hash_weights(metric, own, context, hashes)
            here = place_of(options, metric).here
            task = plan_task(metric, own, context, used, weights, repeats=suite.repeats, here=here)
            files = tuple(weight_paths(metric, own, context).values())
            tasks.append(replace(task, files=files))
        else:
            metric.load()
            metric_plans.append(MetricPlan(plugin=metric, parameters=own, encoders=tuple(used)))
    _check_score_names(metric_plans, tasks)
    prompts = whole if suite.limit is None else whole.limit(suite.limit)
    plan = Plan(
        options=options,
        suite=suite,
        registry=registry,
        models=chosen_models,
        split=split,
        whole=whole,
        prompts=prompts,
        training=training,
        encoders=encoders,
        metrics=metric_plans,
        devices=devices,
        tasks=tasks,
        left_out=left_out,
        reference=Reference.open(options.reference) if options.reference else None,
    )
    _ = plan.masks  # a condition that cannot be used fails here
    if plan.reference is not None:
        plan.reference.check(plan)
    plan = _without_images(plan)
    users: list[Plugin[Any]] = [*chosen_models.values(), *(item.plugin for item in encoders)]
    users += [item.plugin for item in plan.tasks]
    check_places(options, users, devices)
    found = find_leakage(plan.tables) if compares_sides(plan.tasks) else []
    remarks = refuse_leakage(found, plan.split.name, allow=options.allow_leakage)
    remarks = [*opened.notes, *remarks, *check_tasks(plan.tasks, plan.tables)]
    return replace(plan, remarks=remarks)


def _without_images(plan: Plan) -> Plan:
    """The plan without task metrics whose real images the split does not have, so that a model
    makes nothing for them.

    Raises:
        UserError: the user named such a metric.
    """
    kept: list[TaskPlan] = []
    faults: list[UserError] = []
    for task in plan.tasks:
        lacking = dict.fromkeys(
            need.side
            for need in task.needs.values()
            if need.source == "real" and not plan.tables.rows(need).has_image().any()
        )
        if not lacking:
            kept.append(task)
            continue
        sides = " and the ".join(lacking)
        faults.append(
            UserError(
                f"The metric {task.plugin.name!r} needs real images, and the {sides} side of the "
                f"split {plan.split.name!r} has none.",
                hint="Name their folder: --images-root FOLDER; or leave the metric out.",
            )
        )
    if faults and plan.options.changes.get("metrics") is not None:
        _raise_all(faults)
    left_out = [*plan.left_out, *(fault.message for fault in faults)]
    return replace(plan, tasks=kept, left_out=left_out)


def find_models(registry: Registry, texts: Sequence[str]) -> dict[str, Plugin[ModelSpec]]:
    """Label to model of what ``--model`` or a suite names.

    Raises:
        UserError: an unknown model, or two with one label.
    """
    found: dict[str, Plugin[ModelSpec]] = {}
    for text in texts:
        plugin = registry.find("models", text)
        if plugin.spec.expand is not None and split_model(text)[2] is None:
            raise UserError(
                f"The model {plugin.spec.name!r} needs a text after a colon.",
                hint=f"{plugin.spec.summary}. See: chexgenbench models show {plugin.spec.name}",
            )
        if plugin.name != plugin.spec.name and plugin.name in registry.models:
            raise UserError(
                f"The label {plugin.name!r} is the name of another model.", hint="Choose another."
            )
        if plugin.name in found:
            raise UserError(
                f"Two models would both be called {plugin.name!r} in the results.",
                hint=f"Give one a label: --model LABEL={text.rpartition('=')[2]}",
            )
        found[plugin.name] = plugin
    return found


def plan_models(plan: Plan, failed: dict[str, ChexGenBenchError]) -> list[Generation]:
    """The generation of each model of the suite: parameters parsed, weights there and hashed.

    A batch size that is to be measured and was not yet (`measure_batches`) is the model's own.

    Args:
        failed: takes the models whose own code fails; the others go on without them.

    Raises:
        UserError: a parameter or a weight file that is wrong or missing; all models' faults at
            once.
    """
    suite, options = plan.suite, plan.options
    chosen = plan.models
    values = parameter_values(
        options,
        suite,
        {**chosen, suite.split: plan.split, **others(plan)},
    )
    generations: list[Generation] = []
    pools: list[Generation] = []
    faults: list[UserError] = []
    for name, plugin in chosen.items():
        try:
            generation = _plan_model(plan, plugin, values[name])
            pools.extend(plan_pools(plan, generation).values())
            generations.append(generation)
        except UserError as error:
            faults.append(error)
        except ChexGenBenchError as error:
            failed[name] = error
    _raise_all(faults)
    _check_disk(options.home, [*generations, *pools])
    return [_measured(plan, item, None) for item in generations]


def plan_pools(plan: Plan, generation: Generation) -> dict[str, Generation]:
    """The further generations that task metrics ask of a model, by the name of the pool.

    They are made as its own images are: with the same parameters, batch size and seed of the run.

    Raises:
        UserError: the model cannot answer their prompts.
    """
    pools: dict[str, Generation] = {}
    plugin, context = generation.plugin, generation.context
    for name, need in plan.pools.items():
        requests = make_requests(
            plan.tables.rows(need), seed=plan.suite.seed, repeats=need.repeats or 1, size=None
        )
        found = plugin.load(here=place_of(plan.options, plugin).here)
        remarks = plugin.call(
            "cannot check its requests",
            partial(found.check, generation.parameters, context, requests),
        )
        pool = plan_generation(
            plugin,
            generation.parameters,
            context,
            requests,
            batch_size=generation.batch_size,
            exact=plan.suite.exact,
            root=plan.options.home.generations,
            weights=generation.identity["weights"],
            nonce=generation.identity.get("nonce"),
        )
        pools[name] = replace(pool, remarks=tuple(remarks))
    return pools


def measure_batches(
    plan: Plan,
    generations: Sequence[Generation],
    failed: dict[str, ChexGenBenchError],
    say: Callable[[str], None],
) -> list[Generation]:
    """The generations with the batch sizes that are fastest here, where the user asked for that.

    A model whose size was not measured before is loaded for it.

    Args:
        failed: takes the models that fail; the others go on without them.
        say: told a line about each measurement.
    """
    measured: list[Generation] = []
    for item in generations:
        try:
            measured.append(_measured(plan, item, say))
        except ChexGenBenchError as error:
            failed[item.plugin.name] = error
    return measured


def _measured(plan: Plan, generation: Generation, say: Callable[[str], None] | None) -> Generation:
    """The generation with the batch size that is fastest here; None of `say`: if it is known."""
    plugin, context = generation.plugin, generation.context
    if plan.suite.batch_size != "auto" or plan.suite.exact:
        return generation
    if not place_of(plan.options, plugin).here:
        if say is not None:
            say(f"{plugin.name} runs in an environment of its own: its own batch size is taken")
        return generation
    size = choose_batch_size(
        plugin,
        generation.parameters,
        context,
        generation.requests,
        root=plan.options.home.generations,
        weights=generation.identity["weights"],
        say=say,
    )
    if size is None:
        return generation
    again = plan_generation(
        plugin,
        generation.parameters,
        context,
        generation.requests,
        batch_size=size,
        exact=False,
        root=plan.options.home.generations,
        weights=generation.identity["weights"],
        nonce=generation.identity.get("nonce"),
    )
    return replace(again, remarks=generation.remarks)


def _raise_all(faults: Sequence[UserError]) -> None:
    """All faults of a kind at once, so that the user mends them in one go."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise UserError(
            "\n".join(error.message for error in faults),
            hint="\n".join(error.hint for error in faults if error.hint) or None,
        )


def others(plan: Plan) -> dict[str, Plugin[Any]]:
    """The plugins besides models and split that parameters are for: encoders and metrics."""
    found: dict[str, Plugin[Any]] = {item.name: item.plugin for item in plan.encoders}
    found |= {item.plugin.name: item.plugin for item in plan.metrics}
    return found | {item.plugin.name: item.plugin for item in plan.tasks}


def _plan_model(plan: Plan, plugin: Plugin[ModelSpec], values: Mapping[str, Any]) -> Generation:
    suite, options = plan.suite, plan.options
    parameters = plugin.parse(values)
    own = getattr(parameters, "dtype", "auto")
    context = Context(
        device=plan.device,
        dtype=resolve_dtype(
            options.dtype if own == "auto" else own, plan.device, plugin.spec.gpu_dtype
        ),
        home=options.home.root,
        cache=options.home.cache,
        allow_pickle=options.allow_pickle,
        # A model that does not say so is not given it: its identity would lack it.
        training=plan.training if plugin.spec.uses_training else None,
    )
    requests = make_requests(plan.prompts, seed=suite.seed, repeats=suite.repeats, size=None)
    weights = hash_weights(plugin, parameters, context, plan.hashes)
    found = plugin.load(here=place_of(options, plugin).here)
    remarks = plugin.call(
        "cannot check its requests", lambda: tuple(found.check(parameters, context, requests))
    )
    generation = plan_generation(
        plugin,
        parameters,
        context,
        requests,
        batch_size=None if suite.batch_size == "auto" else suite.batch_size,
        exact=suite.exact,
        root=options.home.generations,
        weights=weights,
        nonce=os.urandom(8).hex() if options.new else None,
    )
    return replace(generation, remarks=remarks)


def weight_paths(plugin: Plugin[Any], parameters: Any, context: Context) -> dict[str, Path]:
    """Name to path of each weight file of a model or encoder; see `Model.weights`."""
    found = plugin.load(here=False)
    files = plugin.call("cannot name its weights", lambda: found.weights(parameters, context))
    if isinstance(files, Mapping):
        return {str(name): Path(path) for name, path in files.items()}
    # Links are kept: the hub's cache names its files by links, and a result must not depend on
    # whether weights lie there or in a folder.
    paths = [Path(os.path.abspath(path)) for path in files]  # noqa: PTH100
    if not paths:
        return {}
    base = Path(os.path.commonpath([path.parent for path in paths]))
    return {path.relative_to(base).as_posix(): path for path in paths}


def hash_weights(
    plugin: Plugin[Any], parameters: Any, context: Context, hashes: HashCache
) -> dict[str, str]:
    """Name to SHA-256 of each weight file; many of them stand as one hash of all."""
    paths = weight_paths(plugin, parameters, context)
    result: dict[str, str] = {}
    for (name, path), value in zip(paths.items(), hashes.sha256(list(paths.values())), strict=True):
        if value is None:
            raise UserError(f"The weights of {plugin.name!r} cannot be read: {path}.")
        result[name] = value
    if len(result) > _MANY_FILES:
        return {f"{len(result)} files": digest(result)}
    return dict(sorted(result.items()))


def resolve_devices(text: str, *, here: bool = True) -> tuple[str, ...]:
    """``auto`` to all GPUs or the CPU; names separated by commas are checked.

    Args:
        here: whether devices that are named must be of this machine.

    Raises:
        UserError: no such device here, or devices of several kinds, whose images would differ.
    """
    import torch

    if text == "auto":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return tuple(f"cuda:{i}" for i in range(count)) or ("cpu",)
    devices = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for device in devices:
        try:
            kind = torch.device(device)  # a name that torch knows, wherever the device is
            if here:
                torch.empty(1, device=kind)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"The device {device!r} is not there: {str(error).splitlines()[0]}",
                hint="Use --device cpu, or auto.",
            ) from error
    if len({device.partition(":")[0] for device in devices}) != 1:
        raise UserError(
            f"--device {text!r} names no device, or devices of several kinds.",
            hint="Example: --device cuda:0,cuda:1",
        )
    return devices


def resolve_dtype(dtype: str, device: str, on_gpu: str = "float16") -> str:
    """``auto`` to `on_gpu` on a GPU and to single on a CPU, where half is slower."""
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    if dtype == "auto":
        return "float32" if device.startswith("cpu") else on_gpu
    return dtype


def check_folders(home: Home) -> None:
    """Each folder that results go to can be written.

    Raises:
        UserError: one cannot.
    """
    hint = "Mend its permissions, or work elsewhere: --home FOLDER (the cache: CHEXGENBENCH_CACHE)."
    for folder in (home.results, home.runs, home.cache):
        check_folder(folder, hint)


def check_folder(folder: Path, hint: str) -> None:
    """Makes the folder where it is missing, and a file in it that goes again.

    Raises:
        UserError: that fails; with the hint.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be written: {error.strerror or error}.", hint=hint
        ) from error


def _check_disk(home: Home, generations: Sequence[Generation]) -> None:
    needed = sum(estimate_bytes(item) for item in generations)
    free = shutil.disk_usage(home.runs).free
    if needed > free:
        raise UserError(
            f"The disk of {home.runs} has {size_text(free)} free and the images need up to "
            f"{size_text(needed)}.",
            hint="Free some, or work elsewhere: --home FOLDER.",
        )


def estimate_bytes(generation: Generation) -> int:
    """An upper bound of what the missing images will take: three bytes a pixel, uncompressed."""
    size = generation.plugin.spec.image_size or 512
    return (len(generation.requests) - generation.made()) * 3 * size * size


def _metric_encoders(
    options: Options, suite: Suite, registry: Registry, left_out: list[str]
) -> dict[str, list[str]]:
    """Metric to the encoders it is taken on.

    Args:
        left_out: takes the suite's metrics that the encoders which the user chose cannot serve.

    Raises:
        UserError: an unknown name, or a metric that the user named and no chosen encoder can serve.
    """
    result: dict[str, list[str]] = {}
    for entry in suite.metrics:
        name, at, wanted = entry.partition("@")
        spec = registry.find("metrics", name).spec
        if at and wanted not in suite.encoders:
            raise unknown_name(f"chosen encoder (in {entry!r})", wanted, suite.encoders)
        if spec.output is None:
            if at:
                raise UserError(f"The metric {name!r} takes no encoder (in {entry!r}).")
            result.setdefault(name, [])
            continue
        fitting = [
            encoder
            for encoder in ([wanted] if at else suite.encoders)
            if spec.output in registry.find("encoders", encoder).spec.outputs
            and (registry.encoders[encoder].spec.text or not spec.text)
        ]
        if not fitting and at:
            need = "a text side" if spec.text else f"the output {spec.output!r}"
            raise UserError(f"The metric {name!r} needs {need}, which {wanted!r} has not.")
        known = result.setdefault(name, [])
        known.extend(encoder for encoder in fitting if encoder not in known)
    faults: list[UserError] = []
    for name in [name for name, encoders in result.items() if not encoders]:
        spec = registry.metrics[name].spec
        if spec.output is None:
            continue
        del result[name]
        need = "an encoder with a text side" if spec.text else f"an encoder with {spec.output!r}"
        fault = f"The metric {name!r} needs {need}; {', '.join(suite.encoders)} cannot serve."
        hint = "Choose another encoder with --encoder, or leave the metric out."
        faults.append(UserError(fault, hint=hint))
    # The suite's metrics were chosen for the suite's encoders; what the user names must be taken.
    own = options.changes.get("metrics") is not None or options.changes.get("encoders") is None
    if faults and (own or not result):
        _raise_all(faults)
    left_out.extend(fault.message for fault in faults)
    return result


def _check_score_names(metrics: Sequence[MetricPlan], tasks: Sequence[TaskPlan]) -> None:
    """One name is one number: in tables, on the leaderboard and in differences."""
    owners: dict[tuple[str, str], str] = {}
    chosen: list[MetricPlan | TaskPlan] = [*metrics, *tasks]
    for metric in chosen:
        for encoder in metric.encoders:
            for declared in metric.plugin.spec.scores:
                owner = owners.setdefault((encoder, declared.name), metric.plugin.name)
                if owner != metric.plugin.name:
                    raise UserError(
                        f"The metrics {owner!r} and {metric.plugin.name!r} both report the score "
                        f"{declared.name!r} on {encoder!r}.",
                        hint="Leave one of them out, or give its score another name.",
                    )


def parameter_values(
    options: Options, suite: Suite, chosen: Mapping[str, Plugin[Any]]
) -> dict[str, dict[str, Any]]:
    """Plugin name to parameter values, of the protocol, then the suite, then ``--set``."""
    names = {name: plugin.spec.name for name, plugin in chosen.items()}
    labels = set(chosen) - set(names.values())
    # What the suite names and this command leaves out.
    known = {
        part
        for text in (*suite.models, *suite.listed)
        for part in split_model(text.partition("@")[0])[:2]
        if part
    }
    kinds = {name: plugin.spec.kind for name, plugin in chosen.items()}
    has = {name: set(plugin.spec.parameters.model_fields) for name, plugin in chosen.items()}
    values = {
        name: dict(getattr(plugin.spec, "protocols", {}).get(suite.protocol, {}))
        for name, plugin in chosen.items()
    }
    # What is said of a plugin holds for all its labels; what is said of a label comes after it.
    for name, given in sorted(suite.parameters.items(), key=lambda item: item[0] in labels):
        targets = [label for label in chosen if name in (label, names[label])]
        if not targets and name not in known:
            raise unknown_name("chosen plugin (in the suite's parameters)", name, chosen)
        for label in targets:
            values[label] |= given
    for name, given in parse_settings(list(options.settings), kinds, has, names).items():
        values[name] |= given
    for name, plugin in chosen.items():
        plugin.parse(values[name])
    return values


def _plan_encoder(
    plugin: Plugin[EncoderSpec],
    values: Mapping[str, Any],
    context: Context,
    home: Home,
    hashes: HashCache,
) -> EncoderPlan:
    parameters = plugin.parse(values)
    return plan_encoder(
        plugin,
        parameters,
        context,
        root=home.features,
        weights=hash_weights(plugin, parameters, context, hashes),
        files=list(weight_paths(plugin, parameters, context).values()),
    )


@dataclass(frozen=True, kw_only=True)
class OpenedSplit:
    """A split with its tables read.

    Attributes:
        notes: what the split says of its files.
    """

    split: Plugin[SplitSpec]
    test: PromptTable
    training: PromptTable | None
    notes: Sequence[str]


def open_split(options: Options) -> OpenedSplit:
    """The split that the options name, read and checked by itself.

    Raises:
        UserError: it is not there, or a row of it cannot be used.
    """
    registry = load_plugins(options)
    suite = read_suite(options.suite, options.home, options.changes)
    split = registry.find("splits", suite.split)
    fields = {suite.split: set(split.spec.parameters.model_fields)}
    values = dict(suite.parameters.get(suite.split, {}))
    kinds = {suite.split: split.spec.kind}
    settings = parse_settings(list(options.settings), kinds, fields, {suite.split: split.spec.name})
    values |= settings.get(suite.split, {})
    context = Context(device="cpu", home=options.home.root, cache=options.home.cache)
    return _open_split(options, suite, split, values, context)


def _open_split(
    options: Options,
    suite: Suite,
    split: Plugin[SplitSpec],
    values: Mapping[str, Any],
    context: Context,
) -> OpenedSplit:
    instance = split.create(split.parse(values), context)
    assert isinstance(instance, Split)  # Plugin.load has checked the class
    source = split.call("cannot name its files", instance.source)
    if not isinstance(source, SplitSource):
        raise ChexGenBenchError(
            f"The split {split.name!r} ({split.source}) returned a {type(source).__name__} "
            "where a SplitSource is expected."
        )
    draw = source.materialise
    materialise = None
    if draw is not None:

        def materialise(csv: Path, ids: Sequence[str]) -> None:
            split.call("cannot draw its images", lambda: draw(csv, ids))

    # Whole, since a run's record is read from other folders than it was written in.
    root = _whole(options.images_root or source.images_root)
    if root is not None and options.images_root is not None and not root.is_dir():
        raise UserError(f"--images-root {root} is not a folder.")
    if source.own_columns and options.columns:
        raise UserError(
            f"--column does not go with the split {split.name!r}.",
            hint="Both of its sides have the published columns.",
        )
    columns = {**source.columns, **options.columns}

    def read(path: Path, images_root: Path | None) -> PromptTable:
        return read_prompts(
            path,
            name=split.name,
            images_root=images_root,
            columns=columns,
            uncertain=suite.uncertain,
            materialise=materialise,
            labeller=source.labeller,
        )

    if source.credentialed is not None:
        split = replace(split, spec=replace(split.spec, credentialed=source.credentialed))
    train_root = _whole(source.train_images_root) or root
    return OpenedSplit(
        split=split,
        test=read(source.test, root),
        training=read(source.train, train_root) if source.train else None,
        notes=source.notes,
    )


def _whole(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def encoded_real(plan: Plan, encoder: EncoderPlan) -> tuple[int, int]:
    """How many of the split's real images the encoder has seen, and how many there are."""
    prompts = plan.prompts
    rows = np.flatnonzero(prompts.has_image()).tolist()
    there = [path for path in map(prompts.path, rows) if path.is_file()]
    known = sum(key in encoder.images for key in plan.hashes.sha256(there) if key)
    return known, len(rows)
