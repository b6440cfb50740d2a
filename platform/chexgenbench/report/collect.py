"""What the page needs from the store: SQL selects, so that only what is shown is ever read."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexgenbench.errors import UserError
from chexgenbench.files import inside, sha256_file
from chexgenbench.home import Home
from chexgenbench.images import webp
from chexgenbench.report.board import Cell, columns_of, number, read_cells
from chexgenbench.store.image_files import generated_image, real_image
from chexgenbench.store.store import Store
from chexgenbench.types import FINDINGS

SPREAD, OF_A_FINDING = 8, 2
"""Prompts of the gallery: spread over the split, and with each finding."""
EXTREMES, EXTREMES_OF_A_FINDING = 3, 1
"""Images of a model with the best and with the worst score: of all, and of each finding."""
PAIRS = 6
THUMBNAIL = 160

_LABELS = ", ".join(f'"{finding}"' for finding in FINDINGS)


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data address; None where the file cannot be read."""

    source: str | None
    caption: str
    alt: str


@dataclass(frozen=True)
class Row:
    """A prompt with pictures that belong to it."""

    split: str
    prompt: str
    findings: tuple[str, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Extreme:
    """An image of a model with one of its best or worst scores, beside the real one."""

    row: Row
    end: str
    value: float
    of: tuple[str, ...]
    """The findings that it is an extreme of, and ``all``."""


@dataclass(frozen=True)
class Pair:
    """Two images that a metric wants to be seen side by side."""

    first: Picture
    second: Picture
    value: float | None
    flagged: bool


@dataclass(frozen=True)
class Facts:
    """Everything that is shown of some runs.

    Attributes:
        records: rows of `runs`, JSON columns parsed, each with its ``column``.
        published: rows of `published`.
        extremes: model to its extremes by the score `extreme_score`.
        pairs: (model, what the pairs are) to pairs.
        hidden: a split is credentialed, and its prompts and images are left out.
    """

    columns: list[str]
    cells: list[Cell]
    records: list[dict[str, Any]]
    published: list[dict[str, Any]]
    hidden: bool
    gallery: list[Row]
    extreme_score: str
    extremes: dict[str, list[Extreme]]
    pairs: dict[tuple[str, str], list[Pair]]


def collect(
    store: Store, home: Home, runs: Sequence[str], *, include_credentialed: bool = False
) -> Facts:
    """Reads what is shown of `runs`, whose order is that of the columns."""
    columns = columns_of(store, runs)
    records = [
        _parsed(row) | {"column": column}
        for run, column in columns.items()
        for row in store.query("SELECT * FROM runs WHERE run_id = ?", [run]).to_pylist()
    ]
    hidden = any(record["credentialed"] for record in records) and not include_credentialed
    gallery: list[Row] = []
    extremes: dict[str, list[Extreme]] = {}
    pairs: dict[tuple[str, str], list[Pair]] = {}
    by = ""
    if records and not hidden:
        shelf = _Shelf(home, {record["run_id"]: record for record in records})
        gallery = _gallery(store, shelf)
        score = _sample_score(store, list(columns))
        if score is not None:
            by = f"{score['metric']} ({score['encoder']})" if score["encoder"] else score["metric"]
            extremes = _extremes(store, shelf, score)
        pairs = _pairs(store, shelf)
    return Facts(
        columns=list(columns.values()),
        cells=read_cells(store, columns),
        records=records,
        published=store.query("SELECT * FROM published ORDER BY ALL").to_pylist(),
        hidden=hidden,
        gallery=gallery,
        extreme_score=by,
        extremes=extremes,
        pairs=pairs,
    )


def _parsed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its JSON columns as objects."""
    names = ("model_parameters", "remarks", "versions", "weights", "hardware", "encoders")
    parsed = {name: json.loads(record[name] or "null") for name in (*names, "metrics", "pools")}
    return {**record, **parsed}


class _Shelf:
    """Thumbnails by file, each made once."""

    def __init__(self, home: Home, records: Mapping[str, Mapping[str, Any]]) -> None:
        self.records = records
        self._home = home
        self._made: dict[Path, str | None] = {}

    def real(self, run: str, path: str | None) -> Picture:
        source = None
        with suppress(ValueError):
            source = self._thumbnail(real_image(self.records[run]["images_root"], path))
        return Picture(source, "real", "real image of the prompt")

    def generated(self, run: str, path: str | None, sha256: str | None, note: str = "") -> Picture:
        record = self.records[run]
        model = record["column"]
        file, own = None, record["model_plugin"] is None
        with suppress(ValueError):
            if path:
                generation = record["generation_id"]
                file = generated_image(self._home.generations, generation, path, own=own)
        source = self._unchanged(file, sha256) if file else None
        return Picture(source, f"{model} ({note})" if note else model, f"image of {model}")

    def either(self, run: str, path: str | None, sha256: str | None) -> str | None:
        """A file by its whole path, while it has the content that the run scored. Where the run
        did not keep its hash, a file of the generations or of the run's real images."""
        if not path:
            return None
        if sha256 is not None:
            return self._unchanged(Path(path), sha256)
        roots = [self._home.generations, Path(self.records[run]["images_root"] or "")]
        found = (self._inside(root, path) for root in roots if root.is_absolute())
        return next((picture for picture in found if picture), None)

    def _unchanged(self, file: Path, sha256: str | None) -> str | None:
        try:
            # A device or a pipe need not end.
            same = sha256 is not None and file.is_file() and sha256_file(file) == sha256
        except (OSError, ValueError):
            return None
        return self._thumbnail(file) if same else None

    def _inside(self, root: Path, path: str) -> str | None:
        try:
            return self._thumbnail(inside(root, path))
        except ValueError:
            return None

    def _thumbnail(self, path: Path) -> str | None:
        if path not in self._made:
            try:
                data = base64.b64encode(webp(path, THUMBNAIL)).decode("ascii")
            except UserError:
                self._made[path] = None
            else:
                self._made[path] = f"data:image/webp;base64,{data}"
        return self._made[path]


def _gallery(store: Store, shelf: _Shelf) -> list[Row]:
    """Prompts of each split spread over it and with each finding, and what each model made of
    them. The prompts are those of the run that has the most of its split."""
    answered: dict[str, list[str]] = {}
    for row in store.query(
        "SELECT split, run_id FROM prompts WHERE list_contains($1, run_id) GROUP BY split, run_id "
        "ORDER BY count(*) DESC, list_position($1, run_id)",
        [list(shelf.records)],
    ).to_pylist():
        answered.setdefault(row["split"], []).append(row["run_id"])
    order = list(shelf.records).index
    splits = sorted(answered, key=lambda split: min(map(order, answered[split])))
    return [
        row
        for split in splits
        for row in _of_split(store, shelf, split, answered[split][0], answered[split])
    ]


def _of_split(
    store: Store, shelf: _Shelf, split: str, lead: str, answered: Sequence[str]
) -> list[Row]:
    """The prompts of the run `lead`, and what the runs that have prompts of `split` made of those
    that are theirs too: an id alone may name another prompt in another file."""
    runs = [run for run in shelf.records if run in answered]
    rows = store.query(
        f"""
        WITH numbered AS (
            SELECT *, row_number() OVER (ORDER BY line, prompt_id) - 1 AS place,
                   count(*) OVER () AS size
            FROM prompts WHERE run_id = $1 AND split = $5
        ),
        labelled AS (
            SELECT prompt_id, finding, row_number() OVER (
                       PARTITION BY finding ORDER BY md5(prompt_id)) AS nth
            FROM (UNPIVOT numbered ON {_LABELS} INTO NAME finding VALUE label)
            WHERE label = 1
        ),
        chosen AS (
            SELECT prompt_id FROM numbered
            WHERE place % greatest(1, size // $2) = 0
              AND place // greatest(1, size // $2) < $2
            UNION
            SELECT prompt_id FROM labelled WHERE nth <= $3
        ),
        made AS (
            SELECT prompt_id, map(list(run_id), list(struct_pack(path, sha256, flags))) AS images
            FROM (
                SELECT DISTINCT ON (run_id, prompt_id) run_id, prompt_id, path, sha256, flags
                FROM images
                SEMI JOIN (
                    SELECT theirs.run_id, theirs.prompt_id
                    FROM prompts AS theirs JOIN numbered AS n USING (split, prompt_id, prompt)
                    WHERE n.prompt_id IN (FROM chosen)
                ) USING (run_id, prompt_id)
                WHERE repeat = 0 AND list_contains($4, run_id)
            ) GROUP BY prompt_id
        )
        SELECT n.prompt, n.image_path, made.images,
               coalesce((SELECT list(finding ORDER BY finding) FROM labelled AS l
                         WHERE l.prompt_id = n.prompt_id), []) AS findings
        FROM numbered AS n JOIN chosen USING (prompt_id) LEFT JOIN made USING (prompt_id)
        ORDER BY n.place
        """,  # noqa: S608
        [lead, SPREAD, OF_A_FINDING, runs, split],
    ).to_pylist()
    gallery = []
    for row in rows:
        images = dict(row["images"] or [])
        pictures = [shelf.real(lead, row["image_path"])]
        for run in runs:
            image = images.get(run) or {"path": None, "sha256": None, "flags": None}
            note = ", ".join(image["flags"] or [])
            pictures.append(shelf.generated(run, image["path"], image["sha256"], note))
        gallery.append(Row(split, row["prompt"], tuple(row["findings"]), tuple(pictures)))
    return gallery


def _sample_score(store: Store, runs: Sequence[str]) -> dict[str, Any] | None:
    """The score of single images that most of the runs' own images have; alignment if there is."""
    found: list[dict[str, Any]] = store.query(
        """
        SELECT metric, encoder, any_value(higher_is_better) AS higher
        FROM (SELECT DISTINCT run_id, metric, encoder FROM sample_scores
              SEMI JOIN images USING (run_id, image_id)
              WHERE list_contains(?, run_id) AND value IS NOT NULL)
        JOIN (SELECT DISTINCT run_id, metric, encoder, higher_is_better FROM scores)
        USING (run_id, metric, encoder)
        GROUP BY metric, encoder ORDER BY metric <> 'alignment', count(*) DESC, metric, encoder
        LIMIT 1
        """,
        [list(runs)],
    ).to_pylist()
    return found[0] if found else None


def _extremes(store: Store, shelf: _Shelf, score: Mapping[str, Any]) -> dict[str, list[Extreme]]:
    rows = store.query(
        f"""
        WITH scored AS (
            SELECT run_id, prompt_id,
                   {{'bad': CASE WHEN $4 THEN -value ELSE value END, 'id': image_id}} AS key
            FROM sample_scores SEMI JOIN images USING (run_id, image_id)
            WHERE list_contains($1, run_id) AND metric = $2 AND encoder = $3 AND isfinite(value)
        ),
        labelled AS (
            SELECT run_id, prompt_id, finding
            FROM (UNPIVOT (SELECT * FROM prompts WHERE list_contains($1, run_id))
                  ON {_LABELS} INTO NAME finding VALUE label)
            WHERE label = 1
        ),
        placed AS (
            SELECT run_id, 'all' AS finding, key FROM scored
            UNION ALL
            SELECT run_id, finding, key FROM scored JOIN labelled USING (run_id, prompt_id)
        ),
        ends AS (
            SELECT run_id, finding, CASE finding WHEN 'all' THEN $5 ELSE $6 END AS most,
                   min(key, {EXTREMES}) AS best, max(key, {EXTREMES}) AS worst
            FROM placed GROUP BY run_id, finding
        ),
        chosen AS (
            SELECT run_id, "end", key, list(finding ORDER BY finding) AS of
            FROM (
                SELECT run_id, finding, 'best' AS "end", unnest(best[:most]) AS key FROM ends
                UNION ALL
                SELECT run_id, finding, 'worst', unnest(worst[:most]) FROM ends
            ) GROUP BY run_id, "end", key
        )
        SELECT c.run_id, s.value, i.path, i.sha256, c."end", c.of, p.split, p.prompt, p.image_path,
               coalesce((SELECT list(l.finding ORDER BY l.finding) FROM labelled AS l
                         WHERE l.run_id = c.run_id AND l.prompt_id = i.prompt_id), []) AS findings
        FROM chosen AS c
        JOIN images AS i ON i.run_id = c.run_id AND i.image_id = c.key.id
        JOIN sample_scores AS s
          ON s.run_id = c.run_id AND s.image_id = i.image_id AND s.metric = $2 AND s.encoder = $3
        JOIN prompts AS p ON p.run_id = c.run_id AND p.prompt_id = i.prompt_id
        ORDER BY c."end", CASE c."end" WHEN 'best' THEN c.key.bad ELSE -c.key.bad END, i.image_id
        """,  # noqa: S608
        [
            list(shelf.records),
            score["metric"],
            score["encoder"],
            score["higher"],
            EXTREMES,
            EXTREMES_OF_A_FINDING,
        ],
    ).to_pylist()
    found: dict[str, list[Extreme]] = {r["column"]: [] for r in shelf.records.values()}
    for row in rows:
        run = row["run_id"]
        pictures = (
            shelf.real(run, row["image_path"]),
            shelf.generated(run, row["path"], row["sha256"]),
        )
        shown = Row(row["split"], row["prompt"], tuple(row["findings"]), pictures)
        found[shelf.records[run]["column"]].append(
            Extreme(shown, row["end"], row["value"], tuple(row["of"]))
        )
    return {model: extremes for model, extremes in found.items() if extremes}


def _pairs(store: Store, shelf: _Shelf) -> dict[tuple[str, str], list[Pair]]:
    """For each run and kind of pair the most telling ones."""
    rows = store.query(
        "SELECT run_id, plugin, encoder, kind, value, flagged, path, sha256, "
        "other_path, other_sha256, other_real, other_side FROM neighbours "
        "WHERE list_contains(?, run_id) AND rank <= ? "
        "ORDER BY list_position(?, run_id), plugin, encoder, kind, rank",
        [list(shelf.records), PAIRS, list(shelf.records)],
    ).to_pylist()
    found: dict[tuple[str, str], list[Pair]] = {}
    for row in rows:
        model = shelf.records[row["run_id"]]["column"]
        other = f"{row['other_side']} image" if row["other_real"] else "generated image"
        by = f"{row['plugin']} on {row['encoder']}" if row["encoder"] else row["plugin"]
        what = f"{row['kind'].replace('_', ' ')} ({by})"
        flagged = bool(row["flagged"])
        found.setdefault((model, what), []).append(
            Pair(
                Picture(
                    shelf.either(row["run_id"], row["path"], row["sha256"]),
                    model,
                    f"image of {model}",
                ),
                Picture(
                    shelf.either(row["run_id"], row["other_path"], row["other_sha256"]),
                    other,
                    f"{other} beside it, {number(row['value'])}{', flagged' if flagged else ''}",
                ),
                row["value"],
                flagged,
            )
        )
    return found
