"""From reports to the scores of the task metric: each regime, and regimes less ``real``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chexgenbench import FINDINGS, ImageSet, TaskScore
from chexgenbench.statistics import mean_estimate
from chexgenbench.statistics.difference import UnitInfluence, difference
from chexgenbench.statistics.estimate import Estimate
from chexgenbench_plugins.reports import scores
from chexgenbench_plugins.reports.experiment import texts_of
from chexgenbench_plugins.reports.labellers import CheXbert, PhantomLabeller
from chexgenbench_plugins.reports.settings import missing_scores, radgraph_python

if TYPE_CHECKING:
    from pathlib import Path

    from chexgenbench import Context
    from chexgenbench_plugins.reports.labellers import Labeller
    from chexgenbench_plugins.reports.settings import ReportParameters, Uncertain

ByReport = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]

ONE_TRAINING = "one training: the interval does not say what another seed would give"


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """What reports are scored by.

    Attributes:
        by_report: name to a function of written and generated reports, a value a report.
        labeller: reads the findings off a report; None: no F1 of labels.
        uncertain: what an uncertain label counts as.
        missing: name of a score that is not taken to the reason.
    """

    by_report: Mapping[str, ByReport]
    labeller: Labeller | None
    uncertain: Uncertain
    missing: Mapping[str, str] = field(default_factory=dict)


def scorer_of(
    parameters: ReportParameters, context: Context, folders: Mapping[str, Path]
) -> Scorer:
    """What the parameters ask for; the labeller is loaded, the rest when it is used."""
    by_report: dict[str, ByReport] = {"rouge_l": scores.rouge_l}
    if "nltk_data" in folders:
        by_report["meteor"] = partial(scores.meteor, nltk_data=folders["nltk_data"])
    if "bertscore" in folders:
        by_report["bertscore"] = partial(
            scores.bert_score,
            folder=folders["bertscore"],
            layer=parameters.bertscore_layer,
            device=context.device,
        )
    if "radgraph" in folders:
        by_report["radgraph_f1"] = partial(
            scores.radgraph_f1,
            folder=folders["radgraph"],
            python=radgraph_python(context),
            device=context.device,
        )
    labeller: Labeller | None = None
    if parameters.labeller == "phantom":
        labeller = PhantomLabeller()
    elif parameters.labeller == "chexbert" and "chexbert" in folders:
        labeller = CheXbert(
            folders["chexbert"], device=context.device, allow_pickle=context.allow_pickle
        )
    return Scorer(
        by_report=by_report,
        labeller=labeller,
        uncertain=parameters.uncertain,
        missing=missing_scores(parameters),
    )


def report_scores(
    test: ImageSet,
    regimes: Mapping[str, Sequence[str]],
    scorer: Scorer,
    *,
    counts: Mapping[str, tuple[int, int]],
) -> list[TaskScore]:
    """The scores of each regime's reports for the real test images.

    The control of a score is what the same reports say of the image of another patient: what a
    generator reaches that writes good reports and does not look.

    Args:
        test: the real test images, whose rows hold the written reports.
        regimes: the generated reports [n] by regime.
        scorer: what to score by.
        counts: real and synthetic images that each regime was trained on.
    """
    written, patients = texts_of(test), test.patients
    other = swapped(patients)
    found: list[TaskScore] = []
    kept: dict[tuple[str, str, str], UnitInfluence] = {}
    for regime, made in regimes.items():
        n_real, n_fake = counts[regime]
        table = _table(written, list(made), patients, scorer)
        controls = None
        if other is not None:
            controls = _table(written, [made[at] for at in other.tolist()], patients, scorer)
        for (name, subset), estimate in table.items():
            kept[regime, name, subset] = UnitInfluence.of(estimate, patients)
            found.append(
                TaskScore(
                    name=name,
                    variant=regime,
                    subset=subset,
                    estimate=replace(estimate, warning=estimate.warning or ONE_TRAINING),
                    control=None if controls is None else controls[name, subset].value,
                    n_real=len(test) + n_real,
                    n_fake=n_fake,
                )
            )
        for name, subset, reason in _untaken(table, scorer):
            found.append(TaskScore(name=name, variant=regime, subset=subset, estimate=reason))
    for (regime, name, subset), mine in kept.items():
        if regime == "real" or subset != "overall" or ("real", name, subset) not in kept:
            continue
        gap = difference(kept["real", name, subset], mine)
        found.append(
            TaskScore(
                name=f"{name}_difference",
                variant=f"{regime}_minus_real",
                estimate=replace(gap, warning=gap.warning or ONE_TRAINING),
                n_real=len(test) + counts[regime][0],
                n_fake=counts[regime][1],
            )
        )
    return found


def swapped(patients: NDArray[np.str_]) -> NDArray[np.int64] | None:
    """For each row [n] a row of another patient, each row once; None where one patient has more
    than half of the rows.

    Which one depends on the rows' order within a patient and on the patients' names alone.

    >>> swapped(np.array(["a", "a", "b", "c"])).tolist()
    [2, 3, 0, 1]
    """
    order = np.argsort(patients, kind="stable")
    most = int(np.unique(patients, return_counts=True)[1].max())
    if 2 * most > len(patients):
        return None
    found = np.empty(len(patients), np.int64)
    found[order] = np.roll(order, -most)
    return found


def _table(
    written: Sequence[str],
    made: Sequence[str],
    patients: NDArray[np.str_],
    scorer: Scorer,
) -> dict[tuple[str, str], Estimate]:
    """Scores by (name, subset)."""
    found = {
        ("bleu1", "overall"): scores.bleu(written, made, order=1, groups=patients),
        ("bleu4", "overall"): scores.bleu(written, made, order=4, groups=patients),
    }
    for name, values in scorer.by_report.items():
        found[name, "overall"] = mean_estimate(values(written, made), groups=patients)
    if scorer.labeller is None:
        return found
    truth = scorer.labeller.label(written)
    parts = scores.label_parts(truth, scorer.labeller.label(made), uncertain=scorer.uncertain)
    known = scores.well_known(truth, uncertain=scorer.uncertain)
    for suffix, among in (("", FINDINGS), ("_5", scores.FIVE)):
        columns = [at for at in known if FINDINGS[at] in among]
        left = [name for name in among if FINDINGS.index(name) not in columns]
        warning = f"without {', '.join(left)}: fewer than 2 reports state it" if left else None
        for average in ("micro", "macro") if columns else ():
            f1 = scores.label_f1(parts, average=average, groups=patients, columns=columns)
            found[f"label_f1_{average}{suffix}", "overall"] = replace(f1, warning=warning)
    for at in known:
        f1 = scores.label_f1(parts, average="macro", groups=patients, columns=[at])
        found["label_f1", FINDINGS[at]] = f1
    return found


def _untaken(
    table: Mapping[tuple[str, str], Estimate], scorer: Scorer
) -> list[tuple[str, str, str]]:
    """Name, subset and reason of the scores that are not there."""
    found = [(name, "overall", reason) for name, reason in scorer.missing.items()]
    if scorer.labeller is not None:
        reason = "fewer than 2 written reports state it"
        found += [
            ("label_f1", name, reason) for name in FINDINGS if ("label_f1", name) not in table
        ]
    return found
