"""Time of the model's step (forward, loss, backward, AdamW) with our kernels, against timm, eager
and compiled.

python -m benchmarks.bench_step [--out FOLDER] [--seconds 240]

It is not the trainer's step: it has no DeepSpeed, no mixing, no EMA, no schedule, no guard against
NaN. `benchmarks.bench_engine` has these; the difference of the two figures is their cost.
Images are mixed already, on the device and the same in every step, and hard labels come from a
table, so neither a loader nor a teacher takes part. Ours: bf16 weights with fp32 masters, patches
as input, one launch for the loss. timm: fp32 weights under autocast, as its users train, the two
heads with deit's soft-target and hard-label losses, and the fastest of SDPA's backends. Both use
fused AdamW. A case that does not fit into memory or into the time limit is reported and skipped.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measuring import harness
from benchmarks.measuring.peers import hard_distillation, soft_target, timm_student
from benchmarks.measuring.trainers import CLASSES, decisions, make_batch
from fastdeit.data.loaders.batch import Batch
from fastdeit.kernels.backend import use_backend
from fastdeit.kernels.mix_patches import mix_patches
from fastdeit.models.student import build_student
from fastdeit.training.losses import DistillationLoss

GFLOP = {"tiny": 7.51, "small": 27.63, "base": 105.7}
"""The GFLOP of training on one image, 6 for a multiply-add, for every implementation here."""
CASES = {
    "cuda": [
        ("small", 256),
        ("small", 1024),
        ("small", 128),
        ("tiny", 1024),
        ("base", 256),
        ("tiny", 256),
        ("tiny", 128),
        ("base", 128),
        ("base", 1024),
    ],
    "cpu": [("tiny", 2)],
}
"""The cases of each device, the most important first: those that would start after the time limit
are skipped."""
FIRST = 3
"""The number of cases in which ours and the strongest peer are measured before everything else."""
BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
Step = Callable[[], object]


class MasterAdamW:
    """AdamW on fp32 masters of bf16 weights, as in ZeRO, on one device."""

    def __init__(self, model: nn.Module) -> None:
        self.weights: list[torch.Tensor] = list(model.parameters())
        self.masters = [weight.detach().float() for weight in self.weights]
        self.gradients = [torch.empty_like(master) for master in self.masters]
        for master, gradient in zip(self.masters, self.gradients, strict=True):
            master.grad = gradient
        fused = self.weights[0].is_cuda
        self.adamw = torch.optim.AdamW(self.masters, lr=1e-3, weight_decay=0.05, fused=fused)

    @torch.no_grad()
    def step(self) -> None:
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        torch._foreach_copy_(self.gradients, gradients)
        self.adamw.step()
        torch._foreach_copy_(self.weights, self.masters)
        for weight in self.weights:
            weight.grad = None


def ours(name: str, inputs: Batch, compiled: bool, backend: str = "auto") -> Step:
    """Build a step of our student; backend: of the kernels."""
    student = build_student(f"deit_{name}_distilled_patch16_224", num_classes=CLASSES)
    student = student.to(inputs.images.device, torch.bfloat16).train()
    optimizer = MasterAdamW(student)
    criterion = DistillationLoss(kind="hard")
    patches, _ = mix_patches(inputs.images, inputs.lam, inputs.box, 16, torch.bfloat16)
    decision = decisions(inputs)
    model = torch.compile(student) if compiled else student

    def step() -> torch.Tensor:
        with use_backend(backend):
            logits = model(patches, inputs.drop_path_mask)
            loss = criterion(logits, inputs.labels, inputs.lam, decision).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def timms(name: str, inputs: Batch, compiled: bool) -> Step:
    """Build a step of timm's student."""
    device = inputs.images.device
    student = timm_student(f"deit_{name}_distilled_patch16_224", drop_path_rate=0.1).to(device)
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.05, fused=fused)
    images = inputs.images.float()
    target = soft_target(inputs.labels, inputs.lam)
    decision = decisions(inputs)
    model = torch.compile(student) if compiled else student

    def step() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = hard_distillation(model(images), target, decision)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def best_backend(inputs: Batch, heads: int) -> SDPBackend:
    """Return the fastest backend of SDPA, forward and backward, at this shape on this device."""
    device = inputs.images.device
    if device.type != "cuda":
        return SDPBackend.MATH
    shape = (3, inputs.images.shape[0], heads, 198, 64)
    qkv = torch.randn(shape, device=device, dtype=torch.bfloat16).requires_grad_()
    q, k, v = qkv.unbind(0)

    def run() -> None:
        F.scaled_dot_product_attention(q, k, v).sum().backward()

    times: dict[SDPBackend, float] = {}
    for backend in BACKENDS:
        with sdpa_kernel(backend), contextlib.suppress(RuntimeError):
            _, times[backend], _ = harness.quantiles_ms(run, device, 50)
    return min(times, key=lambda backend: times[backend])


IMPLEMENTATIONS: dict[str, Callable[[str, Batch], Step]] = {
    "ours": lambda name, inputs: ours(name, inputs, compiled=False),
    "timm compiled": lambda name, inputs: timms(name, inputs, compiled=True),
    "ours compiled": lambda name, inputs: ours(name, inputs, compiled=True),
    "timm": lambda name, inputs: timms(name, inputs, compiled=False),
    "ours, reference kernels": lambda name, inputs: ours(
        name, inputs, compiled=False, backend="reference"
    ),
}
"""The builders of a step, by the name in the column `impl`."""


def schedule(device: torch.device) -> Iterator[tuple[str, int, str]]:
    """Yield name, batch and implementation in the order of the measurements."""
    cases = CASES[device.type]
    impls = list(IMPLEMENTATIONS)
    if device.type != "cuda":
        # compiling for the CPU takes minutes and shows nothing about a GPU
        impls = [impl for impl in impls if "compiled" not in impl]
    leading = [(*case, impl) for case in cases[:FIRST] for impl in impls[:2]]
    yield from leading
    for case in cases:
        for impl in impls:
            if (*case, impl) not in leading:
                yield *case, impl


def measure(
    build: Callable[[], Step], backend: SDPBackend, batch: int, device: torch.device
) -> harness.Row | None:
    """Return the measured columns; None if the step does not fit into memory."""
    try:
        with sdpa_kernel([backend, SDPBackend.MATH] if device.type == "cuda" else [backend]):
            step = build()
            first = float(step())  # type: ignore[arg-type]
            if not 5 < first < 9:  # an untrained student has about log(1000)
                raise AssertionError(f"the first loss is {first}, not that of an untrained student")
            return harness.measure(step, device, images=batch, nbytes=0, copy=1.0)
    except torch.OutOfMemoryError:
        return None
    finally:
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def with_mfu(row: harness.Row, name: str, device: torch.device) -> harness.Row:
    """Print TFLOP/s, on a GPU also in percent of an H100's 989; return the row with the columns of
    bandwidth empty.

    A step has no least number of bytes.
    """
    tflops = float(row["images_per_s"]) * GFLOP[name] / 1e3
    share = f", {100 * tflops / 989:.1f} % of 989" if device.type == "cuda" else ""
    print(f"  {tflops:.1f} TFLOP/s{share}", flush=True)
    return row | {"gbps": "", "pct_of_copy": ""}


def main() -> None:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    parser.add_argument("--seconds", type=float, default=240, help="start no case after this time")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.monotonic()
    stamp = harness.environment(device)
    rows = []
    for name, batch, impl in schedule(device):
        if time.monotonic() - start > args.seconds:
            print(f"skipped, no time: {name} {batch} {impl}")
            continue
        inputs = make_batch(batch, device)
        backend = best_backend(inputs, {"tiny": 3, "small": 6, "base": 12}[name])
        print(f"{name} {batch} {impl} (SDPA {backend.name})", flush=True)
        measured = measure(partial(IMPLEMENTATIONS[impl], name, inputs), backend, batch, device)
        if measured is None:
            print("  skipped: does not fit into memory")
            continue
        what = harness.case_columns("step", "step", f"{name} {batch}", "bf16", impl)
        rows.append(stamp | what | with_mfu(measured, name, device))
        harness.append(rows[-1:], device, args.out)
    harness.show(rows)


if __name__ == "__main__":
    main()
