"""The body of a phantom patient: everything that stays the same from study to study."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .findings import generator


@dataclass(frozen=True)
class Anatomy:
    """Shape and density parameters of one patient.

    Lengths are in units of half the image's width: x from -1 (image left, the patient's right) to
    1, y from -1 (top) to 1. Densities are in units of the full grey scale.
    """

    thorax_width: float
    apex_y: float
    dome_y: float
    dome_drop: float
    dome_height: float
    heart_ratio: float
    heart_tilt: float
    heart_y: float
    mediastinum: float
    aortic_knob: float
    rib_offset: float
    rib_spacing: float
    rib_slope: float
    rib_thickness: float
    rib_density: float
    clavicle_tilt: float
    clavicle_y: float
    lung_density: float
    tissue_density: float
    breast: float
    spine_bend: float
    gastric_bubble: float
    shoulder_y: float
    vessel_seed: int


def draw_anatomy(patient_seed: int) -> Anatomy:
    """The anatomy of the patient with this seed (any integer); the same seed, the same patient."""
    rng = generator("anatomy", patient_seed)

    def near(mean: float, spread: float) -> float:
        return float(mean + spread * np.clip(rng.standard_normal(), -2.0, 2.0))

    return Anatomy(
        thorax_width=near(0.735, 0.035),
        apex_y=near(-0.80, 0.03),
        dome_y=near(0.40, 0.045),
        dome_drop=near(0.045, 0.02),
        dome_height=near(0.19, 0.03),
        heart_ratio=near(0.455, 0.02),
        heart_tilt=near(0.50, 0.12),
        heart_y=near(0.20, 0.03),
        mediastinum=near(0.115, 0.012),
        aortic_knob=near(0.075, 0.018),
        rib_offset=near(0.0, 0.03),
        rib_spacing=near(0.142, 0.007),
        rib_slope=near(0.20, 0.06),
        rib_thickness=near(0.030, 0.003),
        rib_density=near(0.135, 0.018),
        clavicle_tilt=near(0.13, 0.05),
        clavicle_y=near(-0.60, 0.025),
        lung_density=near(0.45, 0.03),
        tissue_density=near(0.60, 0.025),
        breast=float(rng.integers(2)) * abs(near(0.09, 0.03)),
        spine_bend=near(0.0, 0.018),
        gastric_bubble=max(0.0, near(0.10, 0.08)),
        shoulder_y=near(-0.93, 0.03),
        vessel_seed=int(rng.integers(2**62)),
    )
