"""A substitute for CUDA graphs on a CPU: it records the operators of a function with their tensors,
and a replay calls the same operators on the same memory.

So a Python number that changes between two steps has its recorded value, as in a CUDA graph; a read
of a value, a copy between devices and a random number raise RuntimeError, as a CUDA graph does not
allow them or would give wrong results.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from benchmarks.measuring.counting import ALLOCATIONS, COPIES, crosses, is_read
from fastdeit.training.graphs.graph import Recording
from fastdeit.training.graphs.undo import Undo


class Tape(TorchDispatchMode):
    """A record of operators with their input and output tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[Any]]] = []

    def __len__(self) -> int:
        return len(self._calls)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_read(func, args, kwargs):
            raise RuntimeError(f"{func} reads a value of the device")
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in str(func):
            raise RuntimeError(f"{func} draws a random number")
        if func.overloadpacket in COPIES and crosses(args, kwargs):
            raise RuntimeError(f"{func} copies between devices")
        result = func(*args, **kwargs)
        if func.overloadpacket not in ALLOCATIONS and not func.is_view:
            self._calls.append((func, args, kwargs, tree_flatten(result)[0]))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Call all operators again, without counting them, and write their results to the memory of
        the first ones."""
        with _disable_current_modes():
            for func, args, kwargs, outputs in self._calls:
                results = tree_flatten(func(*args, **kwargs))[0]
                for output, result in zip(outputs, results, strict=True):
                    if torch.is_tensor(output) and output.data_ptr() != result.data_ptr():
                        output.copy_(result)


class TapeRecorder:
    """The recorder of tapes; recorded: the number of operators of each tape; replayed: that of each
    replay."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.replayed: list[int] = []

    def record(self, function: Callable[[], torch.Tensor | None]) -> Recording:
        tape = Tape()
        with Undo(), tape:
            output = function()
        self.recorded.append(len(tape))

        def replay() -> None:
            tape.replay()
            self.replayed.append(len(tape))

        return Recording(replay, output)
