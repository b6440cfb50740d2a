"""What precision, batches and threads do to images and scores, one thing changed at a time.

    python benchmarks/precision.py [--limit 96] [--write]

The demo's diffusion model answers the same prompts with the same seeds; only how it computes
differs. Each variant runs by the command, in a folder of its own with a cache of its own, so that
nothing is found again. ``--write`` puts the table into docs/precision.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import duckdb
import numpy as np
from PIL import Image
from side_by_side import write_between

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "precision.md"
PROGRAM = Path(sysconfig.get_path("scripts")) / "chexgenbench"
METRICS = ("fid", "kid", "precision", "alignment")
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "the same once more": ((), {}),
    "batches of 1": (("--batch-size", "1"), {}),
    "batches of 32": (("--batch-size", "32"), {}),
    "`--exact`": (("--exact",), {}),
    "4 threads": ((), {"OMP_NUM_THREADS": "4"}),
    "encoder's batches of 7": (("--encode-batch-size", "7"), {}),
    "`--dtype bfloat16`": (("--dtype", "bfloat16"), {}),
    "`--dtype float16`": (("--dtype", "float16"), {}),
}

Scores = dict[str, tuple[float, float | None]]
Images = dict[str, Path]


def run(limit: int, options: tuple[str, ...], environment: dict[str, str]) -> tuple[Images, Scores]:
    """Prompt to image, and score to value with its standard error."""
    home = Path(tempfile.mkdtemp())
    chosen = [word for name in ("fid", "kid", "prdc", "alignment") for word in ("--metric", name)]
    command = ["run", "--model", "phantom-diffusion", "--limit", str(limit), "--quiet"]
    own = {"OMP_NUM_THREADS": "1", "CHEXGENBENCH_CACHE": str(home / "cache")}
    subprocess.run(
        [str(PROGRAM), *command, *chosen, *options],
        cwd=home,
        env=os.environ | own | environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    store = duckdb.connect(home / "Results" / "chexgenbench.duckdb", read_only=True)
    images = store.execute("SELECT prompt_id, generation_id, path FROM images").fetchall()
    scores = store.execute(
        "SELECT metric, value, standard_error FROM scores WHERE subset = 'overall'"
    ).fetchall()
    made = home / "runs" / "generations"
    return {name: made / folder / path for name, folder, path in images}, {
        m: (v, e) for m, v, e in scores
    }


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, np.int16)


def row(name: str, first: tuple[Images, Scores], other: tuple[Images, Scores]) -> str:
    differences = [np.abs(pixels(p) - pixels(other[0][key])) for key, p in first[0].items()]
    same = np.mean([not each.any() for each in differences])
    cells = [
        name,
        f"{same:.0%}",
        str(max(int(each.max()) for each in differences)),
        f"{np.mean([each.mean() for each in differences]):.2g}",
    ]
    for metric in METRICS:
        (value, error), (changed, _) = first[1][metric], other[1][metric]
        if changed == value:
            cells.append("0")
        elif error:
            cells.append(f"{(changed - value) / error:+.2g}")
        else:  # such as a share of 1
            cells.append(f"{changed - value:+.2g} absolute")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--write", action="store_true", help="into docs/precision.md")
    options = parser.parse_args()
    first = run(options.limit, (), {})
    lines = [
        f"phantom-diffusion, {options.limit} prompts, one thread, float32, batches of 8; then:",
        "",
        "| changed | images equal | largest difference of a pixel | mean difference | "
        + " | ".join(f"`{metric}`, se" for metric in METRICS)
        + " |",
        "| --- " * (4 + len(METRICS)) + "|",
    ]
    for name, (arguments, environment) in VARIANTS.items():
        lines.append(row(name, first, run(options.limit, arguments, environment)))
        print(lines[-1], flush=True)
    if options.write:
        write_between(PAGE, "precision", "\n".join(lines))


if __name__ == "__main__":
    main()
