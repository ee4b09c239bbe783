"""A folder of weights, as a run writes it, without a training."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from fastdeit.models.hub import EvalView, describe_model
from fastdeit.models.student import build_student
from fastdeit.storage.run_folder import RunFolder

VIEW = EvalView(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.875)


def write_student(
    folder: Path,
    classes: Sequence[str],
    *,
    view: EvalView = VIEW,
    distilled: bool = True,
    seed: int = 0,
) -> Path:
    """Write a small student whose heads differ, with random weights; return the folder."""
    name = f"deit_tiny{'_distilled' if distilled else ''}_patch16_224"
    sizes = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 8}
    student = build_student(name, num_classes=len(classes), image_size=view.size, **sizes)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=drawn))
    folder.mkdir(parents=True, exist_ok=True)
    files = RunFolder(folder)
    save_file(student.state_dict(), files.model, metadata={"model": name})
    described = describe_model(name, student, view, classes)
    files.model_config.write_text(json.dumps(described))
    return folder
