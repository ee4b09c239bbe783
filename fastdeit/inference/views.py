"""Another view for a loaded model: another size, crop, or normalisation."""

import dataclasses

import torch
from torch import nn

from fastdeit.config.parse import require
from fastdeit.inference.load import LoadedModel
from fastdeit.models.hub import EvalView
from fastdeit.models.student import Student


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
