"""Batch norms of a frozen network folded into the convolutions before them.

A batch norm in evaluation is an affine map of each channel, so it can be folded into the
convolution whose output it takes. Then y = (w * x + b - mean) · g / sqrt(var + eps) + beta is a
convolution with the weights w · g / sqrt(var + eps). A RegNetY-16GF reads and writes its
activations once less for each of its norms. Which norm follows which convolution is observed while
the network runs on one image, and so holds for any code; a network that gives other logits
afterwards is not folded.
"""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
_TOLERANCE = 1e-6
"""The largest difference of fp64 logits, absolute and relative."""


class Folded(NamedTuple):
    """A network, and the number of its batch norms that were folded."""

    network: nn.Module
    norms: int


@torch.no_grad()
def fold_batch_norms(network: nn.Module, size: int) -> Folded:
    """Return a copy, in fp64, whose batch norms are folded into the convolutions before them, or
    the network itself if nothing can be folded; timm's parallel branches become one convolution
    too.

    network: in evaluation mode, for images (B, 3, size, size); it does not change.
    """
    if count_norms(network) == 0:
        return Folded(network, 0)
    for reparameterize in (True, False):
        try:
            folded = _fold_copy(network, size, reparameterize=reparameterize)
        # a network may fail in any way in another precision or without its branches
        except Exception:
            continue
        if folded is not None:
            return folded
    return Folded(network, 0)


def count_norms(network: nn.Module) -> int:
    """Return the number of batch norms of a network."""
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def _fold_copy(network: nn.Module, size: int, *, reparameterize: bool) -> Folded | None:
    """Return a folded copy; None if its logits differ, or if no norm was folded."""
    exact = copy.deepcopy(network).double()
    images = _draw_image(size, next(exact.parameters()).device)
    expected = exact(images)
    before = count_norms(exact)
    if reparameterize:
        exact = reparameterize_model(exact, inplace=True)
    with _Observer(exact) as observer:
        exact(images)
    for convolution, norm in observer.pairs():
        _fold(exact, convolution, norm)
    folded = before - count_norms(exact)
    is_equal = torch.allclose(exact(images), expected, rtol=_TOLERANCE, atol=_TOLERANCE)
    return Folded(exact, folded) if folded and is_equal else None


def _draw_image(size: int, device: torch.device) -> torch.Tensor:
    """Return the same image of noise (1, 3, size, size) each time, fp64."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, size, size, dtype=torch.float64, generator=generator).to(device)


def _fold(network: nn.Module, convolution: str, norm: str) -> None:
    """Replace two modules, named by their paths, by a convolution and what follows the norm."""
    bn: Any = network.get_submodule(norm)
    conv: Any = network.get_submodule(convolution)
    network.set_submodule(convolution, fuse_conv_bn_eval(conv, bn))
    has_more = isinstance(bn, BatchNormAct2d)
    network.set_submodule(norm, nn.Sequential(bn.drop, bn.act) if has_more else nn.Identity())


class _Observer(TorchFunctionMode):
    """A record of which functions of torch take the output of which convolution."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._owners: dict[int, str] = {}
        """Paths of convolutions and batch norms by the identity of a tensor of theirs."""
        for name, module in network.named_modules():
            for tensor in _own_tensors(module):
                self._owners[id(tensor)] = name
        self._outputs: dict[int, tuple[torch.Tensor, str]] = {}
        """Outputs of convolutions and their paths; they are not freed, so that no identity occurs
        twice."""
        self._uses: dict[int, list[str]] = {}
        """Paths of the norms that take an output; "" for any other function."""
        self._calls: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(result)):
            return result
        inputs = tree_leaves((args, kwargs))
        owner = next((name for leaf in inputs if (name := self._owners.get(id(leaf)))), "")
        is_norm = func is F.batch_norm
        for leaf in inputs:
            if id(leaf) in self._outputs:
                self._uses[id(leaf)].append(owner if is_norm else "")
        if owner and func in _CONVOLUTIONS:
            self._outputs[id(result)] = (result, owner)
            self._uses[id(result)] = []
        if owner:
            # a function that changes a weight first counts too
            self._calls.append(owner)
        return result

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield the paths of each convolution and norm that run once, where only the norm takes the
        output of the convolution."""
        for identity, (_, convolution) in self._outputs.items():
            uses = self._uses[identity]
            norm = uses[0] if len(uses) == 1 else ""
            if norm and all(self._calls.count(name) == 1 for name in (convolution, norm)):
                yield convolution, norm


def _own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """Return the tensors that name a convolution, or a batch norm that can be folded."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return [module.weight]
    mean = getattr(module, "running_mean", None)
    return [mean] if type(module) in _NORMS and mean is not None else []
