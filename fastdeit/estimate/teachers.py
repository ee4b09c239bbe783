"""The teacher of a run without its weights, on torch's meta device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastdeit.config.parse import runs_code
from fastdeit.models.execution.memory import Memory, measure_memory


@dataclass(frozen=True)
class MetaTeacher:
    """The networks of a teacher, without values; size: the side of their images in pixels."""

    networks: Sequence[nn.Module]
    size: int
    batch: int
    """The number of images at once; 0: those of a micro-batch."""

    @cached_property
    def flops(self) -> float:
        """Return the FLOPs of a forward pass on one image; a multiply-add is 2."""
        return sum(_count_forward(network, self._make_images(1)) for network in self.networks)

    @cached_property
    def measure_memory(self) -> Callable[[int], Memory]:
        """Return a function from the number of images in a batch to the memory of all weights, and
        of the activations of the network with the most; it measures each number once."""
        return cache(self._measure_memory)

    def _measure_memory(self, batch: int) -> Memory:
        images = self._make_images(self.batch or batch)
        each = [measure_memory(network, images) for network in self.networks]
        most = max(memory.activations or 0 for memory in each)
        return Memory(sum(memory.weights for memory in each), most)

    def _make_images(self, count: int) -> torch.Tensor:
        dtype = next(self.networks[0].parameters()).dtype
        return torch.empty(count, 3, self.size, self.size, device="meta", dtype=dtype)


def make_teacher(
    names: Sequence[str], classes: int, size: int, batch: int, dtype: torch.dtype
) -> MetaTeacher | None:
    """Return the teacher with timm's names; None if a name is a program or not one of timm, as its
    work cannot be counted.

    size: side of the images in pixels; batch: images at once, 0: those of a micro-batch.
    """
    models = [name.partition(".")[0] for name in names]
    if any(runs_code(name) or not timm.is_model(name) for name in models):
        return None
    with torch.device("meta"):
        networks = [timm.create_model(name, num_classes=classes) for name in models]
    return MetaTeacher([network.eval().to(dtype) for network in networks], size, batch)


@torch.no_grad()
def _count_forward(network: nn.Module, images: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops()
