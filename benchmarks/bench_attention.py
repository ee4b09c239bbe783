"""`kernels/attention.py` against each backend of torch's scaled dot product, in the form in which
its users call it.

python -m benchmarks.bench_attention [--out FOLDER]

A peer takes the packed projection apart, attends, and puts heads together again; its backward
stacks the gradients of q, k and v into the packed one, as the projection's own backward needs it.
"reference" is torch's own choice of a backend; "triton, pair" is ours with the backward's other
form, the one that longer images take. Floor: what has to pass through memory once, 3 + 1 units of
B·N·H·D elements forward and 5 + 3 backward. What torch has to compile comes last, at every shape.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import harness
from fastdeit.kernels import launch_configs
from fastdeit.kernels.attention import (
    attention,
    attention_reference,
    attention_triton,
    attention_weights_triton,
)
from fastdeit.kernels.attention_bwd import attention_bwd_triton

SHAPES = {  # (B, N, H)
    "cuda": [(256, 198, 6), (1024, 198, 6), (1024, 198, 3), (256, 198, 12), (64, 578, 6)],
    "cpu": [(4, 198, 3), (2, 198, 6)],
}
D = 64
PAIR = "triton, pair"
UNITS = {"fwd": 4, "bwd": 8, "fwd_bwd": 12}
PEERS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}

Pair = tuple[torch.Tensor, torch.Tensor]
Attend = Callable[[torch.Tensor], torch.Tensor]


def _launch(tokens: int, size: int, dtype: torch.dtype) -> harness.Launch:
    """Forward and backward of one image."""

    def run() -> None:
        qkv = torch.zeros(1, tokens, 3, 6, size, dtype=dtype)
        out, lse = attention_triton(qkv)
        attention_bwd_triton(qkv, out, lse, out)

    kernels = (
        "_attention_fwd_kernel",
        *(f"_attention_bwd_{form}_kernel" for form in ("whole", "dq", "dkdv")),
    )
    name = f"attention N{tokens} D{size} {str(dtype).removeprefix('torch.')}"
    return harness.Launch(name, run, wgmma=() if dtype == torch.float32 else kernels)


def _launch_weights(size: int, dtype: torch.dtype) -> harness.Launch:
    def run() -> None:
        qkv, lse = torch.zeros(1, 198, 3, 6, size, dtype=dtype), torch.zeros(1, 6, 198)
        attention_weights_triton(qkv, lse, [2])

    name = f"attention weights D{size} {str(dtype).removeprefix('torch.')}"
    return harness.Launch(
        name, run, wgmma=() if dtype == torch.float32 else ("_attention_weights_kernel",)
    )


# tokens: 198 and 578 are DeiT's (197 and 577 take the same branches); the others take other rows of
# the table, or the branches of a block loop without a narrow last block: 150 and 300 masked, 256
# whole
LAUNCHES = [
    *(_launch(tokens, 64, torch.bfloat16) for tokens in (50, 120, 150, 198, 256, 300, 578)),
    *(
        _launch(tokens, size, torch.bfloat16)
        for size in (32, 128)
        for tokens in (50, 120, 198, 578)
    ),
    _launch(198, 96, torch.bfloat16),
    *(_launch(tokens, 128, torch.float32) for tokens in (16, 32, 198)),
    _launch(198, 64, torch.float32),
    *(_launch_weights(size, dtype) for size, dtype in ((64, torch.bfloat16), (128, torch.float32))),
]


def with_backend(backend: SDPBackend) -> Attend:
    def attend(qkv: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return attention_reference(qkv)

    return attend


def implementations(device: torch.device) -> dict[str, Attend]:
    """Each way to attend, packed projection in, heads side by side out."""
    runs: dict[str, Attend] = {"reference": attention_reference}
    runs |= {name: with_backend(backend) for name, backend in PEERS.items()}
    if device.type == "cuda":
        runs |= {"triton": attention, PAIR: attention}
    return runs


@contextlib.contextmanager
def backward_as_pair() -> Iterator[None]:
    """Inside, no row of the table holds a whole image of more than 64 tokens, and the backward
    takes the pair of kernels."""
    kept = list(launch_configs.rows())
    launch_configs.rows()[:] = [
        row for row in kept if row["op"] != "attention_bwd_whole" or row["launch"]["BLOCK_M"] <= 64
    ]
    launch_configs._find_launch.cache_clear()
    try:
        yield
    finally:
        launch_configs.rows()[:] = kept
        launch_configs._find_launch.cache_clear()


def both(attend: Attend, qkv: torch.Tensor, grad: torch.Tensor) -> Pair:
    """The output and the gradient of qkv."""
    out = attend(qkv)
    return out, torch.autograd.grad(out, qkv, grad)[0]


def check(
    name: str, attend: Attend, qkv: torch.Tensor, grad: torch.Tensor, exact: Pair, reference: Pair
) -> bool:
    """Hold output and gradient against fp32, the error at most twice the reference's; False: it
    cannot run here."""
    try:
        found = both(attend, qkv, grad)
    except RuntimeError as refusal:
        print(f"{name} is left out of {tuple(qkv.shape)}: {str(refusal).splitlines()[0]}")
        return False
    for ours, theirs, wanted in zip(found, reference, exact, strict=True):
        error, allowed = ((x.float() - wanted).norm() for x in (ours, theirs))
        assert error <= 2 * allowed, (
            f"{name} is not the reference: {error:.3g} off fp32, the reference {allowed:.3g}"
        )
    return True


def modes(attend: Attend, qkv: torch.Tensor, grad: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The calls to be timed; the backward alone goes again and again over one graph."""
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
    """The rows of one shape, of what torch compiles or of the others, every implementation checked
    first."""
    batch, tokens, heads = shape
    qkv = torch.randn(
        batch, tokens, 3, heads, D, dtype=torch.bfloat16, device=device, requires_grad=True
    )
    grad = torch.randn(batch, tokens, heads * D, dtype=torch.bfloat16, device=device)
    what: harness.Row = {
        "bench": "attention",
        "shape": f"{batch}x{tokens}x{heads}x{D}",
        "dtype": "bf16",
    }
    exact = both(attention_reference, qkv.detach().float().requires_grad_(), grad.float())
    reference = both(attention_reference, qkv, grad)
    rows = []
    runs = (
        {"torch.compile": torch.compile(attention_reference, dynamic=False)}
        if compiled
        else implementations(device)
    )
    for name, attend in runs.items():
        with backward_as_pair() if name == PAIR else contextlib.nullcontext():
            if not check(name, attend, qkv, grad, exact, reference):
                continue
            for mode, run in modes(attend, qkv, grad).items():
                found = harness.measure(
                    run, device, images=batch, nbytes=UNITS[mode] * grad.nbytes, copy=copy
                )
                rows.append({**stamp, **what, "mode": mode, "impl": name, **found})
    return rows


if __name__ == "__main__":
    cases = {
        name: [(shape, compiled) for compiled in (False, True) for shape in shapes]
        for name, shapes in SHAPES.items()
    }
    harness.run_benchmark(__doc__, cases, bench)
