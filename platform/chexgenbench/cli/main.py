"""The `chexgenbench` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from chexgenbench import __version__
from chexgenbench.cli import (
    containers,
    convert,
    dataset,
    env,
    export,
    jobs,
    plugins,
    reference,
    results,
    run,
    shell,
    splits,
)
from chexgenbench.errors import ChexGenBenchError

app = typer.Typer(
    name="chexgenbench",
    help="Benchmark text-to-image models for chest radiographs: generate, score, query.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_CTRL_C = 130
"""The exit code that typer gives to a KeyboardInterrupt."""


def _version(value: bool) -> None:
    if value:
        print(f"chexgenbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Show the version.",
            show_default="off",
        ),
    ] = False,
) -> None:
    pass


app.command("run")(run.run)
app.command("generate")(run.generate)
app.command("evaluate")(run.evaluate)
app.command("doctor")(run.doctor)
app.command("convert")(convert.convert)
app.command("shard")(jobs.shard)
app.command("worker")(jobs.worker)
app.command("jobs")(jobs.jobs)
app.command("merge")(jobs.merge)
app.command("query")(results.query)
app.command("sql")(shell.sql)
app.command("leaderboard")(results.leaderboard)
app.command("compare")(results.compare)
app.command("report")(results.report)
app.add_typer(results.queries, name="queries")
app.add_typer(results.runs, name="runs")
app.add_typer(results.store, name="store")
app.add_typer(reference.app, name="reference")
app.add_typer(export.app, name="export")
app.add_typer(dataset.app, name="dataset")
app.add_typer(env.app, name="env")
app.add_typer(containers.app, name="containers")
for kind, group in plugins.groups.items():
    app.add_typer(group, name=kind)
splits.add_to(plugins.groups["splits"])


def main() -> None:
    """Runs the command; exit code 0, 1 when something failed, 2 for bad input, 130 for Ctrl-C."""
    try:
        app()
    except ChexGenBenchError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"Error: {where}{error.strerror or error}.", file=sys.stderr)
        print("What was made is kept: mend this and repeat the same command.", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == _CTRL_C:
            print("Stopped. The same command goes on where this one was.", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
