"""The persistent buffers of a model (a ConvNet's batch statistics), in a few launches however many
there are."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist

Flats = dict[torch.dtype, torch.Tensor]
"""Tensors one after another, in one flat tensor for each dtype."""


def by_dtype(tensors: Iterable[torch.Tensor]) -> dict[torch.dtype, list[torch.Tensor]]:
    """Return the tensors in groups by dtype, in their order."""
    found: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.dtype, []).append(tensor)
    return found


def flatten(tensors: Iterable[torch.Tensor]) -> Flats:
    """Return copies of tensors, in one flat tensor for each dtype."""
    groups = by_dtype(tensors).items()
    return {dtype: torch.cat([one.reshape(-1) for one in group]) for dtype, group in groups}


def split(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return views of the tensors in a flat one; like: tensors with their shapes."""
    pieces = flat.split([one.numel() for one in like])
    return [piece.view_as(one) for piece, one in zip(pieces, like, strict=True)]


def name_views(named: Mapping[str, torch.Tensor], flats: Flats) -> dict[str, torch.Tensor]:
    """Return views, by name, of the tensors of `named` in what `flatten` made of them."""
    views = {
        dtype: iter(split(flats[dtype], group)) for dtype, group in by_dtype(named.values()).items()
    }
    return {name: next(views[tensor.dtype]) for name, tensor in named.items()}


class StepBuffers:
    """Buffers of a model after a step: unchanged if it was skipped, else the mean over the ranks,
    each of which has seen its own samples (timm's --dist-bn reduce, after every step).

    read: returns the buffers by name.
    """

    def __init__(self, read: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        self._read = read
        self._before: Flats = {}

    def save(self) -> None:
        """Copy the buffers as they are before a step."""
        self._before = flatten(self._read().values())

    @torch.no_grad()
    def finish(self, skipped: torch.Tensor) -> None:
        """Set the buffers as they are after the step; a collective.

        skipped: 0-d fp32 on the device; 1.0 restores what was saved.
        """
        buffers = by_dtype(self._read().values())
        for dtype, after in flatten(self._read().values()).items():
            average = mean_over_ranks(after) if dtype.is_floating_point else after
            flat = torch.where(skipped.bool(), self._before[dtype], average)
            torch._foreach_copy_(buffers[dtype], split(flat, buffers[dtype]))


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the mean over the ranks, of `values`' dtype; a collective."""
    ranks = dist.get_world_size()
    if ranks == 1:
        return values
    # in fp64, which changes nothing if all are equal
    total = values.double()
    dist.all_reduce(total)
    return (total / ranks).to(values.dtype)
