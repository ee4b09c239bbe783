"""The largest micro-batch, from plans that are linear but for a bend."""

import pytest

from fastdeit.training.memory.plan import MemoryPlan, find_largest


def plan(size: int, checkpointing: bool) -> MemoryPlan:
    """Return 1 GB, and 10 MB an image; with checkpointing 20 MB from the 1,000th on."""
    images = size + max(0, size - 1000) if checkpointing else size
    return MemoryPlan({"weights": 1e9, "activations": 1e7 * images}, size)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("available", [2e9, 24e9, 80e9])
def test_the_next_larger_batch_does_not_fit(available: float, checkpointing: bool) -> None:
    size = find_largest(plan, checkpointing, available)
    assert size % 2 == 0 and plan(size, checkpointing).fits(available)
    assert not plan(size + 2, checkpointing).fits(available)


def test_too_small_a_card_has_no_batch() -> None:
    assert find_largest(plan, False, 1e8) == 0
