"""The lines of an estimate, each with a value and its source."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Source = Literal["counted", "measured", "model", "unknown"]
"""The source of a value. counted: it follows from the settings exactly; measured: from a committed
row, which `basis` names; model: from the formula that `basis` names; unknown: there is no value,
and `basis` is the reason."""


class Span(NamedTuple):
    """An uncertain value, with its range from `low` to `high`."""

    value: float
    low: float
    high: float

    def plus(self, other: "Span") -> "Span":
        return Span(self.value + other.value, self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Span":
        return Span(self.value * factor, self.low * factor, self.high * factor)

    def divide(self, amount: float) -> "Span":
        """Return an amount divided by this value, such as a rate from a time."""
        return Span(amount / self.value, amount / self.high, amount / self.low)


def spread(value: float, low: float = 1.0, high: float = 1.0) -> Span:
    """Return a value with the range from `low` times to `high` times the value."""
    return Span(value, low * value, high * value)


class Line(NamedTuple):
    """A value with its unit and source, and its range from `low` to `high` if it is uncertain."""

    section: str
    name: str
    value: float | None
    unit: str
    source: Source
    basis: str
    low: float | None = None
    high: float | None = None


def make_line(
    section: str, name: str, span: Span, unit: str, basis: str, source: Source = "model"
) -> Line:
    """Return the line of an uncertain value."""
    return Line(section, name, span.value, unit, source, basis, span.low, span.high)


class Estimate(NamedTuple):
    """The lines of a run, and the devices that they are for."""

    device: str
    lines: Sequence[Line]

    def find(self, section: str, name: str) -> Line:
        """Return the line of this section and name. Raises KeyError if there is none."""
        for line in self.lines:
            if (line.section, line.name) == (section, name):
                return line
        raise KeyError(f"{section}: {name}")

    def describe(self) -> dict[str, Any]:
        """Return the estimate as a JSON value."""
        return {"device": self.device, "lines": [line._asdict() for line in self.lines]}
