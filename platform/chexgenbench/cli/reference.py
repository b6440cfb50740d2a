"""`reference`: the real side as features in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chexgenbench.cli import complete, run
from chexgenbench.cli.output import AsJson, HomeFolder, Quiet, print_json, print_text

app = typer.Typer(
    help="Reference bundles: encode the real images once, let others score without them.",
    no_args_is_help=True,
)


@app.command("build")
def build(
    split: Annotated[
        str, typer.Argument(help="A split's name, or a CSV file.", autocompletion=complete.splits)
    ],
    out: Annotated[Path, typer.Argument(help="The bundle, such as mimic.safetensors.")],
    encoder: run.Encoders = None,
    plugin: run.Plugins = None,
    set_: run.Settings = None,
    protocol: run.ProtocolName = None,
    images_root: run.ImagesRoot = None,
    column: run.Columns = None,
    device: run.Device = "auto",
    encode_batch_size: run.EncodeBatch = 32,
    on_bad_image: run.BadImage = run.OnBadImage.fail,
    home: HomeFolder = None,
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the features of the real images into one file: no image, no text, no patient's id.

    The features of credentialed images stay under the licence of the data.
    """
    options = run.options_of(locals() | {"suite": "demo"})
    from chexgenbench.progress import Progress
    from chexgenbench.workflow.run import build_reference

    built = build_reference(options, out, Progress(quiet))
    if json:
        print_json(
            {
                "file": str(out.absolute()),
                "split": built.split,
                "images": built.images,
                "encoders": list(built.encoders),
                "sha256": built.sha256,
                "credentialed": built.credentialed,
            }
        )
        return
    print(f"{built.images} real images of {built.split} by {', '.join(built.encoders)}: {out}")
    print(f"SHA-256: {built.sha256}")
    if built.credentialed:
        print("Made of credentialed images: the licence of the data holds for this file too.")


@app.command("show")
def show(file: Annotated[Path, typer.Argument(help="A bundle.")], json: AsJson = False) -> None:
    """Check a bundle and say what it holds."""
    from chexgenbench.files import sha256_file
    from chexgenbench.workflow.reference import Reference

    facts = Reference.open(file).facts
    if json:
        print_json(
            {
                "file": str(file.absolute()),
                "split": facts.split,
                "rows": facts.rows,
                "split_hash": facts.split_hash,
                "encoders": facts.encoders,
                "sha256": sha256_file(file),
                "credentialed": facts.credentialed,
            }
        )
        return
    print_text(f"split: {facts.split}, {facts.rows} rows, hash {facts.split_hash[:16]}")
    for name, identity in sorted(facts.encoders.items()):
        print_text(f"encoder: {name}, identity {identity}")
    print(f"credentialed: {'yes' if facts.credentialed else 'no'}")
    print(f"SHA-256: {sha256_file(file)}")
