"""Time of `kernels/mlp.py` in both forms against torch, eager and compiled.

python -m benchmarks.bench_mlp [--out FOLDER]

Everything in bf16, without the bias of the second layer. "triton" is what training uses: cuBLAS and
gelu.py, with GELU computed again in the backward. "triton, epilogue" has GELU in the epilogues of
two products, "triton, g saved" saves GELU's output. "reference" is F.linear and F.gelu. Mode bwd is
the backward alone. pct_of_copy counts the least memory traffic of the form "epilogue" in every row:
a token forward 2·D + 3·H elements, backward 4·D + 6·H.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks import harness
from fastdeit.kernels import launch_configs
from fastdeit.kernels.gelu import gelu
from fastdeit.kernels.mlp import mlp, mlp_reference

# (B, N, D) of DeiT-S, Ti and B; H is 4·D
SHAPES = {
    "cuda": [(256, 198, 384), (1024, 198, 384), (1024, 198, 192), (256, 198, 768)],
    "cpu": [(4, 198, 192)],
}
UNITS = {"fwd": (2, 3), "bwd": (4, 6)}
"""Least memory traffic of a token: elements of width D, and of width H."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KERNELS = ("_mlp_fwd_kernel", "_mlp_bwd_kernel")

Mlp = Callable[..., torch.Tensor]


@contextmanager
def use_form(form: int) -> Iterator[None]:
    """Run `mlp` in one form, whatever the table has: 1 with gelu.py, 2 in epilogues."""
    launches = [row["launch"] for row in launch_configs.rows() if "FORM" in row["launch"]]
    before = [launch["FORM"] for launch in launches]
    for launch in launches:
        launch["FORM"] = form
    try:
        yield
    finally:
        for launch, value in zip(launches, before, strict=True):
            launch["FORM"] = value


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


def in_epilogue(*inputs: torch.Tensor) -> torch.Tensor:
    """Apply `mlp`; its backward must be called under `use_form(2)`, too."""
    with use_form(2):
        return mlp(*inputs)


def with_g_saved(
    x: torch.Tensor, weight1: torch.Tensor, bias1: torch.Tensor, weight2: torch.Tensor
) -> torch.Tensor:
    return F.linear(gelu(F.linear(x, weight1), bias1), weight2)


def implementations(device: torch.device) -> dict[str, Mlp]:
    """Return the implementations, called as `mlp`, all of which must equal the reference."""
    torch.compiler.reset()
    runs: dict[str, Mlp] = {
        "reference": mlp_reference,
        "torch.compile": torch.compile(mlp_reference, dynamic=False),
    }
    if device.type == "cuda":
        runs |= {"triton": mlp, "triton, epilogue": in_epilogue, "triton, g saved": with_g_saved}
    return runs


def differentiate(
    name: str, run: Mlp, inputs: list[torch.Tensor], dout: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the output and the four gradients."""
    with use_form(2 if name == "triton, epilogue" else 1):
        out = run(*inputs)
        return out, *torch.autograd.grad(out, inputs, dout)


def gate(name: str, run: Mlp, dim: int, device: torch.device) -> None:
    """Compare output and gradients with the reference, in fp32 and in bf16, each relative to its
    largest element."""
    for dtype in (torch.float32, torch.bfloat16):
        inputs = make_inputs((2, 198, dim), dtype, device)
        dout = torch.randn(2, 198, dim, device=device).to(dtype)
        expected = differentiate("reference", mlp_reference, inputs, dout)
        for ours, right in zip(differentiate(name, run, inputs, dout), expected, strict=True):
            size = right.abs().max()
            harness.gate(ours / size, right / size, name)


def bench(
    shape: tuple[int, ...], device: torch.device, stamp: harness.Row, copy: float
) -> list[harness.Row]:
    """Compare every implementation with the reference, then return the rows of one shape."""
    runs = implementations(device)
    for name, run in runs.items():
        gate(name, run, shape[-1], device)
    inputs = make_inputs(shape, torch.bfloat16, device)
    cotangent = torch.randn_like(inputs[0])
    rows = []
    for name, run in runs.items():
        with use_form(2 if name == "triton, epilogue" else 1):
            out = run(*inputs)
            backward = partial(torch.autograd.grad, out, inputs, cotangent, retain_graph=True)
            calls: dict[str, Callable[[], object]] = {"fwd": partial(run, *inputs), "bwd": backward}
            for mode, call in calls.items():
                what = harness.case_columns("mlp", mode, "x".join(map(str, shape)), "bf16", name)
                narrow, wide = UNITS[mode]
                nbytes = (narrow + 4 * wide) * inputs[0].nbytes
                found = harness.measure(call, device, images=shape[0], nbytes=nbytes, copy=copy)
                rows.append(stamp | what | found)
    return rows


if __name__ == "__main__":
    cases = {name: [(shape,) for shape in shapes] for name, shapes in SHAPES.items()}
    harness.run_benchmark(__doc__, cases, bench)
