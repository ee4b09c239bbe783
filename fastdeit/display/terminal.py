"""The console that all output for the user goes through."""

import contextlib
import io
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastdeit.display.text import printable, printable_lines


@contextlib.contextmanager
def note_failure(what: str, note: Callable[[str], None]) -> Iterator[None]:
    """Call `note` with one line instead of raising an error of the block.

    what: the thing that cannot be made, for the line. Used for all that is meant for the eye
    (pictures, tables, progress, TensorBoard): none of it may end a run.
    """
    try:
        yield
    except Exception as error:
        reason = printable(" ".join(str(error).split())) or "no reason given"
        note(f"{what} could not be made: {type(error).__name__}: {reason}")


class Terminal(Console):
    """A console that prints any text and never ends a run.

    All text is plain, without rich's [tags] and :emoji:, and made printable; characters that the
    stream's encoding lacks are written as escapes. If the stream cannot be written to (a closed
    terminal or pipe, a full disk below a log), nothing more is printed. enabled: False for all
    ranks except one. Attributes: last_print, `time.monotonic()` of the last call of `say`.
    """

    def __init__(self, enabled: bool = True, stderr: bool = False) -> None:
        super().__init__(
            quiet=not enabled, highlight=False, markup=False, emoji=False, stderr=stderr
        )
        self.last_print = time.monotonic()
        stream = sys.stderr if stderr else sys.stdout
        if isinstance(stream, io.TextIOWrapper):
            with self.attempt():
                stream.reconfigure(errors="backslashreplace")

    def on_broken_pipe(self) -> None:
        """Print nothing more; rich itself would end the process."""
        self._give_up()

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        """Make all text that rich renders printable: lines, cells, headings of tables."""
        return super().render_str(printable_lines(text), **options)

    def say(self, text: str, label: str = "") -> None:
        """Print lines after a bold label; do not wrap long ones."""
        self.last_print = time.monotonic()
        with self.attempt():
            content = self.render_str(text)
            bold = self.render_str(label, style="bold")
            self.print(Text.assemble(bold, content), soft_wrap=True)

    def show(self, table: Table) -> None:
        """Print a table, in which long cells have several lines."""
        for column in table.columns:
            column.overflow = "fold"
        with self.attempt("a table"):
            self.print(table)

    @contextlib.contextmanager
    def attempt(self, what: str = "a line") -> Iterator[None]:
        """Print nothing more if the stream refuses a write in the block; print a note if `what`
        fails in another way."""
        try:
            with note_failure(what, self._write_plain):
                try:
                    yield
                except OSError:
                    self._give_up()
        except Exception:
            self._give_up()

    def _write_plain(self, line: str) -> None:
        """Write a line without rich, as rich has failed."""
        self.file.write(f"{line}\n")

    def _give_up(self) -> None:
        """Print nothing more."""
        self.quiet = True
        discard_output(self.file)


def discard_output(stream: IO[str]) -> None:
    """Redirect a stream that cannot be written to: the text in its buffer must not fail when Python
    ends."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextlib.contextmanager
def end_on_closed_pipe() -> Iterator[None]:
    """Exit with code 141, as programs that SIGPIPE ends, if the block cannot print because the
    reader has ended, as `| head` does.

    Used for text that libraries print, such as tyro's help. In this case a `Terminal` prints
    nothing more, and its command finishes.
    """
    streams = (sys.stdout, sys.stderr)
    try:
        yield
    except BrokenPipeError:
        if not any(map(_is_closed_pipe, streams)):
            raise
        sys.exit(128 + signal.SIGPIPE)
    finally:
        for stream in streams:
            try:
                stream.flush()
            except OSError:
                discard_output(stream)


def _is_closed_pipe(stream: IO[str]) -> bool:
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):  # a stream that is not a file
        poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class _LogHandler(logging.Handler):
    """A handler that prints records on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        Terminal(stderr=True).say(self.format(record))


def show_log() -> None:
    """Print the package's warnings through a `Terminal`: Python's own handler does not make names
    printable."""
    log = logging.getLogger("fastdeit")
    if not log.handlers:
        log.addHandler(_LogHandler())


def replace_closed_streams() -> None:
    """Redirect standard streams that were closed.

    Otherwise the next file that is opened would get the number of one, and the text that libraries
    print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    sys.stdout = sys.stdout or io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(2, "w", closefd=False))
