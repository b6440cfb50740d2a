"""`export`: the store's numbers as files, a LaTeX table, a model card."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chexgenbench.cli import complete
from chexgenbench.cli.output import AsJson, HomeFolder, print_json
from chexgenbench.cli.run import Credentialed
from chexgenbench.errors import harmless

if TYPE_CHECKING:
    from chexgenbench.store.store import Store

app = typer.Typer(help="The store's numbers in other formats.", no_args_is_help=True)


class Kind(StrEnum):
    """Of the files."""

    parquet = "parquet"
    csv = "csv"


Suite = Annotated[
    str | None, typer.Option(help="One suite of the leaderboard.", show_default="the only one")
]


@app.command("tables")
def tables(
    out: Annotated[Path, typer.Argument(help="The folder to make: new, or an empty one.")],
    format: Annotated[Kind, typer.Option("--format", "-f", help="Of the files.")] = Kind.parquet,
    include_credentialed: Credentialed = False,
    home: HomeFolder = None,
    json: AsJson = False,
) -> None:
    """Every table and view as a file, and what each column is."""
    from chexgenbench.store.exports import write_tables

    counts = write_tables(
        _store(home), out, format.value, include_credentialed=include_credentialed
    )
    if json:
        print_json({"folder": str(out.absolute()), "rows": counts})
        return
    for name, count in counts.items():
        print(f"{name:<16} {count:>10,} rows")
    print(f"Folder: {out}")


@app.command("latex")
def latex(
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="A score, a column each.", show_default="all"),
    ] = None,
    subset: Annotated[str, typer.Option(help="overall, a finding or macro.")] = "overall",
    suite: Suite = None,
    home: HomeFolder = None,
) -> None:
    """The leaderboard as a LaTeX table, with intervals; bold is what no model beats by more than
    chance."""
    from chexgenbench.store import exports

    made = exports.latex(_store(home), metrics=metric or (), subset=subset, suite=suite)
    print(harmless(made))


@app.command("model-card")
def model_card(
    model: Annotated[
        str, typer.Argument(help="A model of the leaderboard.", autocompletion=complete.models)
    ],
    suite: Suite = None,
    home: HomeFolder = None,
) -> None:
    """The model-index of a Hugging Face model card, to put between its --- lines."""
    from chexgenbench.store.exports import model_index

    print(harmless(model_index(_store(home), model, suite=suite).rstrip()))


@app.command("push")
def push(
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Send it; else only what would be sent is shown.", show_default="off"
        ),
    ] = False,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who sees a repository that is made.")
    ] = True,
    include_credentialed: Credentialed = False,
    home: HomeFolder = None,
    json: AsJson = False,
) -> None:
    """Send the results to a dataset repository of a Hugging Face hub: every table, and a card."""
    import tempfile

    from chexgenbench.store import exports

    with tempfile.TemporaryDirectory(prefix="chexgenbench-") as name:
        folder = Path(name) / "results"
        files = exports.write_results(
            _store(home), folder, include_credentialed=include_credentialed
        )
        listed = [
            {"file": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size}
            for path in files
        ]
        for each in () if json else listed:
            print(f"{each['bytes']:>12,} bytes  {each['file']}")
        address = exports.push(folder, repository, private=private) if yes else None
    if json:
        facts = {"repository": repository, "files": listed}
        print_json(facts | {"sent": address is not None, "address": address})
    elif address is None:
        print(f"Nothing was sent. Say --yes to send this to datasets/{repository}.")
    else:
        print(f"Sent: {address}")


def _store(home: Path | None) -> Store:
    from chexgenbench.home import Home
    from chexgenbench.store.store import Store

    return Store(Home.find(home).store)
