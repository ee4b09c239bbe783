"""LayerNorm, and the residual sum before it.

    norm:      y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias,   over the last dimension
    add_norm:  x_new = x + scale[b] · gamma · (branch + branch_bias),   y = norm(x_new)

scale[b] is DropPath's keep bit / keep rate, gamma DeiT III's LayerScale, branch_bias the bias of
the branch's last layer, whose gradient then comes with the other sums over rows (norm_bwd.py). x,
branch, x_new, y: (B, N, D) in one dtype; weight, bias: (D,) in one dtype, gamma, branch_bias:
(D,), scale: (B,) fp32. Sums and statistics are fp32; the statistics are those of the stored,
rounded x_new. Bytes per image, in units of N·D elements: norm reads 1, writes 1; add_norm reads 2,
writes 2; the backward is in norm_bwd.py. The student calls add_norm across blocks, so that a
block's branch, its residual sum and the next norm are one pass over memory. Source: Ba et al. 2016
(1607.06450); stochastic depth per sample as in Huang et al. 2016 (1603.09382); LayerScale in
Touvron et al. 2022 (2204.07118).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.launch_configs import blocks_of, find_launch, padded
from fastdeit.kernels.norm_bwd import add_norm_bwd_triton
from fastdeit.kernels.operators import operator

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that the kernels take."""
MAX_DIM = 4096
"""The largest D that the kernels take."""
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""x_new, y, mean and rstd."""


def norm_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """Normalise the last dimension with torch, whose statistics are fp32 for every dtype of x;
    arguments and result as `norm`."""
    if weight.dtype == x.dtype:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.layer_norm(x.to(wide), x.shape[-1:], weight.to(wide), bias.to(wide), eps).to(x.dtype)


def add_norm_reference(
    x: torch.Tensor,
    branch: torch.Tensor,
    scale: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    gamma: torch.Tensor | None = None,
    branch_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the branch, with its bias and scaled per sample and per channel, then normalise the sum,
    in plain torch; arguments and result as `add_norm`."""
    # fp32 factors promote the sum, so that a bf16 stream is rounded once
    if branch_bias is not None:
        branch = branch + branch_bias.to(torch.promote_types(branch_bias.dtype, torch.float32))
    if gamma is not None:
        branch = branch * gamma.to(torch.promote_types(gamma.dtype, torch.float32))
    if scale is not None:
        branch = branch * scale[:, None, None]
    x_new = (x + branch).to(x.dtype)
    return x_new, norm_reference(x_new, weight, bias, eps)


@triton.jit
def _norm_fwd_kernel(
    x_ptr,
    branch_ptr,
    scale_ptr,
    gamma_ptr,
    weight_ptr,
    bias_ptr,
    branch_bias_ptr,
    x_new_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    rows,
    N,
    eps,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add and normalise BLOCK_ROWS of the B·N rows; grid: blocks of rows. mean, rstd: fp32
    (rows,)."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = tl.arange(0, BLOCK_D)
    mask_rows = row < rows
    mask_cols = cols < D
    mask = mask_rows[:, None] & mask_cols[None, :]
    offs = row.to(tl.int64)[:, None] * D + cols[None, :]
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if branch_ptr is not None:
        branch = tl.load(branch_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if branch_bias_ptr is not None:
            branch_bias = tl.load(branch_bias_ptr + cols, mask=mask_cols, other=0.0)
            branch += branch_bias.to(tl.float32)[None, :]
        if gamma_ptr is not None:
            branch *= tl.load(gamma_ptr + cols, mask=mask_cols, other=0.0).to(tl.float32)[None, :]
        if scale_ptr is not None:
            branch *= tl.load(scale_ptr + row // N, mask=mask_rows, other=0.0)[:, None]
        x_new = (x + branch).to(x_new_ptr.dtype.element_ty)
        tl.store(x_new_ptr + offs, x_new, mask=mask)
        x = x_new.to(tl.float32)

    SHARE: tl.constexpr = 1.0 / D
    # a mean of 1000 is only exact to 3e-5: the mean of the centred row is subtracted too
    mean = tl.sum(x, 1) * SHARE
    centred = tl.where(mask_cols[None, :], x - mean[:, None], 0.0)
    rest = tl.sum(centred, 1) * SHARE
    var = tl.maximum(
        tl.sum(centred * centred, 1) * SHARE - rest * rest, 0.0, propagate_nan=tl.PropagateNan.ALL
    )
    rstd = tl.rsqrt(var + eps)
    x_hat = (centred - rest[:, None]) * rstd[:, None]
    weight = tl.load(weight_ptr + cols, mask=mask_cols, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias_ptr + cols, mask=mask_cols, other=0.0).to(tl.float32)[None, :]
    y = x_hat * weight + bias
    tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean + rest, mask=mask_rows)
    tl.store(rstd_ptr + row, rstd, mask=mask_rows)


def _allocate(
    x: torch.Tensor,
    branch: torch.Tensor | None,
    scale: torch.Tensor | None,
    gamma: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    branch_bias: torch.Tensor | None,
) -> Tensors:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    # an operator must return every output
    x_new = x.new_empty(0) if branch is None else torch.empty_like(y)
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return x_new, y, mean, rstd


def _save(ctx, inputs: tuple, output: Tensors) -> None:
    x, branch, scale, gamma, weight, _, _, branch_bias = inputs
    x_new, _, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.has_branch = branch is not None
    for_gamma = branch if ctx.needs_input_grad[3] else None
    is_biased = ctx.needs_input_grad[3] or ctx.needs_input_grad[7]
    ctx.save_for_backward(
        x if branch is None else x_new,
        weight,
        mean,
        rstd,
        scale,
        gamma,
        for_gamma,
        branch_bias if is_biased else None,
    )


def _backward(
    ctx, dx_new: torch.Tensor | None, dy: torch.Tensor | None, *_: None
) -> tuple[torch.Tensor | None, ...]:
    if not ctx.has_branch:
        dx_new = None  # the gradient of an empty tensor
    if dy is None and dx_new is None:
        return (None,) * 8
    dx, dbranch, dweight, dbias, dgamma, dbranch_bias = add_norm_bwd_triton(
        dy, dx_new, *ctx.saved_tensors
    )
    scaled = dbranch if dbranch.numel() else dx
    return (
        dx,
        scaled if ctx.has_branch else None,
        None,
        dgamma if ctx.needs_input_grad[3] else None,
        *((None, None) if dy is None else (dweight, dbias)),
        None,
        dbranch_bias if ctx.needs_input_grad[7] else None,
    )


@operator("add_norm", fake=_allocate, save=_save, backward=_backward)
def add_norm_triton(
    x: torch.Tensor,
    branch: torch.Tensor | None,
    scale: torch.Tensor | None,
    gamma: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    branch_bias: torch.Tensor | None,
) -> Tensors:
    """Launch the kernel; return (x_new, y, mean, rstd), mean and rstd fp32 of each row.

    Without a branch x_new is empty and y the norm of x.
    """
    outs = _allocate(x, branch, scale, gamma, weight, bias, eps, branch_bias)
    x_new, y, mean, rstd = outs
    dim = x.shape[-1]
    rows = mean.numel()
    launch = find_launch("norm_fwd", x.device, bits=8 * x.element_size(), D=dim)
    if rows:
        _norm_fwd_kernel[(blocks_of(rows, launch["BLOCK_ROWS"]),)](
            x.contiguous(),
            None if branch is None else branch.contiguous(),
            None if scale is None else scale.contiguous(),
            None if gamma is None else gamma.contiguous(),
            weight.contiguous(),
            bias.contiguous(),
            None if branch_bias is None else branch_bias.contiguous(),
            None if branch is None else x_new,
            y,
            mean,
            rstd,
            rows,
            x.shape[-2] if x.ndim > 1 else 1,
            eps,
            D=dim,
            BLOCK_D=padded(dim),
            **launch,
        )
    return outs


def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
    dim = x.shape[-1]
    if weight.shape != (dim,) or bias.shape != (dim,):
        got = f"(got {tuple(weight.shape)} and {tuple(bias.shape)})"
        raise ValueError(f"weight and bias must be ({dim},), the last dimension of x {got}")
    if weight.dtype != bias.dtype:
        raise ValueError(
            f"weight and bias must have one dtype (got {weight.dtype} and {bias.dtype})"
        )


def _check_fused(x: torch.Tensor, *others: torch.Tensor | None) -> None:
    for tensor in (x, *others):
        if tensor is not None and tensor.dtype not in DTYPES:
            raise ValueError(f"x, weight and bias must be among {DTYPES} (got {tensor.dtype})")
    if not 1 <= x.shape[-1] <= MAX_DIM:
        raise ValueError(f"rows must have 1 to {MAX_DIM} elements (got {x.shape[-1]})")


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise x (..., D) with weight and bias (D,) → y like x, differentiable in all three.

    As a kernel, x is fp32, bf16 or fp16, weight and bias have one of these dtypes too, not always
    that of x, and D is at most 4096. Raises ValueError for others.
    """
    _check(x, weight, bias)
    if not is_fused(x):
        return norm_reference(x, weight, bias, eps)
    _check_fused(x, weight)
    return add_norm_triton(x, None, None, None, weight, bias, eps, None)[1]


def add_norm(
    x: torch.Tensor,
    branch: torch.Tensor,
    scale: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    gamma: torch.Tensor | None = None,
    branch_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the residual sum x + scale·gamma·(branch + branch_bias) and its LayerNorm, both
    (B, N, D) in x's dtype, differentiable.

    scale: (B,) fp32 without gradient, or None for 1. gamma: (D,), or None for 1. branch_bias: (D,),
    or None for 0. Dtypes as `norm`. Raises ValueError if shapes or dtypes do not fit.
    """
    _check(x, weight, bias)
    if x.ndim != 3 or x.shape != branch.shape or (scale is not None and scale.shape != x.shape[:1]):
        got = None if scale is None else tuple(scale.shape)
        raise ValueError(
            f"x {tuple(x.shape)}, branch {tuple(branch.shape)} and scale {got} do not fit"
        )
    for name, row in (("gamma", gamma), ("branch_bias", branch_bias)):
        if row is not None and row.shape != x.shape[-1:]:
            raise ValueError(
                f"{name} {tuple(row.shape)} must be ({x.shape[-1]},) as x {tuple(x.shape)} is"
            )
    if not is_fused(x):
        return add_norm_reference(x, branch, scale, weight, bias, eps, gamma, branch_bias)
    _check_fused(x, weight, gamma, branch_bias)
    if branch.dtype != x.dtype or (scale is not None and scale.dtype != torch.float32):
        wrong = branch.dtype if scale is None else (branch.dtype, scale.dtype)
        raise ValueError(f"branch must be {x.dtype} as x is, and scale float32 (got {wrong})")
    return add_norm_triton(x, branch, scale, gamma, weight, bias, eps, branch_bias)[:2]
