"""Images out of DALI: those of one size as a tensor, others in one buffer on their device."""

import ctypes
import functools
from typing import Any

import numpy as np
import torch
from nvidia.dali.tensors import TensorListGPU

from fastdeit.data.device.rows import CHANNELS, count_bytes


def take_tensor(images: Any, kept: object) -> torch.Tensor:
    """Return images of one size, in DALI's memory."""
    return torch.from_dlpack(images.as_tensor())


def take_packed(decoded: Any, windows: np.ndarray) -> torch.Tensor:
    """Copy decoded images, one after the other, into one buffer: uint8 (n,), on their device.

    decoded: DALI's list of uint8 (h, w, 3), on the CPU or a GPU. windows: int (G, 4), y, x, height,
    width, as planned. On a GPU the host waits for this copy, and for no other work.
    Raises RuntimeError for images of other sizes, before any is copied.
    """
    planned = [(height, width, CHANNELS) for _, _, height, width in windows.tolist()]
    if [tuple(shape) for shape in decoded.shape()] != planned:
        raise RuntimeError("decoded images have other sizes than planned")
    total = int(count_bytes(windows).sum())
    if isinstance(decoded, TensorListGPU):
        return _take_from_gpu(decoded, total)
    packed = torch.empty(total, dtype=torch.uint8)
    decoded.copy_to_external(ctypes.c_void_p(packed.data_ptr()))
    return packed


def _take_from_gpu(decoded: Any, total: int) -> torch.Tensor:
    device = torch.device("cuda", decoded.device_id())
    # on the current stream the host would also wait for earlier steps
    stream = _copy_stream(device)
    with torch.cuda.stream(stream):
        packed = torch.empty(total, dtype=torch.uint8, device=device)
        # this waits: DALI may use its memory again as soon as the list is dropped
        decoded.copy_to_external(
            ctypes.c_void_p(packed.data_ptr()), ctypes.c_void_p(stream.cuda_stream)
        )
    # allocated on one stream, read on another: the memory is reserved until the kernels are done
    packed.record_stream(torch.cuda.current_stream(device))
    return packed


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
