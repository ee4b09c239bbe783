"""`fastdeit compare RUN RUN ...`: print how runs differ.

RUN is the --output-dir of a run, finished or not, or a metrics.jsonl. The command compares settings
(with each other, and with the recipe of each), samples, inputs, machines, speed, results and
losses. A fact that an older version did not record has no value. If both runs stored the class of
each validation image, McNemar's test shows whether the accuracies of a head differ by more than
chance, which is usually assumed if p is below 0.05.

Exit codes: 0; 2 for a command line or a folder that cannot be used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Column, Table

from fastdeit.commands.errors import one_line_errors
from fastdeit.commands.output import print_json
from fastdeit.config.options import parse_options
from fastdeit.config.parse import require_value
from fastdeit.display.terminal import Terminal
from fastdeit.report.comparison.rows import Row
from fastdeit.report.differences import Differences, Group, compare_runs
from fastdeit.report.record import RunRecord, read_run

_WHOLE = {"recipe", "samples", "speed", "results", "losses"}
"""The groups whose equal rows are printed, too."""


@dataclass(frozen=True)
class CompareOptions:
    """The flags of `fastdeit compare`."""

    run: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN [RUN ...]")
    ]
    """Run folders. The others are compared with the first one."""
    all: bool = False
    """Print what is the same in all runs, too."""
    json: bool = False
    """Print one JSON value in place of tables."""


def compare_command(argv: Sequence[str]) -> int:
    """Run `fastdeit compare`; return 0.

    Exit with code 2 for a command line or a folder that cannot be used.
    """
    with one_line_errors():
        options = parse_options(argv, CompareOptions, "fastdeit compare", __doc__ or "")
        require_value(len(options.run) > 1, "RUN", " ".join(options.run), "two or more run folders")
        records = [read_run(Path(path)) for path in options.run]
    found = compare_runs(records)
    if options.json:
        print_json(Terminal(), found.describe())
    else:
        _show(Terminal(), found, records, options.all)
    notes = Terminal(stderr=True)
    for fault in (fault for record in records for fault in record.faults):
        notes.say(f"not read: {fault}")
    return 0


def _show(
    terminal: Terminal, found: Differences, records: Sequence[RunRecord], whole: bool
) -> None:
    for group in found.groups:
        is_whole = whole or group.title in _WHOLE
        rows = [row for row in group.rows if row.differs or (is_whole and row.known)]
        if rows:
            terminal.show(_make_table(group.title, found.runs, rows))
        else:
            terminal.say(_describe_equal(group, records), label=f"{group.title}: ")


def _describe_equal(group: Group, records: Sequence[RunRecord]) -> str:
    """Return a text on why a group has no row to print."""
    counts = [len(row.known) for row in group.rows]
    if group.title == "settings":  # its rows are those that differ
        counts = [sum(record.settings is not None for record in records)]
    if not counts or max(counts) < 2:
        return "not recorded by two of the runs"
    is_whole = min(counts) == len(records)
    return "the same" if is_whole else "the same, as far as the runs recorded them"


def _make_table(name: str, runs: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(name, *(Column(run, justify="right") for run in runs))
    for row in rows:
        table.add_row(row.name, *(text or "-" for text in row.values))
    return table
