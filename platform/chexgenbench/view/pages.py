"""What the explorer's pages hold, asked from the store. Nothing here knows HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

from chexgenbench.errors import UserError
from chexgenbench.types import FINDINGS, MACRO, OVERALL
from chexgenbench.view.reader import Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
Row = dict[str, Any]

RUNS = 100
"""Runs of a page."""

IMAGES = 24
"""Images, or pairs of them, of a page."""

_SCORES = 6
"""Columns of scores in the list of runs, unless others are asked for."""

_FINITE = "CASE WHEN isfinite(value) THEN value END"
_STRIP = 8
_OTHERS = 24
_BINS = 30

_FACTS = (
    "run_id, suite, model, split, protocol, status, reason, n_prompts, n_images, n_flagged, "
    "n_skipped_images, created_at, finished_at, extra_info, credentialed"
)
_SORTS = ("model", "suite", "split", "status", "n_images", "n_flagged", "created_at")
_JSON = ("model_parameters", "weights", "versions", "hardware", "encoders", "metrics", "pools")


class NotFound(UserError):
    """The store holds no such thing."""


def text(given: Mapping[str, str], name: str) -> str:
    """A part of an address that must be there."""
    value = given.get(name)
    if not value:
        raise UserError(f"The address lacks {name}=.")
    return value


def count(given: Mapping[str, str], name: str, default: int = 0) -> int:
    """A part of an address that is a number from 0 to 999,999,999."""
    value = given.get(name) or str(default)
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise UserError(f"{name}= is not a number.")
    return int(value)


def address(path: str, *parts: str, **query: object) -> str:
    """An address of the explorer; None and empty values are left out.

    >>> address("/runs/{}/image", "a/b", prompt="x y", repeat=0, flag=None)
    '/runs/a%2Fb/image?prompt=x+y&repeat=0'
    """
    kept = {name: value for name, value in query.items() if value is not None and value != ""}
    place = path.format(*(quote(part, safe="") for part in parts))
    return f"{place}?{urlencode(kept, doseq=True)}" if kept else place


def duration(seconds: float | None) -> str:
    """A time in words, for what is left of some work.

    >>> duration(7.4), duration(90), duration(7260), duration(None)
    ('7 s', '2 min', '2.0 h', '')
    """
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Score:
    """A score's name: of a plugin on an encoder; `key` stands for it in an address."""

    plugin: str
    metric: str
    encoder: str

    @property
    def key(self) -> str:
        return "/".join((self.plugin, self.metric, self.encoder))

    @property
    def title(self) -> str:
        return f"{self.metric} ({self.encoder})" if self.encoder else self.metric


@dataclass(frozen=True)
class Part:
    """Some rows of many.

    Attributes:
        page: from 0.
        total: rows of all pages.
    """

    rows: list[Row]
    page: int
    size: int
    total: int

    @property
    def last(self) -> int:
        """The number of the last page."""
        return max(0, (self.total - 1) // self.size)

    @property
    def first_row(self) -> int:
        """Counted from 1."""
        return min(self.total, self.page * self.size + 1)

    @property
    def last_row(self) -> int:
        return min(self.total, (self.page + 1) * self.size)


# The list of runs.


@dataclass(frozen=True)
class Runs:
    """The list of runs.

    Attributes:
        cells: run and score to its row of `scores`.
        known: all scores that there are, and `shown`, those that have a column.
        given: what the address asked for.
    """

    part: Part
    cells: dict[tuple[str, Score], Row]
    known: list[Score]
    shown: list[Score]
    given: dict[str, Any]


def runs(session: Session, given: Any) -> Runs:
    """The runs that the filter leaves, newest first or as asked."""
    words = given.get("filter", "").lower().split()
    sort, order = given.get("sort", "created_at"), given.get("order", "desc")
    everything = session.once("runs", lambda: session.rows(f"SELECT {_FACTS} FROM runs"))  # noqa: S608
    board = session.once("board", lambda: _board(session))
    known: list[Score] = list(dict.fromkeys(score for _, score in board))
    asked = {key for key in given.getlist("score") if key}
    shown = [score for score in known if score.key in asked] or _main(board)

    def wanted(row: Row) -> bool:
        names = ("run_id", "model", "suite", "split", "status", "protocol", "extra_info")
        said = " ".join(str(row[name]) for name in names).lower()
        return all(word in said for word in words)

    by_score = {score.key: score for score in known}

    def key(row: Row) -> Any:
        if sort in by_score:
            return board.get((row["run_id"], by_score[sort]), {}).get("value")
        return row[sort if sort in _SORTS else "created_at"]

    rows = _sorted([row for row in everything if wanted(row)], key, order == "desc")
    page = count(given, "page")
    part = Part(rows[page * RUNS : (page + 1) * RUNS], page, RUNS, len(rows))
    kept = {
        "filter": given.get("filter", ""),
        "score": [score.key for score in shown] if asked else [],
        "sort": sort,
        "order": order,
    }
    return Runs(part, board, known, shown, kept)


def _sorted(rows: Sequence[T], key: Any, descending: bool) -> list[T]:
    """By `key`, with those that have none last either way."""
    having = [row for row in rows if key(row) is not None]
    lacking = [row for row in rows if key(row) is None]
    return [*sorted(having, key=key, reverse=descending), *lacking]


def _board(session: Session) -> dict[tuple[str, Score], Row]:
    """The overall score of each run, and the mean over the findings where there is no such."""
    rows = session.rows(
        "SELECT run_id, plugin, metric, encoder, subset, value, ci_low, ci_high, "
        "higher_is_better, status, reason, warning FROM scores WHERE subset IN (?, ?)",
        [OVERALL, MACRO],
    )
    overall: dict[tuple[str, Score], Row] = {}
    macro: dict[tuple[str, Score], Row] = {}
    for row in rows:
        score = Score(row["plugin"], row["metric"], row["encoder"])
        kept = overall if row["subset"] == OVERALL else macro
        kept[row["run_id"], score] = row
    having = {score for _, score in overall}
    return overall | {key: row for key, row in macro.items() if key[1] not in having}


def _main(board: Mapping[tuple[str, Score], Row]) -> list[Score]:
    """The first score of each metric plugin; those that most runs have come first."""
    counts: dict[Score, int] = {}
    for (_, score), row in board.items():
        if row["value"] is not None:
            counts[score] = counts.get(score, 0) + 1
    first: dict[str, Score] = {}
    for score in counts:
        first.setdefault(score.plugin, score)
    return sorted(first.values(), key=lambda score: -counts[score])[:_SCORES]


# A run.


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        overall: its scores, and `findings`, those of `score` on each subset.
        axis: the least and the greatest number of `findings`, for drawing.
        ranks: plugin, metric, encoder and subset to the rank on the leaderboard.
        provenance: what is known of how it came about, by title.
    """

    facts: Row
    hidden: bool
    overall: list[Row]
    scores: list[Score]
    score: Score | None
    findings: list[Row]
    axis: tuple[float, float] | None
    ranks: dict[tuple[str, ...], int]
    remarks: list[str]
    provenance: dict[str, str]
    flags: list[Row]
    samples: list[Row]
    strip: list[Row]
    pairs: int


def facts_of(session: Session, run: str) -> Row:
    """The row of a run.

    Raises:
        NotFound: there is none.
    """
    found = session.rows("SELECT * FROM runs WHERE run_id = ?", [run])
    if not found:
        raise NotFound("The store has no such run.")
    return found[0]


def run(session: Session, name: str, given: Any) -> Run:
    """All about one run."""
    facts = facts_of(session, name)
    rows = session.rows("SELECT * FROM scores WHERE run_id = ?", [name])
    having = {(row["plugin"], row["metric"], row["encoder"]) for row in rows if _overall(row)}
    overall = [
        row
        for row in rows
        if _overall(row)
        or (row["subset"] == MACRO and (row["plugin"], row["metric"], row["encoder"]) not in having)
    ]
    by_finding: dict[Score, list[Row]] = {}
    for row in rows:
        if row["subset"] not in (OVERALL, MACRO):
            score = Score(row["plugin"], row["metric"], row["encoder"])
            by_finding.setdefault(score, []).append(row)
    scores = list(by_finding)
    taken = [
        score for score in scores if any(row["value"] is not None for row in by_finding[score])
    ]
    asked = [score for score in scores if score.key == given.get("score")]
    chosen = next(iter(asked or taken or scores), None)
    findings = by_finding[chosen] if chosen is not None else []
    ranks = session.once("ranks", lambda: _ranks(session))
    return Run(
        facts=facts,
        hidden=name in session.hidden,
        overall=overall,
        scores=scores,
        score=chosen,
        findings=findings,
        axis=_axis(findings),
        ranks={key[1:]: rank for key, rank in ranks.items() if key[0] == name},
        remarks=[str(each) for each in _parsed(facts["remarks"]) or []],
        provenance={
            title.replace("_", " "): _pretty(facts[title]) for title in _JSON if facts[title]
        },
        flags=_flags(session, name),
        samples=samples(session, name),
        strip=session.rows(
            "SELECT prompt_id, repeat FROM images WHERE run_id = ? "  # noqa: S608
            f"ORDER BY prompt_id, repeat LIMIT {_STRIP}",
            [name],
        ),
        pairs=session.rows("SELECT count(*) AS n FROM neighbours WHERE run_id = ?", [name])[0]["n"],
    )


def _overall(row: Row) -> bool:
    return bool(row["subset"] == OVERALL)


def _ranks(session: Session) -> dict[tuple[str, ...], int]:
    rows = session.rows(
        "SELECT run_id, plugin, metric, encoder, subset, rank FROM leaderboard "
        "WHERE rank IS NOT NULL"
    )
    return {tuple(list(row.values())[:5]): row["rank"] for row in rows}


def _axis(rows: Sequence[Row]) -> tuple[float, float] | None:
    ends = [row[name] for row in rows for name in ("value", "ci_low", "ci_high")]
    known = [end for end in ends if end is not None and math.isfinite(end)]
    return (min(known), max(known)) if known and min(known) < max(known) else None


def _parsed(value: str | None) -> Any:
    try:
        return json.loads(value) if value else None
    except ValueError:
        return None


def _pretty(value: str) -> str:
    found = _parsed(value)
    return value if found is None else json.dumps(found, indent=2, ensure_ascii=False)


def _flags(session: Session, name: str) -> list[Row]:
    return session.rows(
        "SELECT flag, count(*) AS n FROM (SELECT unnest(flags) AS flag FROM images "
        "WHERE run_id = ?) GROUP BY flag ORDER BY n DESC, flag",
        [name],
    )


def samples(session: Session, name: str) -> list[Row]:
    """The scores of single images that the run's own images have, with `key` and `title`."""
    found = session.once(
        ("samples", name),
        lambda: session.rows(
            "SELECT metric, encoder FROM sample_scores "  # noqa: S608
            f"WHERE run_id = $run AND value IS NOT NULL {_of_its_own(session, name)}"
            "GROUP BY metric, encoder ORDER BY metric, encoder",
            {"run": name},
        ),
    )
    return [
        row
        | {
            "key": f"{row['metric']}/{row['encoder']}",
            "title": Score("", row["metric"], row["encoder"]).title,
        }
        for row in found
    ]


def _of_its_own(session: Session, name: str) -> str:
    """A condition that leaves out the images of a run's pools, for which there are scores too.

    Most runs have none, and are not asked for each image whether it is one.
    """
    pools = session.once(
        ("pools", name),
        lambda: session.rows("SELECT 1 FROM pool_images WHERE run_id = ? LIMIT 1", [name]),
    )
    return "AND image_id IN (SELECT image_id FROM images WHERE run_id = $run) " if pools else ""


# The images of a run.


@dataclass(frozen=True)
class Gallery:
    """Images of a run; `sample` is the score that they are sorted by, as of `samples`."""

    facts: Row
    hidden: bool
    part: Part
    samples: list[Row]
    sample: Row | None
    flags: list[Row]
    findings: tuple[str, ...]
    given: dict[str, Any]


def gallery(session: Session, name: str, given: Any) -> Gallery:
    """A page of a run's images, by finding and flag, sorted by a score of single images."""
    facts = facts_of(session, name)
    known = samples(session, name)
    sample = next((row for row in known if row["key"] == given.get("sample")), None)
    order = "asc" if given.get("order") == "asc" else "desc"
    finding, flag = given.get("finding") or None, given.get("flag") or None
    if finding is not None and finding not in FINDINGS:
        raise UserError(f"{finding!r} is no finding.", hint=f"Known: {', '.join(FINDINGS)}.")
    where, values = ["i.run_id = $run"], {"run": name}
    joined = "FROM images AS i"
    if finding is not None:
        where.append(
            f"i.prompt_id IN (SELECT prompt_id FROM prompts WHERE run_id = $run "  # noqa: S608
            f'AND "{finding}" = 1)'
        )
    if flag is not None:
        where.append("list_contains(i.flags, $flag)")
        values["flag"] = flag
    condition = " AND ".join(where)
    total = session.once(
        ("gallery", name, finding, flag),
        lambda: session.rows(f"SELECT count(*) AS n {joined} WHERE {condition}", values)[0]["n"],
    )
    page = count(given, "page")
    value, sort = "NULL::DOUBLE", ""
    if sample is not None:
        joined += (
            f" LEFT JOIN (SELECT image_id, {_FINITE} AS value FROM sample_scores "  # noqa: S608
            "WHERE run_id = $run AND metric = $metric AND encoder = $encoder) AS s "
            "ON s.image_id = i.image_id"
        )
        value, sort = "s.value", f"s.value {order} NULLS LAST, "
        values |= {"metric": sample["metric"], "encoder": sample["encoder"]}
    # The rows of the page first, and their prompts then: sorting carries no text.
    rows = session.rows(
        f"WITH page AS (SELECT i.run_id, i.prompt_id, i.repeat, i.flags, i.status, "  # noqa: S608
        f"{value} AS value {joined} WHERE {condition} "
        f"ORDER BY {sort}i.prompt_id, i.repeat LIMIT {IMAGES} OFFSET {page * IMAGES}) "
        "SELECT page.*, p.prompt FROM page LEFT JOIN (SELECT * FROM prompts WHERE run_id = $run) "
        "AS p ON p.prompt_id = page.prompt_id ORDER BY "
        f"{'value ' + order + ' NULLS LAST, ' if sample else ''}page.prompt_id, page.repeat",
        values,
    )
    return Gallery(
        facts=facts,
        hidden=name in session.hidden,
        part=Part(rows, page, IMAGES, total),
        samples=known,
        sample=sample,
        flags=_flags(session, name),
        findings=FINDINGS,
        given={
            "sample": sample["key"] if sample else "",
            "order": order,
            "finding": finding or "",
            "flag": flag or "",
        },
    )


# An image.


@dataclass(frozen=True)
class Image:
    """One image, and all that the store knows of it.

    Attributes:
        findings: finding to its label in words.
        samples: its own scores, each with `below` and `n`, and `bars` of all the run's images.
        neighbours: pairs that it, or another image of its prompt, belongs to.
        others: images of other runs for the same prompt.
    """

    facts: Row
    hidden: bool
    row: Row
    prompt: Row
    findings: dict[str, str]
    parameters: str
    samples: list[Row]
    neighbours: list[Row]
    others: list[Row]
    repeats: list[int]


_LABELS = {1.0: "present", 0.0: "absent", -1.0: "uncertain"}


def image(session: Session, name: str, given: Any) -> Image:
    """The image of a prompt and a repeat."""
    facts = facts_of(session, name)
    prompt, repeat = text(given, "prompt"), count(given, "repeat")
    rows = session.rows("SELECT * FROM images WHERE run_id = ? AND prompt_id = ?", [name, prompt])
    found = [row for row in rows if (row["repeat"] or 0) == repeat]
    if not found:
        raise NotFound("The run has no such image.")
    row = found[0]
    prompts = session.rows(
        "SELECT * FROM prompts WHERE run_id = ? AND prompt_id = ?", [name, prompt]
    )
    asked = prompts[0] if prompts else {}
    own = session.rows(
        f"SELECT metric, encoder, {_FINITE} AS value FROM sample_scores "  # noqa: S608
        "WHERE run_id = ? AND image_id = ? ORDER BY metric, encoder",
        [name, row["image_id"]],
    )
    return Image(
        facts=facts,
        hidden=name in session.hidden,
        row=row,
        prompt=asked,
        findings={
            finding: _LABELS.get(asked[finding], str(asked[finding]))
            for finding in FINDINGS
            if asked.get(finding) is not None
        },
        parameters=_pretty(facts["model_parameters"]),
        samples=_among(session, name, own),
        neighbours=session.rows(
            # A pool's rows may have the names of test prompts, and its images never of test images.
            "SELECT * FROM neighbours WHERE run_id = ? AND pool IS NULL AND image_id IN "  # noqa: S608
            "(SELECT image_id FROM images WHERE run_id = ? AND prompt_id = ?) "
            f"ORDER BY plugin, encoder, kind, rank LIMIT {_OTHERS}",
            [name, name, prompt],
        ),
        others=[
            other | {"hidden": other["run_id"] in session.hidden}
            for other in session.rows(
                "SELECT r.run_id, r.model, r.suite, i.prompt_id, i.repeat "  # noqa: S608
                "FROM (SELECT run_id, prompt_id, repeat FROM images WHERE prompt_id = ? "
                "AND repeat = ? AND run_id <> ?) AS i "
                "JOIN runs AS r ON r.run_id = i.run_id WHERE r.split = ? AND r.caption_type = ? "
                "QUALIFY row_number() OVER (PARTITION BY r.model ORDER BY r.created_at DESC) = 1 "
                f"ORDER BY r.model LIMIT {_OTHERS}",
                [prompt, repeat, name, facts["split"], facts["caption_type"]],
            )
        ],
        repeats=sorted(each["repeat"] or 0 for each in rows),
    )


def _among(session: Session, name: str, own: Sequence[Row]) -> list[Row]:
    """Where the values of an image lie among those of all images of the run."""
    import numpy as np

    columns = session.connection.sql(
        "SELECT metric, encoder, list(value) AS found FROM sample_scores "  # noqa: S608
        f"WHERE run_id = $run AND isfinite(value) {_of_its_own(session, name)}"
        "GROUP BY metric, encoder",
        params={"run": name},
    ).to_arrow_table()
    found = columns.column("found").combine_chunks()
    # Not by `to_numpy`, which imports pandas: a third of a second of the first image's page.
    values = np.from_dlpack(found.values).astype(np.float64, copy=False)
    ends = np.from_dlpack(found.offsets)
    names = zip(*(columns.column(at).to_pylist() for at in range(2)), strict=True)
    every = {key: values[ends[at] : ends[at + 1]] for at, key in enumerate(names)}
    spread: dict[tuple[str, str], Row] = session.once(
        ("spread", name), lambda: {key: _bars(values) for key, values in every.items()}
    )
    placed = []
    for row in own:
        key = (row["metric"], row["encoder"])
        among = spread.get(key, {"n": 0, "bars": []})
        place: Row = {"below": None, "at": None}
        if row["value"] is not None and among["n"]:
            width = (among["most"] - among["least"]) or 1.0
            below = int(np.count_nonzero(every[key] < row["value"]))
            place = {"below": below, "at": (row["value"] - among["least"]) / width}
        placed.append(row | among | place)
    return placed


def _bars(values: NDArray[np.float64]) -> Row:
    """How many values there are, and the bars of a histogram, the highest of height 1."""
    import numpy as np

    least, most = float(values.min()), float(values.max())
    width = (most - least) or 1.0
    places = np.minimum(_BINS - 1, (values - least) / width * _BINS).astype(np.intp)
    counts = np.bincount(places, minlength=_BINS)
    bars = (counts / counts.max()).tolist()
    return {"n": len(values), "least": least, "most": most, "bars": bars}


# The pairs of a run.


@dataclass(frozen=True)
class Pairs:
    """Pairs of images that metrics found in a run, of the test prompts and of pools.

    Attributes:
        kinds: what there is, with `key`, `title` and `n`.
    """

    facts: Row
    hidden: bool
    part: Part
    kinds: list[Row]
    given: dict[str, Any]


def pairs(session: Session, name: str, given: Any) -> Pairs:
    """A page of a run's pairs: of one kind, in the order of the metric, or by value."""
    facts = facts_of(session, name)
    kinds = session.once(
        ("kinds", name),
        lambda: [
            row
            | {
                "key": f"{row['plugin']}/{row['kind']}/{row['encoder']}",
                "title": Score("", row["kind"].replace("_", " "), row["encoder"]).title,
            }
            for row in session.rows(
                "SELECT plugin, kind, encoder, count(*) AS n FROM neighbours WHERE run_id = ? "
                "GROUP BY ALL ORDER BY ALL",
                [name],
            )
        ],
    )
    kind = next((row for row in kinds if row["key"] == given.get("kind")), None)
    order = given.get("order") if given.get("order") in ("asc", "desc") else ""
    chosen = [kind] if kind is not None else kinds
    page = count(given, "page")
    rows = session.rows(
        "SELECT n.*, i.repeat FROM neighbours AS n LEFT JOIN images AS i "  # noqa: S608
        "ON n.pool IS NULL AND i.run_id = n.run_id AND i.image_id = n.image_id "
        "WHERE n.run_id = $run AND list_contains($kinds, n.plugin || '/' || n.kind || '/' || "
        f"n.encoder) ORDER BY {f'n.value {order} NULLS LAST, ' if order else ''}"
        f"n.plugin, n.kind, n.encoder, n.rank LIMIT {IMAGES} OFFSET {page * IMAGES}",
        {"run": name, "kinds": [row["key"] for row in chosen]},
    )
    return Pairs(
        facts=facts,
        hidden=name in session.hidden,
        part=Part(rows, page, IMAGES, sum(row["n"] for row in chosen)),
        kinds=kinds,
        given={"kind": kind["key"] if kind else "", "order": order},
    )


# Two runs side by side.


@dataclass(frozen=True)
class Compared:
    """Two runs.

    Attributes:
        runs: all that may be chosen.
        scores: b less a on `subset`, with a paired interval where there is one.
        part: images of both for one prompt and repeat, with `value_a`, `value_b` and `difference`
            of `sample`.
        prompts: of all pages.
        apart: why images that have one prompt's name are not paired; empty if all are.
    """

    runs: list[Row]
    a: Row | None
    b: Row | None
    hidden: bool
    subsets: list[str]
    scores: list[Row]
    samples: list[Row]
    sample: Row | None
    part: Part
    prompts: int
    apart: str
    given: dict[str, Any]


def compare(session: Session, given: Any) -> Compared:
    """Two runs, score by score and image by image."""
    everything = session.once(
        "choices",
        lambda: session.rows(
            "SELECT run_id, model, suite, split, created_at FROM runs "
            "ORDER BY model, created_at DESC"
        ),
    )
    names = [given.get(side) or None for side in ("a", "b")]
    one, other = (facts_of(session, name) if name else None for name in names)
    page = count(given, "page")
    if one is None or other is None:
        kept = {"a": names[0] or "", "b": names[1] or "", "subset": "", "sample": "", "order": ""}
        empty = Part([], 0, IMAGES, 0)
        return Compared(everything, one, other, False, [], [], [], None, empty, 0, "", kept)
    a, b = one["run_id"], other["run_id"]
    subset = given.get("subset") or OVERALL
    order = "asc" if given.get("order") == "asc" else "desc"
    shared = {row["key"] for row in samples(session, b)}
    known = [row for row in samples(session, a) if row["key"] in shared]
    sample = next((row for row in known if row["key"] == given.get("sample")), None)
    if sample is None and known and "sample" not in given:
        sample = known[0]
    kept = {"a": a, "b": b, "subset": subset, "order": order}
    part, prompts, apart = _paired(session, one, other, sample, order, page)
    return Compared(
        runs=everything,
        a=one,
        b=other,
        hidden=bool({a, b} & session.hidden),
        subsets=[OVERALL, MACRO, *FINDINGS],
        scores=_differences(session, a, b, subset),
        samples=known,
        sample=sample,
        part=part,
        prompts=prompts,
        apart=apart,
        given=kept | {"sample": sample["key"] if sample else ""},
    )


def _differences(session: Session, a: str, b: str, subset: str) -> list[Row]:
    """As the view `compare` has them, which would look at every pair of runs first."""
    return session.rows(
        """
        WITH paired AS (
            SELECT plugin, metric, encoder, standard_error, ci_low, ci_high, p_value, p_holm
            FROM differences WHERE run_id = $b AND other_run = $a AND subset = $subset
            UNION ALL
            SELECT plugin, metric, encoder, standard_error, -ci_high, -ci_low, p_value, p_holm
            FROM differences WHERE run_id = $a AND other_run = $b AND subset = $subset
        )
        SELECT x.plugin, x.metric, x.encoder, x.value AS value_a, y.value AS value_b,
               y.value - x.value AS difference, p.ci_low, p.ci_high, p.p_value, p.p_holm,
               x.higher_is_better, x.status AS status_a, y.status AS status_b,
               coalesce(x.basis = y.basis AND x.n_fake = y.n_fake, false) AS comparable
        FROM (SELECT * FROM scores WHERE run_id = $a AND subset = $subset) AS x
        JOIN (SELECT * FROM scores WHERE run_id = $b AND subset = $subset) AS y
          USING (plugin, metric, encoder)
        LEFT JOIN paired AS p USING (plugin, metric, encoder)
        QUALIFY row_number() OVER (PARTITION BY x.plugin, x.metric, x.encoder) = 1
        ORDER BY p.p_holm IS NULL, x.plugin, x.metric, x.encoder
        """,
        {"a": a, "b": b, "subset": subset},
    )


def _paired(
    session: Session, one: Row, other: Row, sample: Row | None, order: str, page: int
) -> tuple[Part, int, str]:
    """Images for the same text, the greatest difference of the sample score first, or the least;
    how many prompts they have, and why others are left out."""
    a, b = one["run_id"], other["run_id"]
    empty = Part([], page, IMAGES, 0)
    # A name such as row-17 means another row in another split, and another text of it.
    for column, said in (("split", "split"), ("caption_type", "kind of caption")):
        if one[column] != other[column]:
            return empty, 0, f"A answers {said} {one[column]}, B {said} {other[column]}."
    both = (
        "FROM (SELECT image_id, prompt_id, repeat FROM images WHERE run_id = $a) AS x "
        "JOIN (SELECT image_id, prompt_id, repeat FROM images WHERE run_id = $b) AS y "
        "ON x.prompt_id = y.prompt_id AND x.repeat IS NOT DISTINCT FROM y.repeat"
    )
    changed = session.once(
        ("changed", a, b),
        lambda: [
            row["prompt_id"]
            for row in session.rows(
                "SELECT p.prompt_id FROM (SELECT * FROM prompts WHERE run_id = $a) AS p "
                "JOIN (SELECT * FROM prompts WHERE run_id = $b) AS q USING (prompt_id) "
                "WHERE p.prompt IS DISTINCT FROM q.prompt",
                {"a": a, "b": b},
            )
        ],
    )
    values: dict[str, Any] = {"a": a, "b": b}
    if changed:
        both += " AND x.prompt_id NOT IN (SELECT unnest($changed::VARCHAR[]))"
        values["changed"] = changed
    counts = session.once(
        ("pairs", a, b),
        lambda: session.rows(
            f"SELECT count(*) AS n, count(DISTINCT x.prompt_id) AS prompts {both}",
            values,
        )[0],
    )
    score, joined, sort = "NULL::DOUBLE AS value_a, NULL::DOUBLE AS value_b", "", ""
    if sample is not None:
        values |= {"metric": sample["metric"], "encoder": sample["encoder"]}
        score = "s.value AS value_a, t.value AS value_b"
        for alias, side, image_id in (("s", "a", "x.image_id"), ("t", "b", "y.image_id")):
            joined += (
                f" LEFT JOIN (SELECT image_id, {_FINITE} AS value FROM sample_scores "  # noqa: S608
                f"WHERE run_id = ${side} AND metric = $metric AND encoder = $encoder) AS {alias} "
                f"ON {alias}.image_id = {image_id}"
            )
        sort = f"t.value - s.value {order} NULLS LAST, "
    rows = session.rows(
        f"SELECT x.prompt_id, x.repeat, {score}, value_b - value_a AS difference {both}{joined} "
        f"ORDER BY {sort}x.prompt_id, x.repeat LIMIT {IMAGES} OFFSET {page * IMAGES}",
        values,
    )
    prompts = session.rows(
        "SELECT prompt_id, prompt FROM prompts WHERE run_id = ? "
        "AND prompt_id IN (SELECT unnest(?::VARCHAR[]))",
        [a, [row["prompt_id"] for row in rows]],
    )
    told = {row["prompt_id"]: row["prompt"] for row in prompts}
    shown = [row | {"prompt": told.get(row["prompt_id"])} for row in rows]
    apart = f"{len(changed):,} prompts have another text in A than in B." if changed else ""
    return Part(shown, page, IMAGES, counts["n"]), counts["prompts"], apart
