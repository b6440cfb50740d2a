"""What a measure comes to: a number, how far it can be off, or why that is not known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chexgenbench.statistics.sampling import Influence

__all__ = ["Estimate"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the uncertainty of drawing other samples of the same sizes.

    Attributes:
        value: The statistic itself; finite.
        standard_error: Estimated standard deviation of ``value``, or None where it is withheld.
        ci_low: Lower end of the two-sided 95 % interval, or None where it is withheld.
        ci_high: Upper end of it.
        reason: Why the interval is withheld; None where there is one.
        warning: Something a reader of the value should know (for example ``n <= d``).
        influence: What each row contributed to ``value``; None where that is not known. Left out
            of ``repr`` and of comparisons.
        degrees_of_freedom: Of the t distribution behind the interval; None where it is withheld.
            Left out of ``repr``.

    >>> Estimate(1.5, 0.1, 1.3, 1.7)
    Estimate(value=1.5, standard_error=0.1, ci_low=1.3, ci_high=1.7, reason=None, warning=None)
    """

    value: float
    standard_error: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    reason: str | None = None
    warning: str | None = None
    influence: Influence | None = field(default=None, repr=False, compare=False)
    degrees_of_freedom: float | None = field(default=None, repr=False)
