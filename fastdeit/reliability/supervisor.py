"""What watches over a process of a run: requests to stop, which all ranks follow at one step; the watchdog; failure files.

A request only sets a flag. The flag of every rank goes into a vote after each step and each batch of evaluation, whose result
is read at the next one: the loop waits for no device, and all ranks leave it at the same place with `StopAgreed`. Signals are
taken by a thread, so that a process which waits for another one inside a library hears them too.
"""

import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from fastdeit.distributed.collectives import Ballot
from fastdeit.distributed.exits import leave, was_left
from fastdeit.reliability.failures import describe, stacks, write_failure
from fastdeit.reliability.launcher import LAUNCHER, Ancestors
from fastdeit.reliability.watchdog import STARTUP, Watchdog, dump_stacks

Item = TypeVar("Item")

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

STOP_FILE = "stop"
INTERRUPTED = 130  # the shell's code for SIGINT
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_AGAIN_S = 1.0  # launchers pass a signal on that the terminal has sent to all
_ORPHAN_LIMIT_S = 120.0
_LAST_WORDS_S = (
    3.0  # the others wait for a rank that hangs: their watchdogs bark at nearly the same time
)


class StopAgreed(Exception):
    """All ranks have agreed to stop here."""


class StopRequests:
    """Asks this process to save and stop: a signal, a time limit, a file, the end of the launcher.

    stop_file: looked for each second; None: never. time_limit_s: from now on. launcher: whose end counts. abort: called in a
    thread with an exit code and a reason, for a second SIGINT, and for a launcher that ended `orphan_limit_s` ago.
    """

    def __init__(
        self,
        stop_file: Path | None,
        time_limit_s: float | None,
        launcher: Ancestors | None,
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
                self._take(number)
        self._thread.start()

    def _take(self, number: int) -> None:
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
                self._signalled(number)
            self._look()

    def _signalled(self, number: int) -> None:
        if number not in _SIGNALS:
            return
        self.request(signal.Signals(number).name)
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is None:
                self._interrupted = now
            elif now - self._interrupted > _AGAIN_S:
                self._abort(INTERRUPTED, "interrupted twice")

    def _look(self) -> None:
        now = time.monotonic()
        if self._deadline is not None and now > self._deadline:
            self.request("--time-limit")
        if self._stop_file is not None and self._stop_file.exists():
            self.request("the file `stop`")
        if self._launcher is not None and self._launcher.gone():
            self.request("the launcher has ended")
            self._orphaned = now if self._orphaned is None else self._orphaned
            if now - self._orphaned > self._orphan_limit_s:
                self._abort(1, f"the launcher ended {self._orphan_limit_s:.0f} s ago")


class Supervisor:
    """Over one process, from before it joins the others to its end.

    limits: seconds without progress by section, as `Watchdog` takes them. Used as a context: an exception that leaves it is
    written to a failure file, and ends at once a process that is one of several, for which the others wait.
    """

    def __init__(
        self, folder: Path, limits: Mapping[str, float], time_limit_s: float | None
    ) -> None:
        self._folder, self._rank = folder, int(os.environ.get("RANK", 0))
        self._alone = os.environ.get("WORLD_SIZE", "1") == "1"
        self._stop_file = folder / STOP_FILE if self._rank == 0 else None
        self.requests = StopRequests(self._stop_file, time_limit_s, LAUNCHER, self._abort)
        self._watchdog = Watchdog(limits, self._stalled)
        self._ballot: Ballot | None = None
        self._told = False

    def beat(self, section: str, step: int) -> None:
        """The run begins `section` of optimizer step `step`, or gets on within it."""
        self._watchdog.beat(section, step)

    def check(self) -> None:
        """Votes; raises StopAgreed if at the call before this one any rank was asked to stop. A collective."""
        if self._ballot is None:
            self._ballot = Ballot()
        self._follow(self._ballot.cast(self.requests.reason))

    def check_now(self) -> None:
        """As `check`, of this very call; waits for the other ranks."""
        self._follow(Ballot.of(self.requests.reason))

    def _follow(self, reason: int) -> None:
        if reason:
            raise StopAgreed(REASONS[reason])

    def watched(self, section: str, step: int, batches: Iterator[Item]) -> Iterator[Item]:
        """The same batches; waiting for each is the section `data`, what is done with it is `section`."""
        while True:
            self.beat("data", step)
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.beat(section, step)
            yield batch

    def fail(self, error: BaseException) -> None:
        """Writes this rank's failure file; what the watchdog said before has brought this about."""
        if not self._told:
            write_failure(
                self._folder,
                self._rank,
                self._watchdog.section,
                self._watchdog.step,
                *describe(error),
            )

    def leave(self, code: int) -> int:
        """The exit code of a rank that fails alone. One of several ends here: on its way out it would wait for the others."""
        return code if self._alone else leave(code)

    def _stalled(self, section: str, step: int, limit: float) -> None:
        flag = f"--{section}-limit, or --{STARTUP}-limit in its first step"
        self._tell(section, step, f"no progress for {limit:g} s in {section} ({flag})")
        time.sleep(_LAST_WORDS_S)
        os._exit(1)

    def _abort(self, code: int, reason: str) -> None:
        if code == INTERRUPTED:  # a person's wish is no failure
            os.write(2, f"fastdeit: rank {self._rank}: {reason}\n".encode())
        else:
            self._tell(self._watchdog.section, self._watchdog.step, reason)
        os._exit(code)

    def _tell(self, section: str, step: int, reason: str) -> None:
        """Into the log, with the stacks of all threads, and into a failure file."""
        self._told = True
        os.write(
            2, f"fastdeit: rank {self._rank}, after step {step}, in {section}: {reason}\n".encode()
        )
        dump_stacks()
        write_failure(self._folder, self._rank, section, step, reason, stacks())

    def __enter__(self) -> "Supervisor":
        self._watchdog.start()
        return self

    def listen(self) -> None:
        """From here on a signal is a request; until then, while the others are looked for, it ends the process."""
        self.requests.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            if was_left():
                self.leave(2)
            self.fail(error)
            if not self._alone:
                traceback.print_exception(error)
                self.leave(1)
        self._watchdog.close()
        self.requests.close()
