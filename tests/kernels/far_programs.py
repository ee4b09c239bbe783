"""Programs of a launch that is too large for memory, such as a batch of more than 2**31 elements:
their integers are computed, and nothing is read or written."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_set_grid_idx = InterpreterBuilder.set_grid_idx
_set_grid_dim = InterpreterBuilder.set_grid_dim


@contextmanager
def far_programs(distance: int) -> Iterator[None]:
    """Run each program of an interpreted launch as the one `distance` numbers on, along the first
    dimension of the grid. Raise triton's InterpreterError where an integer of less than 64 bits
    overflows. What is read is zero, the results are not written."""

    def set_grid_dim(self: Any, x: int, y: int, z: int) -> None:
        _set_grid_dim(self, x + distance, y, z)

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        _set_grid_idx(self, x + distance, y, z)

    def load(self: Any, ptrs: TensorHandle, *_: Any) -> TensorHandle:
        kind = ptrs.get_element_ty()
        return TensorHandle(np.zeros(ptrs.data.shape, interpreter._get_np_dtype(kind)), kind)

    builder = interpreter.interpreter_builder
    with (
        patch.multiple(
            InterpreterBuilder,
            set_grid_dim=set_grid_dim,
            set_grid_idx=set_grid_idx,
            create_masked_load=load,
            create_masked_store=lambda *_: None,
        ),
        patch.object(
            builder, "options", replace(builder.options, sanitize_overflow=True, debug=True)
        ),
    ):
        yield
