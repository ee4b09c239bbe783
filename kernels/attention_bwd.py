"""Backward of attention.py, from the forward's output and log-sum-exp; without atomics, so that it
repeats bit for bit.

    P = exp2(scale·log2(e) · Q Kᵀ - lse),   delta = rowsum(dO ∘ O),   dS = P ∘ (dO Vᵀ - delta)
    dV = Pᵀ dO,   dK = scale · dSᵀ Q,   dQ = scale · dS K

qkv, dqkv: (B, N, 3, H, D) contiguous; out, grad (dO): (B, N, H·D); lse: (B, H, N) fp32, base 2. P
and dS are rounded to qkv's dtype for their products, sums are fp32. Two forms write the same packed
dqkv:

- whole: one program per image and head keeps Q and dO on the chip, loops over the keys and holds dQ
  in registers: every byte is moved once, in units of N·H·D elements 3 + 2 read and 3 written per
  image;
- pair (attention_bwd_pair.py): the dQ kernel, which also writes delta (B, H, N), then the dK/dV
  kernel: 7 products instead of 5, and Q, K, V and dO are read twice, mostly from L2; it needs few
  registers at any N.

The table of launches decides: the row "attention_bwd_whole" holds BLOCK_M tokens, and longer images
take the pair, with the rows "attention_bwd_dq" and "attention_bwd_dkdv". In fp32, where the whole
form would spill registers, its only row has few tokens. Source: Dao 2023 (2307.08691), algorithm 2.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.attention_bwd_pair import launch_pair
from fastdeit.kernels.attention_rows import LOG2_E, load_rows, store_rows, tail
from fastdeit.kernels.launch_configs import find_launch, padded
from fastdeit.kernels.operators import operator


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
def _attention_bwd_whole_kernel(
    qkv_ptr,
    out_ptr,
    lse_ptr,
    grad_ptr,
    dqkv_ptr,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
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


def _attention_bwd_fake(
    qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


@operator("attention_bwd", fake=_attention_bwd_fake)
def attention_bwd_triton(
    qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    """Launch the kernels; return the gradient of qkv, with its layout, from that of out."""
    # no copies in the student; elsewhere a batch may be sliced, and a gradient expanded
    qkv, out, grad = qkv.contiguous(), out.contiguous(), grad.contiguous()
    batch, N, _, H, D = qkv.shape
    dqkv = torch.empty_like(qkv)
    if not qkv.numel():
        return dqkv
    bits = 8 * qkv.element_size()
    sizes = {"N": N, "H": H, "D": D, "PAD": padded(D)}
    whole = find_launch("attention_bwd_whole", qkv.device, bits=bits, D=D, N=N)
    if whole["BLOCK_M"] >= N:
        # the narrow block's dK and dV are made transposed, D rows high: a warp-group product takes
        # no fewer than 64
        width = tail(N, whole["BLOCK_N"], bits) if D > 32 else 0
        _attention_bwd_whole_kernel[(batch * H,)](
            qkv, out, lse, grad, dqkv, **sizes, TAIL=width, **whole
        )
        return dqkv
    dq = find_launch("attention_bwd_dq", qkv.device, bits=bits, D=D, N=N)
    dkdv = find_launch("attention_bwd_dkdv", qkv.device, bits=bits, D=D, N=N)
    launch_pair(qkv, out, lse, grad, dqkv, dq, dkdv)
    return dqkv
