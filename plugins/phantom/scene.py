"""The geometry of one study: where lungs, heart, mediastinum and diaphragm are in the image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .anatomy import Anatomy
from .canvas import Array, band, smooth_noise, step
from .findings import Finding, Study, View

STRENGTH = {"mild": 0.0, "moderate": 0.5, "severe": 1.0}


def on_side(finding: Finding | None, side: str) -> bool:
    """Whether a finding involves the patient's `side` ('left' or 'right')."""
    return finding is not None and finding.side in (side, "bilateral")


def certainty(finding: Finding) -> float:
    """How strongly a finding is drawn: 1 when stated, less when doubted."""
    return 0.55 if finding.state == "uncertain" else 1.0


@dataclass
class Scene:
    """Fields [size, size] of float32 in the body's own coordinates, and a few positions."""

    anatomy: Anatomy
    study: Study
    view: View
    size: int
    x: Array
    y: Array
    height: Array
    lateral: Array
    medial: Array
    dome_right: Array
    dome_left: Array
    chest_right: Array
    chest_left: Array
    lung_right: Array
    lung_left: Array
    aerated: Array
    heart: Array
    heart_radius: Array
    mediastinum: Array
    noise_low: Array
    pleural_line: Array
    left_dome_y: float
    right_dome_y: float
    base_y: float
    trachea_x: float
    carina_y: float
    hilum_x: float
    hilum_y: float
    scapula_x: float
    fracture_x: float
    vessel_gain: float = 1.0
    body: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    below: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    crack: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    callus: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def chest(self, side: str) -> Array:
        """The half of the thorax that a healthy lung fills, diaphragm and heart taken away."""
        return self.chest_right if side == "right" else self.chest_left

    def lung(self, side: str) -> Array:
        """The lung itself: the chest less the space of a pneumothorax."""
        return self.lung_right if side == "right" else self.lung_left

    def across(self, side: str) -> Array:
        """Distance from the midline towards the patient's `side`, positive there."""
        return -self.x if side == "right" else self.x


def build_scene(
    anatomy: Anatomy, study: Study, view: View, rng: np.random.Generator, size: int
) -> Scene:
    """Lay out one study: the pose and breath from `rng`, the sizes from anatomy and findings."""
    a = anatomy
    turn, zoom = float(rng.normal(0, 0.018)), float(rng.normal(0.985, 0.016))
    shift_x, shift_y = float(rng.normal(0, 0.018)), float(rng.normal(0, 0.02))
    breath = float(rng.normal(0, 0.025)) - (0.035 if view == "AP" else 0.0)
    fracture_x = a.thorax_width * float(rng.uniform(0.55, 0.78))
    at = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    gx, gy = (at[None, :] - shift_x) / zoom, (at[:, None] - shift_y) / zoom
    x = (np.cos(turn) * gx + np.sin(turn) * gy).astype(np.float32)
    y = (np.cos(turn) * gy - np.sin(turn) * gx).astype(np.float32)

    base_y = a.dome_y + a.dome_height + breath
    height = (y - a.apex_y) / (base_y - a.apex_y)
    rise = 1 - (1 - np.clip(height / 0.78, 0, 1)) ** 2.3
    lateral = 0.27 + (a.thorax_width - 0.27) * np.sqrt(rise)
    lateral = lateral * (1 - 0.03 * np.clip(height - 0.8, 0, 1))

    wide = study.get("Enlarged Cardiomediastinum")
    extra = 0.0 if wide is None else (0.065 + 0.075 * STRENGTH[wide.severity]) * certainty(wide)
    half = a.mediastinum * (1.12 if view == "AP" else 1.0) + extra
    medial = (
        half + 0.02 * (1 - np.clip(height, 0, 1)) + 0.12 * np.exp(-np.clip(height, 0, 2) / 0.05)
    )

    shrink = study.get("Atelectasis")
    lift = {"left": 0.0, "right": 0.0}
    for side in lift:
        if shrink is not None and on_side(shrink, side):
            lift[side] = (0.03 + 0.09 * STRENGTH[shrink.severity]) * certainty(shrink)
    right_dome_y = a.dome_y + breath - lift["right"]
    left_dome_y = a.dome_y + a.dome_drop + breath - lift["left"]
    sag = a.dome_height * ((np.abs(x) - 0.33) / 0.42) ** 2
    dome_right, dome_left = right_dome_y + sag, left_dome_y + sag

    big = study.get("Cardiomegaly")
    ratio = a.heart_ratio * (1.10 if view == "AP" else 1.0)
    if big is not None:
        ratio *= 1 + (0.20 + 0.24 * STRENGTH[big.severity]) * certainty(big)
    half_heart = ratio * a.thorax_width
    hx, hy = x - (0.30 * half_heart + 0.01), y - (a.heart_y + 0.6 * breath)
    c, sn = np.cos(a.heart_tilt), np.sin(a.heart_tilt)
    u, v = (c * hx + sn * hy) / half_heart, (c * hy - sn * hx) / (0.80 * half_heart)
    radius = np.sqrt(u * u + v * v)
    heart = step(1 - radius, 0.028)

    knob = (x - half - 0.02) ** 2 / (a.aortic_knob * (1 + 2 * extra)) ** 2
    knob = knob + (y - (a.apex_y + 0.46)) ** 2 / 0.0085
    atrium = ((-x - half + 0.01) / 0.05) ** 2 + ((y + 0.12) / 0.2) ** 2
    middle = step(medial - np.abs(x), 0.014)
    middle = np.maximum(middle, step(1 - knob, 0.12))
    middle = np.maximum(middle, step(1 - atrium, 0.15))

    open_ = (1 - heart) * (1 - middle) * step(height, 0.010)
    wall = step(lateral - np.abs(x), 0.011)
    right_half, left_half = step(-x, 0.01), step(x, 0.01)
    chest_right = open_ * wall * right_half * step(dome_right - y, 0.012)
    chest_left = open_ * wall * left_half * step(dome_left - y, 0.012)

    lung_right, lung_left = chest_right, chest_left
    aerated = chest_right + chest_left
    line = np.zeros_like(x)
    gas = study.get("Pneumothorax")
    if gas is not None:
        sure = certainty(gas)
        amount = (0.10 + 0.22 * STRENGTH[gas.severity]) * (0.7 + 0.3 * sure)
        toward = -x if gas.side == "right" else x
        apical = np.exp(-np.clip(height, 0, 2) / (0.42 + 0.6 * STRENGTH[gas.severity]))
        inset = lateral - amount * (0.30 + 0.75 * apical) * (lateral + 0.1)
        top = a.apex_y + amount * 0.85
        rim = np.minimum(inset - toward, (y - top) * 0.9)
        space = chest_right if gas.side == "right" else chest_left
        kept = step(rim, 0.008)
        aerated = aerated - space * (1 - kept)
        line = band(rim, 0.020) * space * (0.55 + 0.45 * sure)
    return Scene(
        anatomy=a,
        study=study,
        view=view,
        size=size,
        x=x,
        y=y,
        height=height.astype(np.float32),
        lateral=lateral,
        medial=medial,
        dome_right=dome_right,
        dome_left=dome_left,
        chest_right=chest_right,
        chest_left=chest_left,
        lung_right=lung_right,
        lung_left=lung_left,
        aerated=aerated,
        heart=heart,
        heart_radius=radius,
        mediastinum=middle,
        noise_low=smooth_noise(rng, size, 4),
        pleural_line=line,
        left_dome_y=left_dome_y,
        right_dome_y=right_dome_y,
        base_y=base_y,
        trachea_x=a.spine_bend * 0.5,
        carina_y=a.apex_y + 0.52,
        hilum_x=half + 0.05,
        hilum_y=a.apex_y + 0.70,
        scapula_x=0.60 if view == "AP" else 0.76,
        fracture_x=fracture_x,
        crack=np.zeros_like(x),
        callus=np.zeros_like(x),
    )
