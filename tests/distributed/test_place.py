"""The place of a process: its device, and its rank."""

import pytest
import torch

from fastdeit.distributed.place import find_device, find_world
from fastdeit.distributed.world import init_distributed


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
def test_the_cpu_has_several_names(device: torch.device | str) -> None:
    assert find_device(device) == torch.device("cpu")


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"^device must be one of cpu.*got '{device}'"):
        find_device(device)


@pytest.mark.parametrize("joined", [False, True])
def test_ranks_can_be_chosen(joined: bool) -> None:
    if joined:  # alone: the chosen ranks are others
        init_distributed()
    world = find_world("cpu", rank=1, world_size=3)
    assert (world.rank, world.size, world.local_size) == (1, 3, 1)
    with pytest.raises(ValueError, match="^rank must be 0 to 2, below world_size"):
        find_world("cpu", rank=3, world_size=3)
    for size in (0, -1):
        with pytest.raises(ValueError, match="^world_size must be 1 or more"):
            find_world("cpu", rank=0, world_size=size)
