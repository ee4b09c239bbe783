"""A row of a comparison: one fact of all runs, as JSON and as text."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastdeit.display.text import printable


@dataclass(frozen=True)
class Row:
    """One fact of all runs, in their order."""

    name: str
    facts: tuple[Any, ...]
    """JSON values; None where it is not recorded."""
    values: tuple[str, ...]
    """The facts as printable text; "" where it is not recorded."""

    @property
    def known(self) -> list[Any]:
        """Return the facts that are recorded."""
        return [fact for fact in self.facts if fact is not None]

    @property
    def differs(self) -> bool:
        """Return True if two runs that recorded it have different facts."""
        return len(set(map(repr, self.known))) > 1


def make_row(name: str, facts: Iterable[Any], show: Callable[[Any], str] = str) -> Row:
    """Return a row; show: returns the text of a fact that is recorded."""
    found = tuple(None if _is_absent(fact) else fact for fact in facts)
    values = tuple("" if fact is None else printable(show(fact)) for fact in found)
    return Row(printable(name), found, values)


def _is_absent(fact: Any) -> bool:
    return fact is None or (isinstance(fact, float) and math.isnan(fact))


def keep_recorded(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that at least one run recorded."""
    return [row for row in rows if row.known]
