"""The images of an evaluation, each once over all ranks, as batches in torch."""

import ctypes
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fastdeit.data.device.transfer import to_device_of
from fastdeit.data.graphs.eval_crop import EvalCrop
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.graphs.pipeline import build_eval_pipeline, pack_eval
from fastdeit.data.index import Index
from fastdeit.data.loaders.ahead import ReadAhead
from fastdeit.data.loaders.packed import take_tensor
from fastdeit.data.loaders.stream import Stream, options_of
from fastdeit.data.quarantine import Quarantine

PADDING = -1
"""The label of the rows that fill up an evaluation batch; they are not samples."""


@dataclass(frozen=True)
class EvalBatch:
    """One batch of evaluation; rows whose label is PADDING do not count."""

    images: torch.Tensor
    """(B, 3, H, W) as `Batch.images`."""
    labels: torch.Tensor
    """int64 (B,)."""
    image_index: torch.Tensor
    """int64 (B,) on the CPU: rows of the index."""


class EvalLoader:
    """Batches with every image of the index once over all ranks, resized and cropped, in order.

    Rank r of W takes the rows r, r + W, ... Every rank yields the same number of batches of
    `batch_size` rows; rows that are missing, or in the quarantine, are replaced by rows labelled
    PADDING. input_size: side of the images, in pixels; crop_pct, interpolation, crop_mode: see
    `EvalCrop`. Raises ValueError, which names the argument, for what the backend cannot do.
    Attributes: quarantine, whose `step` the caller sets.
    """

    def __init__(
        self,
        index: Index,
        options: PipelineOptions,
        *,
        batch_size: int,
        input_size: int,
        crop_pct: float,
        interpolation: str = "bicubic",
        crop_mode: str = "center",
        rank: int = 0,
        world_size: int = 1,
        quarantine: Quarantine | None = None,
    ) -> None:
        self._index = index
        self._batch_size = batch_size
        self._crop = EvalCrop(input_size, crop_pct, interpolation, crop_mode)
        self._crop.check(options.backend)
        self._rank = rank
        self._world_size = world_size
        self._batches = -(-len(index) // (batch_size * world_size))
        self._next_pass = 0
        # an empty quarantine is false
        self.quarantine = Quarantine(index) if quarantine is None else quarantine
        if options.uses_kernels:
            # they have neither its filters nor its padding
            options = dataclasses.replace(options, uses_kernels=False, decoder="cpu")
        self.options = options_of(options, index, batch_size)
        self._stream = Stream(
            index,
            self.plan_batch,
            lambda source: build_eval_pipeline(source, self._crop, self.options),
            take_tensor,
            self.quarantine,
        )
        self._ahead = ReadAhead(self._make_batch, self.options.torch_device, options.read_ahead)

    def __len__(self) -> int:
        """Return the number of batches in one pass over the images."""
        return self._batches

    def __iter__(self) -> Iterator[EvalBatch]:
        first = self._next_pass * self._batches
        self._next_pass += 1
        last = first + self._batches - 1
        for number in range(first, last + 1):
            yield self._ahead.get(number, number + 1 if number < last else None)
        _release_memory()

    def _make_batch(self, number: int) -> EvalBatch:
        images, (rows, real) = self._stream.get(number)
        labels = np.where(real, self._index.labels[rows], PADDING)
        return EvalBatch(images, to_device_of(images, labels)[0], torch.from_numpy(rows))

    def close(self) -> None:
        """End all threads after the batch that is being made; batches that were yielded stay
        valid."""
        self._stream.stop()
        self._ahead.close()
        self._stream.close()

    def plan_batch(
        self, number: int
    ) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, tuple[np.ndarray, ...]]:
        """Plan a batch for `Stream`: (the rows, whether each is an image of its own); the rows; the
        arrays that the graph takes."""
        place = (number % self._batches) * self._batch_size + np.arange(self._batch_size)
        rows = place * self._world_size + self._rank
        bad = self.quarantine.rows
        real = (rows < len(self._index)) & ~np.isin(rows, bad)
        # the first good image stands in for a row that is not real
        rows = np.where(real, rows, np.setdiff1d(np.arange(len(bad) + 1), bad)[0])
        arrays = pack_eval(self._index.sizes[rows], self._crop, self.options)
        return (rows, real), rows, arrays


def _release_memory() -> None:
    """Return freed memory to the system: images differ in size, so the memory that the C library
    reserves for them grows over hours."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's
        libc.malloc_trim(0)
