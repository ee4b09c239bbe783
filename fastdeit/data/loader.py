"""From the plan and the index to batches in torch: DALI runs ahead, and its memory is handed over
without a copy.

A loader asks the plan for every micro-batch by its number in the run, so it keeps no state that a
checkpoint would need: any step of any epoch can be asked for, and going on in order (over the end
of an epoch too) keeps DALI's queue full.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from fastdeit.data.batch import Batch
from fastdeit.data.index import Index
from fastdeit.data.pipeline import (
    PipelineOptions,
    build_train_pipeline,
    pack_draws,
)
from fastdeit.data.quarantine import Quarantine
from fastdeit.data.stream import Stream, options_of, to_device_of
from fastdeit.plan.digest import add_digests, sample_digests
from fastdeit.plan.plan import Plan, SampleParams

_PLANNED_AT_ONCE = 4096  # samples


@dataclass(frozen=True)
class _Planned:
    """A run of samples, a row each: `SampleParams`, DropPath's bits, their hashes, and the rows
    that the graph takes."""

    ordinals: np.ndarray
    draws: SampleParams
    keep: np.ndarray
    digests: np.ndarray
    arrays: tuple[np.ndarray, ...]

    def part(self, rows: slice) -> "_Planned":
        fields = {
            field.name: getattr(self.draws, field.name)[rows]
            for field in dataclasses.fields(SampleParams)
        }
        arrays = tuple(array[rows] for array in self.arrays)
        return _Planned(
            self.ordinals[rows], SampleParams(**fields), self.keep[rows], self.digests[rows], arrays
        )


class Answers(Protocol):
    """A recorded teacher, as models/cache.py has it."""

    def records(
        self, epoch: int, ordinals: np.ndarray, labels: np.ndarray, lam: np.ndarray, version: int
    ) -> np.ndarray | None: ...


class TrainLoader:
    """The training samples of one rank as micro-batches, in the plan's order.

    batch_size: of all ranks together; micro_batch: of this device, one forward pass. ranks: those
    that this process stands for, one after the other in each step, instead of its own. drop_path:
    each block's rate of DropPath. quarantine: of this index; what it holds and what it comes to
    hold is excluded from the plan. period: after so many epochs the samples repeat (0: never;
    DropPath's bits never do). answers: the recorded teacher. Raises ValueError when the sizes do
    not divide, or the data set is smaller than a batch.
    """

    def __init__(
        self,
        index: Index,
        plan: Plan,
        options: PipelineOptions,
        *,
        batch_size: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        ranks: Sequence[int] = (),
        drop_path: Sequence[float] = (),
        quarantine: Quarantine | None = None,
        period: int = 0,
        answers: Answers | None = None,
    ) -> None:
        self._period, self._answers = period, answers
        self.steps_per_epoch = plan.steps_per_epoch(batch_size)
        self._ranks = tuple(ranks) or (rank,)
        self._rank_steps = _micro_steps(batch_size, micro_batch, world_size)
        self.micro_steps = self._rank_steps * len(self._ranks)
        self._index, self._plan, self._drop_path = index, plan, tuple(drop_path)
        self._batch_size, self._micro_batch, self._world_size = batch_size, micro_batch, world_size
        self._quarantine = (
            Quarantine(index) if quarantine is None else quarantine
        )  # an empty one counts
        self.options = options_of(options, index, micro_batch)
        self._block = functools.lru_cache(maxsize=2)(self._plan_block)
        self._stream = Stream(
            index,
            self.plan_batch,
            lambda source: build_train_pipeline(source, plan.spec, self.options),
            self._quarantine,
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The micro-batches of an epoch from step `first_step` on: (steps_per_epoch - first_step) *
        micro_steps of them."""
        per_epoch = self.steps_per_epoch * self.micro_steps
        for number in range(
            epoch * per_epoch + first_step * self.micro_steps, (epoch + 1) * per_epoch
        ):
            images, planned = self._stream.get(number)
            yield _batch(images, planned, self._index, self._records(epoch, planned))

    def _records(self, epoch: int, planned: _Planned) -> np.ndarray | None:
        if self._answers is None:
            return None
        labels, lam = self._index.labels[planned.draws.image_index], planned.draws.lam
        return self._answers.records(
            self._planned_epoch(epoch), planned.ordinals, labels, lam, len(self._plan.excluded)
        )

    def _planned_epoch(self, epoch: int) -> int:
        return epoch % self._period if self._period else epoch

    def close(self) -> None:
        """Stop DALI's threads; the batches handed out stay valid."""
        self._stream.close()

    def plan_batch(self, number: int) -> tuple[_Planned, np.ndarray, tuple[np.ndarray, ...]]:
        if _exclude(self._plan, self._quarantine):
            self._block.cache_clear()
        epoch, micro = divmod(number, self.steps_per_epoch * self.micro_steps)
        block, place = divmod(micro, self._per_block)
        planned = self._block(epoch, block).part(
            slice(place * self._micro_batch, (place + 1) * self._micro_batch)
        )
        return planned, planned.draws.image_index, planned.arrays

    @property
    def _per_block(self) -> int:
        return max(1, _PLANNED_AT_ONCE // self._micro_batch)

    def _plan_block(self, epoch: int, block: int) -> _Planned:
        """Several micro-batches at once: NumPy's cost of a call is shared by more samples."""
        last = self.steps_per_epoch * self.micro_steps
        micros = range(block * self._per_block, min((block + 1) * self._per_block, last))
        ordinals = np.concatenate(
            [self._ordinals(*divmod(micro, self.micro_steps)) for micro in micros]
        )
        draws = self._plan.draw(self._planned_epoch(epoch), ordinals)
        keep = self._plan.keep(epoch, ordinals, self._drop_path)
        steps = epoch * self.steps_per_epoch + ordinals // self._batch_size
        digests = sample_digests(steps, epoch, ordinals, draws, keep)
        return _Planned(
            ordinals, draws, keep, digests, pack_draws(draws, self._plan.spec, self.options)
        )

    def _ordinals(self, step: int, micro: int) -> np.ndarray:
        rank, place = divmod(micro, self._rank_steps)
        mine = self._plan.ordinals(step, self._batch_size, self._ranks[rank], self._world_size)
        return mine[place * self._micro_batch : (place + 1) * self._micro_batch]


class OrdinalLoader:
    """Chosen samples of the plan, whole pairs, in the order asked for: `windows` has the epoch and
    the ordinals of each batch.

    micro_batch: samples of the largest of them. quarantine: as `TrainLoader`'s. DropPath's bits and
    the digest are left out: this is for teachers.
    """

    def __init__(
        self,
        index: Index,
        plan: Plan,
        options: PipelineOptions,
        windows: Sequence[tuple[int, np.ndarray]],
        micro_batch: int,
        quarantine: Quarantine | None = None,
    ) -> None:
        self._index, self._plan, self._windows = index, plan, windows
        self._quarantine = (
            Quarantine(index) if quarantine is None else quarantine
        )  # an empty one counts
        self.options = options_of(options, index, micro_batch)
        self._stream = Stream(
            index,
            self.plan_batch,
            lambda source: build_train_pipeline(source, plan.spec, self.options),
            self._quarantine,
        )

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self._windows)):
            yield _batch(*self._stream.get(number), self._index, None)

    def close(self) -> None:
        """Stop DALI's threads; the batches handed out stay valid."""
        self._stream.close()

    def plan_batch(self, number: int) -> tuple[_Planned, np.ndarray, tuple[np.ndarray, ...]]:
        _exclude(self._plan, self._quarantine)
        epoch, ordinals = self._windows[
            min(number, len(self._windows) - 1)
        ]  # DALI runs ahead, over the end too
        draws = self._plan.draw(epoch, ordinals)
        arrays, count = pack_draws(draws, self._plan.spec, self.options), len(ordinals)
        nothing = np.zeros((count, 0, 2), bool), np.zeros(count, np.uint64)
        return _Planned(ordinals, draws, *nothing, arrays), draws.image_index, arrays


def _exclude(plan: Plan, quarantine: Quarantine) -> bool:
    """Takes what was found bad out of the plan; whether that is new."""
    news = len(quarantine) > len(plan.excluded)
    if news:
        plan.exclude(quarantine.rows)
    return news


def _batch(
    images: torch.Tensor, planned: _Planned, index: Index, record: np.ndarray | None
) -> Batch:
    draws = planned.draws
    arrays = [
        index.labels[draws.image_index],
        draws.lam,
        draws.box,
        planned.keep,
        *([] if record is None else [record]),
    ]
    labels, lam, box, keep, *sent = to_device_of(images, *arrays)
    ordinals, rows = torch.from_numpy(planned.ordinals), torch.from_numpy(draws.image_index)
    return Batch(
        images,
        labels,
        lam,
        box,
        keep,
        ordinals,
        rows,
        next(iter(sent), None),
        add_digests(planned.digests),
    )


def _micro_steps(batch_size: int, micro_batch: int, world_size: int) -> int:
    if batch_size % (2 * world_size):
        raise ValueError(
            f"batch_size: got {batch_size}, allowed is a multiple of {2 * world_size} (pairs on {world_size} ranks)"
        )
    share = batch_size // world_size
    if micro_batch < 2 or micro_batch % 2 or share % micro_batch:
        allowed = [size for size in range(2, share + 1, 2) if share % size == 0]
        raise ValueError(
            f"micro_batch: got {micro_batch}, allowed is an even divisor of {share}: {allowed}"
        )
    return share // micro_batch
