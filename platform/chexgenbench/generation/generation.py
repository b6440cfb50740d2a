"""The images of one model for one list of requests, and their identity."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chexgenbench.files import atomic_path, digest, read_json, write_json
from chexgenbench.jobs.generate import ManifestRow, generate, read_manifest
from chexgenbench.registry import Plugin
from chexgenbench.types import Context, Model, ModelSpec, Parameters, Request

IDENTITY = "generation.json"


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
        """How many of the images are there."""
        rows = read_manifest(self.folder)
        return sum(request.id in rows for request in self.requests)

    def seconds_an_image(self) -> float | None:
        """What an image took so far: here, else in the latest generation of this model and device
        with the same parameters, else with others; None where the model never made one."""

        known = {path: read_json(path) for path in self.folder.parent.glob(f"*/{IDENTITY}")}
        alike = [
            path
            for path, identity in known.items()
            if identity["model"]["name"] == self.plugin.name
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
    ) -> dict[str, ManifestRow]:
        """Makes what is missing; returns the manifest in request order."""

        def load() -> Model:
            model = self.plugin.create(self.parameters, self.context)
            assert isinstance(model, Model)  # Plugin.load has checked the class
            return model

        write_json(self.folder / IDENTITY, self.identity)
        rows = generate(
            load,
            self.requests,
            self.folder,
            batch_size=self.batch_size,
            advance=advance,
            wait=say,
        )
        self._write_metadata(rows)
        return rows

    def _write_metadata(self, rows: Mapping[str, ManifestRow]) -> None:
        """``generations_with_metadata.csv``: the published table of prompts and file names."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(
            ["id", "annotated_prompt", "patientID", "view", "seed", "synthetic_filename"]
        )
        writer.writerows(
            [
                request.prompt_id,
                request.prompt,
                request.patient_id or "",
                request.view or "",
                request.seed,
                rows[request.id].path,
            ]
            for request in self.requests
        )
        with atomic_path(self.folder / "generations_with_metadata.csv") as temporary:
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
