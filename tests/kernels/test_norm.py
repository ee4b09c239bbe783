"""`norm` and `add_norm` against the formula written out in float64."""

import pytest
import torch

from fastdeit.kernels.norm import add_norm, norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
SHAPES = {"N198-D192": (2, 198, 192), "ragged": (3, 7, 33), "one": (1, 1, 4)}


def norm_by_hand(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double() + bias.double()


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """x, branch, scale, weight, bias."""
    drawn = torch.Generator().manual_seed(sum(shape))
    x, branch = torch.randn((2, *shape), generator=drawn)
    weight, bias = torch.randn((2, shape[-1]), generator=drawn)
    scale = (torch.rand(shape[0], generator=drawn) > 0.5) / 0.9
    tensors = [x.to(dtype), branch.to(dtype), scale.float(), weight.to(dtype), bias.to(dtype)]
    return [tensor.to(DEVICE) for tensor in tensors]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_norm_equals_the_formula(shape: tuple[int, ...]) -> None:
    x, _, _, weight, bias = make_inputs(shape)
    torch.testing.assert_close(norm(x, weight, bias, EPS), norm_by_hand(x, weight, bias).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "plain"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_add_norm_equals_the_formula(shape: tuple[int, ...], scaled: bool) -> None:
    x, branch, scale, weight, bias = make_inputs(shape)
    total = x + (scale[:, None, None] if scaled else 1) * branch
    x_new, y = add_norm(x, branch, scale if scaled else None, weight, bias, EPS)
    torch.testing.assert_close(x_new, total)
    torch.testing.assert_close(y, norm_by_hand(total, weight, bias).float(), rtol=1e-5, atol=1e-5)


def test_add_norm_in_bf16_rounds_the_sum_once() -> None:
    x, branch, scale, weight, bias = make_inputs(SHAPES["N198-D192"], torch.bfloat16)
    x_new, y = add_norm(x, branch, scale, weight, bias, EPS)
    assert x_new.dtype == y.dtype == torch.bfloat16
    assert torch.equal(x_new, (x.float() + branch.float() * scale[:, None, None]).bfloat16())
    # statistics in fp32: only the result is rounded, to 8 significant bits
    torch.testing.assert_close(y.double(), norm_by_hand(x_new, weight, bias), rtol=2**-8, atol=2**-8)


def test_add_norm_gradients_equal_the_formula() -> None:
    inputs = make_inputs(SHAPES["ragged"])
    x, branch, scale, weight, bias = inputs
    leaves = [tensor.requires_grad_() for tensor in (x, branch, weight, bias)]
    x_new, y = add_norm(x, branch, scale, weight, bias, EPS)
    total = x.double() + branch.double() * scale[:, None, None]
    cotangent = torch.randn((2, *x.shape), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gradients = torch.autograd.grad([x_new, y], leaves, list(cotangent))
    expected = torch.autograd.grad([total, norm_by_hand(total, weight, bias)], leaves, list(cotangent.double()))
    for gradient, truth in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-4, atol=1e-5)


def test_add_norm_refuses_shapes_that_do_not_fit() -> None:
    x, branch, scale, weight, bias = make_inputs(SHAPES["ragged"])
    with pytest.raises(ValueError, match="do not fit"):
        add_norm(x, branch[:, :1], scale, weight, bias, EPS)
    with pytest.raises(ValueError, match="do not fit"):
        add_norm(x, branch, scale[:1], weight, bias, EPS)
