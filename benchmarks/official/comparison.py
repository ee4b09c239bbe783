"""The comparison of both trainers, from their rows: accuracy with its deviation, and CPU time."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy import stats

CONFIDENCE = 0.95
TRAINERS = ("deit", "fastdeit")
Row = Mapping[str, str]


class Interval(NamedTuple):
    """The limits of a difference of means."""

    low: float
    high: float

    @property
    def has_zero(self) -> bool:
        return self.low <= 0 <= self.high


def bound_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Return Welch's 95 % interval of mean(ours) - mean(theirs), of two values or more each."""
    test = stats.ttest_ind(ours, theirs, equal_var=False)
    return Interval(*map(float, test.confidence_interval(CONFIDENCE)))


def select_runs(rows: Sequence[Row], impl: str) -> list[Row]:
    """Return the newest row of each seed, of the longest runs of a trainer."""
    found = [row for row in rows if row["impl"] == impl]
    most = max((int(row["updates"]) for row in found), default=0)
    return list({row["seed"]: row for row in found if int(row["updates"]) == most}.values())


def values_of(rows: Sequence[Row], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


class Times(NamedTuple):
    """The CPU time of a trainer."""

    run_s: float
    update_ms: float


def measure_times(rows: Sequence[Row], impl: str) -> Times:
    """Return the median of the long runs, and the time of one more update with its share of the
    evaluations: the time of a long run beyond that of the short one, so that the start of a process
    does not count."""
    runs = select_runs(rows, impl)
    images, most = runs[0]["train_images"], int(runs[0]["updates"])
    of_size = [row for row in rows if row["impl"] == impl and row["train_images"] == images]
    short = [row for row in of_size if int(row["updates"]) < most][-1]
    whole = statistics.median(values_of(runs, "cpu_s"))
    updates = most - int(short["updates"])
    return Times(whole, 1e3 * (whole - float(short["cpu_s"])) / updates)


def describe_difference(rows: Sequence[Row]) -> str:
    """Return a text on the difference of top-1, ours less deit's, with its interval, and on whether
    that has 0."""
    theirs, ours = (values_of(select_runs(rows, impl), "top1") for impl in TRAINERS)
    mean = f"{statistics.mean(ours) - statistics.mean(theirs):+.2f}"
    if min(len(ours), len(theirs)) < 2:
        return f"{mean}, one seed: no interval"
    interval = bound_difference(ours, theirs)
    verdict = "within noise" if interval.has_zero else "not within noise"
    return f"{mean} ({interval.low:+.2f} to {interval.high:+.2f}): {verdict}"
