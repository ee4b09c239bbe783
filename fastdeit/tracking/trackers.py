"""Delivery of what happens in a run to its trackers, each in a thread of its own, so that none of
them can end or block the run."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastdeit.display.text import printable
from fastdeit.tracking.callbacks import Callback, RunEnd, RunStart

END_LIMIT_S = 30.0
"""Seconds that the end of a run waits for all trackers together."""
MAX_WAITING = 10_000
"""The largest number of events that wait for a slow tracker."""
BUSY_SHARE = 0.05
"""The share of one core's time above which a tracker is named in a note."""
_BEAT_S = 1.0
_MEASURED_S = 60.0  # from the start; imports and connections are over then


class Trackers:
    """The trackers of a run; there are none on ranks other than rank 0.

    Nothing is delivered before `start`. Attributes: started, True while there is a receiver.
    """

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self.started = False

    def add(self, name: str, callback: Callback, note: Callable[[str], None]) -> None:
        """Add a tracker, before `start`. note: called with a line for the user, from any thread."""
        self._workers.append(_Worker(name, callback, note))

    def start(self, run: RunStart) -> None:
        """Begin to deliver; `on_start` is the first event."""
        self.started = bool(self._workers)
        self.send("on_start", run)

    def send(self, event: str, *arguments: Any) -> None:
        """Hand an event to every tracker, and wait for none. event: a method of `Callback`."""
        if self.started:
            for worker in self._workers:
                worker.send(event, *arguments)

    def note(self, text: str) -> None:
        """Hand a line that the run prints to every tracker."""
        self.send("on_note", text)

    def end(
        self, end: RunEnd, limit_s: float = END_LIMIT_S, beat: Callable[[], None] = lambda: None
    ) -> None:
        """Deliver `on_end`, and wait until the trackers are done, `limit_s` seconds at most; do
        nothing before `start`. beat: called each second, as the watchdog asks for progress."""
        if not self.started:
            return
        self.send("on_end", end)
        self.started = False
        for worker in self._workers:
            worker.close()
        deadline = time.monotonic() + limit_s
        for worker in self._workers:
            worker.wait(deadline, limit_s, beat)


class _Worker:
    """One tracker and its thread, which exists from the first event on."""

    def __init__(self, name: str, callback: Callback, note: Callable[[str], None]) -> None:
        self._name = name
        self._callback = callback
        self._note = note
        self._events: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(
            target=self._deliver, name=f"fastdeit-tracker-{name}", daemon=True
        )
        self._is_off = False
        self._is_behind = False

    def send(self, event: str, *arguments: Any) -> None:
        """Hand an event to the tracker, and wait for nothing."""
        if self._is_off:
            return
        if not self._thread.ident:
            self._thread.start()
        # a copy for each tracker, or one that adds a field would disturb the others
        own = tuple(dict(item) if isinstance(item, Mapping) else item for item in arguments)
        try:
            self._events.put_nowait((event, own))
        except queue.Full:
            self._note_behind()

    def _note_behind(self) -> None:
        if not self._is_behind:
            self._is_behind = True
            self._note(f"{self._name} is {MAX_WAITING:,} events behind, and misses what comes now")

    def close(self) -> None:
        """Let the thread end after the events that wait."""
        try:
            self._events.put_nowait(None)
        except queue.Full:
            self._is_off = True  # it ends after the event at hand

    def wait(self, deadline: float, limit_s: float, beat: Callable[[], None]) -> None:
        """Wait for the thread until a time of `time.monotonic`."""
        while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            beat()
            self._thread.join(min(_BEAT_S, left))
        if self._thread.is_alive():
            self._is_off = True
            self._note(f"{self._name} has not ended within {limit_s:g} s; the run does not wait")

    def _deliver(self) -> None:
        """Call the tracker's methods; the body of the thread."""
        load = _Load()
        while not self._is_off and (item := self._events.get()) is not None:
            event, arguments = item
            try:
                getattr(self._callback, event)(*arguments)
            except BaseException as error:  # SystemExit would end the thread without a word
                self._turn_off(error)
            if share := load.exceeds(BUSY_SHARE):
                used = f"{100 * share:.0f} % of the time of one core"
                self._note(f"{self._name} uses {used}, which may slow the run")

    def _turn_off(self, error: BaseException) -> None:
        self._is_off = True
        reason = printable(" ".join(str(error).split())) or "no reason given"
        self._note(f"{self._name} is off from here on: {type(error).__name__}: {reason}")


class _Load:
    """The CPU time of the present thread, as a share of the time since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._said = False

    def exceeds(self, limit: float) -> float:
        """Return the share, once, if it is above the limit after `_MEASURED_S`; else 0."""
        passed = time.monotonic() - self._started
        if self._said or passed < _MEASURED_S:
            return 0.0
        share = time.thread_time() / passed
        self._said = share > limit
        return share if self._said else 0.0
