"""Numbered batches made in a thread, beside the step that uses the batch before.

Between two steps the caller takes a batch that is ready: the thread has planned and fed it, called
DALI's `run` and copied the batch to the device. For some of that time it holds Python's lock, and
the caller can launch nothing; benchmarks/LOG.md has what that costs. It is a thread and not a
process, as a batch would have to be copied from one process to the other.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from fastdeit.data.device.side_stream import SideStream

Made = TypeVar("Made")


@dataclass(frozen=True)
class _Task(Generic[Made]):
    """A batch that the thread makes; its event follows the last launch on a GPU."""

    number: int
    future: Future[tuple[Made, torch.cuda.Event | None]]


class ReadAhead(Generic[Made]):
    """Batches by number: one is made in a thread while the caller uses the one before it.

    make: a function from a number to its batch, called once at a time. device: of the batches, as
    torch names it. enabled: whether there is a thread; without one, `get` makes the batch. The
    thread starts with the first batch and refers to this object only while it makes one, so it ends
    when the object is closed or collected; a process that exits waits for the batch that is being
    made.
    """

    def __init__(self, make: Callable[[int], Made], device: str, enabled: bool) -> None:
        self._make = make
        self._process = os.getpid()
        self._threads = ThreadPoolExecutor(1, "fastdeit-loader") if enabled else None
        self._stream = SideStream(torch.device(device if enabled else "cpu"))
        self._task: _Task[Made] | None = None

    def get(self, number: int, following: int | None) -> Made:
        """Return batch `number`; start the thread on batch `following`, unless that is None.

        Raises what `make` raises for this batch, with its traceback; an error in a batch that is
        never asked for is dropped. Raises RuntimeError in a forked process.
        """
        if self._threads is None:
            return self._make(number)
        if os.getpid() != self._process:
            raise RuntimeError("the loader's threads do not survive a fork: make it afterwards")
        task = self._take(number)
        batch, mark = task.future.result()
        if following is not None:
            self._task = self._start(following)
        self._stream.hand_over(batch, mark)
        return batch

    def _take(self, number: int) -> _Task[Made]:
        """Return the task of a batch; start it now if another batch was made ahead."""
        task = self._task
        if task is None or task.number != number:
            self.discard()
            task = self._start(number)
        self._task = None
        return task

    def _start(self, number: int) -> _Task[Made]:
        assert self._threads is not None
        return _Task(number, self._threads.submit(self._run, number))

    def _run(self, number: int) -> tuple[Made, torch.cuda.Event | None]:
        with self._stream.use():
            return self._make(number), self._stream.mark()

    def discard(self) -> None:
        """Drop the batch that was made ahead; wait for it if it is being made."""
        task = self._task
        self._task = None
        if task is not None and not task.future.cancel():
            task.future.exception()

    def close(self) -> None:
        """End the thread; wait for the batch that it makes."""
        self.discard()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
