"""The memory of a network, counted by hand."""

import pytest
import torch
from torch import nn

from fastdeit.models.execution.memory import Memory, measure_memory


def images(batch: int) -> torch.Tensor:
    return torch.empty(batch, 3, 16, 16, device="meta")


def test_peak_is_that_of_the_largest_neighbours() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    floats = 3 * 8 * 9 + 8
    for batch in (1, 4):
        # the input, the output of the convolution, and that of ReLU
        activations = 4 * batch * 16 * 16 * (3 + 8 + 8)
        assert measure_memory(network, images(batch)) == Memory(4 * floats, activations)


def test_what_is_freed_is_not_counted() -> None:
    layers = [nn.Conv2d(3, 3, 1) for _ in range(12)]
    memory = measure_memory(nn.Sequential(*layers), images(2))
    # the input of the network, and two images of a layer
    assert memory.activations == 3 * images(2).nbytes


def test_views_and_changes_in_place_cost_nothing() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).mul_(self.weight).view(x.shape).relu_().permute(0, 2, 3, 1)

    assert measure_memory(Views(), images(2)).activations == images(2).nbytes


def test_a_network_that_reads_values_has_unknown_activations() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight.sum().item()

    memory = measure_memory(Reads(), images(2))
    assert memory == Memory(16, None)
    assert memory.describe(2) == "0.0 MB of weights, activations unknown"


@pytest.mark.parametrize(
    ("size", "text"), [(334_000_000, "334.0 MB of weights"), (0, "no weights found")]
)
def test_memory_is_described(size: int, text: str) -> None:
    line = Memory(size, 3_160_000_000).describe(128)
    assert line.startswith(text) and line.endswith(
        "about 3.2 GB of activations for 128 images at once"
    )
