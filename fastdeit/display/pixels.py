"""Pixels of normalised images, as files and figures show them."""

from collections.abc import Sequence

import numpy as np
import torch


def denormalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return normalised images (..., 3, H, W) as pixels: uint8 (..., H, W, 3), rounded.

    mean, std: those of the normalisation, for values from 0 to 1.
    """
    scale = torch.tensor(std)[:, None, None]
    shift = torch.tensor(mean)[:, None, None]
    values = (images.float().cpu() * scale + shift).clamp(0, 1)
    return (values * 255).round().byte().movedim(-3, -1).contiguous().numpy()
