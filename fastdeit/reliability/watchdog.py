"""A thread that ends a process which makes no progress, after reporting where the process stands.

The main thread reports what it begins (`beat`, under a microsecond); the thread checks how long ago
that was. If something holds Python's lock, so that not even this thread runs, a timer of
`faulthandler` takes over: it needs no lock, and the thread resets it as long as it runs. A job that
was suspended for longer than a limit is ended when it continues.
"""

import faulthandler
import threading
import time
from collections.abc import Callable, Mapping

STARTUP = "startup"
"""The section before the first step; its limit is also that of the first step in each section."""
_STDERR = 2  # the descriptor: sys.stderr may be another object
_GRACE_S = 10.0  # beyond the shortest limit, for which nothing may hold Python's lock


class Watchdog:
    """A thread that calls `expire(section, step, limit)` if no `beat` came within the limit of the
    current section.

    limits: seconds by section. `STARTUP` among them is also the limit of the first step in each
    section, in which kernels are compiled and caches filled. Attributes: section, step, of the last
    beat.
    """

    def __init__(
        self,
        limits: Mapping[str, float],
        expire: Callable[[str, int, float], None],
        poll_s: float = 1.0,
    ) -> None:
        self.section = STARTUP
        self.step = 0
        self._limits = dict(limits)
        self._expire = expire
        self._poll_s = poll_s
        self._first_step: dict[str, int] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fastdeit-watchdog", daemon=True)
        # deadline and limit in one attribute: the thread reads both at once
        self._due = (time.monotonic() + self._limits[STARTUP], self._limits[STARTUP])

    def beat(self, section: str, step: int) -> None:
        """Report that the main thread begins `section` of optimizer step `step`, or makes progress
        in it."""
        first = self._first_step.setdefault(section, step)
        limit = self._limits[STARTUP if step == first else section]
        self.section = section
        self.step = step
        self._due = (time.monotonic() + limit, limit)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, and its timer."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        held_s = min(self._limits.values()) + _GRACE_S
        while not self._closed.wait(self._poll_s):
            deadline, limit = self._due
            if time.monotonic() >= deadline:
                return self._expire(self.section, self.step, limit)
            faulthandler.dump_traceback_later(held_s, exit=True, file=_STDERR)


def dump_stacks() -> None:
    """Write the Python stacks of all threads to stderr."""
    faulthandler.dump_traceback(_STDERR, all_threads=True)
