"""The variables by which a launcher tells a process its place. Importing this imports no torch."""

import os


def is_alone() -> bool:
    """Return True unless a launcher started this process as one of several.

    WORLD_SIZE without RANK comes from a batch script, not from a launcher.
    """
    return "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1"


def is_first_on_machine() -> bool:
    """Return True for one process of each machine, which prints what concerns them all."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def count_local_ranks() -> int:
    """Return the number of processes on this machine, from torchrun or DeepSpeed's launcher."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"):
        if os.environ.get(name):
            return int(os.environ[name])
    return 1
