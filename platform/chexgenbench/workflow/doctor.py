"""Checks of everything that a run needs; each is a small function."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chexgenbench import provenance
from chexgenbench.downloads import size_text, summary
from chexgenbench.errors import ChexGenBenchError
from chexgenbench.generation import make_requests
from chexgenbench.registry import Plugin
from chexgenbench.splits.prompts import check_images
from chexgenbench.types import Context, EncoderSpec, ModelSpec, Parameters, Request
from chexgenbench.workflow.needs import Needs, likely_device, model_needs, whole_text
from chexgenbench.workflow.options import Options
from chexgenbench.workflow.plan import (
    Plan,
    check_folders,
    load_plugins,
    make_plan,
    others,
    parameter_values,
    plan_models,
    resolve_devices,
)
from chexgenbench.workflow.suite import Suite, read_suite

_NAMED = 10
"""Leftovers that are named one by one."""


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is well, and what was found or what to do."""

    name: str
    ok: bool
    detail: str


def examine(options: Options) -> Iterator[Check]:
    """All checks, in the order in which a run would need them."""
    yield Check("versions", True, ", ".join(f"{k} {v}" for k, v in provenance.versions().items()))
    yield _machine(options)
    yield _folders(options)
    yield from _plugins(options)
    plan: Plan | None = None
    try:
        plan = make_plan(options)
        yield Check("split", True, f"{plan.split.name}: {len(plan.prompts)} prompts")
        yield _real_images(plan)
        for encoder in plan.encoders:
            yield Check(f"encoder {encoder.name}", True, _weights(encoder.identity["weights"]))
    except ChexGenBenchError as error:
        yield Check("suite", False, whole_text(error))
        yield from _missing_parts(options)
    if plan is not None:
        yield from _models(plan)
    yield from _leftovers(options)


def _leftovers(options: Options) -> Iterator[Check]:
    """What killed commands left: nothing that a run would stop at."""
    from chexgenbench.workflow.leftovers import find

    found = find(options.home)
    if not found:
        yield Check("leftovers", True, "none")
        return
    for left in found[:_NAMED]:
        detail = f"{left.kind} {left.path}, {size_text(left.bytes)}: {left.why}"
        yield Check("leftover", True, detail)
    more = f"{len(found)} in all, " if len(found) > _NAMED else ""
    size = size_text(sum(left.bytes for left in found))
    fix = f"chexgenbench doctor --fix{options.home.option}"
    yield Check("leftovers", True, f"{more}{size}. List and remove them: {fix}")


def _models(plan: Plan) -> Iterator[Check]:
    """Each model by itself, then what a run would still stop at."""
    options, suite = plan.options, plan.suite
    values = _values(plan)
    requests = make_requests(plan.prompts, seed=suite.seed, repeats=suite.repeats, size=None)
    told: set[str] = set()
    for name, plugin in plan.models.items():
        context = Context(
            device=plan.device,
            allow_pickle=options.allow_pickle,
            home=options.home.root,
            cache=options.home.cache,
            training=plan.training,
        )
        needs = model_needs(plugin, values[name], context, options.dtype)
        context = replace(context, dtype=needs.dtype)
        for check in _model(plugin, values[name], needs, context, requests):
            if not check.ok:
                told.add(name)
            yield check
    failed: dict[str, ChexGenBenchError] = {}
    try:
        plan_models(plan, failed)
    except ChexGenBenchError as error:
        if not told:
            yield Check("models", False, whole_text(error))
    for name, fault in failed.items():
        if name not in told:
            yield Check(f"model {name}", False, whole_text(fault))


def _values(plan: Plan) -> dict[str, dict[str, Any]]:
    """Parameter values of the models; a setting may name any plugin of the plan."""
    chosen: dict[str, Plugin[Any]] = {**plan.models, plan.suite.split: plan.split, **others(plan)}
    return parameter_values(plan.options, plan.suite, chosen)


def _model(
    plugin: Plugin[ModelSpec],
    values: Mapping[str, Any],
    needs: Needs,
    context: Context,
    requests: Sequence[Request] = (),
) -> Iterator[Check]:
    name = f"model {needs.name}"
    if needs.ready:
        weights = f"{needs.files} weight files, {size_text(needs.size)}"
        yield Check(name, True, weights if needs.files else "needs no weights")
    for fault in needs.missing:
        yield Check(name, False, fault.text)
    if needs.to_fetch:
        yield _disk(name, needs.to_fetch)
    if needs.ready:
        parameters = plugin.parse(values)
        if needs.memory:
            yield _memory(needs, getattr(parameters, "offload", "none"), context.device)
        if requests:
            yield from _prompts(plugin, parameters, context, requests)
    if plugin.spec.environment is not None:
        own = plugin.spec.environment
        own = needs.environment or f"this one; its own is not made: chexgenbench env build {own}"
        yield Check(f"{name} environment", True, own)
    yield Check(f"{name} licence", True, needs.licence)


def _prompts(
    plugin: Plugin[ModelSpec],
    parameters: Parameters,
    context: Context,
    requests: Sequence[Request],
) -> Iterator[Check]:
    name = f"model {plugin.name} prompts"
    try:
        found = plugin.load(here=False)
        remarks = plugin.call(
            "cannot check the requests", lambda: found.check(parameters, context, requests)
        )
        for remark in remarks:
            yield Check(name, True, remark)
    except ChexGenBenchError as error:
        yield Check(name, False, whole_text(error))


def _disk(name: str, wanted: int) -> Check:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{size_text(wanted)} to fetch, {size_text(free)} free in {folder}"
    if wanted > free:
        detail += ". Free some, or move the hub's cache: HF_HOME"
    return Check(f"{name} disk", wanted <= free, detail)


def _memory(needs: Needs, offload: str, device: str) -> Check:
    whole, largest = sum(needs.memory.values()), max(needs.memory.values())
    wanted = {"model": largest, "sequential": 0}.get(offload, whole)
    present = provenance.total_memory(device)
    kind = "GPU" if device.startswith("cuda") else "main"
    detail = f"weights alone {needs.memory_text()}; {size_text(present)} of {kind} memory"
    if wanted > present:
        way = "model" if largest <= present else "sequential"
        detail += f". Keep a part of it there at a time: --set {needs.name}.offload={way}"
    return Check(f"model {needs.name} memory", wanted <= present, detail)


def _machine(options: Options) -> Check:
    try:
        device = resolve_devices(options.device)[0]
    except ChexGenBenchError as error:
        return Check("device", False, whole_text(error))
    facts = provenance.hardware(device)
    return Check("device", True, ", ".join(f"{key} {value}" for key, value in facts.items()))


def _folders(options: Options) -> Check:
    try:
        check_folders(options.home)
    except ChexGenBenchError as error:
        return Check("folders", False, whole_text(error))
    free = shutil.disk_usage(options.home.root).free / 1e9
    return Check("folders", True, f"{options.home.root} can be written, {free:.0f} GB free")


def _real_images(plan: Plan) -> Check:
    if plan.reference is not None:
        return Check("real images", True, f"none needed: the reference {plan.reference.path}")
    named = int(plan.prompts.has_image().sum())
    if not named:
        return Check("real images", True, "none: only scores that need none can be taken")
    if plan.prompts.materialise is not None:
        return Check("real images", True, f"{named}, drawn when they are needed")
    bad = check_images(plan.prompts)
    if not bad:
        return Check("real images", True, f"{named} found")
    return Check("real images", False, f"{len(bad)} of {named}: {bad[0][1].message}")


def _plugins(options: Options) -> Iterator[Check]:
    try:
        registry = load_plugins(options)
    except ChexGenBenchError as error:
        yield Check("plugins", False, whole_text(error))
        return
    counts = (f"{len(registry.of_kind(kind))} {kind}" for kind in ("models", "encoders", "metrics"))
    yield Check("plugins", True, ", ".join(counts))
    for problem in registry.problems:
        yield Check(f"plugin {problem.source}", False, problem.reason)


def _missing_parts(options: Options) -> Iterator[Check]:
    """What each plugin of a suite lacks that cannot be planned.

    A plan ends at the first fault; this shows all that is missing at once. An encoder whose weights
    lie elsewhere is not asked.
    """
    try:
        registry = load_plugins(options)
        suite = read_suite(options.suite, options.home, options.changes)
    except ChexGenBenchError:
        return  # said before
    elsewhere = {name for name, values in suite.parameters.items() if "weights" in values}
    for name in suite.encoders:
        plugin = registry.encoders.get(name)
        given = any(setting.startswith(f"{name}.weights=") for setting in options.settings)
        if plugin is not None and name not in elsewhere and not given:
            yield from _missing(plugin, options)
    try:
        device = resolve_devices(options.device)[0]
    except ChexGenBenchError:  # said before
        device = likely_device()
    context = Context(
        device=device,
        allow_pickle=options.allow_pickle,
        home=options.home.root,
        cache=options.home.cache,
    )
    for typed in suite.models:
        try:
            model = registry.find("models", typed)
            values = _given(options, suite, model)
            needs = model_needs(model, values, context, options.dtype)
        except ChexGenBenchError:
            continue  # said before
        yield from _model(model, values, needs, context)


def _given(options: Options, suite: Suite, plugin: Plugin[ModelSpec]) -> dict[str, Any]:
    """What suite and ``--set`` say of a model, whether or not the rest of them can be used."""
    names = (plugin.spec.name, plugin.name)
    values = {key: item for name in names for key, item in suite.parameters.get(name, {}).items()}
    for setting in options.settings:
        key, _, value = setting.partition("=")
        for owner in ("", *(f"{name}." for name in names)):
            parameter = key.removeprefix(owner)
            if key.startswith(owner) and parameter in plugin.spec.parameters.model_fields:
                values[parameter] = value
    return values


def _missing(plugin: Plugin[EncoderSpec], options: Options) -> Iterator[Check]:
    missing = [
        f"{row['file']} ({size_text(row['size'])})"
        for row in summary(plugin.spec.downloads, options.home.cache)
        if row["path"] is None
    ]
    if missing:
        command = f"chexgenbench encoders fetch {plugin.name}"
        detail = f"missing: {', '.join(missing)}. Fetch them: {command}"
        yield Check(f"encoder {plugin.name}", False, detail)


def _weights(weights: Mapping[str, str]) -> str:
    return f"{len(weights)} weight files" if weights else "needs no weights"
