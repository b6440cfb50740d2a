"""Utility without training a network: logistic regression on an encoder's features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from chexgenbench import (
    Context,
    ImageNeed,
    MetricSpec,
    Parameters,
    Task,
    TaskMetric,
    TaskResult,
    hookimpl,
)
from chexgenbench_plugins.classification.data import Uncertain, by_id, check_tables, targets
from chexgenbench_plugins.classification.regimes import REAL, SYNTHETIC, compose, gathered, held_out
from chexgenbench_plugins.classification.scores import (
    AUROC,
    AUROC_DIFFERENCE,
    Predictions,
    utility_scores,
)

if TYPE_CHECKING:
    from chexgenbench.splits.prompts import PromptTable


class ProbeParameters(Parameters):
    images: int | None = Field(
        None, ge=10, description="Training prompts at most; by default all of them."
    )
    regimes: tuple[Literal["real", "synthetic", "mixed", "augmented"], ...] = Field(
        ("real", "synthetic", "augmented"),
        min_length=1,
        description="What to train on: real, synthetic, mixed (half of the real images replaced), "
        "augmented (real and synthetic).",
    )
    penalties: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.001, 0.01, 0.1, 1.0),
        min_length=1,
        description="Values of C (1 over the l2 penalty) to choose from by validation.",
    )
    validation: float = Field(
        0.2, gt=0, lt=1, description="Share of training patients to choose the penalty by."
    )
    halvings: int = Field(
        10, ge=2, le=1000, description="Halvings of the training patients, for the errors."
    )
    uncertain: Uncertain = Field(
        "ignore", description="What an uncertain label teaches: nothing, positive or negative."
    )
    without_patients: bool = Field(
        False, description="Take each row for a patient where the split knows none."
    )


class LinearProbe(TaskMetric):
    """A probe on frozen features (Alain and Bengio 2016, arXiv 1610.01644), tested on real ones."""

    parameters: ProbeParameters

    @classmethod
    def needs(cls, parameters: ProbeParameters) -> Mapping[str, ImageNeed]:
        prompts = parameters.images
        return {
            "real": ImageNeed(side="training", source="real", prompts=prompts),
            "synthetic": ImageNeed(side="training", source="model", prompts=prompts),
            "test": ImageNeed(side="test", source="real"),
        }

    @classmethod
    def check(
        cls, parameters: ProbeParameters, context: Context, tables: Mapping[str, PromptTable]
    ) -> Sequence[str]:
        return check_tables("linear-probe", tables, without_patients=parameters.without_patients)

    def run(self, task: Task) -> TaskResult:
        import numpy as np

        from chexgenbench_plugins.classification.probe import fit_predict, halves

        own = self.parameters
        real, synthetic, test = (by_id(task.sets[name]) for name in ("real", "synthetic", "test"))
        goals = [targets(images.labels, own.uncertain) for images in (real, synthetic)]
        features = [real.features, synthetic.features]
        owners = [real.patients, synthetic.patients]
        held = held_out(real, own.validation, task.seed)
        found: dict[str, Predictions] = {}
        with task.stage("linear probes", len(own.regimes), "regimes") as advance:
            for regime in dict.fromkeys(own.regimes):
                part = compose(regime, real, synthetic, held, task.seed)
                train, validation = (
                    (gathered(features, rows), gathered(goals, rows))
                    for rows in (part.train, part.validation)
                )
                rows = np.concatenate([part.train, part.validation])
                patients = np.array([owners[source][row] for source, row in rows.tolist()])
                fits = fit_predict(
                    task,
                    train,
                    validation,
                    test.features,
                    own.penalties,
                    halves(patients, own.halvings, task.seed),
                )
                found[regime] = Predictions(
                    probabilities=fits[:1],
                    thresholds=None,
                    n_real=part.count(REAL),
                    n_fake=part.count(SYNTHETIC),
                    refits=fits[1:],
                )
                advance(1)
        return TaskResult(scores=utility_scores(test, found, full=False, prefix="probe_"))


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="linear-probe",
        summary="Findings told by logistic regression on features, trained on real or synthetic",
        load=LinearProbe,
        metric="task",
        scores=(
            replace(AUROC, name="probe_auroc"),
            replace(AUROC_DIFFERENCE, name="probe_auroc_difference"),
        ),
        pitfalls=(
            "It asks what the encoder can tell: artefacts that the encoder does not see cost "
            "nothing.",
            "A copy of the training side teaches as much as the training side: read privacy too.",
        ),
        parameters=ProbeParameters,
        requires=("sklearn",),
        references=("https://arxiv.org/abs/1610.01644",),
        licence="Apache-2.0",
    )
