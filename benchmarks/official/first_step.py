"""The first step of both trainers, from the same weights, batch and teacher: loss and gradients."""

import subprocess
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F

from benchmarks.bench_mix import make_inputs
from benchmarks.official.commands import ROOT, SIZE, STUDENT, TEACHER, make_environment
from fastdeit.kernels.distill import swap_pairs
from fastdeit.kernels.mix import mix
from fastdeit.models.student import Student, build_student
from fastdeit.training.losses import DistillationLoss

CLASSES = 10
IMAGES = 16
SMOOTHING = 0.1
MODEL = STUDENT[1]
SIZES = {
    flag[2:].replace("-", "_"): int(value)
    for flag, value in zip(STUDENT[2::2], STUDENT[3::2], strict=True)
}


def make_student() -> Student:
    """Return our student, with deit's bias of query, key and value, and no weight that is 0."""
    student = build_student(
        MODEL, num_classes=CLASSES, image_size=SIZE, qkv_bias=True, drop_path=0.0, **SIZES
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return student.train()


def make_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mixed images, labels and lambda; half of the pairs mixed by CutMix, with the lambda of
    its box, half by Mixup."""
    images, lam, box = make_inputs((IMAGES, 3, SIZE, SIZE), torch.device("cpu"), torch.float32)
    y0, x0, y1, x1 = box.unbind(1)
    lam = torch.where(y1 > y0, 1 - (y1 - y0) * (x1 - x0) / SIZE**2, lam)
    return mix(images, lam, box), torch.randint(CLASSES, (IMAGES,)), lam


def spread_labels(labels: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """Return the dense targets (B, CLASSES) of deit's loss."""
    smooth = F.one_hot(labels, CLASSES) * (1 - SMOOTHING) + SMOOTHING / CLASSES
    return lam[:, None] * smooth + (1 - lam[:, None]) * swap_pairs(smooth)


def compute_step(kind: str, batch: Any, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return our loss, under the name "loss", and the gradient of each parameter."""
    images, labels, lam = batch
    student = make_student()
    keep = torch.ones(IMAGES, len(student.blocks), 2, dtype=torch.bool)
    criterion = DistillationLoss(kind, tau=1.0, smoothing=SMOOTHING, legacy=True)
    loss = criterion(student(images, keep), labels, lam, logits).loss
    loss.backward()
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def run_teacher(file: Path, images: torch.Tensor) -> torch.Tensor:
    teacher = timm.create_model(TEACHER, num_classes=CLASSES).eval()
    teacher.load_state_dict(torch.load(file, weights_only=True)["model"])
    with torch.inference_mode():
        logits: torch.Tensor = teacher(images)
    return logits.clone()


def run_deit_step(checkout: Path, python: Path, folder: Path, batch: Any) -> Any:
    """Return deit's loss and gradients by kind of distillation; files are written to folder."""
    images, labels, lam = batch
    source = folder / "first_step.pt"
    target = folder / "first_step_of_deit.pt"
    given = {
        "images": images,
        "targets": spread_labels(labels, lam),
        "student": make_student().state_dict(),
        "sizes": SIZES,
        "teacher_model": TEACHER,
        "teacher_path": str(folder / "teacher.pth"),
    }
    torch.save(given, source)
    start = [str(python), "-W", "ignore", "-m", "benchmarks.official.deit_step"]
    command = [*start, str(checkout), str(source), str(target)]
    subprocess.run(command, check=True, cwd=ROOT, env=make_environment())
    return torch.load(target, weights_only=True)


def compare_first_step(checkout: Path, python: Path, folder: Path) -> dict[str, float]:
    """Return the largest difference of loss or gradients by kind of distillation.

    folder: that of the teacher's file. Raises AssertionError if a difference is above 1e-5.
    """
    torch.manual_seed(1)
    batch = make_batch()
    logits = run_teacher(folder / "teacher.pth", batch[0])
    theirs = run_deit_step(checkout, python, folder, batch)
    worst = {}
    for kind, expected in theirs.items():
        ours = compute_step(kind, batch, logits)
        assert ours.keys() == expected.keys(), ours.keys() ^ expected.keys()
        worst[kind] = max(float((ours[name] - expected[name]).abs().max()) for name in ours)
        assert worst[kind] <= 1e-5, f"{kind}: loss or a gradient differs by {worst[kind]}"
    return worst
