"""Writes the generated parts of docs/: python docs/generate.py [--check] [--leaderboard [--home DIR]].

Each part stands between ``<!-- name -->`` and ``<!-- /name -->``. With --check nothing is written and
the exit code is 1 when a part is out of date.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

import pandas as pd
import reference

from chexgenbench.registry import KINDS, load_registry
from chexgenbench.store.cookbook import saved_queries
from chexgenbench.store.schema import TABLES, VIEWS

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument(
        "--leaderboard", action="store_true", help="also that of README.md, from a run of the demo"
    )
    parser.add_argument("--home", type=Path, help="for it, a folder where the demo has run")
    options = parser.parse_args()
    stale = []
    for path, parts in pages().items():
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        new = old
        for name, text in parts.items():
            new = replace(new, name, text)
        if new != old:
            stale.append(path.relative_to(ROOT))
            if not options.check:
                path.write_text(new, encoding="utf-8")
    if options.leaderboard and not options.check:
        path = ROOT / "README.md"
        home = options.home or demo()
        board = replace(path.read_text(encoding="utf-8"), "leaderboard", fenced(shown(home)))
        path.write_text(board, encoding="utf-8")
    for name in stale:
        print(f"{'out of date' if options.check else 'written'}: {name}")
    return int(options.check and bool(stale))


def pages() -> dict[Path, dict[str, str]]:
    """Page to its generated parts, those that need no demo run."""
    return {
        ROOT / "docs" / "architecture.md": {"layers": fenced("\n".join(layers()))},
        ROOT / "docs" / "phantom.md": {"training": training()},
        ROOT / "docs" / "store.md": {"schema": schema()},
        ROOT / "docs" / "cookbook.md": {"queries": queries()},
        ROOT / "docs" / "cli.md": {"commands": reference.commands()},
        ROOT / "docs" / "hooks.md": {"hooks": reference.hooks()},
        ROOT / "docs" / "licences.md": {"licences": reference.licences()},
        ROOT / "docs" / "metrics.md": {"metrics": reference.metrics()},
        ROOT / "docs" / "plugins.md": {"plugins": plugins()},
        ROOT / "docs" / "models.md": {"models": models()},
    }


def replace(page: str, name: str, text: str) -> str:
    """The page with the part `name` replaced.

    Raises:
        ValueError: the page has no such part.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"there is no part {name!r}")
    return pattern.sub(lambda match: f"{match[1]}{text.rstrip()}\n{match[2]}", page)


def fenced(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"


def layers() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (found,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return list(found)


def training() -> str:
    """What the two training scripts wrote down."""
    diffusion = json.loads((ROOT / "assets/phantom-diffusion/training.json").read_text())
    clip = json.loads((ROOT / "assets/phantom-clip/training.json").read_text())
    reid = json.loads((ROOT / "assets/phantom-reid/training.json").read_text())
    vae, unet = diffusion["vae"], diffusion["unet"]
    auroc = "\n".join(f"| {name} | {value} |" for name, value in clip["auroc"].items())
    size = sum(
        p.stat().st_size for p in (ROOT / "assets/phantom-diffusion").rglob("*") if p.is_file()
    )
    return f"""## phantom-diffusion

A StableDiffusionPipeline of {size / 1e6:.1f} MB (half precision; the encoder, which text-to-image never
calls, in 8 bits), trained by
`python training/phantom_diffusion.py --cache DIR` on the {diffusion["images"]:,} training images and
nothing else, seed {diffusion["seed"]}, on two CPU cores that also did other work, so the times are
upper bounds:

| stage | parameters | steps of images | seconds | final loss |
| --- | --- | --- | --- | --- |
| autoencoder, on crops of {vae["crop"]} pixels | {vae["parameters"]:,} | {vae["steps"]:,} of {vae["batch"]} | {vae["seconds"]:,} | {vae["l1_grey_levels"]} grey levels L1 |
| UNet and text encoder, v-prediction | {unet["parameters"]:,} and {unet["text_parameters"]:,} | {unet["steps"]:,} of {unet["batch"]} | {unet["seconds"]:,} | {unet["loss"]} |

Its weak point: a decoder trained on likeness alone returns a mean, so the film grain of the phantoms
(some two grey levels) and the letters of the side marker are lost, and every fidelity score sees it. A
patch discriminator was tried for 700 steps and learned nothing (its hinge loss stayed at 2.0), so it is
not part of the recipe.

## phantom-clip

A small open_clip model, the demo's eyes, trained by `python training/phantom_clip.py --cache DIR` on
{clip["pairs"]:,} fresh pairs (patients that no split contains), {clip["steps"]} steps of {clip["batch"]},
{clip["seconds"]} s, final loss {clip["final_loss"]}. Among 500 held-out pairs it finds the right report
first in {clip["retrieval_at_1_of_500"]:.1%} and among the first ten in
{clip["retrieval_at_10_of_500"]:.1%}. Its class probabilities are zero-shot: the cosine to the mean
embedding of reports that state the finding alone. Area under the ROC curve on the held-out pairs:

| finding | AUROC |
| --- | --- |
{auroc}

## phantom-reid

The demo's re-identification network, a small residual network under the published Siamese head, trained by
`python training/train_reid.py` on {reid["patients"]:,} phantom patients with {reid["studies"]} studies each,
none of them in the demo split: {reid["steps"]:,} steps of {reid["batch"]} pairs, {reid["seconds"]} s. It tells
{reid["test_patients"]} patients that it has not seen from strangers with the same findings with an area under
the ROC curve of {reid["auc_matched"]} (true positives at 1 % false ones:
{reid["tpr_at_1pct_fpr_matched"]:.1%}); mean score of one patient {reid["mean_same_patient"]}, of two
{reid["mean_other_patient"]}.
"""


def schema() -> str:
    """The tables and views, from the comments that the database itself carries."""
    lines: list[str] = []
    for name, table in TABLES.items():
        lines += [f"## {name}", "", table.comment, "", "| column | type | |", "| --- | --- | --- |"]
        lines += [f"| {column} | {kind} | {text} |" for column, kind, text in table.columns]
        lines += ["", f"Key: {', '.join(table.key)}.", ""]
    for name, (comment, _) in VIEWS.items():
        lines += [f"## {name} (view)", "", comment, ""]
    return "\n".join(lines)


def queries() -> str:
    """The saved queries, as `query --saved` asks them."""
    lines: list[str] = []
    for each in saved_queries().values():
        lines += [f"## {each.question}", "", f"`chexgenbench query --saved {each.name}`", ""]
        lines += [each.note, ""] if each.note else []
        lines += ["```sql", each.sql, "```", ""]
    return "\n".join(lines)


def plugins() -> str:
    """All built-in plugins."""
    registry = load_registry()
    lines: list[str] = []
    for kind in KINDS:
        lines += [f"## {kind}", "", "| name | | licence |", "| --- | --- | --- |"]
        specs = [item.spec for _, item in sorted(registry.of_kind(kind).items())]
        lines += [f"| `{spec.name}` | {spec.summary} | {spec.licence} |" for spec in specs]
        lines.append("")
    return "\n".join(lines)


def models() -> str:
    """The models of the paper with their weights and settings."""
    published = pd.read_csv(ROOT / "platform/chexgenbench/published/fidelity.csv")["model"]
    registry = load_registry()
    lines = ["| name | weights | steps, guidance | size | on a GPU | licence |", "| --- " * 6 + "|"]
    for name in sorted(published):
        spec = registry.models[name].spec
        fields = spec.parameters.model_fields
        parts = [
            f"[{each.source}](https://huggingface.co/{each.source})"
            + (f" at {each.revision[:8]}" if each.revision else "")
            + (" (gated)" if each.gated else "")
            for each in spec.downloads
        ]
        weights = ", ".join(parts) or "yours"
        numbers = [fields[key].default for key in ("steps", "guidance") if key in fields]
        settings = ", ".join(map(str, numbers)) or "temperature 1, top-p 0.92"
        lines.append(
            f"| `{name}` | {weights} | {settings} | {spec.image_size} | {spec.gpu_dtype} | "
            f"{spec.licence} |"
        )
    return "\n".join(lines)


def script(*arguments: str, width: int, home: Path | None = None) -> str:
    program = Path(sysconfig.get_path("scripts")) / "chexgenbench"
    done = subprocess.run(
        [str(program), *arguments],
        env=os.environ | {"COLUMNS": str(width), "TERMINAL_WIDTH": str(width), "NO_COLOR": "1"},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def demo() -> Path:
    home = Path(tempfile.mkdtemp())
    script("run", width=80, home=home)
    return home


def shown(home: Path) -> str:
    """What `run` prints when all is there."""
    program = re.compile(r"^  \S*chexgenbench", re.MULTILINE)
    return program.sub("  chexgenbench", script("run", width=80, home=home))


if __name__ == "__main__":
    sys.exit(main())
