"""The roll call: before the ranks join, each reports to rank 0, which names those that are missing.

A rank sends a few messages to rank 0's store, whatever the number of ranks is. Without the roll
call, all ranks would wait until the time limit if a machine was started twice or with another
hostfile.
"""

import contextlib
import datetime
import logging
import os
import socket
import time

import torch.distributed as dist

_log = logging.getLogger(__name__)
_FIRST_NOTE_S = 30.0
_HEARD_S = 1.0  # for the others to read why the start is refused, before the store ends
# keys in the store
_SIZE = "size"
_ARRIVED = "arrived"
_VERDICT = "verdict"
_COMPLETE = "complete"


def open_store(timeout: datetime.timedelta) -> dist.Store:
    """Return the store at MASTER_ADDR and MASTER_PORT, which rank 0 or torchrun's agent serves.

    The process group may open it again in the same process. Raises DistNetworkError if it cannot be
    served or reached.
    """
    serves = os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(
        *address, is_master=serves, timeout=timeout, wait_for_workers=False, multi_tenant=True
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"fastdeit/roll call {attempt}", store)


def call_roll(store: dist.Store, rank: int, size: int) -> None:
    """Wait until all ranks have arrived.

    Raises ValueError on every rank if, before all have arrived, one arrives twice, or one that was
    started with another number of ranks; a rank that arrives later raises it alone.
    """
    if rank == 0:
        store.set(_SIZE, str(size))
    fault = _find_fault(store, rank, size)
    if fault or store.add(_ARRIVED, 1) == size:
        # the first verdict is final: a rank may arrive twice after the roll is complete
        store.compare_set(_VERDICT, "", fault or _COMPLETE)
    if rank == 0:
        _await_verdict(store, size)
    verdict = store.get(_VERDICT).decode()
    if verdict == _COMPLETE and not fault:
        return
    if rank == 0:
        time.sleep(_HEARD_S)
    raise ValueError(fault or verdict)


def _find_fault(store: dist.Store, rank: int, size: int) -> str:
    """Return why this rank cannot join, or "" if it can."""
    host = socket.gethostname()
    wanted = int(store.get(_SIZE))
    if size != wanted:
        got = f"got {wanted} ranks on that of rank 0, {size} on {host}"
        return f"--hostfile must be the same on all machines ({got})"
    mine = f"{host}, process {os.getpid()}"
    first = store.compare_set(_name(rank), "", mine).decode()
    if first != mine:
        got = f"got rank {rank} on {first} and on {mine}"
        return f"--node_rank must be another one on each machine ({got})"
    return ""


def _await_verdict(store: dist.Store, size: int) -> None:
    """Wait until all ranks have arrived or one refuses; log the missing ranks from time to time."""
    pause = _FIRST_NOTE_S
    while True:
        with contextlib.suppress(dist.DistStoreError):
            store.wait([_VERDICT], datetime.timedelta(seconds=pause))
            return
        missing = [rank for rank in range(size) if not store.check([_name(rank)])]
        _log.warning("waiting for %d of %d ranks: %s", len(missing), size, list_ranges(missing))
        pause *= 2


def list_ranges(numbers: list[int]) -> str:
    """Return rising numbers as text, "1, 4 to 7"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ", ".join(" to ".join(map(str, ends)) for ends in ranges)


def _name(rank: int) -> str:
    return f"rank {rank}"
