"""The rows of a folder's benchmarks as one short table: ours, and how many times faster than each
peer; whole runs and loaders.

python -m benchmarks.summary [FOLDER]
"""

import csv
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.harness import PACKAGES, RESULTS

OURS = ("triton", "ours")
STAMP = ("date", "commit", "gpu", *PACKAGES)
Row = Mapping[str, str]


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each implementation at each shape."""
    return list(
        {
            (row["bench"], row["mode"], row["shape"], row["dtype"], row["impl"]): row
            for row in rows
        }.values()
    )


def lines(rows: Iterable[Row]) -> list[str]:
    """One for each benchmark, mode, shape and dtype that we have a row of: time, share of the copy
    bandwidth, others' times."""
    cases: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in newest(rows):
        cases.setdefault((row["bench"], row["mode"], row["shape"], row["dtype"]), {})[
            row["impl"]
        ] = row
    found = []
    for case, by_impl in cases.items():
        ours = next((by_impl[name] for name in OURS if name in by_impl), None)
        if ours is None:
            continue
        taken = float(ours["ms_p50"])
        share = (
            f"{float(ours['pct_of_copy']):.0f} % of copy"
            if ours["pct_of_copy"]
            else f"{float(ours['images_per_s']):,.0f}/s"
        )
        others = ", ".join(
            f"{name} {float(row['ms_p50']) / taken:.2f}x"
            for name, row in by_impl.items()
            if row is not ours
        )
        found.append(f"{' '.join(case):<36} {taken:8.3f} ms  {share:<14} {others}")
    return found


def rates(rows: Iterable[Row]) -> list[str]:
    """One for each row that has no peer: images/s, then all that tells it from others."""
    found = []
    for row in rows:
        told = " ".join(
            f"{name} {row[name]}"
            for name in row
            if name not in (*STAMP, "images_per_s") and row[name]
        )
        found.append(f"{float(row['images_per_s'] or 'nan'):9,.0f}/s  {told}")
    return found


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = rows[0].keys() if rows else set()
        for line in (
            lines(rows)
            if {"impl", "ms_p50"} <= names
            else rates(rows)
            if "images_per_s" in names
            else []
        ):
            print(line)


if __name__ == "__main__":
    main()
