"""The draws of B samples as the arrays that the kernels take, a row a sample: known from the plan
before anything is decoded, so the device reads nothing back."""

import numpy as np
import torch

from fastdeit.data.graphs.copies import DecodePlan
from fastdeit.kernels.augment import pack_args
from fastdeit.plan.plan import SampleParams

CHANNELS = 3


def count_bytes(windows: np.ndarray) -> np.ndarray:
    """Return int64 (G,): the bytes of decoded windows, int (G, 4) as y, x, height, width."""
    return CHANNELS * windows[:, 2].astype(np.int64) * windows[:, 3]


def locate_crops(crop: np.ndarray, decoding: DecodePlan) -> tuple[np.ndarray, ...]:
    """Return where the samples' crops lie in the buffer that holds the decoded windows one after
    the other: the byte of the first pixel, int64 (B,); bytes from a row to the next, int32 (B,);
    height and width, int32 (B, 2).

    crop: int (B, 4), y, x, height, width in the stored image.
    """
    sizes = count_bytes(decoding.windows)
    first = (np.cumsum(sizes) - sizes)[decoding.group]
    stride = CHANNELS * decoding.windows[decoding.group, 3]
    place = decoding.place(crop)
    start = first + place[:, 0].astype(np.int64) * stride + CHANNELS * place[:, 1]
    return start, stride, place[:, 2:]


def pack_crops(draws: SampleParams) -> tuple[np.ndarray, ...]:
    """Return what happens to the crops: `SampleParams.resize`, int32 (B, 4), flipped, bool (B,),
    and the rows of `pack_changes`."""
    return draws.resize, draws.flip, *pack_changes(draws)


def pack_changes(draws: SampleParams) -> tuple[np.ndarray, ...]:
    """Return what happens to finished crops: operations, int32 (B, L), their arguments, float64 (B,
    L, 2), erased boxes, int32 (B, 4), and the keys of their noise, int64 (B,), with the bits of
    uint64."""
    ops = torch.from_numpy(draws.ops)
    args = pack_args(ops, torch.from_numpy(draws.op_args)).numpy()
    return draws.ops, args, draws.erase, draws.noise_key.view(np.int64)
