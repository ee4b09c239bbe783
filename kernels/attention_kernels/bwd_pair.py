"""Backward of attention by a pair of kernels, for images that one program cannot hold.

The formula, the arguments and the choice of a form: bwd.py. The first kernel loops over
the keys and writes dQ and delta = rowsum(dO ∘ O); the second loops over the queries and writes dK
and dV.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.attention_kernels.rows import LOG2_E, load_rows, store_rows, tail
from fastdeit.kernels.launch_configs import Launch, blocks_of, padded


@triton.jit
def _keys_of_dq(
    dq,
    q,
    do,
    lse,
    delta,
    q_ptr,
    keys,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    MASK: tl.constexpr,
):
    """Return dQ with the share of a block of keys added."""
    k = load_rows(q_ptr + H * D, keys, 3 * H * D, N, D, PAD, MASK)
    v = load_rows(q_ptr + 2 * H * D, keys, 3 * H * D, N, D, PAD, MASK)
    p = tl.exp2(tl.dot(q, tl.trans(k), input_precision="ieee") * (LOG2_E * D**-0.5) - lse[:, None])
    if MASK:
        p = tl.where((keys < N)[None, :], p, 0.0)
    ds = p * (tl.dot(do, tl.trans(v), input_precision="ieee") - delta[:, None])
    return tl.dot(ds.to(q.dtype), k, dq, input_precision="ieee")


@triton.jit
def _attention_bwd_dq_kernel(
    qkv_ptr,
    out_ptr,
    lse_ptr,
    grad_ptr,
    dqkv_ptr,
    delta_ptr,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute dQ and delta, fp32 (B, H, N), of BLOCK_M queries of one image and head; grid: pairs
    of image and head · blocks of queries."""
    BLOCKS: tl.constexpr = (N + BLOCK_M - 1) // BLOCK_M
    pair = (tl.program_id(0) // BLOCKS).to(tl.int64)
    offs = pair // H * (N * 3 * H * D) + pair % H * D
    offs_out = pair // H * (N * H * D) + pair % H * D
    q_ptr = qkv_ptr + offs
    FULL: tl.constexpr = N // BLOCK_N * BLOCK_N if TAIL else N
    MASK: tl.constexpr = TAIL == 0 and N % BLOCK_N > 0

    rows = tl.program_id(0) % BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    do = load_rows(grad_ptr + offs_out, rows, H * D, N, D, PAD, True)
    out = load_rows(out_ptr + offs_out, rows, H * D, N, D, PAD, True)
    q = load_rows(q_ptr, rows, 3 * H * D, N, D, PAD, True)
    lse = tl.load(lse_ptr + pair * N + rows, mask=rows < N, other=0.0)
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(delta_ptr + pair * N + rows, delta, mask=rows < N)
    dq = tl.zeros((BLOCK_M, PAD), dtype=tl.float32)
    for start in range(0, FULL, BLOCK_N):
        dq = _keys_of_dq(
            dq, q, do, lse, delta, q_ptr, start + tl.arange(0, BLOCK_N), N, H, D, PAD, MASK
        )
    if TAIL:
        dq = _keys_of_dq(
            dq, q, do, lse, delta, q_ptr, FULL + tl.arange(0, TAIL), N, H, D, PAD, True
        )
    store_rows(dqkv_ptr + offs, dq * D**-0.5, rows, 3 * H * D, N, D, PAD)


@triton.jit
def _rows_of_dkdv(
    dk,
    dv,
    k,
    v,
    q_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    rows,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    MASK: tl.constexpr,
):
    """Return dK and dV with the share of a block of queries added; queries past N have a dO and
    delta of 0 and add nothing.

    Keys past N may become infinite, each in its own row, which is not stored.
    """
    q = load_rows(q_ptr, rows, 3 * H * D, N, D, PAD, MASK)
    do = load_rows(grad_ptr, rows, H * D, N, D, PAD, MASK)
    lse = tl.load(lse_ptr + rows, mask=rows < N, other=0.0)
    delta = tl.load(delta_ptr + rows, mask=rows < N, other=0.0)
    # transposed, the products P and dS have the layout that the next product needs
    p = tl.exp2(tl.dot(k, tl.trans(q), input_precision="ieee") * (LOG2_E * D**-0.5) - lse[None, :])
    dv = tl.dot(p.to(k.dtype), do, dv, input_precision="ieee")
    ds = p * (tl.dot(v, tl.trans(do), input_precision="ieee") - delta[None, :])
    dk = tl.dot(ds.to(k.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def _attention_bwd_dkdv_kernel(
    qkv_ptr,
    lse_ptr,
    grad_ptr,
    delta_ptr,
    dqkv_ptr,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute dK and dV of BLOCK_N keys of one image and head; grid: pairs of image and head ·
    blocks of keys. delta: written by the first kernel."""
    BLOCKS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    pair = (tl.program_id(0) // BLOCKS).to(tl.int64)
    offs = pair // H * (N * 3 * H * D) + pair % H * D
    do_ptr = grad_ptr + pair // H * (N * H * D) + pair % H * D
    q_ptr = qkv_ptr + offs
    FULL: tl.constexpr = N // BLOCK_M * BLOCK_M if TAIL else N
    MASK: tl.constexpr = TAIL == 0 and N % BLOCK_M > 0

    keys = tl.program_id(0) % BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    k = load_rows(q_ptr + H * D, keys, 3 * H * D, N, D, PAD, True)
    v = load_rows(q_ptr + 2 * H * D, keys, 3 * H * D, N, D, PAD, True)
    dk = tl.zeros((BLOCK_N, PAD), dtype=tl.float32)
    dv = tl.zeros((BLOCK_N, PAD), dtype=tl.float32)
    lse_ptr += pair * N
    delta_ptr += pair * N
    for start in range(0, FULL, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        dk, dv = _rows_of_dkdv(
            dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, rows, N, H, D, PAD, MASK
        )
    if TAIL:
        rows = FULL + tl.arange(0, TAIL)
        dk, dv = _rows_of_dkdv(
            dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, rows, N, H, D, PAD, True
        )
    store_rows(dqkv_ptr + offs + H * D, dk * D**-0.5, keys, 3 * H * D, N, D, PAD)
    store_rows(dqkv_ptr + offs + 2 * H * D, dv, keys, 3 * H * D, N, D, PAD)


def launch_pair(
    qkv: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad: torch.Tensor,
    dqkv: torch.Tensor,
    dq: Launch,
    dkdv: Launch,
) -> None:
    """Write dqkv, the gradient of qkv, from grad, that of out. dq, dkdv: the launches of the two
    kernels."""
    batch, N, _, H, D = qkv.shape
    bits = 8 * qkv.element_size()
    sizes = {"N": N, "H": H, "D": D, "PAD": padded(D)}
    delta = torch.empty_like(lse)
    grid = (batch * H * blocks_of(N, dq["BLOCK_M"]),)
    _attention_bwd_dq_kernel[grid](
        qkv, out, lse, grad, dqkv, delta, **sizes, TAIL=tail(N, dq["BLOCK_N"], bits), **dq
    )
    grid = (batch * H * blocks_of(N, dkdv["BLOCK_N"]),)
    _attention_bwd_dkdv_kernel[grid](
        qkv, lse, grad, delta, dqkv, **sizes, TAIL=tail(N, dkdv["BLOCK_M"], bits), **dkdv
    )
