"""Sections of flags that the commands on trained weights share."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastdeit.config.parse import Section, require
from fastdeit.models.hub import EvalView


@dataclass(frozen=True)
class SourceFlags(Section):
    """Which of the weights are used."""

    ema: bool = False
    """Use the EMA of the weights."""
    model: str = ""
    """Architecture, by timm's name; only for a file that does not name it."""


@dataclass(frozen=True)
class WeightsFlags(SourceFlags):
    """Which of the weights are used, and where."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""

    def check(self) -> None:
        has_gpu = torch.cuda.is_available()
        self._require("device", self.device != "cuda" or has_gpu, "cpu: this machine has no GPU")

    def find_device(self) -> str:
        """Return cpu or cuda."""
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class ViewFlags(Section):
    """What the model sees of an image; without flags, what its weights name."""

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
        """Return a view with the fields that flags name replaced."""
        named: dict[str, Any] = {
            "size": self.eval_input_size,
            "crop_pct": self.eval_crop_ratio,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "crop_mode": self.crop_mode,
        }
        return view._replace(**{name: value for name, value in named.items() if value is not None})
