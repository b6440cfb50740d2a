"""CheXGenBench: generate chest radiographs from prompts, score them, ask questions in SQL.

Plugin authors need only the names below; they are imported when first used, so that
``import chexgenbench`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chexgenbench.errors import ChexGenBenchError, UserError
    from chexgenbench.hookspecs import hookimpl
    from chexgenbench.types import (
        FINDINGS,
        Context,
        Download,
        Encoder,
        EncoderSpec,
        Image,
        ImageNeed,
        ImagePairs,
        ImageSet,
        ImageValues,
        Judge,
        JudgeParameters,
        JudgeRequest,
        JudgeSpec,
        Location,
        Made,
        MetricSpec,
        Model,
        ModelSpec,
        NotApplicable,
        Parameters,
        RemoteFile,
        Request,
        Sample,
        SampleMetric,
        ScoreSpec,
        SetMetric,
        Split,
        SplitSource,
        SplitSpec,
        Task,
        TaskMetric,
        TaskResult,
        TaskScore,
    )

__version__ = "0.1.0"

__all__ = [
    "FINDINGS",
    "ChexGenBenchError",
    "Context",
    "Download",
    "Encoder",
    "EncoderSpec",
    "Image",
    "ImageNeed",
    "ImagePairs",
    "ImageSet",
    "ImageValues",
    "Judge",
    "JudgeParameters",
    "JudgeRequest",
    "JudgeSpec",
    "Location",
    "Made",
    "MetricSpec",
    "Model",
    "ModelSpec",
    "NotApplicable",
    "Parameters",
    "RemoteFile",
    "Request",
    "Sample",
    "SampleMetric",
    "ScoreSpec",
    "SetMetric",
    "Split",
    "SplitSource",
    "SplitSpec",
    "Task",
    "TaskMetric",
    "TaskResult",
    "TaskScore",
    "UserError",
    "__version__",
    "hookimpl",
]

_HOME = {
    "ChexGenBenchError": "chexgenbench.errors",
    "UserError": "chexgenbench.errors",
    "hookimpl": "chexgenbench.hookspecs",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'chexgenbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "chexgenbench.types")), name)
