"""The draws of B samples as the arrays that the kernels take, a row a sample: known from the plan
before anything is decoded, so the device reads nothing back."""

import numpy as np
import torch

from fastdeit.kernels.augment import pack_args
from fastdeit.plan.plan import SampleParams

CHANNELS = 3


def count_bytes(windows: np.ndarray) -> np.ndarray:
    """Return int64 (G,): the bytes of decoded windows, int (G, 4) as y, x, height, width."""
    return CHANNELS * windows[:, 2].astype(np.int64) * windows[:, 3]


def place_crops(
    draws: SampleParams, windows: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return the arguments of `resize` for a buffer that holds decoded windows one after the other.

    They are: the byte of each crop's first pixel, int64 (B,); the bytes from one row of pixels to
    the next, int32 (B,); height and width, int32 (B, 2); `SampleParams.resize`, int32 (B, 4);
    whether the crop is flipped, bool (B,).

    windows: int32 (G, 4), y, x, height, width in the stored image. group: int64 (B,), the window
    that each crop is cut from.
    """
    sizes = count_bytes(windows)
    stride = CHANNELS * windows[group, 3]
    y, x = (draws.crop[:, :2].astype(np.int64) - windows[group, :2]).T
    start = (np.cumsum(sizes) - sizes)[group] + y * stride + CHANNELS * x
    return start, stride, draws.crop[:, 2:], draws.resize, draws.flip


def pack_changes(draws: SampleParams) -> tuple[np.ndarray, ...]:
    """Return the arguments of the kernels for resized crops: operations, int32 (B, L), their
    arguments, float64 (B, L, 2), erased boxes, int32 (B, 4), and the keys of their noise, int64
    (B,), with the bits of uint64."""
    ops = torch.from_numpy(draws.ops)
    args = pack_args(ops, torch.from_numpy(draws.op_args)).numpy()
    return draws.ops, args, draws.erase, draws.noise_key.view(np.int64)
