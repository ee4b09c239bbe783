"""The findings on training: of the loss, the optimizer and the schedule that are built."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fastdeit.audit.findings import Finding, Findings
from fastdeit.training.losses import Criterion, DistillationLoss

STEPS_PER_EPOCH = 100
"""The steps in an epoch of the schedule that is read: its form in epochs is the same with any
number of steps."""

_FALL = 0.1
"""The largest share of the peak at which a cosine counts as decayed."""


def read_criterion(criterion: Criterion) -> Findings:
    """Return the findings on the losses."""
    if not isinstance(criterion, DistillationLoss):
        return {
            **read_distillation("none", 0.0, 1.0),
            "label_loss": Finding("binary cross-entropy of two submodels (cosub)", False),
            "smoothing": read_number(0.0, 0.1),
        }
    base = "binary cross-entropy" if criterion.bce else "cross-entropy"
    return {
        **read_distillation(criterion.kind, criterion.alpha, criterion.tau),
        "label_loss": Finding(base, not criterion.bce),
        "smoothing": read_number(criterion.smoothing, 0.1),
    }


def read_distillation(kind: str, alpha: float, tau: float) -> Findings:
    """Return the findings on what is learned from the teacher, and on its weight."""
    if kind == "none":
        return dict.fromkeys(("distillation", "loss_weights"), Finding("no teacher", False))
    text = "hard labels" if kind == "hard" else f"{kind}, temperature {tau:g}"
    weights = f"{1 - alpha:g} and {alpha:g}"
    return {
        "distillation": Finding(text, kind == "hard"),
        "loss_weights": Finding(weights, alpha == 0.5),
    }


def read_number(value: float, wanted: float) -> Finding:
    """Return the finding on a number; 0 is "none"."""
    return Finding(f"{value:g}" if value else "none", math.isclose(value, wanted))


def read_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> Findings:
    """Return the finding on the optimizer and its weight decay."""
    groups = optimizer.param_groups
    named = {parameter: name for name, parameter in model.named_parameters()}
    decays = {
        named[parameter]: (group["weight_decay"], parameter.ndim)
        for group in groups
        for parameter in group["params"]
    }
    used = sorted({decay for decay, _ in decays.values() if decay})
    spared = [name for name, (decay, ndim) in decays.items() if ndim > 1 and not decay]
    has_vectors = any(decay for decay, ndim in decays.values() if ndim <= 1)
    name = type(optimizer).__name__
    text = f"{name}, weight decay {' and '.join(f'{decay:g}' for decay in used) or '0'}"
    if used:
        text += f", not of {', '.join([*([] if has_vectors else ['vectors']), *spared])}"
    settings = [(group["betas"], group["eps"]) for group in groups]
    is_usual = all(pair == ((0.9, 0.999), 1e-8) for pair in settings)
    if not is_usual:
        text += ", betas {:g} and {:g}".format(*groups[0]["betas"]) + f", eps {groups[0]['eps']:g}"
    is_equal = name == "AdamW" and used == [0.05] and is_usual and not has_vectors
    return {"optimizer": Finding(text, is_equal and not _spares_layers(spared))}


def _spares_layers(spared: Sequence[str]) -> bool:
    """Return True if more than tokens and position embedding have no decay."""
    return any(not name.endswith(("_token", "pos_embed")) for name in spared)


def read_schedule(schedule: Any, batch_size: int, epochs: int, lag: int) -> Findings:
    """Return the findings on the learning rate.

    schedule: one of timm, with `STEPS_PER_EPOCH`; batch_size: that of all processes; lag: the
    number of epochs that its rates are late.
    """
    groups = schedule.optimizer.param_groups

    def rate(epoch: float) -> float:
        schedule.step_update(round(epoch * STEPS_PER_EPOCH))
        return float(max(group["lr"] for group in groups))

    by_step = schedule.t_initial == epochs * STEPS_PER_EPOCH
    warmup = schedule.warmup_t / (STEPS_PER_EPOCH if by_step else 1)
    peak = max(schedule.base_values)
    is_even = all(group.get("lr_scale", 1.0) == 1 for group in groups)
    return {
        "learning_rate": read_peak(peak, batch_size, is_even),
        "schedule": _read_form(rate, epochs, warmup, lag, (schedule.lr_min, peak)),
        **read_lengths(warmup, epochs, batch_size),
    }


def read_lengths(warmup: float | None, epochs: float | None, batch_size: int | None) -> Findings:
    """Return the findings on the numbers of table 9 that are known."""
    found = {}
    if warmup is not None:
        text = f"{warmup:g} epoch{'' if warmup == 1 else 's'}"
        found["warmup"] = Finding(text, warmup == 5)
    if epochs is not None:
        found["epochs"] = Finding(f"{epochs:g}", epochs == 300)
    if batch_size:
        found["batch_size"] = Finding(f"{batch_size}", batch_size == 1024)
    return found


def read_peak(peak: float, batch_size: int, is_even: bool) -> Finding:
    """Return the finding on the highest learning rate; is_even: every layer has it."""
    per_512 = peak * 512 / batch_size
    text = f"{peak:g} = {per_512:g} x {batch_size} / 512"
    is_equal = math.isclose(per_512, 5e-4, rel_tol=1e-6) and is_even
    return Finding(text if is_even else f"{text}, lower in lower layers", is_equal)


def _read_form(
    rate: Callable[[float], float],
    epochs: int,
    warmup: float,
    lag: int,
    ends: tuple[float, float],
) -> Finding:
    """Return the finding on how the rate falls, measured at the start of each epoch and within."""
    low, peak = ends
    if low >= peak:
        return Finding(f"constant, {peak:g}", False)
    first = min(epochs, math.ceil(warmup) + lag)
    is_cosine = all(
        math.isclose(
            rate(epoch), low + (peak - low) * _cosine((epoch - lag) / epochs), rel_tol=1e-6
        )
        for epoch in range(first, epochs)
    )
    middle = (first + epochs) // 2
    steps = rate(middle + 0.5) != rate(middle)
    text = (
        f"{'cosine' if is_cosine else 'no cosine'} to {low:g}, every {'step' if steps else 'epoch'}"
    )
    if lag:
        text += f", {lag} epoch{'s' if lag > 1 else ''} late"
    return Finding(text, is_cosine and low <= _FALL * peak)


def _cosine(share: float) -> float:
    """Return the rate's share of its range, from 1 at the start to 0 at the end."""
    return (1 + math.cos(math.pi * share)) / 2


def read_clipping(norm: float | None) -> Finding:
    """Return the finding on the largest norm of the gradient."""
    return Finding(f"{norm:g}" if norm else "none", not norm)
