"""Pure numerics on arrays: features or values in; an `Estimate`, or several, out of each measure.

Nothing here knows of files, plugins or the store. Importing the package imports neither numpy nor
anything heavier: a function's module is imported when the function is first asked for.
`chexgenbench.statistics.difference.difference` is the one function that has its module's name, and
so is imported from there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from chexgenbench.statistics.estimate import Estimate

if TYPE_CHECKING:
    from chexgenbench.statistics.averages import alignment, cosine_similarity, mean_estimate
    from chexgenbench.statistics.classification import (
        ColumnScores,
        Undefined,
        average_precision,
        by_column,
        cluster_bootstrap,
        expected_calibration_error,
        roc_auc,
        threshold_metrics,
        tpr_at_fpr,
    )
    from chexgenbench.statistics.copies import (
        copy_threshold,
        excess_below,
        members_excess,
        rate_estimate,
        training_share,
    )
    from chexgenbench.statistics.difference import (
        UnitInfluence,
        holm,
        images_needed,
        macro_average,
        p_value,
    )
    from chexgenbench.statistics.frechet import frechet_distance, frechet_distance_infinite
    from chexgenbench.statistics.inception import inception_score
    from chexgenbench.statistics.kernel import cmmd, kernel_distance
    from chexgenbench.statistics.likelihood import feature_likelihood_divergence
    from chexgenbench.statistics.manifold import precision_recall_density_coverage
    from chexgenbench.statistics.neighbours import nearest, nearest_approximate
    from chexgenbench.statistics.novelty import authenticity, ct_score
    from chexgenbench.statistics.radiomic import frechet_radiomics_distance
    from chexgenbench.statistics.vendi import vendi_score

__all__ = [
    "ColumnScores",
    "Estimate",
    "Undefined",
    "UnitInfluence",
    "alignment",
    "authenticity",
    "average_precision",
    "by_column",
    "cluster_bootstrap",
    "cmmd",
    "copy_threshold",
    "cosine_similarity",
    "ct_score",
    "excess_below",
    "expected_calibration_error",
    "feature_likelihood_divergence",
    "frechet_distance",
    "frechet_distance_infinite",
    "frechet_radiomics_distance",
    "holm",
    "images_needed",
    "inception_score",
    "kernel_distance",
    "macro_average",
    "mean_estimate",
    "members_excess",
    "nearest",
    "nearest_approximate",
    "p_value",
    "precision_recall_density_coverage",
    "rate_estimate",
    "roc_auc",
    "threshold_metrics",
    "tpr_at_fpr",
    "training_share",
    "vendi_score",
]

_MODULES = {
    "ColumnScores": "classification",
    "Undefined": "classification",
    "UnitInfluence": "difference",
    "alignment": "averages",
    "authenticity": "novelty",
    "average_precision": "classification",
    "by_column": "classification",
    "cluster_bootstrap": "classification",
    "cmmd": "kernel",
    "copy_threshold": "copies",
    "cosine_similarity": "averages",
    "ct_score": "novelty",
    "excess_below": "copies",
    "expected_calibration_error": "classification",
    "feature_likelihood_divergence": "likelihood",
    "frechet_distance": "frechet",
    "frechet_distance_infinite": "frechet",
    "frechet_radiomics_distance": "radiomic",
    "holm": "difference",
    "images_needed": "difference",
    "inception_score": "inception",
    "kernel_distance": "kernel",
    "macro_average": "difference",
    "mean_estimate": "averages",
    "members_excess": "copies",
    "nearest": "neighbours",
    "nearest_approximate": "neighbours",
    "p_value": "difference",
    "precision_recall_density_coverage": "manifold",
    "rate_estimate": "copies",
    "roc_auc": "classification",
    "threshold_metrics": "classification",
    "tpr_at_fpr": "classification",
    "training_share": "copies",
    "vendi_score": "vendi",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
