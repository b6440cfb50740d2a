"""Where the files that ship with the plugins lie: in a wheel, or in a checkout."""

from __future__ import annotations

from pathlib import Path

_PLACES = {"demo_split": "MIMIC_Splits/demo"}


def data_folder(name: str) -> Path:
    """The folder of shipped data: ``demo_split``, or a network of the demo, as ``phantom-clip``."""
    here = Path(__file__).resolve().parent
    inside_wheel = here / "data" / name
    if inside_wheel.is_dir():
        return inside_wheel
    return here.parent / _PLACES.get(name, f"assets/{name}")
