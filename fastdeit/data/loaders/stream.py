"""Numbered batches out of a DALI pipeline, in any order; an image that fails does not end them.

DALI loses its whole batch to one bad file, does not name the file, and cannot continue. So the
batch's images are checked one by one, the bad ones are excluded from the run, and a new pipeline
starts at the same batch.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from nvidia.dali import Pipeline

from fastdeit.data.formats.check import raise_own_fault
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.graphs.pipeline import Source, decode_alone
from fastdeit.data.index import Index
from fastdeit.data.quarantine import Quarantine

_NAMED = 10  # files that an error names
_ATTEMPTS = 4  # to make a batch, before the run fails
_T = TypeVar("_T")
_Images = TypeVar("_Images")


class Stream(Generic[_T, _Images]):
    """Numbered batches out of one DALI pipeline: prefetched in order, or after a jump to a number.

    plan: a function from a number to a value that is returned with the images, the rows of the
    index to read, and the arrays that the graph takes. build: a function from a source, which gives
    the images' sizes, to a pipeline. take: a function from DALI's output and that value to the
    images. quarantine: receives images that fail; the batch is then made again without them.
    """

    def __init__(
        self,
        index: Index,
        plan: Callable[[int], tuple[_T, np.ndarray, tuple[np.ndarray, ...]]],
        build: Callable[[Source], Pipeline],
        take: Callable[[Any, _T], _Images],
        quarantine: Quarantine,
    ) -> None:
        self._index = index
        self._plan = plan
        self._build = build
        self._quarantine = quarantine
        self._take = take
        self._closed = False
        self._start(0)

    def _start(self, number: int) -> None:
        """Start a new pipeline, whose first batch is `number`."""
        self._shift = number  # number of a batch - DALI's number of the iteration
        self._generated = 0
        ahead: deque[_InFlight[_T]] = deque()
        self._ahead = ahead
        # a pipeline refers to its source, and so to what it reads in place, until its threads have
        # stopped, which is when Python has collected the pipeline
        self._pipeline: Pipeline | None = self._build(lambda i: self._feed_next(i, ahead))

    def _feed_next(self, iteration: int, ahead: deque["_InFlight[_T]"]) -> tuple[Any, ...]:
        """Return the input of DALI's next batch; DALI calls it, in order, inside `get`."""
        number = iteration + self._shift
        self._generated = iteration + 1
        kept, rows, arrays = self._plan(number)
        fed = (_feed(self._index, rows), self._index.sizes[rows], *arrays)
        ahead.append(_InFlight(number, kept, rows, fed))
        return fed

    def get(self, number: int) -> tuple[_Images, _T]:
        """Return the images of batch `number`, and the value that `plan` gave for it.

        The host waits until DALI has made the images, also on a GPU, and meanwhile plans and feeds
        a later batch. Raises DataError where the quarantine does, RuntimeError for a batch that
        fails though each of its images is good.
        """
        unexplained = 0  # failures in a row for which no bad image was found
        while True:
            try:
                output, kept = self._get(number)
            except RuntimeError as error:
                if self._closed or not self._ahead:
                    raise
                found = self._recover(number, unexplained, error)
                # the image that replaces a bad one may be bad too: then the count starts at 0 again
                unexplained = 0 if found else unexplained + 1
            else:
                return self._take(output, kept), kept

    def _get(self, number: int) -> tuple[Any, _T]:
        """Return DALI's output for batch `number`, and the value that `plan` gave for it."""
        if self._closed:
            raise RuntimeError("the loader is closed")
        assert self._pipeline is not None
        if all(number != batch.number for batch in self._ahead):
            # a jump; batches that are in the queue already are dropped below
            self._shift = number - self._generated
        while True:
            # without a stream `run` waits for the images, so nothing reads `fed` any more when
            # this drops the batch
            (output,) = self._pipeline.run()
            batch = self._ahead.popleft()
            if batch.number == number:
                return output, batch.kept

    def _recover(self, number: int, unexplained: int, error: RuntimeError) -> bool:
        """Exclude the images that made the oldest batch in the queue fail, and start again at
        `number`; return True if there were any.

        unexplained: how often this batch failed before without a bad image.
        """
        rows = np.unique(self._ahead[0].rows)
        # first, Pillow reads the files
        faults = self._quarantine.diagnose(rows)
        # a failure of the storage may be short, so the batch is made again after a pause; at the
        # last attempt but one DALI decodes each image alone, and at the last the run fails
        if not faults and unexplained == _ATTEMPTS - 2:
            faults = self._decode_each(rows)
        if not faults and unexplained == _ATTEMPTS - 1:
            names = "\n  ".join(self._index.name(row) for row in rows[:_NAMED])
            raise RuntimeError(
                f"a batch fails, though each of its {len(rows)} images decodes alone:\n  {names}"
            ) from error
        if faults:
            self._quarantine.add(faults)
        else:
            self._quarantine.wait(unexplained)
        self._start(number)  # after a failure DALI calls a pipeline invalid
        return bool(faults)

    def _decode_each(self, rows: np.ndarray) -> dict[int, str]:
        """Return DALI's message for each image that it cannot decode alone, though Pillow can."""
        faults = {}
        for row in rows.tolist():
            try:
                decode_alone(_feed(self._index, np.array([row])), self._index.feeds_paths)
            except RuntimeError as error:
                faults[row] = " ".join(str(error).split())[-200:]
        return faults

    def stop(self) -> None:
        """Make no further attempt at a batch; another thread may be in `get`."""
        self._closed = True

    def restart(self) -> None:
        """Drop the batches that were planned ahead."""
        self._start(0)

    def close(self) -> None:
        """Stop DALI's threads; no thread may be in `get`."""
        self.stop()
        self._pipeline = None
        self._ahead = deque()


@dataclass(frozen=True)
class _InFlight(Generic[_T]):
    """A batch in DALI's queue; `fed` refers to the memory that DALI reads in place."""

    number: int
    kept: _T
    rows: np.ndarray
    fed: tuple[Any, ...]


def _feed(index: Index, rows: np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
    """Return `Index.encoded`, with an empty image for each that cannot be opened: the decoder fails
    on it as on a damaged one."""
    try:
        return index.encoded(rows)
    except OSError as error:
        raise_own_fault(error)
        return [_feed_one(index, row) for row in rows]


def _feed_one(index: Index, row: int) -> np.ndarray:
    try:
        return index.encoded(np.array([row]))[0]
    except OSError as error:
        raise_own_fault(error)
        return np.zeros(1, np.uint8)


def options_of(options: PipelineOptions, index: Index, batch_size: int) -> PipelineOptions:
    """Return the options with what `Stream` feeds: paths or encoded images, and their sizes."""
    return dataclasses.replace(
        options, batch_size=batch_size, feeds_paths=index.feeds_paths, knows_sizes=True
    )
