"""What the labeller by rules finds: against Open-I indexers, the phantom's grammar, and the clock.

    python benchmarks/labelling.py [--reports FOLDER]

The reports of Open-I are those in the package torchxrayvision, or FOLDER/ecgen-radiology/*.xml.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from chexgenbench import FINDINGS
from chexgenbench_plugins.labelling.rules import RuleLabeller
from chexgenbench_plugins.open_i.mesh import mesh_labels
from chexgenbench_plugins.open_i.reports import read_collection
from chexgenbench_plugins.reports.labellers import PhantomLabeller

DEMO = Path(__file__).resolve().parent.parent / "MIMIC_Splits" / "demo"


def open_i(folder: Path) -> None:
    reports = [
        report
        for report in read_collection(folder, None).reports
        if (report.findings or report.impression) and "No Indexing" not in report.mesh
    ]
    texts = [f"{report.findings}\n\n{report.impression}" for report in reports]
    started = time.perf_counter()
    found = RuleLabeller().label(texts)
    seconds = time.perf_counter() - started
    truth = np.array([mesh_labels(report.mesh) for report in reports]) == 1
    print(f"\n{len(texts)} reports of Open-I in {seconds:.1f} s\n")
    print("| finding | indexed | stated | doubted | precision | recall | recall with doubts |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for column, finding in enumerate(FINDINGS):
        stated, doubted = found[:, column] == 1, found[:, column] == -1
        known = truth[:, column]
        both, either = (stated & known).sum(), ((stated | doubted) & known).sum()
        print(
            f"| {finding} | {known.sum()} | {stated.sum()} | {doubted.sum()} "
            f"| {both / stated.sum():.3f} | {both / known.sum():.3f} | {either / known.sum():.3f} |"
        )


def phantom() -> None:
    for side in ("TRAIN", "TEST"):
        path = DEMO / f"DEMO_ANNOTATIONS_{side}.csv"
        with path.open(newline="", encoding="utf-8") as file:
            texts = [row["annotated_prompt"] for row in csv.DictReader(file)]
        one, other = RuleLabeller().label(texts), PhantomLabeller().label(texts)
        same = ((one == other) | (np.isnan(one) & np.isnan(other))).mean(axis=0)
        differing = {f: round(float(s), 4) for f, s in zip(FINDINGS, same, strict=True) if s < 1}
        print(f"{len(texts)} phantom reports ({side}): all labels equal but {differing}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=Path)
    folder = parser.parse_args().reports
    if folder is not None:
        open_i(folder)
    else:
        package = importlib.util.find_spec("torchxrayvision")
        if package is None or package.origin is None:
            raise SystemExit("torchxrayvision is not installed: name a folder with --reports")
        archive = Path(package.origin).parent / "data" / "NLMCXR_reports.tgz"
        with tempfile.TemporaryDirectory() as place, tarfile.open(archive) as packed:
            packed.extractall(place, filter="data")
            open_i(Path(place))
    phantom()


if __name__ == "__main__":
    main()
