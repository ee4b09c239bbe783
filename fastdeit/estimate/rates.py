"""Measured rates that an estimate uses, out of rates.json: `python -m benchmarks.rates` makes it of
the rows in benchmarks/results/, which an installed package does not have."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).with_name("rates.json")


class Rate(NamedTuple):
    """A measured value, and the row that it is from: file, date, commit, hardware."""

    value: float
    source: str


@functools.cache
def read_rates() -> dict[str, list[dict[str, Any]]]:
    """Return the tables of rates.json by name, rows as JSON has them."""
    tables: dict[str, list[dict[str, Any]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return tables


def find_rates(table: str, **wanted: Any) -> list[Rate]:
    """Return the rates of a table's rows that have these values, oldest first."""
    return [
        Rate(row["value"], row["source"])
        for row in read_rates()[table]
        if all(row[name] == value for name, value in wanted.items())
    ]


class LoaderRate(NamedTuple):
    """CPU milliseconds an image of a loader; measured: for this size and these copies."""

    value: float
    source: str
    measured: bool


def find_loader(impl: str, data: str, size: int, copies: int) -> LoaderRate:
    """Return the rate of a loader.

    impl: exact, native or timm; data: folder or tars; size: pixels a side. Where a size or a number
    of copies was not measured, it follows from the nearest row: the value changes with the area of
    the image as between the two sizes in a folder.
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
