"""Parameter groups, AdamW, the learning-rate schedule, and the exponential moving average of the
weights."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Groups for AdamW: without decay 1-D tensors, biases and what the model's `no_weight_decay()`
    names.

    With `layer_decay` each depth gets groups of its own, with timm's `lr_scale` = layer_decay **
    (blocks above it). Raises ValueError if the model has no `blocks` to tell depths apart.
    """
    no_decay: set[str] = getattr(model, "no_weight_decay", set)()
    depth = len(model.blocks) if layer_decay is not None and hasattr(model, "blocks") else None  # type: ignore[arg-type]
    if layer_decay is not None and depth is None:
        raise ValueError(
            f"--layer-decay: got {layer_decay}, but {type(model).__name__} has no blocks to scale by depth"
        )
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in no_decay
        layer = 0 if depth is None else _layer(name, depth)
        group = {"params": [], "weight_decay": weight_decay if decays else 0.0}
        if layer_decay is not None and depth is not None:
            group["lr_scale"] = layer_decay ** (depth + 1 - layer)
        groups.setdefault((layer, decays), group)["params"].append(parameter)
    return list(groups.values())


def _layer(name: str, depth: int) -> int:
    """0 for the embedding, 1 to depth for the blocks, depth + 1 for the final norm and the heads."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return depth + 1 if name.startswith(("norm.", "head")) else 0


def build_adamw(
    groups: Sequence[dict[str, Any]],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    *,
    fused: bool,
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); fused: one launch a group, in one pass over weights, gradients and
    moments."""
    return torch.optim.AdamW(list(groups), lr=lr, betas=betas, eps=eps, fused=fused)


def build_schedule(
    optimizer: Any, *, total_steps: int, warmup_steps: int, warmup_lr: float, min_lr: float
) -> CosineLRScheduler:
    """Linear warm-up, then cosine to `min_lr`, per optimizer step: call `step_update(k)` before
    step k.

    optimizer: anything with torch's `param_groups`, DeepSpeed's ZeRO optimizer too. The rate is a
    function of k alone.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=total_steps,
        lr_min=min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=warmup_lr,
        t_in_epochs=False,
    )


class Ema:
    """Exponential moving average of flat fp32 partitions and of the model's buffers: average += (1
    - decay) * difference.

    On DeepSpeed's partitions it costs 4 bytes * parameters / ranks, no communication and one launch
    (training: call `update` after each optimizer step that was applied). Integer buffers are
    copied.
    """

    def __init__(
        self,
        flats: Sequence[torch.Tensor],
        buffers: Iterable[tuple[str, torch.Tensor]],
        decay: float,
    ) -> None:
        self.decay = decay
        self.flats = [flat.clone() for flat in flats]
        self.buffers = {name: buffer.clone() for name, buffer in buffers}

    @torch.no_grad()
    def update(
        self, flats: Sequence[torch.Tensor], buffers: Iterable[tuple[str, torch.Tensor]]
    ) -> None:
        """flats, buffers: the current values, in the order and under the names given at the start."""
        torch._foreach_lerp_(self.flats, list(flats), 1.0 - self.decay)
        for name, value in buffers:
            average = self.buffers[name]
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), 1.0 - self.decay)
            else:
                average.copy_(value)
