"""The loaders of training: from the plan and the index to batches in torch, which are views of
DALI's memory, while DALI makes later batches.

A loader asks the plan for every micro-batch by its number in the run, so it holds no state that a
checkpoint would need: any step of any epoch can be asked for, and asking in order (over the end of
an epoch too) keeps DALI's queue full, and the thread of `ReadAhead` one micro-batch ahead.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.graphs.pipeline import build_train_pipeline, pack_draws
from fastdeit.data.index import Index
from fastdeit.data.loaders.ahead import ReadAhead
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.division import Division
from fastdeit.data.loaders.planned import Fed, Planned, Unmixed, feed_batch, make_batch, make_taker
from fastdeit.data.loaders.stream import Stream, options_of
from fastdeit.data.quarantine import Quarantine
from fastdeit.plan.digest import sample_digests
from fastdeit.plan.plan import Plan

_PLANNED_AT_ONCE = 4096  # samples, which share the cost of the NumPy calls


class TeacherRecords(Protocol):
    """A recorded teacher, such as fastdeit.teacher_cache.reader.CachedTeacher.

    Attributes: missed, the number of samples so far without a record.
    """

    missed: int

    def records(
        self, epoch: int, ordinals: np.ndarray, labels: np.ndarray, lam: np.ndarray, version: int
    ) -> np.ndarray | None: ...


class _Counted(NamedTuple):
    """A micro-batch, and the number of its samples without a record of the teacher."""

    batch: Batch
    unrecorded: int


class TrainLoader:
    """The training samples of one rank as micro-batches, in the plan's order.

    batch_size: samples of all ranks in a step; micro_batch: samples of one forward pass on this
    device. ranks: the ranks whose samples this process takes, one after the other in each step,
    instead of its own; alternating: as in `Plan.ordinals`. drop_path: each block's rate of
    DropPath. quarantine: of this index; the images in it, now or later, are excluded from the plan.
    period: the epochs after which the samples repeat (0: never; DropPath's bits never do). Raises
    ValueError when the sizes do not divide, or the data set is smaller than a batch. Attributes:
    unrecorded, the number of yielded samples without a record of the teacher.
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
        alternating: bool = False,
        drop_path: Sequence[float] = (),
        quarantine: Quarantine | None = None,
        period: int = 0,
        teacher_records: TeacherRecords | None = None,
    ) -> None:
        self._division = Division(
            plan, batch_size, micro_batch, world_size, tuple(ranks) or (rank,), alternating
        )
        self.steps_per_epoch = self._division.steps
        self.micro_steps = self._division.micro_steps
        self._index = index
        self._plan = plan
        self._drop_path = tuple(drop_path)
        self._period = period
        self._teacher_records = teacher_records
        # an empty quarantine is false
        self._quarantine = Quarantine(index) if quarantine is None else quarantine
        self.options = options_of(options, index, micro_batch)
        self._block = functools.lru_cache(maxsize=2)(self._plan_block)
        self._stream = _train_stream(self, index, plan, self._quarantine)
        self._ahead = ReadAhead(self._make_batch, self.options.torch_device, options.read_ahead)
        self.unrecorded = 0

    def epoch(self, epoch: int, first_step: int = 0, *, is_last: bool = False) -> Iterator[Batch]:
        """Yield the micro-batches of an epoch from step `first_step` on: (steps_per_epoch -
        first_step) * micro_steps of them.

        is_last: whether the run ends with this epoch, so that nothing of the next is made ahead.
        """
        count = self._division.micro_batches
        first = epoch * count + first_step * self.micro_steps
        end = (epoch + 1) * count
        for number in range(first, end):
            following = None if is_last and number + 1 == end else number + 1
            yield self._count(self._ahead.get(number, following))

    def _count(self, made: _Counted) -> Batch:
        self.unrecorded += made.unrecorded
        return made.batch

    def _make_batch(self, number: int) -> _Counted:
        """Make a micro-batch of the run."""
        # the step of this batch; the trainer may be at an earlier one
        self._quarantine.step = number // self.micro_steps
        images, planned = self._stream.get(number)
        missed = self._missed
        record = self._records(number // self._division.micro_batches, planned)
        batch = make_batch(images, planned, self._index, record)
        return _Counted(batch, self._missed - missed)

    @property
    def _missed(self) -> int:
        return self._teacher_records.missed if self._teacher_records else 0

    def _records(self, epoch: int, planned: Planned) -> np.ndarray | None:
        if self._teacher_records is None:
            return None
        draws = planned.draws
        return self._teacher_records.records(
            self._planned_epoch(epoch),
            planned.ordinals,
            self._index.labels[draws.image_index],
            draws.lam,
            len(self._plan.excluded),
        )

    def _planned_epoch(self, epoch: int) -> int:
        return epoch % self._period if self._period else epoch

    def forget_ahead(self) -> None:
        """Drop the batches that were made and planned ahead, after images of other ranks came into
        the quarantine."""
        self._ahead.discard()
        self._stream.restart()

    def close(self) -> None:
        """End all threads, after the batch that is being made; batches that were yielded stay
        valid."""
        self._stream.stop()
        self._ahead.close()
        self._stream.close()

    def plan_batch(self, number: int) -> Fed:
        """Plan micro-batch `number` of the run for `Stream`."""
        if _exclude(self._plan, self._quarantine):
            self._block.cache_clear()
        size = self._division.micro_batch
        epoch, micro = divmod(number, self._division.micro_batches)
        block, place = divmod(micro, self._per_block)
        planned = self._block(epoch, block).part(slice(place * size, (place + 1) * size))
        return feed_batch(planned, self.options)

    @property
    def _per_block(self) -> int:
        return max(1, _PLANNED_AT_ONCE // self._division.micro_batch)

    def _plan_block(self, epoch: int, block: int) -> Planned:
        """Plan several micro-batches at once: more samples share the cost of a NumPy call."""
        division = self._division
        if 2 * block * self._per_block >= division.micro_batches:
            self._plan.prepare(self._planned_epoch(epoch + 1))
        last = min((block + 1) * self._per_block, division.micro_batches)
        micros = range(block * self._per_block, last)
        ordinals = np.concatenate([division.ordinals(micro) for micro in micros])
        draws = self._plan.draw(self._planned_epoch(epoch), ordinals)
        keep = self._plan.keep(epoch, ordinals, self._drop_path)
        steps = epoch * self.steps_per_epoch + ordinals // division.batch_size
        digests = sample_digests(steps, epoch, ordinals, draws, keep)
        arrays = pack_draws(draws, self._plan.spec, self.options)
        return Planned(ordinals, draws, keep, digests, arrays)


class OrdinalLoader:
    """Batches of chosen samples of the plan, whole pairs, in the given order.

    batches: the epoch and the ordinals of each batch; micro_batch: samples of the largest batch.
    quarantine: as for `TrainLoader`. The batches have no DropPath bits and no digest: they are for
    teachers.
    """

    def __init__(
        self,
        index: Index,
        plan: Plan,
        options: PipelineOptions,
        batches: Sequence[tuple[int, np.ndarray]],
        *,
        micro_batch: int,
        quarantine: Quarantine | None = None,
    ) -> None:
        self._index = index
        self._plan = plan
        self._batches = batches
        # an empty quarantine is false
        self._quarantine = Quarantine(index) if quarantine is None else quarantine
        self.options = options_of(options, index, micro_batch)
        self._stream = _train_stream(self, index, plan, self._quarantine)
        self._ahead = ReadAhead(self._make_batch, self.options.torch_device, options.read_ahead)

    def __iter__(self) -> Iterator[Batch]:
        count = len(self._batches)
        for number in range(count):
            yield self._ahead.get(number, number + 1 if number + 1 < count else None)

    def _make_batch(self, number: int) -> Batch:
        return make_batch(*self._stream.get(number), self._index, None)

    def close(self) -> None:
        """End all threads, after the batch that is being made; batches that were yielded stay
        valid."""
        self._stream.stop()
        self._ahead.close()
        self._stream.close()

    def plan_batch(self, number: int) -> Fed:
        """Plan a batch for `Stream`."""
        _exclude(self._plan, self._quarantine)
        # DALI asks for batches ahead, also beyond the last
        epoch, ordinals = self._batches[min(number, len(self._batches) - 1)]
        count = len(ordinals)
        draws = self._plan.draw(epoch, ordinals)
        keep = np.zeros((count, 0, 2), bool)
        digests = np.zeros(count, np.uint64)
        arrays = pack_draws(draws, self._plan.spec, self.options)
        return feed_batch(Planned(ordinals, draws, keep, digests, arrays), self.options)


def _train_stream(
    loader: TrainLoader | OrdinalLoader, index: Index, plan: Plan, quarantine: Quarantine
) -> Stream[Planned, Unmixed]:
    return Stream(
        index,
        loader.plan_batch,
        lambda source: build_train_pipeline(source, plan.spec, loader.options),
        make_taker(plan.spec, loader.options),
        quarantine,
    )


def _exclude(plan: Plan, quarantine: Quarantine) -> bool:
    """Exclude the images of the quarantine from the plan; return True if there are new ones."""
    has_new = len(quarantine) > len(plan.excluded)
    if has_new:
        plan.exclude(quarantine.rows)
    return has_new
