"""Multi-head self-attention over the packed projection, as every block of the student calls it.

    out[b, n, h] = softmax_m(q[b, n, h] · k[b, m, h] / sqrt(D)) · v[b, m, h]

qkv: (B, N, 3, H, D), contiguous, the qkv projection as it leaves its matrix product; out: (B, N, H·D), what the output
projection reads. Bytes per image, in units of N·H·D elements: reads 3, writes 1; the backward reads 3 + 2 and writes 3.

The packed form at both ends is the contract of this file: a fused Triton kernel reads and writes it in place, so that
no head is ever transposed in memory. It comes into this file behind `attention`; until then both devices take SDPA.
Source: Vaswani et al. 2017 (1706.03762), eq. 1.
"""

import torch
import torch.nn.functional as F


def attention_reference(qkv: torch.Tensor) -> torch.Tensor:
    """Attend with torch's scaled dot product; qkv (B, N, 3, H, D) → (B, N, H·D) in qkv's dtype."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, D)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def attention(qkv: torch.Tensor) -> torch.Tensor:
    """Self-attention without mask or dropout, scale D**-0.5.

    qkv: (B, N, 3, H, D) fp32, bf16 or fp16; returns (B, N, H·D) in the same dtype, differentiable.
    Raises ValueError when qkv is not packed so.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be (B, N, 3, H, D), got {tuple(qkv.shape)}")
    return attention_reference(qkv)
