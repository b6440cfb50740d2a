"""A process that does a job: ``chexgenbench worker JOBDIR``, or this module by ``python -m``.

It is told everything by the files of the job directory (see `job`), so that it may run in another
interpreter, container or machine, with other packages, than the command that planned the job.
Killed and started again on the same directory, it goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.files import digest, file_lock, write_json
from chexgenbench.jobs.generate import hold, work
from chexgenbench.jobs.job import (
    DISK_FAULT,
    Counted,
    EncodeJob,
    Events,
    GenerateJob,
    Job,
    Limits,
    TaskJob,
    error_path,
    heartbeat_path,
    read_facts,
    read_generate_job,
    write_error,
)
from chexgenbench.registry import Plugin, Registry, load_registry
from chexgenbench.types import Context, Encoder, EncoderSpec, Model, TaskMetric

_SET_CHILD_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of Linux's prctl."""

HEARTBEAT = 5.0
"""Seconds between two notes that a worker is alive."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Works until nothing of the job is missing; the exit code is 0, or that of the error noted."""
    parser = argparse.ArgumentParser(
        prog="chexgenbench-worker", description="Does the job in a job directory."
    )
    parser.add_argument("folder", type=Path, help="The job directory.")
    parser.add_argument(
        "--worker", type=int, default=0, help="Its number, from 1, where several share the job."
    )
    parser.add_argument("--device", help="What to work on, such as cuda:0; else as planned.")
    parser.add_argument(
        "--lifeline", action="store_true", help="End when the standard input is closed."
    )
    options = parser.parse_args(arguments)
    if options.lifeline:
        threading.Thread(target=end_with_input, daemon=True).start()
    return run_noting(options.folder, options.worker, options.device)


class Kept:
    """What a process that does several jobs has loaded, as long as they differ in their items only.

    Loading decides nothing about a result: one process makes all images of a model in any case.
    """

    def __init__(self) -> None:
        self._of = ""
        self._held: dict[str, Any] = {}

    def begin(self, job: Job, device: str) -> None:
        """Forgets what an earlier job of another kind, model or device has loaded."""
        items = {"n_requests", "batches", "n_items", "files"}
        of = digest([device, job.model_dump(mode="json", exclude=items)])
        if of != self._of:
            self._of, self._held = of, {}

    def get(self, name: str, load: Callable[[], Any]) -> Any:
        if name not in self._held:
            self._held[name] = load()
        return self._held[name]


def run_noting(
    folder: Path, worker: int = 0, device: str | None = None, kept: Kept | None = None
) -> int:
    """`run`, with its error, heartbeat and events as files; returns the exit code."""
    events = Events(folder, worker)
    done = threading.Event()
    try:
        error_path(folder, worker).unlink(missing_ok=True)
        events.note("started", pid=os.getpid())
        beat = threading.Thread(target=_beat, args=(folder, worker, done), daemon=True)
        beat.start()
        try:
            run(folder, worker, device, events, kept)
        finally:
            done.set()
            beat.join()
        events.note("done")
    except ChexGenBenchError as error:
        write_error(folder, worker, error)
        events.note("failed", exit_code=error.exit_code)
        return error.exit_code
    except OSError as error:
        if not is_disk_fault(error):
            raise
        return DISK_FAULT + (error.errno or 0)
    return 0


def run(
    folder: Path, worker: int, device: str | None, events: Events, kept: Kept | None = None
) -> None:
    """Does the job in the folder until nothing of it is missing.

    Args:
        worker: 0 is alone in the folder, and waits for another that is there; the others share a
            generation.
        device: what to work on; None is the kind that the job was planned for.
        kept: of a process that does several jobs, what earlier ones have loaded.

    Raises:
        ChexGenBenchError: see `jobs.generate.generate`; also where the plugin here is not the one
            that the job was planned with.
    """
    job = read_facts(folder)
    limit(job.limits)
    device = device or job.device
    if device.partition(":")[0] != job.device:
        raise UserError(
            f"The job in {folder} is planned for the device {job.device!r}, not {device!r}.",
            hint="Which kind of device makes an image is part of what it is known by.",
        )
    kept = kept or Kept()
    kept.begin(job, device)
    context = job.context_on(device)
    files = [Path(name) for name in job.plugins]
    plugin_folder = Path(job.plugin_folder) if job.plugin_folder else None
    registry = load_registry(files, plugin_folder, context.home)
    if isinstance(job, GenerateJob):
        _generate(folder, worker, registry, context, events, kept)
        return
    with file_lock(folder / ".lock"):
        if isinstance(job, EncodeJob):
            _encode(folder, job, registry, context, events, kept)
        elif isinstance(job, TaskJob):
            _task(folder, job, registry, context, events)


def _generate(
    folder: Path, worker: int, registry: Registry, context: Context, events: Events, kept: Kept
) -> None:
    job, requests = read_generate_job(folder)
    plugin = _find(registry, "models", job.model, job.source)
    parameters = plugin.parse(job.parameters)

    def load() -> Model:
        with _timed(events):
            model = plugin.create(parameters, context)
        assert isinstance(model, Model)  # Plugin.load has checked the class
        return model

    def advance(count: int) -> None:
        events.note("made", images=count)

    with nullcontext() if worker else hold(folder, partial(print, file=sys.stderr)):
        work(
            lambda: kept.get(job.model, load),
            requests,
            folder,
            batch_size=job.batch_size,
            advance=advance,
            device=context.device,
            worker=worker,
        )


def _encode(
    folder: Path,
    job: EncodeJob,
    registry: Registry,
    context: Context,
    events: Events,
    kept: Kept,
) -> None:
    from chexgenbench.jobs import features

    plugins = [_find(registry, "encoders", each.name, each.source) for each in job.encoders]

    def load(number: int) -> tuple[EncoderSpec, Encoder]:
        plugin = plugins[number]
        parameters = plugin.parse(job.encoders[number].parameters)
        with _timed(events):
            encoder = plugin.create(parameters, context)
        assert isinstance(encoder, Encoder)
        return plugin.spec, encoder

    counted = Counted(partial(events.note, "encoded"))
    features.work(folder, lambda number: kept.get(str(number), partial(load, number)), counted.add)
    counted.flush()


def _task(folder: Path, job: TaskJob, registry: Registry, context: Context, events: Events) -> None:
    from chexgenbench.jobs import tasks

    plugin = _find(registry, "metrics", job.metric, job.source)
    parameters = plugin.parse(job.parameters)

    def load() -> TaskMetric:
        metric = plugin.create(parameters, context)
        assert isinstance(metric, TaskMetric)
        return metric

    tasks.work(folder, job, context, load, events)


def _find(registry: Registry, kind: str, name: str, source: str) -> Plugin[Any]:
    """The plugin here, whose code must be that of the plugin that the job was planned with."""
    plugin = registry.find(kind, name)
    if plugin.source_hash() != source:
        raise ChexGenBenchError(
            f"The {plugin.spec.kind} {name!r} has other code in the worker's environment "
            f"({plugin.source}) than here.",
            hint="Use one release of the plugin in both, and start again if it was just changed.",
        )
    return plugin


@contextmanager
def _timed(events: Events) -> Iterator[None]:
    """Notes how long a plugin took to load."""
    begun = time.perf_counter()
    yield
    events.note("loaded", seconds=round(time.perf_counter() - begun, 3))


def limit(limits: Limits) -> None:
    """Holds this process, and those it starts, to the limits, as far as the system can.

    On Linux it also becomes the parent of orphans among those, so that who ends it finds them.
    """
    if sys.platform == "win32":
        return
    import resource

    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    kinds = {
        # Not the address space: CUDA reserves far more of it than it uses.
        resource.RLIMIT_DATA: limits.memory,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in kinds.items():
        if most is None:
            continue
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _beat(folder: Path, worker: int, done: threading.Event) -> None:
    """Notes every few seconds that this worker is alive, for those that cannot see its process."""
    while True:
        with suppress(OSError):  # a full disk is met where images are written
            write_json(heartbeat_path(folder, worker), {"time": time.time(), "pid": os.getpid()})
        if done.wait(HEARTBEAT):
            return


def end_with_input() -> None:
    """Ends this process, and all that it started, when the one that started it is gone."""
    while True:
        select.select([sys.stdin.fileno()], [], [])
        if not os.read(sys.stdin.fileno(), 4096):
            break
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
