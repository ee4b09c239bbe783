"""The place of a process that did not start through `fastdeit`: its rank, and its device."""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from fastdeit.distributed.collectives import first_on_rank0
from fastdeit.distributed.environment import count_local_ranks
from fastdeit.distributed.world import World

Result = TypeVar("Result")


def find_world(
    device: torch.device | str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> World:
    """Return this process among all ranks: those of torch.distributed if it is initialised, else
    one; rank and world_size replace them.

    device: None is this process's GPU, or the CPU if there is none. Raises ValueError for a rank,
    a number of ranks or a device that is not possible.
    """
    joined = dist.is_available() and dist.is_initialized()
    size = (dist.get_world_size() if joined else 1) if world_size is None else world_size
    if size < 1:
        raise ValueError(f"world_size must be 1 or more (got {size})")
    place = (dist.get_rank() if joined else 0) if rank is None else rank
    if not 0 <= place < size:
        raise ValueError(f"rank must be 0 to {size - 1}, below world_size (got {place})")
    # a loader for ranks of its own choice has the machine to itself
    shares = joined and (place, size) == (dist.get_rank(), dist.get_world_size())
    local_size = count_local_ranks() if shares else 1
    local_rank = int(os.environ.get("LOCAL_RANK", 0)) if shares else 0
    return World(place, size, local_rank, local_size, find_device(device))


def find_device(device: torch.device | str | None) -> torch.device:
    """Return a device with its number; None: this process's GPU, or the CPU if there is none.

    Raises ValueError for a device that this machine does not have.
    """
    usable = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    chosen = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen == "cpu:0":  # Accelerate's name
        return torch.device("cpu")
    if chosen == "cuda" and torch.cuda.is_available():
        chosen = f"cuda:{torch.cuda.current_device()}"
    if chosen not in usable:
        raise ValueError(f"device must be one of {', '.join(usable)} (got {chosen!r})")
    return torch.device(chosen)


def follows_group(world: World) -> bool:
    """Return True if the ranks of `world` are those of torch.distributed, so that a collective
    includes them all."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return (world.rank, world.size) == (dist.get_rank(), dist.get_world_size())


def on_first_rank(world: World, build: Callable[[], Result]) -> Result:
    """Return the result of `build` on this rank; if the ranks form a group, rank 0 runs it first,
    and the others find its files."""
    return first_on_rank0(build) if follows_group(world) else build()
