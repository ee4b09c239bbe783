"""Functions of tensors whose work on the device is recorded once and then repeated.

A CUDA graph repeats the same launches on the same memory with one call of the host. So a function
that is recorded reads its arguments from static tensors, returns static tensors, and depends on
nothing of the host that changes: no number, no shape, no read of the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Tensors = tuple[torch.Tensor | None, ...]
Function = Callable[..., Any]
"""From tensors to a tensor or nothing."""

WARM_UP = 3
"""Calls before the recording: they compile kernels, choose algorithms and make workspaces."""
_MOST = 4  # signatures of one function; others are not recorded


class Recorder(Protocol):
    """What records the work of a function."""

    def record(self, function: Function, inputs: Tensors) -> tuple[Callable[[], None], Any]:
        """Call the function several times, then record a call; return what repeats it, and its
        output, which a repetition writes again."""


class CudaRecorder:
    """Recordings as CUDA graphs on one device, in one pool of memory.

    The mode `thread_local` allows other threads what would spoil a capture, as the loader's threads
    wait for the device.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def record(self, function: Function, inputs: Tensors) -> tuple[Callable[[], None], Any]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            output = function(*inputs)
        return graph.replay, output


@dataclass(frozen=True)
class Recording:
    """A recorded call: its static arguments, what repeats it, and its static output."""

    inputs: Tensors
    repeat: Callable[[], None]
    output: Any

    def run(self, tensors: Tensors) -> Any:
        for static, tensor in zip(self.inputs, tensors, strict=True):
            if static is not None and tensor is not None:
                static.copy_(tensor)
        self.repeat()
        return self.output


class Recorded:
    """A function that is recorded for each signature of its arguments, the first `_MOST` of them.

    changed: tensors that a call changes; the calls before a recording leave them as they were. The
    output is that of the last call: whoever keeps it copies it.
    """

    def __init__(
        self, function: Function, recorder: Recorder, changed: Sequence[torch.Tensor] = ()
    ) -> None:
        self._function = function
        self._recorder = recorder
        self._changed = changed
        self._recordings: dict[tuple[Any, ...], Recording] = {}

    def __call__(self, *tensors: torch.Tensor | None) -> Any:
        signature = tuple(map(_describe, tensors))
        if signature not in self._recordings:
            if len(self._recordings) == _MOST:
                return self._function(*tensors)
            self._recordings[signature] = self._record(tensors)
        return self._recordings[signature].run(tensors)

    def record(self, *tensors: torch.Tensor | None) -> None:
        """Record the function for arguments like these, without a call; raises what it raises."""
        self._recordings[tuple(map(_describe, tensors))] = self._record(tensors)

    def _record(self, tensors: Tensors) -> Recording:
        inputs = tuple(None if tensor is None else tensor.clone() for tensor in tensors)
        before = [tensor.clone() for tensor in self._changed]
        try:
            return Recording(inputs, *self._recorder.record(self._function, inputs))
        finally:
            with torch.no_grad():
                for tensor, value in zip(self._changed, before, strict=True):
                    tensor.copy_(value)


def _describe(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
