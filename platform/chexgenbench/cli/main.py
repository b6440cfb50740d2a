"""The `chexgenbench` command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from chexgenbench import __version__
from chexgenbench.cli import (
    care,
    containers,
    convert,
    dataset,
    ending,
    env,
    export,
    jobs,
    plugin,
    plugins,
    reference,
    results,
    run,
    shell,
    splits,
    view,
)

app = typer.Typer(
    name="chexgenbench",
    help="Benchmark text-to-image models for chest radiographs: generate, score, query.",
    epilog=ending.EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


RUN, RESULTS, PLUGINS, MACHINES = "Run", "Results", "Plugins", "Machines"
KEPT, DATA = "Upkeep", "Data"
"""The panels of commands in the help, in this order."""

_COMMANDS: tuple[tuple[str, str, Callable[..., None] | typer.Typer], ...] = (
    (RUN, "run", run.run),
    (RUN, "generate", run.generate),
    (RUN, "evaluate", run.evaluate),
    (RUN, "doctor", run.doctor),
    (RESULTS, "leaderboard", results.leaderboard),
    (RESULTS, "compare", results.compare),
    (RESULTS, "report", results.report),
    (RESULTS, "view", view.view),
    (RESULTS, "query", results.query),
    (RESULTS, "queries", results.queries),
    (RESULTS, "sql", shell.sql),
    (RESULTS, "runs", results.runs),
    (RESULTS, "store", results.store),
    (RESULTS, "export", export.app),
    *((PLUGINS, kind, group) for kind, group in plugins.groups.items()),
    (PLUGINS, "plugin", plugin.app),
    (PLUGINS, "convert", convert.convert),
    (MACHINES, "shard", jobs.shard),
    (MACHINES, "worker", jobs.worker),
    (MACHINES, "jobs", jobs.jobs),
    (MACHINES, "merge", jobs.merge),
    (MACHINES, "env", env.app),
    (MACHINES, "containers", containers.app),
    (KEPT, "verify", care.verify),
    (KEPT, "repair", care.repair),
    (KEPT, "cache", care.cache),
    (DATA, "reference", reference.app),
    (DATA, "dataset", dataset.app),
)
for panel, name, command in _COMMANDS:
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name, rich_help_panel=panel)
    else:
        app.command(name, rich_help_panel=panel)(command)
splits.add_to(plugins.groups["splits"])


def main() -> None:
    """Runs the command and ends the process with its exit code, see `chexgenbench.cli.ending`."""
    sys.exit(ending.run_to_its_end(app))


if __name__ == "__main__":
    main()
