"""The images of one model for one list of requests, and their identity."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chexgenbench import provenance
from chexgenbench.executors import Launcher, ModelSource, run_shards, run_workers
from chexgenbench.files import atomic_path, digest, read_json, write_json
from chexgenbench.jobs.generate import finished, generate, hold
from chexgenbench.jobs.job import GenerateJob, Limits, plain_context
from chexgenbench.jobs.manifest import (
    IDENTITY,
    SUMMARY,
    ManifestRow,
    is_whole,
    read_calls,
    read_manifest,
    read_processes,
)
from chexgenbench.registry import Plugin
from chexgenbench.types import Context, Model, ModelSpec, Parameters, Request

FORMAT = 3
"""Changes with the manifest; a generation of another format is made again."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What making a generation took, over all its resumptions.

    Attributes:
        seconds: of the model's calls, summed over the workers.
        images_per_second: of one worker.
        peak_memory: bytes that the model took at most, in one process; see
            `provenance.MemoryMeter`.
        devices: those that made an image, such as ``cuda:1``.
        workers: how many processes made an image.
        threads: that each process computed with on the CPU.
        cut_batches: batches that took several calls because memory was short.
        hardware: `provenance.hardware` of the process that made the last image.
        versions: `provenance.versions` of the processes that made the images; where they differ,
            all of a package, such as ``2.4.0, 2.5.1``.
    """

    n_images: int
    seconds: float
    images_per_second: float | None
    peak_memory: int
    devices: tuple[str, ...]
    workers: int
    threads: int
    cut_batches: int
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A planned, partial or finished generation.

    Attributes:
        id: 16 hexadecimal digits of the hash of everything that decides the images.
        identity: what was hashed, except the requests, which stand there as their hash.
        folder: where the images and the manifest lie.
        remarks: what `Model.check` said of the requests.
    """

    id: str
    identity: Mapping[str, Any]
    folder: Path
    plugin: Plugin[ModelSpec]
    parameters: Parameters
    context: Context
    requests: Sequence[Request]
    batch_size: int
    remarks: Sequence[str] = ()

    def made(self) -> int:
        """How many of the images are there, as whole files."""
        rows = read_manifest(self.folder)
        known = [rows[request.id] for request in self.requests if request.id in rows]
        return sum(is_whole(self.folder / row.path) for row in known)

    def seconds_an_image(self) -> float | None:
        """What an image took so far: here, else in the latest generation of this model and device
        with the same parameters, else with others; None where the model never made one."""

        found = {path: read_json(path) for path in self.folder.parent.glob(f"*/{IDENTITY}")}
        known = {path: each for path, each in found.items() if each.get("format") == FORMAT}
        alike = [
            path
            for path, identity in known.items()
            if identity["model"]["name"] == self.plugin.spec.name
            and identity["device"] == self.identity["device"]
        ]

        def likeness(path: Path) -> tuple[bool, bool, float]:
            keys = ("parameters", "batch_size")
            same = all(known[path][key] == self.identity[key] for key in keys)
            return path.parent == self.folder, same, path.stat().st_mtime

        for path in sorted(alike, key=likeness, reverse=True):
            seconds = [row.seconds for row in read_manifest(path.parent).values()]
            if seconds:
                return sum(seconds) / len(seconds)
        return None

    def run(
        self,
        advance: Callable[[int], None] = lambda _count: None,
        say: Callable[[str], None] = lambda _text: None,
        *,
        devices: Sequence[str] = (),
        workers: int | None = None,
        interpreter: Path | None = None,
        source: ModelSource | None = None,
        launcher: Launcher | None = None,
        shards: int | None = None,
        limits: Limits | None = None,
        timeout: float = 1800.0,
    ) -> dict[str, ManifestRow]:
        """Makes what is missing; returns the manifest in request order.

        Another command at work in the folder is waited for.

        Args:
            say: told a line about what is waited for, and about workers that died.
            devices: those to work on, of the kind that the generation was planned for; empty means
                the planned one.
            workers: processes to share the work, over the devices in turn; None is one a device.
                One alone works in this process unless there is an interpreter.
            interpreter: the Python that has the model's packages; None is this one.
            source: where a worker process finds the model's plugin.
            launcher: starts the workers, each on a job directory of its own; None: they share the
                generation's folder, as processes of this machine.
            shards, timeout: see `executors.run_shards`.
            limits: what a worker may use.

        Raises:
            UserError, ChexGenBenchError: see `jobs.generate.generate` and `executors.run_workers`.
        """
        with hold(self.folder, say):
            write_json(self.folder / IDENTITY, self.identity)
            done = finished(self.requests, self.folder)
            if done is not None and (self.folder / SUMMARY).exists():
                advance(len(done))
                return done
            (self.folder / SUMMARY).unlink(missing_ok=True)
            places = self._places(devices, workers, say)
            job = self.job(source or ModelSource(), limits or Limits())
            if launcher is not None:
                rows = run_shards(
                    job,
                    self.requests,
                    self.folder,
                    launcher,
                    shards=shards,
                    timeout=timeout,
                    advance=advance,
                    say=say,
                )
            elif len(places) == 1 and interpreter is None:
                if job.limits.memory is not None:
                    say(
                        f"{self.plugin.name} works in this process, which is held to no limit of "
                        "memory; --executor process holds it to --memory"
                    )
                rows = self._here(places[0], advance)
            else:
                rows = run_workers(
                    job,
                    self.requests,
                    self.folder,
                    devices=places,
                    interpreter=interpreter,
                    advance=advance,
                    say=say,
                )
            conclude(self.requests, self.folder, rows)
            return rows

    def summary(self) -> Summary:
        """What making the images took; the generation is finished."""
        values = read_json(self.folder / SUMMARY)
        return Summary(**{**values, "devices": tuple(values["devices"])})

    def _places(
        self, devices: Sequence[str], workers: int | None, say: Callable[[str], None]
    ) -> list[str]:
        """The device of each worker."""
        known = list(devices) or [self.context.device]
        count = workers or len(known)
        if count > 1 and self.plugin.spec.uses_training:
            say(f"{self.plugin.name} reads the training side: one process makes its images")
            count = 1
        return [known[number % len(known)] for number in range(count)]

    def job(self, source: ModelSource, limits: Limits) -> GenerateJob:
        """What a worker is told, less its part of the requests."""
        return GenerateJob(
            model=self.plugin.text or self.plugin.spec.name,
            source=self.plugin.source_hash(),
            parameters=self.parameters.model_dump(mode="json"),
            context=plain_context(self.context),
            batch_size=self.batch_size,
            n_requests=len(self.requests),
            device=self.context.device.partition(":")[0],
            limits=limits,
            **source.told(),
        )

    def _here(self, device: str, advance: Callable[[int], None]) -> dict[str, ManifestRow]:
        context = replace(self.context, device=device)

        def load() -> Model:
            model = self.plugin.create(self.parameters, context)
            assert isinstance(model, Model)  # Plugin.load has checked the class
            return model

        return generate(
            load,
            self.requests,
            self.folder,
            batch_size=self.batch_size,
            advance=advance,
            device=device,
        )


def is_concluded(folder: Path) -> bool:
    """Whether a generation's last file stands; the images may have been removed since."""
    return (folder / SUMMARY).exists()


def conclude(requests: Sequence[Request], folder: Path, rows: Mapping[str, ManifestRow]) -> None:
    """Writes the table of prompts and the summary; the caller holds the folder.

    Args:
        rows: the whole manifest, in request order.
    """
    _write_metadata(requests, folder, rows)
    # The last file of a generation: where it stands nothing is left to do.
    write_json(folder / SUMMARY, asdict(_summarise(folder, rows)))


def _summarise(folder: Path, rows: Mapping[str, ManifestRow]) -> Summary:
    seconds = sum(row.seconds for row in rows.values())
    devices = sorted({row.device for row in rows.values()})
    processes = read_processes(folder)
    versions: dict[str, set[str]] = {}
    for process in processes.values():
        for package, version in process.versions.items():
            versions.setdefault(package, set()).add(version)
    in_order = sorted(rows.values(), key=lambda row: row.batch)
    made = [processes[row.process] for row in in_order if row.process in processes]
    return Summary(
        n_images=len(rows),
        seconds=seconds,
        images_per_second=len(rows) / seconds if seconds else None,
        peak_memory=max((row.memory for row in rows.values()), default=0),
        devices=tuple(devices),
        workers=len({row.worker for row in rows.values()}),
        threads=provenance.threads(),
        cut_batches=len(read_calls(folder)),
        hardware=made[-1].hardware if made else {},
        versions={package: ", ".join(sorted(each)) for package, each in versions.items()},
    )


def _write_metadata(
    requests: Sequence[Request], folder: Path, rows: Mapping[str, ManifestRow]
) -> None:
    """``generations_with_metadata.csv``: the published table of prompts and file names."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "annotated_prompt", "patientID", "view", "seed", "synthetic_filename"])
    writer.writerows(
        [
            request.prompt_id,
            request.prompt,
            request.patient_id or "",
            request.view or "",
            request.seed,
            rows[request.id].path,
        ]
        for request in requests
    )
    with atomic_path(folder / "generations_with_metadata.csv") as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")


def plan_generation(
    plugin: Plugin[ModelSpec],
    parameters: Parameters,
    context: Context,
    requests: Sequence[Request],
    *,
    batch_size: int | None,
    exact: bool,
    root: Path,
    weights: Mapping[str, str],
    nonce: str | None = None,
) -> Generation:
    """Names the generation; touches no file.

    Args:
        batch_size: requests a call; None takes the plugin's own.
        exact: one request a call, so that the batch size plays no part.
        root: the folder that holds all generations.
        weights: SHA-256 of each weight file.
        nonce: anything that makes this one a new generation although nothing else differs.
    """
    size = 1 if exact else batch_size or plugin.spec.batch_size
    training = context.training
    identity: dict[str, Any] = {
        "format": FORMAT,
        "model": plugin.identity(),
        "parameters": parameters.identity(),
        "weights": dict(weights),
        "batch_size": size,
        "device": context.device.partition(":")[0],
        "dtype": context.dtype,
        "requests": digest([asdict(request) for request in requests]),
        "n_requests": len(requests),
    }
    if plugin.spec.uses_training and training is not None:
        identity["training"] = training.fingerprint()
    if nonce is not None:
        identity["nonce"] = nonce
    name = digest(identity)[:16]
    return Generation(
        id=name,
        identity=identity,
        folder=root / name,
        plugin=plugin,
        parameters=parameters,
        context=context,
        requests=requests,
        batch_size=size,
    )
