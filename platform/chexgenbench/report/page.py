"""One self-contained HTML page of some runs: no network, all text escaped, its scripts named by
their hashes, and every number there without scripts as well."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chexgenbench.errors import UserError
from chexgenbench.files import write_text
from chexgenbench.home import Home
from chexgenbench.report.board import number
from chexgenbench.report.charts import NOTICE, charts, looks, program
from chexgenbench.report.collect import Facts, collect
from chexgenbench.report.tables import (
    Published,
    Score,
    board_tables,
    heading,
    heat_tables,
    notes_of,
    published_of,
    published_table,
    scores_of,
    utility_curves,
)
from chexgenbench.store.store import Store
from chexgenbench.types import FINDINGS, MACRO, OVERALL

_FIDELITY = ("kid", "fid", "cmmd", "fid_infinity", "precision", "density")
_DIVERSITY = ("recall", "coverage", "vendi_score", "alignment", "inception_score")
_LEAKS = ("replicated_rate", "near_duplicates", "reid_rate", "membership_auc_nearest")
_ALIGNED = ("alignment", *_FIDELITY)
"""Which scores the axes start with, where the runs have them."""


def write_report(
    store: Store,
    home: Home,
    runs: Sequence[str],
    *,
    include_credentialed: bool = False,
    out: Path | None = None,
) -> Path:
    """Writes the page and returns its path, ``Results/report.html`` unless `out` names another.

    Args:
        runs: ids of runs in the store, in the order of the columns.
        include_credentialed: show prompts and images although the split is credentialed.

    Raises:
        UserError: there is no store, or the file cannot be written.
    """
    path = out or home.results / "report.html"
    if path.is_dir():
        raise UserError(f"{path} is a folder.", hint=f"Name a file: --out {path / 'report.html'}")
    facts = collect(store, home, runs, include_credentialed=include_credentialed)
    html = render(facts, program(home.cache))
    try:
        write_text(path, html)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    return path


def render(facts: Facts, drawing: str) -> str:
    """The page as text.

    Args:
        drawing: JavaScript that sets ``vegaEmbed``.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("chexgenbench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def part(name: str) -> str:
        assert environment.loader is not None
        return environment.loader.get_source(environment, name)[0]

    style, script = part("page.css"), part("page.js")
    scores = scores_of(facts.cells, facts.records)
    published = published_of(scores, facts.published, facts.records)
    boards = board_tables(scores, published, facts.records)
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"script-src {_source(drawing)} {_source(script)}",
            f"style-src {_source(style)}",
            "style-src-attr 'unsafe-inline'",  # where a mark lies on its axis, how dark a cell is
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    # The template takes these four for safe: the package wrote them, or `_script_json` did.
    return environment.get_template("page.html.j2").render(
        policy=policy,
        style=style,
        script=script,
        drawing=drawing,
        data=_script_json(_data(facts, scores, published)),
        facts=facts,
        findings=FINDINGS,
        boards=boards,
        heat=heat_tables(scores),
        published=published_table(facts.published),
        matched=bool(published),
        notes=notes_of(scores, facts.records),
        said={
            name: ", ".join(dict.fromkeys(str(record[name]) for record in facts.records))
            for name in ("suite", "split", "protocol", "n_prompts")
        },
        costs=[_cost(record) for record in facts.records],
        provenance=[(record, _provenance(record)) for record in facts.records],
        notice=NOTICE,
        curves=utility_curves(scores),
        controlled=any(score.controlled for score in scores),
        has_data=bool(boards),
        stages=STAGES,
        suites=len({score.suite for score in scores}),
        splits=len({row.split for row in facts.gallery}),
    )


def _source(text: str) -> str:
    """The hash of an inline script or style, as a content security policy names it."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _script_json(value: Any) -> str:
    r"""JSON that can stand inside a ``<script>``: nothing in it ends the element or a line.

    >>> _script_json({"a": "</script>\u2028&"})
    '{"a":"\\u003c/script\\u003e\\u2028\\u0026"}'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII, so no U+2028 either
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


_CELL = (
    "value",
    "ci_low",
    "ci_high",
    "standard_error",
    "floor",
    "matched",
    "n_floor",
    "excess",
    "excess_low",
    "excess_high",
    "n_real",
    "n_fake",
    "status",
    "reason",
    "warning",
)


def _data(facts: Facts, scores: Sequence[Score], published: Sequence[Published]) -> dict[str, Any]:
    """What the page's script works on: every score once, by column, and the charts."""
    rows = [
        (place, cell)
        for place, score in enumerate(scores)
        for by_column in score.cells.values()
        for cell in by_column.values()
    ]
    subsets = list(dict.fromkeys((OVERALL, MACRO, *(cell.subset for _, cell in rows))))
    column_place = {name: place for place, name in enumerate(facts.columns)}
    subset_place = {name: place for place, name in enumerate(subsets)}
    facts_of = ("model", "metric", "encoder", "value", "split", "protocol")
    theirs = [
        {name: each.row[name] for name in facts_of}
        | {"scores": each.places, "comparable": each.comparable}
        for each in published
    ]
    names = [*facts.columns, *dict.fromkeys(f"{row['model']} (paper)" for row in theirs)]
    return {
        "columns": facts.columns,
        "runs": [
            {name: record[name] for name in ("run_id", "suite", "split", "protocol")}
            for record in facts.records
        ],
        "subsets": subsets,
        "scores": [
            {
                "plugin": score.plugin,
                "metric": score.metric,
                "encoder": score.encoder,
                "suite": score.suite,
                "group": heading(score, scores),
                "subset": score.subset,
                "higher": score.higher_is_better,
                "taken": score.taken,
                "controlled": score.controlled,
                "real": score.of_real_images,
            }
            for score in scores
        ],
        "cells": {
            "score": [place for place, _ in rows],
            "column": [column_place[cell.column] for _, cell in rows],
            "subset": [subset_place[cell.subset] for _, cell in rows],
            **{name: [_finite(getattr(cell, name)) for _, cell in rows] for name in _CELL},
            # The tables withhold ranks that say nothing.
            "rank": [cell.rank if scores[place].ranked else None for place, cell in rows],
        },
        "published": theirs,
        "curves": utility_curves(scores),
        "start": {
            "fidelity": [_FIDELITY, _DIVERSITY],
            "privacy": [_ALIGNED, _LEAKS],
        },
        "looks": looks(names),
        "charts": charts(),
    }


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


STAGES = ("generate", "encode real", "encode generated", "score", "write")
"""Of a run, whose record tells the seconds of each that it had."""


def _cost(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run cost, in seconds and bytes; None where the record does not say."""
    whole: float | None = None
    begun, ended = _time(record["created_at"]), _time(record["finished_at"])
    if begun is not None and ended is not None:
        whole = (ended - begun).total_seconds()
    hardware = record["hardware"] or {}
    told = hardware.get("seconds")
    seconds = told if isinstance(told, dict) else {}  # a record from elsewhere holds anything
    machine = [str(hardware[name]) for name in ("processor", "system") if hardware.get(name)]
    devices = [str(device) for device in hardware.get("devices") or []]
    return {
        "record": record,
        "each": record["images_per_second"],
        "each_said": number(record["images_per_second"], 3),
        "generating": record["seconds_generating"],
        "whole": whole,
        "stages": [_seconds(seconds.get(stage)) for stage in STAGES],
        "memory": record["peak_memory"],
        "machine": ", ".join([*machine, *(device for device in devices if device != "cpu")]),
    }


def _seconds(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return value if known and 0 <= value < 1e12 else None


def _time(value: Any) -> datetime.datetime | None:
    return value if isinstance(value, datetime.datetime) else None


def _provenance(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a number of the run depends on, as (name, text)."""
    plain = (
        ("run", "run_id"),
        ("images", "generation_id"),
        ("model plugin", "model_plugin"),
        ("suite", "suite"),
        ("split", "split"),
        ("protocol", "protocol"),
        ("seed", "seed"),
        ("images a prompt", "repeats"),
        ("batch size", "batch_size"),
        ("exact", "exact"),
        ("uncertain labels", "uncertain"),
        ("reference", "reference"),
        ("label of the run", "extra_info"),
        ("status", "status"),
        ("begun (UTC)", "created_at"),
        ("finished (UTC)", "finished_at"),
        ("commit", "commit"),
    )
    nested = (
        ("parameters", "model_parameters"),
        ("weights (SHA-256)", "weights"),
        ("encoders", "encoders"),
        ("metrics", "metrics"),
        ("pools", "pools"),
        ("versions", "versions"),
        ("machine", "hardware"),
    )
    said = [(name, str(record[key])) for name, key in plain if record[key] not in (None, "")]
    return said + [
        (name, json.dumps(record[key], indent=1, sort_keys=True, ensure_ascii=False))
        for name, key in nested
        if record[key]
    ]
