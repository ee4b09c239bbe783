"""Forward of attention.py by one program for each block of queries, at any number of tokens; the
formula and the arguments are there."""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.attention_kernels.rows import attend, load_rows, store_rows, tail
from fastdeit.kernels.launch_configs import Launch, blocks_of, padded


@triton.jit
def _attention_fwd_kernel(
    qkv_ptr,
    out_ptr,
    lse_ptr,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attend BLOCK_M queries of one image and head to all keys, BLOCK_N at a time; grid: pairs of
    image and head · blocks of queries. lse: fp32 (B, H, N), base 2."""
    BLOCKS: tl.constexpr = (N + BLOCK_M - 1) // BLOCK_M
    STRIDE: tl.constexpr = 3 * H * D
    FULL: tl.constexpr = N // BLOCK_N * BLOCK_N if TAIL else N
    MASK: tl.constexpr = TAIL == 0 and N % BLOCK_N > 0
    # the blocks of one head run side by side, so that its keys and values come from L2 after the
    # first
    pair = (tl.program_id(0) // BLOCKS).to(tl.int64)
    rows = tl.program_id(0) % BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    q_ptr = qkv_ptr + pair // H * (N * 3 * H * D) + pair % H * D
    k_ptr = q_ptr + H * D
    v_ptr = q_ptr + 2 * H * D

    q = load_rows(q_ptr, rows, STRIDE, N, D, PAD, True)
    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, PAD), dtype=tl.float32)
    for start in range(0, FULL, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = load_rows(k_ptr, keys, STRIDE, N, D, PAD, MASK)
        v = load_rows(v_ptr, keys, STRIDE, N, D, PAD, MASK)
        acc, top, total = attend(acc, top, total, q, k, v, keys, N, D, MASK)
    if TAIL:
        keys = FULL + tl.arange(0, TAIL)
        k = load_rows(k_ptr, keys, STRIDE, N, D, PAD, True)
        v = load_rows(v_ptr, keys, STRIDE, N, D, PAD, True)
        acc, top, total = attend(acc, top, total, q, k, v, keys, N, D, True)
    out_ptr += pair // H * (N * H * D) + pair % H * D
    store_rows(out_ptr, acc / total[:, None], rows, H * D, N, D, PAD)
    tl.store(lse_ptr + pair * N + rows, top + tl.log2(total), mask=rows < N)


def launch_blocks(qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, launch: Launch) -> None:
    """Write out and lse; arguments as in `attention_triton`."""
    batch, N, _, H, D = qkv.shape
    width = tail(N, launch["BLOCK_N"], 8 * qkv.element_size())
    sizes = {"N": N, "H": H, "D": D, "PAD": padded(D), "TAIL": width}
    grid = (batch * H * blocks_of(N, launch["BLOCK_M"]),)
    _attention_fwd_kernel[grid](qkv, out, lse, **sizes, **launch)
