"""Requests to stop this process: a signal, the time limit, a file, the death of the launcher."""

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
    "SIGUSR2",
    "SIGHUP",
    "SIGINT",
    "SIGTERM",
    "the launcher has ended",
)
"""The reasons to stop a run; ranks with several of them agree on the last one in this list."""
INTERRUPTED = 130
"""Exit code after SIGINT, as in a shell."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_ECHO_S = 1.0  # a launcher may pass on a SIGINT that the terminal has sent to all processes
_ORPHAN_LIMIT_S = 120.0
_CLOSE = 0  # no signal has this number


class SignalPipe:
    """The numbers of the signals that this process gets, through a pipe, so that a thread can read
    them while the main thread waits inside a library."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._handlers: dict[int, object] = {}
        self._wakeup: int | None = None

    def install(self) -> None:
        """Have the signals sent to the pipe. Only the main thread can; does nothing in others."""
        if threading.current_thread() is not threading.main_thread():
            return
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._install_handler(number)

    def _install_handler(self, number: int) -> None:
        """Replace the handler, unless the signal is ignored, as under nohup."""
        if signal.getsignal(number) is not signal.SIG_IGN:
            self._handlers[number] = signal.signal(number, lambda *_: None)
            signal.siginterrupt(number, False)

    def read(self, timeout_s: float) -> bytes:
        """Wait for signals; return their numbers, one byte each."""
        ready, *_ = select.select([self._reader], (), (), timeout_s)
        return os.read(self._reader, 64) if ready else b""

    def uninstall(self) -> None:
        """Restore the handlers, and have the reader get `_CLOSE`."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._wakeup)
        os.write(self._writer, bytes([_CLOSE]))

    def close(self) -> None:
        """Close both ends of the pipe."""
        os.close(self._reader)
        os.close(self._writer)


class StopRequests:
    """A thread that collects the requests to save and stop.

    stop_file: looked for each second; None: never. time_limit_s: seconds from now on. launcher: its
    death is a request. abort: called in the thread with an exit code and a reason, after a second
    SIGINT, and if the launcher died `orphan_limit_s` ago. Attributes: reason, an index of
    `REASONS`, 0 if there is none.
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
        self.reason = 0
        self._stop_file = stop_file
        self._deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        self._launcher = launcher
        self._abort = abort
        self._orphan_limit_s = orphan_limit_s
        self._orphan_since: float | None = None
        self._interrupted_at: float | None = None
        self._poll_s = poll_s
        self._signals = SignalPipe()
        self._thread = threading.Thread(target=self._watch, name="fastdeit-stop", daemon=True)

    def start(self, with_signals: bool = True) -> None:
        """Begin to collect; with_signals: signals, too, which then end nothing by themselves."""
        if with_signals:
            self._signals.install()
        self._thread.start()

    def close(self) -> None:
        """End the thread, and restore the handlers of signals."""
        self._signals.uninstall()
        if self._thread.is_alive():
            self._thread.join()
        self._signals.close()

    def request(self, reason: str) -> None:
        """Ask for a stop. reason: one of `REASONS`."""
        self.reason = max(self.reason, REASONS.index(reason))

    def _watch(self) -> None:
        while True:
            numbers = self._signals.read(self._poll_s)
            if _CLOSE in numbers:
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
            if self._interrupted_at is None:
                self._interrupted_at = now
            elif now - self._interrupted_at > _ECHO_S:
                self._abort(INTERRUPTED, "interrupted twice")

    def _poll(self) -> None:
        now = time.monotonic()
        if self._deadline is not None and now > self._deadline:
            self.request("--time-limit")
        if self._stop_file is not None and self._stop_file.exists():
            self.request("the file `stop`")
        if self._launcher is not None and self._launcher.has_died():
            self.request("the launcher has ended")
            if self._orphan_since is None:
                self._orphan_since = now
            if now - self._orphan_since > self._orphan_limit_s:
                self._abort(1, f"the launcher ended {self._orphan_limit_s:.0f} s ago")
