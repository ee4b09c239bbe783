"""A check of all ranks of a launch together: they join one group, and sum a tensor."""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Any

from fastdeit.doctor.findings import MIB, Finding, Target, absent, fail, good, warn
from fastdeit.doctor.scratch import open_scratch

_TIMEOUT_S = 45
_ROUNDS = 5
_BYTES = {"cuda": 64 * MIB, "cpu": 4 * MIB}
_SLOW_GBPS = 2.0  # between GPUs: about one link of PCIe 3 x4
_CLOCKS_S = 5.0


def check_group(target: Target) -> Finding:
    """Join all ranks, sum a tensor over them, compare the clocks.

    GPUs use NCCL, CPUs gloo. The command of rank 0 serves the store of the group.
    """
    import torch.distributed as dist

    from fastdeit.distributed.world import init_distributed

    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return absent("one process")
    try:
        world = init_distributed(_TIMEOUT_S)
        gbps = _measure_sum(world.size, world.device)
        spread = _compare_clocks(world.size)
        shared = _share_lock(target, world.rank)
    except (RuntimeError, ValueError, OSError, dist.DistError) as error:
        reason = " ".join(str(error).split())[:200]
        cure = (
            "open the ports between the machines, see docs/machines.md; NCCL_DEBUG=INFO shows more"
        )
        return fail(f"the ranks cannot sum a tensor: {reason}", cure)
    found = f"{size} ranks sum {_BYTES[world.device.type] // MIB} MiB over {dist.get_backend()}"
    found += f" at {gbps:.1f} GB/s; clocks within {spread:.2f} s; {shared.found}"
    if shared.status != "ok":
        return Finding(shared.status, found, shared.cure)
    if spread > _CLOCKS_S:
        return warn(found, "set the clocks of all machines (ntp)")
    if world.device.type == "cuda" and gbps < _SLOW_GBPS:
        return warn(found, "look at NCCL_DEBUG=INFO: the ranks do not use NVLink or InfiniBand")
    return good(found)


def _measure_sum(size: int, device: Any) -> float:
    """Return the bandwidth of an all-reduce in GB/s, as nccl-tests computes it ("busbw"). Raises
    ValueError for a wrong sum."""
    import torch
    import torch.distributed as dist

    count = _BYTES[device.type] // 4
    values = torch.ones(count, device=device)
    dist.all_reduce(values)
    if not bool((values == size).all()):
        raise ValueError("the sum is wrong")
    values.zero_()
    _wait(device)
    began = time.monotonic()
    for _ in range(_ROUNDS):
        dist.all_reduce(values)
    _wait(device)
    seconds = (time.monotonic() - began) / _ROUNDS
    return 2 * (size - 1) / size * 4 * count / seconds / 1e9


def _share_lock(target: Target, rank: int) -> Finding:
    """Lock a file below --output-dir on rank 0, and try to lock it on the others."""
    import torch.distributed as dist

    held = [""]
    with contextlib.ExitStack() as stack:
        if rank == 0:
            held[0] = _hold_lock(target, stack)
        dist.broadcast_object_list(held)
        finding = _try_lock(held[0]) if held[0] else good("no lock to compare")
        dist.barrier()
    return finding


def _hold_lock(target: Target, stack: contextlib.ExitStack) -> str:
    """Lock a file until the stack ends, and return its path; "" if that fails, which other checks
    report."""
    try:
        path = open_scratch(target) / "shared"
        file = stack.enter_context(path.open("wb"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return ""
    return str(path)


def _try_lock(name: str) -> Finding:
    """Try to lock rank 0's file, on every rank, and return the finding."""
    path = Path(name)
    folder = path.parent.parent
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        cure = "give all machines the same --output-dir, on a file system that they share"
        return fail(f"{folder} of rank 0 is not seen here", cure)
    except BlockingIOError:
        return good("the lock of rank 0 excludes all others")
    except OSError as error:
        return warn(f"no locks in {folder}: {error.strerror}", "mount with locks (NFS 4)")
    cure = "mount it with locks that hold between machines (NFS 4, lustre -o flock)"
    return fail(f"a file in {folder} is locked twice at once", cure)


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _compare_clocks(size: int) -> float:
    """Return the largest difference of the clocks in seconds, which includes the time of a
    barrier."""
    import torch.distributed as dist

    from fastdeit.distributed.collectives import barrier

    barrier()
    times = [0.0] * size
    dist.all_gather_object(times, time.time())
    return max(times) - min(times)
