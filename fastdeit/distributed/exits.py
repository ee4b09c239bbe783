"""Exits: the end of this process at once, and the choice of the rank that reports the error."""

import contextlib
import datetime
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch.distributed as dist

from fastdeit.distributed.environment import is_first_on_machine

# keys in the store of the process group
_REPORTED = "fastdeit/reported"
_EXITED = "fastdeit/exited"
_READY = "fastdeit/ready to exit"

_at_hard_exit: list[Callable[[], object]] = []


def rank0_reports_error(limit_s: float = 3.0) -> bool:
    """Return True if rank 0 fails, too, within `limit_s`: then it alone prints the error.

    Every rank that fails calls this. It is not a collective, as the other ranks may wait in one
    that this rank will not reach; it uses the store of the process group.
    """
    if not dist.is_initialized():
        return not is_first_on_machine()
    store = dist.distributed_c10d._get_default_store()
    if dist.get_rank() == 0:
        store.set(_REPORTED, "")
        return False
    try:
        store.wait([_REPORTED], datetime.timedelta(seconds=limit_s))
    except dist.DistStoreError:
        return False
    except dist.DistError:  # the store is gone, and so is rank 0
        return True
    return True


def exit_alone(code: int) -> NoReturn:
    """End this rank, which has printed the reason; the other ranks, which then cannot continue,
    print nothing (`peer_exited`)."""
    if dist.is_initialized():
        with contextlib.suppress(dist.DistError):
            dist.distributed_c10d._get_default_store().set(_EXITED, "")
    hard_exit(code)


def peer_exited() -> bool:
    """Return True if a rank has ended with `exit_alone`."""
    if dist.is_initialized():
        with contextlib.suppress(dist.DistError):
            return dist.distributed_c10d._get_default_store().check([_EXITED])
    return False


def wait_for_rank0(limit_s: float) -> None:
    """Wait until rank 0 calls this, too, or has ended, at most `limit_s` seconds; rank 0 does not
    wait."""
    if not dist.is_initialized():
        return
    store = dist.distributed_c10d._get_default_store()
    with contextlib.suppress(dist.DistError):
        if dist.get_rank() == 0:
            store.set(_READY, "")
        else:
            store.wait([_READY], datetime.timedelta(seconds=limit_s))


def at_hard_exit(clean: Callable[[], object]) -> Callable[[], object]:
    """Register `clean`, as its decorator, for `hard_exit` to call, which does not call the
    functions of `atexit`."""
    _at_hard_exit.append(clean)
    return clean


def hard_exit(code: int) -> NoReturn:
    """End this process at once: libraries take seconds at a normal exit, and some wait for other
    processes."""
    for clean in _at_hard_exit:
        with contextlib.suppress(OSError):
            clean()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk below it
            stream.flush()
    os._exit(code)
