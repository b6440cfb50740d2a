"""Images and texts encoded by workers; the platform alone writes the feature store."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chexgenbench.executors.border import SLACK_BYTES, SLACK_FILES, Refused, read_plain
from chexgenbench.executors.errands import Errand, run_errands
from chexgenbench.executors.workplace import Workplace, folder_of_command, staged
from chexgenbench.images import BadImage, read_image
from chexgenbench.jobs.features import BAD, part_name, write_encode_job
from chexgenbench.jobs.job import EncodeJob, stage_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BAD_LINE_BYTES = 8_192
_HEADER_BYTES = 1_000_000

Sink = Callable[[str, Sequence[str], Mapping[str, "NDArray[np.float32]"]], None]


@dataclass(eq=False)
class _Returned:
    """Where features that passed go, whoever returned them.

    Attributes:
        sink: given encoder name, keys and outputs.
        bad: given the key of each image that cannot be decoded.
        known: of each encoder, the keys that are done.
    """

    sink: Sink
    bad: Callable[[str, BadImage], None]
    advance: Callable[[int], None]
    known: list[set[str]]
    lost: set[str] = field(default_factory=set)


def encode_elsewhere(
    job: EncodeJob,
    items: Sequence[tuple[str, str]],
    workplace: Workplace,
    *,
    sink: Sink,
    bad: Callable[[str, BadImage], None],
    advance: Callable[[int], None] = lambda _count: None,
    say: Callable[[str], None] = lambda _text: None,
) -> None:
    """Has items encoded by workers, whole batches each, cut as one process would cut them.

    Args:
        job: its `n_items` and `files` of images aside, what each worker is told.
        items: key, and file or text, of each; no key twice.
        sink: given encoder name, keys and outputs that were checked.
        bad: given each image that cannot be decoded, which was tried here too.
        advance: told the number of items that the first encoder has done.

    Raises:
        ChexGenBenchError: features are missing although every part was tried; the first error.
    """
    returned = _Returned(sink, bad, advance, [set() for _ in job.encoders])
    with (
        closing(workplace.open()) as launcher,
        folder_of_command(workplace.root, workplace.forget, workplace.elsewhere) as root,
    ):
        count = workplace.shards or launcher.shards_a_place * len(launcher.places)
        errands = [
            _Encoding(job, part, returned, stage=not workplace.sees_files)
            for part in cut_items(items, job.batch_size, count)
        ]
        failures = run_errands(errands, launcher, root, timeout=workplace.timeout, say=say)
    if failures:
        raise failures[0]


def cut_items(
    items: Sequence[tuple[str, str]], batch_size: int, count: int
) -> list[Sequence[tuple[str, str]]]:
    """The list as at most `count` parts of whole batches.

    >>> [len(part) for part in cut_items([("", "")] * 11, 2, 4)]
    [4, 4, 2, 1]
    """
    batches = -(-len(items) // batch_size)
    size, longer = divmod(batches, max(1, count))
    parts, start = [], 0
    for part in range(min(count, batches)):
        end = start + (size + (part < longer)) * batch_size
        parts.append(items[start:end])
        start = end
    return parts


class _Encoding(Errand):
    """A part of the list for one worker."""

    def __init__(
        self,
        job: EncodeJob,
        items: Sequence[tuple[str, str]],
        returned: _Returned,
        *,
        stage: bool,
    ) -> None:
        self._job, self._items, self._returned, self._stage = job, items, returned, stage
        self._asked = dict(items)
        self._parts = [0 for _ in job.encoders]
        self._seen: list[set[str]] = [set() for _ in job.encoders]
        self._bad = self._bad_bytes = 0  # images that cannot be decoded; how much was read
        self.taken = 0
        width = sum(sum(each.outputs.values()) for each in job.encoders)
        self._row_bytes = 4 * max((sum(e.outputs.values()) for e in job.encoders), default=0)
        self.name = f"encode-{job.side}"
        # Each part of features was made by at least one call.
        self.most_bytes = len(items) * (4 * width + 2 * _BAD_LINE_BYTES) + SLACK_BYTES
        self.most_files = len(items) * len(job.encoders) + SLACK_FILES

    def write(self, folder: Path, number: int) -> EncodeJob:
        folder.mkdir()
        items, files = self._items, self._job.files
        if self._stage and self._job.side == "images":
            place = stage_of(folder)
            paths = staged(place, [Path(path) for _, path in items])
            items = [
                (key, str(path.relative_to(folder.parent)))
                for (key, _), path in zip(items, paths, strict=True)
            ]
            files = (*files, str(place))
        job = self._job.model_copy(update={"n_items": len(items), "files": files})
        write_encode_job(folder, job, items)
        return job

    def take(self, folder: Path) -> None:
        for number in range(len(self._parts)):
            while self._take_part(folder, number):
                pass
        self._take_bad(folder)

    def gained(self) -> bool:
        return any(self._seen) or self._bad > 0

    def complete(self) -> bool:
        return all(
            key in known or key in self._returned.lost
            for known in self._returned.known
            for key in self._asked
        )

    def rest(self) -> _Encoding:
        lost, known = self._returned.lost, self._returned.known
        # Parts are whole batches of each encoder; one that is ahead waits for the others.
        left = [
            item
            for item in self._items
            if item[0] not in lost and any(item[0] not in keys for keys in known)
        ]
        return _Encoding(self._job, left, self._returned, stage=self._stage)

    def _take_part(self, folder: Path, number: int) -> bool:
        """Takes the next part of an encoder's features; False where it is not there yet."""
        encoder = self._job.encoders[number]
        name = part_name(number, self._parts[number] + 1)
        most = len(self._items) * (self._row_bytes + 600) + _HEADER_BYTES
        try:
            data = read_plain(folder, name, most)
        except FileNotFoundError:
            return False
        keys, outputs = parse_features(data, name, encoder.outputs)
        known, seen = self._returned.known[number], self._seen[number]
        for key in keys:
            if key not in self._asked:
                raise Refused(
                    f"The worker's {name} has a key that was not asked for: {key[:80]!r}."
                )
            if key in seen:
                raise Refused(f"The worker's {name} has a key again: {key[:80]!r}.")
        fresh = [row for row, key in enumerate(keys) if key not in known]
        if fresh:
            kept = {output: values[fresh] for output, values in outputs.items()}
            names = [keys[row] for row in fresh]
            self._returned.sink(encoder.name, names, kept)
            known.update(names)
            if number == 0:
                self._returned.advance(len(names))
        # Last: where the sink fails, the part is there still.
        seen.update(keys)
        self._parts[number] += 1
        self.taken += len(keys)
        return True

    def _take_bad(self, folder: Path) -> None:
        """The images that the worker could not decode; each is tried here, whatever it said."""
        try:
            if (folder / BAD).lstat().st_size == self._bad_bytes:
                return
            data = read_plain(folder, BAD, len(self._items) * 2 * _BAD_LINE_BYTES)
        except FileNotFoundError:
            return
        lines = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
        self._bad_bytes = len(data)
        for line in lines:
            try:
                key = json.loads(line)["key"]
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise Refused(f"The worker's {BAD} has a line with a fault.") from error
            if not isinstance(key, str) or key not in self._asked or self._job.side != "images":
                raise Refused(f"The worker's {BAD} names an image that was not asked for.")
            if key in self._returned.lost:
                continue
            try:
                read_image(Path(self._asked[key]))
            except BadImage as error:
                self._returned.lost.add(key)
                self._returned.bad(key, error)
                self._returned.advance(1)
                self.taken += 1
                self._bad += 1
            else:
                raise Refused(
                    f"The worker says that {key[:80]} cannot be decoded, and here it can."
                )


def parse_features(
    data: bytes, name: str, outputs: Mapping[str, int]
) -> tuple[list[str], dict[str, NDArray[np.float32]]]:
    """Keys and vectors of a part that a worker wrote.

    Raises:
        Refused: it is no safetensors file of finite float32 tensors [n, width] with n keys.
    """
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(data)  # type: ignore[no-untyped-call]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        keys = json.loads(header["__metadata__"]["keys"])
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refused(f"The worker's {name} is no safetensors file with keys.") from error
    good = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not good or not keys or len(set(keys)) != len(keys):
        raise Refused(f"The worker's {name} has no keys, or a key twice.")
    found: dict[str, Any] = dict(tensors)
    if found.keys() != outputs.keys() or len(found) != len(tensors):
        listed = ", ".join(sorted(found))[:200]
        raise Refused(f"The worker's {name} has {listed!r} where {', '.join(outputs)!r} is due.")
    result: dict[str, NDArray[np.float32]] = {}
    for output, width in outputs.items():
        kind, shape = found[output]["dtype"], list(found[output]["shape"])
        if kind != "F32" or shape != [len(keys), width]:
            raise Refused(
                f"The worker's {name} has {output!r} as {kind} {shape} where "
                f"F32 [{len(keys)}, {width}] is due."
            )
        values = np.frombuffer(found[output]["data"], "<f4").reshape(shape)
        if not np.isfinite(values).all():
            raise Refused(f"The worker's {name} has NaN or infinity in {output!r}.")
        result[output] = values
    return keys, result
