"""The exponential moving average (EMA) of the weights."""

from collections.abc import Mapping, Sequence

import torch


class Ema:
    """Exponential moving average (EMA) of flat fp32 partitions and of a model's buffers:
    ema += (1 - decay) * (value - ema). Integer buffers are copied.

    The formula and the call are those of `torch.optim.swa_utils.get_ema_multi_avg_fn`, whose
    `AveragedModel` needs a whole module, which ZeRO 3 does not have. On DeepSpeed's partitions it
    costs 4 bytes * parameters / ranks, no communication and one launch.

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
        self.buffers = {name: buffer.clone() for name, buffer in buffers.items()}

    @torch.no_grad()
    def update(
        self, flats: Sequence[torch.Tensor], buffers: Mapping[str, torch.Tensor], step: int
    ) -> None:
        """Move towards the current values, given in the order and under the names of the start;
        call it after each optimizer step that was applied, with its number, from 0."""
        rate = 1.0 - self.decay_at(step)
        torch._foreach_lerp_(self.flats, list(flats), rate)
        for name, value in buffers.items():
            ema = self.buffers[name]
            if ema.is_floating_point():
                ema.lerp_(value.to(ema.dtype), rate)
            else:
                ema.copy_(value)

    def decay_at(self, step: int) -> float:
        """Return the decay of the update after a step."""
        if not self.warmup:
            return self.decay
        return min(self.decay, 1 - (1 + step) ** (-2 / 3))
