"""What a number was made with: versions, machine, commit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGES = (
    "chexgenbench",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "numpy",
    "scipy",
    "pillow",
    "duckdb",
)


def now() -> str:
    """The time in UTC, ISO 8601, to the microsecond."""
    return datetime.now(UTC).isoformat()


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number can depend on."""
    import platform

    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str) -> dict[str, Any]:
    """Processor, cores, memory and the chosen device; nothing that names the machine or user."""
    import platform

    import psutil

    facts: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "device": device,
    }
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_gb"] = round(properties.total_memory / 1e9, 1)
    return facts


@cache
def numerics() -> str:
    """SHA-256 of the code that turns features into numbers: another code is another run."""
    folder = Path(__file__).resolve().parent
    code = hashlib.sha256()
    for path in sorted([*folder.glob("statistics/*.py"), *folder.glob("scoring/*.py")]):
        code.update(path.read_bytes())
    return code.hexdigest()


@cache
def commit() -> str | None:
    """The commit of the checkout this package runs from; None for an installed wheel."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
