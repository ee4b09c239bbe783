"""Tables of the page as plain data, and the text of their numbers."""

import math
from dataclasses import dataclass
from typing import NamedTuple


class Column(NamedTuple):
    """A column of a table. is_number: aligned at the right, and sorted by value."""

    name: str
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    filter: str = ""
    """A name for it on the page, if it has a field that filters its rows."""
    is_folded: bool = False

    @property
    def is_sortable(self) -> bool:
        """Return True if the page offers to sort the rows."""
        return bool(self.filter)


def format_number(value: float) -> str:
    """Return a number with about four digits, with commas between thousands; "" for one that is not
    finite."""
    if not math.isfinite(value):
        return ""
    size = abs(value)
    if 1000 <= size < 1e15 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.4g}" if 1e-3 <= size < 1000 else f"{value:.2e}"


def format_count(count: int, noun: str) -> str:
    """Return a count with its noun, to which an s is added unless it is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
