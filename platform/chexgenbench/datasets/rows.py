"""The images of a run as rows: prompt, labels, scores; and which of them may leave."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from chexgenbench.errors import UserError, unknown_name
from chexgenbench.files import inside
from chexgenbench.home import Home
from chexgenbench.splits.condition import select_rows
from chexgenbench.store.image_files import generated_image
from chexgenbench.store.records import RunRecord
from chexgenbench.store.run_directory import read_record, read_table
from chexgenbench.types import FINDINGS

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAR_COPY = "near_copy"
"""The per-image score by which a privacy metric says that an image must not leave: 1."""

SPOILT = frozenset({"black", "constant", "nan", "duplicate", "safety_blank"})
"""Flags of images that are no use to anybody; others, such as ``truncated``, are for filters."""

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,199}")


@dataclass(frozen=True, eq=False)
class Rows:
    """Images of one run, in the order of its prompts.

    Attributes:
        table: ``file_name``, ``prompt``, ``prompt_id``, the findings (Int8: 1, 0, -1, missing),
            ``quality`` (missing until a judge spoke), ``seed``, ``repeat``, ``model``, ``split``,
            a column a score (``alignment@biomedclip``), ``sha256`` (which an export writes anew
            for a file that loses metadata), ``source_sha256`` (the run's), ``flags``.
        paths: where each image lies.
        near_copy: float64 [n], 1 where a privacy metric says so, of this image or of one of equal
            content in the run, 0 where it looked and found no copy, NaN where none looked.
        examined: of how many images of the run, here or not, a privacy metric said whether they
            are near-copies.
        scores: the score columns of `table`.
        counted: the run's scores, a row each, as in the store.
        side: the side of the split that the prompts are of, ``test`` or ``training``.
        pool: which of the run's image sets; None: the images that it scored.
        left_out: why rows of the run are not here, to how many.
        prompts: whether the prompts and their ids are in the table.
    """

    record: RunRecord
    table: pd.DataFrame
    paths: tuple[Path, ...]
    near_copy: NDArray[np.float64]
    scores: tuple[str, ...]
    counted: pd.DataFrame
    side: str
    pool: str | None
    left_out: dict[str, int] = field(default_factory=dict)
    prompts: bool = True
    examined: int = 0

    def __len__(self) -> int:
        return len(self.table)

    @property
    def columns(self) -> tuple[str, ...]:
        """What an export writes of `table`, in order; prompts only where they may leave."""
        text = ("prompt", "prompt_id") if self.prompts else ()
        known = ("quality", "seed", "repeat", "model", "split")
        return ("file_name", *text, *FINDINGS, *known, *self.scores, "sha256", "source_sha256")

    def keep(self, mask: NDArray[np.bool_], why: str) -> Rows:
        """The rows where `mask` is true; how many go, and why, is remembered."""
        gone = int((~mask).sum())
        left_out = dict(self.left_out)
        if gone:
            left_out[why] = left_out.get(why, 0) + gone
        chosen = np.flatnonzero(mask)
        return replace(
            self,
            table=self.table.iloc[chosen].reset_index(drop=True),
            paths=tuple(self.paths[i] for i in chosen.tolist()),
            near_copy=self.near_copy[chosen],
            left_out=left_out,
        )

    def where(self, condition: str) -> NDArray[np.bool_]:
        """Bool [n]: the rows for which an SQL condition over `table` (as ``images``) is true.

        Raises:
            UserError: see `select_rows`.
        """
        hidden = [] if self.prompts else ["prompt", "prompt_id"]
        return select_rows(self.table.drop(columns=[*hidden, "quality"]), condition, "images")


def read_rows(home: Home, run_id: str, pool: str | None, *, include_credentialed: bool) -> Rows:
    """All images of a run, or of one of its pools.

    The prompts of a credentialed split are report text, and their ids (which file names repeat)
    lead to the report: without `include_credentialed` neither is among the columns.

    Args:
        pool: a name in the run's ``pool_images``; None: the images that the run scored.

    Raises:
        UserError: the run is not finished or has no such pool.
    """
    folder = inside(home.runs, run_id)
    record = read_record(folder)
    if record.status != "finished":
        raise UserError(
            f"Run {run_id} is {record.status}; only a finished one can be exported.",
            hint="Repeat its command: it goes on where it was.",
        )

    def read(name: str) -> pd.DataFrame:
        frame: pd.DataFrame = read_table(folder, name, record).to_pandas()
        return frame

    side = "test"
    if pool is None:
        images, prompts = read("images"), read("prompts")
    else:
        images, prompts = read("pool_images"), read("pool_prompts")
        known = sorted(images["pool"].unique())
        if pool not in known:
            raise unknown_name(f"pool of run {run_id}", pool, known)
        images = images[images["pool"] == pool]
        side = str(images["side"].iloc[0])
        prompts = prompts[prompts["side"] == side]
    of_prompts = ["prompt_id", "prompt", "line", *FINDINGS]
    table = images.merge(prompts[of_prompts], on="prompt_id", how="left", validate="m:1")
    table = table.sort_values(["line", "prompt_id", "repeat"], kind="stable", ignore_index=True)
    values = read("sample_scores")
    copies = _near_copies(values, [read("images"), read("pool_images")])
    wide = _wide(values[values["metric"] != NEAR_COPY])
    table = table.merge(wide, on="image_id", how="left", validate="1:1")
    scores = tuple(name for name in wide.columns if name != "image_id")
    scores = tuple(name for name in scores if table[name].notna().any())
    prompts_leave = include_credentialed or not record.credentialed
    place = partial(generated_image, home.generations, own=record.model_plugin is None)
    try:
        paths = tuple(map(place, table["generation_id"], table["path"]))
    except ValueError as error:
        raise UserError(f"The record of an image cannot be used: {error}.") from error
    for finding in FINDINGS:
        table[finding] = table[finding].astype("Int8")
    table = table.assign(
        file_name=_file_names(paths, plain=prompts_leave),
        quality=pd.array([None] * len(table), dtype="str"),
        seed=table["seed"].astype("Int64"),
        repeat=table["repeat"].astype("Int64"),
        model=record.model,
        split=record.split,
        source_sha256=table["sha256"],
    )
    shown = ["file_name", "prompt", "prompt_id", *FINDINGS, "quality", "seed", "repeat"]
    shown += ["model", "split", *scores, "sha256", "source_sha256", "flags"]
    rows = Rows(
        record=record,
        table=table[shown],
        paths=paths,
        near_copy=np.asarray(table["sha256"].map(copies), np.float64),
        scores=scores,
        counted=read("scores"),
        side=side,
        pool=pool,
        prompts=prompts_leave,
        examined=_said(values)["image_id"].nunique(),
    )
    return rows.keep((table["status"] == "ok").to_numpy(np.bool_), "unreadable in the run")


def choose(rows: Rows, *, where: str | None, allow_near_copies: bool, keep_flagged: bool) -> Rows:
    """The rows that may leave and that the user wants.

    The condition sees all images of the run, so that a quantile in it does not depend on what else
    is left out.

    Raises:
        UserError: the condition cannot be used.
    """
    wanted = np.ones(len(rows), np.bool_) if where is None else rows.where(where)
    spoilt = np.array([bool(SPOILT & set(flags)) for flags in rows.table["flags"]], np.bool_)
    copies = rows.near_copy == 1
    reasons = (
        (copies & (not allow_near_copies), "near-copies of training images"),
        (spoilt & (not keep_flagged), "black, constant, NaN or duplicate"),
        (~wanted, "not chosen by --where"),
    )
    left = np.arange(len(rows))
    for gone, why in reasons:
        stay = ~gone[left]
        rows, left = rows.keep(stay, why), left[stay]
    return rows


def judged(rows: Rows, answers: Sequence[str], keep: Sequence[str]) -> Rows:
    """The rows with their quality, those of the qualities in `keep`."""
    quality = pd.array(list(answers), dtype="str")
    table = rows.table.assign(quality=quality)
    mask = np.isin(np.asarray(answers, dtype=np.str_), list(keep))
    return replace(rows, table=table).keep(mask, "of another quality")


def _near_copies(values: pd.DataFrame, images: Sequence[pd.DataFrame]) -> pd.Series[float]:
    """Content of an image to the worst that a privacy metric said of any image of that content."""
    known = pd.concat([part[["image_id", "sha256"]] for part in images], ignore_index=True)
    both = _said(values).merge(known, on="image_id")
    worst: pd.Series[float] = both.groupby("sha256")["value"].max()
    return worst


def _said(values: pd.DataFrame) -> pd.DataFrame:
    return values[(values["metric"] == NEAR_COPY) & values["value"].notna()]


def _wide(scores: pd.DataFrame) -> pd.DataFrame:
    """One row an image, one column a score, in the order of their names."""
    at = scores["encoder"].where(scores["encoder"] == "", "@" + scores["encoder"])
    named = scores.assign(score=scores["metric"] + at, value=scores["value"].astype(np.float64))
    finite = named[np.isfinite(named["value"])]
    wide: pd.DataFrame = finite.pivot(
        index="image_id", columns="score", values="value"
    ).reset_index()
    wide.columns.name = None
    return wide


def _file_names(paths: Sequence[Path], *, plain: bool) -> list[str]:
    """A name for each file: its own where those are plain and unlike, else numbers."""
    names = [path.name for path in paths]
    unlike = len({name.lower() for name in names}) == len(names)
    if plain and unlike and all(map(_PLAIN.fullmatch, names)):
        return names
    digits = max(6, len(str(len(names))))
    return [
        f"{number:0{digits}d}{PurePosixPath(name).suffix.lower()}"
        for number, name in enumerate(names)
    ]
