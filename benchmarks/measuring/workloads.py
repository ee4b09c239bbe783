"""Calls of the ops at DeiT's sizes on a GPU, for tune.py and for a profiler (profiled.py)."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import bench_mlp
from benchmarks.bench_normalise import make_pixels
from benchmarks.bench_resize import Inputs, make_inputs
from fastdeit.kernels.attention import attention
from fastdeit.kernels.distill import distill
from fastdeit.kernels.gelu import gelu
from fastdeit.kernels.mix import mix
from fastdeit.kernels.mix_patches import mix_patches
from fastdeit.kernels.mlp import mlp
from fastdeit.kernels.norm import add_norm
from fastdeit.kernels.normalise import normalise
from fastdeit.kernels.resize import resize

BATCH = 256
TOKENS = 198
EPS = 1e-6
Call = Callable[[], list[torch.Tensor]]


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def _forward_backward(run: Callable[..., Any], *leaves: torch.Tensor) -> Iterator[tuple[str, Call]]:
    """Yield the forward, and the backward alone, of an op with these leaves."""
    for leaf in leaves:
        leaf.requires_grad_()
    result = run(*leaves)
    parts = result if isinstance(result, tuple) else (result,)
    outputs = [part for part in parts if part.requires_grad]
    cotangents = [torch.randn_like(part) for part in outputs]

    def forward() -> list[torch.Tensor]:
        with torch.no_grad():
            again = run(*leaves)
        return list(again) if isinstance(again, tuple) else [again]

    def backward() -> list[torch.Tensor]:
        return list(torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True))

    yield "forward", forward
    yield "backward", backward


def _attention() -> Iterator[tuple[str, Call]]:
    shapes = ((198, 6, 64, 256), (578, 6, 64, 64), (198, 6, 32, 256), (198, 6, 128, 128))
    for tokens, heads, dim, batch in shapes:
        for name, call in _forward_backward(attention, _random(batch, tokens, 3, heads, dim)):
            yield f"N={tokens} D={dim} {name}", call


def _norm() -> Iterator[tuple[str, Call]]:
    for dim in (384, 192, 768):
        scale = torch.ones(BATCH, device="cuda")
        x, branch = _random(2, BATCH, TOKENS, dim).unbind(0)
        rows = _random(3, dim).unbind(0)
        leaves = [tensor.clone() for tensor in (x, branch, *rows)]

        def run(x, branch, weight, bias, branch_bias, scale=scale):  # type: ignore[no-untyped-def]
            return add_norm(x, branch, scale, weight, bias, EPS, None, branch_bias)

        for name, call in _forward_backward(run, *leaves):
            yield f"D={dim} {name}", call


def _gelu() -> Iterator[tuple[str, Call]]:
    for dim in (1536, 768, 3072):
        for name, call in _forward_backward(gelu, _random(BATCH, TOKENS, dim), _random(dim)):
            yield f"D={dim} {name}", call


def _mlp() -> Iterator[tuple[str, Call]]:
    for dim in (384, 192, 768):
        inputs = bench_mlp.make_inputs((BATCH, TOKENS, dim), torch.bfloat16, torch.device("cuda"))
        for name, call in _forward_backward(mlp, *inputs):
            yield f"D={dim} {name}", call


def _mix() -> Iterator[tuple[str, Call]]:
    images = _random(BATCH, 3, 224, 224, dtype=torch.float16)
    lam = torch.rand(BATCH, device="cuda")
    box = torch.zeros(BATCH, 4, dtype=torch.int32, device="cuda")
    yield "images", lambda: [mix(images, lam, box, torch.bfloat16, True)]
    yield "patches", lambda: [mix_patches(images, lam, box, 16, torch.bfloat16)[0]]
    pixels = make_pixels((BATCH, 3, 224, 224), torch.device("cuda"))
    yield "normalise", lambda: [normalise(*pixels, torch.float16)]
    yield "pixels", lambda: [mix_patches(pixels, lam, box, 16, torch.bfloat16)[0]]


def _distill() -> Iterator[tuple[str, Call]]:
    for classes in (100, 1000, 21841):
        labels = torch.randint(classes, (BATCH,), device="cuda")
        lam = torch.rand(BATCH, device="cuda")
        heads = [_random(BATCH, classes).requires_grad_() for _ in range(2)]
        yield f"K={classes}", functools.partial(_distill_call, heads, labels, lam)


def _distill_call(
    heads: list[torch.Tensor], labels: torch.Tensor, lam: torch.Tensor
) -> list[torch.Tensor]:
    setting: dict[str, Any] = {"smoothing": 0.1, "kind": "hard", "alpha": 0.5, "tau": 3.0}
    loss = distill(heads[0], heads[1], labels, lam, labels, **setting).loss
    return [loss.detach(), *torch.autograd.grad(loss, heads)]


def _resize() -> Iterator[tuple[str, Call]]:
    for size in (224, 384):
        inputs = make_inputs(BATCH, size, torch.device("cuda"))
        yield f"{size} px", functools.partial(_resize_call, inputs)


def _resize_call(inputs: Inputs) -> list[torch.Tensor]:
    return [inputs.run(resize)]


WORKLOADS = {
    "attention": _attention,
    "norm": _norm,
    "gelu": _gelu,
    "mlp": _mlp,
    "mix": _mix,
    "distill": _distill,
    "resize": _resize,
}
