"""Backward of attention by one program for each image and head.

The formula, the arguments and the choice of a form: bwd.py. In the form "ahead" a program first
reads its own inputs, then those of the program that will follow it on the same multiprocessor,
whose number is AHEAD larger. These come into L2 while this program computes. One program fills a
multiprocessor, so no other hides its wait for memory.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.attention_kernels.rows import LOG2_E, load_rows, store_rows, tail
from fastdeit.kernels.launch_configs import Launch, padded


@triton.jit
def _keys_of_whole(
    dq,
    q,
    do,
    lse,
    delta,
    q_ptr,
    dq_ptr,
    keys,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    MASK: tl.constexpr,
    FLIP: tl.constexpr,
):
    """Store dK and dV of a block of keys; return dQ with its share added. FLIP: the products of dK
    and dV are transposed, with D rows."""
    STRIDE: tl.constexpr = 3 * H * D
    dk_ptr = dq_ptr + H * D
    dv_ptr = dq_ptr + 2 * H * D
    k = load_rows(q_ptr + H * D, keys, STRIDE, N, D, PAD, MASK)
    v = load_rows(q_ptr + 2 * H * D, keys, STRIDE, N, D, PAD, MASK)
    p = tl.exp2(tl.dot(q, tl.trans(k), input_precision="ieee") * (LOG2_E * D**-0.5) - lse[:, None])
    if MASK:
        p = tl.where((keys < N)[None, :], p, 0.0)
    # dV is stored before dP is computed: the other order needs more registers than there are
    p_rounded = p.to(q.dtype)
    if FLIP:
        store_rows(
            dv_ptr,
            tl.trans(tl.dot(tl.trans(do), p_rounded, input_precision="ieee")),
            keys,
            STRIDE,
            N,
            D,
            PAD,
        )
    else:
        store_rows(
            dv_ptr, tl.dot(tl.trans(p_rounded), do, input_precision="ieee"), keys, STRIDE, N, D, PAD
        )
    ds = (p * (tl.dot(do, tl.trans(v), input_precision="ieee") - delta[:, None])).to(q.dtype)
    if FLIP:
        dk = tl.dot(tl.trans(q), ds, input_precision="ieee") * D**-0.5
        store_rows(dk_ptr, tl.trans(dk), keys, STRIDE, N, D, PAD)
    else:
        dk = tl.dot(tl.trans(ds), q, input_precision="ieee") * D**-0.5
        store_rows(dk_ptr, dk, keys, STRIDE, N, D, PAD)
    return tl.dot(ds, k, dq, input_precision="ieee")


@triton.jit
def _touch_rows(
    ptr, rows, STRIDE: tl.constexpr, N: tl.constexpr, D: tl.constexpr, PAD: tl.constexpr
):
    """Read an element of each 32 bytes of N rows of 16-bit elements, so that the rows come into L2.
    A volatile load is not removed, and nothing waits for its result."""
    columns = tl.arange(0, PAD // 16) * 16
    ptrs = ptr + rows[:, None] * STRIDE + columns[None, :]
    tl.load(ptrs, mask=(rows < N)[:, None] & (columns < D)[None, :], other=0.0, volatile=True)


@triton.jit
def _touch_pair(
    qkv_ptr,
    out_ptr,
    grad_ptr,
    pair,
    pairs,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Fetch into L2 what the program of a pair will read; nothing if the number is past the last
    pair."""
    rows = tl.where(pair < pairs, 0, N) + tl.arange(0, BLOCK_M)
    q_ptr = qkv_ptr + pair // H * (N * 3 * H * D) + pair % H * D
    offs_out = pair // H * (N * H * D) + pair % H * D
    _touch_rows(grad_ptr + offs_out, rows, H * D, N, D, PAD)
    _touch_rows(out_ptr + offs_out, rows, H * D, N, D, PAD)
    for part in tl.static_range(3):
        _touch_rows(q_ptr + part * H * D, rows, 3 * H * D, N, D, PAD)


@triton.jit(do_not_specialize=["pairs"])
def _attention_bwd_whole_kernel(
    qkv_ptr,
    out_ptr,
    lse_ptr,
    grad_ptr,
    dqkv_ptr,
    pairs,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    TAIL: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute dQ, dK and dV of one image and head, whose N queries fit into BLOCK_M; grid: pairs of
    image and head."""
    pair = tl.program_id(0).to(tl.int64)
    offs = pair // H * (N * 3 * H * D) + pair % H * D
    offs_out = pair // H * (N * H * D) + pair % H * D
    STRIDE: tl.constexpr = 3 * H * D
    q_ptr = qkv_ptr + offs
    dq_ptr = dqkv_ptr + offs
    FULL: tl.constexpr = N // BLOCK_N * BLOCK_N if TAIL else N
    MASK: tl.constexpr = TAIL == 0 and N % BLOCK_N > 0

    rows = tl.arange(0, BLOCK_M)
    do = load_rows(grad_ptr + offs_out, rows, H * D, N, D, PAD, N < BLOCK_M)
    out = load_rows(out_ptr + offs_out, rows, H * D, N, D, PAD, N < BLOCK_M)
    q = load_rows(q_ptr, rows, STRIDE, N, D, PAD, N < BLOCK_M)
    lse = tl.load(lse_ptr + pair * N + rows, mask=rows < N, other=0.0)
    # a row past N has Q, dO, delta and lse of 0: it adds nothing to dK and dV
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), axis=1)
    if AHEAD:
        _touch_pair(qkv_ptr, out_ptr, grad_ptr, pair + AHEAD, pairs, N, H, D, PAD, BLOCK_M)
    dq = tl.zeros((BLOCK_M, PAD), dtype=tl.float32)
    for start in range(0, FULL, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        dq = _keys_of_whole(
            dq, q, do, lse, delta, q_ptr, dq_ptr, keys, N, H, D, PAD, MASK, BLOCK_N < 64
        )
    if TAIL:
        keys = FULL + tl.arange(0, TAIL)
        dq = _keys_of_whole(dq, q, do, lse, delta, q_ptr, dq_ptr, keys, N, H, D, PAD, True, True)
    store_rows(dq_ptr, dq * D**-0.5, rows, STRIDE, N, D, PAD)


def launch_whole(
    qkv: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad: torch.Tensor,
    dqkv: torch.Tensor,
    launch: Launch,
) -> None:
    """Write dqkv, the gradient of qkv, from grad, that of out. A launch of the form "ahead" has
    AHEAD, the number of programs that the GPU runs at once. Raises ValueError if a program of the
    launch cannot hold all tokens."""
    batch, N, _, H, D = qkv.shape
    if launch["BLOCK_M"] < N:
        raise ValueError(f"BLOCK_M must be at least {N}, the number of tokens (got {launch})")
    # the narrow block's dK and dV are made transposed, D rows high: a warp-group product takes no
    # fewer than 64
    width = tail(N, launch["BLOCK_N"], 8 * qkv.element_size()) if D > 32 else 0
    sizes = {"N": N, "H": H, "D": D, "PAD": padded(D), "TAIL": width}
    constants = {"AHEAD": 0} | launch
    pairs = batch * H
    _attention_bwd_whole_kernel[(pairs,)](qkv, out, lse, grad, dqkv, pairs, **sizes, **constants)
