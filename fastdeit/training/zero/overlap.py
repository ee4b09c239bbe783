"""The gradient reduced in pieces while the backward pass still runs.

A piece has consecutive weights of the model. As soon as the backward pass has their gradients,
these are copied into the flat buffers. Then an asynchronous reduce begins for each rank that owns
elements of the piece, as with DeepSpeed's buckets (0.19.8). The pieces are sent in a fixed order,
that of the backward pass, so all ranks call the same collectives. The sums are those of one
reduction at the end: on two ranks to the bit, on more a ring may add in another order.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from fastdeit.training.zero.flat import FlatLossModule
from fastdeit.training.zero.gradients import FlatGradients

SMALL = 1 / 16
"""The share of the largest group below which a group is reduced after the backward pass: its pieces
would take no less than the latency of the links."""


class Piece(NamedTuple):
    """Weights whose gradients are reduced together.

    leaves: their numbers in `FlatLossModule.leaves`. segments: (owner, view of the flat buffer).
    """

    leaves: list[int]
    segments: list[tuple[int, torch.Tensor]]


def cut(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Cut consecutive weights, given by their elements, into at most `count` pieces of about equal
    size; return their places, piece after piece."""
    target = sum(sizes) / count
    pieces: list[list[int]] = [[]]
    done = 0
    for place, size in enumerate(sizes):
        if pieces[-1] and len(pieces) < count and done + size / 2 > target * len(pieces):
            pieces.append([])
        pieces[-1].append(place)
        done += size
    return pieces


def split_by_owner(start: int, stop: int, elements: int) -> Iterator[tuple[int, int, int]]:
    """Yield (owner, start, stop) of a range of a flat buffer of which each rank owns so many
    consecutive elements."""
    while start < stop:
        owner = start // elements
        end = min(stop, (owner + 1) * elements)
        yield owner, start, end
        start = end


class OverlappedGradients(FlatGradients):
    """Gradients that are reduced while the backward pass runs; for several ranks.

    pieces: their number; the other arguments as of `FlatGradients`.
    """

    overlaps = True

    def __init__(
        self,
        module: FlatLossModule,
        parts: Sequence[torch.Tensor],
        micro_steps: int,
        stage: int,
        pieces: int,
    ) -> None:
        super().__init__(module, parts, micro_steps, stage)
        self._pieces = self._cut(module, pieces)
        self._works: list[dist.Work] = []
        self._arrived: dict[int, torch.Tensor] = {}
        self._sending = -1
        """The micro-batch whose gradients are sent as they arrive; -1: none."""
        self._sent = 0
        for number, leaf in enumerate(self._leaves):
            leaf.register_hook(lambda gradient, number=number: self._arrive(number, gradient))

    def _own_parts(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        rank = dist.get_rank()
        return [whole.view(self._ranks, -1)[rank] for whole in self.wholes]

    def _cut(self, module: FlatLossModule, count: int) -> list[Piece]:
        """Return the pieces in the order of the backward pass; small groups are the last one."""
        places = {leaf: place for place, leaf in enumerate(module.model.parameters())}
        groups = [len(slots) for slots in module.slots]
        group_of = [number for number, size in enumerate(groups) for _ in range(size)]
        most = max(whole.numel() for whole in self.wholes)
        large = [whole.numel() >= SMALL * most for whole in self.wholes]
        order = sorted(range(len(self._leaves)), key=lambda leaf: -places[self._leaves[leaf]])
        early = [leaf for leaf in order if large[group_of[leaf]]]
        late = [leaf for leaf in order if not large[group_of[leaf]]]
        cuts = cut([self._leaves[leaf].numel() for leaf in early], count)
        chosen = [[early[place] for place in places] for places in cuts] + ([late] if late else [])
        return [Piece(leaves, [*self._segments(leaves)]) for leaves in chosen]

    def _segments(self, leaves: Iterable[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the ranges of the flat buffers that hold the leaves, each with its owner."""
        for whole in self.wholes:
            base, size = whole.data_ptr(), whole.element_size()
            views = [self._views[leaf] for leaf in leaves]
            inside = [view for view in views if base <= view.data_ptr() < base + whole.nbytes]
            if not inside:
                continue
            starts = [(view.data_ptr() - base) // size for view in inside]
            stops = [at + view.numel() for at, view in zip(starts, inside, strict=True)]
            elements = whole.numel() // self._ranks
            for owner, start, stop in split_by_owner(min(starts), max(stops), elements):
                yield owner, whole[start:stop]

    def add(self, loss: torch.Tensor, scale: torch.Tensor, number: int) -> None:
        if not self._is_due(number):
            super().add(loss, scale, number)
            return
        self._sending = number
        self._sent = 0
        gradients = self._differentiate(loss, scale)
        # weights that the loss does not depend on have zeros, and their hooks did not run
        self._arrived |= dict(enumerate(gradients))
        self._send_whole_pieces()
        self._sending = -1
        self._arrived.clear()

    def _arrive(self, leaf: int, gradient: torch.Tensor) -> None:
        """Store a weight's gradient, and send the pieces that are whole; the backward pass calls
        this."""
        if self._sending >= 0:
            self._arrived[leaf] = gradient.detach()
            self._send_whole_pieces()

    def _send_whole_pieces(self) -> None:
        """Send the next pieces, in their order, up to the first one that still lacks a gradient."""
        while self._sent < len(self._pieces):
            piece = self._pieces[self._sent]
            if any(leaf not in self._arrived for leaf in piece.leaves):
                return
            self._sent += 1
            self._send(piece)

    def _send(self, piece: Piece) -> None:
        views = [self._views[leaf] for leaf in piece.leaves]
        gradients = [self._arrived[leaf] for leaf in piece.leaves]
        self._write(views, gradients, self._sending)
        for owner, segment in piece.segments:
            work = dist.reduce(segment, owner, async_op=True)
            assert work is not None
            self._works.append(work)

    def _sum_over_ranks(self) -> None:
        """Let the device wait for the reductions; on a CPU the host waits."""
        for work in self._works:
            work.wait()
        self._works.clear()
