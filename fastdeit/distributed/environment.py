"""The variables that a launcher sets for each process. The module does not import torch."""

import os
from pathlib import Path

import fastdeit

_PLACE = frozenset(
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE LOCAL_SIZE CROSS_RANK CROSS_SIZE GROUP_RANK "
    "GROUP_WORLD_SIZE ROLE_RANK ROLE_NAME ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()
)
"""The variables of torchrun and of DeepSpeed's launcher; torchrun's others begin with
TORCHELASTIC_."""


def make_child_environment() -> dict[str, str]:
    """Return the environment of a child process that imports this package, is not a rank and sees
    no GPU."""
    # train.py finds the package by its own path, which a child does not inherit
    places = [str(Path(fastdeit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, places))
    others = {
        name: value
        for name, value in os.environ.items()
        if name not in _PLACE and not name.startswith("TORCHELASTIC_")
    }
    return others | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}


def is_alone() -> bool:
    """Return True unless a launcher started this process as one of several.

    WORLD_SIZE without RANK comes from a batch script, not from a launcher.
    """
    return "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1"


def is_first_on_machine() -> bool:
    """Return True for one process of each machine, which prints the lines that concern the
    machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def count_local_ranks() -> int:
    """Return the number of processes on this machine, from torchrun or DeepSpeed's launcher."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"):
        if os.environ.get(name):
            return int(os.environ[name])
    return 1
