"""A project folder of made-up runs, of any size: every table that a report is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from chexgenbench.files import sha256_file
from chexgenbench.home import Home
from chexgenbench.store.records import RUN_TABLES, RunRecord
from chexgenbench.store.run_directory import write_run
from chexgenbench.store.store import Store
from chexgenbench.types import FINDINGS

ENCODER = "rad-dino"
"""One that the paper's numbers are on."""

FIDELITY = {
    "fid": False,
    "kid": False,
    "precision": True,
    "recall": True,
    "density": True,
    "coverage": True,
    "alignment": True,
}
PRIVACY = {"replicated_rate": False, "reid_rate": False, "membership_auc_nearest": False}
REGIMES, RATIOS = ("real", "synthetic", "mixed", "augmented"), (0.25, 0.5, 1.0)
UTILITY = ("auroc", "auprc", "f1")
SECONDS = {"generate": 31.5, "encode real": 4.25, "encode generated": 5.5, "score": 2.5, "write": 1}
REASON = "needs more than 20 images a side"


def make_home(
    folder: Path,
    models: Sequence[str],
    prompts: int,
    *,
    files: int = 4,
    pixels: int = 64,
    split: str = "mimic-cxr",
    protocol: str = "legacy",
    credentialed: bool = False,
    text: str = "Report of study",
    reason: str = REASON,
    metrics: Sequence[str] = (),
    suites: Sequence[str] = (),
    privacy: bool = True,
    utility: bool = True,
) -> Home:
    """Writes a finished run a model and takes them into a store.

    Args:
        prompts: prompts, and images of each model.
        files: image files a model; its images share them.
        text: what each prompt begins with.
        reason: why a score was not taken for Fracture.
        metrics: names of further scores, of a plugin ``other``.
        suites: of each model, where they are of several.
    """
    home = Home(folder)
    random = np.random.default_rng(0)
    root = folder / "real"
    _draw(root, files, pixels, random)
    ids = [f"s{place}" for place in range(prompts)]
    chosen = [f"{place % files}.png" for place in range(prompts)]
    labels = {
        finding: np.where(random.random(prompts) < 0.02 + 0.02 * place, 1.0, np.nan)
        for place, finding in enumerate(FINDINGS)
    }
    order = np.arange(prompts)
    hashes = {file.name: sha256_file(file) for file in root.iterdir()}
    folders = []
    for place, model in enumerate(models):
        generation = f"{place:016x}"
        images = home.generations / generation / "images"
        images.mkdir(parents=True)
        for file in root.iterdir():
            os.link(file, images / file.name)
        run = f"{place:04x}" + "0" * 12
        record = RunRecord(
            run_id=run,
            suite=suites[place] if suites else "made-up",
            model=model,
            model_plugin=model,
            split=split,
            protocol=protocol,
            seed=0,
            status="finished",
            generation_id=generation,
            model_parameters={"steps": 20 + place},
            n_prompts=prompts,
            n_images=prompts,
            device="cuda",
            dtype="float16",
            seconds_generating=prompts * (1 + place),
            images_per_second=1 / (1 + place),
            workers=1,
            threads=1,
            peak_memory=int(1e9) * (1 + place),
            n_cut_batches=0,
            remarks=[f"a remark on {model}"],
            created_at=f"2026-01-01T00:00:{place:02d}+00:00",
            finished_at=f"2026-01-02T00:00:{place:02d}+00:00",
            credentialed=credentialed,
            images_root=str(root),
            versions={"chexgenbench": "0.1.0"},
            weights={"unet": "0" * 64},
            hardware={"processor": "made up", "system": "Linux", "devices": ["cuda:0"]}
            | ({"seconds": SECONDS} if place else {}),  # the first is of an older release
            metrics={
                "fid": {"parameters": {}},
                "classification": {"parameters": {"regimes": REGIMES, "ratios": RATIOS}},
            },
        )
        scores = _scores(record, place, len(models), prompts, reason, metrics, privacy, utility)
        shared = {"run_id": run, "prompt_id": ids}
        path = [f"images/{name}" for name in chosen]
        tables: dict[str, Any] = {
            name: table.empty_table() for name, table in RUN_TABLES.items()
        } | {
            "scores": scores,
            "differences": _differences(scores, place),
            "prompts": _rows(
                "prompts",
                **shared,
                split=split,
                prompt=[f"{text} {name}" for name in ids],
                patient_id=[f"patient-{name}" for name in ids],
                image_path=chosen,
                line=order + 2,
                **labels,
            ),
            "images": _rows(
                "images",
                **shared,
                generation_id=generation,
                image_id=ids,
                repeat=0,
                seed=order,
                path=path,
                sha256=[hashes[name] for name in chosen],
                flags=[[] for _ in ids],
                status="ok",
            ),
            "sample_scores": _rows(
                "sample_scores",
                **shared,
                image_id=ids,
                metric="alignment",
                encoder=ENCODER,
                value=random.random(prompts),
            ),
        }
        if privacy:
            at = order[: min(16, prompts)]
            tables["neighbours"] = _rows(
                "neighbours",
                run_id=run,
                plugin="memorisation",
                encoder=ENCODER,
                kind="nearest_training",
                rank=at + 1,
                value=at / 10,
                flagged=at < 2,
                image_id=[ids[each] for each in at],
                prompt_id=[ids[each] for each in at],
                path=[str(images / chosen[each]) for each in at],
                other_side="training",
                other_real=True,
                other_path=[str(root / chosen[-1 - each]) for each in at],
            )
        write_run(home.runs / run, record, tables)
        folders.append(home.runs / run)
    Store(home.store).ingest(folders)
    return home


def _rows(table: str, **columns: Any) -> pd.DataFrame:
    """Rows of a table of a run directory; what is not named is null."""
    size = next(len(value) for value in columns.values() if not isinstance(value, str | int | bool))
    return pd.DataFrame(
        {name: columns.get(name) for name in RUN_TABLES[table].names}, index=range(size)
    )


def _draw(folder: Path, files: int, pixels: int, random: np.random.Generator) -> None:
    """Files that compress as a photograph does: a few waves and grain."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[0:pixels, 0:pixels] / pixels
    for place in range(files):
        waves = sum(np.sin(6 * (a * x + b * y + c)) for a, b, c in random.random((4, 3)))
        grey = 110 + 25 * waves + random.normal(0, 15, (pixels, pixels))
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / f"{place}.png")


def _scores(
    record: RunRecord,
    place: int,
    models: int,
    prompts: int,
    reason: str,
    metrics: Sequence[str],
    privacy: bool,
    utility: bool,
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []

    def add(metric: str, plugin: str, encoder: str, subset: str, higher: bool, **more: Any) -> None:
        share = (place + 1) / (models + 1)
        value = 1 - share if higher else share
        value += 0.001 * len(subset)  # subsets differ
        rows.append(
            dict.fromkeys(RUN_TABLES["scores"].names)
            | {
                "run_id": record.run_id,
                "model": record.model,
                "suite": record.suite,
                "metric": metric,
                "plugin": plugin,
                "encoder": encoder,
                "subset": subset,
                "value": value,
                "standard_error": 0.01,
                "ci_low": value - 0.02,
                "ci_high": value + 0.02,
                "n_real": prompts,
                "n_fake": prompts,
                "higher_is_better": higher,
                "status": "ok",
                "warning_level": 0,
                "basis": f"{metric} {subset}",
                "protocol": record.protocol,
                "seed": record.seed,
                "extra_info": "",
                "created_at": record.created_at,
            }
            | more
        )

    small = {"n_fake": 12, "n_real": 12, "warning_level": 2, "warning": "n < 50: 12 images"}
    none = {"value": None, "ci_low": None, "ci_high": None, "standard_error": None}
    for metric, higher in FIDELITY.items():
        for subset in ("overall", "macro", *FINDINGS):
            more: dict[str, Any] = small if subset == "Edema" else {}
            if subset == "Fracture" and metric == "recall":
                more = none | {"status": "skipped", "reason": reason}
            add(metric, metric, ENCODER, subset, higher, **more)
    for metric in metrics:
        add(metric, "other", "", "overall", True)
    if privacy:
        for metric, higher in PRIVACY.items():
            add(metric, "memorisation", ENCODER, "overall", higher)
            row = rows[-1]
            row |= {"floor": 0.1, "matched": row["value"], "n_floor": prompts}
            for name in ("value", "ci_low", "ci_high"):
                row[name.replace("value", "excess").replace("ci", "excess")] = row[name] - 0.1
    if utility:
        regimes = (*REGIMES, *(f"ratio-{ratio:g}" for ratio in RATIOS))
        for metric in UTILITY:
            for regime in regimes:
                for subset in ("macro", *FINDINGS):
                    add(f"{metric}_{regime}", "classification", "", subset, True)
    return pd.DataFrame(rows)


def _differences(scores: pd.DataFrame, place: int) -> pd.DataFrame:
    """Those from all earlier runs; only the first two models are alike."""
    columns = list(RUN_TABLES["differences"].names)
    part = scores.loc[scores["status"] == "ok", ["metric", "plugin", "encoder", "subset"]]
    parts = [
        part.assign(
            run_id=f"{place:04x}" + "0" * 12,
            other_run=f"{earlier:04x}" + "0" * 12,
            difference=0.1,
            standard_error=0.01,
            ci_low=0.08,
            ci_high=0.12,
            p_value=0.9 if place == 1 else 1e-6,
            p_holm=0.9 if place == 1 else 1e-5,
        )
        for earlier in range(place)
    ]
    empty = RUN_TABLES["differences"].empty_table().to_pandas()
    return pd.concat(parts, ignore_index=True).reindex(columns=columns) if parts else empty
