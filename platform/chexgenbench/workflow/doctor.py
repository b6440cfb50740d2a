"""Checks of everything that a run needs; each is a small function."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from chexgenbench import provenance
from chexgenbench.errors import ChexGenBenchError
from chexgenbench.splits.prompts import check_images
from chexgenbench.workflow.plan import (
    Options,
    Plan,
    check_folders,
    load_plugins,
    make_plan,
    plan_models,
    resolve_device,
)


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
        device = resolve_device(options.device)
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


def _weights(weights: dict[str, str]) -> str:
    return f"{len(weights)} weight files" if weights else "needs no weights"


def _text(error: ChexGenBenchError) -> str:
    return f"{error.message} {error.hint or ''}".strip()
