"""How many requests a call: measured once for a model on a device, and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chexgenbench import provenance
from chexgenbench.files import digest, file_lock, read_json, write_json
from chexgenbench.jobs.generate import call_model, free_memory
from chexgenbench.registry import Plugin
from chexgenbench.types import Context, Model, ModelSpec, Parameters, Request

SIZES = "batch_sizes.json"

_LARGEST = 64
_MEMORY = 0.8
"""The part of the memory that a chosen size may use: other batches may need a little more."""
_AS_FAST = 0.95
_LONG_ENOUGH = 0.5
"""Seconds of calls after which a size is measured well enough."""


@dataclass(frozen=True)
class Trial:
    """What calls of one size took: images a second, and the part of the memory used at most."""

    size: int
    images_per_second: float
    memory: float


def choose_batch_size(
    plugin: Plugin[ModelSpec],
    parameters: Parameters,
    context: Context,
    requests: Sequence[Request],
    *,
    root: Path,
    weights: Mapping[str, str],
    say: Callable[[str], None] | None = lambda _text: None,
) -> int | None:
    """The smallest batch that is about as fast as any; see `measure` and `best_size`.

    It is measured by the loaded model at the first call and kept in ``batch_sizes.json``, by model,
    parameters, weights, device, precision and image size: the same command later gets the same
    number, and so goes on with its generation.

    Args:
        root: the folder that holds all generations.
        weights: SHA-256 of each weight file.
        say: told a line before a measurement and one after it; None: do not measure, and return
            None where the number is not known.

    Raises:
        ChexGenBenchError: the model cannot be loaded or fails.
    """
    key = digest(
        {
            "model": plugin.identity(),
            "parameters": parameters.identity(),
            "weights": dict(weights),
            "device": provenance.device_name(context.device),
            "dtype": context.dtype,
            "size": requests[0].size,
            "largest": min(_LARGEST, len(requests)),
        }
    )
    path = root / SIZES
    if say is None and not path.exists():
        return None
    root.mkdir(parents=True, exist_ok=True)
    with file_lock(root / f".{SIZES}.lock"):
        known = read_json(path) if path.exists() else {}
        if key not in known:
            if say is None:
                return None
            say(f"measuring the batch size of {plugin.name}")
            model = plugin.create(parameters, context)
            trials = measure(model, requests, context.device)
            del model
            free_memory()
            size = best_size(trials)
            known[key] = {
                "model": plugin.name,
                "batch_size": size,
                "trials": [asdict(trial) for trial in trials],
            }
            write_json(path, known)
            say(f"{plugin.name}: {size} images a call")
        return int(known[key]["batch_size"])


def best_size(trials: Sequence[Trial]) -> int:
    """The smallest size within 5 % of the most images a second; 1 where nothing fitted.

    >>> best_size([Trial(1, 5.0, 0.2), Trial(2, 9.6, 0.3), Trial(4, 10.0, 0.5)])
    2
    """
    enough = _AS_FAST * max((trial.images_per_second for trial in trials), default=0)
    return min((trial.size for trial in trials if trial.images_per_second >= enough), default=1)


def measure(model: Model, requests: Sequence[Request], device: str) -> list[Trial]:
    """Calls of 1, 2, 4 ... requests, at most 64, after one call to warm up.

    It stops where memory runs out or more than 80 % of it would be used, and where two sizes in a
    row gained less than 5 %.
    """
    trials: list[Trial] = []
    total = provenance.total_memory(device)
    place = 0

    def call(size: int) -> float | None:
        nonlocal place
        # Other requests each time: a model may remember what it knows of a prompt.
        batch = [requests[(place + i) % len(requests)] for i in range(size)]
        place += size
        begun = time.perf_counter()
        return None if call_model(model, batch) is None else time.perf_counter() - begun

    size = 1
    if call(size) is None:
        return trials
    while size <= min(_LARGEST, len(requests)):
        provenance.reset_peak_memory(device)
        seconds: list[float] = []
        while sum(seconds) < _LONG_ENOUGH:
            took = call(size)
            if took is None:
                return trials
            seconds.append(took)
        used = provenance.peak_memory(device) / total
        if used > _MEMORY and trials:
            return trials
        trials.append(Trial(size, size * len(seconds) / sum(seconds), round(used, 4)))
        before = trials[-2].memory if len(trials) > 1 else 0.0
        # Memory grows with the batch as it grew from the last size to this one, twice that now.
        if len(trials) > 1 and used + 2 * (used - before) > _MEMORY:
            return trials
        best = max((trial.images_per_second for trial in trials[:-2]), default=0)
        if best and all(each.images_per_second < best / _AS_FAST for each in trials[-2:]):
            return trials
        size *= 2
    return trials
