"""The mirror of a run, opened by rank 0 before anything of the run is read."""

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from fastdeit.display.terminal import Terminal
from fastdeit.distributed.collectives import on_each_machine, on_every_rank, on_rank0
from fastdeit.mirror.mirror import RunMirror
from fastdeit.reliability.run_lock import RunLock


def open_mirror(mirror: RunMirror, lock: RunLock, proceed: Callable[[], bool]) -> None:
    """Lock the working copy, and bring it to what the URL has, on rank 0; the others wait, however
    long that takes. A collective.

    proceed: as `on_each_machine` takes it. Raises ValueError, also if the machines do not share the
    working copy.
    """

    def action(proceed: Callable[[], bool]) -> None:
        if dist.get_rank() == 0:
            lock.acquire()
            mirror.open(Terminal().say, proceed)

    on_each_machine(action, proceed)
    file = mirror.folder.lock
    holder = on_rank0(file.read_text)
    on_every_rank(lambda: _require_shared(file, holder))


def _require_shared(file: Path, holder: str) -> None:
    """Raise ValueError if this machine has another file than that with which rank 0 has locked the
    working copy."""
    if not (file.is_file() and file.read_text() == holder):
        raise ValueError(
            f"--output-dir: the working copy {file.parent} must be on a file system that all "
            "machines share; set FASTDEIT_RUNS to a folder on one"
        )
