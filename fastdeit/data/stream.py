"""Numbered batches out of a DALI pipeline, in any order, that go on when an image fails.

DALI loses its whole batch to one bad file, and says neither which it was nor that it can go on. So
the batch's images are looked at one by one, the bad ones leave the run, and the pipeline starts
again at the same batch.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from nvidia.dali import Pipeline

from fastdeit.data.index import Index
from fastdeit.data.pipeline import PipelineOptions, Source, decode_alone
from fastdeit.data.quarantine import Quarantine

_NAMED = 10  # files listed in an error
_ATTEMPTS = 4  # at a batch, before it is given up
ALIGNMENT = 16
"""Bytes: the widest load of a GPU thread, and what Triton compiles a kernel of its own for."""
_T = TypeVar("_T")


class Stream(Generic[_T]):
    """Numbered batches out of one DALI pipeline: in order they are prefetched, any other number is
    a jump.

    plan: from a number to what is kept beside the images, the rows of the index to read, and the
    arrays that the graph takes. build: a pipeline for a source that knows the images' sizes.
    quarantine: where images go that fail; the batch is then made again without them.
    """

    def __init__(
        self,
        index: Index,
        plan: Callable[[int], tuple[_T, np.ndarray, tuple[np.ndarray, ...]]],
        build: Callable[[Source], Pipeline],
        quarantine: Quarantine,
    ) -> None:
        self._index, self._plan, self._build, self._quarantine = index, plan, build, quarantine
        self._closed = False
        self._start(0)

    def _start(self, number: int) -> None:
        """A fresh pipeline, whose first batch is `number`."""
        self._shift, self._generated = number, 0
        self._ahead: deque[_InFlight[_T]] = deque()
        self._pipeline: Pipeline | None = self._build(self._source)

    def _source(self, iteration: int) -> tuple[Any, ...]:
        """Called by DALI, in order, from within `get`."""
        number = iteration + self._shift
        self._generated = iteration + 1
        kept, rows, arrays = self._plan(number)
        fed = (_feed(self._index, rows), self._index.sizes[rows], *arrays)
        self._ahead.append(_InFlight(number, kept, rows, fed))
        return fed

    def get(self, number: int) -> tuple[torch.Tensor, _T]:
        """The images of batch `number`, sharing DALI's memory, and what was kept beside them.

        The host waits until DALI has made them, on a GPU too, and plans and feeds a batch ahead
        meanwhile.

        Raises DataError where the quarantine does, RuntimeError for a batch that fails though each
        image of it is good.
        """
        in_vain = 0
        while True:
            try:
                return self._get(number)
            except RuntimeError as error:
                if self._closed or not self._ahead:
                    raise
                # what takes a bad image's place may be bad too
                in_vain = 0 if self._recover(number, in_vain, error) else in_vain + 1

    def _get(self, number: int) -> tuple[torch.Tensor, _T]:
        if self._closed:
            raise RuntimeError("the loader is closed")
        assert self._pipeline is not None
        if all(number != batch.number for batch in self._ahead):
            self._shift = (
                number - self._generated
            )  # what is in the queue already is thrown away below
        while True:
            # without a stream `run` waits for the images, so nothing reads `fed` any more when its
            # batch is dropped
            (images,) = self._pipeline.run()
            batch = self._ahead.popleft()
            if batch.number == number:
                return torch.from_dlpack(images.as_tensor()), batch.kept

    def _recover(self, number: int, in_vain: int, error: RuntimeError) -> bool:
        """Finds the images that made the oldest batch in the queue fail, and starts again without
        them; whether there were any.

        in_vain: how often the batch was made again though none was found.
        """
        rows = np.unique(self._ahead[0].rows)
        faults = self._quarantine.diagnose(rows)
        if not faults and in_vain == _ATTEMPTS - 2:
            faults = {int(row): fault for row in rows if (fault := self._fails_alone(int(row)))}
        if not faults and in_vain == _ATTEMPTS - 1:
            names = "\n  ".join(self._index.name(row) for row in rows[:_NAMED])
            raise RuntimeError(
                f"a batch fails, each of whose {len(rows)} images decodes alone:\n  {names}"
            ) from error
        if faults:
            self._quarantine.add(faults)
        else:
            self._quarantine.wait(in_vain)
        self._start(number)  # after a failure DALI calls a pipeline invalid
        return bool(faults)

    def _fails_alone(self, row: int) -> str | None:
        """What DALI says of an image that Pillow can read."""
        try:
            decode_alone(_feed(self._index, np.array([row])), self._index.feeds_paths)
        except RuntimeError as error:
            return " ".join(str(error).split())[-200:]
        return None

    def close(self) -> None:
        self._pipeline, self._closed = None, True
        self._ahead.clear()


@dataclass(frozen=True)
class _InFlight(Generic[_T]):
    """A batch in DALI's queue; `fed` keeps alive what DALI reads in place."""

    number: int
    kept: _T
    rows: np.ndarray
    fed: tuple[Any, ...]


def _feed(index: Index, rows: np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
    """As `Index.feed`, but an image that cannot be opened is an empty one, which fails in the
    decoder: one way for all."""
    try:
        return index.encoded(rows)
    except OSError:
        return [_feed_one(index, row) for row in rows]


def _feed_one(index: Index, row: int) -> np.ndarray:
    try:
        return index.encoded(np.array([row]))[0]
    except OSError:
        return np.zeros(1, np.uint8)


def options_of(options: PipelineOptions, index: Index, batch_size: int) -> PipelineOptions:
    """The same with what follows from the index and the batch, as `Stream` feeds them."""
    return dataclasses.replace(
        options, batch_size=batch_size, feeds_paths=index.feeds_paths, knows_sizes=True
    )


def to_device_of(images: torch.Tensor, *arrays: np.ndarray) -> list[torch.Tensor]:
    """Give small arrays as tensors on the device of the images: one copy to a GPU, none on a CPU."""
    if images.is_cuda:
        return send_together(arrays, images.device)
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def send_together(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Copy the arrays to `device` at once, as views of one block of memory whose starts are
    multiples of `ALIGNMENT` bytes.

    The host does not wait for the copy: torch's allocator of pinned memory gives the block out
    again only after the event that the copy leaves in its stream, so nothing has to hold on to it.
    """
    arrays = [np.ascontiguousarray(array) for array in arrays]
    starts = [
        0,
        *itertools.accumulate(-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays),
    ]
    staging = torch.empty(starts.pop(), dtype=torch.uint8, pin_memory=device.type == "cuda")
    host = staging.numpy()
    for start, array in zip(starts, arrays, strict=True):
        host[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    sent = staging.to(device, non_blocking=True)
    return [
        _seen_as(array, sent[start : start + array.nbytes])
        for start, array in zip(starts, arrays, strict=True)
    ]


def _seen_as(array: np.ndarray, memory: torch.Tensor) -> torch.Tensor:
    """See bytes with the shape and the dtype of an array."""
    return memory.view(torch.from_numpy(array).dtype).view(array.shape)
