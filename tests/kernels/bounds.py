"""A check of the addresses that an interpreted kernel reads and writes. On a CPU a mask that is
missing changes no result as long as the memory beside a tensor belongs to the process; on a GPU it
ends the run, or two programs write the same place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

_load = InterpreterBuilder.create_masked_load
_store = InterpreterBuilder.create_masked_store
_take_arguments = GridExecutor._init_args_hst


class _Extents:
    """The first and the last address, plus one, of each tensor of the launch that runs."""

    def __init__(self) -> None:
        self.extents: list[tuple[int, int]] = []

    def set_tensors(self, tensors: list[torch.Tensor]) -> None:
        self.extents = [(one.data_ptr(), one.data_ptr() + _bytes_of(one)) for one in tensors]

    def check(self, ptrs: TensorHandle, mask: TensorHandle) -> None:
        """Raise IndexError if an element of the mask has its address outside of all tensors."""
        size = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        # mostly all are inside, and a selection by the mask costs as much as the load
        if not self._hold(ptrs.data, size) and not self._hold(ptrs.data[mask.data], size):
            raise IndexError("an address is in no tensor of the launch")

    def _hold(self, addresses: np.ndarray, size: int) -> bool:
        """Return True if one tensor holds the elements of `size` bytes at all addresses."""
        if not addresses.size:
            return True
        first, end = int(addresses.min()), int(addresses.max()) + size
        return any(begin <= first and end <= stop for begin, stop in self.extents)


def _bytes_of(tensor: torch.Tensor) -> int:
    """Return the bytes from the first to the last element of a tensor."""
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (sum((size - 1) * stride for size, stride in steps) + 1) * tensor.element_size()


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Raise IndexError, as triton's InterpreterError, when an interpreted kernel reads or writes
    an address outside of the tensors that it was launched with; compiled kernels run as before."""
    extents = _Extents()

    def take_arguments(self: GridExecutor, args: Any, kwargs: Any) -> Any:
        taken, named = _take_arguments(self, args, kwargs)
        found = [one for one in (*taken, *named.values()) if hasattr(one, "data_ptr")]
        extents.set_tensors(found)
        return taken, named

    def load(self: Any, ptrs: TensorHandle, mask: TensorHandle, *rest: Any) -> Any:
        extents.check(ptrs, mask)
        return _load(self, ptrs, mask, *rest)

    def store(self: Any, ptrs: TensorHandle, value: Any, mask: TensorHandle, *rest: Any) -> Any:
        extents.check(ptrs, mask)
        return _store(self, ptrs, value, mask, *rest)

    with (
        patch.object(GridExecutor, "_init_args_hst", take_arguments),
        patch.multiple(InterpreterBuilder, create_masked_load=load, create_masked_store=store),
    ):
        yield
