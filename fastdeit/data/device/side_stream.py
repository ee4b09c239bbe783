"""The stream of a GPU on which a loader's thread works beside the training step."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch


class SideStream:
    """A CUDA stream of its own for what one thread launches; on a CPU it does nothing.

    device: without an index, that of the thread that makes this object.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Launch on this stream within; another thread's current device and stream stay as they
        are."""
        if self._stream is None:
            yield
            return
        # each thread has a current device and a current stream
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            yield

    def mark(self) -> torch.cuda.Event | None:
        """Return an event after all that was launched so far; None on a CPU."""
        return None if self._stream is None else self._stream.record_event()

    def hand_over(self, value: Any, mark: torch.cuda.Event | None) -> None:
        """Make the caller's current stream wait for `mark`, not the host, and hold the memory of
        the tensors in `value` until that stream has read them.

        value: a tensor, or tuples and dataclasses of them.
        """
        if self._stream is None or mark is None:
            return
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_event(mark)
        for tensor in _list_tensors(value):
            # of what DALI has allocated, torch ignores it: DALI frees after the whole device
            if tensor.is_cuda:
                tensor.record_stream(current)


def _list_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in tuples and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _list_tensors(item)
    elif dataclasses.is_dataclass(value):
        yield from _list_tensors(tuple(vars(value).values()))
