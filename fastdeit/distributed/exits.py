"""Leave a run: end this process at once, and agree on which rank says why."""

import contextlib
import datetime
import os
import sys
from typing import NoReturn

import torch.distributed as dist

_TOLD, _LEFT = "fastdeit/told", "fastdeit/left"


def rank0_reports_error(limit_s: float = 3.0) -> bool:
    """Whether rank 0 ends for an error, too, within `limit_s`, and so says it for all; every rank
    that ends for one asks.

    No collective, for the others may wait in one that this rank will not reach: it asks the store
    through which they met.
    """
    if not dist.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") != "0"  # each machine's first process speaks
    store = dist.distributed_c10d._get_default_store()
    if dist.get_rank() == 0:
        store.set(_TOLD, "")
        return False
    try:
        store.wait([_TOLD], datetime.timedelta(seconds=limit_s))
    except dist.DistStoreError:
        return False
    except dist.DistError:  # the store went with rank 0
        return True
    return True


def exit_alone(code: int) -> NoReturn:
    """Ends this rank, which has said why; the others, which then miss it, need say nothing
    (`peer_exited`)."""
    if dist.is_initialized():
        with contextlib.suppress(dist.DistError):
            dist.distributed_c10d._get_default_store().set(_LEFT, "")
    hard_exit(code)


def peer_exited() -> bool:
    """Whether a rank has ended with `exit_alone`."""
    if dist.is_initialized():
        with contextlib.suppress(dist.DistError):
            return dist.distributed_c10d._get_default_store().check([_LEFT])
    return False


def hard_exit(code: int) -> NoReturn:
    """Ends this process here: what libraries do on their way out takes seconds, and some wait for
    other processes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk below it takes nothing more
            stream.flush()
    os._exit(code)
