"""`fastdeit report RUN [RUN ...]`: write a page on runs, as one HTML file that needs no network.

RUN is the --output-dir of a run, finished or not, or a metrics.jsonl. The page has curves, samples,
attention maps, confusions, settings and events; for several runs, their differences come first.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastdeit.commands.errors import one_line_errors
from fastdeit.commands.output import check_file
from fastdeit.config.options import parse_options
from fastdeit.config.parse import require, require_value
from fastdeit.display.terminal import Terminal
from fastdeit.report.build import write_report
from fastdeit.storage.run_folder import RunFolder


@dataclass(frozen=True)
class ReportOptions:
    """The flags of `fastdeit report`."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Folders of runs, or metrics.jsonl files."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = ""
    """The page, FILE.html; default: report.html in the folder of the only RUN."""


def report_command(argv: Sequence[str]) -> int:
    """Run `fastdeit report`; return 0.

    Exit with code 2 for a command line, a RUN or a FILE that cannot be used.
    """
    with one_line_errors():
        options = parse_options(argv, ReportOptions, "fastdeit report", __doc__ or "")
        output = _find_output(options)
        check_file(output, (".html",), "output")
        try:
            write_report([Path(run) for run in options.runs], output)
        except OSError as error:
            require(False, "output", f"{output}: {error}", "a file that can be written")
    Terminal().say(f"{output}: {os.path.getsize(output) / 1e6:.1f} MB")
    return 0


def _find_output(options: ReportOptions) -> Path:
    for run in options.runs:
        require_value(os.path.exists(run), "RUN", run, "a run folder on this machine")
    is_folder = len(options.runs) == 1 and os.path.isdir(options.runs[0])
    allowed = "given, as -o report.html, unless there is one RUN, which is a folder"
    require(bool(options.output) or is_folder, "output", options.output, allowed)
    return Path(options.output) if options.output else RunFolder(Path(options.runs[0])).report
