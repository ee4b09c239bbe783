"""The process group: started the same way under the `deepspeed` launcher, torchrun, or alone."""

import atexit
import datetime
import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """This process among all: its rank, the number of ranks, its place on the machine, and its device."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def threads(self) -> int:
        """CPU threads for this process's data pipeline: the machine's cores shared among its processes."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)


def init_distributed(timeout_s: int = 1800) -> World:
    """Joins the process group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, ...), or makes one of one."""
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(_free_port()))
    deepspeed = import_deepspeed()
    if not dist.is_initialized():
        deepspeed.init_distributed(verbose=False, timeout=datetime.timedelta(seconds=timeout_s))
        atexit.register(dist.destroy_process_group)  # not earlier: DeepSpeed keeps groups of its own for the process's life
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or dist.get_world_size())
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    world = World(dist.get_rank(), dist.get_world_size(), local_rank, local_size, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        # a core stays for DALI: OpenMP's threads wait for each other by spinning, and crawl when one has no core
        torch.set_num_threads(max(1, world.threads - 1))
    return world


def import_deepspeed():  # type: ignore[no-untyped-def]  # deepspeed has no types
    """The `deepspeed` module, without its notices and without the build of an operator that training never calls.

    On a CPU, `deepspeed.init_distributed` would compile `deepspeed_shm_comm`, an all-reduce for inference: a minute, and a
    crash where there is no compiler (DeepSpeed 0.19.8).
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # torch renamed two collectives that DeepSpeed 0.19.8 still calls by their old names
    warnings.filterwarnings("ignore", message=r".*(all_gather_into_tensor|reduce_scatter_tensor).*", category=FutureWarning)
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def first_on_rank0(build: Callable[[], Result]) -> Result:
    """`build()` on rank 0, then on the others, which find its files ready. Raises rank 0's ValueError on every rank."""
    error: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            result = build()
        except (ValueError, OSError) as failure:
            error = [str(failure)]
    dist.broadcast_object_list(error)
    if error[0] is not None:
        raise ValueError(error[0])
    return result if dist.get_rank() == 0 else build()


def all_agree(ok: bool) -> bool:
    """Whether `ok` holds on every rank; a collective."""
    votes = [False] * dist.get_world_size()
    dist.all_gather_object(votes, ok)
    return all(votes)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
