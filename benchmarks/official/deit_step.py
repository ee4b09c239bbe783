"""deit's loss and gradients of one batch, computed by the Python of deit's environment.

PYTHON -m benchmarks.official.deit_step CHECKOUT INPUT OUTPUT

INPUT and OUTPUT are files of `torch.save`, which first_step.py writes and reads. It has no other
use.
"""

import sys
from typing import Any

import torch

from benchmarks.official.run_deit import STUDENTS, load, prepare, resize_students


def compute_step(given: dict[str, Any], kind: str) -> dict[str, torch.Tensor]:
    """Return the loss, under the name "loss", and the gradient of each parameter."""
    create = load("timm").create_model
    classes = given["targets"].shape[1]
    student = create(STUDENTS[0], num_classes=classes, img_size=given["images"].shape[-1])
    student.load_state_dict(given["student"])
    teacher = create(given["teacher_model"], num_classes=classes, global_pool="avg").eval()
    teacher.load_state_dict(torch.load(given["teacher_path"], weights_only=True)["model"])
    base = load("timm.loss").SoftTargetCrossEntropy()
    criterion = load("losses").DistillationLoss(base, teacher, kind, 0.5, 1.0)
    loss = criterion(given["images"], student.train()(given["images"]), given["targets"])
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    return {"loss": loss.detach(), **gradients}


def main(checkout: str, source: str, target: str) -> None:
    prepare(checkout)
    given = torch.load(source, weights_only=True)
    load("main")
    resize_students(given["sizes"])
    torch.save({kind: compute_step(given, kind) for kind in ("hard", "soft")}, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
