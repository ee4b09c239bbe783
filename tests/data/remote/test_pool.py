"""The end of the threads that fetch."""

from pathlib import Path
from typing import Any

import pytest

from fastdeit.data.remote.pool import TransferPool
from fastdeit.data.remote.source import FetchError


class FailingThread:
    """A thread that still runs when `wait` looks for an error, and fails when it looks for its
    end."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def join(self, seconds: float) -> None:
        pass

    def is_alive(self) -> bool:
        self.pool._error = FetchError("the last file")
        return False


def test_error_of_the_last_thread_is_raised_at_its_end(tmp_path: Path) -> None:
    nothing: Any = None
    pool: Any = TransferPool(nothing, [], tmp_path, nothing, workers=0)
    pool._threads = [FailingThread(pool)]
    with pytest.raises(FetchError, match="the last file"):
        pool.wait(0)
