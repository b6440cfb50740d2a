"""What a command says beyond its suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chexgenbench.home import Home


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where to work, and on what.

    Attributes:
        changes: fields of the suite that the command line sets.
        settings: ``--set`` values.
        images_root: overrides the split's.
        columns: overrides the split's column names.
        reference: a reference bundle that stands for the real images.
        device: ``auto``, or torch devices separated by commas; encoders use the first.
        workers: processes that make images; None: one for each device.
        executors: ``KIND`` for all models, encoders and task metrics, ``NAME=KIND`` for one; see
            `places.place_of`.
        runtime: the command that runs containers; None: whichever is found.
        address: of a Ray cluster; ``local`` is one of this machine alone.
        shared: a folder or fsspec URL that a cluster's workers see; None: the project's.
        shards: parts that a generation, or images to encode, are cut into; None: the executor's
            own number.
        memory: bytes that a worker may take.
        timeout: seconds without an image, or other progress, after which a worker is given up.
        allow_pickle: weights may be pickles, which can run code.
        encode_batch_size: images a call of an encoder.
        elsewhere: other machines make the images: this one need not have the device.
        new: makes a new generation and run although equal ones are finished.
        allow_leakage: task metrics are taken although training and test side overlap.
    """

    home: Home
    suite: str = "demo"
    changes: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[Path, ...] = ()
    settings: tuple[str, ...] = ()
    images_root: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    reference: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    workers: int | None = None
    executors: tuple[str, ...] = ()
    runtime: str | None = None
    address: str | None = None
    shared: str | None = None
    shards: int | None = None
    memory: int | None = None
    timeout: float = 1800.0
    elsewhere: bool = False
    allow_pickle: bool = False
    encode_batch_size: int = 32
    on_bad_image: Literal["fail", "skip"] = "fail"
    extra_info: str = ""
    new: bool = False
    allow_leakage: bool = False
    include_credentialed: bool = False
