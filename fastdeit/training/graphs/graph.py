"""Functions of tensors whose launches are recorded once and then replayed by one call.

A step of DeiT-S needs hundreds of launches, each of them some microseconds of host time; at 128
images a GPU has done its work before the host has launched it. A recorded function reads its
arguments from static tensors, into which a call copies what it is given. Everything else that it
reads must be a tensor whose memory is the same at each call; a Python number is recorded with its
present value.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

MOST = 4
"""The largest number of signatures of a function that are recorded; calls with others run without a
graph."""

Function = Callable[..., Any]
"""A function from tensors, any of which may be None, to a tensor or None."""


class Run(Protocol):
    """A way to call a function of a step; name: that of the function, the same at each of its
    calls."""

    def __call__(
        self, name: str, function: Function, *tensors: torch.Tensor | None
    ) -> torch.Tensor | None: ...


def run_eagerly(
    name: str, function: Function, *tensors: torch.Tensor | None
) -> torch.Tensor | None:
    """Return the result of a call without a graph."""
    return function(*tensors)


class Recording(NamedTuple):
    """A function's launches, and the tensor that they write its result to."""

    replay: Callable[[], object]
    output: torch.Tensor | None


class Recorder(Protocol):
    """Recorder of launches: `CudaRecorder` (graphs/cuda.py), or a substitute for it on a CPU."""

    def record(self, function: Callable[[], torch.Tensor | None]) -> Recording:
        """Record the launches of a function; tensors that existed before do not change.

        Any exception may be raised; then nothing has changed either.
        """


class Graph(NamedTuple):
    """A recorded function, and the static tensors that are its arguments."""

    inputs: tuple[torch.Tensor | None, ...]
    recording: Recording

    def __call__(self, *tensors: torch.Tensor | None) -> torch.Tensor | None:
        """Return the function's result for tensors like `inputs`, as a copy."""
        for static, tensor in zip(self.inputs, tensors, strict=True):
            if static is not None and tensor is not None:
                static.copy_(tensor)
        self.recording.replay()
        output = self.recording.output
        return None if output is None else output.clone()


class Graphs:
    """The graphs of a run, by the name of a function and the signature of its arguments."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._graphs: dict[str, dict[Any, Graph]] = {}
        self.failures: dict[str, str] = {}
        """The reason, in one line, why a function will run without a graph, by its name."""
        self._noted = 0

    def run(
        self, name: str, function: Function, *tensors: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return the function's result, by a graph if it can be recorded."""
        graph = self._find(name, function, tensors)
        return function(*tensors) if graph is None else graph(*tensors)

    def record(
        self, name: str, function: Function, *tensors: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Record the function for arguments like these, and run nothing; return None."""
        self._find(name, function, tensors)
        return None

    def take_notes(self) -> list[str]:
        """Return a line for each function that has failed since the last call."""
        notes = [f"{name}: no CUDA graph: {reason}" for name, reason in self.failures.items()]
        new = notes[self._noted :]
        self._noted = len(notes)
        return new

    def _find(
        self, name: str, function: Function, tensors: tuple[torch.Tensor | None, ...]
    ) -> Graph | None:
        if name in self.failures:
            return None
        graphs = self._graphs.setdefault(name, {})
        signature = tuple(map(_describe, tensors))
        if signature not in graphs and len(graphs) < MOST:
            try:
                graphs[signature] = self._record(function, tensors)
            # what cannot be recorded, or does not fit into memory twice, may still run without a
            # graph
            except Exception as error:
                self._fail(name, error)
        return graphs.get(signature)

    def _record(self, function: Function, tensors: tuple[torch.Tensor | None, ...]) -> Graph:
        inputs = tuple(None if tensor is None else tensor.detach().clone() for tensor in tensors)
        return Graph(inputs, self._recorder.record(lambda: function(*inputs)))

    def _fail(self, name: str, error: Exception) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        self.failures[name] = text if len(text) <= 200 else f"{text[:199]}…"
        self._graphs[name].clear()


def _describe(tensor: torch.Tensor | None) -> Any:
    if tensor is None:
        return None
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
