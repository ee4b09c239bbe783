"""Forward passes of the two kinds of models: a batch becomes the model's input, its outputs and
their loss."""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from fastdeit.data.loaders.batch import Batch
from fastdeit.kernels.distill import LossParts
from fastdeit.kernels.mix import mix
from fastdeit.kernels.mix_patches import mix_patches
from fastdeit.training.losses import Criterion


class ForwardPass(Protocol):
    """Forward pass of a model; a batch is mixed first, so that the teacher sees the same images."""

    draws: bool
    """True if the model draws random numbers of its own."""

    def mix(self, batch: Batch, *, with_images: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the model's input, and the mixed images (B, 3, H, W) if the teacher needs them."""

    def seed(self, batch: Batch, step: int) -> None:
        """Set the generator that the model draws from in `run`."""

    def run(self, model: nn.Module, inputs: torch.Tensor, masks: torch.Tensor | None) -> Any:
        """Return the model's outputs, logits (B, K) of one head or of both, for what `mix` made of
        a batch; masks: its `drop_path_mask`."""


class PlannedStudent:
    """Forward pass of our `Student`: it takes patches, and the plan draws its DropPath mask.

    copies: how many times it sees the batch, one copy after the other, each with masks of its own:
    (B, copies * depth, 2) in the batch.
    """

    draws = False

    def __init__(self, patch_size: int, dtype: torch.dtype, copies: int = 1) -> None:
        self.patch_size = patch_size
        self.dtype = dtype
        self.copies = copies

    def mix(self, batch: Batch, *, with_images: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        return mix_patches(
            batch.unmixed,
            batch.lam,
            batch.box,
            self.patch_size,
            self.dtype,
            with_images=with_images,
        )

    def seed(self, batch: Batch, step: int) -> None:
        pass

    def run(self, model: nn.Module, inputs: torch.Tensor, masks: torch.Tensor | None) -> Any:
        if masks is None:  # the student would draw a mask that no replay repeats
            raise ValueError("drop_path_mask must be the plan's (got None)")
        if self.copies > 1:
            masks = torch.cat(masks.chunk(self.copies, dim=1))
        return model(_repeat(inputs, self.copies), masks)


class SeededModel:
    """Forward pass of a timm model: it takes images, channels last, and draws its own random
    numbers.

    They follow from (seed, step, samples of the batch), so a step that is repeated draws the same.
    copies: how many times it sees the batch, one copy after the other.
    """

    draws = True

    def __init__(self, seed: int, dtype: torch.dtype, copies: int = 1) -> None:
        self._seed = seed
        self.dtype = dtype
        self.copies = copies

    def mix(self, batch: Batch, *, with_images: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        # a convolution is up to 1.8 times as fast on channels last, a vision transformer no slower
        images = mix(batch.unmixed, batch.lam, batch.box, self.dtype, channels_last=True)
        return images, images if with_images else None

    def seed(self, batch: Batch, step: int) -> None:
        key = hashlib.sha256(f"{self._seed} {step} {batch.digest}".encode()).digest()
        torch.manual_seed(int.from_bytes(key[:7], "little"))

    def run(self, model: nn.Module, inputs: torch.Tensor, masks: torch.Tensor | None) -> Any:
        return model(_repeat(inputs, self.copies))


@dataclass(frozen=True)
class MicroLoss:
    """The loss of a micro-batch: a function of the model and of tensors alone.

    tensors: what `forward.mix` made of the batch, labels, lam and drop_path_mask of the batch, and
    the teacher's output or None.
    """

    forward: ForwardPass
    criterion: Criterion
    tensors: tuple[torch.Tensor | None, ...]

    def __call__(self, model: nn.Module) -> LossParts:
        inputs, labels, lam, masks, teacher_output = self.tensors
        assert inputs is not None
        outputs = self.forward.run(model, inputs, masks)
        return self.criterion(outputs, labels, lam, teacher_output)

    def with_tensors(self, tensors: tuple[torch.Tensor | None, ...]) -> "MicroLoss":
        """Return the same function of other tensors."""
        return dataclasses.replace(self, tensors=tensors)


def _repeat(inputs: torch.Tensor, copies: int) -> torch.Tensor:
    return torch.cat([inputs] * copies) if copies > 1 else inputs
