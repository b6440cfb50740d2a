"""The 14 findings by the MeSH and RadLex terms that Open-I's indexers gave each report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chexgenbench import FINDINGS

_TERMS: dict[str, tuple[str, ...]] = {
    "Atelectasis": ("pulmonary atelectasis",),
    "Cardiomegaly": ("cardiomegaly", "cardiac shadow/enlarged"),
    "Consolidation": ("consolidation",),
    "Edema": ("pulmonary edema", "pulmonary congestion", "heart failure"),
    "Enlarged Cardiomediastinum": ("mediastinum/enlarged", "mediastinum/prominent"),
    "Fracture": ("fractures, bone",),
    "Lung Lesion": ("nodule", "mass/lung"),
    "Lung Opacity": (
        "opacity", "infiltrate", "airspace disease", "lung diseases, interstitial", "cicatrix/lung",
        "density/lung",
    ),
    "No Finding": ("normal",),
    "Pleural Effusion": ("pleural effusion", "hydropneumothorax", "hemothorax", "hemopneumothorax"),
    "Pleural Other": ("thickening/pleura", "calcinosis/pleura", "cicatrix/pleura"),
    "Pneumonia": ("pneumonia",),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax", "hemopneumothorax"),
    "Support Devices": (
        "catheters, indwelling", "implanted medical device", "medical device", "tube, inserted",
        "stents", "surgical instruments", "spinal fusion",
    ),
}  # fmt: skip
"""Finding to how its terms begin; further parts of a term, such as a side, follow a slash."""


def mesh_labels(terms: Sequence[str]) -> NDArray[np.float64]:
    """Labels [14] in the order of `FINDINGS`: 1 where a term says so, else NaN.

    Terms name what was seen, and neither what was denied nor what was doubted.

    >>> FINDINGS[int(np.nanargmax(mesh_labels(["Pleural Effusion/left/small"])))]
    'Pleural Effusion'
    """
    known = [term.strip().lower() for term in terms]
    return np.array(
        [
            1.0
            if any(term == t or term.startswith(f"{t}/") for term in known for t in _TERMS[finding])
            else np.nan
            for finding in FINDINGS
        ]
    )
