"""The two layers of a block's MLP with GELU between them, without the bias of the second layer,
which `add_norm` adds.

    h = x·W1ᵀ,   g = gelu(h + b1),   out = g·W2ᵀ
    dh = (dout·W2) · gelu'(h + b1),   dx = dh·W1,   dW1 = dhᵀ·x,   db1 = Σ dh,   dW2 = doutᵀ·g

x, out: (..., D); W1: (H, D); b1: (H,); W2: (D, H); Σ is over all rows. x and h are saved for the
backward, D + H elements for each token, in addition to the parameters; g is not, but computed again
in the pass that computes dh, from the same stored h and so with the same bits. So a block of DeiT
(H = 4·D) saves 12·D elements for each token instead of 16·D, at the price of one more write of H
elements for each token. What no gradient needs is not saved: only dW1 needs x, and only dx needs
W1.

The rows "mlp_fwd" and "mlp_bwd" of the table of launches name a form: "separate", with the products
of cuBLAS and GELU as a kernel between them (gelu.py), or "epilogue", with GELU in the epilogue of
x·W1ᵀ or dout·W2 (mlp_epilogue.py). Source: the MLP of Dosovitskiy et al. 2021 (2010.11929),
equation 3.
"""

from typing import Any

import torch
import torch.nn.functional as F

from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.gelu import DTYPES, gelu_bwd_triton, gelu_triton
from fastdeit.kernels.launch_configs import find_form
from fastdeit.kernels.mlp_epilogue import mlp_bwd_triton, mlp_fwd_triton

Gradient = torch.Tensor | None
"""A gradient; None where none is needed."""


def mlp_reference(
    x: torch.Tensor, weight1: torch.Tensor, bias1: torch.Tensor, weight2: torch.Tensor
) -> torch.Tensor:
    """Apply both layers with torch, which saves g too; arguments and result as `mlp`."""
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view (or, of a strided tensor, a copy) with two dimensions."""
    return tensor.reshape(-1, tensor.shape[-1])


@torch.compiler.assume_constant_result
def _form(op: str, device: torch.device, bits: int, hidden: int) -> str:
    return find_form(op, device, bits=bits, D=hidden)


def _is_in_epilogue(op: str, x: torch.Tensor, hidden: int) -> bool:
    return _form(op, x.device, 8 * x.element_size(), hidden) == "epilogue"


def _activate(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return h and g, both (..., H)."""
    if _is_in_epilogue("mlp_fwd", x, len(weight)):
        return mlp_fwd_triton(x, weight, bias)
    h = F.linear(x, weight)
    return h, gelu_triton(h, bias)


def _activate_bwd(
    dout: torch.Tensor, weight: torch.Tensor, h: torch.Tensor, bias: torch.Tensor, with_g: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dh, db1, and g, which is empty without with_g."""
    if _is_in_epilogue("mlp_bwd", dout, len(bias)):
        return mlp_bwd_triton(dout, weight, h, bias, with_g)
    return gelu_bwd_triton(dout @ weight, h, bias, with_g)


class _Mlp(torch.autograd.Function):
    """The gradient of `mlp`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight1: torch.Tensor,
        bias1: torch.Tensor,
        weight2: torch.Tensor,
    ) -> torch.Tensor:
        h, g = _activate(x, weight1, bias1)
        of_x, of_weight1, of_bias1, _ = ctx.needs_input_grad
        ctx.save_for_backward(
            h,
            bias1,
            x if of_weight1 else None,
            weight1 if of_x else None,
            weight2 if of_x or of_weight1 or of_bias1 else None,
        )
        return F.linear(g, weight2)

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[Gradient, Gradient, Gradient, Gradient]:
        # h is no input: a second derivative would silently lack what comes through it
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("mlp has no second derivative: do not pass create_graph=True")
        h, bias1, x, weight1, weight2 = ctx.saved_tensors
        _, _, of_bias1, of_weight2 = ctx.needs_input_grad
        if weight2 is None:
            return None, None, None, _rows(dout).t() @ _rows(gelu_triton(h, bias1))
        dh, dbias1, g = _activate_bwd(dout, weight2, h, bias1, of_weight2)
        return (
            None if weight1 is None else dh @ weight1,
            None if x is None else _rows(dh).t() @ _rows(x),
            dbias1 if of_bias1 else None,
            _rows(dout).t() @ _rows(g) if of_weight2 else None,
        )


def _check(
    x: torch.Tensor, weight1: torch.Tensor, bias1: torch.Tensor, weight2: torch.Tensor
) -> None:
    hidden, dim = weight1.shape
    if x.shape[-1] != dim or bias1.shape != (hidden,) or weight2.shape != (dim, hidden):
        shapes = ", ".join(str(tuple(part.shape)) for part in (x, weight1, bias1, weight2))
        raise ValueError(f"x, weight1, bias1 and weight2 do not fit (got {shapes})")


def mlp(
    x: torch.Tensor, weight1: torch.Tensor, bias1: torch.Tensor, weight2: torch.Tensor
) -> torch.Tensor:
    """Apply a layer with bias, exact GELU, and a layer without bias: x (..., D), weight1 (H, D),
    bias1 (H,), weight2 (D, H) → (..., D), differentiable (once) in all four.

    As a kernel, x and the weights have one dtype of fp32, bf16 and fp16, and bias1 is any of these.
    Raises ValueError for another dtype or shapes that do not fit.
    """
    _check(x, weight1, bias1, weight2)
    if not is_fused(x):
        return mlp_reference(x, weight1, bias1, weight2)
    dtypes = {x.dtype, weight1.dtype, weight2.dtype}
    if len(dtypes) > 1 or not {x.dtype, bias1.dtype} <= set(DTYPES):
        got = ", ".join(str(part.dtype) for part in (x, weight1, bias1, weight2))
        raise ValueError(f"x and weights must have one of {DTYPES}, bias1 any (got {got})")
    return _Mlp.apply(x, weight1, bias1, weight2)
