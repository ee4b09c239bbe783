"""Memory of a frozen network, from a forward pass on tensors without values."""

import weakref
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Memory(NamedTuple):
    """Bytes of a network: of its weights and buffers, and the largest number that the activations
    of a batch take at once; None: unknown."""

    weights: int
    activations: int | None

    def describe(self, images: int) -> str:
        """Return text for the log; images: in the batch."""
        weights = f"{_show(self.weights)} of weights" if self.weights else "no weights found"
        if self.activations is None:
            return f"{weights}, activations unknown"
        return (
            f"{weights}, about {_show(self.activations)} of activations for {images} images at once"
        )


def _show(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def measure_memory(network: nn.Module, images: torch.Tensor) -> Memory:
    """Return the memory of a network for images (B, 3, H, W) on the device "meta", without the
    workspaces of cuDNN and what a compiler saves."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    weights = sum(tensor.nbytes for tensor in tensors.values())
    if not tensors:
        return Memory(weights, None)
    return Memory(weights, _find_peak(network, tensors, images))


@torch.no_grad()
def _find_peak(
    network: nn.Module, tensors: dict[str, torch.Tensor], images: torch.Tensor
) -> int | None:
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    try:
        with MemoryMeter() as counter:
            functional_call(network, shapes, (images,))
    # a network may compute with values, which "meta" has not, in any way
    except Exception:
        return None
    return counter.peak + images.nbytes


class MemoryMeter(TorchDispatchMode):
    """A counter of the bytes of the tensors that are made within: `live` now, at most `peak` at
    once.

    A storage counts once, from the operator that makes it to its end, whoever refers to it: a
    variable, autograd's graph, a checkpoint. What an operator uses inside is not seen. On the
    device "meta" tensors need no memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if _is(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _is(leaf) and id(leaf.untyped_storage()) not in known | self._seen:
                self._add(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        identity = id(storage)
        self._seen.add(identity)
        self.live += storage.nbytes()
        weakref.finalize(storage, self._remove, identity, storage.nbytes())

    def _remove(self, identity: int, nbytes: int) -> None:
        self._seen.discard(identity)
        self.live -= nbytes


def _is(value: object) -> bool:
    return isinstance(value, torch.Tensor)
