"""Second step of a sum over rows: the sum, in a fixed order, of the partial sums that the programs
of a backward kernel have written.

    out_k = Σ_p partials[k, p]

partials: (K, P, D) fp32, K at most 4; out_k: (D,), each with its own dtype. Without atomics, so the
same inputs give the same bits; the order depends on P and D only, which the table of launches sets,
not on the GPU or its load. Bytes: reads 4·K·P·D, mostly from L2, where the kernel before it wrote.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from fastdeit.kernels.launch_configs import blocks_of, find_launch


@triton.jit
def _sum_partials_kernel(
    partials_ptr,
    out0_ptr,
    out1_ptr,
    out2_ptr,
    out3_ptr,
    P,
    D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add the P partial sums of BLOCK_D columns of one sum; grid: blocks of columns, sums."""
    k = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_cols = cols < D
    total = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    start = tl.zeros((), tl.int32)
    # not a range: with NumPy 2.4, Triton 3.6's interpreter takes only constants in one
    while start < P:
        program = start + tl.arange(0, BLOCK_P)
        mask = (program < P)[:, None] & mask_cols[None, :]
        total += tl.load(
            partials_ptr + k * P * D + program[:, None] * D + cols[None, :], mask=mask, other=0.0
        )
        start += BLOCK_P
    out = tl.sum(total, 0)
    # the outputs may differ in dtype, so each has its own store; its presence is known at compile
    # time, k only at run time
    if k == 0:
        tl.store(out0_ptr + cols, out.to(out0_ptr.dtype.element_ty), mask=mask_cols)
    if out1_ptr is not None:  # noqa: SIM102
        if k == 1:
            tl.store(out1_ptr + cols, out.to(out1_ptr.dtype.element_ty), mask=mask_cols)
    if out2_ptr is not None:  # noqa: SIM102
        if k == 2:
            tl.store(out2_ptr + cols, out.to(out2_ptr.dtype.element_ty), mask=mask_cols)
    if out3_ptr is not None:  # noqa: SIM102
        if k == 3:
            tl.store(out3_ptr + cols, out.to(out3_ptr.dtype.element_ty), mask=mask_cols)


def sum_partials(partials: torch.Tensor, outs: Sequence[torch.Tensor]) -> None:
    """Write each of the K sums into its tensor: partials (K, P, D) fp32 → K tensors (D,). P may be
    0."""
    count, programs, dim = partials.shape
    assert count == len(outs) <= 4 and partials.is_contiguous() and partials.dtype == torch.float32
    launch = find_launch("row_sums", partials.device, bits=32, D=dim)
    grid = (blocks_of(dim, launch["BLOCK_D"]), count)
    padded = [*outs, None, None, None][:4]
    _sum_partials_kernel[grid](partials, *padded, programs, D=dim, **launch)
