"""Offsets of batches that have more than 2**31 elements are computed in 64 bits.

.venv/bin/python -m pytest tests/kernels/test_far_programs.py, about 2 s
"""

from collections.abc import Callable

import pytest
import torch

from benchmarks.measuring.forms import use_form
from fastdeit.kernels import backend
from fastdeit.kernels.attention import attention_triton, attention_weights_triton
from fastdeit.kernels.attention_kernels.bwd import attention_bwd_triton
from fastdeit.kernels.distill import distill
from fastdeit.kernels.gelu import gelu_bwd_triton, gelu_triton
from fastdeit.kernels.mix import mix_triton
from fastdeit.kernels.mlp_epilogue import mlp_bwd_triton, mlp_fwd_triton
from fastdeit.kernels.norm import add_norm_triton
from fastdeit.kernels.normalise import normalise
from tests.kernels import interpreter
from tests.kernels.far_programs import far_programs

interpreter.correct()
pytestmark = [
    pytest.mark.skipif(not interpreter.INTERPRETED, reason="kernels are compiled here"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
FAR = 2**22
"""Programs of one row and more, whose offsets need 33 bits with the sizes here."""


def attend(forward: str, backward: str) -> None:
    qkv = torch.zeros(1, 70, 3, 2, 64, dtype=torch.bfloat16)
    ahead = {"AHEAD": 2} if backward == "ahead" else {}
    with use_form("attention_fwd", forward), use_form("attention_bwd", backward, ahead):
        out, lse = attention_triton(qkv)
        attention_bwd_triton(qkv, out, lse, out)
    attention_weights_triton(qkv, lse, [1])


def activate() -> None:
    h, bias = torch.zeros(5, 600), torch.zeros(600)
    gelu_triton(h, bias)
    gelu_bwd_triton(h, h, bias, True)


def multiply() -> None:
    x, weight, bias = torch.zeros(5, 8), torch.zeros(50, 8), torch.zeros(50)
    h, _ = mlp_fwd_triton(x, weight, bias)
    mlp_bwd_triton(x, weight.t().contiguous(), h, bias, True)


def add_and_norm() -> None:
    x, weight = torch.zeros(3, 600), torch.ones(600)
    add_norm_triton(x, x, None, None, weight, weight, 1e-6, None)


def lose() -> None:
    logits, labels = torch.zeros(4, 1000), torch.zeros(4, dtype=torch.int64)
    with backend.use_backend("triton"):
        distill(
            logits,
            logits,
            labels,
            torch.ones(4),
            logits,
            smoothing=0.1,
            kind="soft",
            alpha=0.5,
            tau=3.0,
        )


def mix_and_normalise() -> None:
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    boxes, key = torch.tensor([[0, 0, 4, 4]] * 2, dtype=torch.int32), torch.zeros(2).long()
    for channels_last in (False, True):
        mix_triton(torch.zeros(2, 3, 32, 32), torch.ones(2), boxes, torch.float32, channels_last)
        with backend.use_backend("triton"):
            levels = torch.zeros(3, 256)
            normalise(images, levels, boxes, "pixel", key, torch.float32, channels_last)


LAUNCHES: dict[str, Callable[[], None]] = {
    "attention-blocks-pair": lambda: attend("blocks", "pair"),
    "attention-resident-whole": lambda: attend("resident", "whole"),
    "attention-blocks-ahead": lambda: attend("blocks", "ahead"),
    "gelu": activate,
    "mlp": multiply,
    "norm": add_and_norm,
    "distill": lose,
    "mix": mix_and_normalise,
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_offsets_of_a_huge_batch_do_not_overflow(name: str) -> None:
    with far_programs(FAR):
        LAUNCHES[name]()
