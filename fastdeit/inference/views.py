"""Another view for a loaded model: another size, crop, or normalisation."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fastdeit.config.parse import Section, require
from fastdeit.inference.load import LoadedModel
from fastdeit.models.hub import EvalView
from fastdeit.models.student import Student


@dataclass(frozen=True)
class ViewOptions(Section):
    """The view of an image that the model gets; by default that which its weights name."""

    eval_input_size: int | None = None
    """Image side in pixels."""
    eval_crop_ratio: float | None = None
    """The image is resized to size / ratio, then cropped."""
    mean: tuple[float, float, float] | None = None
    """Mean of each channel for the normalisation, for pixels from 0 to 1."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of each channel for the normalisation."""
    interpolation: Literal["bicubic", "bilinear", "lanczos", "hamming", "box"] | None = None
    """Filter of the resize."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """center: the short side is resized, and the centre cropped; squash: both sides are resized;
    border: the long side is, and what is missing is filled with the mean colour."""

    def check(self) -> None:
        size = self.eval_input_size
        require(size is None or size >= 1, "eval_input_size", size, "1 or more")
        ratio = self.eval_crop_ratio
        require(ratio is None or 0 < ratio <= 2, "eval_crop_ratio", ratio, "above 0 and at most 2")
        std_ok = self.std is None or min(self.std) > 0
        require(std_ok, "std", self.std, "three numbers above 0")

    def apply(self, view: EvalView) -> EvalView:
        """Return a view with the fields that are named replaced."""
        named: dict[str, Any] = {
            "size": self.eval_input_size,
            "crop_pct": self.eval_crop_ratio,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "crop_mode": self.crop_mode,
        }
        return view._replace(**{name: value for name, value in named.items() if value is not None})


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
