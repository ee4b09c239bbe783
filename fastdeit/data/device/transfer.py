"""Small arrays of a batch on their way to its device."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

ALIGNMENT = 16
"""The bytes of the widest load of a GPU thread; for pointers with this alignment Triton compiles a
separate kernel."""


def to_device_of(images: torch.Tensor, *arrays: np.ndarray) -> list[torch.Tensor]:
    """Return small arrays as tensors on the device of the images: one copy to a GPU, none on a
    CPU."""
    if images.is_cuda:
        return send_together(arrays, images.device)
    return [as_tensor(array) for array in arrays]


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array as a contiguous tensor on the CPU, without a copy if it is contiguous."""
    return torch.from_numpy(np.ascontiguousarray(array))


def send_together(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Copy the arrays to `device` at once; return them as views of one block of memory, each at a
    multiple of `ALIGNMENT` bytes.

    The host does not wait for the copy: torch's allocator of pinned memory uses the block again
    only after the event that the copy leaves in its stream, so no reference has to be kept.
    """
    arrays = [np.ascontiguousarray(array) for array in arrays]
    lengths = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays]
    *starts, end = itertools.accumulate(lengths, initial=0)
    staging = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
    host = staging.numpy()
    for start, array in zip(starts, arrays, strict=True):
        host[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    sent = staging.to(device, non_blocking=True)
    return [
        _view_as(array, sent[start : start + array.nbytes])
        for start, array in zip(starts, arrays, strict=True)
    ]


def _view_as(array: np.ndarray, memory: torch.Tensor) -> torch.Tensor:
    """Return a view of bytes with the shape and the dtype of an array."""
    return memory.view(torch.from_numpy(array).dtype).view(array.shape)
