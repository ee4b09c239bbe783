"""The family of a teacher: by its layers, or of the model that a name builds; none of its weights
are read, and none of its code is run."""

import functools
from collections.abc import Iterator, Sequence

import timm
import torch
from torch import nn

from fastdeit.audit.findings import Finding
from fastdeit.models.hub import name_in_timm

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_QUERIES = {"qkv", "q", "q_proj", "q_norm", "query", "to_q", "to_qkv"}
"""Names of the projection to queries in timm's models."""


def read_teachers(names: Sequence[str]) -> Finding:
    """Return the finding on the teachers with these names; a program or a model that is not timm's
    cannot be seen."""
    families = {name: find_family(name) for name in names}
    text = ", ".join(f"{name}: {family or 'not known'}" for name, family in families.items())
    if any(family not in ("", "ConvNet") for family in families.values()):
        return Finding(text, False)
    return Finding(text, True if all(families.values()) else None)


@functools.cache
def find_family(name: str) -> str:
    """Return what `describe_family` returns for timm's model of this name; "" if there is none."""
    known = name if timm.is_model(name) else name_in_timm(name)
    if not timm.is_model(known):
        return ""
    with torch.device("meta"):
        return describe_family(timm.create_model(known, pretrained=False))


def describe_family(network: nn.Module) -> str:
    """Return "ConvNet" for a network with overlapping convolutions (`_overlaps`) and no
    self-attention, "transformer" for the reverse, "hybrid" for both, "other" for neither."""
    attends = any(map(_is_attention, network.modules()))
    convolves = any(_overlaps(layer) for layer in _list_convolutions(network))
    families = {(False, True): "ConvNet", (True, False): "transformer", (True, True): "hybrid"}
    return families.get((attends, convolves), "other")


def _is_attention(module: nn.Module) -> bool:
    """Return True for attention among positions, which has a projection to queries;
    squeeze-and-excitation, which weighs channels, has none."""
    parts = {name for name, _ in module.named_children()}
    return isinstance(module, nn.MultiheadAttention) or bool(parts & _QUERIES)


def _list_convolutions(network: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in network.modules() if isinstance(layer, _CONVOLUTIONS))


def _overlaps(layer: nn.Module) -> bool:
    """Return True if the kernel of a convolution is larger than its stride, unlike that of a patch
    projection."""
    sides = zip(layer.kernel_size, layer.stride, strict=True)  # type: ignore[arg-type]
    return any(side > 1 and side > step for side, step in sides)
