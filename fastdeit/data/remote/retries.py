"""Repeated attempts after temporary faults, with fixed waits."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from fastdeit.data.remote.source import FetchStopped, Transient, Unreachable

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""The seconds before each further attempt, unless the source asks for another time."""
_NOTED_FROM = 3  # failures in a row
_POLL_S = 1.0
_log = logging.getLogger(__name__)

Result = TypeVar("Result")


def next_wait(fault: Transient, failures: int, what: str) -> float:
    """Return the seconds to wait after `failures` failures in a row, at least 1.

    what: the address, for the message. Raises Unreachable after the last attempt.
    """
    if failures > len(WAITS_S):
        raise Unreachable(f"{what}: {fault}; tried {failures} times")
    wait_s = WAITS_S[failures - 1] if fault.after_s is None else fault.after_s
    if failures >= _NOTED_FROM:
        _log.warning("%s: %s; tried again in %.0f s", what, fault, wait_s)
    return wait_s


def retry(
    action: Callable[[], Result], what: str = "", proceed: Callable[[], bool] = lambda: True
) -> Result:
    """Return the result of an action, which is repeated after temporary faults.

    what: the address, for messages; proceed: called before each attempt and every second of a wait.
    Raises FetchStopped once it returns False, Unreachable after the last attempt.
    """
    failures = 0
    require_proceed(proceed, what)
    while True:
        try:
            return action()
        except Transient as fault:
            failures += 1
            _wait(next_wait(fault, failures, what), proceed, what)


def _wait(seconds: float, proceed: Callable[[], bool], what: str) -> None:
    while seconds > 0:
        time.sleep(min(seconds, _POLL_S))
        seconds -= _POLL_S
        require_proceed(proceed, what)


def require_proceed(proceed: Callable[[], bool], what: str) -> None:
    """Raise FetchStopped if `proceed` returns False."""
    if not proceed():
        raise FetchStopped(f"{what}: stopped")
