"""Loaders of a known cost, or that fail, for tests/benchmarks/loaders/test_process.py."""

import queue
import threading
import time
from collections.abc import Iterator

from benchmarks.loaders.case import Case, Started


def start_burning(case: Case) -> Started:
    """Start batches of `samples` images, each of which takes 10 ms of CPU time."""
    print("a library's message")
    return _burn(case.samples), []


def start_ahead(case: Case) -> Started:
    """Start the batches of `start_burning`, of which a thread makes two ahead."""
    ahead: queue.Queue[list[None]] = queue.Queue(maxsize=1)

    def make() -> None:
        for batch in _burn(case.samples):
            ahead.put(batch)

    threading.Thread(target=make, daemon=True).start()
    return iter(ahead.get, None), []


def start_failing(case: Case) -> Started:
    raise FileNotFoundError(case.root)


def _burn(samples: int) -> Iterator[list[None]]:
    while True:
        end = time.process_time() + 0.01 * samples
        while time.process_time() < end:
            pass
        yield [None] * samples
