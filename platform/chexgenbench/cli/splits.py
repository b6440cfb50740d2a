"""`splits validate PATH`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chexgenbench.cli.run import Columns, ImagesRoot, options_of


def add_to(group: typer.Typer) -> None:
    """Adds the command to the `splits` group."""
    group.command("validate")(validate)


def validate(
    path: Annotated[Path, typer.Argument(help="A CSV file.")],
    images_root: ImagesRoot = None,
    column: Columns = None,
) -> None:
    """Check a CSV file of prompts, and its images where --images-root is given."""
    from chexgenbench.errors import UserError
    from chexgenbench.splits.prompts import check_images, read_prompts

    options = options_of({"home": None, "suite": "demo", "column": column})
    table = read_prompts(path, name=path.stem, images_root=images_root, columns=options.columns)
    print(f"{table.rows_read} rows, {len(table)} prompts after de-duplication")
    for kept, dropped in table.conflicts:
        print(f"line {dropped} repeats the prompt of line {kept} with other labels; left out")
    if images_root is None:
        print("images not checked: name their folder with --images-root")
        return
    bad = check_images(table, decode=True)
    for row, problem in bad:
        print(f"line {table.table['line'].iloc[row]}: {problem.message}")
    if bad:
        raise UserError(f"{len(bad)} images of {path} cannot be used.")
    print(f"{int(table.table['image_path'].notna().sum())} images found")
