"""The scores of a page as tables: which belong together, and what each cell says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from chexgenbench.report.board import Cell, control, interval, number
from chexgenbench.types import FINDINGS, MACRO, OVERALL

IMAGES, CONTROLLED = "Fidelity, diversity and alignment", "Privacy: scores with a control"
_UTILITY = "Utility: "
_DIFFERENCE = "_difference_"
SMALL = 2
"""The `warning_level` from which a cell is hatched."""


@dataclass(frozen=True)
class Score:
    """One score of all models of a suite: a column of the board, and a table by finding.

    Models are ranked, and their scores compare, within a suite only.

    Attributes:
        columns: the models of the suite.
        group: heading of the table that it stands in.
        base, regime: of a score of something trained: its name without the regime, and the regime;
            the regime is empty for a difference of regimes.
        place: of the regime among those of its metric.
        cells: subset to column to cell.
    """

    suite: str
    columns: Sequence[str]
    plugin: str
    metric: str
    encoder: str
    group: str
    base: str
    regime: str
    place: int
    cells: Mapping[str, Mapping[str, Cell]]

    @cached_property
    def higher_is_better(self) -> bool:
        return next(iter(next(iter(self.cells.values())).values())).higher_is_better

    @property
    def better(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"

    @cached_property
    def subset(self) -> str:
        """What the board shows: overall, else the mean over the findings; empty for neither."""
        return next((name for name in (OVERALL, MACRO) if name in self.cells), "")

    @cached_property
    def board(self) -> Mapping[str, Cell]:
        """Column to the cell of the board."""
        return self.cells.get(self.subset, {})

    @property
    def of_training(self) -> bool:
        """Whether something was trained: its generated images are those of the training set."""
        return self.group.startswith(_UTILITY)

    @property
    def taken(self) -> bool:
        return any(cell.value is not None for cell in self.board.values())

    @cached_property
    def controlled(self) -> bool:
        return any(control(cell) for cell in self.board.values())

    @cached_property
    def of_real_images(self) -> bool:
        """Whether no generated image is in it, so that all models have the same number."""
        cells = list(self.board.values())
        return bool(cells) and all(cell.n_fake == 0 for cell in cells)

    @cached_property
    def ranked(self) -> bool:
        """Whether ranks say anything: of generated images, and set apart by some interval."""
        cells = list(self.board.values())
        return (
            len(cells) > 1
            and not self.of_real_images
            and any(cell.ci_low is not None for cell in cells)
        )

    @cached_property
    def mixed(self) -> bool:
        """Whether some of its cells do not compare with others."""
        cells = [cell for cell in self.board.values() if cell.value is not None]
        return len({(cell.basis, cell.n_fake) for cell in cells}) > 1


def scores_of(cells: Sequence[Cell], records: Sequence[Mapping[str, Any]]) -> list[Score]:
    """The scores of each suite in the order of the store, each in its group.

    A metric that names ``regimes`` among its parameters trains something on each of them, and
    calls its scores after them. One with a score whose control was taken as its value was is about
    copies, patients or members. The others say how generated images compare with real ones.
    """
    scores: list[Score] = []
    for suite in dict.fromkeys(record["suite"] for record in records):
        own = [record for record in records if record["suite"] == suite]
        columns = [record["column"] for record in own]
        scores += _of_suite(suite, [cell for cell in cells if cell.column in columns], own)
    return scores


def _of_suite(
    suite: str, cells: Sequence[Cell], records: Sequence[Mapping[str, Any]]
) -> list[Score]:
    columns = [record["column"] for record in records]
    regimes: dict[str, list[str]] = {}
    for record in records:
        for name, metric in (record["metrics"] or {}).items():
            parameters = metric.get("parameters") or {}
            if isinstance(parameters.get("regimes"), list):
                ratios = parameters.get("ratios") or []
                regimes.setdefault(name, []).extend(
                    [*map(str, parameters["regimes"]), *(f"ratio-{ratio:g}" for ratio in ratios)]
                )
    controlled = {cell.plugin for cell in cells if cell.subset == OVERALL and control(cell)}
    found: dict[tuple[str, str, str], dict[str, dict[str, Cell]]] = {}
    for cell in cells:
        key = (cell.plugin, cell.metric, cell.encoder)
        found.setdefault(key, {}).setdefault(cell.subset, {})[cell.column] = cell
    scores = []
    for (plugin, metric, encoder), subsets in found.items():
        known = list(dict.fromkeys(regimes.get(plugin, [])))
        base, regime = _regime(metric, known)
        place = known.index(regime) if regime else len(known)
        if plugin in regimes:
            group = f"{_UTILITY}{base} ({plugin}{f' on {encoder}' if encoder else ''})"
        else:
            group = CONTROLLED if plugin in controlled else IMAGES
        scores.append(
            Score(suite, columns, plugin, metric, encoder, group, base, regime, place, subsets)
        )
    return scores


def _regime(metric: str, regimes: Sequence[str]) -> tuple[str, str]:
    """The name of a score without its regime, and the regime.

    >>> _regime("auroc_ratio-0.5", ["real", "ratio-0.5"])
    ('auroc', 'ratio-0.5')
    >>> _regime("auroc_difference_mixed_minus_real", ["real", "mixed"])
    ('auroc', '')
    """
    if regimes and _DIFFERENCE in metric:
        return metric.partition(_DIFFERENCE)[0], ""
    for regime in sorted(regimes, key=len, reverse=True):
        if metric.endswith(f"_{regime}"):
            return metric.removesuffix(f"_{regime}"), regime
    return metric, ""


def heading(score: Score, scores: Sequence[Score]) -> str:
    """What stands above the scores of a group, with the suite where there are several."""
    return _of_its_suite(score, scores) + score.group


def _of_its_suite(score: Score, scores: Sequence[Score]) -> str:
    several = len({other.suite for other in scores}) > 1
    return f"Suite {score.suite}: " if several else ""


def board_tables(
    scores: Sequence[Score],
    published: Sequence[Published],
    records: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A table a suite and group: models down, scores across, sorted by the first score.

    A model of the paper is a row of its own where a score has its metric and encoder.
    """
    taken = [(place, score) for place, score in enumerate(scores) if score.taken]
    groups: dict[tuple[str, str], list[tuple[int, Score]]] = {}
    for place, score in taken:
        groups.setdefault((score.suite, score.group), []).append((place, score))
    tables = []
    for (suite, group), placed in groups.items():
        places, chosen = [place for place, _ in placed], [score for _, score in placed]
        axes = [_axis(score) for score in chosen]
        rows: list[dict[str, Any]] = [
            {
                "model": column,
                "published": None,
                "cells": [
                    _entry(score, score.board.get(column), axis)
                    for score, axis in zip(chosen, axes, strict=True)
                ],
            }
            for column in chosen[0].columns
        ]
        rows.sort(key=lambda row: row["cells"][0]["order"])
        rows += _published_rows(places, published)
        tables.append(
            {
                "title": heading(chosen[0], scores),
                "group": group,
                "suite": suite,
                "of_training": chosen[0].of_training,
                "scores": chosen,
                "rows": rows,
                "indices": ",".join(map(str, places)),
            }
        )
    # The order that a reader needs: images, privacy, utility.
    order = list(dict.fromkeys(record["suite"] for record in records))
    tables.sort(
        key=lambda table: (
            order.index(table["suite"]),
            table["group"] != IMAGES,
            table["group"] != CONTROLLED,
        )
    )
    return tables


def _axis(score: Score) -> tuple[float, float]:
    """Lower end and length of a score's axis: 0, its values, intervals and controls lie on it."""
    ends = [
        end
        for cell in score.board.values()
        for end in (cell.value, cell.ci_low, cell.ci_high, cell.floor if control(cell) else None)
        if end is not None
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return low, (high - low) or 1.0


def _entry(score: Score, cell: Cell | None, axis: tuple[float, float]) -> dict[str, Any]:
    """What a cell of the board says, and where value and interval lie on its axis, in percent."""
    if cell is None or cell.value is None:
        why = (cell.reason or cell.status) if cell else "not taken"
        return {"text": None, "why": why, "value": None, "order": float("inf")}
    low, span = axis
    left = cell.value if cell.ci_low is None else cell.ci_low
    right = cell.value if cell.ci_high is None else cell.ci_high
    ranked = cell.rank is not None and score.ranked
    return {
        "text": number(cell.value),
        "value": cell.value,
        "order": -cell.value if score.higher_is_better else cell.value,
        "rank": cell.rank if ranked else None,
        "interval": interval(cell),
        "control": control(cell),
        "notes": "; ".join(dict.fromkeys(filter(None, (cell.reason, cell.warning)))),
        "at": 100 * (cell.value - low) / span,
        # An end of the axis needs no mark.
        "zero": 100 * -low / span if 0 < -low < span else None,
        "left": 100 * (left - low) / span,
        "width": max(100 * (right - left) / span, 0.5),
        "floor": 100 * (cell.floor - low) / span
        if control(cell) and cell.floor is not None
        else None,
    }


@dataclass(frozen=True)
class Published:
    """A number of the paper, and the scores of this page that are its like.

    Attributes:
        row: of `published`.
        places: of the scores with its metric, encoder and subset.
        comparable: those of them whose runs have its split and protocol.
    """

    row: Mapping[str, Any]
    places: tuple[int, ...]
    comparable: tuple[int, ...]


def published_of(
    scores: Sequence[Score],
    published: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
) -> list[Published]:
    """The paper's overall numbers that stand beside a score of this page.

    A number of the paper without an encoder is of none that there is here, so that a score of
    equal name without an encoder is no like of it; nor is one that has no overall value.
    """
    wanted: dict[tuple[str, str], list[int]] = {}
    for place, score in enumerate(scores):
        if score.subset == OVERALL and score.encoder and score.taken:
            wanted.setdefault((score.metric, score.encoder), []).append(place)
    found = []
    for row in published:
        places = wanted.get((row["metric"], row["encoder"]))
        if row["subset"] != OVERALL or row["value"] is None or not places:
            continue
        theirs = {(row["split"], row["protocol"])}
        same = [
            place
            for place in places
            if theirs
            == {
                (record["split"], record["protocol"])
                for record in records
                if record["column"] in scores[place].columns
            }
        ]
        found.append(Published(row, tuple(places), tuple(same)))
    return found


def _published_rows(places: Sequence[int], published: Sequence[Published]) -> list[dict[str, Any]]:
    """The models of the paper beside the scores at `places`, which are of one suite."""
    numbers = {(each.row["model"], place): each for each in published for place in each.places}
    rows = []
    for model in dict.fromkeys(model for model, place in numbers if place in places):
        known = {place: numbers[model, place] for place in places if (model, place) in numbers}
        first, each = next(iter(known.items()))
        rows.append(
            {
                "model": model,
                "published": f"from the paper: {each.row['split']}, {each.row['protocol']} protocol"
                + ("" if first in each.comparable else "; not comparable with these runs"),
                "cells": [_published_entry(known.get(place)) for place in places],
            }
        )
    return rows


def _published_entry(each: Published | None) -> dict[str, Any]:
    if each is None:
        return {"text": None, "why": "not in the paper", "value": None}
    return {
        "text": number(each.row["value"]),
        "value": each.row["value"],
        "rank": None,
        "interval": "",
        "control": "",
        "notes": each.row["note"] or "",
        "at": None,
    }


def published_table(published: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The paper's overall numbers as they stand: models down, scores across."""
    chosen = [row for row in published if row["subset"] == OVERALL]
    names = list(dict.fromkeys((row["metric"], row["encoder"]) for row in chosen))
    higher = {(row["metric"], row["encoder"]): row["higher_is_better"] for row in chosen}
    values = {(row["model"], row["metric"], row["encoder"]): row["value"] for row in chosen}
    return {
        "where": sorted({f"{row['split']}, protocol {row['protocol']}" for row in chosen}),
        "notes": sorted({row["note"] for row in chosen if row["note"]}),
        "scores": [(metric, encoder, higher[metric, encoder]) for metric, encoder in names],
        "rows": [
            (model, [values.get((model, *name)) for name in names])
            for model in dict.fromkeys(row["model"] for row in chosen)
        ],
    }


def heat_tables(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """A table a score: findings down, models across, shaded from the worst to the best; all alike
    where there is no worst."""
    tables: list[dict[str, Any]] = []
    suites = list(dict.fromkeys(score.suite for score in scores))
    for place, score in enumerate(scores):
        cells = [
            cell
            for finding in FINDINGS
            for cell in score.cells.get(finding, {}).values()
            if cell.value is not None
        ]
        values = [cell.value for cell in cells if cell.value is not None]
        if not values:
            continue
        ends = min(values), max(values)
        rows = []
        for finding in FINDINGS:
            row = score.cells.get(finding, {})
            rows.append(
                {
                    "finding": finding,
                    "n": max((cell.n_fake or 0 for cell in row.values()), default=0),
                    "cells": [_shaded(score, row.get(column), ends) for column in score.columns],
                }
            )
        tables.append(
            {
                "score": score,
                "title": heading(score, scores),
                "place": suites.index(score.suite),
                "index": place,
                "rows": rows,
            }
        )
    tables.sort(key=lambda table: (table["place"], table["score"].group != IMAGES))
    return tables


def _shaded(score: Score, cell: Cell | None, ends: tuple[float, float]) -> dict[str, Any]:
    if cell is None:
        return {"text": None, "value": None, "weak": False, "said": "not taken"}
    if cell.value is None:
        return {"text": None, "value": None, "weak": False, "said": cell.reason or cell.status}
    low, high = ends
    good = (cell.value - low) / (high - low) if high > low else 0.5
    no_interval = f"no interval: {cell.reason}" if cell.reason else "no interval"
    parts = [interval(cell) or no_interval]
    if cell.n_fake:
        what = "generated images trained on" if score.of_training else "images"
        parts.append(f"{cell.n_fake} {what}")
    if cell.rank is not None and score.ranked:
        parts.append(f"rank {cell.rank}")
    if control(cell):
        parts.append(control(cell))
    elif cell.floor is not None and cell.matched is not None:
        parts.append(
            f"at half the size real against real {number(cell.floor)}, "
            f"against generated {number(cell.matched)}"
        )
    if cell.warning and cell.warning != cell.reason:
        parts.append(cell.warning)
    return {
        "text": number(cell.value),
        "value": cell.value,
        "good": round(100 * (good if score.higher_is_better else 1 - good)),
        "weak": (cell.warning_level or 0) >= SMALL,
        "said": "; ".join(parts),
    }


def utility_curves(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Each score of something trained: its name, and its regimes in order, each with the place of
    its score and the generated images for each real one, where it says so."""
    curves: dict[str, list[tuple[str, int, float | None]]] = {}  # a name has the suite in it
    for index, score in sorted(enumerate(scores), key=lambda pair: pair[1].place):
        cells = [cell for row in score.cells.values() for cell in row.values()]
        if score.regime and any(cell.value is not None for cell in cells):
            name = _of_its_suite(score, scores) + score.group.removeprefix(_UTILITY)
            curves.setdefault(name, []).append((score.regime, index, _ratio(score.regime)))
    return [{"name": name, "points": points} for name, points in curves.items()]


def _ratio(regime: str) -> float | None:
    """Generated images for each real one, all real images being there.

    >>> _ratio("real"), _ratio("ratio-0.5"), _ratio("augmented"), _ratio("synthetic")
    (0.0, 0.5, 1.0, None)
    """
    known = {"real": 0.0, "augmented": 1.0}
    try:
        return known.get(regime) if "ratio-" not in regime else float(regime.split("ratio-")[1])
    except ValueError:
        return None


def notes_of(scores: Sequence[Score], records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was noticed: remarks of the runs, what was not taken and why, warnings of the board."""
    # Insertion orders of the scores, models and subsets that a note is about.
    found: dict[tuple[str, str], tuple[dict[str, None], ...]] = {}

    def note(kind: str, text: str, *about: str) -> None:
        for known, name in zip(found.setdefault((kind, text), ({}, {}, {})), about, strict=True):
            if name:
                known[name] = None

    for record in records:
        if record["reason"]:
            note("run failed", record["reason"], "", record["column"], "")
        for remark in record["remarks"] or []:
            note("remark", remark, "", record["column"], "")
    for score in scores:
        name = f"{score.metric} ({score.encoder})" if score.encoder else score.metric
        for subset, row in score.cells.items():
            for column, cell in row.items():
                if cell.status != "ok":
                    note(cell.status, cell.reason or "", name, column, subset)
                elif subset == score.subset:
                    if cell.warning:
                        note("warning", cell.warning, name, column, subset)
                    if cell.reason and cell.reason != cell.warning:
                        note("no interval", cell.reason, name, column, subset)
    return [
        {
            "kind": kind,
            "text": text,
            "scores": ", ".join(names),
            "models": "all" if len(models) == len(records) > 1 else ", ".join(models),
            "subsets": ", ".join(subsets),
        }
        for (kind, text), (names, models, subsets) in found.items()
    ]
