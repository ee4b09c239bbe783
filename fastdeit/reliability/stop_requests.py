"""Requests to stop this process: a signal, the time limit, a file, the end of the launcher."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fastdeit.reliability.launcher import Launcher

REASONS = (
    "",
    "--time-limit",
    "the file `stop`",
    "SIGUSR1",
    "SIGHUP",
    "SIGINT",
    "SIGTERM",
    "the launcher has ended",
)
"""Why a run is to stop; ranks that were asked for several reasons agree on the last of them."""


INTERRUPTED = 130  # the shell's code for SIGINT


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


_AGAIN_S = 1.0  # launchers pass a signal on that the terminal has sent to all


_ORPHAN_LIMIT_S = 120.0


class StopRequests:
    """Asks this process to save and stop: a signal, a time limit, a file, the end of the launcher.

    stop_file: looked for each second; None: never. time_limit_s: from now on. launcher: whose end
    counts. abort: called in a thread with an exit code and a reason, for a second SIGINT, and for a
    launcher that ended `orphan_limit_s` ago.
    """

    def __init__(
        self,
        stop_file: Path | None,
        time_limit_s: float | None,
        launcher: Launcher | None,
        abort: Callable[[int, str], None],
        orphan_limit_s: float = _ORPHAN_LIMIT_S,
        poll_s: float = 1.0,
    ) -> None:
        self._stop_file, self._launcher, self._abort = stop_file, launcher, abort
        self._orphan_limit_s, self._poll_s = orphan_limit_s, poll_s
        self._deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        self._orphaned: float | None = None
        self._interrupted: float | None = None
        self.reason = 0
        """Index of REASONS; 0: none."""
        self._pipe = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="fastdeit-stop", daemon=True)
        self._handlers: dict[int, object] = {}
        self._wakeup: int | None = None

    def start(self) -> None:
        if threading.current_thread() is threading.main_thread():
            os.set_blocking(self._pipe[1], False)
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            for number in _SIGNALS:
                self._install_handler(number)
        self._thread.start()

    def _install_handler(self, number: int) -> None:
        """Has the thread get a signal, unless it is ignored, as nohup has it."""
        if signal.getsignal(number) is not signal.SIG_IGN:
            self._handlers[number] = signal.signal(number, lambda *_: None)
            signal.siginterrupt(number, False)

    def close(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._wakeup)
        if self._thread.is_alive():
            os.write(self._pipe[1], b"\0")  # no signal has this number
            self._thread.join()
        for descriptor in self._pipe:
            os.close(descriptor)

    def request(self, reason: str) -> None:
        self.reason = max(self.reason, REASONS.index(reason))

    def _watch(self) -> None:
        while True:
            ready, *_ = select.select(self._pipe[:1], (), (), self._poll_s)
            numbers = os.read(self._pipe[0], 64) if ready else b""
            if 0 in numbers:
                return
            for number in numbers:
                self._on_signal(number)
            self._poll()

    def _on_signal(self, number: int) -> None:
        if number not in _SIGNALS:
            return
        self.request(signal.Signals(number).name)
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is None:
                self._interrupted = now
            elif now - self._interrupted > _AGAIN_S:
                self._abort(INTERRUPTED, "interrupted twice")

    def _poll(self) -> None:
        now = time.monotonic()
        if self._deadline is not None and now > self._deadline:
            self.request("--time-limit")
        if self._stop_file is not None and self._stop_file.exists():
            self.request("the file `stop`")
        if self._launcher is not None and self._launcher.has_died():
            self.request("the launcher has ended")
            self._orphaned = now if self._orphaned is None else self._orphaned
            if now - self._orphaned > self._orphan_limit_s:
                self._abort(1, f"the launcher ended {self._orphan_limit_s:.0f} s ago")
