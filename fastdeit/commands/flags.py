"""Sections of flags that the commands on trained weights share."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro

from fastdeit.config.parse import Section

CHECKPOINT = tyro.conf.arg(
    metavar="CHECKPOINT",
    help="Weights: a run folder, a file, local-dir:FOLDER, hf-hub:NAME, https://..., or a timm "
    "model with pretrained weights.",
)
Checkpoint = Annotated[tyro.conf.Positional[str], CHECKPOINT]
"""The place of a command that names weights."""


@dataclass(frozen=True)
class SourceFlags(Section):
    """The choice of weights."""

    ema: bool = False
    """Use the EMA of the weights."""
    model: str = ""
    """Architecture, by timm's name; only for a file that does not name it."""


@dataclass(frozen=True)
class WeightsFlags(SourceFlags):
    """The choice of weights, and of a device."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""

    def check(self) -> None:
        has_gpu = torch.cuda.is_available()
        self._require("device", self.device != "cuda" or has_gpu, "cpu: this machine has no GPU")

    def find_device(self) -> str:
        """Return cpu or cuda."""
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"
