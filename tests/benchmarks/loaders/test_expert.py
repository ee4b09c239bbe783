"""The loader of torch's parts: what its workers make, and how copies are laid out.

.venv/bin/python -m pytest tests/benchmarks/loaders/test_expert.py, about 6 s
"""

import numpy as np
import pytest
import simplejpeg
import torch

from benchmarks.loaders import expert
from benchmarks.loaders.case import Case


def decoded() -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    return expert._decode(simplejpeg.encode_jpeg(pixels, quality=90))


def test_copies_of_one_decoding_differ() -> None:
    torch.manual_seed(0)
    copies = expert._copies(expert._transform(Case("", size=32)), 3, decoded())
    assert copies.shape == (3, 3, 32, 32) and copies.dtype == torch.uint8
    assert len(torch.unique(copies.flatten(1), dim=0)) == 3


def test_resize_reads_channels_last() -> None:
    assert decoded().is_contiguous(memory_format=torch.channels_last) or decoded().stride(0) == 1


def test_each_operation_has_probability_one_half() -> None:
    """A quarter of the images has no operation; a few more have the identity, or one that changes
    nothing."""
    torch.manual_seed(0)
    steps = expert._transform(Case("", size=32)).transforms[3:]
    image = decoded().contiguous()
    unchanged = 0
    for _ in range(300):
        augmented = image
        for step in steps:
            augmented = step(augmented)
        unchanged += torch.equal(augmented, image)
    assert 0.2 < unchanged / 300 < 0.45


def test_collated_copies_stay_side_by_side() -> None:
    samples = [(torch.full((2, 3, 1, 1), i, dtype=torch.uint8), i) for i in range(3)]
    images, labels = expert._collate(samples)
    assert images[:, 0, 0, 0].tolist() == labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("each", "expected"), [(1, [5, 6]), (3, [5, 5, 5, 6, 6, 6])])
def test_samples_of_shards_are_repeated(each: int, expected: list[int]) -> None:
    assert list(expert._repeat([5, 6], each)) == expected
