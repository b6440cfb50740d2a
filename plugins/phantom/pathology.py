"""Draws the findings into an image: in the lung, in the pleural space, and devices."""

from __future__ import annotations

import numpy as np

from .canvas import Array, Strokes, curve, smooth_noise, step
from .findings import Finding
from .scene import STRENGTH, Scene, certainty, on_side

_SIDES = ("right", "left")
_ZONE_HEIGHT = {"upper": 0.26, "mid": 0.54, "lower": 0.80}


def draw_in_lung(s: Scene, image: Array, rng: np.random.Generator) -> None:
    """Everything that replaces or veils lung: changes `image` and takes air from `s.aerated`."""
    gas = s.study.get("Pneumothorax")
    if gas is not None:
        space = s.chest(gas.side) - np.minimum(s.chest(gas.side), s.aerated)
        image -= (0.09 + 0.03 * STRENGTH[gas.severity]) * space * certainty(gas)
        image += 0.20 * s.pleural_line
        image += 0.05 * (0.4 + STRENGTH[gas.severity]) * s.aerated * step(s.across(gas.side), 0.02)
    _edema(s, image, rng)
    for name in ("Lung Opacity", "Pneumonia", "Consolidation"):
        finding = s.study.get(name)
        if finding is not None:
            for side in _SIDES:
                if on_side(finding, side):
                    _airspace(s, image, finding, side, rng)
    _atelectasis(s, image, rng)
    _lesion(s, image, rng)


def _veil(s: Scene, image: Array, amount: Array, target: float) -> None:
    """Lead the image towards the brightness `target` by `amount` (0 to 1), hiding the vessels."""
    amount = np.clip(amount, 0, 1)
    image += amount * np.clip(target - image, 0, None)
    s.aerated = s.aerated * (1 - 0.85 * amount)


def _place(s: Scene, side: str, zone: str, rng: np.random.Generator) -> tuple[float, float]:
    """A point (x, y) in the zone of the lung on that side."""
    a = s.anatomy
    h = _ZONE_HEIGHT[zone] + float(rng.uniform(-0.05, 0.05))
    y = a.apex_y + h * (s.base_y - a.apex_y)
    part = float(rng.uniform(0.50, 0.68))
    outer = a.thorax_width * min(1.0, 0.45 + h)
    inner = 0.18 + (0.12 if side == "left" and zone == "lower" else 0.0)
    x = inner + part * (outer - inner)
    return (-x if side == "right" else x), y


def _airspace(s: Scene, image: Array, f: Finding, side: str, rng: np.random.Generator) -> None:
    """Opacity: a faint veil. Pneumonia: patches. Consolidation: dense, with air bronchograms."""
    strength, sure = STRENGTH[f.severity], certainty(f)
    x0, y0 = _place(s, side, f.zone, rng)
    rough = smooth_noise(rng, s.size, 11)
    lung = s.lung(side)
    if f.name == "Lung Opacity":
        rx, ry = 0.19 + 0.10 * strength, 0.18 + 0.09 * strength
        r = ((s.x - x0) / rx) ** 2 + ((s.y - y0) / ry) ** 2
        amount = np.exp(-r) * (0.60 + 0.24 * strength) * (1 + 0.12 * rough)
        _veil(s, image, amount * lung * sure, 0.66)
    elif f.name == "Pneumonia":
        rx, ry = 0.19 + 0.09 * strength, 0.18 + 0.08 * strength
        r = ((s.x - x0) / rx) ** 2 + ((s.y - y0) / ry) ** 2
        patches = step(smooth_noise(rng, s.size, 17) + 0.25 + 0.3 * strength, 0.22)
        amount = np.exp(-(r**2)) * (0.26 + 0.62 * patches) * (0.85 + 0.15 * strength)
        _veil(s, image, amount * lung * sure, 0.70)
    else:
        rx, ry = 0.17 + 0.12 * strength, 0.14 + 0.10 * strength
        r = np.sqrt(((s.x - x0) / rx) ** 2 + ((s.y - y0) / ry) ** 2)
        amount = step(1.0 - r + 0.20 * rough, 0.13) * (0.84 + 0.10 * strength)
        _veil(s, image, amount * lung * sure, 0.74)
        sign = -1.0 if side == "right" else 1.0
        lines = Strokes(s.size, 0.009)
        start = np.array([sign * s.hilum_x, s.hilum_y + 0.5 * (y0 - s.hilum_y)])
        for turn in (-0.45, -0.1, 0.3):
            away = np.array([x0, y0]) - start
            c, sn = np.cos(turn), np.sin(turn)
            tip = start + 1.25 * np.array([c * away[0] - sn * away[1], sn * away[0] + c * away[1]])
            lines.add(np.linspace(start + 0.25 * (tip - start), tip, 5), np.linspace(1, 0.2, 5))
        image -= 0.17 * lines.draw() * amount * lung * sure


def _edema(s: Scene, image: Array, rng: np.random.Generator) -> None:
    f = s.study.get("Edema")
    if f is None:
        return
    strength, sure = STRENGTH[f.severity], certainty(f)
    lung = s.lung_right + s.lung_left
    spread = 0.20 + 0.16 * strength
    r = (np.abs(s.x) - s.hilum_x - 0.04) ** 2 / spread**2 + (s.y - s.hilum_y - 0.08) ** 2 / 0.11
    fluffy = 1 + 0.22 * smooth_noise(rng, s.size, 14)
    amount = np.exp(-r) * (0.48 + 0.34 * strength) * fluffy
    rest = (0.10 + 0.16 * strength) * (0.5 + 0.5 * np.clip(s.height, 0, 1))
    lines = Strokes(s.size, 0.006)
    for sign in (-1.0, 1.0):
        for k in range(5):
            y = s.base_y - 0.10 - 0.055 * k + float(rng.normal(0, 0.01))
            outer = sign * (s.anatomy.thorax_width - 0.01)
            lines.add(np.array([[outer, y], [outer - sign * 0.10, y + 0.012]]), 0.8)
    air = s.aerated
    _veil(s, image, (amount + rest) * lung * sure, 0.68)
    image += 0.10 * lines.draw() * air * sure
    s.vessel_gain = 1.5 + 0.4 * strength


def _atelectasis(s: Scene, image: Array, rng: np.random.Generator) -> None:
    f = s.study.get("Atelectasis")
    if f is None:
        return
    strength, sure = STRENGTH[f.severity], certainty(f)
    for side in _SIDES:
        if not on_side(f, side):
            continue
        dome = s.dome_right if side == "right" else s.dome_left
        above = dome - s.y
        haze = np.exp(-((above / (0.07 + 0.07 * strength)) ** 2)) * (0.30 + 0.30 * strength)
        _veil(s, image, haze * s.lung(side) * sure, 0.68)
        sign = -1.0 if side == "right" else 1.0
        top = s.right_dome_y if side == "right" else s.left_dome_y
        lines = Strokes(s.size, 0.012)
        for k in range(2 + round(2 * strength)):
            y = top - 0.065 - 0.075 * k + float(rng.normal(0, 0.012))
            x0 = 0.24 + 0.16 * (side == "left") + float(rng.uniform(0, 0.06))
            x1 = x0 + 0.22 + 0.12 * strength + float(rng.uniform(-0.03, 0.05))
            slope = float(rng.normal(0.05, 0.04))
            ends = (sign * x0, y), (sign * (x0 + x1) / 2, y - 0.02), (sign * x1, y + slope)
            lines.add(curve(*ends, count=10), 1.0)
        image += 0.21 * np.minimum(lines.draw(), 1.3) * s.lung(side) * sure


def _lesion(s: Scene, image: Array, rng: np.random.Generator) -> None:
    f = s.study.get("Lung Lesion")
    if f is None:
        return
    strength = STRENGTH[f.severity]
    x0, y0 = _place(s, f.side, f.zone, rng)
    radius = 0.040 + 0.065 * strength
    edge = 0.07 + 0.05 * strength
    wavy = 1 + (0.03 + 0.05 * strength) * smooth_noise(rng, s.size, 20)
    r = np.hypot(s.x - x0, s.y - y0) / radius * wavy
    _veil(
        s, image, step(1 - r, edge) * (0.82 + 0.1 * strength) * s.lung(f.side) * certainty(f), 0.72
    )


def draw_pleural(s: Scene, image: Array, rng: np.random.Generator) -> None:
    """Fluid with its meniscus, pleural thickening and plaques."""
    f = s.study.get("Pleural Effusion")
    for side in _SIDES:
        if not on_side(f, side) or f is None:
            continue
        deep = {"mild": 0.02, "moderate": 0.24, "severe": 0.52}[f.severity]
        level = s.base_y - 0.13 - deep + float(rng.normal(0, 0.012)) + 0.05 * (1 - certainty(f))
        out = np.clip(s.across(side) - 0.12, 0, None) / (s.anatomy.thorax_width - 0.12)
        surface = level + 0.05 - 0.20 * np.clip(out, 0, 1.2) ** 3.2
        half = step(s.across(side) - 0.02, 0.01) * step(s.lateral - s.across(side), 0.011)
        fluid = step(s.y - surface, 0.020) * half * step(s.base_y + 0.12 - s.y, 0.03)
        target = s.anatomy.tissue_density + 0.10
        amount = fluid * (0.94 if f.state == "present" else 0.60)
        image += amount * np.clip(target - image, 0, None)
        s.aerated = s.aerated * (1 - amount)
    f = s.study.get("Pleural Other")
    if f is None:
        return
    strength, sure = STRENGTH[f.severity], certainty(f)
    inward = s.lateral - s.across(f.side)
    chest = s.chest(f.side)
    if f.kinds[0] == "thickening":
        thick = 0.035 + 0.045 * strength + 0.012 * smooth_noise(rng, s.size, 10)
        # the cap over the apex counts too
        rim = np.minimum(inward, (s.y - s.anatomy.apex_y) * 1.1)
        image += 0.30 * sure * step(thick - rim, 0.010) * chest
    else:
        count = 3 + round(3 * strength)
        for k in range(count):
            h = 0.42 + 0.45 * (k + float(rng.uniform(0, 0.8))) / count
            y = s.anatomy.apex_y + h * (s.base_y - s.anatomy.apex_y)
            x = s.anatomy.thorax_width * float(rng.uniform(0.60, 0.90))
            turn = float(rng.uniform(-0.6, 0.6))
            du, dv = s.across(f.side) - x, s.y - y
            u = (np.cos(turn) * du + np.sin(turn) * dv) / float(rng.uniform(0.05, 0.09))
            v = (np.cos(turn) * dv - np.sin(turn) * du) / 0.022
            image += 0.30 * sure * step(1 - u * u - v * v, 0.10) * chest


def draw_devices(s: Scene, image: Array, rng: np.random.Generator) -> None:
    """Tubes, lines, wires and a pacemaker: bright, sharp, on top of everything."""
    f = s.study.get("Support Devices")
    if f is None:
        return
    a, sure = s.anatomy, certainty(f)
    fine, wide = Strokes(s.size, 0.008), Strokes(s.size, 0.014)
    jitter = float(rng.normal(0, 0.012))
    tx = s.trachea_x + jitter * 0.4
    if "endotracheal tube" in f.kinds:
        tip = s.carina_y - 0.10 + 2 * jitter
        for off in (-0.019, 0.019):
            fine.add(curve((tx + off, -1.05), (tx + off - 0.005, -0.75), (tx + off, tip)), 1.2)
    if "central line" in f.kinds:
        end = (-0.085, s.hilum_y + 0.02 + jitter)
        wide.add(curve((-0.24, -1.0), (-0.22, -0.74), (-0.10, -0.50), (-0.095, -0.2), end), 0.95)
    if "nasogastric tube" in f.kinds:
        path = curve((0.03, -1.05), (0.02 + jitter, -0.4), (0.03, 0.25), (0.10, 0.60), (0.38, 0.66))
        wide.add(path, 0.80)
    if "chest tube" in f.kinds:
        gas, fluid = s.study.get("Pneumothorax"), s.study.get("Pleural Effusion")
        host = gas or fluid
        side = host.side if host is not None and host.side != "bilateral" else "right"
        sign = -1.0 if side == "right" else 1.0
        path = curve(
            (sign * 0.98, 0.34), (sign * 0.70, 0.20), (sign * 0.62, -0.05), (sign * 0.34, -0.52)
        )
        for off in (-0.016, 0.016):
            fine.add(path + np.array([off, off * 0.4], dtype=np.float32), 1.1)
    if "sternal wires" in f.kinds:
        for k in range(5):
            y = -0.42 + 0.16 * k + float(rng.normal(0, 0.008))
            ring = curve((-0.035, y), (-0.02, y - 0.035), (0.02, y + 0.035), (0.035, y), count=8)
            wide.add(ring, 1.15)
    if "pacemaker" in f.kinds:
        px, py = 0.56 + jitter, a.clavicle_y + 0.16 + jitter
        box = ((s.x - px) / 0.105) ** 4 + ((s.y - py) / 0.085) ** 4
        image += step(1 - box, 0.06) * np.clip(0.90 - image, 0, None) * sure
        lead = curve(
            (px - 0.06, py - 0.07), (0.30, -0.72), (-0.12, -0.62), (-0.10, -0.2), (-0.13, 0.12)
        )
        fine.add(lead, 1.2)
        apex = (0.42 * a.heart_ratio / 0.455 - 0.12, a.heart_y + 0.17)
        fine.add(
            curve((px - 0.06, py - 0.05), (0.28, -0.70), (-0.14, -0.58), (-0.12, 0.24), apex), 1.2
        )
    lines = np.minimum(fine.draw() + wide.draw(), 1.25)
    image += 0.34 * sure * lines
