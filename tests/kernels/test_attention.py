"""`attention` against softmax written out in float64."""

import pytest
import torch

from fastdeit.kernels.attention import attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {"N198-D64": (2, 198, 3, 2, 64), "ragged": (3, 17, 3, 5, 24), "one": (1, 1, 3, 1, 8)}


def attention_by_hand(qkv: torch.Tensor) -> torch.Tensor:
    q, k, v = qkv.double().unbind(2)  # each (B, N, H, D)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)


def make_qkv(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_attention_equals_the_formula(shape: tuple[int, ...]) -> None:
    qkv = make_qkv(shape)
    out = attention(qkv)
    assert out.shape == (shape[0], shape[1], shape[3] * shape[4])
    torch.testing.assert_close(out, attention_by_hand(qkv).float(), rtol=1e-5, atol=1e-5)


def test_attention_in_bf16() -> None:
    qkv = make_qkv(SHAPES["N198-D64"], torch.bfloat16)
    # 198 weights of 8 significant bits each
    torch.testing.assert_close(attention(qkv).double(), attention_by_hand(qkv), rtol=0.02, atol=0.02)


def test_attention_gradient_equals_the_formula() -> None:
    qkv = make_qkv(SHAPES["ragged"]).requires_grad_()
    cotangent = torch.randn(3, 17, 120, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    (gradient,) = torch.autograd.grad(attention(qkv), qkv, cotangent)
    (expected,) = torch.autograd.grad(attention_by_hand(qkv), qkv, cotangent.double())
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_attention_refuses_another_packing() -> None:
    with pytest.raises(ValueError, match="must be"):
        attention(torch.zeros(2, 3, 5, 2, 8))
