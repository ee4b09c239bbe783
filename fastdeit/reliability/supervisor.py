"""Supervision of one process of a run: stop requests agreed across ranks, the watchdog, failure
files.

A request only sets a flag. The flag of every rank goes into a vote after each step and each batch
of evaluation, whose result is read at the next one. So the loop waits for no device, and all ranks
leave it at the same place with `StopAgreed`. A thread takes the signals, so that a process which
waits inside a library for another one gets them, too.
"""

import os
import time
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TypeVar

from fastdeit.distributed.collectives import AsyncMax
from fastdeit.distributed.environment import is_alone
from fastdeit.distributed.exits import hard_exit, peer_exited
from fastdeit.reliability.failures import format_exception, format_stacks, write_failure
from fastdeit.reliability.launcher import Launcher
from fastdeit.reliability.stop_requests import INTERRUPTED, REASONS, StopRequests
from fastdeit.reliability.watchdog import STARTUP, Watchdog, dump_stacks
from fastdeit.storage.run_folder import RunFolder

Item = TypeVar("Item")

# a rank that hangs makes the others hang: their watchdogs expire at nearly the same time, and each
# has to finish its report before the launcher ends them all
_REPORT_S = 3.0


class StopAgreed(Exception):
    """Exception that ends a loop where all ranks have agreed to stop."""


class Supervisor:
    """Supervision of one process, from before it joins the others to its end.

    limits: seconds without progress by section, as `Watchdog` takes them. Used as a context: an
    exception that leaves it is written to a failure file. If the process is one of several, it then
    ends at once, for the others wait for it. owns_process: False where the process does more than
    this run: then no signal is taken, no watchdog runs, and an exception is not handled; requests
    by file and time limit remain.
    """

    def __init__(
        self,
        folder: RunFolder,
        limits: Mapping[str, float],
        time_limit_s: float | None,
        launcher: Launcher | None,
        owns_process: bool = True,
    ) -> None:
        self._folder = folder
        self._owns_process = owns_process
        self._rank = int(os.environ.get("RANK", 0))
        self._alone = is_alone()
        stop_file = folder.stop_request if self._rank == 0 else None
        self.requests = StopRequests(stop_file, time_limit_s, launcher, self._abort)
        self._watchdog = Watchdog(limits, self._expire)
        self._votes: AsyncMax | None = None
        self._reported = False

    def beat(self, section: str, step: int) -> None:
        """Report that `section` of optimizer step `step` begins, or makes progress."""
        self._watchdog.beat(section, step)

    def proceed(self) -> bool:
        """Report progress before the first step; return False if this rank is asked to stop."""
        self.beat(STARTUP, 0)
        return not self.requests.reason

    def check(self) -> None:
        """Vote; raise StopAgreed if any rank was asked to stop at the call before this one. A
        collective."""
        if self._votes is None:
            self._votes = AsyncMax()
        self._follow(self._votes.submit(self.requests.reason))

    def check_now(self) -> None:
        """Raise StopAgreed if any rank is asked to stop; wait for the other ranks. A collective."""
        self._follow(AsyncMax.now(self.requests.reason))

    def _follow(self, reason: int) -> None:
        if reason:
            raise StopAgreed(REASONS[reason])

    def timed(self, section: str, step: int, batches: Iterator[Item]) -> Iterator[Item]:
        """Yield the batches; the wait for each is the section `data`, the use of it `section`."""
        while True:
            self.beat("data", step)
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.beat(section, step)
            yield batch
            del batch  # so that its memory is free while the next one is waited for

    def fail(self, error: BaseException) -> None:
        """Write this rank's failure file, unless the watchdog has: then that was the cause."""
        if self._reported:
            return
        line, details = format_exception(error)
        self._write_failure(self._watchdog.section, self._watchdog.step, line, details)

    def exit(self, code: int) -> int:
        """Return the exit code of a process that is alone; end one of several here.

        With a usual exit it would wait for the others.
        """
        return code if self._alone else hard_exit(code)

    def _expire(self, section: str, step: int, limit: float) -> None:
        flag = f"--{section}-limit, or --{STARTUP}-limit in its first step"
        self._report(section, step, f"no progress for {limit:g} s in {section} ({flag})")
        time.sleep(_REPORT_S)
        os._exit(1)

    def _abort(self, code: int, reason: str) -> None:
        if code == INTERRUPTED:  # the user's wish is no failure
            os.write(2, f"fastdeit: rank {self._rank}: {reason}\n".encode())
        else:
            self._report(self._watchdog.section, self._watchdog.step, reason)
        os._exit(code)

    def _report(self, section: str, step: int, reason: str) -> None:
        """Write the reason and the stacks of all threads to stderr and to the failure file."""
        self._reported = True
        line = f"fastdeit: rank {self._rank}, after step {step}, in {section}: {reason}\n"
        os.write(2, line.encode(errors="backslashreplace"))
        dump_stacks()
        self._write_failure(section, step, reason, format_stacks())

    def _write_failure(self, section: str, step: int, error: str, details: str) -> None:
        write_failure(self._folder, self._rank, section, step, error, details)

    def __enter__(self) -> "Supervisor":
        if self._owns_process:
            self._watchdog.start()
        return self

    def listen(self) -> None:
        """Take signals as requests from here on; until then, while the ranks join, they end the
        process."""
        self.requests.start(with_signals=self._owns_process)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and self._owns_process:
            if peer_exited():
                self.exit(2)
            self.fail(error)
            if not self._alone:
                traceback.print_exception(error)
                self.exit(1)
        self._watchdog.close()
        self.requests.close()
