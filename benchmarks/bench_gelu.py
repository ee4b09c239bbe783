"""Time of `kernels/gelu.py` against the bias and F.gelu, eager and compiled.

python -m benchmarks.bench_gelu [--out FOLDER]

Everything is in bf16. "F.gelu" adds the bias in a separate eager kernel. "F.gelu without bias"
shows the most that a matrix product with a bias epilogue can save: it adds the bias at no cost, and
the gradient of the bias needs another kernel, which is not counted here. Mode bwd is the backward
alone. pct_of_copy counts the least memory traffic: forward 2, backward 3 times the bytes of x.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.measuring import harness
from fastdeit.kernels.gelu import gelu, gelu_reference

# (B, N, D), D the hidden width of the MLP in DeiT-Ti, S and B
SMALL_SHAPES = [(256, 198, 1536), (1024, 198, 1536)]
SHAPES = {
    "cuda": [*SMALL_SHAPES, (1024, 198, 768), (256, 198, 3072), (512, 198, 3072)],
    "cpu": [(2, 198, 768)],
}
STREAM_UNITS = {"fwd": 2, "bwd": 3}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

Gelu = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(shape, device=device)
    bias = torch.randn(shape[-1], device=device)
    return x.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()


def _launch(name: str, biased: bool = True, with_y: bool = False) -> harness.Launch:
    """Return a launch of forward and backward; name: dtype, D, dtype of the bias."""
    dtype, width, bias_dtype = name.split()

    def run() -> None:
        x = torch.zeros(2, 198, int(width), dtype=DTYPES[dtype])
        bias = torch.zeros(int(width), dtype=DTYPES[bias_dtype]) if biased else None
        torch.ops.fastdeit.gelu(x, bias)
        torch.ops.fastdeit.gelu_bwd(x, x, bias, with_y)

    streams = ("_gelu_fwd_kernel", "_gelu_bwd_kernel")
    spelled = f"gelu {name}" + ", no bias" * (not biased) + ", with y" * with_y
    return harness.Launch(spelled, run, streams=streams)


LAUNCHES = [
    _launch("bf16 768 bf16"),
    _launch("bf16 1536 bf16"),
    _launch("bf16 3072 bf16"),
    _launch("bf16 1536 fp32"),
    _launch("fp16 1536 fp16"),
    _launch("fp32 1536 fp32"),
    _launch("bf16 1536 bf16", biased=False),
    *(_launch(name, with_y=True) for name in ("bf16 768 bf16", "bf16 1536 bf16", "bf16 3072 bf16")),
    *(_launch(name, with_y=True) for name in ("fp16 1536 fp16", "fp32 1536 fp32")),
]


def implementations(device: torch.device) -> dict[str, Gelu]:
    """Return the implementations that must equal the reference, called as `gelu`."""
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
    """Compare with the reference: in fp32 the result and both gradients, in bf16 the result."""
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
    """Compare the implementations with the reference, then return the rows of one shape."""
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
            what = harness.case_columns("gelu", mode, "x".join(map(str, shape)), "bf16", name)
            nbytes = STREAM_UNITS[mode] * x.nbytes
            found = harness.measure(call, device, images=shape[0], nbytes=nbytes, copy=copy)
            rows.append(stamp | what | found)
    return rows


if __name__ == "__main__":
    cases = {name: [(shape,) for shape in shapes] for name, shapes in SHAPES.items()}
    harness.run_benchmark(__doc__, cases, bench)
