"""Two products of the MLP with bias, GELU and its gradient in their epilogues: the variant of
mlp.py that saves the passes over memory of gelu.py.

    mlp_fwd:  h = x·W1ᵀ,   g = gelu(h + b1)
    mlp_bwd:  dh = (dout·W2) · gelu'(h + b1),   db1 = Σ dh,   g = gelu(h + b1)

x, dout: (..., D); W1: (H, D); W2: (D, H); h, g, dh: (..., H); b1: (H,); Σ is over all rows. A
product is accumulated in fp32; h is rounded before GELU, so that g has the same bits in the forward
and the backward. Bytes per image, in units of N·H elements: mlp_fwd writes 2, where cuBLAS and
gelu.py write 2 and read 1; mlp_bwd reads 1 and writes 2 (1 without g), where they write 3 and read
2.

Programs of one block of rows follow one another over all columns, so that x and dout come from L2
after the first; the weights stay there. The epilogue handles the columns of a tile in PARTS groups,
one after the other, so that two programs have enough registers on a multiprocessor: one computes
the product while the other moves memory. Source: `fused_dense_gelu_dense` of flash-attention (BSD),
which has the tanh form of GELU in cuBLASLt's epilogue.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.gelu import gelu_derivative, gelu_of
from fastdeit.kernels.launch_configs import blocks_of, find_launch
from fastdeit.kernels.operators import operator
from fastdeit.kernels.row_sums import sum_partials


@triton.jit
def _load(ptr, exists, WHOLE: tl.constexpr):
    if WHOLE:
        return tl.load(ptr)
    else:
        return tl.load(ptr, mask=exists, other=0.0)


@triton.jit
def _product(
    a_ptr,
    b_ptr,
    rows,
    cols,
    M,
    K: tl.constexpr,
    N: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the tile a·b in fp32; a: (M, K); b: (K, N), or (N, K) if TRANSPOSED.

    Rows that do not exist, and columns if TRANSPOSED, repeat the last one.
    """
    a_ptr += tl.minimum(rows, M - 1).to(tl.int64)[:, None] * K
    if TRANSPOSED:
        b_ptr += tl.minimum(cols, N - 1)[:, None] * K
    else:
        b_ptr += cols[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        depth = start + tl.arange(0, BLOCK_K)
        a = _load(a_ptr + depth[None, :], depth[None, :] < K, K % BLOCK_K == 0)
        if TRANSPOSED:
            b = tl.trans(_load(b_ptr + depth[None, :], depth[None, :] < K, K % BLOCK_K == 0))
        else:
            exists = (depth[:, None] < K) & (cols[None, :] < N)
            b = _load(b_ptr + depth[:, None] * N, exists, K % BLOCK_K == 0 and N % BLOCK_N == 0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def _halves(tile, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return the left and the right half of a tile's columns."""
    pairs = tl.permute(tl.reshape(tile, (ROWS, 2, COLS // 2)), (0, 2, 1))
    return tl.split(pairs)


@triton.jit
def _finish_fwd(
    acc,
    bias_ptr,
    h_ptr,
    g_ptr,
    rows,
    first,
    M,
    H: tl.constexpr,
    EXACT: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Round and write h, and write g, of a tile whose first column is `first`."""
    BLOCK_M: tl.constexpr = acc.shape[0]
    BLOCK_N: tl.constexpr = acc.shape[1]
    if PARTS > 1:
        left, right = _halves(acc, BLOCK_M, BLOCK_N)
        _finish_fwd(left, bias_ptr, h_ptr, g_ptr, rows, first, M, H, EXACT, PARTS // 2)
        half = first + BLOCK_N // 2
        _finish_fwd(right, bias_ptr, h_ptr, g_ptr, rows, half, M, H, EXACT, PARTS // 2)
    else:
        cols = first + tl.arange(0, BLOCK_N)
        mask = (rows < M)[:, None] & (cols < H)[None, :]
        offs = rows.to(tl.int64)[:, None] * H + cols[None, :]
        h = acc.to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + offs, h, mask=mask)
        bias = tl.load(bias_ptr + cols, mask=cols < H, other=0.0).to(tl.float32)
        g = gelu_of(h.to(tl.float32) + bias[None, :], EXACT)
        tl.store(g_ptr + offs, g.to(g_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _finish_bwd(
    acc,
    h_ptr,
    bias_ptr,
    dh_ptr,
    g_ptr,
    sums_ptr,
    rows,
    first,
    M,
    H: tl.constexpr,
    EXACT: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Write dh, g and the sums over rows of a tile whose first column is `first`."""
    BLOCK_M: tl.constexpr = acc.shape[0]
    BLOCK_N: tl.constexpr = acc.shape[1]
    if PARTS > 1:
        left, right = _halves(acc, BLOCK_M, BLOCK_N)
        _finish_bwd(
            left, h_ptr, bias_ptr, dh_ptr, g_ptr, sums_ptr, rows, first, M, H, EXACT, PARTS // 2
        )
        half = first + BLOCK_N // 2
        _finish_bwd(
            right, h_ptr, bias_ptr, dh_ptr, g_ptr, sums_ptr, rows, half, M, H, EXACT, PARTS // 2
        )
    else:
        cols = first + tl.arange(0, BLOCK_N)
        mask = (rows < M)[:, None] & (cols < H)[None, :]
        offs = rows.to(tl.int64)[:, None] * H + cols[None, :]
        bias = tl.load(bias_ptr + cols, mask=cols < H, other=0.0).to(tl.float32)
        z = tl.load(h_ptr + offs, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
        dh = acc * gelu_derivative(z, EXACT)
        tl.store(dh_ptr + offs, dh.to(dh_ptr.dtype.element_ty), mask=mask)
        if g_ptr is not None:
            tl.store(g_ptr + offs, gelu_of(z, EXACT).to(g_ptr.dtype.element_ty), mask=mask)
        tl.store(sums_ptr + cols, tl.sum(tl.where(mask, dh, 0.0), 0), mask=cols < H)


@triton.jit
def _mlp_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    h_ptr,
    g_ptr,
    M,
    D: tl.constexpr,
    H: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Compute BLOCK_M rows and BLOCK_N columns of x·weightᵀ, add the bias, apply GELU; grid: blocks
    of rows · of columns."""
    col_blocks: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    rows = tl.program_id(0) // col_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(0) % col_blocks * BLOCK_N
    cols = first + tl.arange(0, BLOCK_N)
    acc = _product(x_ptr, weight_ptr, rows, cols, M, D, H, True, BLOCK_M, BLOCK_N, BLOCK_K)
    _finish_fwd(acc, bias_ptr, h_ptr, g_ptr, rows, first, M, H, EXACT, PARTS)


@triton.jit
def _mlp_bwd_kernel(
    dout_ptr,
    weight_ptr,
    h_ptr,
    bias_ptr,
    dh_ptr,
    g_ptr,
    partials_ptr,
    M,
    D: tl.constexpr,
    H: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Compute BLOCK_M rows and BLOCK_N columns of dh, of GELU again, and their partial sum for
    dbias, fp32 (blocks of rows, H); grid: blocks of rows · of columns."""
    col_blocks: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    row_block = tl.program_id(0) // col_blocks
    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(0) % col_blocks * BLOCK_N
    cols = first + tl.arange(0, BLOCK_N)
    acc = _product(dout_ptr, weight_ptr, rows, cols, M, D, H, False, BLOCK_M, BLOCK_N, BLOCK_K)
    sums_ptr = partials_ptr + row_block.to(tl.int64) * H
    _finish_bwd(acc, h_ptr, bias_ptr, dh_ptr, g_ptr, sums_ptr, rows, first, M, H, EXACT, PARTS)


def _mlp_fwd_fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    h = x.new_empty(*x.shape[:-1], weight.shape[0])
    return h, torch.empty_like(h)


@operator("mlp_fwd", fake=_mlp_fwd_fake)
def mlp_fwd_triton(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the product x·weightᵀ; return h and g, both (..., H)."""
    hidden, dim = weight.shape
    h, g = _mlp_fwd_fake(x, weight, bias)
    rows = x.numel() // dim
    launch = find_launch("mlp_fwd_epilogue", x.device, bits=8 * x.element_size(), D=hidden)
    if rows:
        grid = (blocks_of(rows, launch["BLOCK_M"]) * blocks_of(hidden, launch["BLOCK_N"]),)
        _mlp_fwd_kernel[grid](
            x.contiguous(),
            weight.contiguous(),
            bias.contiguous(),
            h,
            g,
            rows,
            D=dim,
            H=hidden,
            EXACT=x.dtype == torch.float32,
            **launch,
        )
    return h, g


def _mlp_bwd_fake(
    dout: torch.Tensor, weight: torch.Tensor, h: torch.Tensor, bias: torch.Tensor, with_g: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dh = h.new_empty(h.shape)
    # an operator must return every output
    return dh, bias.new_empty(bias.shape), torch.empty_like(dh) if with_g else h.new_empty(0)


@operator("mlp_bwd", fake=_mlp_bwd_fake)
def mlp_bwd_triton(
    dout: torch.Tensor, weight: torch.Tensor, h: torch.Tensor, bias: torch.Tensor, with_g: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the product dout·weight, and the sum of its bias gradient; return dh, db1, and g with
    the forward's bits, empty without with_g."""
    dim, hidden = weight.shape
    dh, dbias, g = _mlp_bwd_fake(dout, weight, h, bias, with_g)
    rows = dout.numel() // dim
    launch = find_launch("mlp_bwd_epilogue", dout.device, bits=8 * dout.element_size(), D=hidden)
    row_blocks = blocks_of(rows, launch["BLOCK_M"])
    partials = h.new_empty((1, row_blocks, hidden), dtype=torch.float32)
    if rows:
        _mlp_bwd_kernel[(row_blocks * blocks_of(hidden, launch["BLOCK_N"]),)](
            dout.contiguous(),
            weight.contiguous(),
            h.contiguous(),
            bias.contiguous(),
            dh,
            g if with_g else None,
            partials,
            rows,
            D=dim,
            H=hidden,
            EXACT=h.dtype == torch.float32,
            **launch,
        )
    sum_partials(partials, [dbias])
    return dh, dbias, g
