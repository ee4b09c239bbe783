"""Output of a command for other programs: JSON on stdout, and tables as CSV or JSON files."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdeit.config.parse import require
from fastdeit.display.terminal import Terminal
from fastdeit.display.text import printable
from fastdeit.storage.atomic import atomic_write_text
from fastdeit.storage.jsonl import to_strict_json

_SUFFIXES = (".csv", ".json")
Rows = Sequence[Mapping[str, Any]]
"""The rows of a table: numbers, texts, or lists of these, by column; all have the same columns."""


def print_json(terminal: Terminal, value: Any) -> None:
    """Print a value as one JSON text in ASCII, in the form of `to_strict_json`.

    terminal: that of stdout, on which a command with --json prints nothing else.
    """
    terminal.say(_as_json(value))


def check_table(path: str | Path, flag: str = "output") -> None:
    """Raise ValueError, before any work is lost, unless `write_table` can write to this path."""
    check_file(path, _SUFFIXES, flag)


def check_file(path: str | Path, suffixes: Sequence[str], flag: str) -> None:
    """Raise ValueError, before any work is lost, unless this path has one of the suffixes and can
    be written."""
    path = Path(path)
    allowed = f"a file that ends in {' or '.join(suffixes)}"
    require(path.suffix in suffixes, flag, str(path), allowed)
    folder = path.absolute().parent
    require(not path.is_dir(), flag, str(path), "a file, not a folder")
    can_write = folder.is_dir() and os.access(folder, os.W_OK)
    require(can_write, flag, str(path), "in a folder that exists and can be written")


def write_table(path: str | Path, rows: Rows, flag: str = "output") -> None:
    """Write rows as CSV or JSON, by the suffix of the file, whole or not at all.

    In CSV a text is `printable`, and a list is its JSON text. Raises ValueError, which names the
    flag, for another suffix and for a file that cannot be written.
    """
    path = Path(path)
    check_table(path, flag)
    text = _as_csv(rows) if path.suffix == ".csv" else _as_json(list(rows)) + "\n"
    try:
        atomic_write_text(path, text)
    except OSError as error:
        require(False, flag, f"{path}: {error}", "a file that can be written")


def _as_json(value: Any) -> str:
    return json.dumps(to_strict_json(value), indent=1, allow_nan=False)


def _as_csv(rows: Rows) -> str:
    text = io.StringIO()
    columns = list(rows[0]) if rows else []
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _as_cell(value) for name, value in row.items()})
    return text.getvalue()


def _as_cell(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    return json.dumps(to_strict_json(value)) if isinstance(value, list | tuple) else value
