"""Differences of runs: settings, recipe, samples, inputs, machine, speed, results, losses.

Each group is a list of rows with a value for each run, in the order of the runs. What is not
recorded, as in a run of an older version, is None. A row that compares two runs compares each with
the first one.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from fastdeit.report.comparison.rows import Row, keep_recorded, make_row
from fastdeit.report.comparison.settings import list_recipes, list_settings
from fastdeit.report.comparison.significance import HeadTest, compare_heads
from fastdeit.report.comparison.trajectories import list_losses, list_samples
from fastdeit.report.events import read_number
from fastdeit.report.record import RunRecord

_DIGITS = 12
"""The number of digits of a hash that are shown."""


@dataclass(frozen=True)
class Group:
    """Rows on one subject."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Differences:
    """The differences of runs, in groups."""

    runs: tuple[str, ...]
    """A short printable name of each run."""
    groups: tuple[Group, ...]
    tests: tuple[tuple[HeadTest, ...], ...]
    """Tests of the accuracies of each run against the first one; none of the first itself."""

    def group(self, title: str) -> Group:
        """Return the group of a title."""
        return next(group for group in self.groups if group.title == title)

    def describe(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "runs": list(self.runs),
            "groups": {
                group.title: {row.name: list(row.facts) for row in group.rows}
                for group in self.groups
            },
            "tests": [[asdict(test) for test in tests] for tests in self.tests],
        }


def compare_runs(records: Sequence[RunRecord]) -> Differences:
    """Return how runs differ; of one run, its facts and how it differs from its recipe."""
    tests = tuple(_test_heads(records[0], record) for record in records)
    rows = {
        "settings": list_settings(records),
        "recipe": list_recipes(records),
        "samples": list_samples(records),
        "inputs": _list_inputs(records),
        "machine": _list_machines(records),
        "speed": _list_speeds(records),
        "results": _list_results(records, tests),
        "losses": list_losses(records),
    }
    groups = tuple(Group(name, tuple(found)) for name, found in rows.items())
    return Differences(name_runs([record.name for record in records]), groups, tests)


def name_runs(names: Sequence[str]) -> tuple[str, ...]:
    """Return the last parts of paths, as many as it takes to distinguish them."""
    parts = [PurePath(name).parts or (name,) for name in names]
    for count in range(1, max(map(len, parts)) + 1):
        tails = ["/".join(part[-count:]) for part in parts]
        if len(set(tails)) == len(set(names)):
            return tuple(tails)
    return tuple(names)


def _test_heads(first: RunRecord, other: RunRecord) -> tuple[HeadTest, ...]:
    if first is other or first.predictions is None or other.predictions is None:
        return ()
    return tuple(compare_heads(first.predictions, other.predictions))


_INPUTS = {
    "data set": ("samples", "data set"),
    "plan": ("samples", "plan"),
    "pixels": ("samples", "augmentation"),
    "teacher": ("teacher", "name"),
    "teacher's weights": ("teacher", "weights"),
    "teacher's output": ("teacher output", "form"),
    "--finetune": ("finetune", "sha256"),
    "initial weights": ("initial weights", "sha256"),
}
"""The section and the field of inputs.json for each row of the inputs."""


def _list_inputs(records: Sequence[RunRecord]) -> list[Row]:
    rows = []
    for name, (section, field) in _INPUTS.items():
        values = [_find_fact(record.inputs, section, field) for record in records]
        rows.append(make_row(name, values, _shorten))
    return keep_recorded(rows)


def _find_fact(inputs: Mapping[str, Any], section: str, field: str) -> Any:
    """Return a fact of the inputs; "none" for an input that the run does not have."""
    if section not in inputs:
        return None
    facts = inputs[section]
    return facts.get(field) if isinstance(facts, dict) else "none"


def _shorten(value: Any) -> str:
    """Return a hash by its first digits, several (of an ensemble of teachers) side by side."""
    if isinstance(value, list):
        return ", ".join(map(_shorten, value))
    text = str(value)
    return text[:_DIGITS] if len(text) == 64 else text


def _list_machines(records: Sequence[RunRecord]) -> list[Row]:
    """Return the rows of the last start of each run."""
    starts = [record.attempts[-1] if record.attempts else None for record in records]
    rows = [
        make_row(name, [getattr(start, field) or None if start else None for start in starts])
        for name, field in (
            ("device", "device"),
            ("processes", "world_size"),
            ("precision", "precision"),
            ("ZeRO stage", "zero_stage"),
            ("code", "code"),
        )
    ]
    names = dict.fromkeys(name for record in records for name in record.versions)
    rows += [make_row(name, [one.versions.get(name) for one in records]) for name in names]
    return keep_recorded(rows)


_Total = Callable[[list[float]], float]
_SPEEDS: dict[str, tuple[str, _Total, Callable[[float], str]]] = {
    "images/s": ("images_per_s", statistics.median, lambda value: f"{value:,.0f}"),
    "data wait": ("data_wait", statistics.median, lambda value: f"{value:.1%}"),
    "TFLOP/s of a device": ("tflops", statistics.median, lambda value: f"{value:.3g}"),
    "MFU": ("mfu", statistics.median, lambda value: f"{value:.1%}"),
    "peak memory, GB": ("memory_gb", max, lambda value: f"{value:.2f}"),
}
"""For each row of the speed, the field of the log, a function of its values in all lines, and one
from the result to text."""


def _list_speeds(records: Sequence[RunRecord]) -> list[Row]:
    """Return medians over the lines of the log, and the peak of memory."""
    rows = []
    for name, (field, total, show) in _SPEEDS.items():
        values = [_find_numbers(record, field) for record in records]
        rows.append(make_row(name, [total(one) if one else None for one in values], show))
    return keep_recorded(rows)


def _find_numbers(record: RunRecord, field: str) -> list[float]:
    return [float(line[field]) for line in record.lines if _is_finite(line.get(field))]


def _is_finite(value: Any) -> bool:
    return abs(read_number(value)) < float("inf")


def _list_results(records: Sequence[RunRecord], tests: Sequence[Sequence[HeadTest]]) -> list[Row]:
    """Return the state and the steps of each run, its accuracies in percent, and for each head
    whether they differ by more than chance from those of the first run."""
    rows = [
        make_row("state", [record.state for record in records]),
        make_row("steps", [record.last_step for record in records], lambda value: f"{value:,}"),
    ]
    heads = dict.fromkeys(test.head for one in tests for test in one)
    for name in sorted({name for record in records for name in record.results}, key=_order):
        rows.append(_show_result(name, [record.results.get(name) for record in records]))
        head, _, measure = name.rpartition("/")
        if measure == "top1" and head in heads:
            rows.append(_show_tests(head, tests))
    return rows


def _show_result(name: str, facts: Sequence[float | None]) -> Row:
    """Return a row of percentages; all but the first name the difference from the first."""
    first = facts[0]
    row = make_row(name, facts, lambda value: f"{value:.2f}")
    values = list(row.values)
    for place, fact in enumerate(row.facts):
        if place and fact is not None and first is not None:
            values[place] += f" ({fact - first:+.2f})"
    return Row(row.name, row.facts, tuple(values))


def _order(name: str) -> tuple[bool, str, str]:
    """Return the place of a result: top-1 of all heads first."""
    head, _, measure = name.rpartition("/")
    return measure != "top1", measure, head


def _show_tests(head: str, tests: Sequence[Sequence[HeadTest]]) -> Row:
    found = [next((test for test in one if test.head == head), None) for one in tests]
    values = tuple("" if test is None else str(test) for test in found)
    return Row(f"{head}: by chance?", tuple(test and test.p for test in found), values)
