"""Time of `kernels/attention.py` against each backend of torch's scaled_dot_product_attention.

python -m benchmarks.bench_attention [--out FOLDER]

A peer splits the joint projection of q, k and v, computes attention, and joins the heads; its
backward stacks the gradients of q, k and v into one tensor, which the backward of the projection
needs.

"reference" is torch's own choice of a backend; "triton" is ours in the forms of the table of
launches, "triton, pair" and the like are ours in another form of forward or backward. pct_of_copy
counts the least memory traffic: 3 + 1 units of B·N·H·D elements forward and 5 + 3 backward.
torch.compile is measured last, at every shape.
"""

import contextlib
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measuring import harness
from benchmarks.measuring.forms import use_form
from fastdeit.kernels import launch_configs
from fastdeit.kernels.attention import (
    attention,
    attention_reference,
    attention_triton,
    attention_weights_triton,
)
from fastdeit.kernels.attention_kernels.bwd import attention_bwd_triton

SHAPES = {  # (B, N, H)
    "cuda": [(256, 198, 6), (1024, 198, 6), (1024, 198, 3), (256, 198, 12), (64, 578, 6)],
    "cpu": [(4, 198, 3), (2, 198, 6)],
}
D = 64
IN_FORM = {
    "triton, resident": ("attention_fwd", "resident"),
    "triton, pair": ("attention_bwd", "pair"),
    "triton, ahead": ("attention_bwd", "ahead"),
}
"""The rows of our kernels in another form than that of the table."""
KERNELS = tuple(
    f"_attention_{part}_kernel" for part in ("fwd", "resident", "bwd_whole", "bwd_dq", "bwd_dkdv")
)
UNITS = {"fwd": 4, "bwd": 8, "fwd_bwd": 12}
"""The least memory traffic of each mode, in units of B·N·H·D elements."""
PEERS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}

Pair = tuple[torch.Tensor, torch.Tensor]
Attend = Callable[[torch.Tensor], torch.Tensor]


def _launch(tokens: int, size: int, dtype: torch.dtype) -> harness.Launch:
    """Return a launch of forward and backward on one image."""

    def run() -> None:
        qkv = torch.zeros(1, tokens, 3, 6, size, dtype=dtype)
        out, lse = attention_triton(qkv)
        attention_bwd_triton(qkv, out, lse, out)

    name = f"attention N{tokens} D{size} {str(dtype).removeprefix('torch.')}"
    return harness.Launch(name, run, wgmma=() if dtype == torch.float32 else KERNELS)


def _variant(op: str, form: str, launch: launch_configs.Launch | None = None) -> harness.Launch:
    """Return a launch of an op at DeiT-S's shape in another form, or with other numbers of its
    launch."""

    def run() -> None:
        qkv = torch.zeros(1, 198, 3, 6, D, dtype=torch.bfloat16)
        with use_form(op, form, launch):
            if op == "attention_fwd":
                attention_triton(qkv)
            else:
                out = torch.zeros(1, 198, 6 * D, dtype=torch.bfloat16)
                attention_bwd_triton(qkv, out, torch.zeros(1, 6, 198), out)

    spelled = "".join(f" {key}={value}" for key, value in (launch or {}).items())
    name = f"attention N198 D64 {op} {form}{spelled}"
    # a program of an older architecture has no room for the images of the form "ahead"
    return harness.Launch(name, run, wgmma=KERNELS, oldest=90 if form == "ahead" else 80)


def _launch_weights(size: int, dtype: torch.dtype) -> harness.Launch:
    def run() -> None:
        qkv = torch.zeros(1, 198, 3, 6, size, dtype=dtype)
        attention_weights_triton(qkv, torch.zeros(1, 6, 198), [2])

    name = f"attention weights D{size} {str(dtype).removeprefix('torch.')}"
    wgmma = () if dtype == torch.float32 else ("_attention_weights_kernel",)
    return harness.Launch(name, run, wgmma=wgmma)


# launches that tune.py reaches from those of the table
SMALL = {"BLOCK_M": 64, "num_warps": 4}
VARIANTS = [
    _variant("attention_fwd", "blocks", SMALL),
    _variant("attention_fwd", "resident"),
    _variant("attention_fwd", "resident", SMALL),
    _variant("attention_bwd", "ahead"),
    _variant("attention_bwd", "pair"),
]
# tokens: 198 and 578 are DeiT's (197 and 577 use the same branches); the others use other rows of
# the table, or the branches of a block loop without a narrow last block: 150 and 300 masked, 256
# whole
LAUNCHES = [
    *(_launch(tokens, 64, torch.bfloat16) for tokens in (50, 120, 150, 198, 256, 300, 578)),
    *(_launch(tokens, 32, torch.bfloat16) for tokens in (50, 120, 198, 578)),
    *(_launch(tokens, 128, torch.bfloat16) for tokens in (50, 120, 198, 578)),
    _launch(198, 96, torch.bfloat16),
    *(_launch(tokens, 128, torch.float32) for tokens in (16, 32, 198)),
    _launch(198, 64, torch.float32),
    _launch_weights(64, torch.bfloat16),
    _launch_weights(128, torch.float32),
    *VARIANTS,
]


def with_backend(backend: SDPBackend) -> Attend:
    def attend(qkv: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return attention_reference(qkv)

    return attend


def implementations(device: torch.device) -> dict[str, Attend]:
    """Return the implementations, functions from the joint projection to the joined heads."""
    runs: dict[str, Attend] = {"reference": attention_reference}
    runs |= {name: with_backend(backend) for name, backend in PEERS.items()}
    if device.type == "cuda":
        runs |= dict.fromkeys(("triton", *IN_FORM), attention)
    return runs


def in_form(name: str) -> contextlib.AbstractContextManager[None]:
    """Return the context in which the implementation of this name runs."""
    return use_form(*IN_FORM[name]) if name in IN_FORM else contextlib.nullcontext()


def both(attend: Attend, qkv: torch.Tensor, grad: torch.Tensor) -> Pair:
    """Return the output and the gradient of qkv."""
    out = attend(qkv)
    return out, torch.autograd.grad(out, qkv, grad)[0]


def check(
    name: str, attend: Attend, qkv: torch.Tensor, grad: torch.Tensor, exact: Pair, reference: Pair
) -> bool:
    """Assert that the error against fp32 is at most twice the reference's.

    Returns False if the implementation cannot run here.
    """
    try:
        found = both(attend, qkv, grad)
    except (RuntimeError, ValueError) as error:
        print(f"{name} cannot run at {tuple(qkv.shape)}: {str(error).splitlines()[0]}")
        return False
    for ours, theirs, wanted in zip(found, reference, exact, strict=True):
        distance = (ours.float() - wanted).norm()
        allowed = 2 * (theirs.float() - wanted).norm()
        message = f"{name}: distance from fp32 must be at most {allowed:.3g} (got {distance:.3g})"
        assert distance <= allowed, message
    return True


def modes(attend: Attend, qkv: torch.Tensor, grad: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return the calls to time; the backward alone runs repeatedly over one graph."""
    out = attend(qkv)
    return {
        "fwd": lambda: attend(qkv),
        "bwd": lambda: torch.autograd.grad(out, qkv, grad, retain_graph=True),
        "fwd_bwd": lambda: both(attend, qkv, grad),
    }


def bench(
    shape: tuple[int, int, int],
    compiled: bool,
    device: torch.device,
    stamp: harness.Row,
    copy: float,
) -> list[harness.Row]:
    """Check every implementation at one shape, then return its rows.

    compiled: torch.compile alone; else all other implementations.
    """
    batch, tokens, heads = shape
    qkv = torch.randn(batch, tokens, 3, heads, D, dtype=torch.bfloat16, device=device)
    qkv.requires_grad_()
    grad = torch.randn(batch, tokens, heads * D, dtype=torch.bfloat16, device=device)
    exact = both(attention_reference, qkv.detach().float().requires_grad_(), grad.float())
    reference = both(attention_reference, qkv, grad)
    if compiled:
        runs: dict[str, Attend] = {
            "torch.compile": torch.compile(attention_reference, dynamic=False)
        }
    else:
        runs = implementations(device)
    rows = []
    for name, attend in runs.items():
        with in_form(name):
            if not check(name, attend, qkv, grad, exact, reference):
                continue
            for mode, run in modes(attend, qkv, grad).items():
                what = harness.case_columns(
                    "attention", mode, f"{batch}x{tokens}x{heads}x{D}", "bf16", name
                )
                nbytes = UNITS[mode] * grad.nbytes
                found = harness.measure(run, device, images=batch, nbytes=nbytes, copy=copy)
                rows.append(stamp | what | found)
    return rows


if __name__ == "__main__":
    cases = {
        name: [(shape, compiled) for compiled in (False, True) for shape in shapes]
        for name, shapes in SHAPES.items()
    }
    harness.run_benchmark(__doc__, cases, bench)
