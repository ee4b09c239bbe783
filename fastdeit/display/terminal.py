"""The console that all output for the user goes through."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table


class Terminal(Console):
    """A console that never ends a run: if it cannot be written to, it prints nothing more.

    That is a terminal that was closed, or a full disk below a log. enabled: False for all ranks but
    one. Attributes: last_print, `time.monotonic()` of the last call of `say`.
    """

    def __init__(self, enabled: bool = True, stderr: bool = False) -> None:
        super().__init__(quiet=not enabled, highlight=False, stderr=stderr)
        self.last_print = time.monotonic()

    def on_broken_pipe(self) -> None:
        """Print nothing more; rich itself would end the process."""
        self.quiet = True

    def say(self, text: str, markup: bool = False) -> None:
        """Print lines, without wrapping long ones. markup: the text has rich's [tags]."""
        self.last_print = time.monotonic()
        with self.silent_if_refused():
            self.print(text, soft_wrap=True, markup=markup)

    def show(self, table: Table) -> None:
        """Print a table."""
        with self.silent_if_refused():
            self.print(table)

    @contextlib.contextmanager
    def silent_if_refused(self) -> Iterator[None]:
        """Print nothing more after an OSError in the block."""
        try:
            yield
        except OSError:
            self.quiet = True
