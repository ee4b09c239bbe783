"""Measured rates that an estimate uses, from rates.json, which `python -m benchmarks.rates` makes
from the rows in benchmarks/results/; an installed package does not have these."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).with_name("rates.json")
"""The file of the rates."""


class Rate(NamedTuple):
    """A measured value, and the row of its measurement: file, date, commit, hardware."""

    value: float
    source: str


@functools.cache
def read_rates() -> dict[str, list[dict[str, Any]]]:
    """Return the tables of rates.json, by name."""
    tables: dict[str, list[dict[str, Any]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return tables


def find_rates(table: str, **wanted: Any) -> list[Rate]:
    """Return the rates of a table's rows that have the wanted values, oldest first."""
    return [
        Rate(row["value"], row["source"])
        for row in read_rates()[table]
        if all(row[name] == value for name, value in wanted.items())
    ]


class LoaderRate(NamedTuple):
    """The CPU milliseconds of a loader for an image; measured: whether for this size and this
    number of copies."""

    value: float
    source: str
    measured: bool


def find_loader(impl: str, data: str, size: int, copies: int) -> LoaderRate:
    """Return the rate of a loader.

    impl: exact, native or timm; data: folder or tars; size: pixels a side. For a size or a number
    of copies that was not measured, the value is computed from the nearest row: it changes with the
    area of the image as between the two measured sizes in a folder.
    """
    rows = [row for row in read_rates()["loaders"] if row["impl"] == impl]
    of_data = [row for row in rows if row["data"] == data]
    row = min(of_data, key=lambda row: (abs(row["copies"] - copies), abs(row["size"] - size)))
    if (row["size"], row["copies"]) == (size, copies):
        return LoaderRate(row["value"], row["source"], True)
    small, large = sorted(
        (each for each in rows if (each["data"], each["copies"]) == ("folder", 2)),
        key=lambda each: each["size"],
    )
    slope = (large["value"] - small["value"]) / (large["size"] ** 2 - small["size"] ** 2)
    value = row["value"] + slope * (size**2 - row["size"] ** 2)
    case = f"{row['size']} px and {row['copies']} copies"
    return LoaderRate(value, f"by area from {case}: {row['source']}", False)
