"""What a run directory holds: the record of the run and the columns of its tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from chexgenbench.types import FINDINGS

RECORD_VERSION = 1
"""The newest `RunRecord.schema_version` that this release reads."""


class RunRecord(BaseModel):
    """One model under one suite: what was asked, with what, and how it went.

    Times are UTC in ISO 8601. ``running`` in a record whose process is gone means that the run was
    killed.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())

    schema_version: int = RECORD_VERSION
    run_id: str = Field(min_length=1)
    suite: str
    model: str
    split: str
    protocol: str
    seed: int
    status: Literal["running", "finished", "failed"]
    reason: str | None = None
    generation_id: str | None = None
    model_parameters: dict[str, Any] = Field(default_factory=dict)
    repeats: int = 1
    batch_size: int | None = None
    exact: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    limit: int | None = None
    n_prompts: int = 0
    n_images: int = 0
    n_skipped_images: int = 0
    n_flagged: int = 0
    seconds_generating: float | None = None
    images_per_second: float | None = None
    created_at: str
    finished_at: str | None = None
    used_at: str | None = None
    extra_info: str = ""
    caption_type: str = "annotated_prompt"
    credentialed: bool = False
    images_root: str | None = None
    versions: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, Any] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    encoders: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    commit: str | None = None


def _schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in types.items()])


_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()

SCHEMAS: Mapping[str, pa.Schema] = {
    "scores": _schema(
        run_id=_TEXT,
        model=_TEXT,
        suite=_TEXT,
        metric=_TEXT,
        plugin=_TEXT,
        encoder=_TEXT,
        subset=_TEXT,
        value=_REAL,
        standard_error=_REAL,
        ci_low=_REAL,
        ci_high=_REAL,
        n_real=_INT,
        n_fake=_INT,
        higher_is_better=pa.bool_(),
        status=_TEXT,
        reason=_TEXT,
        warning=_TEXT,
        protocol=_TEXT,
        seed=_INT,
        extra_info=_TEXT,
        created_at=_TEXT,
    ),
    "sample_scores": _schema(
        run_id=_TEXT, image_id=_TEXT, prompt_id=_TEXT, metric=_TEXT, encoder=_TEXT, value=_REAL
    ),
    "prompts": _schema(
        run_id=_TEXT,
        split=_TEXT,
        prompt_id=_TEXT,
        prompt=_TEXT,
        patient_id=_TEXT,
        view=_TEXT,
        image_path=_TEXT,
        line=_INT,
        **dict.fromkeys(FINDINGS, _REAL),
    ),
    "images": _schema(
        run_id=_TEXT,
        generation_id=_TEXT,
        image_id=_TEXT,
        prompt_id=_TEXT,
        repeat=_INT,
        seed=_INT,
        path=_TEXT,
        sha256=_TEXT,
        width=_INT,
        height=_INT,
        seconds=_REAL,
        flags=pa.list_(_TEXT),
        status=_TEXT,
        reason=_TEXT,
    ),
}
"""The tables of a run directory, each in a Parquet file of its name."""


def conform(name: str, table: pa.Table | pd.DataFrame) -> pa.Table:
    """`table` with the columns, order and types of the table `name`; NaN becomes null.

    Raises:
        ValueError: when a column is missing, unknown or does not convert.
    """
    schema = SCHEMAS[name]
    columns = list(table.columns) if isinstance(table, pd.DataFrame) else table.column_names
    missing = [column for column in schema.names if column not in columns]
    unknown = [column for column in columns if column not in schema.names]
    if missing or unknown:
        raise ValueError(f"table {name!r}: missing columns {missing}, unknown columns {unknown}")
    try:
        if isinstance(table, pd.DataFrame):
            result = pa.Table.from_pandas(
                table[list(schema.names)], schema=schema, preserve_index=False
            )
        else:
            result = table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise ValueError(f"table {name!r}: {error}") from error
    for index, field in enumerate(schema):
        if field.type == _REAL:
            column = result.column(index)
            clean = pc.if_else(pc.is_nan(column), pa.scalar(None, _REAL), column)
            result = result.set_column(index, field, clean)
    return result.replace_schema_metadata(None)
