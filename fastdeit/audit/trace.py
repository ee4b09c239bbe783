"""One forward pass of a Vision Transformer with initial weights, and the tensors that its layers
got."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from fastdeit.models.initialisation import initialise_student

_BRANCHES = ("attn", "mlp")
_SIDE = 224  # of a network for images of any size


class Trace(NamedTuple):
    """Tensors of a forward pass in evaluation mode.

    inputs: of each block's attention and MLP, (1, N, D), by name. heads: outputs of the heads,
    (1, K) each. output: that of the network.
    """

    inputs: Mapping[str, torch.Tensor]
    heads: Sequence[torch.Tensor]
    output: torch.Tensor


@torch.no_grad()
def trace_network(network: nn.Module, heads: Sequence[str]) -> Trace | None:
    """Run a network on one image and return its tensors; None for a network that cannot run like
    this.

    heads: names of its heads' modules. Its weights become initial ones, whose norms change no
    scale: else learned scales would hide what was normalised.
    """
    network.eval().float()
    initialise_student(network, seed=0)
    side = _find_side(network)
    # any image with a different content in each patch
    image = torch.linspace(-2, 2, 3 * side * side).square().view(1, 3, side, side)
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for name, layer in _list_branches(network):
            stack.enter_context(_record(layer, inputs, name, of_input=True))
        for name, layer in network.named_modules():
            if name in heads:
                stack.enter_context(_record(layer, outputs, name, of_input=False))
        try:
            output = network(image)
        except Exception:
            # a network of another kind may fail in any way
            return None
    is_plain = isinstance(output, torch.Tensor)
    return Trace(inputs, list(outputs.values()), output) if is_plain else None


def _find_side(network: Any) -> int:
    """Return the side in pixels of the images that a network is built for."""
    own = getattr(network, "image_size", None)
    size = own or getattr(network.patch_embed, "img_size", None) or _SIDE
    return int(size if isinstance(size, int) else size[0])


def _list_branches(network: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the attention and the MLP of each block, by name."""
    for number, block in enumerate(network.blocks):
        for branch in _BRANCHES:
            layer = getattr(block, branch, None)
            if isinstance(layer, nn.Module):
                yield f"blocks.{number}.{branch}", layer


@contextmanager
def _record(
    layer: nn.Module, seen: dict[str, torch.Tensor], name: str, *, of_input: bool
) -> Iterator[None]:
    """Store the first input or the output of a layer under a name."""

    def store(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen[name] = inputs[0] if of_input else output

    hook: Callable[..., Any] = store
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
