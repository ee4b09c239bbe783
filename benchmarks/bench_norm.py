"""Time of `kernels/norm.py` against the sum and F.layer_norm, eager and compiled.

python -m benchmarks.bench_norm [--out FOLDER]

add_norm with DropPath's factors and the bias of the branch, as between two blocks. "reference" and
"torch.compile" have the residual stream in bf16, as ours. "fp32 stream" is a model under
autocast: x and its incoming gradient are fp32, the branch is bf16, and the output of the norm is
cast to bf16 for the matrix product that follows; the layer before adds the bias of the branch, and
its gradient, another pass, is not counted. Mode bwd is the backward alone. pct_of_copy counts the
least memory traffic of the bf16 stream in every row: forward 4, backward 5 times the bytes of x.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.measuring import harness
from fastdeit.kernels.norm import add_norm, add_norm_reference, norm_reference

# (B, N, D) of DeiT-Ti, S and B
SHAPES = {
    "cuda": [(batch, 198, dim) for dim in (384, 192, 768) for batch in (256, 1024)],
    "cpu": [(4, 198, 192)],
}
EPS = 1e-6
STREAM_UNITS = {"fwd": 4, "bwd": 5}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

Inputs = tuple[torch.Tensor, ...]
AddNorm = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    """Return the arguments of `run_with`: x, branch, scale, weight, bias, branch_bias."""
    x, branch = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(2))
    rows = torch.randn(3, shape[-1], device=device).to(dtype)
    scale = (torch.rand(shape[0], device=device) > 0.1) / 0.9
    return x, branch, scale, *(row.clone().requires_grad_() for row in rows)


def run_with(run: AddNorm, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Call an implementation of `add_norm` without LayerScale."""
    x, branch, scale, weight, bias, branch_bias = inputs
    return run(x, branch, scale, weight, bias, EPS, None, branch_bias)


def _launch(
    name: str,
    *,
    branch: bool = True,
    scale: bool = True,
    gamma: bool = False,
    branch_bias: bool = True,
    dy: bool = True,
    dx_new: bool = True,
) -> harness.Launch:
    """Return a launch of forward and backward; name: dtype of x, D, dtype of the weights."""
    dtype, width, weight_dtype = name.split()
    dim = int(width)

    def run() -> None:
        x = torch.zeros(2, 198, dim, dtype=DTYPES[dtype])
        row = torch.zeros(dim, dtype=DTYPES[weight_dtype])
        mean = torch.zeros(2, 198)
        factors = (torch.zeros(2) if scale else None, row if gamma else None)
        added = row if branch_bias else None
        torch.ops.fastdeit.add_norm(x, x if branch else None, *factors, row, row, EPS, added)
        gradients = (x if dy else None, x if dx_new else None)
        torch.ops.fastdeit.add_norm_bwd(
            *gradients, x, row, mean, mean, *factors, x if gamma else None, added
        )

    flags = {
        "no branch": not branch,
        "no scale": not scale,
        "gamma": gamma,
        "no branch_bias": not branch_bias,
        "no dy": not dy,
        "no dx_new": not dx_new,
    }
    spelled = ", ".join([name, *(flag for flag, is_set in flags.items() if is_set)])
    return harness.Launch(spelled, run, streams=("_norm_fwd_kernel", "_norm_bwd_kernel"))


LAUNCHES = [
    *map(
        _launch,
        (
            "bf16 192 bf16",
            "bf16 384 bf16",
            "bf16 768 bf16",
            "bf16 4096 bf16",
            "bf16 384 fp32",
            "fp16 384 fp16",
        ),
    ),
    *map(_launch, ("fp32 192 fp32", "fp32 384 fp32", "fp32 768 fp32", "fp32 4096 fp32")),
    *(_launch(f"bf16 {dim} bf16", gamma=True) for dim in (192, 384, 768, 4096)),
    *(_launch(f"fp32 {dim} fp32", gamma=True) for dim in (192, 384, 768, 4096)),
    _launch("bf16 384 bf16", scale=False),
    _launch("bf16 384 bf16", dx_new=False),
    _launch("bf16 384 bf16", dy=False),
    _launch("bf16 384 bf16", branch_bias=False),
    _launch("bf16 384 bf16", branch=False, scale=False, branch_bias=False, dx_new=False),
]


def autocast(
    x: torch.Tensor,
    branch: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    gamma: None,
    branch_bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute add_norm on an fp32 stream, with the output of the norm in the branch's dtype."""
    x_new = x + branch * scale[:, None, None].to(branch.dtype)
    return x_new, F.layer_norm(x_new, x.shape[-1:], weight, bias, eps).to(branch.dtype)


def implementations(device: torch.device) -> dict[str, AddNorm]:
    """Return the implementations that must equal the reference, called as `add_norm`."""
    torch.compiler.reset()
    runs: dict[str, AddNorm] = {
        "reference": add_norm_reference,
        "torch.compile": torch.compile(add_norm_reference, dynamic=False),
    }
    if device.type == "cuda":
        runs["triton"] = add_norm
    return runs


def peers() -> dict[str, AddNorm]:
    return {
        "fp32 stream": autocast,
        "fp32 stream, torch.compile": torch.compile(autocast, dynamic=False),
    }


def gate(run: AddNorm, name: str, dim: int, device: torch.device) -> None:
    """Compare with the reference: in fp32 results and gradients; in bf16 the sum, and the norm of
    the sum as it was stored."""
    inputs = make_inputs((2, 198, dim), torch.float32, device)
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    cotangents = list(torch.randn(2, *inputs[0].shape, device=device))
    expected = run_with(add_norm_reference, inputs)
    outs = run_with(run, inputs)
    gradients = (torch.autograd.grad(results, leaves, cotangents) for results in (outs, expected))
    for actual, right in zip((*outs, *next(gradients)), (*expected, *next(gradients)), strict=True):
        # a sum over rows has the rounding of its terms, whatever they cancel to
        size = 1 if right.ndim == 3 else (2 * 198) ** 0.5
        harness.gate(actual / size, right / size, name)
    if name == "torch.compile":
        return  # it normalises the sum before that is rounded, which is not an error
    inputs = make_inputs((2, 198, dim), torch.bfloat16, device)
    x_new, y = run_with(run, inputs)
    harness.gate(x_new, run_with(add_norm_reference, inputs)[0], name)
    harness.gate(y, norm_reference(x_new, inputs[3], inputs[4], EPS), name)


def bench(
    shape: tuple[int, ...], device: torch.device, stamp: harness.Row, copy: float
) -> list[harness.Row]:
    """Compare the implementations with the reference, then return the rows of one shape."""
    equals = implementations(device)
    for name, run in equals.items():
        gate(run, name, shape[-1], device)
    narrow = make_inputs(shape, torch.bfloat16, device)
    x, *parameters = (narrow[place].detach().float().requires_grad_() for place in (0, 3, 4, 5))
    wide = (x, *narrow[1:3], *parameters)
    rows = []
    for name, run in {**equals, **peers()}.items():
        inputs = narrow if name in equals else wide
        leaves = [tensor for tensor in inputs if tensor.requires_grad]
        if name not in equals:
            leaves.pop()  # the bias of the branch
        outs = run_with(run, inputs)
        cotangents = [torch.randn_like(out) for out in outs]
        backward = partial(torch.autograd.grad, outs, leaves, cotangents, retain_graph=True)
        forward = partial(run_with, run, inputs)
        calls: dict[str, Callable[[], object]] = {"fwd": forward, "bwd": backward}
        for mode, call in calls.items():
            what = harness.case_columns("norm", mode, "x".join(map(str, shape)), "bf16", name)
            nbytes = STREAM_UNITS[mode] * narrow[0].nbytes
            found = harness.measure(call, device, images=shape[0], nbytes=nbytes, copy=copy)
            rows.append(stamp | what | found)
    return rows


if __name__ == "__main__":
    cases = {name: [(shape,) for shape in shapes] for name, shapes in SHAPES.items()}
    harness.run_benchmark(__doc__, cases, bench)
