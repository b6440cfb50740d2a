"""`splits validate SPLIT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chexgenbench.cli import complete
from chexgenbench.cli.output import (
    AsJson,
    HomeFolder,
    print_json,
    print_listing,
    print_text,
)
from chexgenbench.cli.run import Columns, ImagesRoot, Plugins, Settings, options_of
from chexgenbench.errors import harmless

if TYPE_CHECKING:
    from chexgenbench.splits.prompts import PromptTable

_SHOWN = 10
"""Lines of a kind that are listed."""
_LABELS_FROM = {
    "column": "a column of dictionaries",
    "columns": "a column a finding",
    "prompts": "the prompts, read by rules",
    "nowhere": "nowhere: no score of a single finding can be taken",
}


def add_to(group: typer.Typer) -> None:
    """Adds the command to the `splits` group."""
    group.command("validate")(validate)


def validate(
    path: Annotated[
        str,
        typer.Argument(
            metavar="SPLIT", help="A CSV file, or a split's name.", autocompletion=complete.splits
        ),
    ],
    images_root: ImagesRoot = None,
    column: Columns = None,
    set_: Settings = None,
    plugin: Plugins = None,
    home: HomeFolder = None,
    json: AsJson = False,
) -> None:
    """Check a split and count what it holds, and its images where their folder is known.

    No prompt is printed. Labels are counted over the prompts.
    """
    from chexgenbench.errors import UserError
    from chexgenbench.splits.prompts import check_images
    from chexgenbench.workflow.plan import open_split

    if not path.lower().endswith(".csv") and Path(path).is_file():
        raise UserError(f"{path} is no CSV file.", hint="Its name must end with .csv.")
    given: dict[str, Any] = {"home": home, "suite": "demo", "split": path}
    given |= {"column": column, "set_": set_, "plugin": plugin, "images_root": images_root}
    opened = open_split(options_of(given))
    sides = {"test": opened.test, "training": opened.training}
    found = {name: _summary(table) for name, table in sides.items() if table is not None}
    bad = {
        name: check_images(table, decode=True)
        for name, table in sides.items()
        if table is not None and table.images_root is not None
    }
    if json:
        for name, faults in bad.items():
            found[name]["images_bad"] = len(faults)
        print_json({"split": opened.split.name, "notes": list(opened.notes), "sides": found})
    else:
        for note in opened.notes:
            print_text(note)
        for name, table in sides.items():
            if table is not None:
                _print(name, table, found[name], alone=opened.training is None)
                for row, problem in bad.get(name, ()):
                    print(harmless(f"line {table.table['line'].iloc[row]}: {problem.message}"))
    faulty = sum(map(len, bad.values()))
    if faulty:
        raise UserError(f"{faulty} images of {path} cannot be used.")


def _summary(table: PromptTable) -> dict[str, Any]:
    from chexgenbench.types import FINDINGS

    labels = {}
    for finding in FINDINGS:
        values = table.table[finding]
        labels[finding] = {
            "present": int((values == 1).sum()),
            "uncertain": int((values == -1).sum()),
            "absent": int((values == 0).sum()),
            "not_mentioned": int(values.isna().sum()),
        }
    patients = table.table["patient_id"]
    return {
        "file": str(table.source_file),
        "rows": table.rows_read,
        "prompts": len(table),
        "patients": int(patients.nunique()),
        "without_patient": int(patients.isna().sum()),
        "with_image": int(table.table["image_path"].notna().sum()),
        "images_root": str(table.images_root) if table.images_root else None,
        "conflicting_labels": len(table.conflicts),
        "labels_from": table.labels_from,
        "labels": labels,
    }


def _print(name: str, table: PromptTable, found: dict[str, Any], *, alone: bool) -> None:
    if not alone:
        print(f"{name} side:")
    print(f"{found['rows']} rows, {found['prompts']} prompts after de-duplication")
    for kept, dropped in table.conflicts[:_SHOWN]:
        print(f"line {dropped} repeats the prompt of line {kept} with other labels; left out")
    if len(table.conflicts) > _SHOWN:
        print(f"... and {len(table.conflicts) - _SHOWN} more such lines")
    nobody = f", {found['without_patient']} prompts without one" if found["without_patient"] else ""
    print(f"{found['patients']} patients{nobody}")
    print_text(f"labels from {_LABELS_FROM[found['labels_from']]}")
    if found["labels_from"] != "nowhere":
        rows = [(finding, *counts.values()) for finding, counts in found["labels"].items()]
        print_listing(("finding", "present", "uncertain", "absent", "not mentioned"), rows)
    if table.images_root is None:
        print("images not checked: name their folder with --images-root")
    else:
        print(f"{found['with_image']} images named")
