"""The job directory: the files by which a worker is told what to do, and tells what went wrong.

``job.json`` says what is to be done: make images (`GenerateJob`), encode some (`EncodeJob`) or take
a task metric (`TaskJob`); tables beside it hold requests, images and sets. The worker adds what it
was asked for, and of its own number ``heartbeat-1.json``, ``events-1.jsonl`` and, where it fails,
``worker-1.error.json``. All is JSON, Parquet, safetensors and PNG; nothing is unpickled.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.files import atomic_path, read_json, write_json
from chexgenbench.types import Context, Request

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 2
"""Changes whenever a worker of an earlier release would misread the files."""

DISK_FAULT = 64
"""A worker whose disk is full, read-only or broken can note nothing: it ends with this exit code
plus the error number."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")
"""Of a request."""

_SECONDS_BETWEEN_COUNTS = 0.5

JOB = "job.json"
REQUESTS = "requests.parquet"


def stage_of(folder: Path) -> Path:
    """The folder of images for the worker of a job directory alone, beside it; the job directory
    names them relative to the folder that both are in, so that they may travel together.

    >>> stage_of(Path("jobs/encode-images-0001")).name
    'encode-images-0001.images'
    """
    return folder.with_name(f"{folder.name}.images")


class Limits(BaseModel):
    """What a worker may use; None is no limit.

    Attributes:
        memory: bytes of memory, without what a GPU holds.
        processes: threads and processes together; a container alone can hold to it.
        file_bytes: of any one file that it writes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory: int | None = None
    processes: int | None = None
    file_bytes: int | None = None


class Job(BaseModel):
    """What all kinds of jobs have in common; what starts workers reads nothing else.

    Attributes:
        kind: what is to be done; see the classes below.
        plugins: files that ``--plugin`` named.
        plugin_folder: the user's folder of plugins.
        context: `Context` less its device and its training side.
        device: the kind that the job was planned for, such as ``cuda``.
        files: what else the worker reads, by absolute path: weights, plugin files, folders of
            staged images. A worker that does not see this file system is given them under the same
            paths.
        limits: what the worker may use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: int = FORMAT
    kind: str
    plugins: tuple[str, ...] = ()
    plugin_folder: str | None = None
    context: Mapping[str, Any]
    device: str = "cpu"
    files: tuple[str, ...] = ()
    limits: Limits = Limits()

    def context_on(self, device: str) -> Context:
        """The context with that device."""
        values = dict(self.context)
        try:
            places = {name: Path(values[name]) for name in ("home", "cache")}
            return Context(**values | places, device=device)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"The job cannot be read: its context is no context: {error}."
            ) from error


class GenerateJob(Job):
    """The images of one model for one list of requests.

    Attributes:
        model: what `Registry.find` knows the model by.
        source: the hash of the model's source, which the worker's must have too.
        parameters: as JSON values.
        batches: of a part of a generation, the positions of its batches in the whole.
    """

    kind: Literal["generate"] = "generate"
    model: str
    source: str
    parameters: Mapping[str, Any]
    batch_size: int = Field(ge=1)
    n_requests: int = Field(ge=0)
    batches: tuple[int, ...] = ()


class EncoderWork(BaseModel):
    """One encoder of an `EncodeJob`.

    Attributes:
        source: the hash of its source.
        outputs: name to width of each feature vector that comes back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str
    parameters: Mapping[str, Any]
    outputs: Mapping[str, int]


class EncodeJob(Job):
    """The features of one list of images, or of texts; see `jobs.features`.

    Attributes:
        side: what ``items.parquet`` lists.
        encoders: each encodes every item.
        batch_size: items a call, which decides the last bit of a feature.
        n_items: the rows of ``items.parquet``.
    """

    kind: Literal["encode"] = "encode"
    side: Literal["images", "texts"] = "images"
    encoders: tuple[EncoderWork, ...]
    batch_size: int = Field(ge=1)
    n_items: int = Field(ge=0)


class SetFacts(BaseModel):
    """A set of images of a `TaskJob`; its rows are in files, see `jobs.tasks`.

    Attributes:
        name: what the metric calls it.
        need: the fields of `ImageNeed`.
        table: the number of the table of prompts that its rows are of.
        n_images: its rows.
        outputs: the encoder's outputs that the job holds of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    need: Mapping[str, Any]
    table: int
    n_images: int
    outputs: tuple[str, ...]


class TableFacts(BaseModel):
    """A table of prompts of a `TaskJob`; see `PromptTable`.

    Attributes:
        n_rows: of its own rows, which sets of images name by their position.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    n_rows: int
    source_file: str
    images_root: str | None
    rows_read: int
    uncertain: Literal["keep", "positive", "negative"]
    conflicts: tuple[tuple[int, int], ...]


class TaskJob(Job):
    """One task metric on one encoder, of one model's images.

    Attributes:
        source: the hash of the metric's source.
        encoder, model, seed: of `Task`.
        folder: of `Task`, where the worker sees it; None: one in the job directory.
    """

    kind: Literal["task"] = "task"
    metric: str
    source: str
    parameters: Mapping[str, Any]
    encoder: str
    model: str
    seed: int
    folder: str | None
    sets: tuple[SetFacts, ...]
    tables: tuple[TableFacts, ...]


_KINDS: Mapping[str, type[Job]] = {
    "generate": GenerateJob,
    "encode": EncodeJob,
    "task": TaskJob,
}

J = TypeVar("J", bound=Job)


def plain_context(context: Context) -> dict[str, Any]:
    """A context as JSON values, less its device and its training side."""
    return {
        "dtype": context.dtype,
        "allow_pickle": context.allow_pickle,
        "home": str(context.home),
        "cache": str(context.cache),
    }


def write_generate_job(folder: Path, job: GenerateJob, requests: Sequence[Request]) -> None:
    """Writes ``job.json`` and ``requests.parquet``."""
    rows = [asdict(request) | {"labels": list(request.labels.items())} for request in requests]
    write_rows(folder / REQUESTS, rows, _schema())
    write_facts(folder, job)


def write_facts(folder: Path, job: Job) -> None:
    """Writes ``job.json``: the last file of a job, since it says that the others are there."""
    write_json(folder / JOB, job.model_dump(mode="json"))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Writes a table of a job as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)


def read_rows(path: Path, schema: pa.Schema, *, count: int) -> list[dict[str, Any]]:
    """The `count` rows of a table that the platform wrote for a job.

    Raises:
        UserError: it is missing, damaged, or has other columns or another number of rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path, schema=schema).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"The job in {path.parent} cannot be read: {error}.") from error
    if len(rows) != count:
        raise UserError(f"{path} has {len(rows)} rows, and its job has {count}.")
    return rows


def read_facts(folder: Path) -> Job:
    """The job of a folder, of whatever kind.

    Raises:
        UserError: it is missing, damaged, or of another release.
    """
    values = read_json(folder / JOB)
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{folder / JOB} has format {found}, and this worker reads format {FORMAT}.",
            hint="Use one release of chexgenbench in both environments.",
        )
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(
            f"{folder / JOB} is a job of the kind {kind!r}; this worker does {', '.join(_KINDS)}.",
            hint="Use one release of chexgenbench in both environments.",
        )
    try:
        return _KINDS[kind].model_validate(values)
    except ValidationError as error:
        raise UserError(f"The job in {folder} cannot be read: {error}.") from error


def facts_of(folder: Path, kind: type[J]) -> J:
    """The job of a folder, which must be of that kind.

    Raises:
        UserError: see `read_facts`; or it is of another kind.
    """
    job = read_facts(folder)
    if not isinstance(job, kind):
        raise UserError(f"{folder / JOB} is a job of the kind {job.kind!r}, not the one expected.")
    return job


def read_generate_job(folder: Path) -> tuple[GenerateJob, list[Request]]:
    """A generation's job and its requests.

    Raises:
        UserError: they are missing, damaged, of another release, or of another kind of job.
    """
    job = facts_of(folder, GenerateJob)
    rows = read_rows(folder / REQUESTS, _schema(), count=job.n_requests)
    try:
        requests = [Request(**row | {"labels": dict(row["labels"] or ())}) for row in rows]
    except (ValueError, TypeError) as error:
        raise UserError(f"The job in {folder} cannot be read: {error}.") from error
    odd = next((each.id for each in requests if not _NAME.fullmatch(each.id)), None)
    if odd is not None:  # images are named by it
        raise UserError(f"{folder / REQUESTS} has a request {odd!r}, which is no file name.")
    return job, requests


def _schema() -> pa.Schema:
    """A column for each field of `Request`."""
    import pyarrow as pa

    kinds = {"seed": pa.int64(), "repeat": pa.int32(), "size": pa.int32()}
    kinds["labels"] = pa.map_(pa.string(), pa.float64())
    return pa.schema([(each.name, kinds.get(each.name, pa.string())) for each in fields(Request)])


def error_path(folder: Path, worker: int) -> Path:
    return folder / f"worker-{worker}.error.json"


def log_path(folder: Path, worker: int) -> Path:
    return folder / f"worker-{worker}.log"


def heartbeat_path(folder: Path, worker: int) -> Path:
    return folder / f"heartbeat-{worker}.json"


class Events:
    """A worker's log for programs: a JSON object a line, with the time and what happened.

    No prompt, path or label of a request is in it.
    """

    def __init__(self, folder: Path, worker: int) -> None:
        self._path = folder / f"events-{worker}.jsonl"

    def note(self, event: str, **facts: str | float | None) -> None:
        """Adds a line such as ``{"event": "made", "images": 8, "time": 1732797000.0}``."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, sort_keys=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Counted:
    """Gathers counts, and tells their sum twice a second at most."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell, self._waiting, self._last = tell, 0, time.monotonic()

    def add(self, count: int) -> None:
        self._waiting += count
        if time.monotonic() - self._last > _SECONDS_BETWEEN_COUNTS:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._tell(count=self._waiting)
        self._waiting, self._last = 0, time.monotonic()


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
