"""A thread that ends a process which makes no progress, after it has said where the process stands.

The main thread says what it begins (`beat`, under a microsecond); the thread looks how long ago
that was. Should something hold Python's lock, so that not even this thread runs, a timer of
`faulthandler` does its work, which needs no lock and which the thread sets back as long as it runs.
A job that is suspended for longer than a limit is ended when it goes on.
"""

import faulthandler
import threading
import time
from collections.abc import Callable, Mapping

STARTUP = "startup"
_STDERR = 2  # the descriptor: sys.stderr may be another object
_GRACE_S = 10.0  # beyond the shortest limit, for which nothing may hold Python's lock


class Watchdog:
    """Calls `expire(section, step, limit)` in a thread of its own when no `beat` came within its
    section's limit.

    limits: seconds by section; `STARTUP` among them is also the limit of the first pass, that is
    the first step, of each section, in which kernels are compiled and caches filled.
    """

    def __init__(
        self,
        limits: Mapping[str, float],
        expire: Callable[[str, int, float], None],
        poll_s: float = 1.0,
    ) -> None:
        self._limits, self._expire, self._poll_s = dict(limits), expire, poll_s
        self._held_s = min(self._limits.values()) + _GRACE_S
        self._first: dict[str, int] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fastdeit-watchdog", daemon=True)
        self.section, self.step = STARTUP, 0
        self._due = time.monotonic() + self._limits[STARTUP], self._limits[STARTUP]

    def beat(self, section: str, step: int) -> None:
        """The main thread begins `section` of optimizer step `step`, or gets on within it."""
        limit = (
            self._limits[STARTUP]
            if step == self._first.setdefault(section, step)
            else self._limits[section]
        )
        self.section, self.step = section, step
        self._due = time.monotonic() + limit, limit

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(self._poll_s):
            due, limit = self._due
            if time.monotonic() >= due:
                return self._expire(self.section, self.step, limit)
            faulthandler.dump_traceback_later(self._held_s, exit=True, file=_STDERR)


def dump_stacks() -> None:
    """The Python stacks of all threads to stderr, without Python's lock."""
    faulthandler.dump_traceback(_STDERR, all_threads=True)
