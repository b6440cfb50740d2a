"""`query`, `leaderboard`, `compare`, `report`, `runs`, `store`: what works on the store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chexgenbench.cli import complete
from chexgenbench.cli.output import AsJson, HomeFolder, print_json, remark
from chexgenbench.cli.run import Credentialed
from chexgenbench.errors import harmless

if TYPE_CHECKING:
    import pyarrow as pa

    from chexgenbench.home import Home
    from chexgenbench.store.store import Store


class Format(StrEnum):
    """How a result is shown."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


runs = typer.Typer(help="The runs in the store.", no_args_is_help=True)
store = typer.Typer(help="The store itself.", no_args_is_help=True)
queries = typer.Typer(help="Questions in SQL that come with the platform.", no_args_is_help=True)

FormatOption = Annotated[
    Format | None,
    typer.Option(
        "--format",
        "-f",
        help="How to show the result.",
        show_default="what the file's name says, else table",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="A file, such as a.csv or a.parquet.", show_default="screen"),
]

JsonFormat = Annotated[
    bool, typer.Option("--json", help="The same as --format json.", show_default="off")
]
RunName = Annotated[
    str,
    typer.Argument(help="A run, or the beginning of its id.", autocompletion=complete.runs),
]

Published = Annotated[
    bool, typer.Option("--published", help="Beside the paper's numbers.", show_default="off")
]


def query(
    sql: Annotated[
        str | None,
        typer.Argument(help="One SQL statement; the store is read-only.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="A file with the statement; - is standard input.", show_default="none"
        ),
    ] = None,
    saved: Annotated[
        str | None,
        typer.Option(
            help="One of `chexgenbench queries list`.",
            show_default="none",
            autocompletion=complete.queries,
        ),
    ] = None,
    format: FormatOption = None,
    json: JsonFormat = False,
    out: Out = None,
    home: HomeFolder = None,
) -> None:
    """Ask the store in SQL."""
    format = _format(format, json)
    _show(_open(home)[1].query(_statement(sql, file, saved)), format, out)


def _statement(sql: str | None, file: Path | None, saved: str | None) -> str:
    """The one statement that was given, in whichever way."""
    from chexgenbench.errors import UserError

    if sum(each is not None for each in (sql, file, saved)) != 1:
        raise UserError(
            "Give one statement, --file or --saved.",
            hint='chexgenbench query "select * from leaderboard"; saved ones: '
            "chexgenbench queries list",
        )
    if saved is not None:
        from chexgenbench.store.cookbook import saved_query

        return saved_query(saved).sql
    if file is None:
        assert sql is not None
        return sql
    try:
        if str(file) == "-":
            return sys.stdin.read() if sys.stdin is not None else ""  # None: it is closed
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"{file} cannot be read: {why}.") from error


@queries.command("list")
def list_queries(format: FormatOption = None, json: JsonFormat = False, out: Out = None) -> None:
    """All saved queries; `chexgenbench query --saved NAME` asks one."""
    import pyarrow as pa

    from chexgenbench.store.cookbook import saved_queries

    rows = [{"name": each.name, "question": each.question} for each in saved_queries().values()]
    _show(pa.Table.from_pylist(rows), _format(format, json), out)


@queries.command("show")
def show_query(
    name: Annotated[str, typer.Argument(help="A saved query.", autocompletion=complete.queries)],
    json: AsJson = False,
) -> None:
    """The statement of a saved query, to change and to give to `query --file`."""
    from chexgenbench.store.cookbook import saved_query

    found = saved_query(name)
    if json:
        print_json(
            {
                "name": found.name,
                "question": found.question,
                "note": found.note,
                "sql": found.sql,
            }
        )
        return
    for line in filter(None, (found.question, found.note)):
        print(f"-- {line}")
    print(found.sql)


def leaderboard(
    metric: Annotated[
        str | None,
        typer.Option(
            help="One score, such as fid.", show_default="all", autocompletion=complete.metrics
        ),
    ] = None,
    subset: Annotated[
        str, typer.Option(help="overall, a finding, macro, or a subset of yours.")
    ] = "overall",
    sort: Annotated[
        str | None,
        typer.Option(
            help="A column to sort by; -column: the other way.", show_default="the best first"
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="One suite.", show_default="all", autocompletion=complete.suites),
    ] = None,
    published: Published = False,
    format: FormatOption = None,
    json: JsonFormat = False,
    out: Out = None,
    home: HomeFolder = None,
) -> None:
    """The latest finished run of each model; models that nothing sets apart share a rank."""
    from chexgenbench.store import questions

    format = _format(format, json)
    result = questions.leaderboard(
        _open(home)[1], metric=metric, subset=subset, sort=sort, suite=suite, published=published
    )
    where: tuple[str, ...] = ("suite", "split", "protocol", "metric", "encoder", "subset")
    if published:  # the model says "published", and a note says of what
        where = where[3:]
    shown = (*where, "rank", "model", "value", "ci_low", "ci_high")
    always = ["rank", "model", "value", "ci_low", "ci_high"]
    if any(status != "ok" for status in result["status"].to_pylist()):
        always.append("status")
    if subset != "overall" and any(value is not None for value in result["floor"].to_pylist()):
        always += ["floor", "matched"]
    more = ("floor", "matched") if "floor" in always else ()
    _show(result, format, out, shown=(*shown, *more, "n_fake", "status"), always=always)
    _note(questions.board_caveats(result))
    if published:
        _note(questions.published_caveats(result))


def compare(
    first: RunName,
    second: Annotated[
        str,
        typer.Argument(
            help="Another run; with --published, a model of the paper.",
            autocompletion=complete.runs,
        ),
    ],
    subset: Annotated[
        str | None, typer.Option(help="One subset, such as overall.", show_default="all")
    ] = None,
    published: Published = False,
    format: FormatOption = None,
    json: JsonFormat = False,
    out: Out = None,
    home: HomeFolder = None,
) -> None:
    """Two runs, score by score: the second less the first, with the error of the pair.

    Both answer the same prompts against the same real images, so the interval is narrower than the
    two runs' own. p_holm is corrected over the subsets of a score; images_needed says how many
    images would settle a difference that is not settled.
    """
    format = _format(format, json)
    place, opened = _open(home)
    if published:
        from chexgenbench.store import questions

        result = _only(questions.compare_published(opened, first, second), subset)
        columns = ("metric", "encoder", "subset", "value", "published", "difference")
        _show(result, format, out, shown=columns, always=columns[3:])
        ours, theirs = (
            f"{result[split][0]}, {result[protocol][0]}"
            for split, protocol in (
                ("split", "protocol"),
                ("published_split", "published_protocol"),
            )
        )
        notes = sorted({note for note in result["note"].to_pylist() if note})
        if not all(result["comparable"].to_pylist()):
            notes.insert(0, f"not comparable: the run is of {ours}, the published of {theirs}")
        _note(notes)
        return
    from chexgenbench.workflow.differences import caveats, compare_runs

    result = _only(compare_runs(place, opened, first, second), subset)
    if _chosen(format, out) is Format.table and out is None and result.num_rows:
        for side in "ab":
            name, run = result[f"model_{side}"][0], result[f"run_{side}"][0]
            print(harmless(f"{side}: {name}, run {run}"))
    shown = ("metric", "encoder", "subset", "value_a", "value_b", "difference", "ci_low", "ci_high")
    more = ("p_holm", "images_needed")
    _show(result, format, out, shown=(*shown, *more), always=("value_a", "difference"))
    _note(caveats(opened, result))


def _only(table: pa.Table, subset: str | None) -> pa.Table:
    """The rows of one subset; `UserError` where there is none of that name."""
    if subset is None:
        return table
    from chexgenbench.errors import unknown_name

    found = table["subset"].to_pylist()
    if subset not in found:
        raise unknown_name("subset", subset, found)
    return table.filter([name == subset for name in found])


def _note(notes: Sequence[str]) -> None:
    for note in notes:
        remark(f"Note: {note}.".replace("..", "."))


def report(
    run: Annotated[
        list[str] | None, typer.Argument(help="Runs.", show_default="the leaderboard's")
    ] = None,
    include_credentialed: Credentialed = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write.", show_default="Results/report.html"),
    ] = None,
    home: HomeFolder = None,
    json: AsJson = False,
) -> None:
    """Write the HTML page again: one file that needs no network."""
    from chexgenbench.report.page import write_report
    from chexgenbench.store import questions

    place, opened = _open(home)
    if run:
        chosen = [questions.resolve_run(opened, name) for name in run]
    else:
        board = "SELECT run_id, model FROM leaderboard GROUP BY ALL ORDER BY min(suite), model"
        chosen = opened.query(board).column(0).to_pylist()
    page = write_report(opened, place, chosen, include_credentialed=include_credentialed, out=out)
    if json:
        print_json({"page": str(page.absolute()), "runs": chosen})
        return
    print(f"Page: {place.shown(page)}")


@runs.command("list")
def list_(
    format: FormatOption = None,
    json: JsonFormat = False,
    out: Out = None,
    home: HomeFolder = None,
) -> None:
    """All runs, the newest first."""
    from chexgenbench.store import questions

    format = _format(format, json)
    shown = ("run_id", "model", "suite", "status", "n_images", "created_at", "extra_info")
    result = questions.list_runs(_open(home)[1])
    always = ("run_id", "model", "status", "n_images", "created_at")
    _show(result, format, out, shown=shown, always=always)


@runs.command("show")
def show(
    run: RunName,
    format: FormatOption = None,
    json: JsonFormat = False,
    out: Out = None,
    home: HomeFolder = None,
) -> None:
    """Everything known of a run."""
    from chexgenbench.store import questions

    format = _format(format, json)
    _show(questions.show_run(_open(home)[1], run), format, out)


@runs.command("delete")
def delete(
    run: RunName,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask.", show_default="off")
    ] = False,
    home: HomeFolder = None,
    json: AsJson = False,
) -> None:
    """Delete a run's record and its rows in the store; its images stay."""
    import shutil

    from chexgenbench.files import inside
    from chexgenbench.store import questions

    place, opened = _open(home)
    name = questions.resolve_run(opened, run)
    folder = inside(place.runs, name)
    told = f"This deletes {place.shown(folder)} and the run's rows in the store; images stay."
    if not json:
        print(told)
    elif not yes:
        from chexgenbench.errors import UserError

        raise UserError(f"{told} Nobody is asked with --json.", hint="Say --yes.")
    if not yes:
        if sys.stdin is None or not sys.stdin.readable():
            from chexgenbench.errors import UserError

            raise UserError("Nobody can be asked: standard input is closed.", hint="Say --yes.")
        typer.confirm("Delete?", abort=True)
    # The record first: the store is an index of it and can be made again without this run.
    if folder.exists():
        shutil.rmtree(folder)
    opened.delete([name])
    if json:
        print_json({"run": name, "folder": str(folder)})


@store.command("info")
def info(home: HomeFolder = None, json: AsJson = False) -> None:
    """Where the store is, how large, of which schema, and how many rows each table has."""
    from chexgenbench.store.schema import SCHEMA_VERSION, TABLES

    place, opened = _open(home)
    counts = " UNION ALL ".join(f"SELECT count(*) FROM {name}" for name in TABLES)  # noqa: S608
    rows = dict(zip(TABLES, opened.query(counts).column(0).to_pylist(), strict=True))
    size = place.store.stat().st_size
    if json:
        schema = {"schema": SCHEMA_VERSION}
        print_json({"path": str(place.store), "bytes": size} | schema | {"rows": rows})
        return
    print(f"path: {place.shown(place.store)}")
    print(f"size: {size / 1e6:.1f} MB, schema {SCHEMA_VERSION}")
    for name, count in rows.items():
        print(f"{name:<16} {count:>10,} rows")


@store.command("rebuild")
def rebuild(home: HomeFolder = None, json: AsJson = False) -> None:
    """Make the store again from the run directories."""
    place, opened = _open(home)
    rebuilt = opened.rebuild(place.runs)
    if json:
        skipped = {str(folder): reason for folder, reason in rebuilt.skipped.items()}
        print_json({"taken": rebuilt.run_ids, "left_out": skipped})
    else:
        print(f"{len(rebuilt.run_ids)} runs taken in, {place.shown(place.store)}")
    for folder, reason in rebuilt.skipped.items():
        remark(f"Left out: {place.shown(folder)}: {reason}")


@store.command("merge")
def merge_(
    other: Annotated[Path, typer.Argument(help="Another project's folder.")],
    home: HomeFolder = None,
    json: AsJson = False,
) -> None:
    """Take in the finished runs of another project, such as another lab's; images stay there.

    A run that is here with other images or scores is a conflict: it is named, ours is kept, and the
    exit code is 1.
    """
    from chexgenbench.home import Home
    from chexgenbench.store.merge import merge_runs
    from chexgenbench.store.store import Store

    place = Home.find(home)
    opened = Store(place.store)
    opened.check()
    merged = merge_runs(other, place.runs)
    # All of them: a merge that was stopped has left directories that the store does not know.
    opened.ingest([place.runs / name for name in (*merged.taken, *merged.same)])
    if json:
        print_json(
            {
                "taken": merged.taken,
                "same": merged.same,
                "left_out": merged.left_out,
                "conflicts": merged.conflicts,
            }
        )
    else:
        print(f"{len(merged.taken)} runs taken in, {len(merged.same)} were here")
    for name, reason in merged.left_out.items():
        remark(f"Left out: {name}: {reason}")
    for name, reason in merged.conflicts.items():
        remark(f"Conflict: {name}: {reason}")
    if merged.conflicts:
        raise typer.Exit(1)


def _open(home: Path | None) -> tuple[Home, Store]:
    from chexgenbench.home import Home
    from chexgenbench.store.store import Store

    place = Home.find(home)
    return place, Store(place.store)


def _format(format: Format | None, json: bool) -> Format | None:
    """What ``--format`` and ``--json`` say together.

    Raises:
        UserError: they say two things.
    """
    if not json:
        return format
    if format is not None and format is not Format.json:
        from chexgenbench.errors import UserError

        raise UserError(f"--json and --format {format.value} are two formats.", hint="Say one.")
    return Format.json


def _chosen(format: Format | None, out: Path | None) -> Format:
    """The format that was named, else that of the file's name, else a table."""
    if format is not None:
        return format
    suffix = out.suffix.removeprefix(".").lower() if out is not None else ""
    return Format(suffix) if suffix in Format.__members__ else Format.table


def _show(
    table: pa.Table,
    format: Format | None,
    out: Path | None,
    *,
    shown: Sequence[str] = (),
    always: Sequence[str] = (),
) -> None:
    """Prints or writes a result.

    On the screen, only the columns `shown` (all, if none are named), and of those, only what
    differs between rows, or stands in `always`; the other formats and files have every column.
    """
    from chexgenbench.store.render import render

    format = _chosen(format, out)
    if shown and format is Format.table and out is None:
        kept = [
            name
            for name in shown
            if name in always or (table.num_rows != 1 and len(table[name].unique()) > 1)
        ]
        table = table.select(kept)
    text = render(table, format.value, out)
    if out is not None:
        return
    if isinstance(text, bytes):
        sys.stdout.buffer.write(text)
    else:
        print(text.rstrip("\n"))
