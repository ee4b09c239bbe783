"""Bias and exact GELU in one pass, between the two layers of the MLP.

    y = z · Φ(z),   z = x + bias,   Φ(z) = (1 + erf(z / √2)) / 2
    dx = dy · (Φ(z) + z·φ(z)),   dbias = Σ over rows of dx

x, y: (..., D) in one dtype; bias: (D,) in any dtype; math in fp32. Bytes per image, in units of N·D
elements (D: the MLP's hidden width): forward reads 1, writes 1; backward reads 2, writes 1, and one
more where it computes y again (mlp.py). Source: Hendrycks and Gimpel 2016 (1606.08415).

fp32 uses erf. For 16-bit tensors the tail Q(u) = Φ(-u), u = |z|, is 2 to the power of a polynomial
in u, and y = max(z, 0) - u·Q(u). The coefficients are a weighted minimax fit of log2 Q on [0,
14.5]: Q's relative error is 9e-6 up to u = 5.8, where fp16 ends, and 3e-4 beyond, where Q < 4e-9.
Over all bf16 inputs with |y| > 2e-37, y is at most 0.514 ulp from the exact value (fp16: 0.511).
The optimum is 0.5; with 1 + erf(z) up to 255 ulp are lost below z = -5 (fp16: 2). Compiled for
sm_90 the forward takes 21 instructions an element instead of erf's 40, the backward 37 instead of
57, with as many special-function instructions (MUFU; 1 and 2): with 40 and 57 an H100 would compute
for about as long as it moves bytes.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.launch_configs import blocks_of, find_launch, padded
from fastdeit.kernels.operators import operator
from fastdeit.kernels.row_sums import sum_partials

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that the kernels take."""


def gelu_reference(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute the exact GELU of x + bias in plain torch; arguments and result as `gelu`. The sum is
    not rounded to x's dtype."""
    if bias is None:
        return torch.nn.functional.gelu(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.nn.functional.gelu(x.to(wide) + bias.to(wide)).to(x.dtype)


@triton.jit
def _tail(u):
    """Return Q(u) = Φ(-u) for 0 ≤ u ≤ 14.5."""
    p = tl.fma(u, -2.042813029845547e-09, 1.496560884106657e-07)
    p = tl.fma(u, p, -4.784075372299412e-06)
    p = tl.fma(u, p, 8.844159310683608e-05)
    p = tl.fma(u, p, -0.0010613887570798397)
    p = tl.fma(u, p, 0.008861405774950981)
    p = tl.fma(u, p, -0.054470229893922806)
    p = tl.fma(u, p, -0.45811623334884644)
    p = tl.fma(u, p, -1.151333212852478)
    return tl.exp2(tl.fma(u, p, -0.9999940395355225))


@triton.jit
def _bounded(z):
    """Return |z|, at most 14.5, since the tail is 0 in fp32 from there on and infinity times zero
    would be NaN. NaN remains NaN."""
    return tl.minimum(tl.abs(z), 14.5, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def gelu_of(z, EXACT: tl.constexpr):
    """Return z·Φ(z) of fp32 z; EXACT: by erf, for fp32 tensors."""
    if EXACT:
        return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    u = _bounded(z)
    return tl.maximum(z, 0.0) - u * _tail(u)


@triton.jit
def gelu_derivative(z, EXACT: tl.constexpr):
    """Return Φ(z) + z·φ(z) of fp32 z; EXACT: by erf, for fp32 tensors."""
    u = _bounded(z)
    # φ(u) = 2 ** (-u² / (2 ln 2) - log2(2π) / 2)
    density = tl.exp2(tl.fma(u * u, -0.7213475204444817, -1.3257480647361595))
    tail = 0.5 - 0.5 * tl.erf(u * 0.7071067811865476) if EXACT else _tail(u)
    below = tail - u * density  # the derivative at -u; at u it is 1 minus this
    return tl.where(z < 0, below, 1.0 - below)


@triton.jit
def _gelu_fwd_kernel(
    x_ptr,
    bias_ptr,
    y_ptr,
    rows,
    D: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add the bias and apply GELU to BLOCK_ROWS rows of BLOCK_D columns; grid: blocks of rows · of
    columns."""
    col_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    pid = tl.program_id(0)
    row = (pid // col_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = pid % col_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (cols < D)[None, :]
    offs = row[:, None] * D + cols[None, :]
    z = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + offs, gelu_of(z, EXACT).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gelu_bwd_kernel(
    dy_ptr,
    x_ptr,
    bias_ptr,
    dx_ptr,
    y_ptr,
    partials_ptr,
    rows,
    row_programs,
    D: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute dx of every row_programs-th block of BLOCK_ROWS rows, and their partial sum for
    dbias, fp32 (row_programs, D); grid: row_programs · blocks of columns."""
    col_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    pid = tl.program_id(0)
    row_program = pid // col_blocks
    cols = pid % col_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_cols = cols < D
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + cols, mask=mask_cols, other=0.0).to(tl.float32)[None, :]
        dbias = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    start = row_program * BLOCK_ROWS
    # not a range: with NumPy 2.4, Triton 3.6's interpreter takes only constants in one
    while start < rows:
        row = start + tl.arange(0, BLOCK_ROWS)
        mask = (row < rows)[:, None] & mask_cols[None, :]
        offs = row.to(tl.int64)[:, None] * D + cols[None, :]
        z = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            z += bias
        dx = dy * gelu_derivative(z, EXACT)
        tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if y_ptr is not None:
            tl.store(y_ptr + offs, gelu_of(z, EXACT).to(y_ptr.dtype.element_ty), mask=mask)
        if bias_ptr is not None:
            dbias += dx
        start += row_programs * BLOCK_ROWS
    if bias_ptr is not None:
        tl.store(
            partials_ptr + row_program.to(tl.int64) * D + cols, tl.sum(dbias, 0), mask=mask_cols
        )


def _launch(op: str, x: torch.Tensor) -> tuple[int, int, int, dict[str, int]]:
    """Return rows, width, column blocks and the kernel's constants."""
    dim = x.shape[-1]
    launch = find_launch(op, x.device, bits=8 * x.element_size(), D=dim)
    launch["BLOCK_D"] = min(launch["BLOCK_D"], padded(dim))
    return x.numel() // dim, dim, blocks_of(dim, launch["BLOCK_D"]), launch


def _gelu_fake(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _gelu_bwd_fake(
    dy: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, with_y: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    # an operator must return every output
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return dx, dbias, torch.empty_like(dx) if with_y else x.new_empty(0)


@operator("gelu_bwd", fake=_gelu_bwd_fake)
def gelu_bwd_triton(
    dy: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, with_y: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the kernels; return dx like x, dbias like bias, and the forward's y, with its bits.

    Without bias dbias is empty, and y without with_y.
    """
    dy, x = dy.contiguous(), x.contiguous()
    dx, dbias, y = _gelu_bwd_fake(dy, x, bias, with_y)
    rows, dim, col_blocks, launch = _launch("gelu_bwd", x)
    # a fixed count, whatever the GPU has: the order of the sums, and so every bit, depends only on
    # the shape
    row_programs = min(
        max(1, launch.pop("PROGRAMS") // col_blocks), blocks_of(rows, launch["BLOCK_ROWS"])
    )
    partials = None if bias is None else x.new_empty((1, row_programs, dim), dtype=torch.float32)
    if rows:
        _gelu_bwd_kernel[(row_programs * col_blocks,)](
            dy,
            x,
            bias,
            dx,
            y if with_y else None,
            partials,
            rows,
            row_programs,
            D=dim,
            EXACT=x.dtype == torch.float32,
            **launch,
        )
    if partials is not None:
        sum_partials(partials, [dbias])
    return dx, dbias, y


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    x, bias = ctx.saved_tensors
    dx, dbias, _ = gelu_bwd_triton(dy, x, bias)
    return dx, None if bias is None else dbias


@operator("gelu", fake=_gelu_fake, save=_save, backward=_backward)
def gelu_triton(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Launch the kernel; arguments as `gelu` has checked them. Takes CPU tensors under
    TRITON_INTERPRET=1."""
    x = x.contiguous()
    y = torch.empty_like(x)
    rows, dim, col_blocks, launch = _launch("gelu_fwd", x)
    if rows:
        grid = (blocks_of(rows, launch["BLOCK_ROWS"]) * col_blocks,)
        _gelu_fwd_kernel[grid](x, bias, y, rows, D=dim, EXACT=x.dtype == torch.float32, **launch)
    return y


def gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute the exact GELU of x + bias: x (..., D), bias (D,) or None → y like x, differentiable
    in both.

    As a kernel, x and bias are each fp32, bf16 or fp16. Raises ValueError for another dtype or a
    bias that does not fit.
    """
    if bias is not None and bias.shape != x.shape[-1:]:
        rule = f"({x.shape[-1]},), the last dimension of x"
        raise ValueError(f"bias must be {rule} (got {tuple(bias.shape)})")
    if not is_fused(x):
        return gelu_reference(x, bias)
    for tensor in (x, bias):
        if tensor is not None and tensor.dtype not in DTYPES:
            raise ValueError(f"x and bias must be one of {DTYPES} (got {tensor.dtype})")
    return gelu_triton(x, bias)
