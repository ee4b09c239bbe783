"""The division of an epoch's samples into steps and micro-batches."""

import functools
from dataclasses import dataclass

import numpy as np

from fastdeit.plan.plan import Plan


@dataclass(frozen=True)
class Division:
    """The division of an epoch into steps and of a step into micro-batches, in one process.

    batch_size: samples of all ranks; micro_batch: samples of one forward pass. ranks: the ranks
    whose samples this process takes, one after the other in each step; alternating: see
    `Plan.ordinals`. Raises ValueError when the sizes do not divide.
    """

    plan: Plan
    batch_size: int
    micro_batch: int
    world_size: int
    ranks: tuple[int, ...]
    alternating: bool

    def __post_init__(self) -> None:
        share = 2 * self.world_size
        if self.batch_size % share:
            raise ValueError(
                f"batch_size must be a multiple of {share}, for pairs on {self.world_size} ranks "
                f"(got {self.batch_size})"
            )
        share = self.batch_size // self.world_size
        if self.micro_batch < 2 or self.micro_batch % 2 or share % self.micro_batch:
            allowed = [size for size in range(2, share + 1, 2) if share % size == 0]
            raise ValueError(
                f"micro_batch must be an even divisor of {share}: {allowed} "
                f"(got {self.micro_batch})"
            )

    @functools.cached_property
    def steps(self) -> int:
        """Return the number of steps in an epoch."""
        return self.plan.steps_per_epoch(self.batch_size)

    @property
    def micro_steps(self) -> int:
        """Return the number of micro-batches in a step."""
        return self._micro_steps_of_rank * len(self.ranks)

    @property
    def micro_batches(self) -> int:
        """Return the number of micro-batches in an epoch."""
        return self.steps * self.micro_steps

    @property
    def _micro_steps_of_rank(self) -> int:
        return self.batch_size // self.world_size // self.micro_batch

    def ordinals(self, number: int) -> np.ndarray:
        """Return int64 (micro_batch,): the ordinals of micro-batch `number` of an epoch."""
        step, micro = divmod(number, self.micro_steps)
        rank, place = divmod(micro, self._micro_steps_of_rank)
        share = self.plan.ordinals(
            step,
            self.batch_size,
            self.ranks[rank],
            self.world_size,
            alternating=self.alternating,
        )
        return share[place * self.micro_batch : (place + 1) * self.micro_batch]
