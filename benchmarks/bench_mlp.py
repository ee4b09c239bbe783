"""Time of `kernels/mlp.py` in both forms against torch, eager and compiled.

python -m benchmarks.bench_mlp [--out FOLDER]

On a GPU in bf16, on a CPU in fp32, without the bias of the second layer. "reference" is F.linear
and F.gelu, the path of a CPU. "triton" is what a GPU uses: cuBLAS and gelu.py, with GELU computed
again in the backward; "triton, epilogue" has GELU in the epilogues of two products, "triton, g
saved" saves GELU's output. On a CPU "bias in GELU" adds the bias after the product, and "g computed
again" saves what a GPU saves. Mode bwd is the backward alone. pct_of_copy counts the least memory
traffic of the form "epilogue" in every row: for a token 2·D + 3·H elements forward, 4·D + 6·H
backward. ms is the time of a call; on a CPU the CPU time of the process, all implementations in
turns.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.measuring import forms, harness
from fastdeit.kernels.gelu import gelu
from fastdeit.kernels.mlp import mlp, mlp_reference

# (B, N, D) of DeiT-S, Ti and B, on a CPU of the recipe digits and Ti; H is 4·D
SHAPES = {
    "cuda": [(256, 198, 384), (1024, 198, 384), (1024, 198, 192), (256, 198, 768)],
    "cpu": [(64, 66, 96), (8, 198, 192)],
}
UNITS = {"fwd": (2, 3), "bwd": (4, 6)}
"""The least memory traffic of a token, in elements of width D, and of width H."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
EPILOGUE = "triton, epilogue"
KERNELS = ("_mlp_fwd_kernel", "_mlp_bwd_kernel")

ROUNDS = 40
Mlp = Callable[..., torch.Tensor]
Calls = dict[tuple[str, str], Callable[[], object]]
"""A call for each (implementation, mode)."""


@contextmanager
def use_form(form: str) -> Iterator[None]:
    """Run forward and backward of `mlp` in one form, in place of that of the table."""
    with forms.use_form("mlp_fwd", form), forms.use_form("mlp_bwd", form):
        yield


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Return x, weight1, bias1, weight2; the elements of the products are about 1."""
    dim = shape[-1]
    shapes = (shape, (4 * dim, dim), (4 * dim,), (dim, 4 * dim))
    scales = (1, dim**-0.5, 1, (4 * dim) ** -0.5)
    tensors = (
        torch.randn(size, device=device) * scale for size, scale in zip(shapes, scales, strict=True)
    )
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def _launch(name: str, with_g: bool = True) -> harness.Launch:
    """Return a launch of forward and backward; name: dtype, D, dtype of the bias."""
    dtype, width, bias_dtype = name.split()

    def run() -> None:
        dim = int(width)
        x = torch.zeros(2, 198, dim, dtype=DTYPES[dtype])
        weight = torch.zeros(4 * dim, dim, dtype=DTYPES[dtype])
        bias = torch.zeros(4 * dim, dtype=DTYPES[bias_dtype])
        h, _ = torch.ops.fastdeit.mlp_fwd(x, weight, bias)
        torch.ops.fastdeit.mlp_bwd(x, weight.t().contiguous(), h, bias, with_g)

    spelled = f"mlp {name}" + ", no g" * (not with_g)
    return harness.Launch(spelled, run, wgmma=() if dtype == "fp32" else KERNELS)


LAUNCHES = [
    *map(_launch, ("bf16 192 bf16", "bf16 384 bf16", "bf16 768 bf16", "bf16 384 fp32")),
    *map(_launch, ("fp16 384 fp16", "fp32 384 fp32", "bf16 200 bf16")),
    _launch("bf16 384 bf16", with_g=False),
]


def with_g_saved(
    x: torch.Tensor, weight1: torch.Tensor, bias1: torch.Tensor, weight2: torch.Tensor
) -> torch.Tensor:
    """Apply both layers with the bias in GELU's pass, and GELU's output saved."""
    return F.linear(gelu(F.linear(x, weight1), bias1), weight2)


class _ComputedAgain(torch.autograd.Function):
    """The reference, with GELU computed again in the backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        x, weight1, bias1, weight2 = inputs
        z = F.linear(x, weight1, bias1)
        ctx.save_for_backward(x, weight1, weight2, z)
        return F.linear(F.gelu(z), weight2)

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, weight1, weight2, z = ctx.saved_tensors
        dz = torch.ops.aten.gelu_backward(dout @ weight2, z)
        rows, gradients = dout.flatten(0, 1), dz.flatten(0, 1)
        return (
            dz @ weight1,
            gradients.t() @ x.flatten(0, 1),
            gradients.sum(0),
            rows.t() @ F.gelu(z).flatten(0, 1),
        )


def implementations(device: torch.device) -> dict[str, Mlp]:
    """Return the implementations, called as `mlp`, all of which must equal the reference."""
    torch.compiler.reset()
    runs: dict[str, Mlp] = {
        "reference": mlp_reference,
        "torch.compile": torch.compile(mlp_reference, dynamic=False),
    }
    if device.type == "cuda":
        return runs | {"triton": mlp, EPILOGUE: mlp, "triton, g saved": with_g_saved}
    return runs | {"bias in GELU": with_g_saved, "g computed again": _ComputedAgain.apply}


def differentiate(
    name: str, run: Mlp, inputs: list[torch.Tensor], dout: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the output and the four gradients."""
    with use_form("epilogue" if name == EPILOGUE else "separate"):
        out = run(*inputs)
        return out, *torch.autograd.grad(out, inputs, dout)


def gate(name: str, run: Mlp, dim: int, device: torch.device) -> None:
    """Compare output and gradients with the reference, in fp32 and in bf16, each relative to its
    largest element."""
    # in bf16 h and g may be rounded in one implementation and not in another
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        inputs = make_inputs((2, 198, dim), dtype, device)
        dout = torch.randn(2, 198, dim, device=device).to(dtype)
        expected = differentiate("reference", mlp_reference, inputs, dout)
        for ours, right in zip(differentiate(name, run, inputs, dout), expected, strict=True):
            size = right.abs().max()
            torch.testing.assert_close(
                ours / size, right / size, rtol=0, atol=tolerance, msg=partial(describe, name)
            )


def describe(name: str, report: str) -> str:
    return f"{name} differs from the reference: {report}"


def calls_of(name: str, run: Mlp, inputs: list[torch.Tensor]) -> Calls:
    """Return the forward, and the backward alone, of an implementation."""
    form = "epilogue" if name == EPILOGUE else "separate"
    dout = torch.randn_like(inputs[0])
    with use_form(form):
        out = run(*inputs)

    def forward() -> None:
        with use_form(form):
            run(*inputs)

    def backward() -> None:
        with use_form(form):
            torch.autograd.grad(out, inputs, dout, retain_graph=True)

    return {(name, "fwd"): forward, (name, "bwd"): backward}


def cpu_quantiles_ms(calls: Calls) -> dict[tuple[str, str], tuple[float, ...]]:
    """Return the 20, 50 and 80 % quantiles of each call's CPU time, measured in turns."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(ROUNDS):
        for key, call in calls.items():
            start = time.process_time()
            call()
            times[key].append(1e3 * (time.process_time() - start))
    return {key: quantiles(found) for key, found in times.items()}


def quantiles(values: list[float]) -> tuple[float, ...]:
    p20, _, _, p80 = statistics.quantiles(values, n=5)
    return p20, statistics.median(values), p80


def bench(
    shape: tuple[int, ...], device: torch.device, stamp: harness.Row, copy: float
) -> list[harness.Row]:
    """Compare every implementation with the reference, then return the rows of one shape."""
    runs = implementations(device)
    for name, run in runs.items():
        gate(name, run, shape[-1], device)
    dtype = "bf16" if device.type == "cuda" else "fp32"
    inputs = make_inputs(shape, DTYPES[dtype], device)
    calls: Calls = {}
    for name, run in runs.items():
        calls |= calls_of(name, run, inputs)
    in_turns = cpu_quantiles_ms(calls) if device.type == "cpu" else {}
    rows = []
    for (name, mode), call in calls.items():
        narrow, wide = UNITS[mode]
        traffic: dict[str, Any] = {"images": shape[0], "copy": copy}
        traffic["nbytes"] = (narrow + 4 * wide) * inputs[0].nbytes
        if in_turns:
            found = harness.measured_columns(in_turns[name, mode], **traffic)
        else:
            found = harness.measure(call, device, **traffic)
        what = harness.case_columns("mlp", mode, "x".join(map(str, shape)), dtype, name)
        rows.append(stamp | what | found)
    return rows


if __name__ == "__main__":
    cases = {name: [(shape,) for shape in shapes] for name, shapes in SHAPES.items()}
    harness.run_benchmark(__doc__, cases, bench)
