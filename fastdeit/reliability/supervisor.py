"""What watches over a process of a run: requests to stop, which all ranks follow at one step; the
watchdog; failure files.

A request only sets a flag. The flag of every rank goes into a vote after each step and each batch
of evaluation, whose result is read at the next one: the loop waits for no device, and all ranks
leave it at the same place with `StopAgreed`. Signals are taken by a thread, so that a process which
waits for another one inside a library hears them too.
"""

import os
import time
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TypeVar

from fastdeit.distributed.collectives import AsyncMax
from fastdeit.distributed.exits import hard_exit, peer_exited
from fastdeit.reliability.failures import format_exception, format_stacks, write_failure
from fastdeit.reliability.launcher import Launcher
from fastdeit.reliability.stop_requests import INTERRUPTED, REASONS, StopRequests
from fastdeit.reliability.watchdog import STARTUP, Watchdog, dump_stacks
from fastdeit.storage.run_folder import RunFolder

Item = TypeVar("Item")


_LAST_WORDS_S = (
    3.0  # the others wait for a rank that hangs: their watchdogs bark at nearly the same time
)


class StopAgreed(Exception):
    """All ranks have agreed to stop here."""


class Supervisor:
    """Over one process, from before it joins the others to its end.

    limits: seconds without progress by section, as `Watchdog` takes them. Used as a context: an
    exception that leaves it is written to a failure file, and ends at once a process that is one of
    several, for which the others wait.
    """

    def __init__(
        self,
        folder: RunFolder,
        limits: Mapping[str, float],
        time_limit_s: float | None,
        launcher: Launcher | None,
    ) -> None:
        self._folder, self._rank = folder, int(os.environ.get("RANK", 0))
        self._alone = os.environ.get("WORLD_SIZE", "1") == "1"
        self._stop_file = folder.stop_request if self._rank == 0 else None
        self.requests = StopRequests(self._stop_file, time_limit_s, launcher, self._abort)
        self._watchdog = Watchdog(limits, self._stalled)
        self._ballot: AsyncMax | None = None
        self._told = False

    def beat(self, section: str, step: int) -> None:
        """The run begins `section` of optimizer step `step`, or gets on within it."""
        self._watchdog.beat(section, step)

    def check(self) -> None:
        """Votes; raises StopAgreed if at the call before this one any rank was asked to stop. A
        collective."""
        if self._ballot is None:
            self._ballot = AsyncMax()
        self._follow(self._ballot.submit(self.requests.reason))

    def check_now(self) -> None:
        """As `check`, of this very call; waits for the other ranks."""
        self._follow(AsyncMax.now(self.requests.reason))

    def _follow(self, reason: int) -> None:
        if reason:
            raise StopAgreed(REASONS[reason])

    def timed(self, section: str, step: int, batches: Iterator[Item]) -> Iterator[Item]:
        """The same batches; waiting for each is the section `data`, what is done with it is
        `section`."""
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
                *format_exception(error),
            )

    def exit(self, code: int) -> int:
        """The exit code of a rank that fails alone. One of several ends here: on its way out it
        would wait for the others."""
        return code if self._alone else hard_exit(code)

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
        write_failure(self._folder, self._rank, section, step, reason, format_stacks())

    def __enter__(self) -> "Supervisor":
        self._watchdog.start()
        return self

    def listen(self) -> None:
        """From here on a signal is a request; until then, while the others are looked for, it ends
        the process."""
        self.requests.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            if peer_exited():
                self.exit(2)
            self.fail(error)
            if not self._alone:
                traceback.print_exception(error)
                self.exit(1)
        self._watchdog.close()
        self.requests.close()
