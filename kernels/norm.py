"""LayerNorm, and the residual sum that precedes all but the first of them.

    norm:      y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias          over the last dimension
    add_norm:  x_new = x + scale[b] · branch,   y = norm(x_new)                scale[b] = DropPath's keep bit / keep rate

x, branch, x_new, y: (B, N, D) in one dtype; weight, bias: (D,); scale: (B,) fp32. Statistics, scale and sum are fp32.
Bytes per image, in units of N·D elements: norm reads 1, writes 1; add_norm reads 2, writes 2; its backward reads 3 and
writes 2. The student calls add_norm across block borders, so that a block's branch, its residual sum and the next norm
are one pass over memory once the Triton kernel comes into this file behind the same two functions.
Source: Ba et al. 2016 (1607.06450); stochastic depth per sample as in Huang et al. 2016 (1603.09382).
"""

import torch
import torch.nn.functional as F


def norm_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm of the last dimension; torch keeps its statistics in fp32 whatever the dtype of x."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_norm_reference(
    x: torch.Tensor,
    branch: torch.Tensor,
    scale: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the branch, scaled per sample, then normalise the sum."""
    # the fp32 scale promotes the sum, so that a bf16 stream is rounded once
    total = x + branch if scale is None else x + branch * scale[:, None, None]
    x_new = total.to(x.dtype)
    return x_new, norm_reference(x_new, weight, bias, eps)


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm: x (..., D), weight and bias (D,) → y like x, differentiable in all three."""
    return norm_reference(x, weight, bias, eps)


def add_norm(
    x: torch.Tensor,
    branch: torch.Tensor,
    scale: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual sum and LayerNorm: (x + scale·branch, norm of it), both (B, N, D) in x's dtype, differentiable.

    scale: (B,) fp32 without gradient, or None for 1. Raises ValueError when the shapes do not fit.
    """
    if x.shape != branch.shape or (scale is not None and scale.shape != x.shape[:1]):
        got = None if scale is None else tuple(scale.shape)
        raise ValueError(f"x {tuple(x.shape)}, branch {tuple(branch.shape)} and scale {got} do not fit")
    return add_norm_reference(x, branch, scale, weight, bias, eps)
