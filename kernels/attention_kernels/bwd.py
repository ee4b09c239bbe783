"""Backward of attention.py, from the forward's output and log-sum-exp; without atomics, so that it
repeats bit for bit.

    P = exp2(scale·log2(e) · Q Kᵀ - lse),   delta = rowsum(dO ∘ O),   dS = P ∘ (dO Vᵀ - delta)
    dV = Pᵀ dO,   dK = scale · dSᵀ Q,   dQ = scale · dS K

qkv, dqkv: (B, N, 3, H, D) contiguous; out, grad (dO): (B, N, H·D); lse: (B, H, N) fp32, base 2. P
and dS are rounded to qkv's dtype for their products, sums are fp32. Three forms write the same
dqkv; the row "attention_bwd" of the table of launches names one:

- whole (bwd_whole.py): one program per image and head holds Q and dO on the chip, loops over the
  keys and holds dQ in registers: every byte is moved once, 3 + 2 read and 3 written per image, in
  units of N·H·D elements. Up to 256 tokens; in fp32, where it would spill registers, 16;
- ahead (bwd_whole.py): the same, and each program fetches the inputs of a later one into
  L2. No GPU has run it yet;
- pair (bwd_pair.py): the dQ kernel, which also writes delta (B, H, N), then the dK/dV
  kernel: 7 products instead of 5, and Q, K, V and dO are read twice, mostly from L2; it needs few
  registers at any N.

Source: Dao 2023 (2307.08691), algorithm 2.
"""

from collections.abc import Callable

import torch

from fastdeit.kernels.attention_kernels.bwd_pair import launch_pair
from fastdeit.kernels.attention_kernels.bwd_whole import launch_whole
from fastdeit.kernels.launch_configs import find_form, find_launch
from fastdeit.kernels.operators import operator

_FORMS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "pair": (launch_pair, ("attention_bwd_dq", "attention_bwd_dkdv")),
    "whole": (launch_whole, ("attention_bwd_whole",)),
    "ahead": (launch_whole, ("attention_bwd_ahead",)),
}
"""The launcher of each form, and the ops of its launches."""


def _attention_bwd_fake(
    qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


@operator("attention_bwd", fake=_attention_bwd_fake)
def attention_bwd_triton(
    qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    """Launch the kernels; return the gradient of qkv, with its shape and dtype, from grad, that of
    out. Shapes are in the docstring of this file."""
    # this copies nothing in the student; elsewhere a batch may be sliced, and a gradient expanded
    qkv, out, grad = qkv.contiguous(), out.contiguous(), grad.contiguous()
    _, N, _, _, D = qkv.shape
    dqkv = torch.empty_like(qkv)
    if not qkv.numel():
        return dqkv
    bits = 8 * qkv.element_size()
    launch_form, ops = _FORMS[find_form("attention_bwd", qkv.device, bits=bits, D=D, N=N)]
    launches = [find_launch(op, qkv.device, bits=bits, D=D, N=N) for op in ops]
    launch_form(qkv, out, lse, grad, dqkv, *launches)
    return dqkv
