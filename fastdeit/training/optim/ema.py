"""The exponential moving average (EMA) of the weights."""

from collections.abc import Mapping, Sequence

import torch

from fastdeit.training.buffers import flatten, name_views
from fastdeit.training.staging import StagedNumbers


class Ema:
    """Exponential moving average (EMA) of flat fp32 partitions and of a model's buffers:
    ema += (1 - decay) * (value - ema). Integer buffers are copied.

    The formula is that of `torch.optim.swa_utils.get_ema_multi_avg_fn`, whose `AveragedModel` needs
    a whole module, which ZeRO 3 does not have, and a host that knows whether a step was skipped. On
    DeepSpeed's partitions it costs 4 bytes * parameters / ranks, no communication and one launch
    for each partition.

    warmup: the decay rises to `decay` with the number of the step, as that of timm's `ModelEmaV3`
    with `use_warmup`: 1 - (1 + step)^(-2/3), so the first update copies the weights.
    """

    def __init__(
        self,
        flats: Sequence[torch.Tensor],
        buffers: Mapping[str, torch.Tensor],
        decay: float,
        *,
        warmup: bool = False,
    ) -> None:
        self.decay = decay
        self.warmup = warmup
        self.flats = [flat.clone() for flat in flats]
        self._flat_buffers = flatten(buffers.values())
        self.buffers = name_views(buffers, self._flat_buffers)
        """Copies of the buffers by name, which change in place."""
        self._rate = StagedNumbers(1, self.flats[0].device)

    def set_rate(self, step: int) -> None:
        """Set the decay of the update after a step, counted from 0, without a wait."""
        self._rate.write([1.0 - self.decay_at(step)])

    @torch.no_grad()
    def update(
        self,
        flats: Sequence[torch.Tensor],
        buffers: Mapping[str, torch.Tensor],
        skipped: torch.Tensor,
    ) -> None:
        """Move the averages towards the current values, which have the order and the names that
        `__init__` got; call this after each optimizer step.

        skipped: 0-d fp32 on the device; 1.0: the step was skipped and the EMA does not change.
        """
        (rate,) = self._rate.values
        weight = torch.addcmul(rate, rate, skipped, value=-1)
        for ema, flat in zip(self.flats, flats, strict=True):
            ema.lerp_(flat, weight)
        for dtype, value in flatten(buffers.values()).items():
            if dtype.is_floating_point:
                self._flat_buffers[dtype].lerp_(value, weight.to(dtype))
            else:
                self._flat_buffers[dtype].copy_(value)

    def decay_at(self, step: int) -> float:
        """Return the decay of the update after a step."""
        if not self.warmup:
            return self.decay
        return min(self.decay, 1 - (1 + step) ** (-2 / 3))
