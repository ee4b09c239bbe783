"""The samples of a run's steps, as a run drew and read them, though images have come to grief
since."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fastdeit.config.schema import Config
from fastdeit.data.batch import Batch
from fastdeit.data.build import build_train_loader
from fastdeit.data.index import Index
from fastdeit.data.loader import TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.distributed.world import World
from fastdeit.plan.build import build_plan
from fastdeit.plan.digest import add_digests, sample_digests
from fastdeit.plan.plan import Plan, SampleParams
from fastdeit.replay.record import Record
from fastdeit.run.build import Training
from fastdeit.run.identity import fingerprints


class Samples:
    """The training samples of a run by step, on the processes of a replay.

    world: of the replay; every process stands for as many of the run's, one after the other. gone:
    rows of the index whose image is not there as it was, with the fault. Raises ValueError when a
    step needs an image that cannot be read any more.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        record: Record,
        index: Index,
        gone: Mapping[int, str],
        training: Training,
    ) -> None:
        self.config, self.index = config, index
        self._record, self._gone, self._training = record, gone, training
        then = record.attempt.world_size
        self._world = dataclasses.replace(world, size=then)
        each = then // world.size
        self.ranks = range(world.rank * each, (world.rank + 1) * each)
        self._left_out: frozenset[int] = record.left_out(0)
        self._plans: dict[frozenset[int], Plan] = {}
        self._loader = self._open(self._left_out)
        self.steps_per_epoch = self._loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.config.optim.epochs * self.steps_per_epoch

    @property
    def fingerprints(self) -> dict[str, Any]:
        pixels = self._loader.options.describe()
        return fingerprints(self._training.plan, self.index, self.config.optim.batch_size, pixels)

    def places(self) -> list[tuple[int, int]]:
        """The rank of the run, and the number there, of each micro-batch that this process takes in
        a step."""
        share = self._loader.micro_steps // len(self.ranks)
        return [(rank, place) for rank in self.ranks for place in range(share)]

    def batches(self, step: int) -> Iterator[Batch]:
        """The micro-batches of a step of the run."""
        left_out = self._record.left_out(step)
        if left_out != self._left_out:
            self._loader.close()
            self._left_out, self._loader = left_out, self._open(left_out)
        batches = self._loader.epoch(*divmod(step, self.steps_per_epoch))
        for batch in itertools.islice(batches, self._loader.micro_steps):
            changed = {
                row: self._gone[row] for row in batch.image_index.tolist() if row in self._gone
            }
            _refuse(self.index, changed)
            yield batch

    def _open(self, left_out: frozenset[int]) -> TrainLoader:
        known = _LeftOut(self.index, left_out)
        return build_train_loader(
            self.config,
            self._world,
            self.index,
            self._training.plan,
            drop_path=self._training.drop_path,
            quarantine=known,
            teacher_records=self._training.cached_teacher,
            ranks=self.ranks,
        )

    def draws(self, step: int, ordinals: np.ndarray) -> SampleParams:
        """What was planned for samples of a step; ordinals: int64 (B,)."""
        epoch, period = step // self.steps_per_epoch, self.config.distill.cache_period
        return self._plan(step).draw(epoch % period if period else epoch, ordinals)

    def digest(self, step: int) -> int:
        """Of all samples of a step, without reading one."""
        (epoch, place), size = divmod(step, self.steps_per_epoch), self.config.optim.batch_size
        ordinals = np.arange(place * size, (place + 1) * size)
        keep = self._plan(step).keep(epoch, ordinals, self._training.drop_path)
        return add_digests(
            sample_digests(
                np.full_like(ordinals, step), epoch, ordinals, self.draws(step, ordinals), keep
            )
        )

    def _plan(self, step: int) -> Plan:
        """The plan as it stood in a step; the loader's own has left out what it had when it last
        planned ahead."""
        left_out = self._record.left_out(step)
        if left_out not in self._plans:
            self._plans[left_out] = build_plan(self.config, self.index.sizes)
            self._plans[left_out].exclude(sorted(left_out))
        return self._plans[left_out]

    def close(self) -> None:
        self._loader.close()


class _LeftOut(Quarantine):
    """The images that a run had left out; any other has to be there."""

    def __init__(self, index: Index, rows: frozenset[int]) -> None:
        super().__init__(index)
        self._faults = dict.fromkeys(rows, "")

    def exclude(self, faults: dict[int, str]) -> None:
        _refuse(self._index, faults)


def _refuse(index: Index, faults: Mapping[int, str]) -> None:
    if faults:
        named = "; ".join(f"{index.name(row)}: {fault}" for row, fault in faults.items())
        raise ValueError(
            f"{index.root}: the run read images that cannot be read as they were: {named}"
        )
