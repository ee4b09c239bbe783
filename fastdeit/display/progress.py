"""The progress bar: a live line on a terminal, elsewhere a plain line from time to time."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.cells import cell_len
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fastdeit.display.terminal import Terminal
from fastdeit.display.text import printable

Item = TypeVar("Item")

QUIET_S = 15.0
"""The seconds between two lines without a terminal."""
_BAR = "the progress bar"
_GAP = "  "  # between two facts
_MOST_BAR = 40  # columns
_REMAINING = 8  # columns of the time remaining, with the gap before it
_REFRESH_S = 0.1  # an update takes longer than some of the work that is counted
_SHOWN_AFTER_S = 1.5  # work that ends sooner needs no bar


class ProgressBar:
    """A bar with a description, facts, and the time remaining.

    total: the work that `update` counts; transient: whether the bar disappears at the end;
    remaining: whether it shows its own estimate of the time remaining; False if the facts have one.
    """

    def __init__(
        self,
        terminal: Terminal,
        total: int,
        description: str,
        transient: bool = False,
        remaining: bool = True,
    ) -> None:
        self._terminal = terminal
        self._total = total
        self._bar = BarColumn()
        self._remaining = remaining
        columns = (
            TextColumn("{task.description}", markup=False),
            self._bar,
            TextColumn("{task.fields[facts]}", markup=False),
            *([TimeRemainingColumn()] if remaining else []),
        )
        live = terminal.is_terminal and not terminal.is_dumb_terminal
        self._progress = Progress(
            *columns, console=terminal, transient=transient, disable=terminal.quiet or not live
        )
        self._task = self._progress.add_task(printable(description), total=total, facts="")

    @property
    def started(self) -> bool:
        return self._progress.live.is_started

    def start(self) -> None:
        """Show the bar, on a terminal."""
        with self._terminal.attempt(_BAR):
            self._progress.start()

    def update(
        self, done: int, facts: str | Sequence[str], description: str | None = None, line: str = ""
    ) -> None:
        """Set the work done so far and the text beside the bar.

        facts: of several, the first that fit into the terminal are shown. line: the line that is
        printed instead without a terminal, at the end and if nothing was printed for `QUIET_S`
        seconds.
        """
        shown = None if description is None else printable(description)
        with self._terminal.attempt(_BAR):
            beside = [facts] if isinstance(facts, str) else facts
            fitting = self._fit(list(map(printable, beside)), shown or "")
            self._progress.update(self._task, completed=done, description=shown, facts=fitting)
        waited = time.monotonic() - self._terminal.last_print
        due = waited > QUIET_S or done == self._total
        if line and due and self._progress.disable:
            self._terminal.say(line)

    def _fit(self, facts: Sequence[str], description: str) -> str:
        """Return the first facts that fit beside a bar, which has a fifth of the terminal."""
        width = self._terminal.width
        self._bar.bar_width = min(_MOST_BAR, width // 5)
        description = description or self._progress.tasks[0].description
        taken = cell_len(description) + self._bar.bar_width + 2
        room = width - taken - (_REMAINING if self._remaining else 0)
        for count in range(len(facts), 1, -1):
            text = _GAP.join(facts[:count])
            if cell_len(text) <= room:
                return text
        return facts[0]

    def stop(self) -> None:
        """End the updates of the bar."""
        with self._terminal.attempt(_BAR):
            self._progress.stop()


class TimeLeft:
    """The estimated time for the rest of some work, from the rate after the first item, which also
    starts loaders and compiles. total: the number of items."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._first: tuple[int, float] | None = None

    def describe(self, done: int) -> str:
        """Return the time that is left after `done` items, as `2 min`; "" if it is not known, or
        nothing is left."""
        now = time.monotonic()
        first, started = self._first = self._first or (done, now)
        if done == first or done >= self._total:
            return ""
        seconds = (now - started) / (done - first) * (self._total - done)
        return format_duration(seconds)


def format_duration(seconds: float) -> str:
    """Return a duration as text in one or two units, at least 1 s: 40 s, 2 min, 1 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def track(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Yield the items; show a bar on stderr if that is a terminal and they take some seconds."""
    bar = ProgressBar(Terminal(stderr=True), total, description, transient=True)
    started = time.monotonic()
    due = 0.0
    try:
        for done, item in enumerate(items, 1):
            if not bar.started and time.monotonic() - started > _SHOWN_AFTER_S:
                bar.start()
            now = time.monotonic()
            if now > due or done == total:
                bar.update(done, f"{done}/{total}")
                due = now + _REFRESH_S
            yield item
    finally:
        bar.stop()
