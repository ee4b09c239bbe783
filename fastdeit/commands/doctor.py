"""`fastdeit doctor`: check this machine, and show what to change before training.

fastdeit doctor [--data-path DATA] [--output-dir DIR] [--quick] [--json]

Checks GPUs, driver, packages, compilers, network, file system, decoders and data set, each in a
separate process with a time limit, and then trains a small DeiT for ten seconds. Under a launcher
(deepspeed --module fastdeit doctor; torchrun -m fastdeit doctor) it checks every rank.

Exit codes: 0, also with warnings; 1: something is broken; 2: a mistake in the command line.
"""

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from fastdeit.commands.errors import one_line_errors
from fastdeit.commands.output import print_json
from fastdeit.config.options import parse_options
from fastdeit.config.parse import Section, require
from fastdeit.display.terminal import Terminal
from fastdeit.distributed.environment import is_alone
from fastdeit.doctor.checks.gpu import count_gpus
from fastdeit.doctor.examination import Rank, clean, examine_alone
from fastdeit.doctor.findings import Target
from fastdeit.doctor.scratch import answers, choose_scratch
from fastdeit.doctor.summary import Row, count_statuses, find_worst

_INTERRUPTED = 130
_DAY_S = 86400
_WIDTH = 22  # of the longest name of a check


@dataclass(frozen=True)
class DoctorOptions(Section):
    """The flags of `fastdeit doctor`."""

    data_path: str = ""
    """The folder of a data set, whose images and disk are checked; empty: generated images."""
    train_split: str = "train"
    """A name, a list, or a pattern of shards, as for train."""
    output_dir: str = "runs"
    """The folder that runs will be written to."""
    startup_limit: float = 120
    """Under a launcher: seconds that the other ranks may take to start."""
    quick: bool = False
    """Skip the checks that take seconds: the speed of the disk, and ten seconds of training."""
    json: bool = False
    """Print all findings as JSON."""

    def check(self) -> None:
        is_time = 0 < self.startup_limit <= _DAY_S
        self._require("startup_limit", is_time, f"above 0 and at most {_DAY_S}")


def doctor_command(argv: Sequence[str]) -> int:
    """Run `fastdeit doctor`; return its exit code."""
    with one_line_errors():
        options = parse_options(argv, DoctorOptions, "fastdeit doctor", __doc__ or "")
        _check_folders(options)
    target = Target(
        data_path=options.data_path,
        train_split=options.train_split,
        output_dir=options.output_dir,
        scratch=choose_scratch(options.output_dir),
        gpus=count_gpus(),
    )
    try:
        with _clean_end(target):
            examine = _examine_alone if is_alone() else _examine_ranks
            return examine(options, target)
    except KeyboardInterrupt:
        return _INTERRUPTED


def _check_folders(options: DoctorOptions) -> None:
    """Raise SettingError for a data set that is not a folder, or an output folder that is a
    file."""
    for name in ("data_path", "output_dir"):
        path = getattr(options, name)
        require(answers(path), name, path, "on a file system that answers")
    data = options.data_path
    require(not data or Path(data).is_dir(), "data_path", data, "an existing local folder")
    output = Path(options.output_dir)
    is_folder = bool(options.output_dir) and (output.is_dir() or not output.exists())
    require(is_folder, "output_dir", options.output_dir, "a folder or a new name")


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


@contextlib.contextmanager
def _clean_end(target: Target) -> Iterator[None]:
    """Remove the files of the checks when the block ends, also by an error or SIGTERM."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for row in clean(target):
            _show(Terminal(stderr=True), row)


def _examine_alone(options: DoctorOptions, target: Target) -> int:
    terminal = Terminal(enabled=not options.json)
    rows = []
    with contextlib.closing(examine_alone(target, quick=options.quick)) as found:
        for row in found:
            _show(terminal, row)
            rows.append(row)
    return _finish(rows, options)


def _examine_ranks(options: DoctorOptions, target: Target) -> int:
    rank = Rank(target, quick=options.quick)
    rows = rank.examine(options.startup_limit)
    if rows is None:  # rank 0 reports
        return 0
    if rank.number:  # rank 0 cannot be reached, and has the output
        options = dataclasses.replace(options, json=False)
        rows = [row for row in rows if row.finding.cure]
    terminal = Terminal(enabled=not options.json, stderr=rank.number > 0)
    for row in rows:
        _show(terminal, row)
    code = _finish(rows, options)
    rank.linger(options.startup_limit)
    return code


def _show(terminal: Terminal, row: Row) -> None:
    """Print a finding, and below it the change that it asks for."""
    finding = row.finding
    terminal.say(finding.found, label=f"{finding.status:<15} {row.name:<{_WIDTH}} ")
    if finding.cure:
        terminal.say(f"{'':16}change: {finding.cure}")


def _finish(rows: Sequence[Row], options: DoctorOptions) -> int:
    """Print the count, or all rows as JSON; return the exit code."""
    worst = find_worst([row.finding.status for row in rows])
    if options.json:
        described = [row.describe() for row in rows]
        print_json(Terminal(), {"status": worst, "checks": described})
    else:
        Terminal(enabled=os.environ.get("RANK", "0") == "0").say(count_statuses(rows))
    return int(worst == "broken")
