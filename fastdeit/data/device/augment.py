"""What the exact backend does after the decoder, as kernels: resize, flip, operations, normalise,
erase. With the same decoded pixels and draws, the bits are those of data/augment/exact.py."""

from collections.abc import Sequence

import torch

from fastdeit.kernels.augment import augment
from fastdeit.kernels.normalise import level_values, normalise
from fastdeit.kernels.resize import resize
from fastdeit.plan.operations import mean_colour
from fastdeit.plan.spec import PlanSpec


class Augmenter:
    """The kernels with what all samples of a run have in common.

    mean, std: of each channel, for values in 0..1; dtype: of the images, float32, float16 or
    bfloat16.
    """

    def __init__(
        self, spec: PlanSpec, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
    ) -> None:
        self._spec = spec
        self._fill = mean_colour(mean)
        self._levels = level_values(mean, std)
        self._dtype = dtype

    def augment_windows(
        self, packed: torch.Tensor, rows: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return images (B, 3, S, S), normalised and erased.

        packed: uint8 (n,), decoded windows one after the other; rows: of `locate_crops` and
        `pack_crops`, on the same device.
        """
        start, stride, shape, window, flip, *changes = rows
        images = resize(packed, start, stride, shape, window, flip, self._spec.input_size)
        return self.augment_crops(images, changes)

    def augment_crops(self, images: torch.Tensor, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return images (B, 3, H, W), normalised and erased, of finished crops.

        images: uint8 (B, H, W, 3); rows: of `pack_changes`, on the same device.
        """
        ops, args, erase, key = rows
        if self._spec.layers:
            images = augment(images, ops, args, self._fill, self._spec.layer_ops)
        # copied once
        self._levels = self._levels.to(images.device)
        return normalise(images, self._levels, erase, self._spec.remode, key, self._dtype)
