"""An encode job: images or texts in, features out, in parts that are whole or absent.

``items.parquet`` has a row for each item: its key, and its file or text. The worker adds
``features-0-0001.safetensors`` and so on for each encoder, by its number in the job: a float32
tensor [n, width] for each output, and the keys of the n rows as JSON in the header. Items that
cannot be decoded stand in ``bad.jsonl``. Killed and started again in the same directory, it goes on
behind the last part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chexgenbench.errors import PLUGIN_FAULTS, ChexGenBenchError, is_disk_fault
from chexgenbench.files import atomic_path, remove_leftovers
from chexgenbench.images import BadImage
from chexgenbench.jobs.encode import Gatherer, ImageItem, Outputs, encode_images, encode_texts
from chexgenbench.jobs.job import EncodeJob, facts_of, read_rows, write_facts, write_rows
from chexgenbench.types import Encoder, EncoderSpec

if TYPE_CHECKING:
    import pyarrow as pa

ITEMS = "items.parquet"
BAD = "bad.jsonl"
SUFFIX = ".safetensors"


def write_encode_job(folder: Path, job: EncodeJob, items: Sequence[tuple[str, str]]) -> None:
    """Writes the files of a job.

    Args:
        items: key, and file or text, of each.
    """
    rows = [{"key": key, "item": item} for key, item in items]
    write_rows(folder / ITEMS, rows, _schema())
    write_facts(folder, job)


def read_items(folder: Path, count: int) -> list[tuple[str, str]]:
    """Key, and file or text, of each of `count` items.

    Raises:
        UserError: they cannot be read, or are not as many.
    """
    rows = read_rows(folder / ITEMS, _schema(), count=count)
    return [(row["key"], row["item"]) for row in rows]


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("key", pa.string()), ("item", pa.string())])


def part_name(encoder: int, part: int) -> str:
    """The file of an encoder's features; both numbers are counted, the parts from 1.

    >>> part_name(0, 12)
    'features-0-0012.safetensors'
    """
    return f"features-{encoder}-{part:04d}{SUFFIX}"


def work(
    folder: Path,
    load: Callable[[int], tuple[EncoderSpec, Encoder]],
    advance: Callable[[int], None],
) -> None:
    """Encodes what is missing.

    Args:
        load: gives the encoder of that number.
        advance: told the number of items decoded.

    Raises:
        ChexGenBenchError: an encoder fails or returns something else than it declares.
    """
    job = facts_of(folder, EncodeJob)
    items = read_items(folder, job.n_items)
    remove_leftovers(folder, SUFFIX)
    bad = _bad(folder)
    writers: list[Gatherer] = []
    lacking: list[list[tuple[str, str]]] = []
    for number in range(len(job.encoders)):
        keys, parts = _done(folder, number)
        known = keys | bad
        writers.append(Gatherer(partial(_write, folder, number, parts)))
        lacking.append([item for item in items if item[0] not in known])
    loaded = {n: load(n) for n, missing in enumerate(lacking) if missing}
    try:
        if job.side == "images":
            _images(folder, job, items, lacking, loaded, writers, advance)
        else:
            for number, (spec, encoder) in loaded.items():
                encode_texts(
                    lacking[number],
                    spec,
                    encoder,
                    batch_size=job.batch_size,
                    sink=writers[number].add,
                    advance=advance,
                )
    except ChexGenBenchError:
        raise
    except PLUGIN_FAULTS as error:
        if is_disk_fault(error):
            raise
        names = ", ".join(job.encoders[number].name for number in loaded)
        raise ChexGenBenchError(
            f"Encoding failed ({names}): {type(error).__name__}: {error}"
        ) from error
    finally:
        for writer in writers:
            writer.flush()


def _images(
    folder: Path,
    job: EncodeJob,
    items: Sequence[tuple[str, str]],
    lacking: Sequence[Sequence[tuple[str, str]]],
    loaded: Mapping[int, tuple[EncoderSpec, Encoder]],
    writers: Sequence[Gatherer],
    advance: Callable[[int], None],
) -> None:
    missing = [{key for key, _ in each} for each in lacking]
    wanted = {
        key: ImageItem(
            key,
            folder.parent / path,  # staged images are named from there, others by whole paths
            frozenset(str(n) for n, keys in enumerate(missing) if key in keys),
        )
        for key, path in items
        if any(key in keys for keys in missing)
    }

    def bad(item: ImageItem, error: BadImage) -> None:
        with (folder / BAD).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": item.key, "message": error.message}) + "\n")

    encode_images(
        list(wanted.values()),
        {str(number): each for number, each in loaded.items()},
        batch_size=job.batch_size,
        device=job.device,
        sink=lambda number, keys, outputs: writers[int(number)].add(keys, outputs),
        bad=bad,
        advance=advance,
    )


def _write(
    folder: Path, number: int, parts: list[int], keys: Sequence[str], values: Outputs
) -> None:
    from safetensors.numpy import save_file

    parts.append(len(parts) + 1)
    tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in values.items()}
    with atomic_path(folder / part_name(number, parts[-1])) as temporary:
        save_file(tensors, temporary, metadata={"keys": json.dumps(list(keys))})


def _done(folder: Path, number: int) -> tuple[set[str], list[int]]:
    """The keys of an encoder that are there, and the numbers of its parts."""
    from safetensors import safe_open

    keys: set[str] = set()
    parts: list[int] = []
    while (path := folder / part_name(number, len(parts) + 1)).is_file():
        with safe_open(path, "np") as file:
            keys |= set(json.loads(file.metadata()["keys"]))
        parts.append(len(parts) + 1)
    return keys, parts


def _bad(folder: Path) -> set[str]:
    path = folder / BAD
    if not path.is_file():
        return set()
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return {json.loads(line)["key"] for line in lines}
