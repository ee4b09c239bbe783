"""The learning rate of each step."""

from collections.abc import Iterable
from typing import Any

from timm.scheduler import CosineLRScheduler


class Rates:
    """The learning rate of each group on the host. timm's schedulers get it in place of the
    optimizer, which has its rates on the device.

    groups: of the optimizer, in torch's form, with timm's `lr_scale` or without.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"lr": lr} | {key: value for key, value in group.items() if key == "lr_scale"}
            for group in groups
        ]


class EpochCosineScheduler(CosineLRScheduler):
    """A cosine schedule in epochs, called with the number of a step: one rate for each whole epoch.

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
    """Build a schedule of a linear warm-up, then a cosine to `min_lr`; call `step_update(k)` before
    step k.

    optimizer: `Rates`, or anything with torch's `param_groups`. on_updates: a new rate every step,
    else every epoch, `lag` epochs late. The rate is a function of k alone.
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
