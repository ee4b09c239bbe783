"""`kernels/gelu.py` against what a user would otherwise call: the layer's bias and F.gelu, eager
and compiled.

python -m benchmarks.bench_gelu [--out FOLDER]

Everything in bf16. "F.gelu" adds bias and input in an eager kernel of its own; "F.gelu without
bias" is the most that a matrix product's epilogue can save, which adds the bias at no cost but
leaves its gradient to another kernel: neither is counted here. Mode bwd is the backward alone. The
floor that pct_of_copy refers to: forward 2, backward 3 times the bytes of x.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks import harness
from fastdeit.kernels.gelu import gelu, gelu_reference

# (B, N, D), D the MLP's hidden width in Ti, S and B
SHAPES = {
    "cuda": [
        (256, 198, 1536),
        (1024, 198, 1536),
        (1024, 198, 768),
        (256, 198, 3072),
        (512, 198, 3072),
    ],
    "cpu": [(2, 198, 768)],
}
STREAM_UNITS = {"fwd": 2, "bwd": 3}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

Gelu = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    x, bias = torch.randn(shape, device=device), torch.randn(shape[-1], device=device)
    return x.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()


def _launch(name: str, biased: bool = True) -> harness.Launch:
    """Forward and backward by their name: dtype, D, the bias's dtype."""
    dtype_name, width, bias_dtype_name = name.split()

    def run() -> None:
        x = torch.zeros(2, 198, int(width), dtype=DTYPES[dtype_name])
        bias = torch.zeros(int(width), dtype=DTYPES[bias_dtype_name]) if biased else None
        torch.ops.fastdeit.gelu(x, bias)
        torch.ops.fastdeit.gelu_bwd(x, x, bias)

    return harness.Launch(
        name if biased else f"{name}, no bias",
        run,
        streams=("_gelu_fwd_kernel", "_gelu_bwd_kernel"),
    )


LAUNCHES = [
    *map(
        _launch,
        (
            "bf16 768 bf16",
            "bf16 1536 bf16",
            "bf16 3072 bf16",
            "bf16 1536 fp32",
            "fp16 1536 fp16",
            "fp32 1536 fp32",
        ),
    ),
    _launch("bf16 1536 bf16", biased=False),
]


def implementations(device: torch.device) -> dict[str, Gelu]:
    """Each way, called as `gelu`; those that must equal the reference come first."""
    torch.compiler.reset()
    runs: dict[str, Gelu] = {
        "reference": gelu_reference,
        "torch.compile": torch.compile(gelu_reference, dynamic=False),
    }
    if device.type == "cuda":
        runs["triton"] = gelu
    return runs


def peers() -> dict[str, Gelu]:
    return {
        "F.gelu": lambda x, bias: F.gelu(x + bias),
        "F.gelu without bias": lambda x, _: F.gelu(x),
    }


def gate(run: Gelu, name: str, dim: int, device: torch.device) -> None:
    """In fp32 the result and both gradients, in bf16 the result."""
    leaves = make_inputs((198, dim), torch.float32, device)
    cotangent = torch.randn(198, dim, device=device)
    actual, expected = (
        (y, *torch.autograd.grad(y, leaves, cotangent))
        for y in (run(*leaves), gelu_reference(*leaves))
    )
    for ours, right in zip(actual, expected, strict=True):
        # a sum over rows has the rounding of its terms, whatever they cancel to
        size = 1 if right.ndim == 2 else 198**0.5
        harness.gate(ours / size, right / size, name)
    narrow = make_inputs((198, dim), torch.bfloat16, device)
    harness.gate(run(*narrow), gelu_reference(*narrow), name)


def bench(
    shape: tuple[int, ...], device: torch.device, stamp: harness.Row, copy: float
) -> list[harness.Row]:
    """The rows of one shape, the reference's equals gated first."""
    equals = implementations(device)
    for name, run in equals.items():
        gate(run, name, shape[-1], device)
    x, bias = make_inputs(shape, torch.bfloat16, device)
    cotangent = torch.randn_like(x)
    rows = []
    for name, run in {**equals, **peers()}.items():
        leaves = (x,) if name == "F.gelu without bias" else (x, bias)
        backward = partial(torch.autograd.grad, run(x, bias), leaves, cotangent, retain_graph=True)
        calls: dict[str, Callable[[], object]] = {"fwd": partial(run, x, bias), "bwd": backward}
        for mode, call in calls.items():
            what = {
                "bench": "gelu",
                "mode": mode,
                "shape": "x".join(map(str, shape)),
                "dtype": "bf16",
                "impl": name,
            }
            nbytes = STREAM_UNITS[mode] * x.nbytes
            rows.append(
                {
                    **stamp,
                    **what,
                    **harness.measure(call, device, images=shape[0], nbytes=nbytes, copy=copy),
                }
            )
    return rows


if __name__ == "__main__":
    harness.run_benchmark(
        __doc__, {name: [(shape,) for shape in shapes] for name, shapes in SHAPES.items()}, bench
    )
