"""A micro-batch whose images are not normalised yet."""

import dataclasses

import torch

from fastdeit.kernels.normalise import Pixels, level_values, normalise
from tests.support.tiny_student import SIZE, make_batch


def make_pixels(count: int) -> Pixels:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    erase = torch.tensor([[1, 2, 5, 3], [0, 0, 0, 0]] * (count // 2), dtype=torch.int32)
    levels = level_values((0.5,) * 3, (0.25,) * 3)
    return Pixels(images, levels, erase, "pixel", torch.arange(count))


def test_images_of_pixels_are_normalised_and_erased() -> None:
    batch = make_batch(0)
    pixels = make_pixels(len(batch.images))
    images = dataclasses.replace(batch, unmixed=pixels).images
    assert torch.equal(images, normalise(*pixels)) and images.dtype == torch.float32
    assert torch.equal(images[1].mul(63.75).add(127.5).round(), pixels.images[1].permute(2, 0, 1))


def test_images_of_a_batch_of_images_are_those_that_it_holds() -> None:
    batch = make_batch(0)
    assert batch.images is batch.unmixed
