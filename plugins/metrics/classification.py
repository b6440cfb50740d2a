"""Utility by classification: train a network on generated images, test it on real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from chexgenbench import (
    Context,
    ImageNeed,
    Location,
    MetricSpec,
    Parameters,
    Task,
    TaskMetric,
    TaskResult,
    hookimpl,
)
from chexgenbench.files import sha256_file
from chexgenbench_plugins.classification.data import Uncertain, check_tables
from chexgenbench_plugins.classification.regimes import Regime, repeats_of, variants
from chexgenbench_plugins.classification.scores import (
    AT_THRESHOLD,
    AUPRC,
    AUROC,
    AUROC_DIFFERENCE,
    ECE,
    utility_scores,
)

if TYPE_CHECKING:
    from chexgenbench.splits.prompts import PromptTable

Ratio = Annotated[float, Field(gt=0, le=10)]


class ClassificationParameters(Parameters):
    images: int | None = Field(
        None, ge=10, description="Training prompts at most; by default all of them."
    )
    regimes: tuple[Regime, ...] = Field(
        ("real", "synthetic", "mixed", "augmented", "pretrained"),
        min_length=1,
        description="What to train on: real, synthetic, mixed (half of the real images replaced), "
        "augmented (real and synthetic), pretrained (synthetic, then real).",
    )
    ratios: tuple[Ratio, ...] = Field(
        (),
        description="Also all real images with so many synthetic ones for each, such as "
        "0.25,0.5,1,2; above 1 the model makes more than one image of each training prompt.",
    )
    seeds: int = Field(3, ge=1, le=100, description="Trainings of each regime.")
    backbone: str = Field("resnet50", description="A network of timm.")
    weights: Annotated[str | None, Location()] = Field(
        None,
        description="What the network starts from: a safetensors file, a folder with "
        "model.safetensors, or owner/name on the hub, such as timm/resnet50.a1_in1k, where that "
        "was downloaded; by default random weights.",
    )
    size: int = Field(224, ge=32, le=1024, description="Width and height in pixels.")
    epochs: int = Field(20, ge=1, description="Rounds through the training images.")
    batch_size: int = Field(64, ge=2, description="Images a step.")
    learning_rate: float = Field(1e-4, gt=0, description="Of Adam, at first.")
    augment: bool = Field(True, description="Turn, move, scale and light images a little.")
    validation: float = Field(
        0.1, gt=0, lt=1, description="Share of training patients to choose epoch and threshold by."
    )
    uncertain: Uncertain = Field(
        "ignore", description="What an uncertain label teaches: nothing, positive or negative."
    )
    without_patients: bool = Field(
        False, description="Take each row for a patient where the split knows none."
    )


class Classification(TaskMetric):
    """See docs/utility.md for regimes, splits and errors."""

    parameters: ClassificationParameters

    @classmethod
    def needs(cls, parameters: ClassificationParameters) -> Mapping[str, ImageNeed]:
        prompts = parameters.images
        return {
            "real": ImageNeed(side="training", source="real", prompts=prompts),
            "synthetic": ImageNeed(
                side="training",
                source="model",
                prompts=prompts,
                repeats=repeats_of(parameters.ratios),
            ),
            "test": ImageNeed(side="test", source="real"),
        }

    @classmethod
    def weights(cls, parameters: ClassificationParameters, context: Context) -> Mapping[str, Path]:
        from chexgenbench_plugins.classification.networks import weight_file

        found = weight_file(parameters.weights, context.home)
        return {} if found is None else {"backbone": found}

    @classmethod
    def check(
        cls,
        parameters: ClassificationParameters,
        context: Context,
        tables: Mapping[str, PromptTable],
    ) -> Sequence[str]:
        from chexgenbench_plugins.classification.networks import check_backbone

        check_backbone(parameters.backbone)
        return check_tables("classification", tables, without_patients=parameters.without_patients)

    def run(self, task: Task) -> TaskResult:
        from chexgenbench_plugins.classification.experiment import run_regimes
        from chexgenbench_plugins.classification.training import Settings

        own = self.parameters
        weights = self.weights(own, task.context).get("backbone")
        settings = Settings(
            backbone=own.backbone,
            size=own.size,
            epochs=own.epochs,
            batch_size=own.batch_size,
            learning_rate=own.learning_rate,
            augment=own.augment,
            weights=weights,
            weights_sha256="" if weights is None else sha256_file(weights),
        )
        test, found = run_regimes(
            task,
            settings,
            variants(own.regimes, own.ratios),
            seeds=own.seeds,
            validation=own.validation,
            uncertain=own.uncertain,
        )
        return TaskResult(scores=utility_scores(test, found))


@hookimpl
def chexgenbench_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="classification",
        summary="Findings told by a network trained on real, synthetic or both, on real images",
        load=Classification,
        metric="task",
        output=None,
        scores=(AUROC, AUROC_DIFFERENCE, AUPRC, *AT_THRESHOLD, ECE),
        pitfalls=(
            "Other training patients are not in the interval: it speaks for this training set.",
            "With one seed the spread between trainings is unknown, and a warning says so.",
            "augmented takes about twice the steps of real in as many epochs, and that alone can "
            "help a short training.",
            "Labels are read off reports by a program, and its mistakes are in every regime.",
        ),
        parameters=ClassificationParameters,
        requires=("timm", "accelerate"),
        references=("https://arxiv.org/abs/2505.10496",),
        licence="Apache-2.0",
    )
