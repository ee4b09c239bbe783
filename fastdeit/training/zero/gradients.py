"""The gradient of a step in static flat fp32 buffers, one for each group: the sum over
micro-batches and ranks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from fastdeit.training.zero.flat import FlatLossModule

Gradients = tuple[torch.Tensor, ...] | list[torch.Tensor]
"""The gradients of all leaves, in their order."""


class FlatGradients:
    """Gradients of a model's weights in flat fp32 tensors with the layout of its partitions.

    module: has the weights. parts: for each group a tensor like this rank's partition. micro_steps:
    the micro-batches of a step. stage: at ZeRO 1 the sum over micro-batches is reduced over the
    ranks, at ZeRO 2 each micro-batch is, so that a rank stores the sum of its own partition only.
    Memory in bytes per parameter: 4, and 4 / ranks for several ranks, and 4 / ranks for several
    micro-batches at ZeRO 2.
    """

    overlaps = False
    """True if the backward pass reduces gradients over the ranks while it runs."""

    def __init__(
        self, module: FlatLossModule, parts: Sequence[torch.Tensor], micro_steps: int, stage: int
    ) -> None:
        self._leaves = module.leaves
        self._ranks = dist.get_world_size()
        self.micro_steps = micro_steps
        self._sums_parts = stage == 2 and micro_steps > 1
        self.share = 1 / (micro_steps * self._ranks)
        """The weight of a micro-batch's loss, which makes the sum of all gradients their mean."""
        self.wholes = [part.new_zeros(self._ranks * part.numel()) for part in parts]
        """This rank's gradients before they are reduced, which `add` writes."""
        self._views = module.views(self.wholes)
        self._reduced = self._own_parts(parts)
        self.parts = [*map(torch.zeros_like, parts)] if self._sums_parts else self._reduced
        """This rank's partition of the sum, after the last micro-batch was reduced."""

    def _own_parts(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the tensors for this rank's partition of the sum over the ranks."""
        # the partition of a single process is its whole gradient
        return self.wholes if self._ranks == 1 else [*map(torch.zeros_like, parts)]

    def add(self, loss: torch.Tensor, scale: torch.Tensor, number: int) -> None:
        """Run the backward of micro-batch `number` (from 0) and add this rank's gradients.

        scale: 0-d, the gradient of `loss`; every weight's gradient is a multiple of it.
        """
        self._write(self._views, self._differentiate(loss, scale), number)

    def _differentiate(self, loss: torch.Tensor, scale: torch.Tensor) -> Gradients:
        """Return the gradients of all leaves: zeros where the loss does not depend on one."""
        return torch.autograd.grad(
            loss, self._leaves, scale, allow_unused=True, materialize_grads=True
        )

    @torch.no_grad()
    def _write(self, views: list[torch.Tensor], gradients: Gradients, number: int) -> None:
        """Set or add gradients of micro-batch `number` in `wholes`."""
        replaces = number == 0 or self._sums_parts
        write = torch._foreach_copy_ if replaces else torch._foreach_add_
        write(views, gradients)

    def _is_due(self, number: int) -> bool:
        """Return True if gradients are reduced after micro-batch `number`."""
        return self._sums_parts or number == self.micro_steps - 1

    @torch.no_grad()
    def reduce(self, number: int) -> None:
        """Sum over the ranks what is due after micro-batch `number`; a collective."""
        if not self._is_due(number):
            return
        if self._ranks > 1:
            self._sum_over_ranks()
        if self._sums_parts:
            add = torch._foreach_copy_ if number == 0 else torch._foreach_add_
            add(self.parts, self._reduced)

    def _sum_over_ranks(self) -> None:
        for part, whole in zip(self._reduced, self.wholes, strict=True):
            dist.reduce_scatter_tensor(part, whole)
