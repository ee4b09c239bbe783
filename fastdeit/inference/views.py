"""What a model sees of an image in evaluation: timm's transform of a view, and another view."""

import dataclasses
import functools
from collections.abc import Callable

import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from fastdeit.config.parse import require
from fastdeit.inference.load import LoadedModel
from fastdeit.models.hub import EvalView
from fastdeit.models.student import Student

Transform = Callable[[Image.Image], torch.Tensor]


@functools.lru_cache
def build_transform(view: EvalView) -> Transform:
    """Return timm's transform of a view: a PIL image in RGB → fp32 (3, S, S), normalised.

    Equal to the evaluation's pixels of the `exact` backend.
    """
    transform: Transform = create_transform(
        input_size=(3, view.size, view.size),
        interpolation=view.interpolation,
        mean=view.mean,
        std=view.std,
        crop_pct=view.crop_pct,
        crop_mode=view.crop_mode,
    )
    return transform


def change_view(loaded: LoadedModel, view: EvalView) -> LoadedModel:
    """Return the model for another view; its position embedding is resized in place for another
    size.

    Raises ValueError for a size that the model does not take.
    """
    if view.size != loaded.view.size:
        try:
            _set_size(loaded.model, view.size)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()) or "no reason given"
            require(False, "eval_input_size", view.size, f"a size for {loaded.name}: {reason}")
    return dataclasses.replace(loaded, view=view)


def _set_size(model: nn.Module, size: int) -> None:
    """Set the side of the images, and try it."""
    if isinstance(model, Student):
        model.set_input_size(size)
    elif hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(size, size))  # type: ignore[operator]
    first = next(model.parameters())
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size, device=first.device, dtype=first.dtype))
