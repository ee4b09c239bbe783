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
- pair: the dQ kernel, which also writes delta (B, H, N), then the dK/dV kernel: 7 products instead
  of 5, and Q, K, V and dO are read twice, mostly from L2; it needs few registers at any N.

The table of launches decides: the row "attention_bwd_whole" holds BLOCK_M tokens, and longer images
take the pair, with the rows "attention_bwd_dq" and "attention_bwd_dkdv". In fp32, where the whole
form would spill registers, its only row has few tokens. Source: Dao 2023 (2307.08691), algorithm 2.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.launch_configs import blocks_of, find_launch, padded
from fastdeit.kernels.operators import operator

LOG2_E = tl.constexpr(1.4426950408889634)
TAIL = 16  # the narrowest block that a matrix product takes


def tail(N: int, block: int, bits: int) -> int:
    """Return the width of a narrow last block for the tokens past the full blocks; 0: none, the
    loop's last block is masked.

    DeiT's special tokens follow a multiple of 64 or nearly one (196 + 2, 576 + 2): a whole block
    for them would be up to a quarter of the work. Not in fp32, whose products use no tensor cores:
    a second shape fills the registers.
    """
    return TAIL if bits == 16 and 4 * TAIL <= block < N and 0 < N % block <= TAIL else 0


@triton.jit
def load_rows(
    ptr,
    rows,
    STRIDE: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    MASK: tl.constexpr,
):
    """Load rows of D elements as (rows, PAD); zeros past D, and past N with MASK."""
    columns = tl.arange(0, PAD)
    ptrs = ptr + rows[:, None] * STRIDE + columns[None, :]
    if MASK:
        x = tl.load(ptrs, mask=(rows < N)[:, None] & (columns < D)[None, :], other=0.0)
    elif D < PAD:
        x = tl.load(ptrs, mask=(columns < D)[None, :], other=0.0)
    else:
        x = tl.load(ptrs)
    return x


@triton.jit
def store_rows(
    ptr, x, rows, STRIDE: tl.constexpr, N: tl.constexpr, D: tl.constexpr, PAD: tl.constexpr
):
    """Store what `load_rows` loads, rounded to the pointer's dtype."""
    columns = tl.arange(0, PAD)
    mask = (rows < N)[:, None] & (columns < D)[None, :]
    tl.store(ptr + rows[:, None] * STRIDE + columns[None, :], x.to(ptr.dtype.element_ty), mask=mask)


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
    delta = torch.empty_like(lse)
    grid = (batch * H * blocks_of(N, dq["BLOCK_M"]),)
    _attention_bwd_dq_kernel[grid](
        qkv, out, lse, grad, dqkv, delta, **sizes, TAIL=tail(N, dq["BLOCK_N"], bits), **dq
    )
    grid = (batch * H * blocks_of(N, dkdv["BLOCK_N"]),)
    _attention_bwd_dkdv_kernel[grid](
        qkv, lse, grad, delta, dqkv, **sizes, TAIL=tail(N, dkdv["BLOCK_M"], bits), **dkdv
    )
    return dqkv
