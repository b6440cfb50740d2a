"""Feature vectors in Parquet parts, found by the hash of the content they were made from."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chexgenbench.files import atomic_path

if TYPE_CHECKING:
    from numpy.typing import NDArray


class FeatureStore:
    """The features of one encoder identity, shared by all runs and processes.

    A part is written whole and renamed, and never changed. Two processes may write the same key:
    the values are equal, and the first part by name is read. A part that cannot be read counts as
    absent, so that its rows are encoded again.

    Args:
        folder: the encoder's own folder.
        outputs: name to width of the stored vectors.
    """

    def __init__(self, folder: Path, outputs: Mapping[str, int]) -> None:
        self._folder = folder
        self.outputs = dict(outputs)
        self._index: dict[str, tuple[Path, int]] = {}
        self._seen: set[Path] = set()
        self.damaged: list[Path] = []

    def refresh(self) -> None:
        """Takes in the parts that were written since."""
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("part-*.parquet")):
            if path in self._seen:
                continue
            self._seen.add(path)
            try:
                schema = pq.read_schema(path)
                if not schema.equals(self._schema):
                    raise ValueError("other columns")
                keys = pq.read_table(path, columns=["key"]).column("key").to_pylist()
            except (OSError, ValueError, pa.ArrowException):
                self.damaged.append(path)
                continue
            for row, key in enumerate(keys):
                self._index.setdefault(key, (path, row))

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def write(self, keys: Sequence[str], outputs: Mapping[str, NDArray[np.float32]]) -> None:
        """Writes one part: row i of each output is the vector of ``keys[i]``."""
        columns: list[pa.Array] = [pa.array(keys, pa.string())]
        for name, width in self.outputs.items():
            flat = np.ascontiguousarray(outputs[name], np.float32).reshape(-1)
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), width))
        table = pa.Table.from_arrays(columns, schema=self._schema)
        path = self._folder / f"part-{uuid.uuid4().hex}.parquet"
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="none", use_dictionary=False)
        self._seen.add(path)
        for row, key in enumerate(keys):
            self._index.setdefault(key, (path, row))

    def read(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of `keys`, each output float32 [n, width], in the order asked.

        Raises:
            KeyError: a key is not there.
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
            table = pq.read_table(path, columns=list(self.outputs))
            for name, width in self.outputs.items():
                values = table.column(name).combine_chunks().flatten().to_numpy()
                result[name][positions] = values.reshape(-1, width)[rows]
        return result

    @property
    def _schema(self) -> pa.Schema:
        fields = [pa.field("key", pa.string())]
        fields += [
            pa.field(name, pa.list_(pa.float32(), width)) for name, width in self.outputs.items()
        ]
        return pa.schema(fields)
