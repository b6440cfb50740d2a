"""The store's numbers in other people's formats: files, a LaTeX table, a model card."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from chexgenbench.errors import UserError, harmless, unknown_name
from chexgenbench.store import questions
from chexgenbench.store.schema import TABLES, VIEWS
from chexgenbench.store.store import Store
from chexgenbench.types import OVERALL

_SHOWN = ("value", "ci_low", "ci_high")
_MOST_COLUMNS = 8
"""Scores of a LaTeX table; more do not fit a page."""

PRIVATE: Mapping[str, Sequence[str]] = {
    "prompts": ("prompt", "patient_id", "image_path"),
    "pool_prompts": ("prompt", "patient_id", "image_path"),
    "neighbours": ("other_path",),
    "runs": ("images_root",),
}
"""Columns with text of patients, or paths that name them, where a split is credentialed."""


def write_tables(
    store: Store,
    folder: Path,
    kind: Literal["parquet", "csv"] = "parquet",
    *,
    include_credentialed: bool = False,
) -> dict[str, int]:
    """Writes every table and view as a file, and ``columns.csv`` with what each column is.

    Read and written a part at a time, so that memory is bounded.

    Args:
        folder: is made; must not be there, or be empty.
        include_credentialed: also what is a patient's; else those cells are empty.

    Returns:
        Rows of each table or view, by name.

    Raises:
        UserError: the folder holds something, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty.", hint="Name a new folder.")
    counts: dict[str, int] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*TABLES, *VIEWS):
            counts[name] = _write(
                store, name, folder / f"{name}.{kind}", kind, include_credentialed
            )
        columns = store.query(
            "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() "
            "WHERE NOT internal ORDER BY table_name, column_index"
        )
        pa.csv.write_csv(columns, folder / "columns.csv")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # a part of an export is none
        if isinstance(error, OSError):
            raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
        raise
    return counts


def _write(store: Store, name: str, path: Path, kind: str, include_credentialed: bool) -> int:
    hidden = () if include_credentialed else PRIVATE.get(name, ())
    private = (
        "credentialed"
        if name == "runs"
        else "run_id IN (SELECT run_id FROM runs WHERE credentialed)"
    )
    cells = ", ".join(f"CASE WHEN {private} THEN NULL ELSE {c} END AS {c}" for c in hidden)
    wanted = f"* REPLACE ({cells})" if hidden else "*"
    lists = "flags" if kind == "csv" and name in ("images", "pool_images") else None
    if lists:  # CSV has no lists
        wanted = f"* REPLACE (array_to_string({lists}, ' ') AS {lists})"
    rows = 0
    with store.stream(f"SELECT {wanted} FROM {name}") as reader:  # noqa: S608
        writer: Any = (
            pq.ParquetWriter(path, reader.schema, compression="zstd")
            if kind == "parquet"
            else pa.csv.CSVWriter(path, reader.schema)
        )
        with writer:
            for batch in reader:
                writer.write_batch(batch)
                rows += batch.num_rows
    return rows


# --- LaTeX --------------------------------------------------------------------------------------


def latex(
    store: Store,
    *,
    metrics: Sequence[str] = (),
    subset: str = OVERALL,
    suite: str | None = None,
) -> str:
    r"""The leaderboard as a LaTeX table: a row a model, a column a score, with 95 % intervals.

    Bold are the models of rank 1, those that nothing sets apart from the best, unless that is all
    of them. It needs the package booktabs.

    Args:
        metrics: the scores, in order; by default all, which must be few.

    Raises:
        UserError: a name is not known, or there are more than eight columns.
    """
    board = questions.leaderboard(store, subset=subset, suite=suite).to_pylist()
    rows = [row for row in board if row["status"] == "ok"]
    known = list(dict.fromkeys(row["metric"] for row in rows))
    for metric in metrics:
        if metric not in known:
            raise unknown_name("metric", metric, known)
    keys = {
        (row["metric"], row["encoder"]): row["higher_is_better"]
        for metric in (metrics or known)
        for row in rows
        if row["metric"] == metric
    }
    if not keys:
        raise UserError(f"The leaderboard has no scores of {subset}.")
    if len(keys) > _MOST_COLUMNS:
        raise UserError(
            f"These are {len(keys)} columns, and a page holds {_MOST_COLUMNS}.",
            hint="Name some: --metric fid --metric alignment",
        )
    suites = {row["suite"] for row in rows}
    if len(suites) > 1:
        raise UserError(
            f"The leaderboard has {len(suites)} suites: {', '.join(sorted(suites))}.",
            hint="Name one with --suite.",
        )
    cells = {(row["model"], row["metric"], row["encoder"]): row for row in rows}
    models = _by_rank(rows, keys)
    columns = [_column(cells, models, key) for key in keys]
    heads = [
        _head(key, higher, exponent)
        for (key, higher), (exponent, _) in zip(keys.items(), columns, strict=True)
    ]
    lines = [
        rf"\begin{{tabular}}{{l{'c' * len(keys)}}}",
        r"\toprule",
        " & ".join(["Model", *heads]) + r" \\",
        r"\midrule",
    ]
    for at, model in enumerate(models):
        lines.append(" & ".join([escape(model), *(texts[at] for _, texts in columns)]) + r" \\")
    first = rows[0]
    made = (
        f"{first['n_fake']} generated images; split {first['split']}, protocol {first['protocol']}"
    )
    return "\n".join(
        [
            f"% {made}. In brackets 95 % intervals. Bold: no model is better by more than chance.",
            "% Needs the package booktabs.",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def escape(text: str) -> str:
    r"""A text for LaTeX.

    >>> escape("half_50%")
    'half\\_50\\%'
    """
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    }
    return "".join(special.get(sign, sign) for sign in text)


def _by_rank(rows: Sequence[Mapping[str, Any]], keys: Mapping[tuple[str, str], bool]) -> list[str]:
    """Models, the best on the whole first."""
    ranks: dict[str, list[int]] = {}
    for row in rows:
        if (row["metric"], row["encoder"]) in keys:
            ranks.setdefault(row["model"], []).append(row["rank"] or len(rows))
    return sorted(ranks, key=lambda model: (sum(ranks[model]) / len(ranks[model]), model))


def _head(key: tuple[str, str], higher: bool, exponent: int) -> str:
    metric, encoder = key
    arrow = r"$\uparrow$" if higher else r"$\downarrow$"
    scale = rf" $\times 10^{{{exponent}}}$" if exponent else ""
    return escape(metric) + (f" ({escape(encoder)})" if encoder else "") + f" {arrow}{scale}"


def _column(
    cells: Mapping[tuple[str, str, str], Mapping[str, Any]],
    models: Sequence[str],
    key: tuple[str, str],
) -> tuple[int, list[str]]:
    """The power of ten that the column's numbers are to be multiplied by, and a cell a model."""
    rows = [cells.get((model, *key)) for model in models]
    found = [row for row in rows if row is not None]
    largest = max(abs(row["value"]) for row in found)
    exponent = math.floor(math.log10(largest)) if 0 < largest < 0.01 else 0
    first = [row for row in found if row["rank"] == 1]

    def text(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return "--"
        scaled = [None if row[name] is None else row[name] / 10.0**exponent for name in _SHOWN]
        decimals = _decimals(*scaled)
        value, low, high = (None if n is None else f"{n:.{decimals}f}" for n in scaled)
        shown = rf"\textbf{{{value}}}" if row in first and len(first) < len(found) else str(value)
        return shown if low is None else rf"{shown} {{\scriptsize [{low}, {high}]}}"

    return exponent, [text(row) for row in rows]


def _decimals(value: Any, low: Any, high: Any) -> int:
    """So many that the width of the interval has two digits, or the value three.

    >>> _decimals(0.5212, 0.4961, 0.5463), _decimals(0.5212, None, None), _decimals(9.0, 1.0, 60.0)
    (3, 3, 0)
    """
    width = abs(value) / 10 if low is None or high is None or low == high else high - low
    return 0 if width == 0 else min(6, max(0, 1 - math.floor(math.log10(width))))


# --- model card -----------------------------------------------------------------------------------


def model_index(store: Store, model: str, *, suite: str | None = None) -> str:
    """The ``model-index`` of a Hugging Face model card, as YAML: the model's overall scores.

    Raises:
        UserError: the leaderboard has no such model.
    """
    from huggingface_hub import EvalResult, ModelCardData

    board = questions.leaderboard(store, suite=suite).to_pylist()
    known = list(dict.fromkeys(row["model"] for row in board))
    if model not in known:
        raise unknown_name("model", model, known)
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=row["split"],
            dataset_name=row["split"],
            dataset_config=row["protocol"],
            dataset_split="test",
            metric_type=row["metric"],
            metric_name=f"{row['metric']} ({row['encoder']})" if row["encoder"] else row["metric"],
            metric_value=row["value"],
            metric_args={
                "images": row["n_fake"],
                "interval_95": [row["ci_low"], row["ci_high"]],
                "warning": row["warning"],
            },
            source_name=f"chexgenbench, run {row['run_id']}",
            source_url="https://arxiv.org/abs/2505.10496",
        )
        for row in board
        if row["model"] == model and row["status"] == "ok"
    ]
    return str(ModelCardData(model_name=model, eval_results=results).to_yaml())


# --- a dataset repository -------------------------------------------------------------------------

_CARD = """---
license: other
pretty_name: CheXGenBench results
tags: [chexgenbench, benchmark, chest-x-ray]
configs:
{configs}
---

# Results of CheXGenBench

Scores of text-to-image models for chest radiographs: tables of a CheXGenBench store, as Parquet.
`columns.csv` says what each column is. No image is in here{private}.

{board}
"""


def write_results(store: Store, folder: Path, *, include_credentialed: bool = False) -> list[Path]:
    """Writes what a dataset repository of results holds: every table, and a card with the board.

    Returns:
        The files, in order.

    Raises:
        UserError: as `write_tables`.
    """
    counts = write_tables(store, folder / "data", include_credentialed=include_credentialed)
    shown = ("leaderboard", "by_finding", "scores", "runs", "differences", "published")
    configs = "\n".join(
        f"- config_name: {name}\n  data_files: data/{name}.parquet"
        for name in shown
        if counts[name]
    )
    private = "" if include_credentialed else ", nor a text or path of a credentialed split"
    card = _CARD.format(configs=configs, private=private, board=_board(store))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _board(store: Store) -> str:
    """The overall scores with their intervals as a Markdown table."""
    lines = [
        "| suite | score | encoder | rank | model | value | 95 % interval |",
        "| --- " * 7 + "|",
    ]
    for row in questions.leaderboard(store).to_pylist():
        if row["status"] != "ok":
            continue
        low, high = row["ci_low"], row["ci_high"]
        interval = "" if low is None else f"{low:.4g} to {high:.4g}"
        names = (row[name] for name in ("suite", "metric", "encoder", "rank", "model"))
        cells = [*("" if name is None else _cell(str(name)) for name in names)]
        lines.append(f"| {' | '.join([*cells, format(row['value'], '.4g'), interval])} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    r"""A name in a Markdown table, as text and nothing else.

    >>> _cell("a|<b>")
    'a\\|&lt;b&gt;'
    """
    plain = harmless(text).replace("\n", " ")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", r"\|")


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Sends a folder of `write_results` to a dataset repository of a Hugging Face hub.

    The hub's address and the user's token are those of huggingface_hub (HF_ENDPOINT, HF_TOKEN).

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub does not answer, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        sent = api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type="dataset",
            commit_message="Results of CheXGenBench",
        )
    except HFValidationError as error:
        raise UserError(f"{repository!r} is no name of a repository: {error}") from error
    except HfHubHTTPError as error:
        raise UserError(
            f"The hub refuses {repository}: {error}",
            hint="Log in with `hf auth login`, or set HF_TOKEN to a token that may write there.",
        ) from error
    except Exception as error:  # the hub's client changes the library that it talks by
        raise UserError(f"The hub at {api.endpoint} does not answer: {error}") from error
    return str(sent.commit_url)
