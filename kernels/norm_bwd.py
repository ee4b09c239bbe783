"""Backward of norm.py, in one pass over memory and a small sum after it.

    x^ = (x_new - mean)·rstd,  w = weight·dy,  dx = dx_new + rstd·(w - mean(w) - x^·mean(w·x^))
    dbranch = scale[b]·gamma·dx,  dgamma = Σ scale[b]·(branch + branch_bias)·dx
    dbranch_bias = Σ dbranch,  dweight = Σ dy·x^,  dbias = Σ dy

Σ is over all rows. dy and dx_new are the gradients of y and x_new; either may be absent. Everything
(B, N, D) has one dtype, the math is fp32. Bytes per image, in units of N·D elements: reads 3 (2 for
norm, 1 more for dgamma), writes 2 (1 without scale and gamma, when dx is both gradients). Each of a
fixed number of programs takes blocks of rows in turn and holds its partial sums over rows in
registers, so dbranch_bias moves no bytes; the layer before the sum would read dbranch again for it.
Source: Ba et al. 2016 (1607.06450), section 3.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.launch_configs import blocks_of, find_launch, padded
from fastdeit.kernels.operators import operator
from fastdeit.kernels.row_sums import sum_partials

Gradients = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]
"""dx, dbranch, dweight, dbias, dgamma and dbranch_bias."""


# divided into functions, which are inlined, it took up to 4 registers more (Triton 3.6, sm_90)
@triton.jit
def _norm_bwd_kernel(
    dy_ptr,
    dx_new_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    scale_ptr,
    gamma_ptr,
    branch_ptr,
    branch_bias_ptr,
    dx_ptr,
    dbranch_ptr,
    partials_ptr,
    rows,
    N,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute dx and dbranch of every num_programs-th block of BLOCK_ROWS rows, and their partial
    sums over rows, fp32 (sums, programs, D); grid: programs."""
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    cols = tl.arange(0, BLOCK_D)
    mask_cols = cols < D
    if dy_ptr is not None:
        weight = tl.load(weight_ptr + cols, mask=mask_cols, other=0.0).to(tl.float32)[None, :]
        dweight = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
        dbias = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    if gamma_ptr is not None:
        gamma = tl.load(gamma_ptr + cols, mask=mask_cols, other=0.0).to(tl.float32)[None, :]
    if branch_ptr is not None:
        dgamma = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    if branch_bias_ptr is not None:
        dbranch_bias = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)

    start = pid * BLOCK_ROWS
    # not a range: with NumPy 2.4, Triton 3.6's interpreter takes only constants in one
    while start < rows:
        row = start + tl.arange(0, BLOCK_ROWS)
        mask_rows = row < rows
        mask = mask_rows[:, None] & mask_cols[None, :]
        offs = row.to(tl.int64)[:, None] * D + cols[None, :]
        if dy_ptr is not None:
            dy = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(tl.float32)
            x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if dx_new_ptr is not None:
            dx = tl.load(dx_new_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if dy_ptr is not None:
            mean = tl.load(mean_ptr + row, mask=mask_rows, other=0.0)[:, None]
            rstd = tl.load(rstd_ptr + row, mask=mask_rows, other=0.0)[:, None]
            x_hat = (x - mean) * rstd
            weighted = weight * dy
            along_one = tl.sum(weighted, 1)[:, None] / D
            along_x = tl.sum(weighted * x_hat, 1)[:, None] / D
            through = rstd * (weighted - along_one - x_hat * along_x)
            dweight += dy * x_hat
            dbias += dy
            if dx_new_ptr is not None:
                dx += through
            else:
                dx = through
        tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)

        if dbranch_ptr is not None:
            if scale_ptr is not None:
                dx *= tl.load(scale_ptr + row // N, mask=mask_rows, other=0.0)[:, None]
            if branch_ptr is not None:
                branch = tl.load(branch_ptr + offs, mask=mask, other=0.0).to(tl.float32)
                if branch_bias_ptr is not None:
                    bias = tl.load(branch_bias_ptr + cols, mask=mask_cols, other=0.0)
                    branch += bias.to(tl.float32)[None, :]
                dgamma += dx * branch
            if gamma_ptr is not None:
                dx *= gamma
            tl.store(dbranch_ptr + offs, dx.to(dbranch_ptr.dtype.element_ty), mask=mask)
        if branch_bias_ptr is not None:
            dbranch_bias += dx
        start += programs * BLOCK_ROWS

    # the sums follow one another: dweight and dbias with dy, then dgamma, then dbranch_bias
    partials_ptr += pid.to(tl.int64) * D
    if dy_ptr is not None:
        tl.store(partials_ptr + cols, tl.sum(dweight, 0), mask=mask_cols)
        partials_ptr += programs.to(tl.int64) * D
        tl.store(partials_ptr + cols, tl.sum(dbias, 0), mask=mask_cols)
        partials_ptr += programs.to(tl.int64) * D
    if branch_ptr is not None:
        tl.store(partials_ptr + cols, tl.sum(dgamma, 0), mask=mask_cols)
        partials_ptr += programs.to(tl.int64) * D
    if branch_bias_ptr is not None:
        tl.store(partials_ptr + cols, tl.sum(dbranch_bias, 0), mask=mask_cols)


def _allocate(
    dy: torch.Tensor | None,
    dx_new: torch.Tensor | None,
    x_new: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    scale: torch.Tensor | None,
    gamma: torch.Tensor | None,
    branch: torch.Tensor | None,
    branch_bias: torch.Tensor | None,
) -> Gradients:
    def empty_like(tensor: torch.Tensor, wanted: bool) -> torch.Tensor:
        # an operator must return every output
        return tensor.new_empty(tensor.shape if wanted else (0,))

    return (
        empty_like(x_new, True),
        empty_like(x_new, scale is not None or gamma is not None),
        empty_like(weight, dy is not None),
        empty_like(weight, dy is not None),
        empty_like(weight if gamma is None else gamma, branch is not None),
        empty_like(weight if branch_bias is None else branch_bias, branch_bias is not None),
    )


@operator("add_norm_bwd", fake=_allocate)
def add_norm_bwd_triton(
    dy: torch.Tensor | None,
    dx_new: torch.Tensor | None,
    x_new: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    scale: torch.Tensor | None,
    gamma: torch.Tensor | None,
    branch: torch.Tensor | None,
    branch_bias: torch.Tensor | None,
) -> Gradients:
    """Launch the kernels; return (dx, dbranch, dweight, dbias, dgamma, dbranch_bias) of add_norm;
    without scale, gamma, branch and branch_bias, of norm.

    branch: only when gamma needs a gradient. Empty are dbranch when it equals dx, dweight and dbias
    without dy, dgamma without branch, and dbranch_bias without branch_bias.
    """
    outs = _allocate(dy, dx_new, x_new, weight, mean, rstd, scale, gamma, branch, branch_bias)
    dx, dbranch, *sums = outs
    dim = x_new.shape[-1]
    rows = x_new.numel() // dim
    sums = [out for out in sums if out.numel()]
    bits = 8 * x_new.element_size()
    # each sum takes registers of every program, so fewer programs fit on a GPU at once
    launch = find_launch("norm_bwd", x_new.device, bits=bits, D=dim, N=len(sums))
    # a fixed count, whatever the GPU has: the order of the sums, and so every bit, depends only on
    # the shape
    programs = min(launch.pop("PROGRAMS"), blocks_of(rows, launch["BLOCK_ROWS"]))
    partials = x_new.new_empty((len(sums), programs, dim), dtype=torch.float32)
    if rows:
        _norm_bwd_kernel[(programs,)](
            None if dy is None else dy.contiguous(),
            None if dx_new is None else dx_new.contiguous(),
            x_new.contiguous(),
            weight.contiguous(),
            mean,
            rstd,
            None if scale is None else scale.contiguous(),
            None if gamma is None else gamma.contiguous(),
            None if branch is None else branch.contiguous(),
            None if branch_bias is None else branch_bias.contiguous(),
            dx,
            dbranch if dbranch.numel() else None,
            partials,
            rows,
            x_new.shape[-2] if x_new.ndim > 1 else 1,
            D=dim,
            BLOCK_D=padded(dim),
            **launch,
        )
    if sums:
        sum_partials(partials, sums)
    return outs
