"""The stream of a GPU on which a loader's thread works beside the training step."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch


class SideStream:
    """A separate CUDA stream for the launches of one thread; on a CPU it does nothing.

    device: without an index, the current device of the thread that creates this object.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Launch on this stream inside the `with` block; other threads keep their current device
        and stream."""
        if self._stream is None:
            yield
            return
        # each thread has a current device and a current stream
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            yield

    def mark(self) -> torch.cuda.Event | None:
        """Return an event that follows all launches so far; None on a CPU."""
        return None if self._stream is None else self._stream.record_event()

    def hand_over(self, value: Any, mark: torch.cuda.Event | None) -> None:
        """Make the caller's current stream, but not the host, wait for `mark`; reserve the memory
        of the tensors in `value` until that stream has read them.

        value: a tensor, or tuples and dataclasses of them.
        """
        if self._stream is None or mark is None:
            return
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_event(mark)
        for tensor in _list_tensors(value):
            # torch ignores this for memory of DALI, which frees it after a wait for the device
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
