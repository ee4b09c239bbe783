"""Exits: end this process at once, and agree on which rank reports the error."""

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

    Every rank that fails calls it. It is no collective, for the other ranks may wait in one that
    this rank will not reach: it goes through the store of the process group.
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
    """End this rank, which has printed why, so that the others, which then miss it, print nothing
    (`peer_exited`)."""
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
    """Wait until rank 0 calls this too, or has ended, at most `limit_s`; rank 0 does not wait."""
    if not dist.is_initialized():
        return
    store = dist.distributed_c10d._get_default_store()
    with contextlib.suppress(dist.DistError):
        if dist.get_rank() == 0:
            store.set(_READY, "")
        else:
            store.wait([_READY], datetime.timedelta(seconds=limit_s))


def at_hard_exit(clean: Callable[[], object]) -> Callable[[], object]:
    """Have `hard_exit` call `clean`, a decorator of it: it skips what `atexit` was given."""
    _at_hard_exit.append(clean)
    return clean


def hard_exit(code: int) -> NoReturn:
    """End this process here: libraries take seconds on their way out, and some wait for other
    processes."""
    for clean in _at_hard_exit:
        with contextlib.suppress(OSError):
            clean()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk below it
            stream.flush()
    os._exit(code)
