"""`fastdeit audit RUN|CHECKPOINT` and `fastdeit audit --recipe NAME`: DeiT's checklist, row by row.

For each setting that the paper (arXiv 2012.12877) specifies: the value of the run, the recipe or
the file, whether it is equal, and the flag that changes it. CHECKPOINT is any weights of fastdeit,
deit or timm. After --recipe NAME any flags of `fastdeit train` may follow: those of a run that is
not started yet.

Exit codes: 0; 1 with --strict if something differs; 2 for settings or weights that cannot be read.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.table import Column, Table

from fastdeit.audit.build import audit_settings, audit_source
from fastdeit.audit.findings import Audit, Status
from fastdeit.commands.errors import one_line_errors
from fastdeit.commands.flags import SourceFlags
from fastdeit.commands.output import print_json
from fastdeit.config.cli import parse_config
from fastdeit.config.flags import split_flags
from fastdeit.config.options import parse_options, split_options
from fastdeit.config.parse import require_value
from fastdeit.config.recipes import RECIPES, spell_recipe
from fastdeit.display.terminal import Terminal
from fastdeit.display.text import quote_words

_SETTINGS = {"--recipe", "--config"}
"""The flags that name settings instead of a run or a file."""

_STATUSES: dict[Status, tuple[str, str]] = {
    "equal": ("equal", "green"),
    "differs": ("differs", "yellow"),
    "cannot be seen": ("not seen", "dim"),
}
"""The text and the style of each status."""


@dataclass(frozen=True)
class ResultOptions:
    """The form of the result."""

    json: bool = False
    """Print one JSON value in place of a table."""
    strict: bool = False
    """Exit with code 1 if something differs."""


@dataclass(frozen=True)
class AuditOptions:
    """The flags of `fastdeit audit`."""

    subject: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|CHECKPOINT")] = ""
    """A run folder, or any name of weights that docs/weights.md lists."""
    weights: SourceFlags = dataclasses.field(default_factory=SourceFlags)
    result: ResultOptions = dataclasses.field(default_factory=ResultOptions)
    recipe: str = ""
    """A recipe instead of RUN|CHECKPOINT, with any flags of `fastdeit train`."""


def audit_command(argv: Sequence[str]) -> int:
    """Run `fastdeit audit`; return 0, or 1 with --strict if something differs.

    Exit with code 2 for a command line, settings or weights that cannot be read.
    """
    with one_line_errors():
        audit, result = _audit(argv)
    if result.json:
        print_json(Terminal(), audit.describe())
    else:
        _show(Terminal(), audit)
    return int(result.strict and audit.count("differs") > 0)


def _audit(argv: Sequence[str]) -> tuple[Audit, ResultOptions]:
    named = {name for name, _ in split_flags(argv)}
    if named & _SETTINGS and not named & {"--help", "-h"}:
        return _audit_flags(argv)
    options = parse_options(argv, AuditOptions, "fastdeit audit", __doc__ or "")
    _check_subject(options.subject)
    weights = options.weights
    return audit_source(options.subject, ema=weights.ema, model=weights.model), options.result


def _audit_flags(argv: Sequence[str]) -> tuple[Audit, ResultOptions]:
    """Audit the settings of a command line of `fastdeit train`; return also the flags of the
    result."""
    result, flags = split_options(argv, ResultOptions, "fastdeit audit", __doc__ or "")
    config, _ = parse_config(flags, "fastdeit audit")
    return audit_settings(config, quote_words(*flags)), result


def _check_subject(subject: str) -> None:
    """Raise ValueError, which names what is allowed, for a missing subject or one that is a
    recipe."""
    allowed = "given, or --recipe NAME"
    is_recipe = spell_recipe(subject) in RECIPES
    if is_recipe:
        allowed = f"a run or a checkpoint; --recipe {subject} is the recipe"
    require_value(bool(subject) and not is_recipe, "RUN|CHECKPOINT", subject, allowed)


def _show(terminal: Terminal, audit: Audit) -> None:
    terminal.say(audit.subject, label=f"{audit.kind}  ")
    for note in audit.notes:
        terminal.say(note)
    terminal.show(_make_table(audit))
    counts = [f"{audit.count(status)} {text}" for status, (text, _) in _STATUSES.items()]
    terminal.say(", ".join(counts), label="checklist  ")
    differing = [row for row in audit.rows if row.status == "differs"]
    if differing:
        terminal.say("what differs, and the flags of a run that has what the paper has:")
    for row in differing:
        terminal.say(f" {row.flag or 'no flag'}", label=f"  {row.title}:")
        if row.note:
            terminal.say(f"    {row.note}")


def _make_table(audit: Audit) -> Table:
    table = Table("item", "the paper", "here", Column("result", no_wrap=True))
    section = audit.rows[0].section
    for row in audit.rows:
        if row.section != section:
            table.add_section()
        section = row.section
        text, style = _STATUSES[row.status]
        table.add_row(row.title, f"{row.paper} ({row.source})", row.found, text, style=style)
    return table
