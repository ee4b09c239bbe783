"""The memory plan of `import fastdeit`."""

from typing import Any

import pytest
import torch

import fastdeit

SIZES = {"embed_dim": 64, "depth": 6, "num_heads": 2}


def estimate(run: dict[str, Any] | None = None, **arguments: Any) -> Any:
    config = fastdeit.Config().replace(model=SIZES, data={"input_size": 64}, run=run or {})
    return fastdeit.estimate_memory(config, num_classes=5, **arguments)


def test_a_plan_needs_no_gpu() -> None:
    draws = torch.get_rng_state()
    plan = estimate()
    assert plan.micro_batch == 1024 and plan.total > sum(plan.parts.values()) > 0
    assert plan.describe().startswith("needs about ") and "activations" in plan.describe()
    assert torch.equal(draws, torch.get_rng_state())


def test_more_gpus_and_checkpointing_need_less() -> None:
    whole, shared = estimate(), estimate(world_size=8)
    assert shared.total < whole.total / 6 and shared.micro_batch == 128
    assert estimate({"grad_checkpointing": True}).total < 0.8 * whole.total
    assert estimate(device="cpu").total > 1.5 * whole.total  # fp32, and without the kernels


def test_a_mistake_names_the_argument() -> None:
    with pytest.raises(ValueError, match=r"^world_size must be 1 or more \(got 0\)$"):
        estimate(world_size=0)
    with pytest.raises(ValueError, match="^batch_size must be a multiple of 6 on 3 processes"):
        estimate(world_size=3)
