"""Parameter groups, AdamW, the learning-rate schedule, and the EMA of the weights."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return groups for AdamW; 1-D tensors (biases, norms) and what the model's `no_weight_decay()`
    names have no decay.

    With `layer_decay` each depth has groups of its own, with timm's `lr_scale` = layer_decay **
    (blocks above it). Raises ValueError if the model has no `blocks`.
    """
    no_decay: set[str] = getattr(model, "no_weight_decay", set)()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    depth = None if layer_decay is None else _count_blocks(model, layer_decay)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and name not in no_decay
        layer = 0 if depth is None else _layer(name, depth)
        group = {"params": [], "weight_decay": weight_decay if decays else 0.0}
        if layer_decay is not None and depth is not None:
            group["lr_scale"] = layer_decay ** (depth + 1 - layer)
        groups.setdefault((layer, decays), group)["params"].append(parameter)
    return list(groups.values())


def _count_blocks(model: nn.Module, layer_decay: float) -> int:
    if not hasattr(model, "blocks"):
        raise ValueError(
            f"--layer-decay must be unset for {type(model).__name__}, which has no blocks "
            f"(got {layer_decay})"
        )
    return len(model.blocks)  # type: ignore[arg-type]


def _layer(name: str, depth: int) -> int:
    """Return 0 for the embedding, 1 to depth for the blocks, depth + 1 for final norm and heads."""
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
    """Build AdamW (arXiv 1711.05101); fused: one launch a group, in one pass over weights,
    gradients and moments."""
    return torch.optim.AdamW(list(groups), lr=lr, betas=betas, eps=eps, fused=fused)


def build_schedule(
    optimizer: Any, *, total_steps: int, warmup_steps: int, warmup_lr: float, min_lr: float
) -> CosineLRScheduler:
    """Build a linear warm-up, then cosine to `min_lr`, per optimizer step: call `step_update(k)`
    before step k.

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
    """Exponential moving average (EMA) of flat fp32 partitions and of a model's buffers:
    ema += (1 - decay) * (value - ema). Integer buffers are copied.

    The formula and the call are those of `torch.optim.swa_utils.get_ema_multi_avg_fn`, whose
    `AveragedModel` needs a whole module, which ZeRO 3 does not have. On DeepSpeed's partitions it
    costs 4 bytes * parameters / ranks, no communication and one launch.
    """

    def __init__(
        self, flats: Sequence[torch.Tensor], buffers: Mapping[str, torch.Tensor], decay: float
    ) -> None:
        self.decay = decay
        self.flats = [flat.clone() for flat in flats]
        self.buffers = {name: buffer.clone() for name, buffer in buffers.items()}

    @torch.no_grad()
    def update(self, flats: Sequence[torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
        """Move towards the current values, given in the order and under the names of the start;
        call it after each optimizer step that was applied."""
        torch._foreach_lerp_(self.flats, list(flats), 1.0 - self.decay)
        for name, value in buffers.items():
            ema = self.buffers[name]
            if ema.is_floating_point():
                ema.lerp_(value.to(ema.dtype), 1.0 - self.decay)
            else:
                ema.copy_(value)
