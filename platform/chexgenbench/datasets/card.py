"""What a dataset says of itself: the card for people, ``provenance.json`` for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

import chexgenbench
from chexgenbench.datasets.rows import Rows
from chexgenbench.datasets.write import Format, data_files, features
from chexgenbench.types import MACRO, OVERALL

PROVENANCE = "provenance.json"

_FACTS = (
    "run_id",
    "suite",
    "model",
    "model_plugin",
    "model_parameters",
    "split",
    "credentialed",
    "protocol",
    "seed",
    "repeats",
    "limit",
    "caption_type",
    "generation_id",
    "batch_size",
    "exact",
    "device",
    "dtype",
    "weights",
    "versions",
    "commit",
    "created_at",
)
"""Fields of the run's record that go along; places of the user's machine do not."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!$&])")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the rows of a dataset were chosen, and under which licences they stand.

    Attributes:
        judge: facts of the judge and its counts; None: none was asked.
        changed: files that lost metadata.
        licences: of the model's weights and of the split.
    """

    where: str | None = None
    allow_near_copies: bool = False
    keep_flagged: bool = False
    limit: int | None = None
    qualities: Sequence[str] = ()
    judge: Mapping[str, Any] | None = None
    changed: int = 0
    licences: tuple[str, str] = ("not stated", "not stated")


def privacy_remark(rows: Rows) -> str:
    """What is known of copies of training images among the rows, as sentences."""
    unseen = int(pd.isna(rows.near_copy).sum())
    gone = rows.left_out.get("near-copies of training images", 0)
    kept = int((rows.near_copy == 1).sum())
    if unseen == len(rows) and not gone:
        return (
            f"NO PRIVACY METRIC LOOKED AT THESE IMAGES{_instead(rows)}. Nothing is known of copies "
            "of training images among them; that none was left out does not mean that there are "
            "none."
        )
    remark = f"A privacy metric left out {_images(gone)} as near-copies of training images."
    if kept:
        remark = (
            f"{kept} OF THESE {len(rows)} IMAGES ARE NEAR-COPIES OF TRAINING IMAGES by a privacy "
            "metric, kept because the user said --allow-near-copies."
        )
    if unseen:
        remark += f" At {_images(unseen)} of these no privacy metric looked."
    return remark


def _instead(rows: Rows) -> str:
    """What the run's metrics did where none looked at these images."""
    if rows.examined:
        return f", though one looked at {_images(rows.examined)} of the run that are not here"
    names = [
        name
        for name, facts in rows.record.metrics.items()
        if any(need.startswith("training-") for need in facts.get("needs", {}).values())
    ]
    if not names:
        return ""
    return (
        ": the run's metrics that use training images ("
        f"{', '.join(sorted(names))}) said of no image whether it is a copy"
    )


def provenance(rows: Rows, choice: Choice, format: Format) -> dict[str, Any]:
    """The facts of a dataset as JSON values, the same for the same export."""
    record = rows.record.model_dump(mode="json", include=set(_FACTS))
    return {
        "run": record,
        "chexgenbench": chexgenbench.__version__,
        "format": format,
        "pool": rows.pool,
        "side": rows.side,
        "prompts_included": rows.prompts,
        "images": len(rows),
        "left_out": rows.left_out,
        "near_copies": {
            "kept": int((rows.near_copy == 1).sum()),
            "not_examined": int(pd.isna(rows.near_copy).sum()),
            "examined_in_run": rows.examined,
        },
        "metadata_removed": choice.changed,
        "where": choice.where,
        "limit": choice.limit,
        "allow_near_copies": choice.allow_near_copies,
        "keep_flagged": choice.keep_flagged,
        "judge": dict(choice.judge) if choice.judge else None,
        "qualities": list(choice.qualities),
        "licences": {"weights": choice.licences[0], "split": choice.licences[1]},
    }


def card(rows: Rows, choice: Choice, format: Format) -> str:
    """The text of ``README.md``: a front matter that the hub reads, and what people must know."""
    from huggingface_hub import DatasetCardData

    name = f"Synthetic chest radiographs of {rows.record.model}"
    # Of an image folder, the types are those that JSON gives.
    described = [{"name": column, "dtype": kind} for column, kind in features(rows).items()]
    more: dict[str, Any] = {}
    if format == "parquet":
        more["dataset_info"] = {"features": described}
    files = [{"split": "train", "path": data_files(format)}]
    data = DatasetCardData(
        license=_licence(choice.licences),
        pretty_name=name,
        task_categories=["text-to-image", "image-classification"],
        tags=["chest-x-ray", "medical", "synthetic", "chexgenbench"],
        size_categories=[_size(len(rows))],
        configs=[{"config_name": "default", "data_files": files}],
        **more,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {escape(name)}\n",
        f"{len(rows)} images that a model made. Not for diagnosis.\n",
        "## Copies of training images\n",
        f"{escape(privacy_remark(rows))}\n",
        "## Content\n",
        _content(rows, choice),
        "## How it was chosen\n",
        _chosen(rows, choice),
        "## Where it comes from\n",
        _origin(rows),
        "## Licence\n",
        f"Weights of the model: {escape(choice.licences[0])}. Prompts and labels, of the split "
        f"{escape(rows.record.split)}: {escape(choice.licences[1])}.\n",
        "## Scores of the run\n",
        f"Of all {rows.record.n_images} images that the run scored, not of the choice that is "
        "here; intervals are of 95 %.\n",
        _scores(rows.counted),
    ]
    return "\n".join(parts)


def escape(text: object) -> str:
    """One line of Markdown that shows `text` as it is.

    >>> escape("a|b <i>*x*")
    'a\\\\|b \\\\<i\\\\>\\\\*x\\\\*'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _content(rows: Rows, choice: Choice) -> str:
    lines = ["- `image`, and `file_name` and `sha256` of its file; `source_sha256` of the run's"]
    if choice.changed:
        lines.append(
            f"- {_images(choice.changed)} without the text, EXIF, colour profile or other metadata "
            "of the run's file; the pixels are the same"
        )
    if rows.prompts:
        lines.append("- `prompt`, `prompt_id`: what the model was asked for")
    else:
        lines.append(
            "- no prompts and no ids of prompts: the split is credentialed and its prompts are "
            "report text; files are numbered"
        )
    lines += [
        "- the 14 findings of the prompt's row: 1 present, 0 absent, -1 uncertain, null not "
        "mentioned. They are labels of the prompt and not read off the image",
        f"- `quality`: {'by the judge' if choice.judge else 'null, no judge was asked'}",
        "- `seed`, `repeat` (0 for the first image of a prompt), `model`, `split`",
    ]
    if rows.scores:
        lines.append(f"- scores of the image: {', '.join(map(_code, rows.scores))}")
    return "\n".join(lines) + "\n"


def _chosen(rows: Rows, choice: Choice) -> str:
    asked = f"the {rows.side} prompts" + (f" (pool {_code(rows.pool)})" if rows.pool else "")
    lines = [f"- images made for {asked} of the split {escape(rows.record.split)}"]
    lines += [f"- left out: {count}, {escape(why)}" for why, count in rows.left_out.items()]
    if choice.where:
        lines.append(f"- condition: {_code(' '.join(choice.where.split()))}")
    if choice.limit is not None:
        lines.append(f"- the first {choice.limit} of those")
    if choice.keep_flagged:
        lines.append("- images flagged as black, constant, NaN or duplicate were kept")
    if choice.judge:
        counts = ", ".join(f"{count} {name}" for name, count in choice.judge["counts"].items())
        lines.append(
            f"- judge {_code(choice.judge['name'])}: {escape(counts)}; kept: "
            f"{escape(', '.join(choice.qualities))}"
        )
        if choice.judge.get("not_judged"):
            lines.append(f"- {escape(choice.judge['not_judged'])}")
    return "\n".join(lines) + "\n"


def _origin(rows: Rows) -> str:
    record = rows.record
    made = record.versions.get("generation", record.versions)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(made.items()))
    pairs = {
        "run": record.run_id,
        "suite": record.suite,
        "protocol": record.protocol,
        "model": record.model,
        "plugin": record.model_plugin or "none, the images were there",
        "parameters": json.dumps(record.model_parameters, sort_keys=True, ensure_ascii=False),
        "seed of the run": record.seed,
        "device, precision": f"{record.device}, {record.dtype}",
        "made with": versions,
        "commit": record.commit or "not known",
        "run begun": record.created_at,
    }
    for name, value in record.weights.items():
        pairs[f"SHA-256 of {name}"] = value
    return _table(("fact", "value"), list(pairs.items()))


def _scores(scores: pd.DataFrame) -> str:
    whole = scores[scores["subset"].isin([OVERALL, MACRO])]
    rows = [
        (
            score["metric"],
            score["encoder"],
            score["subset"],
            "none" if pd.isna(score["value"]) else f"{score['value']:.5g}",
            "none"
            if pd.isna(score["ci_low"])
            else f"{score['ci_low']:.5g} to {score['ci_high']:.5g}",
            "higher" if score["higher_is_better"] else "lower",
            _remarks(score),
        )
        for score in whole.to_dict("records")
    ]
    heads = ("score", "encoder", "subset", "value", "interval", "better", "to know")
    return _table(heads, rows)


def _remarks(score: Mapping[Hashable, Any]) -> str:
    """What a reader must know of the value; a warning may begin with the reason.

    The message of a failure may quote what does not leave, such as a path; its kind does not.
    """
    if score["status"] == "failed":
        kind = str(score["reason"]).partition(":")[0]
        return f"failed ({kind})" if kind.isidentifier() else "failed"
    reason, warning = (
        "" if pd.isna(score[name]) else str(score[name]) for name in ("reason", "warning")
    )
    if reason in warning:
        return warning
    return "; ".join(text for text in (reason, warning) if text)


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *(map(escape, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _code(text: str) -> str:
    """Inline code, fenced by more backticks than stand in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"`{text}`"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _size(count: int) -> str:
    """The hub's name for so many rows.

    >>> _size(40), _size(1000), _size(75_649)
    ('n<1K', '1K<n<10K', '10K<n<100K')
    """
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")]
    bounds += [(1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M")]
    return next((name for bound, name in bounds if count < bound), "10M<n<100M")


def _licence(licences: tuple[str, str]) -> str:
    """The hub's name where both are one that it knows, else ``other``: see the card's text."""
    both = {text.lower() for text in licences}
    known = both & {"apache-2.0", "mit", "cc-by-4.0", "cc0-1.0"}
    return known.pop() if len(both) == 1 and known else "other"
