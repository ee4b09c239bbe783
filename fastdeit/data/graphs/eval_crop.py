"""The square of an image that a model sees in evaluation, and where it lies."""

from typing import NamedTuple

import numpy as np

from fastdeit.config.parse import require
from fastdeit.data.augment.native import FILTERS as NATIVE_FILTERS
from fastdeit.data.augment.resize.weights import FILTERS

CROP_MODES = ("center", "squash", "border")
"""timm's names of the ways from an image to a square; `EvalCrop.mode` describes them."""


class EvalCrop(NamedTuple):
    """The square that a model sees of an image in evaluation. Source: timm 1.0.31,
    data/transforms_factory.py, transforms_imagenet_eval."""

    size: int
    """The side of the square in pixels."""
    crop_pct: float
    """The share of the resized image's side that is cropped: it is resized to size / crop_pct."""
    interpolation: str = "bicubic"
    """The filter of the resize, one of FILTERS."""
    mode: str = "center"
    """One of CROP_MODES. center: the short side is resized to size / crop_pct, and the centre is
    cropped; squash: both sides are resized to it, whatever their ratio; border: the long side is
    resized to it, and the rest of the square is filled with the mean colour."""

    def check(self, backend: str) -> None:
        """Raise ValueError, which names the argument, unless the backend can do this crop."""
        require(0 < self.crop_pct <= 2, "eval_crop_ratio", self.crop_pct, "above 0, at most 2")
        filters = FILTERS if backend == "exact" else tuple(NATIVE_FILTERS)
        allowed = f"one of {', '.join(filters)} with the augment backend {backend}"
        require(self.interpolation in filters, "interpolation", self.interpolation, allowed)
        require(self.mode in CROP_MODES, "crop_mode", self.mode, f"one of {', '.join(CROP_MODES)}")
        allowed = "exact where an image is padded (crop mode border, or a crop ratio above 1)"
        pads = self.mode == "border" or self.crop_pct > 1
        require(backend == "exact" or not pads, "augment_backend", backend, allowed)


def place_crop(sizes: np.ndarray, crop: EvalCrop) -> np.ndarray:
    """Return int32 (B, 4): height and width after the resize, y and x of the crop, which are
    negative where the image is padded (torchvision's Resize and CenterCrop; timm's ResizeKeepRatio
    and CenterCropOrPad)."""
    resized = _resized(sizes.astype(np.int64), int(crop.size / crop.crop_pct), crop.mode)
    cropped = np.rint((resized - crop.size) / 2).astype(np.int64)
    padded = -((crop.size - resized) // 2)
    corner = np.where(resized < crop.size, padded, cropped)
    return np.concatenate((resized, corner), axis=1).astype(np.int32)


def _resized(sizes: np.ndarray, side: int, mode: str) -> np.ndarray:
    """Return int64 (B, 2): height and width of images of int64 `sizes` after the resize."""
    if mode == "squash":
        return np.full_like(sizes, side)
    if mode == "border":
        ratio = (sizes / side).max(1, keepdims=True)
        return np.maximum(np.rint(sizes / ratio), 1).astype(np.int64)
    return side * sizes // sizes.min(1, keepdims=True)
