"""The recorder of CUDA graphs. Source: torch.cuda.graph and its notes on whole-network capture."""

from collections.abc import Callable

import torch

from fastdeit.training.graphs.graph import Recording
from fastdeit.training.graphs.undo import Undo

TRIALS = 3
"""Runs before the recording: Triton compiles, cuBLAS and cuDNN allocate; as many as
torch.cuda.make_graphed_callables has."""


class CudaRecorder:
    """Recorder of CUDA graphs, which share one memory pool: they are replayed one after the other
    on the current stream, and their results are copied before the next one runs."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], torch.Tensor | None]) -> Recording:
        """Record a function as `Recorder.record` does; it must not wait for the device, copy from
        the host or draw random numbers."""
        self._try(function)
        graph = torch.cuda.CUDAGraph()
        # other threads may use CUDA meanwhile
        mode = "thread_local"
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
            output = function()
        return Recording(graph.replay, output)

    def _try(self, function: Callable[[], object]) -> None:
        """Run a function on the stream of the recording, and undo what it does."""
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream), Undo():
                for _ in range(TRIALS):
                    function()
        finally:
            torch.cuda.current_stream().wait_stream(self._stream)
