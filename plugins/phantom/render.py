"""Draws a study of a patient as a frontal chest radiograph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .anatomy import Anatomy
from .canvas import Array, Strokes, band, blur, curve, step
from .findings import Study, View, generator
from .pathology import draw_devices, draw_in_lung, draw_pleural
from .scene import Scene, build_scene

_LETTERS = {
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "A": ("01110", "10001", "10001", "11111", "10001", "10001", "10001"),
    "P": ("11110", "10001", "10001", "11110", "10000", "10000", "10000"),
}


def render(anatomy: Anatomy, study: Study, seed: int, size: int = 128) -> NDArray[np.uint8]:
    """Draw one radiograph.

    Args:
        anatomy: the patient.
        study: findings and view; a view of None is drawn from the seed.
        seed: pose, breath, exposure, grain and the texture of the findings.
        size: pixels a side, 32 or more.

    Returns:
        Grey levels uint8 [size, size], 0 black to 255 white. Radiological convention: the
        patient's left is on the right of the image.
    """
    if size < 32:
        raise ValueError("size must be at least 32 pixels")
    rng = generator("pose", seed)
    drawn: View = "PA" if rng.random() < 0.6 else "AP"
    view = study.view or drawn
    scene = build_scene(anatomy, study, view, rng, size)
    image = _soft_tissue(scene)
    draw_in_lung(scene, image, generator("texture", seed))
    _vessels(scene, image)
    draw_pleural(scene, image, generator("pleura", seed))
    _bones(scene, image)
    draw_devices(scene, image, generator("devices", seed))
    return _film(scene, image, generator("film", seed))


def _soft_tissue(s: Scene) -> Array:
    """Body, lungs, heart, mediastinum, spine and abdomen; about 0 for air to 1 for bone."""
    a = s.anatomy
    y_shoulder = a.shoulder_y + 0.52 * np.clip(np.abs(s.x) - 0.24, 0, None) ** 1.15
    flank = 1.01 - 0.10 * step(s.y + 0.30, 0.12) + 0.06 * step(s.y - 0.35, 0.15)
    neck = step(0.27 + 0.5 * np.clip(s.y + 0.86, 0, None) - np.abs(s.x), 0.02)
    body = step(flank - np.abs(s.x), 0.012) * np.maximum(step(s.y - y_shoulder, 0.014), neck)
    image = (a.tissue_density - 0.13 * np.clip(np.abs(s.x) - 0.5, 0, None)) * body
    image += 0.032 * s.noise_low * body

    below = step(s.y - np.where(s.x < 0, s.dome_right, s.dome_left), 0.012)
    image += 0.13 * below * body
    if a.gastric_bubble > 0.03:
        gx, gy = s.x - 0.40, s.y - (s.left_dome_y + 0.045 + a.gastric_bubble * 0.6)
        bubble = (gx / (a.gastric_bubble * 1.4)) ** 2 + (gy / (a.gastric_bubble * 0.6)) ** 2
        image -= 0.20 * step(1 - bubble, 0.10) * below

    breast_y = (s.y - 0.28) / 0.34
    breast_x = (np.abs(s.x) - 0.44) / 0.32
    image += a.breast * step(1 - breast_x**2 - breast_y**2, 0.10) * body

    lung = s.lung_right + s.lung_left
    air = a.lung_density * (0.92 + 0.14 * (s.height - 0.5)) * (1 - 0.22 * (s.view == "AP"))
    image -= air * lung
    scap = step(0.10 - np.abs(np.abs(s.x) - s.scapula_x - 0.22 * (s.y + 0.3)), 0.03)
    image += (0.045 if s.view == "AP" else 0.03) * scap * step(0.42 - np.abs(s.y + 0.32), 0.05)

    core = s.heart * np.sqrt(np.clip(1.05 - s.heart_radius, 0.05, 1))
    image += 0.11 * core + 0.06 * s.mediastinum * (1 - s.heart)
    spine_x = s.x - a.spine_bend * np.sin(2.2 * s.y)
    spine = band(spine_x, 0.085)
    discs = 0.5 + 0.5 * np.cos((s.y - a.rib_offset) * (2 * np.pi / a.rib_spacing))
    image += spine * body * (0.055 + 0.05 * discs) * (1 - 0.5 * s.heart)
    pedicle = band(np.abs(spine_x) - 0.05, 0.014) * band(discs - 1.0, 0.45)
    image += 0.06 * pedicle * body * (1 - 0.5 * s.heart)

    tube = band(s.x - s.trachea_x, 0.042) * step(s.carina_y - s.y, 0.02)
    drop = np.clip(s.y - s.carina_y, 0, None)
    for sign, slope in ((-1, 0.9), (1, 1.25)):
        bronchus = band(s.x - s.trachea_x - sign * (0.02 + slope * drop), 0.030)
        bronchus *= step(s.y - s.carina_y, 0.02) * step(0.15 - drop, 0.03)
        tube = np.maximum(tube, 0.75 * bronchus)
    image -= 0.17 * tube * body
    s.body = body
    s.below = below
    return image


def _vessels(s: Scene, image: Array) -> None:
    """Branching vessels from the hila, only where the lung holds air."""
    thick, thin = Strokes(s.size, 0.013), Strokes(s.size, 0.007)
    rng = generator("vessels", s.anatomy.vessel_seed)
    for sign in (-1.0, 1.0):
        hx, hy0 = sign * s.hilum_x, s.hilum_y - 0.03 * (sign > 0)
        for angle in np.linspace(-1.35, 1.35, 11):
            angle = float(angle) + float(rng.normal(0, 0.07))
            hy = hy0 + 0.10 * np.sin(angle) + float(rng.normal(0, 0.02))
            length = float(rng.uniform(0.42, 0.62)) * (1.0 + 0.25 * abs(np.sin(angle)))
            bend = float(rng.normal(0, 0.16))
            for generation in range(3):
                c1, s1 = np.cos(angle + bend), np.sin(angle + bend)
                c2, s2 = np.cos(angle), np.sin(angle)
                ex, ey = hx + sign * length * c2, hy + length * s2
                mx, my = hx + sign * length * 0.5 * c1, hy + length * 0.5 * s1
                if generation == 0:
                    line = curve((hx, hy), (mx, my), (ex, ey), count=12)
                    thick.add(line[1:7], np.linspace(0.7, 0.15, 6))
                    thin.add(line, np.linspace(0.5, 0.08, 12))
                    stem = line
                else:
                    k = int(rng.integers(3, 8))
                    turn = angle + float(rng.choice([-1.0, 1.0])) * float(rng.uniform(0.3, 0.65))
                    bx, by = (float(v) for v in stem[k])
                    far = length * 0.5
                    tip = (bx + sign * far * np.cos(turn), by + far * np.sin(turn))
                    branch = np.linspace((bx, by), tip, 6)
                    thin.add(branch, np.linspace(0.5, 0.05, 6))
    blob = (np.abs(s.x) - s.hilum_x) ** 2 / 0.0035 + (s.y - s.hilum_y) ** 2 / 0.014
    marks = 0.12 * np.tanh(thick.draw()) + 0.17 * np.tanh(thin.draw()) + 0.10 * np.exp(-blob)
    image += marks * s.aerated * s.vessel_gain


def _bones(s: Scene, image: Array) -> None:
    """Posterior and anterior ribs and clavicles, with a fracture where the study has one."""
    a = s.anatomy
    side_x = np.abs(s.x)
    wall = s.lateral + 0.035
    inside = step(wall - side_x, 0.010) * step(side_x - 0.06, 0.015) * s.body
    fracture = s.study.get("Fracture")
    posterior = np.zeros_like(image)
    edge = np.zeros_like(image)
    out = np.clip(side_x / np.maximum(wall, 0.05), 0, 1)
    shape = a.rib_slope * side_x - 0.10 * np.sqrt(np.clip(side_x, 0, 1)) + 0.26 * out**5 * side_x
    level = s.y - (a.apex_y + 0.065 + a.rib_offset) - shape
    for index in range(9):
        d = level - index * a.rib_spacing * (1.0 + 0.012 * index)
        if fracture is not None and index == {"upper": 2, "mid": 4, "lower": 6}[fracture.zone]:
            d = _break(s, d, fracture.side, fracture.severity, fracture.state == "uncertain")
        t = a.rib_thickness * (0.82 + 0.035 * index)
        posterior += band(d, t)
        edge += band(np.abs(d) - t * 0.85, t * 0.35)
    anterior = np.zeros_like(image)
    front = s.y - (a.apex_y + 0.26 + a.rib_offset) + 0.42 * (side_x - 0.30) - 0.10 * side_x**2
    for index in range(5):
        d = front - index * a.rib_spacing * 1.22
        anterior += band(d, a.rib_thickness * 1.15)
    anterior *= step(side_x - 0.27, 0.05)
    visible = (1 - 0.6 * s.below) * (1 - 0.55 * np.maximum(s.heart, s.mediastinum))
    image += a.rib_density * (0.62 * posterior + 0.5 * edge) * inside * visible
    image += a.rib_density * 0.40 * anterior * inside * visible * (1 - 0.5 * s.heart)
    image += s.callus * 0.13 * inside - s.crack * 0.10 * inside

    tilt = a.clavicle_tilt + (0.10 if s.view == "AP" else 0.0)
    lift = a.clavicle_y - (0.07 if s.view == "AP" else 0.0)
    middle = lift - tilt * (side_x - 0.08) + 0.07 * np.sin(np.clip(side_x - 0.08, 0, 1) * 7.0)
    d = s.y - middle
    reach = step(side_x - 0.085, 0.012) * step(0.74 - side_x, 0.03)
    image += (0.13 * band(d, 0.036) + 0.09 * band(np.abs(d) - 0.028, 0.014)) * reach * s.body


def _break(s: Scene, d: Array, side: str, severity: str, doubted: bool) -> Array:
    """A rib's distance field with one fracture in it: a step, a gap and an angle."""
    sign = -1.0 if side == "right" else 1.0
    at = sign * s.x - s.fracture_x
    amount = {"mild": 0.7, "moderate": 1.2, "severe": 1.8}[severity] * (0.6 if doubted else 1.0)
    beyond = step(at, 0.006)
    moved = d - beyond * (0.050 * amount) * np.exp(-np.clip(at, 0, None) / 0.30)
    s.crack += band(at, 0.018) * step(0.05 - np.abs(moved), 0.012) * min(1.0, amount)
    ends = band(np.abs(at) - 0.045, 0.030) * band(moved, 0.050)
    s.callus += ends * min(1.0, 0.6 * amount)
    return moved


def _film(s: Scene, image: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exposure, contrast, scatter, fine grain, the side marker, and 8 bits."""
    size = s.size
    exposure = float(rng.normal(0, 0.018))
    contrast = float(rng.normal(1.0, 0.035)) * (0.95 if s.view == "AP" else 1.0)
    image = blur(image, max(0.42 * size / 128, 0.3))
    image = 0.97 * image + 0.03 * blur(image, 10 * size / 128)
    image = (image - 0.45) * contrast + 0.45 + exposure
    image = np.clip(image, 0, None) ** 1.04
    grain = blur(rng.standard_normal((size, size), dtype=np.float32), 0.75)
    strength = 0.026 if s.view == "AP" else 0.020
    image += strength * grain * (0.35 + 0.65 * s.body)
    image = np.where(image > 0.8, 0.8 + 0.2 * np.tanh((image - 0.8) / 0.2), image)
    _marker(image, s.view, size)
    return np.clip(np.rint(np.clip(image, 0, 1) * 255), 0, 255).astype(np.uint8)


def _marker(image: Array, view: View, size: int) -> None:
    """The lead letters: L at the upper right, AP below it on bedside films."""
    scale = max(1, round(size / 128))
    rows = [("L", round(0.030 * size), round(0.92 * size))]
    if view == "AP":
        top = round(0.030 * size) + 9 * scale
        rows += [("A", top, round(0.895 * size)), ("P", top, round(0.895 * size) + 6 * scale)]
    for letter, top, left in rows:
        bits = np.array([[c == "1" for c in row] for row in _LETTERS[letter]])
        mask = np.kron(bits, np.ones((scale, scale), dtype=bool))
        view_of = image[top : top + mask.shape[0], left : left + mask.shape[1]]
        view_of[mask[: view_of.shape[0], : view_of.shape[1]]] = 0.92
