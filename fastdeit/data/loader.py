"""From the plan and the index to batches in torch: DALI runs ahead, and its memory is handed over without a copy.

A loader asks the plan for every micro-batch by its number in the run, so it keeps no state that a checkpoint would need: any
step of any epoch can be asked for, and going on in order (over the end of an epoch too) keeps DALI's queue full.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from nvidia.dali import Pipeline

from fastdeit.data.index import Index, check_file
from fastdeit.data.pipeline import (
    PipelineOptions,
    Source,
    build_eval_pipeline,
    build_train_pipeline,
    centre_windows,
    pack_draws,
)
from fastdeit.plan import Draws, Plan

PADDING = -1
"""Label of the rows that fill an evaluation batch up; they are no samples."""

_NAMED = 10  # files listed in an error
_T = TypeVar("_T")


@dataclass(frozen=True)
class Batch:
    """One micro-batch of training; the partner of row i is row i ^ 1. Every tensor is on the loader's device."""

    images: torch.Tensor
    """(B, 3, H, W) normalised and erased: float32 on a CPU, float16 on a GPU."""
    labels: torch.Tensor
    """int64 (B,)."""
    lam: torch.Tensor
    """float32 (B,): share of the sample itself."""
    box: torch.Tensor
    """int32 (B, 4): y0, x0, y1, x1 taken from the partner; zeros: blended by `lam`."""
    keep: torch.Tensor
    """bool (B, depth, 2): DropPath's keep bits of the attention and the MLP branch."""
    ordinals: torch.Tensor
    """int64 (B,): places in the epoch's order."""


@dataclass(frozen=True)
class EvalBatch:
    """One batch of evaluation; rows whose label is PADDING are to be left out."""

    images: torch.Tensor
    """(B, 3, H, W) as `Batch.images`."""
    labels: torch.Tensor
    """int64 (B,)."""
    rows: torch.Tensor
    """int64 (B,): rows of the index."""


class _Stream(Generic[_T]):
    """Numbered batches out of one DALI pipeline: in order they are prefetched, any other number is a jump.

    plan: from a number to what is kept beside the images, and the rows of the index to read. arrays: what the graph takes.
    """

    def __init__(
        self,
        index: Index,
        plan: Callable[[int], tuple[_T, np.ndarray]],
        rows: Callable[[_T], tuple[np.ndarray, ...]],
        build: Callable[[Source], Pipeline],
    ) -> None:
        self._index, self._plan, self._rows = index, plan, rows
        self._shift = self._generated = 0
        self._ahead: deque[tuple[int, _T, np.ndarray]] = deque()
        self._pipeline: Pipeline | None = build(self._source)

    def _source(self, iteration: int) -> tuple[Any, ...]:
        """Called by DALI, in order, from within `get`."""
        number = iteration + self._shift
        self._generated = iteration + 1
        kept, images = self._plan(number)
        self._ahead.append((number, kept, images))
        return self._index.path_bytes(images), *self._rows(kept)

    def get(self, number: int) -> tuple[torch.Tensor, _T]:
        """The images of batch `number`, sharing DALI's memory, and what was kept beside them."""
        if all(number != ahead for ahead, _, _ in self._ahead):
            self._shift = number - self._generated  # what is in the queue already is thrown away below
        while True:
            images = self._run()
            ran, kept, _ = self._ahead.popleft()
            if ran == number:
                return images, kept

    def _run(self) -> torch.Tensor:
        if self._pipeline is None:
            raise RuntimeError("the loader is closed")
        try:
            (images,) = self._pipeline.run()
        except RuntimeError as error:
            raise RuntimeError(self._explain()) from error
        return torch.from_dlpack(images.as_tensor())

    def _explain(self) -> str:
        """Which files of the batches in the queue are at fault: DALI's own message does not say."""
        rows = np.unique(np.concatenate([images for _, _, images in self._ahead]))
        faults = [f"{self._index.path(row)}: {fault}" for row in rows if (fault := self._fault(row))]
        listed = faults or [f"one of {len(rows)} files, each of which decodes alone:", *map(str, map(self._index.path, rows))]
        return "\n  ".join(["a batch could not be read or decoded:", *listed[:_NAMED]])

    def _fault(self, row: int) -> str | None:
        checked, indexed = check_file(self._index.path(row)), tuple(self._index.sizes[row].tolist())
        if isinstance(checked, str):
            return checked
        return None if checked == indexed else f"is {checked} high and wide, the index has {indexed}: was it replaced?"

    def close(self) -> None:
        self._pipeline = None
        self._ahead.clear()


@dataclass(frozen=True)
class _Planned:
    epoch: int
    ordinals: np.ndarray
    draws: Draws


class TrainLoader:
    """The training samples of one rank as micro-batches, in the plan's order.

    batch_size: of all ranks together; micro_batch: of this device, one forward pass. drop_path: each block's rate of
    DropPath. device: "cpu" or "gpu". mean, std: of the three channels, for values in 0..1.
    Raises ValueError when the sizes do not divide, or the data set is smaller than a batch.
    """

    def __init__(
        self,
        index: Index,
        plan: Plan,
        *,
        batch_size: int,
        micro_batch: int,
        mean: Sequence[float],
        std: Sequence[float],
        rank: int = 0,
        world_size: int = 1,
        device: str = "cpu",
        drop_path: Sequence[float] = (),
        num_threads: int = 2,
        prefetch: int = 2,
        device_id: int | None = None,
    ) -> None:
        self.steps_per_epoch = plan.steps_per_epoch(batch_size)
        self.micro_steps = _micro_steps(batch_size, micro_batch, world_size)
        self._index, self._plan, self._drop_path = index, plan, tuple(drop_path)
        self._batch_size, self._micro_batch, self._rank, self._world_size = batch_size, micro_batch, rank, world_size
        options = PipelineOptions(micro_batch, mean, std, device, device_id, num_threads, prefetch)
        self._stream = _Stream(
            index,
            self._planned,
            lambda planned: pack_draws(planned.draws, plan.spec),
            lambda source: build_train_pipeline(source, plan.spec, options),
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The micro-batches of an epoch from step `first_step` on: (steps_per_epoch - first_step) * micro_steps of them."""
        per_epoch = self.steps_per_epoch * self.micro_steps
        for number in range(epoch * per_epoch + first_step * self.micro_steps, (epoch + 1) * per_epoch):
            yield self._batch(*self._stream.get(number))

    def close(self) -> None:
        """Stop DALI's threads; the batches handed out stay valid."""
        self._stream.close()

    def _planned(self, number: int) -> tuple[_Planned, np.ndarray]:
        epoch, rest = divmod(number, self.steps_per_epoch * self.micro_steps)
        step, micro = divmod(rest, self.micro_steps)
        ordinals = self._plan.ordinals(step, self._batch_size, self._rank, self._world_size)
        ordinals = ordinals[micro * self._micro_batch : (micro + 1) * self._micro_batch]
        draws = self._plan.draw(epoch, ordinals)
        return _Planned(epoch, ordinals, draws), draws.image

    def _batch(self, images: torch.Tensor, planned: _Planned) -> Batch:
        draws = planned.draws
        keep = self._plan.keep(planned.epoch, planned.ordinals, self._drop_path)
        small = (self._index.labels[draws.image], draws.lam, draws.box, keep, planned.ordinals)
        return Batch(images, *(_beside(images, array) for array in small))


class EvalLoader:
    """Every image of the index once, over all ranks: resized, centre-cropped, in a fixed order.

    Rank r of W takes the rows r, r + W, ... Every rank yields the same number of batches of `batch_size` rows; what is
    missing is filled up with rows labelled PADDING. crop_pct: input_size / the short side that the image is resized to.
    """

    def __init__(
        self,
        index: Index,
        *,
        batch_size: int,
        input_size: int,
        crop_pct: float,
        mean: Sequence[float],
        std: Sequence[float],
        rank: int = 0,
        world_size: int = 1,
        device: str = "cpu",
        num_threads: int = 2,
        prefetch: int = 2,
        device_id: int | None = None,
    ) -> None:
        self._index, self._batch_size, self._rank, self._world_size = index, batch_size, rank, world_size
        self._windows = centre_windows(index.sizes, input_size, crop_pct)
        self._batches = -(-len(index) // (batch_size * world_size))
        self._next_pass = 0
        options = PipelineOptions(batch_size, mean, std, device, device_id, num_threads, prefetch)
        self._stream = _Stream(
            index,
            self._planned,
            lambda rows: (self._windows[np.minimum(rows, len(index) - 1)],),
            lambda source: build_eval_pipeline(source, input_size, options),
        )

    def __len__(self) -> int:
        """Batches in a pass."""
        return self._batches

    def __iter__(self) -> Iterator[EvalBatch]:
        first, self._next_pass = self._next_pass * self._batches, self._next_pass + 1
        for number in range(first, first + self._batches):
            images, rows = self._stream.get(number)
            clipped = np.minimum(rows, len(self._index) - 1)
            labels = np.where(rows < len(self._index), self._index.labels[clipped], PADDING)
            yield EvalBatch(images, _beside(images, labels), _beside(images, clipped))

    def close(self) -> None:
        """Stop DALI's threads; the batches handed out stay valid."""
        self._stream.close()

    def _planned(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        place = (number % self._batches) * self._batch_size + np.arange(self._batch_size)
        rows = place * self._world_size + self._rank
        return rows, np.minimum(rows, len(self._index) - 1)


def _micro_steps(batch_size: int, micro_batch: int, world_size: int) -> int:
    if batch_size % (2 * world_size):
        raise ValueError(
            f"batch_size: got {batch_size}, allowed is a multiple of {2 * world_size} (pairs on {world_size} ranks)"
        )
    share = batch_size // world_size
    if micro_batch < 2 or micro_batch % 2 or share % micro_batch:
        allowed = [size for size in range(2, share + 1, 2) if share % size == 0]
        raise ValueError(f"micro_batch: got {micro_batch}, allowed is an even divisor of {share}: {allowed}")
    return share // micro_batch


def _beside(images: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    """A small array on the device of the images, without waiting for the GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(images.device, non_blocking=True) if images.is_cuda else tensor
