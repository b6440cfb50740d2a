"""The files by which a worker is told what to do, and tells what went wrong: JSON, versioned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.files import atomic_path, read_json, write_json
from chexgenbench.types import Context, Request

FORMAT = 1
"""Changes whenever a worker of an earlier release would misread the files."""

DISK_FAULT = 64
"""A worker whose disk is full, read-only or broken can note nothing: it ends with this exit code
plus the error number."""

JOB = "job.json"
REQUESTS = "requests.jsonl"


class Job(BaseModel):
    """The images of one model for one list of requests.

    Attributes:
        model: what `Registry.find` knows the model by.
        source: the hash of the model's source, which the worker's must have too.
        plugins: files that ``--plugin`` named.
        plugin_folder: the user's folder of plugins.
        parameters: as JSON values.
        context: `Context` less its device and its training side.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: int = FORMAT
    model: str
    source: str
    plugins: tuple[str, ...] = ()
    plugin_folder: str | None = None
    parameters: Mapping[str, Any]
    context: Mapping[str, Any]
    batch_size: int
    n_requests: int

    def context_on(self, device: str) -> Context:
        """The context with that device."""
        values = dict(self.context)
        return Context(
            **values | {"home": Path(values["home"]), "cache": Path(values["cache"])},
            device=device,
        )


def plain_context(context: Context) -> dict[str, Any]:
    """A context as JSON values, less its device and its training side."""
    return {
        "dtype": context.dtype,
        "allow_pickle": context.allow_pickle,
        "home": str(context.home),
        "cache": str(context.cache),
    }


def write_job(folder: Path, job: Job, requests: Sequence[Request]) -> None:
    """Writes ``job.json`` and ``requests.jsonl``."""
    with atomic_path(folder / REQUESTS) as temporary:
        lines = (json.dumps(asdict(request), ensure_ascii=False) + "\n" for request in requests)
        temporary.write_text("".join(lines), encoding="utf-8")
    write_json(folder / JOB, job.model_dump(mode="json"))


def read_job(folder: Path) -> tuple[Job, list[Request]]:
    """The job and its requests.

    Raises:
        UserError: they are missing, damaged, or of another release.
    """
    values = read_json(folder / JOB)
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{folder / JOB} has format {found}, and this worker reads format {FORMAT}.",
            hint="Use one release of chexgenbench in both environments.",
        )
    try:
        job = Job.model_validate(values)
        text = (folder / REQUESTS).read_text(encoding="utf-8")
        # Not splitlines: a prompt may hold characters that it takes for line ends.
        requests = [Request(**json.loads(line)) for line in text.split("\n") if line]
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise UserError(f"The job in {folder} cannot be read: {error}.") from error
    if len(requests) != job.n_requests:
        raise UserError(f"{folder / REQUESTS} has {len(requests)} of {job.n_requests} requests.")
    return job, requests


def error_path(folder: Path, worker: int) -> Path:
    return folder / f"worker-{worker}.error.json"


def log_path(folder: Path, worker: int) -> Path:
    return folder / f"worker-{worker}.log"


def write_error(folder: Path, worker: int, error: ChexGenBenchError) -> None:
    """Notes an error so that `read_error` gives it back in another process."""
    values = {
        "format": FORMAT,
        "user": isinstance(error, UserError),
        "message": error.message,
        "hint": error.hint,
    }
    write_json(error_path(folder, worker), values)


def read_error(folder: Path, worker: int) -> ChexGenBenchError | None:
    """The error that a worker noted; None where it noted none."""
    path = error_path(folder, worker)
    if not path.is_file():
        return None
    values = read_json(path)
    kind = UserError if values["user"] else ChexGenBenchError
    return kind(values["message"], hint=values["hint"])
