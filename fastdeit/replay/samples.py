"""The batches of past steps, including images that were excluded later."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from fastdeit.config.schema import Config
from fastdeit.data.build import build_train_loader
from fastdeit.data.index import Index
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.distributed.world import World
from fastdeit.plan.build import build_plan
from fastdeit.plan.digest import add_digests, sample_digests
from fastdeit.plan.plan import Plan, SampleParams
from fastdeit.replay.history import StepHistory
from fastdeit.run.build import Training
from fastdeit.run.inputs import Inputs


class Samples:
    """The training samples of a run by step, on the processes of a replay.

    world: that of the replay; each of its processes repeats the work of equally many ranks of the
    run, one after the other. unreadable: rows of the index whose image has changed, with the fault.
    Raise ValueError when a step needs an image that can no longer be read.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        history: StepHistory,
        index: Index,
        unreadable: Mapping[int, str],
        training: Training,
    ) -> None:
        self.config = config
        self.index = index
        self._history = history
        self._unreadable = unreadable
        self._training = training
        run_size = history.attempt.world_size
        self._world = dataclasses.replace(world, size=run_size)
        share = run_size // world.size
        self.ranks = range(world.rank * share, (world.rank + 1) * share)
        self._plans: dict[frozenset[int], Plan] = {}
        self._excluded = history.excluded_images(0)
        self._quarantine = Quarantine.of(index, self._excluded)
        self._loader = self._open_loader()
        self.steps_per_epoch = self._loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps of the whole run."""
        return self.config.optim.epochs * self.steps_per_epoch

    @property
    def inputs(self) -> Inputs:
        """Return what decides the losses of this replay."""
        return self._training.inputs

    def places(self) -> list[tuple[int, int]]:
        """Return the run's rank, and the number on it, of each micro-batch of this process in a
        step."""
        per_rank = self._loader.micro_steps // len(self.ranks)
        return [(rank, number) for rank in self.ranks for number in range(per_rank)]

    def batches(self, step: int) -> Iterator[Batch]:
        """Yield the micro-batches of a step, as the run read them."""
        excluded = self._history.excluded_images(step)
        if excluded != self._excluded:
            self._loader.close()
            self._excluded = excluded
            self._quarantine = Quarantine.of(self.index, excluded)
            self._loader = self._open_loader()
        batches = self._loader.epoch(*divmod(step, self.steps_per_epoch))
        for batch in itertools.islice(batches, self._loader.micro_steps):
            rows = self._unreadable.keys() & set(batch.image_index.tolist())
            if rows:
                self._quarantine.exclude({row: self._unreadable[row] for row in sorted(rows)})
            yield batch

    def _open_loader(self) -> TrainLoader:
        return build_train_loader(
            self.config,
            self._world,
            self.index,
            self._training.plan,
            drop_path=self._training.drop_path,
            quarantine=self._quarantine,
            teacher_records=self._training.cached_teacher,
            ranks=self.ranks,
            alternating=self._history.attempt.alternating_pairs,
        )

    def draw(self, step: int, ordinals: np.ndarray) -> SampleParams:
        """Return the draws of the plan for samples of a step; ordinals: int64 (B,)."""
        epoch = step // self.steps_per_epoch
        period = self.config.distill.cache_period
        return self._plan(step).draw(epoch % period if period else epoch, ordinals)

    def digest(self, step: int) -> int:
        """Return the hash of all samples of a step, without reading one."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.config.optim.batch_size
        ordinals = np.arange(place * size, (place + 1) * size)
        keep = self._plan(step).keep(epoch, ordinals, self._training.drop_path)
        steps = np.full_like(ordinals, step)
        draws = self.draw(step, ordinals)
        return add_digests(sample_digests(steps, epoch, ordinals, draws, keep))

    def _plan(self, step: int) -> Plan:
        """Return the plan with the images of a step excluded. The loader's own plan excludes those
        of the step that it last read ahead for."""
        excluded = self._history.excluded_images(step)
        if excluded not in self._plans:
            self._plans[excluded] = build_plan(self.config, self.index.sizes)
            self._plans[excluded].exclude(sorted(excluded))
        return self._plans[excluded]

    def close(self) -> None:
        """Close the loader."""
        self._loader.close()
