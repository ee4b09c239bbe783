"""Parameter groups, AdamW, the learning-rate schedule, and the EMA of the weights."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    layer_decay: float | None = None,
    decayed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Return timm's groups for AdamW; 1-D tensors (biases, norms) and what the model's
    `no_weight_decay()` names have no decay, except the parameters named in `decayed`.

    With `layer_decay` each depth has groups of its own, with timm's `lr_scale` = layer_decay **
    (depths above it); the model's `group_matcher()` says which parameter has which depth.
    """
    names: set[str] = getattr(model, "no_weight_decay", set)() - set(decayed)
    if layer_decay is None:
        return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=names)
    return param_groups_layer_decay(
        model, weight_decay, no_weight_decay_list=names, layer_decay=layer_decay
    )


def build_adamw(
    groups: Sequence[dict[str, Any]],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    *,
    fused: bool,
) -> torch.optim.AdamW:
    """Build AdamW (arXiv 1711.05101); fused: one launch a group, in one pass over weights,
    gradients and moments."""
    return torch.optim.AdamW(list(groups), lr=lr, betas=betas, eps=eps, fused=fused)


class EpochCosineScheduler(CosineLRScheduler):
    """A cosine schedule in epochs, called with the number of a step: one rate a whole epoch.

    lag: epoch e has the rate of epoch e - lag, at least that of epoch 0. deit's main.py steps its
    schedule after an epoch with that epoch's number: lag 1, and two epochs at the first rate.
    """

    def __init__(self, optimizer: Any, *, steps_per_epoch: int, lag: int, **settings: Any) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.lag = lag
        super().__init__(optimizer, **settings)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        super().step_update(max(0, num_updates // self.steps_per_epoch - self.lag), metric)


def build_schedule(
    optimizer: Any,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_lr: float,
    min_lr: float,
    on_updates: bool = True,
    lag: int = 0,
) -> CosineLRScheduler:
    """Build a linear warm-up, then cosine to `min_lr`: call `step_update(k)` before step k.

    optimizer: anything with torch's `param_groups`, DeepSpeed's ZeRO optimizer too. on_updates: a
    new rate every step, else every epoch, `lag` epochs late. The rate is a function of k alone.
    """
    rates = {"lr_min": min_lr, "warmup_lr_init": warmup_lr, "t_in_epochs": False}
    if on_updates:
        return CosineLRScheduler(
            optimizer,
            t_initial=epochs * steps_per_epoch,
            warmup_t=round(warmup_epochs * steps_per_epoch),
            **rates,
        )
    return EpochCosineScheduler(
        optimizer,
        steps_per_epoch=steps_per_epoch,
        lag=lag,
        t_initial=epochs,
        warmup_t=warmup_epochs,
        **rates,
    )


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
