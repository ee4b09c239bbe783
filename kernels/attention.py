"""Multi-head self-attention on the output of one projection to queries, keys and values, as every
block of the student calls it.

    out[b, n, h] = softmax_m(q[b, n, h] · k[b, m, h] / sqrt(D)) · v[b, m, h]

qkv: (B, N, 3, H, D), contiguous, the output of the qkv projection; out: (B, N, H·D), the input of
the output projection. No head is transposed in memory. Scores, softmax and sums are fp32, the
weights are rounded to qkv's dtype for their product with v. Bytes per image, in units of N·H·D
elements: reads 3, writes 1, and 4 bytes of log-sum-exp for each row and head; the backward
(attention_kernels/bwd.py) reads 3 + 2 and writes 3.

The row "attention_fwd" of the table of launches names one of two forms: "blocks"
(attention_kernels/blocks.py), one program for each block of queries; "resident"
(attention_kernels/resident.py), one program for each image and head, up to 256 tokens. No GPU has
compared them yet.

`attention_weights` also returns the softmax itself, for attention maps; training does not use it.
Source: Vaswani et al. 2017 (1706.03762), eq. 1; Dao 2023 (2307.08691), algorithm 1.
"""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from fastdeit.kernels.attention_kernels.blocks import launch_blocks
from fastdeit.kernels.attention_kernels.bwd import attention_bwd_triton
from fastdeit.kernels.attention_kernels.resident import launch_resident
from fastdeit.kernels.attention_kernels.rows import LOG2_E, load_rows
from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.launch_configs import blocks_of, find_form, find_launch, padded
from fastdeit.kernels.operators import operator

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that the kernels take."""
HEAD_DIMS = (32, 64, 96, 128)
"""The sizes D of a head that the kernels take."""
MAX_TOKENS = 1024
"""The largest number of tokens that the kernels take."""
_FORMS = {"blocks": launch_blocks, "resident": launch_resident}
_warned: set[str] = set()


def attention_reference(qkv: torch.Tensor) -> torch.Tensor:
    """Attend with torch's scaled dot product; qkv (B, N, 3, H, D) → (B, N, H·D) in qkv's dtype.

    On a CPU, 16-bit inputs are computed in fp32: the backward of torch's 16-bit kernel takes up to
    six times as long.
    """
    is_slow = qkv.device.type == "cpu" and qkv.element_size() == 2
    wide = qkv.float() if is_slow else qkv
    q, k, v = wide.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, D)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).to(qkv.dtype)


def attention_weights_reference(
    qkv: torch.Tensor, heads: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of `attention_reference` and the softmax of the heads in plain torch;
    arguments and result as `attention_weights`."""
    chosen = qkv[:, :, :, list(heads)].float()
    q, k, _ = chosen.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, len(heads), N, D)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return attention_reference(qkv), weights


@triton.jit(do_not_specialize=["head", "place"])
def _attention_weights_kernel(
    qkv_ptr,
    lse_ptr,
    weights_ptr,
    head,
    place,
    PLACES: tl.constexpr,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute the softmax of one head for BLOCK_M queries of one image, into fp32 (B, PLACES, N, N)
    at `place`; grid: images · blocks of queries."""
    BLOCKS: tl.constexpr = (N + BLOCK_M - 1) // BLOCK_M
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    rows = tl.program_id(0) % BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    q_ptr = qkv_ptr + image * (N * 3 * H * D) + head * D
    weights_ptr += (image * PLACES + place) * (N * N)
    q = load_rows(q_ptr, rows, 3 * H * D, N, D, PAD, True)
    lse = tl.load(lse_ptr + (image * H + head) * N + rows, mask=rows < N, other=0.0)
    for start in range(0, N, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = load_rows(q_ptr + H * D, keys, 3 * H * D, N, D, PAD, True)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (LOG2_E * D**-0.5)
        mask = (rows < N)[:, None] & (keys < N)[None, :]
        tl.store(
            weights_ptr + rows[:, None] * N + keys[None, :],
            tl.exp2(scores - lse[:, None]),
            mask=mask,
        )


def _attention_fake(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, N, _, H, D = qkv.shape
    return qkv.new_empty(batch, N, H * D), qkv.new_empty(batch, H, N, dtype=torch.float32)


def _save_for_backward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)  # else a zero gradient of lse would be written at every call
    ctx.save_for_backward(*inputs, out, lse)


def _backward(ctx, grad, _) -> torch.Tensor | None:  # type: ignore[no-untyped-def]
    qkv, out, lse = ctx.saved_tensors
    return None if grad is None else attention_bwd_triton(qkv, out, lse, grad)


@operator("attention", fake=_attention_fake, save=_save_for_backward, backward=_backward)
def attention_triton(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward; return `attention`'s output, and lse (B, H, N) fp32, log2 of each row's
    sum of exponentials.

    Takes CPU tensors under TRITON_INTERPRET=1.
    """
    qkv = qkv.contiguous()  # no copy in the student, only for a sliced qkv
    _, N, _, _, D = qkv.shape
    out, lse = _attention_fake(qkv)
    if not qkv.numel():
        return out, lse
    bits = 8 * qkv.element_size()
    form = find_form("attention_fwd", qkv.device, bits=bits, D=D, N=N)
    launch = find_launch(f"attention_fwd_{form}", qkv.device, bits=bits, D=D, N=N)
    _FORMS[form](qkv, out, lse, launch)
    return out, lse


def _attention_weights_fake(
    qkv: torch.Tensor, lse: torch.Tensor, heads: Sequence[int]
) -> torch.Tensor:
    return lse.new_empty(qkv.shape[0], len(heads), qkv.shape[1], qkv.shape[1])


@operator("attention_weights", fake=_attention_weights_fake)
def attention_weights_triton(
    qkv: torch.Tensor, lse: torch.Tensor, heads: Sequence[int]
) -> torch.Tensor:
    """Launch one kernel for each head; return the softmax (B, len(heads), N, N) fp32. lse: of
    `attention_triton`."""
    qkv = qkv.contiguous()
    batch, N, _, H, D = qkv.shape
    weights = _attention_weights_fake(qkv, lse, heads)
    launch = find_launch("attention_weights", qkv.device, bits=8 * qkv.element_size(), D=D, N=N)
    sizes = {"PLACES": len(heads), "N": N, "H": H, "D": D, "PAD": padded(D)}
    grid = (batch * blocks_of(N, launch["BLOCK_M"]),)
    for place, head in enumerate(heads):
        if qkv.numel():
            _attention_weights_kernel[grid](qkv, lse, weights, head, place, **sizes, **launch)
    return weights


@torch.compiler.assume_constant_result
def _warn_once(reason: str) -> None:
    """Warn why attention takes the slower path; under torch.compile, once for each trace."""
    if reason not in _warned:
        _warned.add(reason)
        logger.warning(
            "attention uses torch's scaled_dot_product_attention, not the fused kernel: %s", reason
        )


def _takes_kernel(qkv: torch.Tensor) -> bool:
    """Return True if the kernels can take qkv; warn if kernels are on and cannot."""
    if not is_fused(qkv):
        return False
    if qkv.shape[1] > MAX_TOKENS:
        _warn_once(f"it has more than {MAX_TOKENS} tokens")
    elif qkv.shape[4] not in HEAD_DIMS:
        _warn_once(f"its heads have another size than {', '.join(map(str, HEAD_DIMS))}")
    elif qkv.dtype not in DTYPES:
        _warn_once("it is neither fp32, bf16 nor fp16")
    else:
        return True
    return False


def _check(qkv: torch.Tensor) -> None:
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be (B, N, 3, H, D) (got {tuple(qkv.shape)})")


def attention(qkv: torch.Tensor) -> torch.Tensor:
    """Compute self-attention without mask or dropout, scale D**-0.5.

    qkv: (B, N, 3, H, D) fp32, bf16 or fp16; returns (B, N, H·D) in the same dtype, differentiable
    (once). D of 32, 64, 96 or 128 and N up to 1024 run fused; others take the reference, with one
    warning. Raises ValueError if qkv has another layout.
    """
    _check(qkv)
    return attention_triton(qkv)[0] if _takes_kernel(qkv) else attention_reference(qkv)


def attention_weights(qkv: torch.Tensor, heads: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `attention` and return the weights of some heads too, for attention maps; without
    gradient.

    qkv: as for `attention`; heads: numbers from 0, in any order. Returns out (B, N, H·D) and
    weights (B, len(heads), N, N) fp32, rows (queries) that sum to 1. Raises ValueError for a head
    that does not exist, or another layout of qkv.
    """
    _check(qkv)
    for head in heads:
        if not 0 <= head < qkv.shape[3]:
            raise ValueError(f"heads must be 0 to {qkv.shape[3] - 1} (got {head})")
    qkv = qkv.detach()
    if not _takes_kernel(qkv):
        return attention_weights_reference(qkv, heads)
    out, lse = attention_triton(qkv)
    return out, attention_weights_triton(qkv, lse, list(heads))
