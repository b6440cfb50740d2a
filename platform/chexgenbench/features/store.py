"""Feature vectors in Parquet parts, found by the hash of the content they were made from."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chexgenbench.errors import ChexGenBenchError
from chexgenbench.files import Presence, atomic_path, sha256_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS = "part-*.parquet"

_SEALED = re.compile(r"part-([0-9a-f]{64})\.parquet")


def seal_of(path: Path) -> str | None:
    """The SHA-256 of its content that a part has for its name; None of one of an older release.

    >>> seal_of(Path("part-0123.parquet"))
    """
    found = _SEALED.fullmatch(path.name)
    return found[1] if found else None


def _is_sealed(path: Path, data: bytes) -> bool:
    return seal_of(path) in (None, sha256_bytes(data))


class FeatureStore:
    """The features of one encoder identity, shared by all runs and processes.

    A part is written whole and renamed, and never changed. Its name is the hash of its content, so
    that damage shows before a row of it is used. Two processes may write the same key: the values
    are equal, and the first part by name is read. A damaged part counts as absent, so that its rows
    are encoded again. While the store lives its folder is marked as used, see `files.Presence`.

    Args:
        folder: the encoder's own folder.
        outputs: name to width of the stored vectors.
    """

    def __init__(self, folder: Path, outputs: Mapping[str, int]) -> None:
        self._folder = folder
        self.outputs = dict(outputs)
        self._index: dict[str, tuple[Path, int]] = {}
        self._seen: set[Path] = set()
        self._sound: set[Path] = set()
        self._presence: Presence | None = None
        self.damaged: list[Path] = []
        self._refused: set[Path] = set()
        self._told = 0

    def refresh(self) -> None:
        """Takes in the parts that were written since."""
        if not self._folder.is_dir():
            return
        self._stay()
        for path in sorted(self._folder.glob(PARTS)):
            if path in self._seen:
                continue
            self._seen.add(path)
            try:
                schema = pq.read_schema(path)
                if not schema.equals(self._schema):
                    raise ValueError("other columns")
                keys = pq.read_table(path, columns=["key"]).column("key").to_pylist()
            except (OSError, ValueError, pa.ArrowException):
                self._refuse(path)
                continue
            for row, key in enumerate(keys):
                self._index.setdefault(key, (path, row))

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def without(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that have no features, each once; the others can be read.

        Each part that holds one of them is checked against its name, once in the life of the store.
        One that is damaged is removed, and stands in `damaged`. The others are marked as used now.
        """
        wanted = list(dict.fromkeys(keys))
        self._remove()
        while True:
            parts = {self._index[key][0] for key in wanted if key in self._index}
            bad = {path for path in parts - self._sound if not self._check(path)}
            self._sound |= parts - bad
            if not bad:
                return [key for key in wanted if key not in self._index]
            # Other parts may have the same rows.
            for path in sorted(bad):
                if path.exists():
                    self._refuse(path)
            self._remove()
            self._index.clear()
            self._seen = set(self._refused)
            self.refresh()

    def write(self, keys: Sequence[str], outputs: Mapping[str, NDArray[np.float32]]) -> None:
        """Writes one part: row i of each output is the vector of ``keys[i]``."""
        columns: list[pa.Array] = [pa.array(keys, pa.string())]
        for name, width in self.outputs.items():
            flat = np.ascontiguousarray(outputs[name], np.float32).reshape(-1)
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), width))
        table = pa.Table.from_arrays(columns, schema=self._schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        data = sink.getvalue()
        path = self._folder / f"part-{sha256_bytes(data)}.parquet"
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        self._stay()
        self._seen.add(path)
        self._sound.add(path)
        self._refused.discard(path)
        for row, key in enumerate(keys):
            self._index.setdefault(key, (path, row))

    def read(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of `keys`, each output float32 [n, width], in the order asked.

        Raises:
            KeyError: a key is not there.
            ChexGenBenchError: a part was damaged or removed since `without` looked at it.
        """
        result = {
            name: np.empty((len(keys), width), np.float32) for name, width in self.outputs.items()
        }
        wanted: dict[Path, tuple[list[int], list[int]]] = {}
        for position, key in enumerate(keys):
            path, row = self._index[key]
            positions, rows = wanted.setdefault(path, ([], []))
            positions.append(position)
            rows.append(row)
        for path, (positions, rows) in wanted.items():
            try:
                data = path.read_bytes()
                if path not in self._sound and not _is_sealed(path, data):
                    raise ValueError("its content is not what its name says")
                table = pq.read_table(pa.BufferReader(data), columns=list(self.outputs))
            except (OSError, ValueError, pa.ArrowException) as error:
                raise ChexGenBenchError(
                    f"The features in {path} cannot be read: {error}.",
                    hint="Repeat the command: it encodes again what is damaged or gone.",
                ) from error
            for name, width in self.outputs.items():
                values = table.column(name).combine_chunks().flatten().to_numpy()
                result[name][positions] = values.reshape(-1, width)[rows]
        return result

    def news(self) -> list[Path]:
        """The damaged parts that were found since the last call."""
        fresh, self._told = self.damaged[self._told :], len(self.damaged)
        return fresh

    def close(self) -> None:
        """Ends the sign that the folder is used; what is read later may have been pruned."""
        if self._presence is not None:
            self._presence.close()
            self._presence = None

    def _stay(self) -> None:
        if self._presence is None:
            self._presence = Presence(self._folder)

    def _check(self, path: Path) -> bool:
        """Whether a part is what its name says; marks it as used."""
        try:
            data = path.read_bytes()
        except OSError:
            return False
        if seal_of(path) is None:
            try:
                pq.read_table(pa.BufferReader(data))
            except (OSError, ValueError, pa.ArrowException):
                return False
        elif not _is_sealed(path, data):
            return False
        with suppress(OSError):  # a cache that others may only read
            os.utime(path, (time.time(), time.time()))
        return True

    def _refuse(self, path: Path) -> None:
        self.damaged.append(path)
        self._refused.add(path)

    def _remove(self) -> None:
        """Removes what was refused; one that cannot be removed is not taken in again."""
        for path in sorted(self._refused):
            if seal_of(path) is not None and self._check(path):
                # Another process has written the same rows again, under the same name.
                self._refused.discard(path)
                self._seen.discard(path)
                self.refresh()
                continue
            with suppress(OSError):
                path.unlink(missing_ok=True)
                self._refused.discard(path)  # its rows may be written again under its name

    @property
    def _schema(self) -> pa.Schema:
        fields = [pa.field("key", pa.string())]
        fields += [
            pa.field(name, pa.list_(pa.float32(), width)) for name, width in self.outputs.items()
        ]
        return pa.schema(fields)
