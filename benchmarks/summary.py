"""A short table of a folder's result files: our times, those of the peers relative to ours, whole
runs and loaders.

python -m benchmarks.summary [FOLDER]
"""

import csv
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.measuring.harness import PACKAGES, RESULTS

OURS = ("triton", "ours")
STAMP = ("date", "commit", "gpu", "cpu", *PACKAGES)
Row = Mapping[str, str]


def newest(rows: Iterable[Row]) -> list[Row]:
    """Return the last row of each implementation at each shape."""
    found = {}
    for row in rows:
        found[case_of(row), row["impl"]] = row
    return list(found.values())


def case_of(row: Row) -> tuple[str, str, str, str]:
    return row["bench"], row["mode"], row["shape"], row["dtype"]


def lines(rows: Iterable[Row]) -> list[str]:
    """Return a line for each benchmark, mode, shape and dtype with a row of ours.

    It shows the time, the share of the copy bandwidth, and the peers' times relative to ours.
    """
    cases: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in newest(rows):
        cases.setdefault(case_of(row), {})[row["impl"]] = row
    found = []
    for case, by_impl in cases.items():
        ours = next((by_impl[name] for name in OURS if name in by_impl), None)
        if ours is None:
            continue
        ms = float(ours["ms_p50"])
        if ours["pct_of_copy"]:
            share = f"{float(ours['pct_of_copy']):.0f} % of copy"
        else:
            share = f"{float(ours['images_per_s']):,.0f}/s"
        peers = [
            f"{name} {float(row['ms_p50']) / ms:.2f}x"
            for name, row in by_impl.items()
            if row is not ours
        ]
        found.append(f"{' '.join(case):<36} {ms:8.3f} ms  {share:<14} {', '.join(peers)}")
    return found


def rates(rows: Iterable[Row]) -> list[str]:
    """Return a line for each row without a peer: images/s, then the columns that identify it."""
    found = []
    for row in rows:
        names = [name for name in row if name not in (*STAMP, "images_per_s") and row[name]]
        rest = " ".join(f"{name} {row[name]}" for name in names)
        found.append(f"{float(row['images_per_s'] or 'nan'):9,.0f}/s  {rest}")
    return found


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = rows[0].keys() if rows else set()
        if {"impl", "ms_p50"} <= names:
            table = lines(rows)
        elif "images_per_s" in names:
            table = rates(rows)
        else:
            table = []
        for line in table:
            print(line)


if __name__ == "__main__":
    main()
