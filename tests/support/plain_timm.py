"""A run folder as a user of timm sees it: nothing of fastdeit is imported."""

from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import nn


def load_images(model: nn.Module, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels of folder/CLASS/*, with the transform that timm finds."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    names: Any = model.pretrained_cfg["label_names"]  # type: ignore[index]
    images = []
    labels = []
    for label, name in enumerate(names):
        for path in sorted((folder / name).iterdir()):
            images.append(transform(Image.open(path).convert("RGB")))
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


@torch.no_grad()
def measure_with_timm(run: Path, folder: Path, weights: Path | str = "") -> list[float]:
    """Return top-1 and top-5 in percent of a run folder's model, or of its other weights."""
    model = timm.create_model(f"local-dir:{run}", pretrained=True, checkpoint_path=weights).eval()
    images, labels = load_images(model, folder)
    logits = model(images)
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return [100 * hits[:, :k].any(1).sum().item() / len(labels) for k in (1, 5)]
