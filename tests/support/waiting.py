"""Waiting in a test for what another thread or process does."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], limit_s: float = 30.0) -> None:
    """Wait until a condition is true; fail after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not true within {limit_s:g} s"
        time.sleep(0.01)
