"""Whether the rows of a split know their patients, whom privacy metrics must keep apart."""

from __future__ import annotations

from collections.abc import Mapping

from chexgenbench import UserError
from chexgenbench.splits.prompts import PromptTable


def check_patients(
    metric: str, tables: Mapping[str, PromptTable], *, without_patients: bool
) -> list[str]:
    """Remarks on sides some of whose rows have no patient, and are each one of their own.

    Args:
        metric: the plugin's name, for the error.
        tables: the rows by their side, ``training`` and ``test``.
        without_patients: the user's yes to a side where no row has a patient.

    Raises:
        UserError: no row of a side has a patient, and `without_patients` is not set.
    """
    remarks = []
    for side, prompts in tables.items():
        known = int(prompts.table["patient_id"].notna().sum())
        if not known and not without_patients:
            raise UserError(
                f"The metric {metric!r} must keep patients apart, and no {side} row of "
                f"{prompts.source_file} has one.",
                hint="Name the column: --column patient=NAME. Or take every row for a patient, "
                f"with too narrow intervals: --set {metric}.without_patients=true",
            )
        if 0 < known < len(prompts):
            remarks.append(
                f"{len(prompts) - known:,} of {len(prompts):,} {side} rows have no patient, and "
                "each is taken for one of its own"
            )
    return remarks
