"""What a run directory holds: the record of the run and the columns of its tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from chexgenbench.types import FINDINGS

if TYPE_CHECKING:
    import pandas as pd  # a command that asks the store starts without it

RECORD_VERSION = 5
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
    model_plugin: str | None = None
    split: str
    protocol: str
    subsets: dict[str, str] = Field(default_factory=dict)
    uncertain: str | None = None
    reference: str | None = None
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
    workers: int | None = None
    threads: int | None = None
    peak_memory: int | None = None
    n_cut_batches: int | None = None
    remarks: list[str] = Field(default_factory=list)
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
    pools: dict[str, Any] = Field(default_factory=dict)
    commit: str | None = None


def _schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in types.items()])


_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()

_ROW = {
    **dict.fromkeys(("prompt_id", "prompt", "patient_id", "view", "image_path"), _TEXT),
    "line": _INT,
    **dict.fromkeys(FINDINGS, _REAL),
}
"""A row of a split."""

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
        warning_level=_INT,
        floor=_REAL,
        matched=_REAL,
        excess=_REAL,
        excess_low=_REAL,
        excess_high=_REAL,
        n_floor=_INT,
        encoder_id=_TEXT,
        basis=_TEXT,
        protocol=_TEXT,
        seed=_INT,
        extra_info=_TEXT,
        created_at=_TEXT,
    ),
    "differences": _schema(
        run_id=_TEXT,
        other_run=_TEXT,
        metric=_TEXT,
        plugin=_TEXT,
        encoder=_TEXT,
        subset=_TEXT,
        difference=_REAL,
        standard_error=_REAL,
        ci_low=_REAL,
        ci_high=_REAL,
        p_value=_REAL,
        p_holm=_REAL,
        images_needed=_REAL,
        reason=_TEXT,
    ),
    "sample_scores": _schema(
        run_id=_TEXT, image_id=_TEXT, prompt_id=_TEXT, metric=_TEXT, encoder=_TEXT, value=_REAL
    ),
    "prompts": _schema(
        run_id=_TEXT,
        split=_TEXT,
        **_ROW,
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
        batch=_INT,
        call=_INT,
        flags=pa.list_(_TEXT),
        status=_TEXT,
        reason=_TEXT,
    ),
    "pool_prompts": _schema(
        run_id=_TEXT,
        side=_TEXT,
        **_ROW,
    ),
    "pool_images": _schema(
        run_id=_TEXT,
        pool=_TEXT,
        side=_TEXT,
        generation_id=_TEXT,
        image_id=_TEXT,
        prompt_id=_TEXT,
        repeat=_INT,
        seed=_INT,
        path=_TEXT,
        sha256=_TEXT,
        flags=pa.list_(_TEXT),
        status=_TEXT,
    ),
    "neighbours": _schema(
        run_id=_TEXT,
        plugin=_TEXT,
        encoder=_TEXT,
        kind=_TEXT,
        rank=_INT,
        value=_REAL,
        flagged=pa.bool_(),
        image_id=_TEXT,
        prompt_id=_TEXT,
        pool=_TEXT,
        path=_TEXT,
        sha256=_TEXT,
        other_id=_TEXT,
        other_side=_TEXT,
        other_real=pa.bool_(),
        other_path=_TEXT,
        other_sha256=_TEXT,
    ),
}
"""The tables of a run directory that the store takes in, each in a Parquet file of its name."""

INFLUENCES = _schema(
    run_id=_TEXT,
    metric=_TEXT,
    plugin=_TEXT,
    encoder=_TEXT,
    subset=_TEXT,
    value=_REAL,
    units=pa.list_(_TEXT),
    first=pa.list_(_REAL),
    probes=pa.list_(pa.float32()),
    keys=pa.list_(pa.uint64()),
    curvature=_REAL,
    extra=_REAL,
    least=_REAL,
    degrees_of_freedom=_REAL,
    scale=_TEXT,
    reason=_TEXT,
)
"""What each patient or prompt contributed to each score: one row a score, `probes` row by row. It
stays in the run directory; differences of two runs are made of it."""

RUN_TABLES: Mapping[str, pa.Schema] = {**SCHEMAS, "influences": INFLUENCES}
"""All tables of a run directory."""

ADDED: Mapping[int, Mapping[str, tuple[str, ...]]] = {
    2: {
        "scores": (
            "warning_level",
            "floor",
            "matched",
            "excess",
            "excess_low",
            "excess_high",
            "n_floor",
            "encoder_id",
            "basis",
        ),
        "differences": tuple(SCHEMAS["differences"].names),
        "influences": tuple(INFLUENCES.names),
    },
    3: {"images": ("batch", "call")},
    4: {name: tuple(SCHEMAS[name].names) for name in ("pool_prompts", "pool_images", "neighbours")},
}
"""Record version to the columns that came with it; an older run has none of them."""


def absent(name: str, version: int) -> frozenset[str]:
    """Columns of the table `name` that a run of record version `version` need not have."""
    return frozenset(
        column
        for since, tables in ADDED.items()
        if version < since
        for column in tables.get(name, ())
    )


def conform(name: str, table: pa.Table | pd.DataFrame, optional: Collection[str] = ()) -> pa.Table:
    """`table` with the columns, order and types of the table `name`; NaN becomes null.

    Args:
        optional: columns that are null where the table has none.

    Raises:
        ValueError: when a column is missing, unknown or does not convert.
    """
    schema = RUN_TABLES[name]
    columns = table.column_names if isinstance(table, pa.Table) else list(table.columns)
    lacking = [column for column in schema.names if column in optional and column not in columns]
    if lacking and isinstance(table, pa.Table):
        for column in lacking:
            nulls = pa.nulls(table.num_rows, schema.field(column).type)
            table = table.append_column(column, nulls)
        columns = table.column_names
    missing = [column for column in schema.names if column not in columns]
    unknown = [column for column in columns if column not in schema.names]
    if missing or unknown:
        raise ValueError(f"table {name!r}: missing columns {missing}, unknown columns {unknown}")
    try:
        if isinstance(table, pa.Table):
            result = table.select(schema.names).cast(schema)
        else:
            result = pa.Table.from_pandas(
                table[list(schema.names)], schema=schema, preserve_index=False
            )
    except pa.ArrowException as error:
        raise ValueError(f"table {name!r}: {error}") from error
    for index, field in enumerate(schema):
        if field.type == _REAL:
            column = result.column(index)
            clean = pc.if_else(pc.is_nan(column), pa.scalar(None, _REAL), column)
            result = result.set_column(index, field, clean)
    return result.replace_schema_metadata(None)
