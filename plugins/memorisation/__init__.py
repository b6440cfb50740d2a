"""What the metric `memorisation` measures, and how near duplicates are found."""

from .duplicates import Duplicates, find_duplicates
from .measure import measure

__all__ = ["Duplicates", "find_duplicates", "measure"]
