"""A user's SQL condition over the rows of a table, run where it can reach nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexgenbench.errors import UserError, stoppable

if TYPE_CHECKING:
    import duckdb

_PLACE = "__place__"


def select_rows(frame: pd.DataFrame, condition: str, table: str) -> NDArray[np.bool_]:
    """Bool [n]: the rows for which an SQL condition is true; NULL counts as false.

    Args:
        condition: one expression over the columns, such as ``view = 'PA'``; subqueries and window
            functions see the whole table.
        table: what subqueries call it.

    Raises:
        UserError: it is no condition, names a column that is not there, or is not the same twice.
    """
    import duckdb

    # DuckDB may return rows in another order (a window function does), so each says its place.
    numbered = frame.assign(**{_PLACE: np.arange(len(frame))})
    connection = duckdb.connect(
        config={"enable_external_access": False, "python_enable_replacements": False}
    )
    try:
        # On lines of its own, so that a comment in it ends with it.
        query = (
            f"SELECT {_PLACE} AS place, coalesce((\n{condition}\n)::BOOLEAN, false) AS chosen "  # noqa: S608
            f"FROM {table}"
        )
        with stoppable():
            _check(connection, condition)
            connection.register(table, numbered)
            twice = [connection.execute(query).fetchnumpy() for _ in range(2)]
    except duckdb.Error as error:
        # An error of the data, such as a failed cast, quotes the cell: perhaps a patient's.
        wording = isinstance(error, duckdb.ParserException | duckdb.BinderException)
        reason = str(error).splitlines()[0] if wording else type(error).__name__
        raise UserError(
            f"The condition {condition!r} cannot be used: {reason}",
            hint=f"Columns: {', '.join(map(str, frame.columns))}",
        ) from None
    finally:
        connection.close()
    masks: list[NDArray[np.bool_]] = [np.zeros(len(frame), np.bool_) for _ in twice]
    for mask, found in zip(masks, twice, strict=True):
        if not np.array_equal(np.sort(found["place"]), np.arange(len(frame))):
            raise UserError(f"The condition {condition!r} is not one of single rows.")
        mask[found["place"]] = np.asarray(found["chosen"], np.bool_)
    if not np.array_equal(masks[0], masks[1]):
        raise UserError(f"The condition {condition!r} chooses other rows each time.")
    return masks[0]


def _check(connection: duckdb.DuckDBPyConnection, condition: str) -> None:
    """Raises `UserError` for a text that is not a single expression by itself."""
    found = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{condition}\n)"])
    parsed = json.loads(found.fetchall()[0][0])
    if parsed["error"] and parsed["error_type"] == "parser":
        raise UserError(f"The condition {condition!r} cannot be used: {parsed['error_message']}")
    nodes = [statement["node"] for statement in parsed.get("statements", ())]
    if not (
        len(nodes) == 1
        and nodes[0]["type"] == "SELECT_NODE"
        and len(nodes[0]["select_list"]) == 1
        and nodes[0]["from_table"]["type"] == "EMPTY"
    ):
        raise UserError(f"The condition {condition!r} is not one expression.")
