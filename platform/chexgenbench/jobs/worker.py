"""A process that makes images of a job: ``python -m chexgenbench.jobs.worker FOLDER ...``.

It is told everything by the files of the folder (see `job`), so that it may run in another
interpreter, with other packages, than the command that started it. It ends when its standard input
does, so that it does not outlive that command.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from chexgenbench.errors import ChexGenBenchError, is_disk_fault
from chexgenbench.jobs.generate import work
from chexgenbench.jobs.job import DISK_FAULT, read_job, write_error
from chexgenbench.registry import load_registry
from chexgenbench.types import Model


def main(arguments: Sequence[str] | None = None) -> int:
    """Works until no image is missing; the exit code is 0, or that of the error it noted."""
    parser = argparse.ArgumentParser(prog="python -m chexgenbench.jobs.worker")
    parser.add_argument("folder", type=Path, help="The folder of the generation.")
    parser.add_argument("--worker", type=int, required=True, help="Its number, from 1.")
    parser.add_argument("--device", required=True, help="What its model runs on.")
    options = parser.parse_args(arguments)
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        run(options.folder, options.worker, options.device)
    except ChexGenBenchError as error:
        write_error(options.folder, options.worker, error)
        return error.exit_code
    except OSError as error:
        if not is_disk_fault(error):
            raise
        return DISK_FAULT + (error.errno or 0)
    return 0


def run(folder: Path, worker: int, device: str) -> None:
    """Makes images of the job in the folder until none is missing.

    Raises:
        ChexGenBenchError: see `jobs.generate.generate`; also where the plugin here is not the one
            that the job was planned with.
    """
    job, requests = read_job(folder)
    context = job.context_on(device)
    files = [Path(name) for name in job.plugins]
    plugin_folder = Path(job.plugin_folder) if job.plugin_folder else None
    registry = load_registry(files, plugin_folder, context.home)
    plugin = registry.find("models", job.model)
    if plugin.source_hash() != job.source:
        raise ChexGenBenchError(
            f"The model {job.model!r} has other code in the worker's environment "
            f"({plugin.source}) than here.",
            hint="Use one release of the plugin in both, and start again if it was just changed.",
        )
    parameters = plugin.parse(job.parameters)

    def load() -> Model:
        model = plugin.create(parameters, context)
        assert isinstance(model, Model)  # Plugin.load has checked the class
        return model

    work(load, requests, folder, batch_size=job.batch_size, device=device, worker=worker)


def _end_with_input() -> None:
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
