"""Steps and different images: those of the plan, and deit's arithmetic."""

import numpy as np
import pytest

from fastdeit.estimate.samples import IMAGENET, Samples, find_data_set
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec


@pytest.mark.parametrize("images", [24, 25, 37, 64])
@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
def test_counts_are_those_of_the_plan(images: int, repeats: int) -> None:
    plan = Plan(PlanSpec(input_size=32, repeats=repeats), np.full((images, 2), 40))
    for batch in (2, 6, 8, 12, 24):
        found = Samples(images, batch, 3, repeats)
        assert found.epoch_steps == plan.steps_per_epoch(batch)
        drawn = plan.images(0, np.arange(found.epoch_samples))
        assert found.different == len(np.unique(drawn)), (batch, repeats)


@pytest.mark.parametrize(("repeats", "different"), [(2, 640_513), (3, 427_010)])
def test_deits_arithmetic_holds(repeats: int, different: int) -> None:
    found = Samples(IMAGENET.images, 1024, 300, repeats)
    assert (found.epoch_steps, found.steps, found.different) == (1251, 375_300, different)


def test_recipes_have_their_data_sets() -> None:
    assert find_data_set("deit-paper") is IMAGENET and find_data_set("transfer") is None
