"""The kernels of the exact backend, interpreted as fast as it goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from fastdeit.kernels import augment, normalise
from fastdeit.kernels.augment_kernels import blur, tables
from fastdeit.kernels.backend import use_backend
from fastdeit.kernels.resize_kernels import passes, weights
from tests.kernels.interpreter import INTERPRETED, poisoned_memory

_MODULES = (augment, blur, tables, normalise, passes, weights)
# each block costs the same time, whatever its size
_LARGE = {
    "augment": {"BLOCK_PART": 1024},
    "augment_blur": {"BLOCK": 8192},
    "augment_statistics": {"BLOCK": 1024, "STEPS": 1},
    "normalise": {"BLOCK_PART": 1024},
    "resize_weights": {"BLOCK": 2048},
    "resize_first": {"BLOCK": 32, "BLOCK_LINES": 512},
    "resize_second": {"BLOCK": 128, "BLOCK_LINES": 32},
}


@contextmanager
def quick_kernels() -> Iterator[None]:
    """Run the kernels also for CPU tensors, in large blocks, with new memory poisoned; on a GPU as
    they are."""
    with pytest.MonkeyPatch.context() as patch, use_backend("triton"), poisoned_memory():
        for module in _MODULES if INTERPRETED else ():
            _enlarge_blocks(module, patch)
        yield


def _enlarge_blocks(module: ModuleType, patch: pytest.MonkeyPatch) -> None:
    find_launch = module.find_launch

    def find(op: str, *key: Any, **sizes: Any) -> dict[str, int]:
        return find_launch(op, *key, **sizes) | _LARGE.get(op, {})

    patch.setattr(module, "find_launch", find)
