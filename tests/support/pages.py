"""A page of docs/ as a user would run it: its commands and programs, and what they print.

A page has blocks of `sh` (commands of fastdeit), of `python` (programs, which share their names),
and, after a block, a block of `text` with lines that it prints; `...` stands for others. Numbers
and widths of columns may differ. `python -m tests.support.pages docs/first-model.md` runs a page
and writes the numbers found into it.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastdeit.__main__ import COMMANDS

_BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HASH = re.compile(r"\b(?=\w*\d)[0-9a-f]{8,}\b")
_NUMBER = re.compile(r"\d[\d.,]*(?:e[-+]?\d+)?")
_GAP = re.compile(r"[\s━─]+")
REST = "..."


class Shown(NamedTuple):
    """A block of lines on a page, and all lines that were printed where it stands."""

    block: str
    printed: list[str]


class PageRun(NamedTuple):
    """What a run of a page gave: its blocks of text, and the names of its programs."""

    shown: list[Shown]
    names: dict[str, Any]


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make a folder the working directory in the block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_page(text: str) -> PageRun:
    """Run the blocks of a page in the working directory.

    Raises AssertionError for a command that is not ours or whose exit code is not 0, and whatever a
    program raises.
    """
    shown = []
    names: dict[str, Any] = {"__name__": "page"}
    printed: list[str] = []
    for kind, block in _BLOCK.findall(text):
        if kind == "text":
            shown.append(Shown(block, printed))
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            if kind == "python":
                exec(compile(block, "page", "exec"), names)
            else:
                run_commands(block)
        printed = output.getvalue().splitlines()
    return PageRun(shown, names)


def run_commands(block: str) -> None:
    """Run `fastdeit COMMAND ...` lines in this process; a line may end in a backslash."""
    for line in block.replace("\\\n", " ").splitlines():
        program, name, *argv = shlex.split(line, comments=True)
        assert program == "fastdeit", line
        assert COMMANDS[name](argv) == 0, line


def fill_block(shown: Shown) -> str:
    """Return a block with the numbers of this run.

    Raises AssertionError for a line that was not printed after the one before it.
    """
    lines = []
    rest = iter(shown.printed)
    for line in shown.block.splitlines():
        if line == REST:
            lines.append(line)
            continue
        found = next((other for other in rest if _shape(other) == _shape(line)), None)
        assert found is not None, f"not printed: {line}\nprinted: {shown.printed}"
        lines.append(found.rstrip())
    return "".join(f"{line}\n" for line in lines)


def _shape(line: str) -> str:
    """Return a line without its numbers, hashes and widths."""
    return _GAP.sub(" ", _NUMBER.sub("0", _HASH.sub("0", line))).strip()


def rewrite_page(page: Path) -> None:
    """Run a page in a temporary folder, and write the numbers of this run into it."""
    text = page.read_text()
    with tempfile.TemporaryDirectory() as folder, working_in(Path(folder)):
        done = run_page(text)
        picture = page.parent / f"{page.stem}.png"
        if picture.is_file():
            picture.write_bytes(Path(picture.name).read_bytes())
    for shown in done.shown:
        text = text.replace(f"```text\n{shown.block}```", f"```text\n{fill_block(shown)}```", 1)
    page.write_text(text)


if __name__ == "__main__":
    rewrite_page(Path(sys.argv[1]).resolve())
