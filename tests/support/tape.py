"""A stand-in for CUDA graphs on a CPU: it records operators with their tensors, and repeats exactly
these calls on the same memory.

What a step takes from the host, such as a number or a shape, is a constant of the recording, as in
a CUDA graph; what it allocates has the same memory in every repetition.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.counting import ALLOCATIONS
from fastdeit.training.graphs.recorded import WARM_UP, Function, Tensors

Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


class Tape(TorchDispatchMode):
    """The operators that are called while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket not in ALLOCATIONS and not func.is_view:
            self.calls.append((func, args, kwargs or {}, output))
        return output

    @torch.no_grad()
    def repeat(self) -> None:
        for func, args, kwargs, output in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(output), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)


class TapeRecorder:
    """Recordings as tapes; tapes: those that were made."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def record(self, function: Function, inputs: Tensors) -> tuple[Callable[[], None], Any]:
        for _ in range(WARM_UP):
            function(*inputs)
        tape = Tape()
        with tape:
            output = function(*inputs)
        self.tapes.append(tape)
        return tape.repeat, output
