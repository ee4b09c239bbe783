"""The model's step, forward, loss, backward and AdamW: our kernels against timm, eager and
compiled.

python -m benchmarks.bench_step [--out FOLDER] [--seconds 240]

It is not the trainer's step: no DeepSpeed, no mixing, no average of the weights, no schedule, no
guard against NaN. Those are in `benchmarks.bench_engine`; what lies between the two figures is what
they cost. Images are mixed, on the device and the same in every step, so that no loader and no
teacher is in it: a hard label comes from a table. Ours: bf16 weights with fp32 masters, patches in,
one launch for the loss. timm: fp32 weights under autocast as its users train, the two heads with
deit's soft-target and hard-label losses, and the best of SDPA's backends for it. Both take AdamW's
fused form. What does not fit into memory or the time is named and left out.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import harness
from benchmarks.peers import hard_distillation, soft_target, timm_student
from benchmarks.trainers import CLASSES, decisions, make_batch
from fastdeit.data.batch import Batch
from fastdeit.kernels.backend import use_backend
from fastdeit.kernels.mix_patches import mix_patches
from fastdeit.models.student import build_student
from fastdeit.training.losses import DistillationLoss

GFLOP = {"tiny": 7.51, "small": 27.63, "base": 105.7}
"""Of training one image, 6 a multiply-add, as every implementation here is counted."""
CASES = {
    "cuda": [
        ("small", 256),
        ("small", 1024),
        ("tiny", 1024),
        ("base", 256),
        ("tiny", 256),
        ("base", 1024),
    ],
    "cpu": [("tiny", 2)],
}
"""The most telling first: what comes after the time is over is left out."""
FIRST = 2
"""Of so many cases ours and the strongest peer come before everything else."""
BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
Step = Callable[[], object]


class MasterAdamW:
    """AdamW on fp32 masters of bf16 weights, as ZeRO keeps them, on one device."""

    def __init__(self, model: nn.Module) -> None:
        self.weights: list[torch.Tensor] = list(model.parameters())
        self.masters = [weight.detach().float() for weight in self.weights]
        self.gradients = [torch.empty_like(master) for master in self.masters]
        for master, gradient in zip(self.masters, self.gradients, strict=True):
            master.grad = gradient
        self.adamw = torch.optim.AdamW(
            self.masters, lr=1e-3, weight_decay=0.05, fused=self.weights[0].is_cuda
        )

    @torch.no_grad()
    def step(self) -> None:
        torch._foreach_copy_(
            self.gradients, [weight.grad for weight in self.weights if weight.grad is not None]
        )
        self.adamw.step()
        torch._foreach_copy_(self.weights, self.masters)
        for weight in self.weights:
            weight.grad = None


def ours(name: str, inputs: Batch, compiled: bool, backend: str = "auto") -> Step:
    device = inputs.images.device
    student = (
        build_student(f"deit_{name}_distilled_patch16_224", num_classes=CLASSES)
        .to(device, torch.bfloat16)
        .train()
    )
    optimizer, criterion = MasterAdamW(student), DistillationLoss(kind="hard")
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
    device = inputs.images.device
    student = timm_student(f"deit_{name}_distilled_patch16_224", drop_path_rate=0.1).to(device)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=1e-3, weight_decay=0.05, fused=device.type == "cuda"
    )
    images, target, decision = (
        inputs.images.float(),
        soft_target(inputs.labels, inputs.lam),
        decisions(inputs),
    )
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
    """The backend of SDPA that is fastest forward and backward at this shape on this device."""
    batch, device = inputs.images.shape[0], inputs.images.device
    if device.type != "cuda":
        return SDPBackend.MATH
    q, k, v = (
        torch.randn(3, batch, heads, 198, 64, device=device, dtype=torch.bfloat16)
        .requires_grad_()
        .unbind(0)
    )
    times: dict[SDPBackend, float] = {}
    for backend in BACKENDS:
        with sdpa_kernel(backend), contextlib.suppress(RuntimeError):
            times[backend] = harness.quantiles_ms(
                lambda: F.scaled_dot_product_attention(q, k, v).sum().backward(), device, 50
            )[1]
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
"""Each way to make the step."""


def schedule(device: torch.device) -> Iterator[tuple[str, int, str]]:
    """Name, batch and implementation, in the order of the measurements."""
    # the compiler of the CPU takes minutes, for nothing that a GPU would show
    chosen = [impl for impl in IMPLEMENTATIONS if device.type == "cuda" or "compiled" not in impl]
    leading = [(*case, impl) for case in CASES[device.type][:FIRST] for impl in chosen[:2]]
    yield from leading
    yield from (
        (*case, impl)
        for case in CASES[device.type]
        for impl in chosen
        if (*case, impl) not in leading
    )


def measure(
    build: Callable[[], Step], backend: SDPBackend, batch: int, device: torch.device
) -> harness.Row | None:
    """The measured columns; None if the step does not fit into the memory."""
    try:
        with sdpa_kernel([backend, SDPBackend.MATH] if device.type == "cuda" else [backend]):
            step = build()
            first = float(step())  # type: ignore[arg-type]
            if not 5 < first < 9:  # two heads that know nothing of 1000 classes: about log(1000)
                raise AssertionError(f"the first loss is {first}, which no untrained student has")
            return harness.measure(step, device, images=batch, nbytes=0, copy=1.0)
    except torch.OutOfMemoryError:
        return None
    finally:
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def with_mfu(row: harness.Row, name: str, device: torch.device) -> harness.Row:
    """Instead of bytes, which a step has no least number of: percent of an H100's 989 TFLOP/s in
    `pct_of_copy`'s place."""
    tflops = float(row["images_per_s"]) * GFLOP[name] / 1e3
    row["gbps"], row["pct_of_copy"] = "", ""
    print(
        f"  {tflops:.1f} TFLOP/s"
        + (f", {100 * tflops / 989:.1f} % of 989" if device.type == "cuda" else ""),
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the results")
    parser.add_argument(
        "--seconds", type=float, default=240, help="start nothing new after so long"
    )
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stamp, rows, start = harness.environment(device), [], time.monotonic()
    for name, batch, impl in schedule(device):
        what: harness.Row = {
            "bench": "step",
            "mode": "step",
            "shape": f"{name} {batch}",
            "dtype": "bf16",
            "impl": impl,
        }
        if time.monotonic() - start > arguments.seconds:
            print(f"left out, no time: {name} {batch} {impl}")
            continue
        inputs = make_batch(batch, device)
        backend = best_backend(inputs, {"tiny": 3, "small": 6, "base": 12}[name])
        print(f"{name} {batch} {impl} (SDPA {backend.name})", flush=True)
        measured = measure(partial(IMPLEMENTATIONS[impl], name, inputs), backend, batch, device)
        if measured is None:
            print("  left out: does not fit into the memory")
            continue
        rows.append({**stamp, **what, **with_mfu(measured, name, device)})
        harness.append(rows[-1:], device, arguments.out)
    harness.show(rows)


if __name__ == "__main__":
    main()
