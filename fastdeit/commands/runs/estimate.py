"""`fastdeit estimate [--recipe NAME] --gpus 8 --gpu h100`: what a run will need, before it starts.

Steps, hours, memory, CPU cores, bandwidth, room on the disk and cost of a run with any flags of
`fastdeit train`. Each line has its source: counted (from the settings), measured (a committed row),
or model (docs/estimate.md has the formulas, which no GPU has confirmed). Nothing is trained, and
nothing is read except the index of --data-path, if there is one.

Exit codes: 0; 2 for a command line that cannot be used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Column, Table

from fastdeit.commands.errors import one_line_errors
from fastdeit.commands.output import print_json
from fastdeit.config.cli import parse_config
from fastdeit.config.options import split_options
from fastdeit.config.parse import Section
from fastdeit.display.terminal import Terminal
from fastdeit.estimate.build import count_data, estimate_config
from fastdeit.estimate.gpus import find_gpu, make_devices
from fastdeit.estimate.lines import Estimate, Line
from fastdeit.estimate.samples import find_data_set

_SAID = "no GPU has confirmed the lines of a model; ranges are judgements (docs/estimate.md)"


@dataclass(frozen=True)
class EstimateOptions(Section):
    """The flags of `fastdeit estimate`; those of `fastdeit train` may follow."""

    gpu: str = "h100"
    """b200, h200, h100, a100, l40s, rtx-4090 and others (docs/estimate.md), or cpu."""
    gpus: int = 8
    """Number of GPUs on all machines; with --gpu cpu, of processes with a core each."""
    gpus_per_machine: int = 8
    """GPUs in a machine."""
    images: int | None = None
    """Number of training images, instead of that of the index of --data-path or of the recipe's
    data set."""
    price: float | None = None
    """Price of a GPU for an hour, in any currency."""
    disk_gb_per_s: float | None = None
    """Speed of writing on the disk with the checkpoints, in 10^9 bytes a second; without it a
    measured one."""
    json: bool = False
    """Print one JSON value in place of a table."""


def estimate_command(argv: Sequence[str]) -> int:
    """Run `fastdeit estimate`; return 0. Exit with code 2 for a command line that cannot be
    used."""
    with one_line_errors():
        options, found = _estimate(argv)
    if options.json:
        print_json(Terminal(), found.describe())
    else:
        _show(Terminal(), found)
    return 0


def _estimate(argv: Sequence[str]) -> tuple[EstimateOptions, Estimate]:
    options, flags = split_options(argv, EstimateOptions, "fastdeit estimate", __doc__ or "")
    config, recipe = parse_config(flags, "fastdeit estimate")
    gpu = find_gpu(options.gpu)
    devices = make_devices(options.gpu, gpu, options.gpus, options.gpus_per_machine)
    data = count_data(config, options.images, find_data_set(recipe))
    price, speed = options.price, options.disk_gb_per_s
    return options, estimate_config(config, devices, data, price=price, gb_per_s=speed)


def _show(terminal: Terminal, found: Estimate) -> None:
    bases = list(dict.fromkeys(line.basis for line in found.lines))
    table = Table("", "", Column("value", justify="right"), "range", "source")
    section = ""
    for line in found.lines:
        title = "" if line.section == section else line.section
        if title and section:
            table.add_section()
        section = line.section
        table.add_row(title, *_describe(line, 1 + bases.index(line.basis)))
    terminal.say(found.device, label="estimate  ")
    terminal.show(table)
    for number, basis in enumerate(bases, 1):
        terminal.say(f"[{number}] {basis}")
    terminal.say(_SAID)


def _describe(line: Line, number: int) -> tuple[str, ...]:
    """Return the cells of a line; number: that of its basis in the list below the table."""
    source = f"{line.source} [{number}]"
    if line.value is None:
        return line.name, "?", "", source
    value = f"{show_number(line.value)} {line.unit}".rstrip()
    if line.low is None or line.high is None:
        return line.name, value, "", source
    return line.name, value, f"{show_number(line.low)} to {show_number(line.high)}", source


def show_number(value: float) -> str:
    """Return a whole number with all digits, any other number with three."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
