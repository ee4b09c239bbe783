"""Batches of the training loop: when the loader is started again."""

from collections.abc import Iterator
from typing import Any

import pytest

from fastdeit.run.loop import StepBatches


class FakeLoader:
    """Three steps per epoch, two micro-batches per step; a micro-batch is (step, number)."""

    steps_per_epoch = 3
    micro_steps = 2

    def __init__(self) -> None:
        self.starts: list[tuple[int, int]] = []

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[int, int]]:
        self.starts.append((epoch, first_step))
        for place in range(first_step, self.steps_per_epoch):
            for number in range(self.micro_steps):
                yield epoch * self.steps_per_epoch + place, number


@pytest.mark.parametrize(
    ("steps", "starts"),
    [
        ([0, 1, 2, 3, 4], [(0, 0), (1, 0)]),
        ([1, 2, 3], [(0, 1), (1, 0)]),
        # a rollback from step 5 to step 1
        ([3, 4, 1, 2], [(1, 0), (0, 1)]),
        # steps 1 to 3 are skipped
        ([0, 4, 5], [(0, 0), (1, 1)]),
    ],
    ids=["in order", "from the middle of an epoch", "rollback", "skipped steps"],
)
def test_loader_starts_where_the_order_of_steps_breaks(
    steps: list[int], starts: list[tuple[int, int]]
) -> None:
    loader: Any = FakeLoader()
    batches = StepBatches(loader)
    for step in steps:
        assert list(batches.of(step)) == [(step, 0), (step, 1)]
    assert loader.starts == starts
