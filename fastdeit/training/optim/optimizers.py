"""Parameter groups and AdamW."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
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
    (depths above it); the model's `group_matcher()` decides the depth of each parameter.
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
    capturable: bool = False,
) -> torch.optim.AdamW:
    """Build torch's fused AdamW (arXiv 1711.05101): one pass over weights, gradients and moments,
    and a step that the device may skip, clip and count.

    capturable: True if a CUDA graph records the step, which needs parameters on a GPU.
    """
    return torch.optim.AdamW(
        list(groups), lr=lr, betas=betas, eps=eps, fused=True, capturable=capturable
    )
