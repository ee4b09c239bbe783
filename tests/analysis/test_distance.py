"""Attention distances against a loop over pairs of patches, and of attention that is known."""

import math
from typing import Any

import pytest
import torch

from fastdeit.analysis.attention_maps import record_attention
from fastdeit.analysis.distance import find_distances, measure_distance, summarise_distance
from fastdeit.models.student import Student

SIDE = 3


def loop(weights: torch.Tensor, special: int) -> float:
    """Return the mean attention distance of one head, written out."""
    total = 0.0
    for i in range(SIDE**2):
        row = weights[special + i, special:].double()
        for j in range(SIDE**2):
            apart = math.dist(divmod(i, SIDE), divmod(j, SIDE))
            total += float(row[j] / row.sum()) * apart
    return total / SIDE**2


@pytest.mark.parametrize("special", [0, 1, 4])
def test_distances_are_those_of_a_loop(special: int) -> None:
    size = SIDE**2 + special
    drawn = torch.Generator().manual_seed(0)
    weights = (3 * torch.randn(2, 3, size, size, generator=drawn)).softmax(-1)
    found = measure_distance(weights, special)
    assert found.shape == (2, 3)
    for image in range(2):
        for head in range(3):
            expected = loop(weights[image, head], special)
            assert float(found[image, head]) == pytest.approx(expected, rel=1e-5)


def test_known_attention_has_known_distances() -> None:
    own = torch.eye(4)[None, None]
    assert float(measure_distance(own, 0)) == 0
    # in a square of four each patch reads the one diagonal to it
    assert float(measure_distance(own.flip(-1), 0)) == pytest.approx(2**0.5)
    special = torch.zeros(1, 1, 5, 5)
    special[..., 0] = 1
    assert float(measure_distance(special, 1)) == 0


def test_a_summary_is_in_pixels_and_has_the_distance_of_uniform_attention() -> None:
    alike = torch.full((2, 3, 9, 9), 1 / 9)
    distances = torch.stack([measure_distance(alike, 0), torch.ones(2, 3)], 1)
    found = summarise_distance(distances, patch_size=8, count=9)
    assert found.uniform == pytest.approx(8 * float(find_distances(9).mean()))
    assert found.layers == ((pytest.approx(found.uniform),) * 3, (8.0,) * 3)


@pytest.mark.parametrize("distilled", [True, False])
@torch.no_grad()
def test_a_record_has_the_distances_of_every_layer_of_the_newest_pass(distilled: bool) -> None:
    sizes: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    model = Student(image_size=24, patch_size=8, distilled=distilled, **sizes).eval()
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with record_attention(model) as record:
        model(images.flip(0))
        model(images)
    assert record.distances.shape == (2, 2, 3)
    special = model.num_prefix_tokens
    for head in range(3):
        expected = loop(record.weights[1, head], special)
        assert float(record.distances[1, -1, head]) == pytest.approx(expected, rel=1e-5)
