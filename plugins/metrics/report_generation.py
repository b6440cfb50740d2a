"""Utility by report generation: train on generated images, write reports for real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chexgenbench import (
    Context,
    ImageNeed,
    MetricSpec,
    Task,
    TaskMetric,
    TaskResult,
    UserError,
    hookimpl,
)
from chexgenbench_plugins.classification.data import by_id
from chexgenbench_plugins.reports.settings import (
    METRIC,
    SPECS,
    ReportParameters,
    check_files,
    files_of,
    folders_of,
    remarks,
)

if TYPE_CHECKING:
    from chexgenbench.splits.prompts import PromptTable


class ReportGeneration(TaskMetric):
    """See docs/utility.md for regimes, generators, labellers and errors."""

    parameters: ReportParameters

    @classmethod
    def needs(cls, parameters: ReportParameters) -> Mapping[str, ImageNeed]:
        return {
            "real": ImageNeed(side="training", source="real", prompts=parameters.images),
            "synthetic": ImageNeed(side="training", source="model", prompts=parameters.images),
            "test": ImageNeed(side="test", source="real"),
        }

    @classmethod
    def weights(cls, parameters: ReportParameters, context: Context) -> Mapping[str, Path]:
        return files_of(parameters, folders_of(parameters, context))

    @classmethod
    def check(
        cls, parameters: ReportParameters, context: Context, tables: Mapping[str, PromptTable]
    ) -> Sequence[str]:
        for side, table in tables.items():
            if len(table) < 2:
                raise UserError(f"{METRIC} needs two {side} rows at least, and has {len(table)}.")
        from chexgenbench_plugins.patients import check_patients

        patients = check_patients(
            METRIC, {"test": tables["test"]}, without_patients=parameters.without_patients
        )
        check_files(parameters, context)
        return [*patients, *remarks(parameters)]

    def run(self, task: Task) -> TaskResult:
        from chexgenbench_plugins.reports.experiment import compose, reports_of
        from chexgenbench_plugins.reports.generators import generator_of
        from chexgenbench_plugins.reports.results import report_scores, scorer_of

        own = self.parameters
        # In whatever order rows come: training, batches and resampling follow this one.
        sets = {name: by_id(images) for name, images in task.sets.items()}
        task = replace(task, sets=sets)
        folders = folders_of(own, task.context)
        scorer = scorer_of(own, task.context, folders)
        generator = generator_of(own, task.context, folders, task.seed)
        regimes = {regime: reports_of(task, regime, generator) for regime in own.regimes}
        counts = {}
        for regime in own.regimes:
            pairs = compose(regime, sets["real"], sets["synthetic"], task.seed)
            made = sum(synthetic for synthetic, _ in pairs)
            counts[regime] = (len(pairs) - made, made)
        return TaskResult(
            scores=report_scores(sets["test"], regimes, scorer, counts=counts),
            notes=remarks(own),
        )


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name=METRIC,
        summary="Reports of real images by a model trained on real, synthetic or both",
        load=ReportGeneration,
        metric="task",
        output=None,
        scores=SPECS,
        pitfalls=(
            "A generator that writes good reports and does not look has more than zero: read the "
            "floor, which is of reports of other patients.",
            "Scores of words punish another choice of words, and do not see a missed finding.",
            "The interval is for other test patients, not for another training.",
        ),
        parameters=ReportParameters,
        requires=("accelerate", "transformers", "sacrebleu", "rouge_score"),
        references=("https://arxiv.org/abs/2505.10496", "https://arxiv.org/abs/2403.08002"),
        licence="Apache-2.0",
    )
