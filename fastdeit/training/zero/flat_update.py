"""Backward and step on DeepSpeed's flat partitions at ZeRO 1 and 2, without a wait.

DeepSpeed builds the partitions and fills them at a resume; its hooks, buckets and `step()` do not
run. Gradients of all weights are copied into static flat fp32 buffers in one launch. The decisions
of a step remain on the device: torch's fused AdamW takes the flag `found_inf`, the divisor
`grad_scale` and the learning rate as tensors, so that it skips, clips and counts its steps there.
No function reads a value of the device, and all of them work on memory that is the same in every
step, so that a CUDA graph may capture each one that is not a collective.

The arithmetic is DeepSpeed's (0.19.8, runtime/zero/stage_1_and_2.py): the loss divided by the
number of micro-batches, sums in fp32, each group's norm in fp64, clipping by (norm + 1e-6) / limit.
Without clipping the results are equal bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fastdeit.training.graphs.graph import Run, run_eagerly
from fastdeit.training.optim.lamb import Lamb
from fastdeit.training.staging import StagedNumbers
from fastdeit.training.zero.flat import Compute
from fastdeit.training.zero.gradients import FlatGradients
from fastdeit.training.zero.partitions import OptimizerPartitions
from fastdeit.training.zero.update import Update

_PIECE = 1 << 16
"""Elements whose norm a CPU computes at a time: the copy of a whole group in fp64 leaves its
caches, which takes ten times as long."""


class FlatUpdate(Update):
    """Our own backward and step.

    model: its weights are views of the partitions. clip_grad: the largest norm; None: no clipping.
    """

    def __init__(
        self,
        model: nn.Module,
        partitions: OptimizerPartitions,
        gradients: FlatGradients,
        clip_grad: float | None,
    ) -> None:
        self._model = model
        self.gradients = gradients
        self._clip_grad = clip_grad
        self.micro_steps = gradients.micro_steps
        self._masters = partitions.masters
        self._weights = partitions.weights
        self._weight_parts = partitions.weight_parts
        self._optimizer: Any = partitions.optimizer
        device = self._masters[0].device
        self._rates = StagedNumbers(len(self._masters), device)
        self._pieces = gradients.parts
        if device.type == "cpu":
            self._pieces = [piece for part in gradients.parts for piece in part.split(_PIECE)]
        self._squares = torch.zeros(len(self._pieces), device=device)
        self.skipped = torch.zeros((), device=device)
        self.grad_norm = torch.zeros((), device=device)
        partitions.create_moments()
        self._bind()

    def _bind(self) -> None:
        """Give the optimizer the gradients and the tensors that decide its step."""
        groups = zip(self._optimizer.param_groups, self.gradients.parts, strict=True)
        for rate, (group, part) in zip(self._rates.values, groups, strict=True):
            group["lr"] = rate
            group["params"][0].grad = part
        self._optimizer.found_inf = self.skipped
        if self._clip_grad:
            self._optimizer.grad_scale = torch.ones_like(self.grad_norm)

    def set_rates(self, rates: Sequence[float]) -> None:
        self._rates.write(rates)

    def backward(self, compute: Compute, number: int) -> torch.Tensor:
        parts = compute(self._model)
        loss = parts.loss.detach()
        # NaN unless the loss is finite, as its gradient may be finite where the loss is not
        scale = (loss - loss).add_(self.gradients.share)
        self.gradients.add(parts.loss, scale, number)
        return torch.stack([part.detach().float() for part in parts])

    def reduce(self, number: int) -> None:
        self.gradients.reduce(number)

    @torch.no_grad()
    def step(self, run: Run = run_eagerly) -> None:
        run("norm", self._sum_squares)
        if dist.get_world_size() > 1:
            dist.all_reduce(self._squares)
        if isinstance(self._optimizer, Lamb) and dist.get_world_size() > 1:
            # LAMB sums the norms of parameters over the ranks
            self._update()
        else:
            run("update", self._update)
        if dist.get_world_size() > 1:
            for whole, part in zip(self._weights, self._weight_parts, strict=True):
                dist.all_gather_into_tensor(whole, part)

    def _sum_squares(self) -> None:
        norms = torch._foreach_norm(self._pieces, 2, dtype=torch.float64)
        self._squares.copy_(torch.stack(norms).square_())

    def _update(self) -> None:
        """Decide from the sums of squares whether and how to step, and step."""
        norm = torch.linalg.vector_norm(self._squares.sqrt())
        torch.nan_to_num(norm, nan=torch.inf, posinf=torch.inf, out=self.grad_norm)
        torch.eq(self.grad_norm, torch.inf, out=self.skipped)
        if self._clip_grad:
            divisor = torch.add(self.grad_norm, 1e-6, out=self._optimizer.grad_scale)
            divisor.div_(self._clip_grad).clamp_(min=1.0)
        self._optimizer.step()
        torch._foreach_copy_(self._weight_parts, self._masters)
