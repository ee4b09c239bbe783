"""Time of `kernels/distill.py` against deit's chain of losses, F.cross_entropy and torch.compile.

python -m benchmarks.bench_distill [--out FOLDER]

Loss and gradients of both heads from bf16 logits; kind "hard" with the teacher's class ids, as from
a teacher cache, and "soft" with its logits. The peers build the dense (B, K) target, as timm's
Mixup does, and cast logits to fp32, as autocast does. Mode fwd_bwd is one call as in a training
step, where small kernels wait for Python; fwd_bwd_graph replays the same call from a CUDA graph,
and so measures the device alone. pct_of_copy counts logits read and gradients written once.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy

from benchmarks.measuring import harness
from fastdeit.kernels.distill import LossParts, distill, distill_reference, swap_pairs
from fastdeit.kernels.distill_kernels.fused import distill_bwd_triton, distill_triton

SHAPES = {"cuda": [(256, 1000), (1024, 1000), (256, 21841)], "cpu": [(16, 100)]}
SETTING = {"smoothing": 0.1, "alpha": 0.5, "tau": 3.0, "legacy": True}
"""The settings of all implementations; legacy: the soft loss is divided as in deit's code."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a loss: logits (B, K) of both heads, int64 labels and fp32 lam (B,), and the
    teacher's classes or logits, by the kind."""

    cls_logits: torch.Tensor
    dist_logits: torch.Tensor
    labels: torch.Tensor
    lam: torch.Tensor
    teacher: torch.Tensor
    kind: str

    @property
    def heads(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cls_logits, self.dist_logits


def make_inputs(
    shape: tuple[int, int], kind: str, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Inputs:
    batch, classes = shape
    cls_logits, dist_logits, teacher = (3 * torch.randn(shape, device=device) for _ in range(3))
    return Inputs(
        cls_logits.to(dtype).requires_grad_(),
        dist_logits.to(dtype).requires_grad_(),
        torch.randint(classes, (batch,), device=device),
        torch.rand(batch // 2, device=device).repeat_interleave(2),
        teacher.to(dtype) if kind == "soft" else teacher.argmax(-1),
        kind,
    )


def _launch(name: str, heads: int = 2, with_grads: bool = True) -> harness.Launch:
    """Return a launch; name: kind, output of the teacher, dtype, classes."""
    kind, teacher, dtype_name, classes = name.split()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype_name]

    def run() -> object:
        inputs_kind = "soft" if teacher == "logits" else "hard"
        inputs = make_inputs((2, int(classes)), inputs_kind, torch.device("cpu"), dtype)
        cls_logits, dist_logits = (head.detach() for head in inputs.heads)
        *_, grads = distill_triton(
            cls_logits,
            dist_logits if heads == 2 else None,
            inputs.labels,
            inputs.lam,
            None if teacher == "-" else inputs.teacher,
            None,
            smoothing=0.1,
            kind=kind,
            alpha=0.5,
            tau=3.0,
            legacy=False,
            with_grads=with_grads,
        )
        return distill_bwd_triton(grads, torch.ones(()), dtype)

    streams = ("_distill_bwd_kernel",) if int(classes) % 8 == 0 and with_grads else ()
    label = f"{name} {heads} heads"
    return harness.Launch(label if with_grads else f"{label}, no gradients", run, streams=streams)


LAUNCHES = [
    *(_launch(f"hard ids bf16 {classes}") for classes in (10, 1000, 2000, 21841)),
    _launch("hard ids fp16 1000"),
    *(_launch(f"hard ids fp32 {classes}") for classes in (10, 1000, 2000)),
    *(_launch(f"hard logits bf16 {classes}") for classes in (1000, 21841)),
    *(_launch(f"soft logits bf16 {classes}") for classes in (1000, 21841)),
    *(_launch(f"soft logits fp32 {classes}") for classes in (1000, 21841)),
    _launch("none - bf16 1000", heads=1),
    _launch("none - bf16 1000"),
    _launch("hard ids bf16 1000", with_grads=False),
]


def dense_target(inputs: Inputs) -> torch.Tensor:
    """Return timm's mixup_target with our pairs and lam, fp32 (B, K)."""
    batch, classes = inputs.cls_logits.shape
    off = SETTING["smoothing"] / classes
    on = 1 - SETTING["smoothing"] + off
    lam = inputs.lam[:, None]

    def one_hot(labels: torch.Tensor) -> torch.Tensor:
        smooth = torch.full((batch, classes), off, device=labels.device)
        return smooth.scatter_(1, labels[:, None], on)

    return one_hot(inputs.labels) * lam + one_hot(swap_pairs(inputs.labels)) * (1 - lam)


def chain(
    inputs: Inputs, base: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return deit's DistillationLoss with the given base loss, a 0-d tensor."""
    student = inputs.dist_logits.float()
    teacher = inputs.teacher
    if inputs.kind == "hard":
        distilled = F.cross_entropy(student, teacher)
    else:
        tau = SETTING["tau"]
        logp = F.log_softmax(student / tau, dim=1)
        teacher_logp = F.log_softmax(teacher.float() / tau, dim=1)
        divergence = F.kl_div(logp, teacher_logp, reduction="sum", log_target=True)
        distilled = divergence * tau**2 / student.numel()
    alpha = SETTING["alpha"]
    base_loss = base(inputs.cls_logits.float(), dense_target(inputs))
    return (1 - alpha) * base_loss + alpha * distilled


def implementations(inputs: Inputs) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the implementations as calls without arguments; the reference is first."""
    arguments = (*inputs.heads, inputs.labels, inputs.lam, inputs.teacher)
    setting: dict[str, Any] = {**SETTING, "kind": inputs.kind}
    compiled: Callable[..., LossParts] = torch.compile(distill_reference, dynamic=False)
    soft_target = SoftTargetCrossEntropy()
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "reference": lambda: distill_reference(*arguments, **setting).loss,
        "torch.compile": lambda: compiled(*arguments, **setting).loss,
        "deit": lambda: chain(inputs, soft_target),
        "F.cross_entropy": lambda: chain(inputs, F.cross_entropy),
    }
    if inputs.labels.is_cuda:
        runs["triton"] = lambda: distill(*arguments, **setting).loss  # type: ignore[arg-type]
    return runs


def gradients(loss: Callable[[], torch.Tensor], inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Run forward and backward; return the gradients of both heads."""
    return torch.autograd.grad(loss(), inputs.heads)


def replayed(run: Callable[[], object]) -> Callable[[], object]:
    """Return the same call, replayed from a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def launches(run: Callable[[], object]) -> int:
    """Return the number of kernels and fills that one call starts on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def bench(
    kind: str, shape: tuple[int, int], device: torch.device, stamp: harness.Row, copy: float
) -> list[harness.Row]:
    """Compare loss and gradients with the reference, then return the rows of one kind and shape."""
    inputs = make_inputs(shape, kind, device)
    losses = implementations(inputs)
    expected = [losses["reference"](), *gradients(losses["reference"], inputs)]
    nbytes = sum(head.nbytes for head in inputs.heads) * 2 + inputs.teacher.nbytes
    rows: list[harness.Row] = []
    for name, loss in losses.items():
        for actual, wanted in zip((loss(), *gradients(loss, inputs)), expected, strict=True):
            harness.gate(actual, wanted, name)

        step = functools.partial(gradients, loss, inputs)
        modes: dict[str, Callable[[], object]] = {"fwd_bwd": step}
        if device.type == "cuda":
            modes["fwd_bwd_graph"] = replayed(step)
            counts = f"{launches(loss)} launches forward, {launches(step)} with the backward"
            print(f"{kind} {shape} {name}: {counts}")
        for mode, run in modes.items():
            shape_text = "x".join(map(str, shape))
            what = harness.case_columns(f"distill_{kind}", mode, shape_text, "bf16", name)
            found = harness.measure(run, device, images=shape[0], nbytes=nbytes, copy=copy)
            rows.append(stamp | what | found)
    return rows


if __name__ == "__main__":
    cases = {
        name: [(kind, shape) for kind in ("hard", "soft") for shape in shapes]
        for name, shapes in SHAPES.items()
    }
    harness.run_benchmark(__doc__, cases, bench)
