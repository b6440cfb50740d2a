"""What a number was made with: versions, machine, commit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGES = (
    "chexgenbench",
    "chexgenbench-worker",
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
    return datetime.now(timezone.utc).isoformat()  # noqa: UP017 - a worker may run on Python 3.10


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
    """Processor, cores, memory and the chosen device; nothing that names the machine or user.

    For an NVIDIA GPU also what its energy depends on: the driver's version and the power limit in
    watts, where ``nvidia-smi`` tells them.
    """
    import platform

    import psutil

    facts: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "device": device,
    }
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_gb"] = round(properties.total_memory / 1e9, 1)
        facts |= _power(str(getattr(properties, "uuid", "")))
    return facts


class MemoryMeter:
    """The memory that a model takes: made before the model is loaded, asked after its calls.

    It is the most bytes in use since then less those in use at that moment, so that what other
    models and encoders left in this process does not count. On a GPU these are the process's
    tensors. On a CPU it is the resident memory of the process: libraries that loading imports for
    the first time count, and memory that was free in the process already does not. Where the system
    cannot forget an earlier peak (macOS, Windows) it is what is in use when asked: what a call took
    and gave back is not seen.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = memory_in_use(device)
        self._anew = reset_peak_memory(device)

    def taken(self) -> int:
        """Bytes, at least 0."""
        most = peak_memory(self._device) if self._anew else memory_in_use(self._device)
        return max(0, most - self._before)


def memory_in_use(device: str) -> int:
    """Bytes: tensors of this process on a GPU, else the resident memory of the process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory(device: str) -> int:
    """The most of `memory_in_use` since `reset_peak_memory`, or since the process began."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory(device: str) -> bool:
    """Lets `peak_memory` start anew; False where the system cannot, for a process not on Linux."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        # https://docs.kernel.org/filesystems/proc.html: 5 resets the peak of the resident memory.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def total_memory(device: str) -> int:
    """Bytes of the GPU's memory, else of the machine's."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)


def device_name(device: str) -> str:
    """The model name of the GPU or of the processor."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_properties(device).name)
    return _processor()


def threads() -> int:
    """The threads that a process computes with on the CPU; OMP_NUM_THREADS sets them."""
    import torch

    return torch.get_num_threads()


@cache
def _processor() -> str:
    """The processor's model name."""
    import platform

    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@cache
def _power(uuid: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    command = ["nvidia-smi", "--query-gpu=uuid,driver_version,power.limit"]
    try:
        result = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return facts
    for line in result.stdout.splitlines():
        found, *values = (part.strip() for part in line.split(","))
        if uuid and found.endswith(uuid) and len(values) == 2:
            facts["gpu_driver"] = values[0]
            with suppress(ValueError):  # some virtual GPUs answer "[N/A]"
                facts["gpu_power_limit_w"] = float(values[1])
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
