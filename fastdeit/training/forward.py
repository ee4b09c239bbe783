"""Forward passes of the two kinds of models: a batch becomes the model's input and its outputs."""

import hashlib
from typing import Any, Protocol

import torch
from torch import nn

from fastdeit.data.loaders.batch import Batch
from fastdeit.kernels.mix import mix
from fastdeit.kernels.mix_patches import mix_patches


class ForwardPass(Protocol):
    """Forward pass of a model; a batch is mixed first: the teacher sees the same images."""

    def mix(self, batch: Batch, *, with_images: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the model's input, and the mixed images (B, 3, H, W) if the teacher needs them."""

    def run(self, model: nn.Module, inputs: torch.Tensor, batch: Batch, step: int) -> Any:
        """Return the model's outputs for what `mix` made of the batch."""


class PlannedStudent:
    """Forward pass of our `Student`: it takes patches, and the plan draws its DropPath mask.

    copies: times that it sees the batch, one copy after the other, each with masks of its own:
    (B, copies * depth, 2) in the batch.
    """

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

    def run(self, model: nn.Module, inputs: torch.Tensor, batch: Batch, step: int) -> Any:
        if batch.drop_path_mask is None:  # the student would draw one that no replay repeats
            raise ValueError("drop_path_mask must be the plan's (got None)")
        masks = batch.drop_path_mask
        if self.copies > 1:
            masks = torch.cat(masks.chunk(self.copies, dim=1))
        return model(_repeat(inputs, self.copies), masks)


class SeededModel:
    """Forward pass of a timm model: it takes images, channels last, and draws its own random
    numbers.

    They follow from (seed, step, samples of the batch), so a step that is repeated draws the same.
    copies: times that it sees the batch, one copy after the other.
    """

    def __init__(self, seed: int, dtype: torch.dtype, copies: int = 1) -> None:
        self.seed = seed
        self.dtype = dtype
        self.copies = copies

    def mix(self, batch: Batch, *, with_images: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        # a convolution is up to 1.8 times as fast with them, a vision transformer no slower
        images = mix(batch.unmixed, batch.lam, batch.box, self.dtype, channels_last=True)
        return images, images if with_images else None

    def run(self, model: nn.Module, inputs: torch.Tensor, batch: Batch, step: int) -> Any:
        key = hashlib.sha256(f"{self.seed} {step} {batch.digest}".encode()).digest()
        torch.manual_seed(int.from_bytes(key[:7], "little"))
        return model(_repeat(inputs, self.copies))


def _repeat(inputs: torch.Tensor, copies: int) -> torch.Tensor:
    return torch.cat([inputs] * copies) if copies > 1 else inputs
