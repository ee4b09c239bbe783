"""The table of both trainers: accuracy, CPU time and versions, one row a trainer."""

from collections.abc import Sequence

from benchmarks.measuring.harness import show_spread
from benchmarks.official.comparison import (
    TRAINERS,
    Row,
    describe_difference,
    measure_times,
    select_runs,
    values_of,
)


def compare_trainers(rows: Sequence[Row]) -> list[list[str]]:
    """Return accuracy and CPU time of deit's own trainer and ours, and their differences."""
    table = [["trainer", "top-1 %", "seeds", "CPU s of a run", "CPU ms of an update", "versions"]]
    times = {impl: measure_times(rows, impl) for impl in TRAINERS}
    for impl, (whole, update) in times.items():
        runs = select_runs(rows, impl)
        top1 = show_spread(values_of(runs, "top1"))
        row = runs[-1]
        versions = f"`{row['commit']}`, torch {row['torch']}"
        if impl == "deit":
            versions = f"`{row['deit']}`, torch {row['deit_torch']}, timm {row['deit_timm']}"
        table.append([impl, top1, str(len(runs)), f"{whole:.0f}", f"{update:.0f}", versions])
    ratios = [f"{a / b:.1f}" for a, b in zip(times["deit"], times["fastdeit"], strict=True)]
    difference = describe_difference(rows)
    return [*table, ["ours less deit's; deit's / ours", difference, "", *ratios, ""]]
