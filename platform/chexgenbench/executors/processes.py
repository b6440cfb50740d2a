"""Worker processes that share the batches of one generation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.executors.launch import (
    disk_fault,
    exit_text,
    isolation,
    last_line,
    memory_hint,
)
from chexgenbench.jobs.generate import finish
from chexgenbench.jobs.job import (
    GenerateJob,
    Limits,
    error_path,
    log_path,
    read_error,
    write_generate_job,
)
from chexgenbench.jobs.manifest import ManifestRow, manifest_tail
from chexgenbench.jobs.waiting import AGAIN, WORKER, Silence, describe, is_stopped
from chexgenbench.types import Request

_LOOK_AGAIN = 0.1
"""Seconds between two looks at the workers and what they have made."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a worker finds a plugin: files that were named, the user's folder, and its weights."""

    files: Sequence[Path] = ()
    folder: Path | None = None
    weights: Sequence[Path] = ()

    def read(self) -> tuple[str, ...]:
        """The files that a worker reads of it, as `jobs.job.Job.files` names them."""
        paths = [path.resolve() for path in self.files]
        if self.folder is not None and self.folder.is_dir():
            paths += sorted(self.folder.resolve().glob("*.py"))
        return tuple(dict.fromkeys(str(path) for path in [*paths, *self.weights]))

    def told(self) -> dict[str, Any]:
        """The fields of a job that say it."""
        return {
            "plugins": tuple(str(path.resolve()) for path in self.files),
            "plugin_folder": None if self.folder is None else str(self.folder),
            "files": self.read(),
        }


@dataclass
class _Worker:
    number: int
    device: str
    process: subprocess.Popen[bytes]

    def __str__(self) -> str:
        return f"worker {self.number} on {self.device}"


def run_workers(
    job: GenerateJob,
    requests: Sequence[Request],
    folder: Path,
    *,
    devices: Sequence[str],
    interpreter: Path | None = None,
    advance: Callable[[int], None] = lambda _count: None,
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, ManifestRow]:
    """Makes the images that are not there yet by one process for each of `devices`.

    The caller holds the folder (`jobs.generate.hold`). A worker that dies leaves its batch to the
    others. Each computes with as many threads as a single process would (the count can change the
    last bit of an image on a CPU; OMP_NUM_THREADS sets it for all), so that the images are the same
    for any number of workers.

    Args:
        devices: one device a worker; the same one may be named several times.
        interpreter: the Python that has the model's packages, and chexgenbench; None is this one.
        advance: told the number of images done, those found there included.
        say: told a line about a worker that died, and where none makes an image for long.

    Returns:
        The whole manifest, in request order.

    Raises:
        UserError: a worker's; or the interpreter is not there.
        ChexGenBenchError: all workers ended and images are missing; the first one's error.
    """
    python = interpreter or Path(sys.executable)
    if not python.is_file():
        raise UserError(f"The interpreter {python} does not exist.")
    wanted = {request.id for request in requests}
    rows = manifest_tail(folder)
    done = {row.id for row in rows.new()} & wanted
    advance(len(done))
    if done != wanted:
        write_generate_job(folder, job, requests)
        workers = []
        failures: list[ChexGenBenchError] = []
        try:
            for number, device in enumerate(devices, start=1):
                workers.append(_start(python, folder, number, device, len(devices)))
            alive = list(workers)
            silence, longest = Silence(), 0.0
            while alive:
                time.sleep(_LOOK_AGAIN)
                ended = [worker for worker in alive if worker.process.poll() is not None]
                alive = [worker for worker in alive if worker not in ended]
                for worker in ended:
                    if worker.process.returncode:
                        failures.append(_limited(job.limits, _failure(folder, worker)))
                        if alive:
                            say(f"{failures[-1]} ({len(alive)} more at work)")
                new = ({row.id for row in rows.new()} & wanted) - done
                done |= new
                advance(len(new))
                if new or ended:
                    silence, longest = Silence(), max(longest, silence.seconds)
                elif silence.due():
                    _tell_of(alive, silence.seconds, longest, say)
        finally:
            for worker in workers:
                _stop(worker)
    if done != wanted:
        raise failures[0] if failures else _unfinished(folder, len(wanted - done))
    return finish(requests, folder)


def _start(python: Path, folder: Path, number: int, device: str, workers: int) -> _Worker:
    error_path(folder, number).unlink(missing_ok=True)
    environment = dict(os.environ)
    if workers > 1:
        # Threads that wait for work give way to those of the other workers.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command = [str(python), isolation(python), "-m", WORKER, str(folder.resolve())]
    with log_path(folder, number).open("wb") as log:
        process = subprocess.Popen(
            [*command, "--worker", str(number), "--device", device, "--lifeline"],
            # A worker ends when this pipe is closed: by us, or by the system when we are killed.
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return _Worker(number, device, process)


def _tell_of(
    workers: Sequence[_Worker], seconds: float, longest: float, say: Callable[[str], None]
) -> None:
    """Says which workers are stopped; else, where a call is far longer than any before, that it is.

    Args:
        seconds: since the last image.
        longest: time between two images until now.
    """
    stopped = [worker for worker in workers if is_stopped(worker.process.pid)]
    told = stopped or (workers if seconds > max(AGAIN, 2 * longest) else [])
    named = ", ".join(f"{worker} ({describe(worker.process.pid)})" for worker in told)
    if stopped:
        pids = " ".join(str(worker.process.pid) for worker in stopped)
        say(f"waiting for {named}; to let it go on: kill -CONT {pids}")
    elif told:
        say(f"no image for {seconds:.0f} s; waiting for {named}")


def _stop(worker: _Worker) -> None:
    """Ends a worker and all that it started; a kill at any moment loses nothing."""
    if worker.process.poll() is None:
        with suppress(ProcessLookupError):  # it ended just now
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
    if worker.process.stdin is not None:
        worker.process.stdin.close()


def _failure(folder: Path, worker: _Worker) -> ChexGenBenchError:
    """Why a worker ended; faults that all workers would meet are raised at once."""
    error = read_error(folder, worker.number)
    if isinstance(error, UserError):
        raise error
    if error is not None:
        return error
    code = worker.process.returncode
    if is_disk_fault(fault := disk_fault(code)):
        raise fault
    log = log_path(folder, worker.number)
    return ChexGenBenchError(
        f"{worker} ended with {exit_text(code)}: {last_line(log) or 'it said nothing'}",
        hint=f"Its log: {log}. Repeat the same command to go on.",
    )


def _limited(limits: Limits, error: ChexGenBenchError) -> ChexGenBenchError:
    """The error, with the limit of memory that may be the reason."""
    hints = [error.hint, memory_hint(limits, error.message)]
    return type(error)(error.message, hint="\n".join(hint for hint in hints if hint) or None)


def _unfinished(folder: Path, missing: int) -> ChexGenBenchError:
    return ChexGenBenchError(f"The workers ended and {missing} images are missing in {folder}.")
