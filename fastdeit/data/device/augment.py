"""The steps of the exact backend after the decoder, as kernels: resize, flip, operations.

`Pixels` are normalised and erased while they are mixed (kernels/mix_kernels/pixels.py), or by
`normalise`. With the same decoded pixels and draws, the bits are those of data/augment/exact.py.
"""

from collections.abc import Sequence

import torch

from fastdeit.data.device.transfer import send_together
from fastdeit.kernels.augment import augment
from fastdeit.kernels.normalise import Pixels, level_values
from fastdeit.kernels.resize import resize
from fastdeit.plan.operations import mean_colour
from fastdeit.plan.spec import PlanSpec


class Augmenter:
    """The kernels, with the settings that all samples of a run share.

    mean, std: of each channel, for values in 0..1.
    """

    def __init__(self, spec: PlanSpec, mean: Sequence[float], std: Sequence[float]) -> None:
        self._spec = spec
        self._fill = mean_colour(mean)
        self._levels = level_values(mean, std)

    def augment_windows(
        self,
        packed: torch.Tensor,
        place: Sequence[torch.Tensor],
        changes: Sequence[torch.Tensor],
    ) -> Pixels:
        """Return B samples, S x S.

        packed: uint8 (n,), a buffer with the decoded windows one after the other. place: rows of
        `place_crops`, on the CPU; changes: rows of `pack_changes`, on the device of the buffer.
        """
        start, stride, shape, window, flip = place
        crops = resize(packed, start, stride, shape, window, flip, self._spec.input_size)
        return self.augment_crops(crops, changes)

    def augment_crops(self, crops: torch.Tensor, changes: Sequence[torch.Tensor]) -> Pixels:
        """Return B samples from resized crops, uint8 (B, H, W, 3); changes: as for
        `augment_windows`."""
        ops, args, erase, key = changes
        if self._spec.layers:
            crops = augment(crops, ops, args, self._fill, self._spec.layer_ops)
        if self._levels.device != crops.device:
            (self._levels,) = send_together([self._levels.numpy()], crops.device)
        return Pixels(crops, self._levels, erase, self._spec.remode, key)
