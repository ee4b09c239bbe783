"""The exact augmentation as plain functions: uint8 images and the draws of a plan become images for
a model, on the device of the images."""

from collections.abc import Sequence

import numpy as np
import torch

from fastdeit.config.parse import require_value
from fastdeit.config.schema.samples import IMAGENET_MEAN, IMAGENET_STD
from fastdeit.data.device.augment import Augmenter
from fastdeit.data.device.rows import pack_changes, place_crops
from fastdeit.data.device.transfer import as_tensor, send_together
from fastdeit.kernels.normalise import DTYPES, normalise
from fastdeit.plan.plan import SampleParams
from fastdeit.plan.spec import PlanSpec


def augment_images(
    images: Sequence[torch.Tensor] | torch.Tensor,
    draws: SampleParams,
    spec: PlanSpec,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return whole images, cropped, resized, flipped, augmented, normalised and erased as drawn:
    (B, 3, S, S), S = spec.input_size, on their device, with the bits of PIL and timm.

    images: of each sample, as stored: uint8 (h, w, 3), all on one device. draws: of
    `Plan(spec, sizes).draw(epoch, ordinals)`, B samples; they are mixed by `mix`. mean, std: of
    each channel, for values in 0..1. dtype: float32, float16 or bfloat16, rounded from float32. On
    a GPU these are Triton kernels, and the host waits for nothing; on a CPU plain torch. Raises
    ValueError for images that are not those of the draws.
    """
    _check_draws("images", images, draws, spec, dtype)
    for image, (y, x, height, width) in zip(images, draws.crop.tolist(), strict=True):
        _check_image("images", image, images[0].device)
        holds = y + height <= image.shape[0] and x + width <= image.shape[1]
        allowed = f"at least {(y + height, x + width)} in height and width, as the plan's sizes"
        require_value(holds, "images", tuple(image.shape[:2]), allowed)
    sizes = np.array([[0, 0, *image.shape[:2]] for image in images], np.int32).reshape(-1, 4)
    place = place_crops(draws, sizes, np.arange(len(images)))
    packed = torch.cat([image.reshape(-1) for image in images])
    changes = send_together(pack_changes(draws), packed.device)
    augmenter = Augmenter(spec, mean, std)
    return normalise(*augmenter.augment_windows(packed, [*map(as_tensor, place)], changes), dtype)


def augment_crops(
    crops: torch.Tensor,
    draws: SampleParams,
    spec: PlanSpec,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return crops that are resized already, flipped, augmented, normalised and erased as drawn:
    (B, 3, S, S).

    crops: uint8 (B, S, S, 3), S = spec.input_size. The rest is as in `augment_images`, the errors
    too.
    """
    _check_draws("crops", crops, draws, spec, dtype)
    for crop in crops:
        _check_image("crops", crop, crops.device)
    side = spec.input_size
    allowed = f"{side} x {side} pixels, as input_size"
    require_value(crops.shape[1:3] == (side, side), "crops", tuple(crops.shape), allowed)
    flip, *rows = send_together((draws.flip, *pack_changes(draws)), crops.device)
    turned = torch.where(flip.view(-1, 1, 1, 1), crops.flip(2), crops)
    return normalise(*Augmenter(spec, mean, std).augment_crops(turned, rows), dtype)


def _check_draws(
    name: str,
    images: Sequence[torch.Tensor] | torch.Tensor,
    draws: SampleParams,
    spec: PlanSpec,
    dtype: torch.dtype,
) -> None:
    """Raise ValueError unless there is an image for each draw, the draws fit the spec, and the
    dtype is one of `DTYPES`."""
    require_value(dtype in DTYPES, "dtype", dtype, f"one of {', '.join(map(str, DTYPES))}")
    count, layers = draws.ops.shape
    require_value(spec.layers == layers, "spec", spec, f"of {layers} operations a sample, as draws")
    allowed = f"{count}, as many as draws, and at least 1"
    require_value(len(images) == count > 0, f"number of {name}", len(images), allowed)


def _check_image(name: str, image: torch.Tensor, device: torch.device) -> None:
    is_image = image.dtype == torch.uint8 and image.ndim == 3 and image.shape[2] == 3
    found = f"{image.dtype} {tuple(image.shape)} on {image.device}"
    allowed = f"uint8 (h, w, 3) on {device}"
    require_value(is_image and image.device == device, name, found, allowed)
