"""Forward of attention with the keys and values of a head resident on the chip, for images of up to
256 tokens.

The formula and the arguments: attention.py. One program per image and head loads K and V once, in
up to three blocks whose widths add up to little more than N. It loops over blocks of queries; the
next block is fetched while one is computed. The bytes are those of the other form, but K and V are
read once, not from L2 for each block of queries.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.attention_kernels.rows import TAIL, attend, load_rows, store_rows
from fastdeit.kernels.launch_configs import Launch, padded

MAX_RESIDENT = 256
"""The largest number of tokens whose keys and values fit on the chip."""


def split_keys(N: int) -> tuple[int, int, int]:
    """Return the widths of the three blocks of N keys, N at most 256: powers of two, 0 where a
    block is not needed. The last may reach past N; at 197 and 198 tokens they are 128, 64 and
    16."""
    parts = []
    while N > 0:
        width = min(128, max(TAIL, padded(N)))
        if 64 < N <= 64 + TAIL:
            width = 64
        parts.append(width)
        N -= width
    first, second, last = (*parts, 0, 0)[:3]
    return first, second, last


@triton.jit
def _attention_resident_kernel(
    qkv_ptr,
    out_ptr,
    lse_ptr,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Attend all queries of one image and head, BLOCK_M at a time, to keys in blocks of FIRST,
    SECOND and LAST; grid: pairs of image and head."""
    STRIDE: tl.constexpr = 3 * H * D
    TWO: tl.constexpr = FIRST + SECOND
    pair = tl.program_id(0).to(tl.int64)
    q_ptr = qkv_ptr + pair // H * (N * 3 * H * D) + pair % H * D
    k_ptr = q_ptr + H * D
    v_ptr = q_ptr + 2 * H * D
    out_ptr += pair // H * (N * H * D) + pair % H * D

    keys1 = tl.arange(0, FIRST)
    k1 = load_rows(k_ptr, keys1, STRIDE, N, D, PAD, N < FIRST)
    v1 = load_rows(v_ptr, keys1, STRIDE, N, D, PAD, N < FIRST)
    if SECOND:
        keys2 = FIRST + tl.arange(0, SECOND)
        k2 = load_rows(k_ptr, keys2, STRIDE, N, D, PAD, N < TWO)
        v2 = load_rows(v_ptr, keys2, STRIDE, N, D, PAD, N < TWO)
    if LAST:
        keys3 = TWO + tl.arange(0, LAST)
        k3 = load_rows(k_ptr, keys3, STRIDE, N, D, PAD, N < TWO + LAST)
        v3 = load_rows(v_ptr, keys3, STRIDE, N, D, PAD, N < TWO + LAST)
    for start in range(0, N, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q = load_rows(q_ptr, rows, STRIDE, N, D, PAD, True)
        top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((BLOCK_M,), dtype=tl.float32)
        acc = tl.zeros((BLOCK_M, PAD), dtype=tl.float32)
        acc, top, total = attend(acc, top, total, q, k1, v1, keys1, N, D, N < FIRST)
        if SECOND:
            acc, top, total = attend(acc, top, total, q, k2, v2, keys2, N, D, N < TWO)
        if LAST:
            acc, top, total = attend(acc, top, total, q, k3, v3, keys3, N, D, N < TWO + LAST)
        store_rows(out_ptr, acc / total[:, None], rows, H * D, N, D, PAD)
        tl.store(lse_ptr + pair * N + rows, top + tl.log2(total), mask=rows < N)


def launch_resident(
    qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, launch: Launch
) -> None:
    """Write out and lse; arguments as in `attention_triton`. Raises ValueError for more than 256
    tokens."""
    batch, N, _, H, D = qkv.shape
    if N > MAX_RESIDENT:
        raise ValueError(f"the form resident takes at most {MAX_RESIDENT} tokens (got {N})")
    first, second, last = split_keys(N)
    sizes = {"N": N, "H": H, "D": D, "PAD": padded(D)}
    sizes |= {"FIRST": first, "SECOND": second, "LAST": last}
    _attention_resident_kernel[(batch * H,)](qkv, out, lse, **sizes, **launch)
