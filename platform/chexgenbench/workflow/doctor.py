"""Checks of everything that a run needs; each is a small function."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from chexgenbench import provenance
from chexgenbench.downloads import size_text, summary
from chexgenbench.errors import ChexGenBenchError
from chexgenbench.registry import Plugin
from chexgenbench.splits.prompts import check_images
from chexgenbench.workflow.plan import (
    Options,
    Plan,
    check_folders,
    load_plugins,
    make_plan,
    plan_models,
    resolve_devices,
)
from chexgenbench.workflow.suite import read_suite


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
        yield Check("suite", False, _text(error))
        yield from _downloads(options)
    if plan is not None:
        failed: dict[str, ChexGenBenchError] = {}
        try:
            for generation in plan_models(plan, failed):
                name = f"model {generation.plugin.name}"
                yield Check(name, True, _weights(generation.identity["weights"]))
        except ChexGenBenchError as error:
            yield Check("models", False, _text(error))
        for name, fault in failed.items():
            yield Check(f"model {name}", False, _text(fault))


def _machine(options: Options) -> Check:
    try:
        device = resolve_devices(options.device)[0]
    except ChexGenBenchError as error:
        return Check("device", False, _text(error))
    facts = provenance.hardware(device)
    return Check("device", True, ", ".join(f"{key} {value}" for key, value in facts.items()))


def _folders(options: Options) -> Check:
    try:
        check_folders(options.home)
    except ChexGenBenchError as error:
        return Check("folders", False, _text(error))
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
        yield Check("plugins", False, _text(error))
        return
    counts = (f"{len(registry.of_kind(kind))} {kind}" for kind in ("models", "encoders", "metrics"))
    yield Check("plugins", True, ", ".join(counts))
    for problem in registry.problems:
        yield Check(f"plugin {problem.source}", False, problem.reason)


def _downloads(options: Options) -> Iterator[Check]:
    """What `fetch` would bring for each plugin of a suite that cannot be planned.

    A plan ends at the first fault; this shows all that is missing at once. A plugin whose weights
    lie elsewhere is not asked.
    """
    try:
        registry = load_plugins(options)
        suite = read_suite(options.suite, options.home, options.changes)
    except ChexGenBenchError:
        return  # said before
    elsewhere = {name for name, values in suite.parameters.items() if "weights" in values}
    for kind, names in (("encoders", suite.encoders), ("models", suite.models)):
        for name in names:
            plugin = registry.of_kind(kind).get(name)
            ways = (f"{name}.weights=", "weights=" if kind == "models" else f"{name}.weights=")
            given = any(setting.startswith(ways) for setting in options.settings)
            if plugin is not None and name not in elsewhere and not given:
                yield from _missing(kind, plugin, options)


def _missing(kind: str, plugin: Plugin[Any], options: Options) -> Iterator[Check]:
    missing = [
        f"{row['file']} ({size_text(row['size'])})"
        for row in summary(plugin.spec.downloads, options.home.cache)
        if row["path"] is None
    ]
    if missing:
        command = f"chexgenbench {kind} fetch {plugin.name}"
        name = f"{plugin.spec.kind} {plugin.name}"
        yield Check(name, False, f"missing: {', '.join(missing)}. Fetch them: {command}")


def _weights(weights: dict[str, str]) -> str:
    return f"{len(weights)} weight files" if weights else "needs no weights"


def _text(error: ChexGenBenchError) -> str:
    return f"{error.message} {error.hint or ''}".strip()
